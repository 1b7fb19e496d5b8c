"""What every renderer for people says in the same words: sentences, names, order, counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from provision.report.model import HostReport, LinkState, Report, Status, Verdict
from provision.report.numbers import number
from validators.schema import HOST, Measurement

ORDER: tuple[Status, ...] = ("FAIL", "ERROR", "WARN", "SKIP", "PASS")
"""Worst first: what needs a person stands at the top."""

WORDS: Mapping[Status, str] = {
    "PASS": "Passed",
    "WARN": "Passed with warnings",
    "FAIL": "Failed",
    "ERROR": "Not fully judged",
    "SKIP": "Nothing was judged",
}
"""The overall verdict in words."""

MEANING: Mapping[Status, str] = {
    "PASS": "measured, and meets its criterion",
    "WARN": "measured, misses a criterion that only warns",
    "FAIL": "measured, and not good enough",
    "ERROR": "could not be measured or judged",
    "SKIP": "not applicable here",
}

STATES: Mapping[LinkState, str] = {
    "holds": "holds",
    "broken": "broken",
    "unknown": "not known",
    "not_applicable": "not applicable",
    "not_reached": "not reached",
}

_HOSTS: Mapping[Status, tuple[str, str]] = {
    "FAIL": ("fails", "fail"),
    "ERROR": ("could not be fully judged", "could not be fully judged"),
    "WARN": ("passes with warnings", "pass with warnings"),
    "SKIP": ("had nothing to judge", "had nothing to judge"),
    "PASS": ("passes", "pass"),
}


def counts(verdicts: Iterable[Verdict]) -> dict[Status, int]:
    """How many of each status, worst first, zeros left in."""
    found = Counter(one.status for one in verdicts)
    return {status: found[status] for status in ORDER}


def host_counts(report: Report) -> dict[Status, int]:
    """How many hosts of each status, worst first."""
    found = Counter(host.status for host in report.hosts)
    return {status: found[status] for status in ORDER}


def sentence(report: Report) -> str:
    """The overall verdict in one sentence. Host text in it is not escaped yet."""
    if not report.hosts:
        return "No host was measured, so nothing passes."
    if len(report.hosts) == 1:
        host = report.hosts[0]
        return f"{host.name}: {host.headline.removeprefix(f'{host.name}: ')}"
    total = len(report.hosts)
    parts = [
        f"{count:,} {_HOSTS[status][count != 1]}"
        if index
        else f"{count:,} of {total:,} hosts {_HOSTS[status][count != 1]}"
        for index, (status, count) in enumerate((s, c) for s, c in host_counts(report).items() if c)
    ]
    if len(parts) == 1:
        return parts[0].replace(f"{total:,} of {total:,}", f"all {total:,}").capitalize() + "."
    return ", ".join(parts[:-1]) + " and " + parts[-1] + "."


def worst_first(hosts: Iterable[HostReport]) -> list[HostReport]:
    """Hosts by status, worst first; within a status in the inventory's order."""
    return sorted(hosts, key=lambda host: ORDER.index(host.status))


def subject_name(host: HostReport, subject: str) -> str:
    """ "host", "GPU 3", or the subject itself where it is no GPU of this host."""
    if subject == HOST:
        return "host"
    return next((f"GPU {gpu.index}" for gpu in host.gpus if gpu.uuid == subject), subject)


def subject_order(host: HostReport, subject: str) -> tuple[int, str]:
    """Sort key: the host, then its GPUs by index, then whatever else."""
    if subject == HOST:
        return (-1, "")
    return next(((gpu.index, "") for gpu in host.gpus if gpu.uuid == subject), (10**6, subject))


def metric_name(metric: str) -> str:
    """ "throughput_bf16" as people say it."""
    return metric.replace("_", " ")


def labels_text(measurement: Measurement | None) -> str:
    """The labels that tell two measurements of a metric apart: "framework torch, address 0000:06:00.0"."""
    if measurement is None:
        return ""
    return ", ".join(f"{name} {value}" for name, value in sorted(measurement.labels.items()) if value)


def gpus_text(host: HostReport) -> str:
    """How many of which model: 4 x NVIDIA H200."""
    if not host.measurements:
        return "GPUs not known"
    models = Counter(gpu.name for gpu in host.gpus)
    return ", ".join(f"{count} x {name}" for name, count in models.items()) or "no GPU seen"


def tally(found: Mapping[Status, int]) -> str:
    """The counts that are not zero: 2 FAIL, 118 PASS."""
    return ", ".join(f"{number(count)} {status}" for status, count in found.items() if count) or "no verdict"


def facts(host: HostReport) -> list[Measurement]:
    """Measurements that no verdict judges."""
    judged = {id(one.measurement) for one in host.verdicts if one.measurement is not None}
    keys = {_key(one.measurement) for one in host.verdicts if one.measurement is not None}
    return [one for one in host.measurements if id(one) not in judged and _key(one) not in keys]


def _key(one: Measurement) -> tuple[str, str, str, tuple[tuple[str, str], ...]]:
    return (one.check, one.subject, one.metric, tuple(sorted(one.labels.items())))
