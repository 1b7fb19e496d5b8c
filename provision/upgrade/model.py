"""What an upgrade is asked for, and what it works with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from provision.bundle import Bundle
from provision.hosts import Host
from provision.upgrade.compare import TOLERANCE
from provision.upgrade.waves import Rules

DRAIN_VARIABLE = "bringup_drain_command"
UNDRAIN_VARIABLE = "bringup_undrain_command"
CONSOLE_VARIABLE = "bringup_console"
"""Inventory variables: the site's commands, and where a host's console is (a command, an address)."""

ROLES = ("host_python", "nvidia_repository", "nvidia_driver", "fabric_manager", "container_toolkit")
"""What the install phase applies, in this order."""


@dataclass(frozen=True)
class Options:
    """How to upgrade. `to`: the driver's branch ("595") or version ("595.91.07"). Times in seconds.

    `even_if_failing`: also hosts whose own measurements fail before. `tolerance`: see compare().
    """

    to: str
    rules: Rules = field(default_factory=Rules)
    drain_timeout_s: float = 3600.0
    install_timeout_s: int = 1800
    reboot_timeout_s: int = 900
    tolerance: float = TOLERANCE
    even_if_failing: bool = False
    without_way_back: bool = False
    host_keys: Literal["strict", "accept-new"] = "strict"


@dataclass(frozen=True)
class Hooks:
    """The site's commands on the operator's machine. A host's own inventory variables go before them.

    They may hold secrets and are no part of Options, which the journal keeps.
    """

    drain: str = ""
    undrain: str = ""


@dataclass(frozen=True)
class Prepared:
    """What the roles are given for each host; the hosts that cannot be upgraded, and those that need not, with why."""

    variables: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    already: Mapping[str, str] = field(default_factory=dict)


Planner = Callable[[Sequence[Host]], Prepared]
"""Asks hosts what they are and says what to install there."""


@dataclass(frozen=True)
class Means:
    """What the work is done with. `bundle`: what measures. `roles`: what the install phase applies.

    `live`: show on a terminal which task each host is at. `tell`: takes a line for each phase and host.
    """

    bundle: Bundle
    become_password: str | None = None
    roles: Sequence[str] = ROLES
    live: bool = True
    tell: Callable[[str], None] = lambda _line: None
    settle_s: float = 30.0
    """Seconds before a host that looks worse is measured once more: services that start late."""


@dataclass(frozen=True)
class Result:
    """How a phase ended on one host."""

    ok: bool
    detail: str = ""
    data: Mapping[str, object] = field(default_factory=dict)
