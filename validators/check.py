"""How a check is written: a function with @check, which measures through its Context.

    @check(catches="a card that fell off the bus", needs=("NVML",), level=1, seconds=0.1, timeout_s=20,
           metrics=(Metric("gpu_count", "count", "GPUs that NVML sees"),))
    def example(ctx: Context) -> None:
        '''What it measures, in one line.'''
        ctx.measure("gpu_count", 8)

The file `checks/<name>.py` holds the check `<name>`; that is the whole registration.
"""

from __future__ import annotations

import importlib
import pkgutil
import time
import traceback
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Callable, Iterator, List, Mapping, Optional, Tuple

from validators.schema import (
    ERROR,
    HOST,
    MAX_TEXT,
    NOT_APPLICABLE,
    RAN,
    SKIPPED,
    UNKNOWN,
    CheckInfo,
    CheckRequest,
    Measurement,
    Metric,
    Outcome,
    Plan,
    Progress,
    Record,
    Sample,
    Scalar,
)

__all__ = ["Check", "Context", "Metric", "Skip", "catalogue", "check", "load"]


class Skip(Exception):
    """The check does not apply to this subject; the text is the reason that the report shows."""


class Context:
    """What a check gets: its settings, and where its records go.

    `emit` takes each record at once. Metrics that the check did not declare raise KeyError, so that a
    unit is stated in one place only.
    """

    def __init__(self, info: CheckInfo, request: CheckRequest, plan: Plan, emit: Callable[[Record], None]) -> None:
        self.info = info
        self.request = request
        self.plan = plan
        self._emit = emit
        self._units = {metric.name: metric.unit for metric in info.metrics}

    def flag(self, name: str, default: bool) -> bool:
        """A param that is true or false. Raises ValueError for another: the text "no" would count as true."""
        value = self.request.params.get(name, default)
        if value not in (True, False):
            raise ValueError(f"{self.info.name}.{name} = {value!r:.40} is neither true nor false")
        return bool(value)

    def measure(
        self,
        metric: str,
        value: Scalar,
        subject: str = HOST,
        labels: Optional[Mapping[str, str]] = None,
        note: str = "",
    ) -> None:
        """Report a value in the unit that the check declares for this metric."""
        unit = self._units[metric]
        if isinstance(value, str):
            value = value[:MAX_TEXT]
        self._emit(Measurement(self.info.name, subject, metric, value, unit, dict(labels or {}), "", note[:MAX_TEXT]))

    def not_applicable(
        self, metric: str, note: str, subject: str = HOST, labels: Optional[Mapping[str, str]] = None
    ) -> None:
        """Report that this subject has no such property, and how that is known."""
        self._absent(metric, NOT_APPLICABLE, note, subject, labels)

    def unknown(self, metric: str, note: str, subject: str = HOST, labels: Optional[Mapping[str, str]] = None) -> None:
        """Report that the property could not be read, and why."""
        self._absent(metric, UNKNOWN, note, subject, labels)

    def _absent(self, metric: str, absence: str, note: str, subject: str, labels: Optional[Mapping[str, str]]) -> None:
        unit = self._units[metric]
        text = note[:MAX_TEXT]
        self._emit(Measurement(self.info.name, subject, metric, None, unit, dict(labels or {}), absence, text))

    def progress(self, message: str, fraction: float = -1.0, subject: str = HOST) -> None:
        """Something to show while the check runs; `fraction` 0..1 where it is known."""
        self._emit(Progress(self.info.name, subject, message[:MAX_TEXT], fraction))

    def sample(self, t_s: float, values: Mapping[str, float], subject: str) -> None:
        """A point of a trace, `t_s` seconds after the load began."""
        self._emit(Sample(self.info.name, subject, t_s, dict(values)))

    def forward(self, record: Record) -> None:
        """Pass on a record that a workload sent."""
        self._emit(record)

    def outcome(self, subject: str, status: str, detail: str = "", duration_s: float = 0.0) -> None:
        """Say how the check ended for this subject. `subject()` does it for you."""
        self._emit(Outcome(self.info.name, subject, status, detail[:MAX_TEXT], duration_s))

    @contextmanager
    def subject(self, subject: str) -> Iterator[None]:
        """Run the body for one subject: it ran, was skipped (Skip), or ended in error; the next goes on.

        This is one of the two places that catch everything: a crash is this subject's ERROR and nobody else's.
        """
        began = time.monotonic()
        status, detail = RAN, ""
        try:
            yield
        except Skip as reason:
            status, detail = SKIPPED, str(reason)
        except Exception as problem:  # noqa: BLE001 - the boundary: recorded as ERROR
            last = traceback.extract_tb(problem.__traceback__)[-1]
            status = ERROR
            detail = f"{type(problem).__name__}: {problem} (in {last.name}, line {last.lineno})"
        self.outcome(subject, status, detail, time.monotonic() - began)


@dataclass(frozen=True)
class Check:
    """A check: what the catalogue says of it, and the function."""

    info: CheckInfo
    run: Callable[[Context], None]


def check(
    *,
    catches: str,
    metrics: Tuple[Metric, ...],
    needs: Tuple[str, ...] = (),
    level: int = 1,
    seconds: float = 0.1,
    timeout_s: float = 30.0,
    per_gpu: bool = False,
    params: Tuple[str, ...] = (),
    data: Tuple[str, ...] = (),
) -> Callable[[Callable[[Context], None]], Check]:
    """Declare a check. The function's name is its name, the first paragraph of its docstring what it measures.

    `params`: the settings it takes (`--param NAME.KEY=VALUE`). `data`: the datasets that it trains on.
    `per_gpu`: it closes each GPU with `with ctx.subject(uuid)`; the host itself is closed by the runner.
    """

    def declare(function: Callable[[Context], None]) -> Check:
        measures = " ".join((function.__doc__ or "").strip().split("\n\n")[0].split())
        info = CheckInfo(
            name=function.__name__,
            measures=measures,
            catches=catches,
            needs=tuple(needs),
            level=level,
            seconds=seconds,
            timeout_s=timeout_s,
            per_gpu=per_gpu,
            metrics=tuple(metrics),
            params=tuple(params),
            data=tuple(data),
        )
        return Check(info, function)

    return declare


def load(name: str) -> Check:
    """The check in `checks/<name>.py`. Raises KeyError where there is none."""
    if name not in names():
        raise KeyError(name)
    found = getattr(importlib.import_module(f"validators.checks.{name}"), name)
    if not isinstance(found, Check):
        raise TypeError(f"validators/checks/{name}.py has no check of that name")
    return found


def names() -> List[str]:
    """The names of all checks, sorted; found by listing the folder (or the zipapp)."""
    checks = importlib.import_module("validators.checks")

    return sorted(module.name for module in pkgutil.iter_modules(checks.__path__) if not module.name.startswith("_"))


def catalogue() -> Tuple[CheckInfo, ...]:
    """What there is, for `bringup checks` and for the linter of criteria."""
    return tuple(load(name).info for name in names())
