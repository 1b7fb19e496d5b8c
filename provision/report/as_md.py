"""Markdown that fits into an issue or a pull request: the verdict, the hosts, and what does not pass."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from provision.report import view
from provision.report.model import HostReport, LinkState, Report, Status, Verdict
from provision.report.numbers import duration, measured
from provision.report.text import plain

MAX_CHARACTERS = 60_000
"""A comment on GitHub holds 65,536."""
MAX_PROBLEMS = 50
"""Verdicts of one host and status that are written out."""

_SIGNS: Mapping[Status, str] = {"PASS": "✅", "WARN": "⚠️", "FAIL": "❌", "ERROR": "❓", "SKIP": "⏭️"}
_LINKS: Mapping[LinkState, str] = {
    "holds": "✅",
    "broken": "❌",
    "unknown": "❓",
    "not_applicable": "⏭️",
    "not_reached": "·",
}
_SPECIAL = re.compile(r"[\\`*_{}\[\]<>&#+!|~@:$\n]|^[-=]|(?<=www)\.", re.IGNORECASE)
"""Whatever Markdown, HTML or GitHub could act on, in the middle of a line or at its start."""


def render(report: Report) -> str:
    """GitHub-flavoured Markdown, at most MAX_CHARACTERS long; what is left out is counted at its end."""
    parts: list[str] = []
    room = MAX_CHARACTERS - 400
    left = 0
    for at, part in enumerate(_parts(report)):
        room -= len(part)
        if room > 0 or at == 0:
            parts.append(part)
        else:
            left += 1
    if left:
        parts.append(f"*{left:,} more parts do not fit here; report.html and report.json have them.*\n")
    return "\n".join(parts)


def escape(text: str, limit: int = 240) -> str:
    """`text` as Markdown that shows it and does nothing: no markup, HTML, table cell, link, mention or image."""
    return _SPECIAL.sub(lambda found: f"&#{ord(found[0])};", plain(text, limit)).replace("&#64;", "&#64;&#8203;")


def _code(text: str, limit: int = 1000) -> str:
    return f"<code>{escape(text, limit)}</code>"


def _parts(report: Report) -> Iterator[str]:
    yield (
        f"## {_SIGNS[report.status]} {view.WORDS[report.status]}\n\n{escape(view.sentence(report), 600)}\n\n"
        + _facts(report)
        + "".join(f"\n> {escape(note)}\n" for note in report.notes[:10])
    )
    if len(report.hosts) > 1:
        yield "| Host | Verdict | What | GPUs | Verdicts |\n|---|---|---|---|---|"
        for host in view.worst_first(report.hosts):
            tally = view.tally(view.counts(host.verdicts))
            sign = f"{_SIGNS[host.status]} {host.status}"
            gpus = escape(view.gpus_text(host), 80)
            yield f"| {escape(host.name, 80)} | {sign} | {escape(host.headline)} | {gpus} | {tally} |"
    for host in view.worst_first(report.hosts):
        yield from _host(host)


def _facts(report: Report) -> str:
    files = ", ".join(f"{escape(name, 80)} {_code(digest[:12])}" for name, digest in report.criteria_files)
    return (
        f"Run {_code(report.run_id, 80)}, measured {escape(report.created, 40)}, judged {escape(report.judged, 40)}"
        f" by gpu-bringup {escape(report.version, 40)}.\n"
        + (f"Command: {_code(report.command, 400)}\n" if report.command else "")
        + (f"Criteria: {files}\n" if files else "")
    )


def _host(host: HostReport) -> Iterator[str]:
    device = ", on the CPU as a reference (`--device cpu`)" if host.device == "cpu" else ""
    head = (
        f"\n### {_SIGNS[host.status]} {escape(host.name, 120)}: {host.status}\n\n{escape(host.headline, 600)}\n\n"
        f"{escape(view.gpus_text(host), 120)}{device}; {view.tally(view.counts(host.verdicts))};"
        f" {duration(host.duration_s)}."
    )
    yield head + _chain(host)
    for status in ("FAIL", "ERROR", "WARN"):
        found = [one for one in host.verdicts if one.status == status]
        if found:
            yield "\n| Verdict | What | Measured | Required | Why | Next |\n|---|---|---|---|---|---|\n" + "\n".join(
                _row(host, one) for one in found[:MAX_PROBLEMS]
            )
        if len(found) > MAX_PROBLEMS:
            yield f"\n{len(found) - MAX_PROBLEMS:,} more {status} in report.html."
    passed = [one for one in host.verdicts if one.status == "PASS"]
    if passed:
        rows = "\n".join(
            f"| {_what(host, one)} | {escape(measured(one.measurement), 80)} | {escape(one.required, 80)} |"
            for one in passed
        )
        summary = f"<details><summary>{len(passed):,} PASS</summary>"
        yield f"\n{summary}\n\n| What | Measured | Required |\n|---|---|---|\n{rows}\n\n</details>"


def _chain(host: HostReport) -> str:
    if host.chain is None:
        return ""
    broken = host.chain.broken
    if broken is None:
        return f"\n\n**First broken link:** none. {escape(host.chain.sentence)}"
    signs = " → ".join(f"{_LINKS[link.state]} {escape(link.name, 60)}" for link in host.chain.links)
    mend = f"\nTo mend it: {_code(broken.mend)}" if broken.mend else ""
    return f"\n\n**First broken link:** {escape(host.chain.sentence, 600)}{mend}\n\n{signs}"


def _what(host: HostReport, one: Verdict) -> str:
    labels = view.labels_text(one.measurement)
    text = f"{one.check}.{one.metric}" if one.metric else one.check
    return f"{escape(text, 120)} {escape(view.subject_name(host, one.subject), 64)}" + (
        f" ({escape(labels, 120)})" if labels else ""
    )


def _row(host: HostReport, one: Verdict) -> str:
    cells = (
        f"{_SIGNS[one.status]} {one.status}",
        _what(host, one),
        escape(measured(one.measurement) if one.measurement else "-", 120),
        escape(one.required or "-", 120),
        escape(one.reason, 400) + (f" <sub>{escape(one.criterion.source, 160)}</sub>" if one.criterion else ""),
        escape(one.next_step, 400),
    )
    return f"| {' | '.join(cells)} |"
