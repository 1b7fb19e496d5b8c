"""A play as a person sees it: what each host is at, what changed, what failed, the counts at the end."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

from provision.console import err, out, say
from provision.plays.progress import PlayEvent
from provision.plays.record import PlayResult
from provision.report.text import plain

QUIET_S = 30.0
"""Where there is no terminal: after this silence, and then as often, a line says which task each host is at."""
_TOLD = ("note", "changed", "failed", "unreachable", "ignored", "warning", "retry")
_AT_ONCE = 4


def _where(event: PlayEvent) -> str:
    return f"{event.role}: {event.task}" if event.role else event.task


@dataclass
class Watcher:
    """What is shown of a play. `event` and `tick` are run_play's on_event and on_tick; `clock` in seconds."""

    hosts: int
    show_diff: bool = False
    write: Callable[[str], None] = say
    status: Callable[[str], None] | None = None
    clock: Callable[[], float] = time.monotonic
    _at: dict[str, tuple[str, float]] = field(default_factory=dict)
    _began: float = 0.0
    _spoke: float = 0.0

    def __post_init__(self) -> None:
        self._began = self._spoke = self.clock()

    def event(self, event: PlayEvent) -> None:
        """One step: a line for what changed or failed, and where the host is now."""
        if event.kind == "start":
            self._at[event.host] = (_where(event), self.clock())
        elif event.kind in ("ok", "note", "changed", "failed", "ignored", "unreachable", "skipped"):
            self._at.pop(event.host, None)
        if event.kind in _TOLD:
            what = f" {event.message}" if event.kind != "changed" and event.message else ""
            self._line(f"{event.kind:<11} {event.host}  {_where(event)}{what}")
        if self.show_diff and event.diff:
            self.write(plain(event.diff, lines=True))
        self.tick()

    def tick(self) -> None:
        """Twice a second, event or not."""
        now = self.clock()
        if self.status is not None:
            self.status(self._now(now))
        elif now - self._spoke >= QUIET_S and self._at:
            for host, (task, since) in list(self._at.items())[:_AT_ONCE]:
                self._line(f"{'still at':<11} {host}  {task} ({now - since:.0f} s)")
            if len(self._at) > _AT_ONCE:
                self._line(f"{'still at':<11} {len(self._at) - _AT_ONCE} more hosts")

    def _line(self, text: str) -> None:
        self._spoke = self.clock()
        self.write(plain(f"{self._spoke - self._began:6.1f} s  {text}"))

    def _now(self, now: float) -> str:
        """The hosts that are longest at their task come first: those are what is waited for."""
        if not self._at:
            return f"{self.hosts} host{'s' if self.hosts != 1 else ''}: Ansible is at work"
        slowest = sorted(self._at.items(), key=lambda item: item[1][1])
        shown = [
            f"{host}: {task}{f' ({now - since:.0f} s)' if now - since >= 2 else ''}"
            for host, (task, since) in slowest[:_AT_ONCE]
        ]
        more = f"  and {len(slowest) - _AT_ONCE} more hosts" if len(slowest) > _AT_ONCE else ""
        return plain("  ".join(shown) + more)


@contextmanager
def watching(hosts: int, *, show_diff: bool = False) -> Iterator[Watcher]:
    """On a terminal a line that tells the task of each host and for how long; elsewhere lines alone."""
    if not sys.stderr.isatty():
        yield Watcher(hosts, show_diff)
        return
    from rich.markup import escape  # noqa: PLC0415 - only on a terminal

    console = err()

    def write(text: str) -> None:
        console.print(text, markup=False, soft_wrap=True)

    with console.status(f"{hosts} host{'s' if hosts != 1 else ''}: starting Ansible") as status:

        def update(text: str) -> None:
            status.update(escape(text[: max(20, os.get_terminal_size(sys.stderr.fileno()).columns - 4)]))

        yield Watcher(hosts, show_diff, write, update)


def show_result(result: PlayResult) -> None:
    """The counts per host, then each failure with its next step."""
    from rich.markup import escape  # noqa: PLC0415 - only where there is something to show
    from rich.table import Table  # noqa: PLC0415 - see above

    table = Table(title=f"{result.playbook}{' (check mode: nothing was changed)' if result.check else ''}")
    table.add_column("host")
    for name in ("ok", "changed", "skipped", "failed", "unreachable"):
        table.add_column(name, justify="right")
    for host in result.hosts.values():
        counts = (host.ok, host.changed, host.skipped, host.failed, host.unreachable)
        table.add_row(escape(plain(host.host)), *(str(count) for count in counts))
    out().print(table)
    for failure in result.failures:
        say(failure.sentence())
        if failure.hint:
            say(f"  next: {failure.hint}")
    if result.message:
        say(f"Ansible broke off: {result.message}")


def as_data(result: PlayResult) -> Mapping[str, object]:
    """The result for --json."""
    return {
        "playbook": result.playbook,
        "status": result.status,
        "message": result.message,
        "check": result.check,
        "changed": result.changed,
        "duration_s": round(result.duration_s, 3),
        "hosts": {name: asdict(host) for name, host in result.hosts.items()},
    }
