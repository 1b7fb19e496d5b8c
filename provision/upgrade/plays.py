"""The phases that are plays: one run of Ansible for all hosts of a wave."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from provision.hosts import Host
from provision.plays import HostResult, PlayEvent, run_play
from provision.report.text import plain
from provision.upgrade.model import Result
from provision.upgrade.phases import UNREACHABLE

_TIMED_OUT = re.compile(r"(Task failed: )?Timed out after (\d+) second\(s\)\.?")
_HANGS = r"it did not end within \2 s: something hangs there, or a mirror is very slow"
DONE = "The phase is done"
"""The last task of each of these plays. A host that did not come so far has not done the phase."""
MAX_FORKS = 50
"""Hosts that Ansible works on at once. Each has a process of its own, of some 60 MiB."""


@dataclass(frozen=True)
class Plays:
    """Runs plays of one upgrade. `inventory`: what Ansible reads itself, or else the hosts."""

    folder: Path
    inventory: Sequence[Host] | Sequence[Path]
    host_keys: Literal["strict", "accept-new"] = "strict"
    become_password: str | None = None
    on_event: Callable[[PlayEvent], None] | None = None
    on_tick: Callable[[], None] | None = None
    variables: Mapping[str, object] = field(default_factory=dict)

    def run(
        self,
        book: str,
        name: str,
        hosts: Sequence[str],
        *,
        tags: Sequence[str] = (),
        deadline_s: float,
        done: Callable[[str], None] = lambda _host: None,
        **variables: object,
    ) -> dict[str, Result]:
        """Play `book` on these hosts. `name`: the folder of its events. `done` is told each host that went through.

        Raises PlayError and InventoryError where no host was played: that says nothing of a host.
        """
        reached: set[str] = set()
        failed: dict[str, Result] = {}

        def watch(event: PlayEvent) -> None:
            if event.task == DONE and event.kind == "ok" and event.host not in reached:
                reached.add(event.host)
                done(event.host)
            if self.on_event is not None:
                self.on_event(event)

        inventory = self.inventory
        if inventory and isinstance(inventory[0], Host):
            inventory = [host for host in inventory if isinstance(host, Host) and host.name in set(hosts)]
        played = run_play(
            book,
            inventory,
            artifact_dir=self.folder / "plays" / name,
            limit=",".join(hosts),
            extra_vars={"bringup_run": self.folder.name, **self.variables, **variables},
            tags=tags,
            forks=min(MAX_FORKS, len(hosts)),
            host_keys=self.host_keys,
            become_password=self.become_password,
            deadline_s=deadline_s,
            on_event=watch,
            on_tick=self.on_tick,
        )
        for host in hosts:
            if host not in reached:
                failed[host] = _failure(played.hosts.get(host), timeout=played.status == "timeout", after=deadline_s)
        return {host: failed.get(host, Result(True)) for host in hosts}


def _failure(result: HostResult | None, *, timeout: bool, after: float) -> Result:
    failure = result.failure if result is not None else None
    if failure is not None:
        where = f"{failure.role}: {failure.task}" if failure.role else failure.task
        said = plain(_TIMED_OUT.sub(_HANGS, failure.message), 600)
        lost = failure.unreachable
        text = f"not reached over SSH: {said}" if lost else f"{where}: {said}"
        return Result(False, text, {UNREACHABLE: True} if lost else {})
    if timeout:
        return Result(False, f"it did not end within {after:.0f} s")
    return Result(False, "the play ended before this host was through with it")
