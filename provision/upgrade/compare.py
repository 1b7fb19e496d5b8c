"""Is a host as good as it was before: its own measurements against its own measurements. Pure.

Nothing passes without a measurement: what was measured before and is not measured now is a regression.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from provision.report.model import HostReport, Verdict
from provision.report.text import plain
from validators.schema import HOST, Measurement

SOURCE = "this host before the upgrade"
TOLERANCE = 0.95
"""The share of its own earlier throughput that a host must reach again."""

RATES = ("TFLOP/s", "TOP/s", "GB/s", "images/s", "Mbit/s")
"""Units of which more is better. Clocks, watts and temperatures go up and down by themselves."""

_TELLS_APART = ("framework", "library", "device")
"""Labels that say what was measured. The others say where it stands, which may be elsewhere in another version."""
_PER_EVENT = ("xid", "sxid", "framework_elsewhere", "cuda_toolkit_other", "module_package_version")
"""Metrics with one measurement an event or a copy: fewer of them is no loss, as long as there is one."""
_MAY_GO = (("software", "framework_elsewhere"), ("software", "cuda_toolkit_other"))
"""Metrics that are only there where something is there twice."""


@dataclass(frozen=True)
class Difference:
    """One thing that is worse than before, in a sentence."""

    check: str
    metric: str
    subject: str
    sentence: str


_Key = tuple[str, str, str, tuple[tuple[str, str], ...]]


def compare(
    before: HostReport, after: HostReport, *, driver: str, tolerance: float = TOLERANCE
) -> tuple[Difference, ...]:
    """What is worse than before; empty: as good. `driver`: the version asked for ("595.91.07"), or a branch ("595").

    `tolerance`: share of its own throughput before, 0 < tolerance <= 1.
    """
    return (
        *_unmeasured(after),
        *_driver(after, driver),
        *_gpus(before, after),
        *_gone(before, after),
        *_verdicts(before, after),
        *_slower(before, after, tolerance),
    )


def not_fit(before: HostReport) -> str:
    """Why a host is in no state to be upgraded, or nothing: its own measurements fail already."""
    if not driver_of(before):
        return f"no driver answers there now, so there is nothing to compare an upgrade with: {before.headline}"
    bad = [verdict for verdict in before.verdicts if verdict.status in ("FAIL", "ERROR")]
    if not bad:
        return ""
    more = f" ({len(bad) - 1} more)" if len(bad) > 1 else ""
    return f"it fails already, before anything was changed: {_of(bad[0])}: {plain(bad[0].reason, 300)}{more}"


def driver_of(report: HostReport) -> str:
    """The version of the driver that answers through NVML, or empty."""
    return _value(report, "compute_capability", "driver_version")


def _value(report: HostReport, check: str, metric: str) -> str:
    found = (one.value for one in report.measurements if (one.check, one.metric) == (check, metric))
    return next((str(value) for value in found if value is not None), "")


def is_version(found: str, wanted: str) -> bool:
    """Whether a version is the one asked for, or of the branch asked for."""
    return bool(wanted) and (found == wanted or found.startswith(f"{wanted}."))


def _unmeasured(after: HostReport) -> Iterator[Difference]:
    if not after.measurements:
        yield Difference("connection", "", HOST, f"nothing could be measured: {plain(after.headline, 300)}")


def _driver(after: HostReport, wanted: str) -> Iterator[Difference]:
    found = driver_of(after)
    if not is_version(found, wanted):
        what = f"the driver that runs is {plain(found, 40)}" if found else f"no driver answers: {_why_none(after)}"
        yield Difference("compute_capability", "driver_version", HOST, f"{what}; {wanted or 'a version'} is wanted")


def _why_none(after: HostReport) -> str:
    """NVML's own words, else the first link of the chain that does not hold."""
    failed = (one for one in after.measurements if one.metric == "nvml_answers" and one.value is False)
    said = next((one.note for one in failed if one.note), "")
    broken = after.chain.broken if after.chain is not None else None
    return plain(said or (broken.evidence if broken is not None else after.headline), 300)


def _gpus(before: HostReport, after: HostReport) -> Iterator[Difference]:
    lost = [gpu for gpu in before.gpus if gpu.uuid not in {one.uuid for one in after.gpus}]
    if lost:
        names = ", ".join(plain(gpu.uuid, 60) for gpu in lost[:4])
        sentence = f"{len(after.gpus)} of {len(before.gpus)} GPUs are there; missing: {names}"
        yield Difference("compute_capability", "gpu_count_nvml", HOST, sentence)


def _gone(before: HostReport, after: HostReport) -> Iterator[Difference]:
    there, now = _count(before.measurements), _count(after.measurements)
    for key, number in there.items():
        check, subject, metric, _ = key
        if (check, metric) in _MAY_GO or (metric in _PER_EVENT and now[key]):
            continue
        if now[key] < number:
            text = f"{check}.{metric} was measured before and is not now"
            yield Difference(check, metric, subject, text + _at(subject))


def _count(measurements: Iterable[Measurement]) -> Counter[_Key]:
    return Counter(_key(one) for one in measurements if one.value is not None)


def _key(one: Measurement) -> _Key:
    labels: Mapping[str, str] = {} if one.metric in _PER_EVENT else one.labels
    kept = tuple(sorted((name, value) for name, value in labels.items() if name in _TELLS_APART))
    return one.check, one.subject, one.metric, kept


def _verdicts(before: HostReport, after: HostReport) -> Iterator[Difference]:
    """Each judgement that passed must pass again. One that is not made again was not passed."""
    now: dict[tuple[str, ...], list[Verdict]] = {}
    for verdict in after.verdicts:
        now.setdefault(_place(verdict), []).append(verdict)
    for place in dict.fromkeys(_place(one) for one in before.verdicts if one.status in ("PASS", "WARN")):
        found = now.get(place, [])
        bad = next((one for one in found if one.status in ("FAIL", "ERROR")), None)
        if bad is not None:
            yield Difference(bad.check, bad.metric, bad.subject, f"{_of(bad)} held before: {plain(bad.reason, 300)}")
        elif not any(one.status in ("PASS", "WARN") for one in found):
            check, subject, metric, name = place
            text = f"{name or check} held before and was not judged now"
            yield Difference(check, metric, subject, text + _at(subject))


def _place(verdict: Verdict) -> tuple[str, ...]:
    criterion = verdict.criterion.id if verdict.criterion is not None else ""
    return verdict.check, verdict.subject, verdict.metric, criterion


def _slower(before: HostReport, after: HostReport, tolerance: float) -> Iterator[Difference]:
    now = {_key(one): one.value for one in after.measurements}
    for one in before.measurements:
        new = now.get(_key(one))
        if one.unit not in RATES or not isinstance(one.value, (int, float)) or not isinstance(new, (int, float)):
            continue
        if new < tolerance * one.value:
            share = f"{new / one.value:.0%} of the {one.value:g} {one.unit} of {SOURCE}"
            text = f"{one.check}.{one.metric} is {new:g} {one.unit}, {share} (at least {tolerance:.0%} is wanted)"
            yield Difference(one.check, one.metric, one.subject, text + _at(one.subject))


def _of(verdict: Verdict) -> str:
    return f"{verdict.check}.{verdict.metric}" if verdict.metric else verdict.check


def _at(subject: str) -> str:
    return "" if subject == HOST else f" ({plain(subject, 60)})"
