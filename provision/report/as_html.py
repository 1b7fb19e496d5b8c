"""HTML: the acceptance certificate. One file, no script, no network; every text goes through plain() and autoescape."""

from __future__ import annotations

import re
from functools import lru_cache
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from provision.report import page, view
from provision.report.model import Report
from provision.report.numbers import duration
from provision.report.text import plain

CLIP = 1000
"""Characters of one text from a host that the page shows; report.json has all of it."""
CLIP_NAME = 120
_SAFE_ID = re.compile(r"[\w.:-]{1,80}", re.ASCII)


def render(report: Report) -> str:
    """The whole page."""
    sections = page.sections(report)
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            report=report,
            sections=sections,
            anchors={id(section.host): section.anchor for section in sections},
            hosts=view.worst_first(report.hosts),
            style=_style(report),
            view=view,
            limit=page.DETAILED_HOSTS,
            full=len(report.hosts) <= page.FULL_HOSTS,
            verdicts=view.counts(one for host in report.hosts for one in host.verdicts),
        )
    )


def _text(value: object) -> Markup | str:
    """Runs over each expression of the templates, so that no text can get past plain()."""
    return value if isinstance(value, Markup) else plain(str(value), CLIP, lines=True)


def _name(text: str) -> str:
    return plain(text, CLIP_NAME)


def _style(report: Report) -> Markup:
    """The style sheet; the run's id stands at the foot of each printed page where it is one."""
    css = (files("provision.report") / "templates" / "report.css").read_text(encoding="utf-8")
    if _SAFE_ID.fullmatch(report.run_id):
        css = css.replace("/*RUN*/", f' " run {report.run_id}"')
    return Markup(css)  # noqa: S704 - our own file; the id has passed _SAFE_ID


@lru_cache(maxsize=1)
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("provision.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_text,
    )
    made.filters.update(duration=duration, name=_name, id=id)
    return made
