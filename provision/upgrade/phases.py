"""The phases of a host's transaction, and which comes after which. Pure.

snapshot -> drain -> before -> install -> reboot -> validate -> hold -> undrain -> done
    a failure up to before: (undrain ->) refused; nothing was changed
    a failure from install on: restore -> reboot_back -> validate_back -> undrain -> rolled_back
`bringup rollback`: (drain ->) restore -> reboot_back -> validate_back -> undrain -> rolled_back
    a failure on the way back: broken. A host that cannot be reached once it was changed: lost.
Every phase can be done again, so that `bringup resume` begins with the one that was cut off.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeGuard, get_args

Phase = Literal[
    "snapshot",
    "drain",
    "before",
    "install",
    "reboot",
    "validate",
    "hold",
    "restore",
    "reboot_back",
    "validate_back",
    "undrain",
]
Status = Literal["started", "ok", "failed"]
Outcome = Literal["done", "refused", "rolled_back", "broken", "lost"]

PHASES: tuple[Phase, ...] = get_args(Phase)
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
FORWARD: tuple[Phase, ...] = ("snapshot", "drain", "before", "install", "reboot", "validate", "hold")
BACK: tuple[Phase, ...] = ("restore", "reboot_back", "validate_back")
CHANGING: tuple[Phase, ...] = ("install", "reboot", "validate", "hold")
"""From here on a failure is rolled back."""

DOWN: tuple[Outcome, ...] = ("broken", "lost")
"""Hosts that serve nobody now."""

UNREACHABLE = "unreachable"
"""In a failed step's data: the host did not answer over SSH."""


@dataclass(frozen=True)
class Step:
    """A phase as it went on one host. `started`, `ended`: ISO 8601, UTC. `data`: what it found."""

    phase: Phase
    started: str = ""
    ended: str = ""
    status: Status = "started"
    detail: str = ""
    data: Mapping[str, object] = field(default_factory=dict)


def following(steps: Sequence[Step], path: Sequence[Phase] = FORWARD) -> Phase | Outcome:
    """What comes next on a host that went through these steps, or how it ended. `path`: FORWARD, or a rollback's."""
    if not steps:
        return path[0]
    last = steps[-1]
    if last.status == "started":
        return last.phase
    if last.phase == "undrain":  # where the site's command failed the host is well; that is said beside it
        return _ended(steps)
    return _after_success(last, path) if last.status == "ok" else _after_failure(steps)


def _after_success(last: Step, path: Sequence[Phase]) -> Phase | Outcome:
    order = path if last.phase in path else BACK
    at = order.index(last.phase)
    return order[at + 1] if at + 1 < len(order) else "undrain"


def _after_failure(steps: Sequence[Step]) -> Phase | Outcome:
    last = steps[-1]
    if last.phase not in (*CHANGING, *BACK):
        return "undrain" if any(step.phase == "drain" for step in steps) else "refused"
    if last.data.get(UNREACHABLE):
        return "lost"
    return "broken" if last.phase in BACK else "restore"


def _ended(steps: Sequence[Step]) -> Outcome:
    if any(step.phase in BACK for step in steps):
        return "rolled_back"
    return "done" if any(step.phase == "hold" and step.status == "ok" for step in steps) else "refused"


ORDER: tuple[tuple[Phase, ...], ...] = (
    ("snapshot",),
    ("drain",),
    ("before",),
    ("install",),
    ("restore",),
    ("reboot", "reboot_back"),
    ("validate",),
    ("validate_back",),
    ("hold",),
    ("undrain",),
)
"""Which phase a wave does first where its hosts are at different ones. What stands together is done together."""


def is_phase(name: Phase | Outcome) -> TypeGuard[Phase]:
    """Whether it is a phase, and not how a host ended."""
    return name in PHASES


def is_outcome(name: Phase | Outcome) -> TypeGuard[Outcome]:
    """Whether it is how a host ended."""
    return name in OUTCOMES
