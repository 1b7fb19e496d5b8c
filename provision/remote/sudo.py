"""A command as root, where the inventory asks for it."""

from __future__ import annotations

from collections.abc import Sequence

from provision.hosts import Host

_SUDO = '[ "$(id -u)" = 0 ] && exec "$@"; exec sudo -n -H -- "$@"'
"""A shell string, since only the host knows whether it is root already."""


def as_asked(host: Host, argv: Sequence[str]) -> list[str]:
    """The command, through sudo where the host has `ansible_become`."""
    return ["sh", "-c", _SUDO, "sh", *argv] if host.become else list(argv)
