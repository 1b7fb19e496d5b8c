"""One renderer per format: each takes a Report and returns text. render() finds it in FORMATS."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import MappingProxyType

from provision.errors import UsageError
from provision.report.model import Report

FORMATS: Mapping[str, str] = MappingProxyType(
    {
        "html": "report.html",
        "md": "report.md",
        "json": "report.json",
        "junit": "report.junit.xml",
    }
)
"""Format -> its file's name in a run directory. The renderer is render() in provision/report/as_<format>.py."""


def render(report: Report, format: str) -> str:
    """The report in one of FORMATS. Raises UsageError for any other. Pure: no I/O beyond its own templates."""
    if format not in FORMATS:
        raise UsageError(f"no report format {format!r:.40}", f"one of: {', '.join(FORMATS)}")
    text = importlib.import_module(f"provision.report.as_{format}").render(report)
    if not isinstance(text, str):
        raise TypeError(f"as_{format}.render returned {type(text).__name__}")
    return text
