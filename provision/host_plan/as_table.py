"""A plan for people: what blocks first, with the next step; then each decision with its rule, its source as a note."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from provision.compat.cards import card
from provision.compat.model import Part, Reason
from provision.host_plan.model import Change, HostPlan
from provision.profile import Profile
from provision.report.text import plain

if TYPE_CHECKING:
    from rich.console import Console

_WORDS = {
    "module": "kernel module",
    "fabric_manager": "fabric manager",
    "cuda_toolkit": "CUDA toolkit",
    "container_toolkit": "container toolkit",
}


def show(plans: Sequence[HostPlan], profile: Profile, console: Console) -> None:
    """Print the plans; what came from a host is escaped."""
    view = _View(console)
    told = f": {profile.description}" if profile.description else ""
    view.line(f"profile {profile.name}{told}", "dim")
    for one in plans:
        view.host(one)
    view.sources()
    if len(plans) > 1:
        blocked, unread = sum(bool(one.blockers) for one in plans), sum(bool(one.failure) for one in plans)
        ready = len(plans) - blocked - unread
        view.line(f"\n{len(plans)} hosts: {ready} ready, {blocked} blocked, {unread} not read")


class _View:
    """One printing; sources are numbered as they come up, and listed once at the end."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._sources: dict[str, int] = {}

    def host(self, plan: HostPlan) -> None:
        self._console.print()
        self.line(headline(plan), "bold")
        if plan.failure:
            self.line(f"  not read: {plan.failure.removeprefix(f'{plan.host}: ')}", "red")
            self._next(plan.hint)
            return
        for one in plan.blockers:
            why = "; ".join(self._reason(reason) for reason in one.because)
            self.line(f"  blocked: {one.what}{f' ({why})' if why else ''}", "red")
            self._next(one.next_step)
        for text in plan.warnings:
            self.line(f"  warning: {text}", "yellow")
        for text in plan.resolution.notes:
            self.line(f"  note: {text}")
        if plan.resolution.parts:
            self._table(("fits", "value", "because"), (self._decision(part) for part in plan.resolution.parts))
        if plan.changes:
            self._table(("would", "what", "now", "then", "because"), map(_row, plan.changes))
        elif not plan.blockers:
            self.line("  nothing to change", "green")
        if plan.reboot:
            self.line(f"  reboot: yes; {plan.reboot_because}", "yellow")
        elif plan.changes:
            self.line(f"  reboot: {plan.reboot_because or 'no'}")

    def sources(self) -> None:
        if self._sources:
            self._console.print()
        for text, number in self._sources.items():
            self.line(f"[{number}] {text}", "dim")

    def line(self, text: str, style: str = "") -> None:
        self._console.print(plain(text, lines=True), markup=False, style=style, soft_wrap=True)

    def _next(self, text: str) -> None:
        if text:
            self.line(f"    next: {text}")

    def _decision(self, part: Part) -> tuple[str, ...]:
        value = part.value or "newest"
        because = "; ".join(self._reason(one) for one in part.because)
        return _WORDS.get(part.name, part.name), f"{value} ({part.index})" if part.index else value, because

    def _reason(self, reason: Reason) -> str:
        sure = "" if reason.confidence == "high" else f" (confidence: {reason.confidence})"
        number = self._sources.setdefault(f"{reason.source}{sure}", len(self._sources) + 1)
        return f"{reason.rule} [{number}]"

    def _table(self, names: Sequence[str], rows: Iterator[tuple[str, ...]]) -> None:
        from rich.markup import escape  # noqa: PLC0415 - loaded where something is shown
        from rich.padding import Padding  # noqa: PLC0415
        from rich.table import Table  # noqa: PLC0415

        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        for name in names:
            table.add_column(name, overflow="fold", no_wrap=name in ("fits", "would"))
        for row in rows:
            table.add_row(*(escape(plain(cell)) for cell in row))
        self._console.print(Padding(table, (0, 0, 0, 2)))


def headline(plan: HostPlan) -> str:
    """The host, its system and its cards on a line."""
    if plan.failure:
        return plan.host
    cards = [card(*one.split(" ", 1)) for one in plan.machine.gpus]
    names = ", ".join(dict.fromkeys(one.name or one.pci_id for one in cards))
    gpus = plan.found.get("gpus") or (f"{len(cards)} x {names}" if len(cards) > 1 else names or "no NVIDIA GPU seen")
    told = [plan.found.get("os") or plan.machine.os, gpus]
    if plan.machine.kernel:
        told.insert(1, f"kernel {plan.machine.kernel}")
    if plan.found.get("driver"):
        told.append(f"driver {plan.found['driver']}")
    return f"{plan.host}  {', '.join(one for one in told if one)}"


def _row(change: Change) -> tuple[str, ...]:
    return change.kind, _WORDS.get(change.what, change.what), change.now or "-", change.then or "-", change.because
