"""A small world for the judge's tests: two checks of GPUs, one of the host, and criteria over them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from provision.criteria import Criteria, Criterion, Fraction
from provision.hosts import Host
from provision.remote import Failure, HostRun
from provision.report.model import Report, Verdict
from provision.verdict import judge
from validators.schema import (
    HOST,
    NOT_APPLICABLE,
    Bye,
    CheckInfo,
    CheckRequest,
    Hello,
    Measurement,
    Metric,
    Outcome,
    Plan,
    Record,
    Scalar,
)

GPU0, GPU1 = "GPU-aaaa", "GPU-bbbb"

IDENTITY = CheckInfo(
    "compute_capability",
    "names the GPUs",
    "a card that is gone",
    (),
    1,
    0.1,
    20.0,
    True,
    (
        Metric("gpu_count_nvml", "count", ""),
        Metric("gpu_name", "text", ""),
        Metric("compute_capability", "version", ""),
        Metric("sm_count", "count", ""),
        Metric("sm_clock_max", "MHz", ""),
    ),
)
SYSTEM = CheckInfo(
    "system",
    "the parts",
    "a missing part",
    (),
    1,
    0.1,
    20.0,
    False,
    (Metric("gpu_count", "count", ""), Metric("os_id", "text", ""), Metric("memory_total", "MiB", "")),
)
MATMUL = CheckInfo(
    "matmul",
    "products",
    "a wrong answer",
    (),
    2,
    10.0,
    120.0,
    True,
    (
        Metric("known_answer", "bool", ""),
        Metric("throughput_bf16", "TFLOP/s", ""),
        Metric("throughput_fp64", "TFLOP/s", ""),
        Metric("spread", "ratio", ""),
        Metric("torch_version", "version", ""),
    ),
    params=("seconds", "parallel", "dtypes"),
)
CATALOGUE = (IDENTITY, SYSTEM, MATMUL)
PLAN = Plan(tuple(CheckRequest(info.name, info.timeout_s) for info in CATALOGUE), 200.0)


def criterion(  # noqa: PLR0917 - in the order in which a TOML file states them
    id: str, check: str, metric: str, unit: str, rule: Any, value: Any, **more: Any
) -> Criterion:
    return Criterion(id, check, metric, unit, rule, value, because="a test says so", source="test", **more)


GPU_COUNT = criterion("gpu_count", "system", "gpu_count", "count", "at_least", 1)
NVML_COUNT = criterion("nvml_count", "compute_capability", "gpu_count_nvml", "count", "at_least", 1)
CAPABILITY = criterion("capability", "compute_capability", "compute_capability", "version", "at_least", "5.2")
ANSWER = criterion("answer", "matmul", "known_answer", "bool", "equals", True, advice="replace the card")
RATE = criterion("rate", "matmul", "throughput_bf16", "TFLOP/s", "at_least", Fraction(0.7, "peak:bf16_tensor"))
CRITERIA = (GPU_COUNT, NVML_COUNT, CAPABILITY, ANSWER, RATE)


def measured(
    check: str, metric: str, value: Scalar, subject: str = HOST, labels: dict[str, str] | None = None
) -> Measurement:
    unit = next(m.unit for info in CATALOGUE if info.name == check for m in info.metrics if m.name == metric)
    return Measurement(check, subject, metric, value, unit, labels or {})


def absent(
    check: str, metric: str, subject: str = HOST, kind: str = NOT_APPLICABLE, note: str = "says NVML"
) -> Measurement:
    unit = next(m.unit for info in CATALOGUE if info.name == check for m in info.metrics if m.name == metric)
    return Measurement(check, subject, metric, None, unit, {}, kind, note)


def ended(check: str, subject: str = HOST, status: str = "ran", detail: str = "") -> Outcome:
    return Outcome(check, subject, status, detail, 0.1)


def good(gpus: Sequence[str] = (GPU0,), name: str = "NVIDIA H200") -> list[Record]:
    """The records of a host on which everything holds, without hello and bye."""
    records: list[Record] = [
        measured("system", "gpu_count", len(gpus)),
        ended("system"),
        measured("compute_capability", "gpu_count_nvml", len(gpus)),
    ]
    for index, uuid in enumerate(gpus):
        records += [
            measured(
                "compute_capability", "gpu_name", name, uuid, {"index": str(index), "pci_address": "0000:06:00.0"}
            ),
            measured("compute_capability", "compute_capability", "9.0", uuid),
            ended("compute_capability", uuid),
            measured("matmul", "known_answer", True, uuid),
            measured("matmul", "throughput_bf16", 747.0, uuid),
            ended("matmul", uuid),
        ]
    return [*records, ended("compute_capability"), ended("matmul")]


def answered(records: Sequence[Record], host: str = "gpu1", failure: Failure | None = None) -> HostRun:
    """A run with these records, hello and bye around them."""
    body = (Hello(1, "b" * 64, "3.12", host, "boot", 1.0), *records)
    return HostRun(host, "192.0.2.1", (*body, Bye(len(body))), failure)


def report_of(
    records: Sequence[Record] | HostRun,
    criteria: Sequence[Criterion] = CRITERIA,
    plan: Plan = PLAN,
    **more: Any,
) -> Report:
    run = records if isinstance(records, HostRun) else answered(records)
    informational = more.pop("informational", {})
    return judge(
        [run],
        hosts=[Host(run.host)],
        catalogue=CATALOGUE,
        criteria=Criteria(tuple(criteria), informational=informational),
        plans={run.host: plan},
        run_id="r",
        created="2026-11-21T00:00:00Z",
        judged="2026-11-21T00:00:00Z",
        version="0",
        **more,
    )


def verdicts(report: Report, check: str = "", metric: str | None = None, subject: str = "") -> list[Verdict]:
    return [
        verdict
        for verdict in report.hosts[0].verdicts
        if (not check or verdict.check == check)
        and (metric is None or verdict.metric == metric)
        and (not subject or verdict.subject == subject)
    ]
