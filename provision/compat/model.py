"""What goes into the resolver and what comes out of it: plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Source = Literal["nvidia", "distro", "mirror", "none"]
"""Where the driver comes from: NVIDIA's repository, the distribution's, a mirror of NVIDIA's, or not from us."""
Module = Literal["auto", "open", "proprietary"]
Scope = Literal["compute", "full"]
"""compute: no display server's libraries. full: everything that the driver has."""


@dataclass(frozen=True)
class Reason:
    """Why something is so: the rule in one sentence, and where it stands. `confidence`: high, medium or low."""

    rule: str
    source: str
    confidence: str = "high"


@dataclass(frozen=True)
class Machine:
    """What the resolver has to know of a host.

    `gpus`: PCI ids, one a card ("10de:2335"); a subsystem may follow a space ("10de:1e30 1028:129e").
    `os`: ID-VERSION_ID of /etc/os-release ("ubuntu-24.04", "debian-12"). `kernel`: uname -r; empty: unknown.
    `secure_boot` None: unknown.
    """

    gpus: tuple[str, ...] = ()
    os: str = ""
    kernel: str = ""
    architecture: str = "x86_64"
    nvswitches: int = 0
    secure_boot: bool | None = None


@dataclass(frozen=True)
class Wish:
    """What a profile asks for; "auto" leaves it to the resolver.

    `branch`: "auto", a driver branch ("580") or a whole version ("580.159.04").
    `cuda`: toolkits side by side ("13.0", "12.9", or "auto"); the first is what /usr/local/cuda leads to.
    `frameworks`: name -> version or "auto": torch, tensorflow, jax.
    """

    source: Source = "nvidia"
    branch: str = "auto"
    module: Module = "auto"
    scope: Scope = "compute"
    cuda: tuple[str, ...] = ()
    fabric_manager: bool = True
    """Where NVSwitches are seen; false: never."""
    container_toolkit: bool = True
    frameworks: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """One decision: `value` is what was chosen ("580", "open", "13.0", "2.13.0"), `packages` how it is installed.

    `name`: driver, module, repository, fabric_manager, cuda_toolkit (one Part a toolkit), container_toolkit, torch,
    tensorflow, jax. `packages`: apt packages, or pip requirements for a framework. `pin`: the package that pins the
    driver in NVIDIA's repository, or empty. `index`: a framework's wheel index ("cu126"); empty: the default one.
    """

    name: str
    value: str
    packages: tuple[str, ...] = ()
    pin: str = ""
    index: str = ""
    because: tuple[Reason, ...] = ()


@dataclass(frozen=True)
class Blocker:
    """What stands in the way, and the next step. `what` names the card, the distribution or the package."""

    what: str
    next_step: str
    because: tuple[Reason, ...] = ()


@dataclass(frozen=True)
class Resolution:
    """The parts that fit together, or what stands in the way. With a blocker, `parts` may be incomplete."""

    parts: tuple[Part, ...] = ()
    blockers: tuple[Blocker, ...] = ()
    notes: tuple[str, ...] = ()

    def part(self, name: str) -> Part | None:
        """The first part of this name, or None."""
        return next((part for part in self.parts if part.name == name), None)
