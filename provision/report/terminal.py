"""The report on a terminal, with Rich. Everything is Text, so nothing that a host sent is read as markup."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from provision.report import view
from provision.report.model import CONNECTION, NO_OUTCOME, HostReport, LinkState, Report, Status, Verdict
from provision.report.numbers import duration, measured
from provision.report.text import plain

MAX_HOSTS = 24
"""Over so many hosts, those that pass are counted instead of listed."""
MAX_PROBLEMS = 12
"""Verdicts shown per host; the files hold all of them."""
_CELL = 300

_STYLES: Mapping[Status, str] = {
    "PASS": "green",
    "WARN": "yellow",
    "FAIL": "bold red",
    "ERROR": "bold magenta",
    "SKIP": "dim",
}
_SIGNS: Mapping[LinkState, tuple[str, str]] = {
    "holds": ("✓", "green"),
    "broken": ("✗", "bold red"),
    "unknown": ("?", "bold magenta"),
    "not_applicable": ("~", "dim"),
    "not_reached": ("·", "dim"),
}


def render_terminal(report: Report, console: Console) -> None:
    """Print the verdict, the fleet, and of each host that does not pass what is wrong and what to do next."""
    console.print(
        Text.assemble((view.WORDS[report.status], _STYLES[report.status]), "  ", _text(view.sentence(report)))
    )
    if report.notes:
        console.print(*(_text(f"note: {note}") for note in report.notes), sep="\n")
    if len(report.hosts) > 1:
        console.print(_fleet(report))
    hosts = view.worst_first(report.hosts)
    shown = [host for host in hosts if host.status != "PASS" or len(hosts) == 1][:MAX_HOSTS]
    for host in shown:
        console.print(_host(host, alone=len(hosts) == 1))
    left = sum(host.status != "PASS" for host in hosts) - len(shown)
    if left > 0:
        console.print(Text(f"{left:,} more hosts do not pass; the report's files show them.", "yellow"))


def render_chain(host: HostReport, *, sentence: bool = True) -> RenderableType:
    """The chain from the PCI device to a framework's known answer; its sentence too, unless that was said before."""
    if host.chain is None:
        return Text.assemble("The chain was not walked: ", _text(host.headline))
    table = Table.grid(padding=(0, 1))
    table.add_column(justify="right")
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    behind = [link.name for link in host.chain.links if link.state == "not_reached"]
    for link in host.chain.links:
        if link.state == "not_reached":
            continue
        sign, style = _SIGNS[link.state]
        table.add_row(
            Text(sign, style),
            Text(plain(link.name, 40), style),
            _text(link.evidence, "dim" if style != "bold red" else ""),
        )
    parts: list[RenderableType] = [_text(host.chain.sentence, "bold"), table] if sentence else [table]
    if behind:
        parts.append(_text(f"Not reached: {', '.join(behind)}.", "dim"))
    broken = host.chain.broken
    if broken is not None and broken.mend and broken.mend not in host.chain.sentence:
        parts.append(Text.assemble(("To mend it: ", "bold"), _text(broken.mend, "cyan", 1000)))
    return Group(*parts)


def _fleet(report: Report) -> Table:
    hosts = view.worst_first(report.hosts)
    shown = hosts if len(hosts) <= MAX_HOSTS else [host for host in hosts if host.status != "PASS"][:MAX_HOSTS]
    table = Table(box=None, header_style="dim", pad_edge=False)
    for name in ("Host", "Verdict", "What", "GPUs", "Took"):
        table.add_column(name, overflow="fold", justify="right" if name == "Took" else "left")
    for host in shown:
        table.add_row(
            _text(host.name, "bold", 64),
            Text(host.status, _STYLES[host.status]),
            _text(host.headline),
            _text(view.gpus_text(host), limit=80),
            duration(host.duration_s),
        )
    if len(shown) < len(hosts):
        table.caption = f"{len(hosts) - len(shown):,} more: {view.tally(view.host_counts(report))} in all"
    return table


def _host(host: HostReport, *, alone: bool) -> Padding:
    tally = view.tally(view.counts(host.verdicts))
    parts: list[RenderableType] = [
        Text.assemble(
            (host.status, _STYLES[host.status]),
            "  ",
            _text(host.name, "bold", 64),
            _text(f"  {view.gpus_text(host)}; {tally}; {duration(host.duration_s)}", "dim"),
        )
    ]
    if host.device == "cpu":
        parts.append(
            Text("Ran on the CPU, because --device cpu asked for it: a reference, no judgement of a GPU.", "yellow")
        )
    if host.chain is not None and (host.chain.broken is not None or host.status == "PASS"):
        said = alone and host.chain.sentence in host.headline
        broken = host.chain.broken
        parts.append(render_chain(host, sentence=not said) if broken else _text(host.chain.sentence, "green"))
    problems = sorted(
        (one for one in host.verdicts if one.status in ("FAIL", "ERROR", "WARN")),
        key=lambda one: view.ORDER.index(one.status),
    )
    lost = next((one for one in problems if one.check == CONNECTION), None)
    if lost is not None:  # the same sentence once for each check behind it helps nobody
        cells = [one for one in problems if one.reason.startswith(NO_OUTCOME)]
        problems = [one for one in problems if one not in cells]
        if cells:
            parts.append(Text(f"{len(cells)} planned checks have no outcome for this reason:", "yellow"))
    if problems:
        parts.append(_problems(host, problems[:MAX_PROBLEMS]))
    if len(problems) > MAX_PROBLEMS:
        parts.append(Text(f"{len(problems) - MAX_PROBLEMS:,} more like these in the report's files.", "yellow"))
    return Padding(Group(*parts), (1, 0, 0, 0))


def _problems(host: HostReport, problems: list[Verdict]) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    before = ""
    for one in problems:
        name = f"{one.check}.{one.metric}" if one.metric else one.check
        what = Text.assemble(_text(name, "bold", 80), _text(f"  {view.subject_name(host, one.subject)}", "dim", 64))
        what.append("\n").append_text(_text(one.reason, limit=600))
        if one.required and one.required not in one.reason:
            what.append_text(_text(f"; measured: {measured(one.measurement)}, required: {one.required}", limit=200))
        if one.next_step:
            step = _text(one.next_step, limit=600) if one.next_step != before else Text("as above")
            what.append("\n→ ").append_text(step)
            what.stylize("cyan", len(what) - len(step) - 2)
        before = one.next_step
        table.add_row(Text(one.status, _STYLES[one.status]), what)
    return table


def _text(text: str, style: str = "", limit: int = _CELL) -> Text:
    return Text(plain(text, limit), style)
