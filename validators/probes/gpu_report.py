"""From a reading to a record."""

from __future__ import annotations

from validators.check import Context
from validators.probes.nvml import Absent, Found
from validators.schema import HOST, NOT_APPLICABLE


def report(ctx: Context, found: Found, subject: str = HOST) -> None:
    """Emit a reading: its value, or its absence."""
    if not isinstance(found.reading, Absent):
        ctx.measure(found.metric, found.reading, subject, found.labels, found.note)
    elif found.reading.kind == NOT_APPLICABLE:
        ctx.not_applicable(found.metric, found.reading.note, subject, found.labels)
    else:
        ctx.unknown(found.metric, found.reading.note, subject, found.labels)
