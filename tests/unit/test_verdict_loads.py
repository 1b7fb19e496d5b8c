"""judge(): loads that were asked for and not measured, a criterion for a job over all GPUs, and counts below none."""

from __future__ import annotations

from dataclasses import replace

import pytest

from provision import verdict
from provision.verdict import exit_code
from provision.verdict.evidence import gather
from tests.unit.judging import (
    ANSWER,
    CAPABILITY,
    CRITERIA,
    GPU0,
    GPU1,
    GPU_COUNT,
    answered,
    criterion,
    ended,
    good,
    measured,
    report_of,
    verdicts,
)
from validators.schema import HOST, NOT_APPLICABLE, SKIPPED, Measurement, Record


def test_loads_that_were_all_skipped_are_no_pass_though_the_audit_holds() -> None:
    audit = [one for one in good((GPU0, GPU1)) if getattr(one, "check", "") != "matmul"]
    skipped = [ended("matmul", subject, SKIPPED, "MIG is on") for subject in (GPU0, GPU1, HOST)]
    report = report_of([*audit, *skipped])
    assert {one.status for one in verdicts(report, "compute_capability")} == {"PASS"}
    assert (report.status, exit_code(report)) == ("SKIP", 3)
    assert "SKIP matmul: MIG is on" in report.hosts[0].headline
    one_card = [ended("matmul", GPU1, SKIPPED, "MIG is on"), measured("matmul", "known_answer", True, GPU0)]
    report = report_of([*audit, *one_card, ended("matmul", GPU0), ended("matmul")], (GPU_COUNT, CAPABILITY, ANSWER))
    assert (report.status, exit_code(report)) == ("PASS", 0)


def test_a_criterion_for_the_job_over_all_gpus_is_not_missed_on_each_of_them() -> None:
    floor = criterion("job", "matmul", "throughput_fp64", "TFLOP/s", "at_least", 100, labels={"gpus": "2"})
    job = measured("matmul", "throughput_fp64", 120.0, HOST, {"gpus": "2"})
    each = [measured("matmul", "throughput_fp64", 60.0, uuid, {"gpus": "1"}) for uuid in (GPU0, GPU1)]
    records: list[Record] = [*good((GPU0, GPU1)), *each]
    report = report_of([job, *records], [*CRITERIA, floor])
    assert [(one.subject, one.status) for one in verdicts(report, "matmul", "throughput_fp64")] == [(HOST, "PASS")]
    missed = report_of(records, [*CRITERIA, floor])
    assert [one.status for one in verdicts(missed, "matmul", "throughput_fp64")] == ["ERROR", "ERROR"]


@pytest.mark.parametrize("count", [-7, -1])
def test_a_count_below_none_is_no_good_count(count: int) -> None:
    none = criterion("none", "system", "gpu_count", "count", "at_most", 4)
    records = [
        replace(one, value=count) if isinstance(one, Measurement) and one.metric == "gpu_count" else one
        for one in good()
    ]
    (verdict,) = verdicts(report_of(records, [*CRITERIA[1:], none]), "system", "gpu_count")
    assert (verdict.status, "is less than none" in verdict.reason) == ("ERROR", True)


def test_the_chain_is_of_torch_where_no_framework_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdict, "walk", lambda _measurements, _outcomes, framework: framework)
    absent = Measurement("preflight", HOST, "imports", None, "bool", {"framework": "mxnet"}, NOT_APPLICABLE, "none")
    there = replace(absent, value=True, absence="", labels={"framework": "jax"})
    assert verdict._chain(gather(answered([*good(), absent]), set())) == "torch"
    assert verdict._chain(gather(answered([*good(), absent, there]), set())) == "jax"
