"""Which hosts go together, and when no more may begin. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from provision.errors import UsageError

GROUP_VARIABLE = "bringup_serial_group"
"""Inventory variable: hosts with the same value are never down at once (two replicas of one service, say)."""


@dataclass(frozen=True)
class Member:
    """A host as far as waves go. `group` empty: it may be down together with any other."""

    name: str
    group: str = ""


@dataclass(frozen=True)
class Rules:
    """How to roll. `wave`: a count ("3") or a share of all hosts ("10%", rounded down, at least one).

    `canary`: hosts in the first wave; 0: none. `max_fail`: failed hosts that are put up with.
    `together`: serial groups do not count.
    """

    canary: int = 1
    wave: str = "10%"
    max_fail: int = 0
    together: bool = False


@dataclass(frozen=True)
class Wave:
    """Hosts that go through every phase together. `number` counts from 1."""

    number: int
    hosts: tuple[str, ...]
    canary: bool = False


def wave_size(text: str, hosts: int) -> int:
    """How many hosts a wave has at most. Raises UsageError."""
    match = re.fullmatch(r"(\d{1,6})(%?)", text.strip())
    number = int(match[1]) if match else 0
    if match is None or number < 1 or (match[2] and number > 100):
        raise UsageError(f'"{text[:40]}" is no size of a wave', "a count (--wave 3) or a share (--wave 10%)")
    return max(1, hosts * number // 100) if match[2] else number


def plan_waves(members: Sequence[Member], rules: Rules) -> tuple[Wave, ...]:
    """Every host in exactly one wave, in the inventory's order as far as serial groups allow. Raises UsageError."""
    size = wave_size(rules.wave, len(members))
    if rules.canary < 0:
        raise UsageError(f"{rules.canary} canaries cannot be meant", "--canary 1, or 0 for none")
    left = list(members)
    waves: list[Wave] = []
    while left:
        canary = not waves and rules.canary > 0
        wanted = rules.canary if canary else size
        taken: list[Member] = []
        for member in left:
            if len(taken) == wanted:
                break
            if rules.together or not member.group or all(member.group != other.group for other in taken):
                taken.append(member)
        left = [member for member in left if member not in taken]
        waves.append(Wave(len(waves) + 1, tuple(member.name for member in taken), canary))
    return tuple(waves)


def held_back(wave: Iterable[str], members: Sequence[Member], down: Collection[str], rules: Rules) -> dict[str, str]:
    """The hosts of a wave that may not begin, each with the host of its serial group that is down."""
    if rules.together:
        return {}
    groups = {member.name: member.group for member in members}
    out = {groups[name]: name for name in down if groups.get(name)}
    return {name: out[groups[name]] for name in wave if groups.get(name) in out and name not in down}


def stop_reason(failed: Collection[str], lost: Collection[str], rules: Rules) -> str:
    """Why no further wave begins, or nothing. A lost host stops it whatever `max_fail` says."""
    if lost:
        return f"{_names(lost)} did not come back: look at it before anything else goes down"
    if len(failed) > rules.max_fail:
        return f"{len(failed)} failed ({_names(failed)}), and --max-fail is {rules.max_fail}"
    return ""


def _names(hosts: Collection[str]) -> str:
    shown = sorted(hosts)
    return ", ".join(shown[:5]) + (f" and {len(shown) - 5} more" if len(shown) > 5 else "")
