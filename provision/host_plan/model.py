"""The plan of a host: plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from provision.compat.model import Blocker, Machine, Resolution

Kind = Literal["install", "upgrade", "downgrade", "remove", "hold", "configure"]


@dataclass(frozen=True)
class Change:
    """One thing that provisioning would do. `now`, `then`: versions, empty where there is none or it is not known."""

    kind: Kind
    what: str
    now: str = ""
    then: str = ""
    because: str = ""


@dataclass(frozen=True)
class HostPlan:
    """What would be done to one host.

    `found`: what is installed and running, by name (driver, module, flavour, cuda_toolkit, docker, ...).
    `reboot_because`: why it reboots; with `reboot` false, why that cannot be said, or empty.
    `blockers`: the resolution's, and the host's own (Secure Boot with an unenrolled key, processes on a GPU, disk).
    `variables`: what the roles are given for this host (docs/provisioning.md). `failure`: why it could not be read.
    """

    host: str
    machine: Machine = field(default_factory=Machine)
    found: Mapping[str, str] = field(default_factory=dict)
    resolution: Resolution = field(default_factory=Resolution)
    changes: tuple[Change, ...] = ()
    blockers: tuple[Blocker, ...] = ()
    warnings: tuple[str, ...] = ()
    reboot: bool = False
    reboot_because: str = ""
    variables: Mapping[str, object] = field(default_factory=dict)
    failure: str = ""
    hint: str = ""
