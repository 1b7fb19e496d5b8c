"""What a workload sends: its check's metrics, in the units that the check declares."""

from __future__ import annotations

from dataclasses import replace
from typing import Callable, Mapping, Optional

from validators import check as checks
from validators.schema import (
    MAX_TEXT,
    NOT_APPLICABLE,
    UNKNOWN,
    Measurement,
    Outcome,
    Progress,
    Record,
    Sample,
    Scalar,
)


class Results:
    """Sends records of one check, about `subject` (a GPU's UUID, or "host") where a call names no other.

    A metric that the check does not declare raises KeyError. `labels` go onto every measurement.
    """

    def __init__(self, check: str, subject: str, emit: Callable[[Record], None], **labels: str) -> None:
        self.check, self.subject, self.labels = check, subject, labels
        self._emit = emit
        self._units: Mapping[str, str] = {metric.name: metric.unit for metric in checks.load(check).info.metrics}

    def value(self, metric: str, value: Scalar, note: str = "", subject: str = "", **labels: str) -> None:
        """A measurement, in the metric's unit."""
        text = value[:MAX_TEXT] if isinstance(value, str) else value
        self._send(self._bare(metric, note, subject, labels), value=text)

    def not_applicable(self, metric: str, note: str, subject: str = "", **labels: str) -> None:
        """There is no such property here; `note` says how that is known."""
        self._send(self._bare(metric, note, subject, labels), absence=NOT_APPLICABLE)

    def unknown(self, metric: str, note: str, subject: str = "", **labels: str) -> None:
        """It could not be measured; `note` says why."""
        self._send(self._bare(metric, note, subject, labels), absence=UNKNOWN)

    def progress(self, message: str, fraction: float = -1.0) -> None:
        """What runs now. The first one says that the load begins."""
        self._emit(Progress(self.check, self.subject, message[:MAX_TEXT], fraction))

    def sample(self, t_s: float, values: Mapping[str, float], subject: str = "") -> None:
        """A point of a trace, seconds after the load began."""
        self._emit(Sample(self.check, subject or self.subject, t_s, dict(values)))

    def outcome(self, subject: str, status: str, detail: str = "", duration_s: float = 0.0) -> None:
        """How it ended for one GPU of several."""
        self._emit(Outcome(self.check, subject, status, detail[:MAX_TEXT], duration_s))

    def _bare(self, metric: str, note: str, subject: str, labels: Mapping[str, str]) -> Measurement:
        every = {**self.labels, **labels}
        return Measurement(self.check, subject or self.subject, metric, None, self._units[metric], every, "", note)

    def _send(self, bare: Measurement, *, value: Optional[Scalar] = None, absence: str = "") -> None:
        self._emit(replace(bare, value=value, absence=absence, note=bare.note[:MAX_TEXT]))
