"""A plan for people: what blocks first, with the next step; then each decision with its rule and source."""

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
    "driver": "driver",
    "module": "kernel module",
    "repository": "repository",
    "fabric_manager": "fabric manager",
    "cuda_toolkit": "CUDA toolkit",
    "container_toolkit": "container toolkit",
}


def show(plans: Sequence[HostPlan], profile: Profile, console: Console) -> None:
    """Print the plans; what came from a host is escaped."""
    told = f": {profile.description}" if profile.description else ""
    _line(console, f"profile {profile.name}{told}", "dim")
    for one in plans:
        console.print()
        _host(one, console)


def _host(plan: HostPlan, console: Console) -> None:
    from rich.table import Table  # noqa: PLC0415 - loaded where something is shown

    _line(console, _headline(plan), "bold")
    if plan.failure:
        _line(console, f"  not read: {plan.failure}", "red")
        _next(console, plan.hint)
        return
    for one in plan.blockers:
        _line(console, f"  blocked: {one.what}", "red")
        _next(console, one.next_step)
        for reason in one.because:
            _line(console, f"    {_reason(reason)}", "dim")
    for text in plan.warnings:
        _line(console, f"  warning: {text}", "yellow")
    for text in plan.resolution.notes:
        _line(console, f"  note: {text}")
    if plan.resolution.parts:
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        for name in ("  what fits", "value", "because (source)"):
            table.add_column(name, overflow="fold")
        for part in plan.resolution.parts:
            table.add_row(f"  {_WORDS.get(part.name, part.name)}", _cell(_value(part)), _cell(_because(part)))
        console.print(table)
    _changes(plan, console)
    if plan.reboot:
        _line(console, f"  reboot: {plan.reboot_because}", "yellow")


def _changes(plan: HostPlan, console: Console) -> None:
    from rich.table import Table  # noqa: PLC0415 - see above

    if not plan.changes:
        _line(console, "  nothing to change", "green")
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("  would", "what", "now", "then", "because"):
        table.add_column(name, overflow="fold")
    for one in plan.changes:
        table.add_row(*(_cell(text) for text in _row(one)))
    console.print(table)


def _row(change: Change) -> Iterator[str]:
    yield f"  {change.kind}"
    yield _WORDS.get(change.what, change.what)
    yield change.now or "-"
    yield change.then or "-"
    yield change.because


def _headline(plan: HostPlan) -> str:
    cards = [card(*one.split(" ", 1)) for one in plan.machine.gpus]
    names = list(dict.fromkeys(one.name or one.pci_id for one in cards))
    gpus = plan.found.get("gpus") or (
        f"{len(cards)} x {', '.join(names)}" if len(cards) > 1 else ", ".join(names) or "no NVIDIA GPU seen"
    )
    told = [plan.found.get("os") or plan.machine.os, gpus]
    if plan.machine.kernel:
        told.insert(1, f"kernel {plan.machine.kernel}")
    if plan.found.get("driver"):
        told.append(f"driver {plan.found['driver']}")
    return f"{plan.host}  {', '.join(one for one in told if one)}" if not plan.failure else plan.host


def _value(part: Part) -> str:
    text = part.value or "newest"
    if part.index:
        text += f" ({part.index})"
    return text


def _because(part: Part) -> str:
    return "; ".join(_reason(one) for one in part.because)


def _reason(reason: Reason) -> str:
    sure = "" if reason.confidence == "high" else f", confidence {reason.confidence}"
    return f"{reason.rule} ({reason.source}{sure})"


def _next(console: Console, text: str) -> None:
    if text:
        _line(console, f"    next: {text}")


def _line(console: Console, text: str, style: str = "") -> None:
    console.print(plain(text), markup=False, style=style, soft_wrap=True)


def _cell(text: str) -> str:
    from rich.markup import escape  # noqa: PLC0415 - see above

    return escape(plain(text))
