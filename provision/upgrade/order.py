"""What a run was asked for, as its journal keeps it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from provision.errors import UsageError
from provision.hosts import Host
from provision.typed import Misfit, fitted
from provision.upgrade.journal import HostState, RunState
from provision.upgrade.model import Options
from provision.upgrade.phases import DOWN, FORWARD, Phase
from provision.upgrade.waves import GROUP_VARIABLE, Member, Wave


@dataclass(frozen=True)
class Order:
    """What the journal's first event holds: all that going on later needs, and nothing secret.

    `already`: hosts that have nothing to do. `path`: the phases in order. `asks`: sudo wants a password there.
    `hooks`: by host, hashes of the site's commands.
    """

    options: Options
    waves: tuple[Wave, ...]
    members: tuple[Member, ...]
    inventories: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    limit: str = ""
    variables: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    already: Mapping[str, str] = field(default_factory=dict)
    snapshot: str = ""
    path: tuple[Phase, ...] = FORWARD
    roles: tuple[str, ...] = ()
    asks: bool = False
    hooks: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @property
    def rollback(self) -> bool:
        """Whether it is `bringup rollback`."""
        return "restore" in self.path


def order_of(state: RunState, folder: Path) -> Order:
    """The order of a run. Raises UsageError where the folder is not that of an upgrade."""
    try:
        return fitted(Order, dict(state.plan), "the plan")
    except Misfit as problem:
        raise UsageError(f"{folder} is no run of `bringup upgrade`: {problem}", "name its folder: runs/<id>") from None


def members_of(hosts: Sequence[Host]) -> tuple[Member, ...]:
    """The hosts as far as waves go."""
    return tuple(Member(host.name, str(host.variables.get(GROUP_VARIABLE) or "")) for host in hosts)


def absolute(inventories: Sequence[str]) -> tuple[str, ...]:
    """Inventories as they are found from any folder; names with a comma ("box1,") are no path."""
    return tuple(one if "," in one else str(Path(one).absolute()) for one in inventories)


def exit_code(state: RunState, order: Order) -> int:
    """0: all done. 3: a host is broken or lost. 1: something failed, or was not begun because something had."""
    hosts = [state.hosts.get(member.name, HostState(member.name)) for member in order.members]
    if any(host.outcome in DOWN for host in hosts):
        return 3
    good = "rolled_back" if order.rollback else "done"
    return 0 if all(host.outcome == good and not host.still_drained for host in hosts) else 1
