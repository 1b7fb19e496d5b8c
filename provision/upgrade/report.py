"""The report of an upgrade, written: upgrade.json, upgrade.md, upgrade.html in the run directory."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from provision.errors import RunDirectoryError
from provision.report.as_md import escape
from provision.report.text import plain
from provision.upgrade.journal import RunState
from provision.upgrade.view import MEANINGS, STATUSES, Page, page

NAMES = {"json": "upgrade.json", "md": "upgrade.md", "html": "upgrade.html"}
_SIGNS = {"PASS": "✅", "FAIL": "❌", "ERROR": "❓", "SKIP": "⏭️", "WARN": "⚠️"}
_CLIP = 2000


def write(folder: Path, state: RunState) -> None:
    """Write the report in every format. Raises RunDirectoryError."""
    made = page(folder.name, state)
    renderers: Mapping[str, Callable[[Page], str]] = {"json": as_json, "md": as_markdown, "html": as_html}
    for format, render in renderers.items():
        path = folder / NAMES[format]
        part = path.with_name(path.name + ".part")
        try:
            handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
            with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
                file.write(render(made))
            part.replace(path)
        except OSError as problem:
            raise RunDirectoryError(f"{path} cannot be written: {problem.strerror}", "is the disk full?") from None


def as_json(made: Page) -> str:
    """The rows as JSON, ASCII alone."""
    return json.dumps(asdict(made), indent=1) + "\n"


def as_markdown(made: Page) -> str:
    """GitHub-flavoured Markdown: fits into an issue."""
    lines = [f"## {_SIGNS[made.status]} {escape(made.sentence)}", ""]
    if made.stopped:
        lines += [f"Stopped: {escape(made.stopped)}.", ""]
    lines += ["| | host | wave | before | now | what |", "|---|---|---|---|---|---|"]
    for host in made.hosts:
        before = escape(str(host.before.get("driver") or ""))
        word = escape(host.word.replace("_", " "))
        detail = f"{word}: {escape(host.detail, 400)}" if host.detail else word
        cells = [_SIGNS[host.status], escape(host.name), str(host.wave or ""), before, escape(host.now), detail]
        lines.append(f"| {' | '.join(cells)} |")
    for host in made.hosts:
        if host.status == "PASS":
            continue
        lines += ["", f"### {escape(host.name)}", ""]
        for step in host.steps:
            took = f" ({step.seconds:.0f} s)" if step.seconds is not None else ""
            detail = f": {escape(step.detail, 600)}" if step.detail else ""
            lines.append(f"- {_SIGNS[step.status]} {escape(step.what)}{took}{detail}")
    return "\n".join(lines) + "\n"


def as_html(made: Page) -> str:
    """One page, no script, no network."""
    style = (files("provision.report") / "templates" / "report.css").read_text(encoding="utf-8")
    return (
        _environment()
        .get_template("upgrade.html.j2")
        .render(
            page=made,
            style=Markup(style),  # noqa: S704  our own file
            meanings=MEANINGS,
            statuses=STATUSES,
        )
    )


@lru_cache(maxsize=1)
def _environment() -> Environment:
    made = Environment(
        loader=ChoiceLoader([PackageLoader("provision.upgrade"), PackageLoader("provision.report")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) else plain(str(value), _CLIP, lines=True),
    )
    made.filters.update(short=lambda text: plain(str(text), 240), clock=lambda text: plain(str(text)[11:19]))
    made.filters.update(name=lambda text: plain(str(text), 120), duration=lambda seconds: f"{seconds:.0f} s")
    return made
