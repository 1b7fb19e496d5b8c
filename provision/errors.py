"""Every exception that this package raises on purpose.

BringupError                   a sentence for a person: what, why, what next
├── UsageError                 the user's own words or files are wrong (exit code 2)
│   ├── InventoryError
│   ├── CriteriaError
│   ├── ProfileError
│   └── RunDirectoryError
├── HostError                  one host could not be measured; never ends a run (ERROR in the report)
│   ├── ConnectError           unreachable, refused, name not found
│   │   ├── HostKeyError       unknown or changed host key
│   │   └── AuthenticationError
│   ├── ConnectionLost         the connection broke or went silent
│   ├── HostTimeout            a deadline passed
│   ├── RemoteCommandError     the host answered, but not what was asked (no python3, disk full, ...)
│   └── WireError              the bundle's answer is not the wire format
└── PlayError                  ansible-runner could not run at all
"""

from __future__ import annotations


class BringupError(Exception):
    """`message` says what is wrong and with which host or file; `hint` is the next step."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(BringupError):
    """The user's own words or files are wrong."""


class InventoryError(UsageError):
    """The inventory is malformed, or selects no host."""


class CriteriaError(UsageError):
    """A criteria file is wrong; the text quotes the entry."""


class ProfileError(UsageError):
    """A profile is wrong or unknown; the text names file, key and what is allowed."""


class RunDirectoryError(UsageError):
    """A run directory cannot be written, or is not one."""


class HostError(BringupError):
    """One host could not be measured."""


class ConnectError(HostError):
    """No SSH connection came about."""


class HostKeyError(ConnectError):
    """The host's key is unknown or has changed."""


class AuthenticationError(ConnectError):
    """The host refused every key that was offered."""


class ConnectionLost(HostError):
    """The connection broke, or the host went silent."""


class HostTimeout(HostError):
    """A deadline passed."""


class RemoteCommandError(HostError):
    """The host answered, but could not do what was asked."""


class WireError(HostError):
    """What the host sent is not the wire format."""


class PlayError(BringupError):
    """ansible-runner could not run the play at all."""
