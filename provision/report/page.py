"""What the HTML page shows of a report: verdicts of a metric gathered over GPUs, facts, figures. No markup here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from markupsafe import Markup

from provision.criteria.model import Fraction
from provision.report import view
from provision.report.model import HostReport, Report, Status, Verdict
from provision.report.numbers import exact, measured
from provision.report.plots import Dot, bullet, trace
from validators.schema import Measurement, Sample

FULL_HOSTS = 24
"""Up to so many hosts each is shown in full; above, those that pass are rows of the fleet table only."""
DETAILED_HOSTS = 200
"""Hosts of a large fleet whose problems are written out, worst first."""
PLOTTED_GPUS = 16
_PLOTTED_UNITS = frozenset(
    {"TFLOP/s", "TOP/s", "GB/s", "Mbit/s", "GT/s", "images/s", "MHz", "W", "celsius", "percent", "ratio"}
)
_SIGNS = {"at_least": "≥", "at_most": "≤", "equals": "="}
_TRACES = (("sm_clock", "MHz"), ("power", "W"), ("temperature", "celsius"), ("utilisation", "percent"))
_FROM_ZERO = frozenset({"power", "utilisation"})


@dataclass(frozen=True)
class Value:
    """What was measured for one subject, or for several that have the same."""

    subject: str
    text: str
    title: str
    note: str = ""


@dataclass
class Row:
    """A metric of a check under one criterion, over the subjects that it was judged for with the same result."""

    check: str
    metric: str
    labels: str
    verdict: Verdict | None = None
    values: list[Value] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The metric as people say it, or the check where the verdict is about all of it."""
        return view.metric_name(self.metric) or self.check

    @property
    def because(self) -> str:
        """Why the criterion is there, unless the reason says it already."""
        criterion = self.verdict.criterion if self.verdict else None
        if criterion is None or any(criterion.because in reason for reason in self.reasons):
            return ""
        return criterion.because

    @property
    def source(self) -> str:
        """Who says what is required."""
        return self.verdict.criterion.source if self.verdict and self.verdict.criterion else ""


@dataclass(frozen=True)
class Section:
    """One host on the page."""

    host: HostReport
    anchor: str
    counts: dict[Status, int]
    rows: dict[Status, list[Row]]
    facts: dict[str, list[Row]]
    plots: list[Markup]
    traces: list[tuple[str, list[Markup]]]
    full: bool


def sections(report: Report) -> list[Section]:
    """The hosts that have a section of their own, worst first."""
    hosts = view.worst_first(report.hosts)
    numbers = {id(host): at for at, host in enumerate(report.hosts)}
    full = len(hosts) <= FULL_HOSTS
    if not full:
        hosts = [host for host in hosts if host.status != "PASS"][:DETAILED_HOSTS]
    return [_section(host, f"host-{numbers[id(host)]}", full) for host in hosts]


def _section(host: HostReport, anchor: str, full: bool) -> Section:
    rows: dict[Status, list[Row]] = {}
    for status in view.ORDER:
        found = [one for one in host.verdicts if one.status == status and (full or status in view.ORDER[:3])]
        rows[status] = _verdict_rows(host, found)
    facts: dict[str, list[Row]] = {}
    for row in _fact_rows(host, view.facts(host)) if full else ():
        facts.setdefault(row.check, []).append(row)
    plots = bullets(host, problems_only=not full)
    return Section(host, anchor, view.counts(host.verdicts), rows, facts, plots, traces(host) if full else [], full)


def _verdict_rows(host: HostReport, verdicts: Iterable[Verdict]) -> list[Row]:
    rows: dict[tuple[object, ...], Row] = {}
    gathered: dict[int, list[tuple[str, Measurement | None]]] = {}
    for one in verdicts:
        labels = view.labels_text(one.measurement)
        criterion = one.criterion.id if one.criterion else ""
        loose = one.reason if one.measurement is None else ""
        key = (one.check, one.metric, labels, criterion, one.required, one.next_step, loose)
        row = rows.setdefault(key, Row(one.check, one.metric, labels, one))
        gathered.setdefault(id(row), []).append((one.subject, one.measurement))
        if one.reason and one.reason not in row.reasons and not _said_by_columns(one):
            row.reasons.append(one.reason)
        if one.next_step and one.next_step not in row.steps:
            row.steps.append(one.next_step)
    for row in rows.values():
        row.values = _values(host, gathered[id(row)])
    return list(rows.values())


def _said_by_columns(one: Verdict) -> bool:
    """Whether the reason only repeats what the row shows anyway: measured, required and because."""
    return one.criterion is not None and one.reason.endswith(
        f"; required: {one.required}, because {one.criterion.because}"
    )


def _fact_rows(host: HostReport, measurements: Iterable[Measurement]) -> list[Row]:
    rows: dict[tuple[str, str, str], Row] = {}
    gathered: dict[int, list[tuple[str, Measurement | None]]] = {}
    for one in measurements:
        per_gpu = one.subject != "host"
        labels = "" if per_gpu and set(one.labels) <= {"index", "pci_address", "minor"} else view.labels_text(one)
        row = rows.setdefault((one.check, one.metric, labels), Row(one.check, one.metric, labels))
        gathered.setdefault(id(row), []).append((one.subject, one))
    for row in rows.values():
        row.values = _values(host, gathered[id(row)])
    return list(rows.values())


def _values(host: HostReport, found: list[tuple[str, Measurement | None]]) -> list[Value]:
    """One value per subject, in order; subjects with the very same value share one."""
    found = sorted(found, key=lambda pair: view.subject_order(host, pair[0]))
    same: dict[tuple[str, str, str], list[str]] = {}
    for subject, one in found:
        title = exact(one.value, one.unit) if one is not None and one.value is not None else ""
        text = measured(one) if one is not None else ""
        note = one.note if one is not None else ""
        same.setdefault((text, title, note), []).append(view.subject_name(host, subject))
    return [Value(_several(host, names), text, title, note) for (text, title, note), names in same.items()]


def _several(host: HostReport, names: list[str]) -> str:
    unique = list(dict.fromkeys(names))
    if len(unique) == 1:
        return unique[0]
    if len(unique) == len(host.gpus) and "host" not in unique:
        return f"all {len(unique)} GPUs"
    return ", ".join([unique[0], *(name.removeprefix("GPU ") for name in unique[1:])])


def bullets(host: HostReport, *, problems_only: bool = False) -> list[Markup]:
    """Measured against required per GPU, for each metric with a physical unit."""
    plottable = [one for one in host.verdicts if _plottable(one)]
    several = _told_apart_by_labels(plottable)
    groups: dict[tuple[str, str, str], list[Verdict]] = {}
    for one in plottable:
        labels = view.labels_text(one.measurement) if (one.check, one.metric) in several else ""
        groups.setdefault((one.check, one.metric, labels), []).append(one)
    found = []
    for (check, metric, labels), verdicts in groups.items():
        if problems_only and all(one.status == "PASS" for one in verdicts):
            continue
        found.append(_bullet(host, _title(groups, check, metric, labels), verdicts))
    return found


def _told_apart_by_labels(verdicts: Iterable[Verdict]) -> set[tuple[str, str]]:
    """The metrics that one subject has several measurements of: there the labels say which is which."""
    seen: dict[tuple[str, str, str], set[str]] = {}
    for one in verdicts:
        seen.setdefault((one.check, one.metric, one.subject), set()).add(view.labels_text(one.measurement))
    return {(check, metric) for (check, metric, _), labels in seen.items() if len(labels) > 1}


def _title(groups: Iterable[tuple[str, str, str]], check: str, metric: str, labels: str) -> str:
    """The metric, and whatever else it takes to tell it from the other figures."""
    alike = [one for one in groups if one[1] == metric]
    name = view.metric_name(metric)
    if len({one[0] for one in alike}) > 1:
        name = f"{check}: {name}"
    return f"{name} ({labels})" if len({one[2] for one in alike if one[0] == check}) > 1 else name


def _plottable(one: Verdict) -> bool:
    return (
        one.measurement is not None
        and one.criterion is not None
        and one.criterion.rule in _SIGNS
        and one.measurement.unit in _PLOTTED_UNITS
        and _is_number(one.measurement.value)
        and _is_number(one.required_value)
        and one.status in ("PASS", "WARN", "FAIL")
    )


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0


def _bullet(host: HostReport, title: str, verdicts: list[Verdict]) -> Markup:
    """A row per GPU, good where every criterion of the metric holds; a line at each of their thresholds."""
    dots: dict[str, Dot] = {}
    bounds: set[float] = set()
    peaks: set[float] = set()
    for one in sorted(verdicts, key=lambda each: view.subject_order(host, each.subject)):
        measured, criterion, required = one.measurement, one.criterion, one.required_value
        if measured is None or criterion is None or not isinstance(required, (int, float)):
            continue
        if not isinstance(measured.value, (int, float)):
            continue
        before = dots.get(one.subject)
        good = one.status == "PASS" and (before is None or before.good)
        dots[one.subject] = Dot(view.subject_name(host, one.subject), float(measured.value), good)
        bounds.add(float(required))
        if isinstance(criterion.value, Fraction) and 0 < criterion.value.fraction < 1:
            peaks.add(required / criterion.value.fraction)
    first = verdicts[0]
    unit = first.measurement.unit if first.measurement else ""
    sign = _SIGNS[first.criterion.rule] if first.criterion else ""
    shown = list(dots.values())[:PLOTTED_GPUS]
    return bullet(title, unit, shown, sign=sign, bounds=sorted(bounds), peak=max(peaks, default=None))


def traces(host: HostReport) -> list[tuple[str, list[Markup]]]:
    """Clock, power, temperature, utilisation over the load: (check and GPU, figures), scales shared over GPUs."""
    by_check: dict[str, dict[str, list[Sample]]] = {}
    for check, sample in host.samples:
        by_check.setdefault(check, {}).setdefault(sample.subject, []).append(sample)
    found: list[tuple[str, list[Markup]]] = []
    for check, subjects in by_check.items():
        every = [sample for samples in subjects.values() for sample in samples]
        end = max(sample.t_s for sample in every)
        scales = {name: _scale(name, every) for name, _ in _TRACES}
        ordered = sorted(subjects.items(), key=lambda item: view.subject_order(host, item[0]))
        for subject, samples in ordered[:PLOTTED_GPUS]:
            about = view.subject_name(host, subject)
            figures = [
                trace(view.metric_name(name), unit, points, low=scale[0], high=scale[1], end=end, about=about)
                for name, unit in _TRACES
                if (points := sorted((one.t_s, one.values[name]) for one in samples if name in one.values))
                and (scale := scales[name])
                and end > 0
            ]
            if figures:
                found.append((f"{check}, {about}", figures))
    return found


def _scale(name: str, samples: Iterable[Sample]) -> tuple[float, float] | None:
    values = [one.values[name] for one in samples if name in one.values]
    if not values:
        return None
    if name == "utilisation":
        return (0.0, 100.0)
    low, high = min(values), max(values)
    if name in _FROM_ZERO:
        return (min(0.0, low), high)
    room = max((high - low) * 0.05, 1.0)
    return (low - room, high + room)
