"""JSON: the whole report, nothing rounded, keys as in docs/report.schema.json. from_json() reads it back."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from provision.errors import UsageError
from provision.report.model import Report
from provision.report.view import counts, host_counts
from provision.typed import Misfit, fitted

SCHEMA_VERSION = 1
"""Goes up when a key changes its meaning or goes away; new keys do not raise it."""


def render(report: Report) -> str:
    """ASCII JSON, so nothing that a host sent can act on a terminal. NaN raises ValueError: no report holds one."""
    body: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "summary": {
            "hosts": host_counts(report),
            "verdicts": counts(one for host in report.hosts for one in host.verdicts),
        },
        **asdict(report),
    }
    return json.dumps(body, indent=1, ensure_ascii=True, allow_nan=False) + "\n"


def from_json(text: str) -> Report:
    """The report of such a text. Raises UsageError where it is none, or of another schema version."""

    def refuse(constant: str) -> None:
        raise Misfit(f"{constant} is not a number")

    try:
        body = json.loads(text, parse_constant=refuse)
        if not isinstance(body, dict):
            raise Misfit("not a JSON object")
        if body.get("schema_version") != SCHEMA_VERSION:
            raise Misfit(f"schema_version is {body.get('schema_version')!r:.40}, this version reads {SCHEMA_VERSION}")
        return fitted(Report, body, "report")
    except (ValueError, RecursionError) as problem:
        raise UsageError(
            f"not a report: {problem!s:.300}", "report.json as written by `bringup validate` or `bringup judge`"
        ) from None
