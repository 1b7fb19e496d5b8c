"""judge(): what each kind of answer, absence and contradiction becomes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from provision.criteria import Criteria, Fraction
from provision.hosts import Host
from provision.remote import Failure, HostRun
from provision.verdict import exit_code, judge
from tests.unit.judging import (
    ANSWER,
    CATALOGUE,
    CRITERIA,
    GPU0,
    GPU1,
    GPU_COUNT,
    PLAN,
    RATE,
    absent,
    answered,
    criterion,
    ended,
    good,
    measured,
    report_of,
    verdicts,
)
from validators.schema import HOST, UNKNOWN, Measurement, Outcome, Plan, Record


def without(
    records: list[Record], *, check: str, subject: str = "", metric: str = "", kind: type = object
) -> list[Record]:
    return [
        one
        for one in records
        if not (
            isinstance(one, kind)
            and getattr(one, "check", "") == check
            and (not subject or getattr(one, "subject", "") == subject)
            and (not metric or getattr(one, "metric", "") == metric)
        )
    ]


def changed(records: list[Record], metric: str, subject: str, **fields: object) -> list[Record]:
    return [
        replace(one, **fields)  # type: ignore[arg-type]  # the fields are the test's own
        if isinstance(one, Measurement) and one.metric == metric and one.subject == subject
        else one
        for one in records
    ]


def test_a_host_on_which_everything_holds_passes_with_exit_code_0() -> None:
    report = report_of(good((GPU0, GPU1)))
    assert report.status == "PASS"
    assert exit_code(report) == 0
    assert "2 x NVIDIA H200" in report.hosts[0].headline
    assert [gpu.uuid for gpu in report.hosts[0].gpus] == [GPU0, GPU1]
    assert all(verdict.measurement and verdict.criterion for verdict in verdicts(report))


def test_a_wrong_answer_is_fail_with_the_advice_of_the_criterion() -> None:
    report = report_of(changed(good(), "known_answer", GPU0, value=False))
    (verdict,) = verdicts(report, "matmul", "known_answer")
    assert (verdict.status, verdict.next_step, report.status) == ("FAIL", "replace the card", "FAIL")
    assert exit_code(report) == 1
    assert "known_answer" in report.hosts[0].headline


def test_a_rate_below_the_share_of_the_cards_peak_fails_and_says_what_was_required() -> None:
    report = report_of(changed(good(), "throughput_bf16", GPU0, value=600.0))
    (verdict,) = verdicts(report, "matmul", "throughput_bf16")
    assert verdict.status == "FAIL"
    assert verdict.required.startswith("at least 692.6 TFLOP/s")
    assert verdict.required_value == pytest.approx(0.7 * 989.4)


def test_a_criterion_of_severity_warn_warns_and_only_strict_makes_that_an_error() -> None:
    report = report_of(
        changed(good(), "throughput_bf16", GPU0, value=600.0), [*CRITERIA[:-1], replace(RATE, severity="WARN")]
    )
    assert report.status == "WARN"
    assert exit_code(report) == 0
    assert exit_code(report, strict=True) == 1


@pytest.mark.parametrize("info", CATALOGUE, ids=lambda info: info.name)
def test_a_planned_check_whose_outcome_never_came_is_error(info) -> None:  # type: ignore[no-untyped-def]  # a fixture row
    report = report_of(without(good(), check=info.name, subject=HOST, kind=Outcome))
    assert report.status == "ERROR"
    assert any("no outcome came" in one.reason for one in verdicts(report, info.name, ""))
    assert exit_code(report) == 3


def test_a_gpu_whose_outcome_never_came_is_error_for_that_gpu() -> None:
    report = report_of(without(good((GPU0, GPU1)), check="matmul", subject=GPU1))
    cells = verdicts(report, "matmul", "")
    assert [(one.subject, one.status) for one in cells] == [(GPU1, "ERROR")]


def test_a_gpu_that_only_the_bus_counts_is_error() -> None:
    report = report_of(changed(good(), "gpu_count", HOST, value=2))
    assert report.status == "ERROR"
    assert "2 GPUs were counted, and 1 of them gave no answer" in verdicts(report, "matmul", "")[0].reason


def test_a_crash_is_error_for_its_gpu_and_the_wrong_answer_before_it_is_still_fail() -> None:
    records = without(good((GPU0, GPU1)), check="matmul", subject=GPU1)
    records += [measured("matmul", "known_answer", False, GPU1), ended("matmul", GPU1, "error", "killed by SIGSEGV")]
    report = report_of(records)
    assert {(one.metric, one.status) for one in verdicts(report, "matmul", subject=GPU1)} == {
        ("", "ERROR"),
        ("known_answer", "FAIL"),
    }
    assert {one.status for one in verdicts(report, "matmul", subject=GPU0)} == {"PASS"}
    assert "SIGSEGV" in verdicts(report, "matmul", "", GPU1)[0].reason


def test_a_skipped_check_is_skip_with_its_reason_and_nothing_of_it_is_judged() -> None:
    records = [*without(good(), check="matmul"), ended("matmul", HOST, "skipped", "torch is not installed")]
    report = report_of(records)
    assert [(one.status, one.reason) for one in verdicts(report, "matmul")] == [("SKIP", "torch is not installed")]


def test_a_host_on_which_everything_was_skipped_is_skip_and_that_is_exit_code_3() -> None:
    records = [ended(info.name, HOST, "skipped", "no NVIDIA GPU on the PCI bus") for info in CATALOGUE]
    report = report_of(records)
    assert report.status == "SKIP"
    assert exit_code(report) == 3


def test_a_host_without_a_gpu_fails_by_the_count() -> None:
    records: list[Record] = [
        measured("system", "gpu_count", 0),
        ended("system"),
        ended("compute_capability", HOST, "skipped", "no NVIDIA GPU on the PCI bus"),
        ended("matmul", HOST, "skipped", "no NVIDIA GPU on the PCI bus"),
    ]
    report = report_of(records)
    assert (report.status, exit_code(report)) == ("FAIL", 1)
    assert "No NVIDIA GPU" in report.hosts[0].headline


@pytest.mark.parametrize("severity", ["disabled", "WARN"])
def test_a_host_without_a_gpu_never_passes_whatever_the_criteria_leave_out(severity: str) -> None:
    records = [measured("system", "gpu_count", 0), measured("system", "memory_total", 4096), ended("system")]
    records += [ended("compute_capability", status="skipped", detail="no GPU")]
    records += [ended("matmul", status="skipped", detail="no GPU")]
    memory = criterion("memory", "system", "memory_total", "MiB", "at_least", 1)
    count = [replace(GPU_COUNT, severity="WARN")] if severity == "WARN" else []
    report = report_of(records, [memory, *count])
    assert verdicts(report, "system", "memory_total")[0].status == "PASS"
    assert (report.status, exit_code(report)) == ("ERROR", 3)
    (verdict,) = [one for one in verdicts(report, "compute_capability") if one.status == "ERROR"]
    assert "no NVIDIA GPU was measured" in verdict.reason
    assert verdict.next_step == "bringup doctor gpu1"


def test_not_applicable_is_skip_unless_the_criterion_asks_for_the_thing() -> None:
    records = [*without(good(), check="matmul", metric="throughput_bf16"), absent("matmul", "throughput_bf16", GPU0)]
    assert verdicts(report_of(records), "matmul", "throughput_bf16")[0].status == "SKIP"
    strict = [*CRITERIA[:-1], replace(RATE, not_applicable="FAIL")]
    assert verdicts(report_of(records, strict), "matmul", "throughput_bf16")[0].status == "FAIL"


def test_unknown_is_error_or_skip_where_the_criterion_says_so() -> None:
    gone = absent("matmul", "throughput_bf16", GPU0, UNKNOWN, "NVML: Unknown Error")
    records = [*without(good(), check="matmul", metric="throughput_bf16"), gone]
    (verdict,) = verdicts(report_of(records), "matmul", "throughput_bf16")
    assert (verdict.status, "Unknown Error" in verdict.reason) == ("ERROR", True)
    lenient = [*CRITERIA[:-1], replace(RATE, unknown="SKIP")]
    assert verdicts(report_of(records, lenient), "matmul", "throughput_bf16")[0].status == "SKIP"


def test_a_metric_that_one_gpu_did_not_report_is_error_for_that_gpu() -> None:
    records = without(good((GPU0, GPU1)), check="matmul", metric="throughput_bf16", subject=GPU1)
    found = {one.subject: one.status for one in verdicts(report_of(records), "matmul", "throughput_bf16")}
    assert found == {GPU0: "PASS", GPU1: "ERROR"}


def test_a_metric_that_nobody_reported_is_error_once() -> None:
    records = without(good((GPU0, GPU1)), check="matmul", metric="throughput_bf16")
    found = [(one.subject, one.status) for one in verdicts(report_of(records), "matmul", "throughput_bf16")]
    assert found == [(HOST, "ERROR")]


def test_a_metric_of_the_host_is_not_asked_of_the_gpus() -> None:
    rule = criterion("torch", "matmul", "torch_version", "version", "at_least", "2.6")
    records = [measured("matmul", "torch_version", "2.11.0+cu130"), *good((GPU0, GPU1))]
    assert [one.status for one in verdicts(report_of(records, [*CRITERIA, rule]), "matmul", "torch_version")] == [
        "PASS"
    ]


def test_each_of_several_labelled_measurements_is_judged() -> None:
    rule = criterion("os", "system", "os_id", "text", "equals", "ubuntu")
    records = [
        measured("system", "os_id", "ubuntu", labels={"root": "a"}),
        measured("system", "os_id", "arch", labels={"root": "b"}),
        *good(),
    ]
    assert [one.status for one in verdicts(report_of(records, [*CRITERIA, rule]), "system", "os_id")] == [
        "PASS",
        "FAIL",
    ]


def test_a_criterion_with_labels_judges_those_and_their_absence_is_error() -> None:
    rule = criterion("torch", "matmul", "torch_version", "version", "equals", "2.11", labels={"framework": "torch"})
    other = measured("matmul", "torch_version", "1.0", labels={"framework": "jax"})
    (verdict,) = verdicts(report_of([other, *good()], [*CRITERIA, rule]), "matmul", "torch_version")
    assert (verdict.status, verdict.measurement) == ("ERROR", None)
    torch = measured("matmul", "torch_version", "2.11.0+cu130", labels={"framework": "torch"})
    (verdict,) = verdicts(report_of([other, torch, *good()], [*CRITERIA, rule]), "matmul", "torch_version")
    assert verdict.status == "PASS"


def test_a_criterion_for_another_card_is_not_applied_and_what_nothing_judges_is_error() -> None:
    other = [replace(ANSWER, gpu="*B200*"), replace(RATE, gpu="*B200*")]
    report = report_of(good(), [*CRITERIA[:3], *other])
    assert report.status == "ERROR"
    reasons = [one.reason for one in verdicts(report, "matmul")]
    assert all("measured, not judged: no criterion applies" in reason for reason in reasons)


def test_a_criterion_for_a_card_whose_name_is_not_known_is_error() -> None:
    records = without(good(), check="compute_capability", metric="gpu_name")
    report = report_of(records, [*CRITERIA[:4], replace(RATE, gpu="*H200*")])
    (verdict,) = verdicts(report, "matmul", "throughput_bf16")
    assert verdict.status == "ERROR"
    assert "name is not known" in verdict.reason


def test_a_criterion_for_another_host_is_not_applied() -> None:
    report = report_of(good(), [*CRITERIA, replace(GPU_COUNT, id="eight", value=8, host="dgx*")])
    assert report.status == "PASS"


def test_a_card_without_a_known_peak_is_measured_and_not_judged() -> None:
    report = report_of(good(name="NVIDIA Z999"))
    (verdict,) = verdicts(report, "matmul", "throughput_bf16")
    assert (verdict.status, report.status) == ("ERROR", "ERROR")
    assert "measured, not judged: no peak:bf16_tensor is known for this card (NVIDIA Z999)" in verdict.reason


def test_a_card_that_is_not_in_the_table_is_judged_by_its_sms_and_clock() -> None:
    facts = [
        measured("compute_capability", "sm_count", 100, GPU0),
        measured("compute_capability", "sm_clock_max", 1500.0, GPU0),
    ]
    report = report_of([*facts, *good(name="NVIDIA H20Z")])
    (verdict,) = verdicts(report, "matmul", "throughput_bf16")
    assert verdict.required_value == pytest.approx(0.7 * 100 * 4096 * 1500e-6)
    assert verdict.status == "PASS"


@pytest.mark.parametrize(
    ("value", "unit"),
    [(float("nan"), "TFLOP/s"), (float("inf"), "TFLOP/s"), ("747", "TFLOP/s"), (True, "TFLOP/s"), (747.0, "GB/s")],
)
def test_a_value_that_is_no_number_of_the_right_unit_is_error(value: object, unit: str) -> None:
    report = report_of(changed(good(), "throughput_bf16", GPU0, value=value, unit=unit))
    assert verdicts(report, "matmul", "throughput_bf16")[0].status == "ERROR"


def test_a_version_that_is_none_is_error_and_not_fail() -> None:
    report = report_of(changed(good(), "compute_capability", GPU0, value="unknown"))
    assert verdicts(report, "compute_capability", "compute_capability")[0].status == "ERROR"


def test_a_host_that_could_not_be_reached_is_error_with_message_and_hint() -> None:
    failure = Failure("ConnectError", "gpu1 (192.0.2.1:22): connection refused", "is sshd running there")
    report = report_of(HostRun("gpu1", "192.0.2.1", failure=failure))
    assert (report.status, exit_code(report)) == ("ERROR", 3)
    assert report.hosts[0].headline == "gpu1 (192.0.2.1:22): connection refused. is sshd running there."
    assert any("connection refused" in one.reason for one in verdicts(report, "matmul"))


def test_a_host_whose_connection_broke_after_good_measurements_is_error() -> None:
    report = report_of(
        answered(good(), failure=Failure("ConnectionLost", "the connection broke", "look at the network"))
    )
    assert report.status == "ERROR"


def test_an_answer_without_its_bye_is_error() -> None:
    run = answered(good())
    report = report_of(replace(run, records=run.records[:-1]))
    assert report.status == "ERROR"
    assert "breaks off" in report.hosts[0].headline


def test_an_answer_of_which_a_record_was_lost_is_error() -> None:
    run = answered(good())
    report = report_of(replace(run, records=(*run.records[:3], *run.records[4:])))
    assert report.status == "ERROR"
    assert "records, and" in report.hosts[0].headline


def test_a_broken_link_is_the_headline_and_the_chain_is_in_the_report() -> None:
    records: list[Record] = [
        measured("system", "gpu_count", 0),
        ended("system"),
        ended("compute_capability", HOST, "skipped", "no NVIDIA GPU on the PCI bus"),
        ended("matmul", HOST, "skipped", "no NVIDIA GPU on the PCI bus"),
    ]
    host = report_of(records).hosts[0]
    assert host.chain is not None
    assert host.chain.broken is not None
    assert host.chain.broken.name == "PCI device"
    assert host.chain.sentence in host.headline


def test_what_was_unusual_on_a_host_is_a_note_of_the_report() -> None:
    run = replace(answered(good()), notes=("the home cannot be written",))
    assert "gpu1: the home cannot be written" in report_of(run).notes


def test_a_planned_host_without_a_run_and_a_report_without_hosts_are_errors() -> None:
    common = {"run_id": "r", "created": "", "judged": "", "version": "0", "catalogue": CATALOGUE}
    empty = judge([], hosts=[], criteria=Criteria(), plans={}, **common)  # type: ignore[arg-type]  # one dict for both
    assert (empty.status, exit_code(empty)) == ("ERROR", 3)
    alone = judge([], hosts=[Host("a")], criteria=Criteria(CRITERIA), plans={"a": PLAN}, **common)  # type: ignore[arg-type]  # as above
    assert (alone.status, alone.hosts[0].name) == ("ERROR", "a")


def test_a_host_for_which_nothing_was_planned_is_error() -> None:
    report = report_of(good(), plan=Plan((), 1.0))
    assert report.status == "ERROR"
    assert [one.reason for one in verdicts(report)] == ["nothing was planned for this host"]


def test_what_an_inventory_expects_and_no_planned_check_measures_is_said_in_the_notes() -> None:
    expected = replace(GPU_COUNT, id="expect_gpu_count", source="inventory: expect_gpu_count")
    plan = replace(PLAN, checks=tuple(one for one in PLAN.checks if one.name != "system"))
    report = report_of(good(), [*CRITERIA, expected], plan)
    assert report.notes == ("gpu1: expect_gpu_count was not judged: the check system was not asked for.",)


def test_a_card_that_no_criterion_is_about_is_error_beside_one_that_passes() -> None:
    records = changed(good((GPU0, GPU1)), "gpu_name", GPU1, value="NVIDIA Z999")
    report = report_of(records, [*CRITERIA[:3], replace(ANSWER, gpu="*H200*"), replace(RATE, gpu="*H200*")])
    found = {one.subject: one.status for one in verdicts(report, "matmul")}
    assert found == {GPU0: "PASS", GPU1: "ERROR"}


def test_a_criterion_of_the_host_for_a_card_applies_where_the_host_has_one() -> None:
    rule = criterion("memory", "system", "memory_total", "MiB", "at_least", 1000, gpu="*H200*")
    records = [measured("system", "memory_total", 10), *good()]
    assert verdicts(report_of(records, [*CRITERIA, rule]), "system", "memory_total")[0].status == "FAIL"
    other = replace(rule, gpu="*B200*")
    assert verdicts(report_of(records, [*CRITERIA, other]), "system", "memory_total") == []
    nameless = without(records, check="compute_capability", metric="gpu_name")
    assert verdicts(report_of(nameless, [*CRITERIA, other]), "system", "memory_total")[0].status == "ERROR"


def test_a_host_that_nothing_judged_keeps_the_report_from_passing() -> None:
    skipped = answered([ended(info.name, HOST, "skipped", "not here") for info in CATALOGUE], host="b")
    report = judge(
        [answered(good(), host="a"), skipped],
        hosts=[Host("a"), Host("b")],
        catalogue=CATALOGUE,
        criteria=Criteria(CRITERIA),
        plans={"a": PLAN, "b": PLAN},
        run_id="r",
        created="",
        judged="",
        version="0",
    )
    assert [host.status for host in report.hosts] == ["PASS", "SKIP"]
    assert (report.status, exit_code(report)) == ("SKIP", 3)


def test_a_check_that_only_informs_is_skip_where_its_criteria_file_says_so() -> None:
    few = [one for one in CRITERIA if one.check != "system"]
    assert report_of(good(), few).status == "ERROR"
    report = report_of(good(), few, informational={"system": "an inventory of parts"})
    assert report.status == "PASS"
    assert verdicts(report, "system")[0].status == "SKIP"


def test_a_run_on_the_cpu_is_judged_by_its_answer_and_its_rate_is_a_reference() -> None:
    records: list[Record] = [
        measured("system", "gpu_count", 0),
        ended("system"),
        ended("compute_capability", HOST, "skipped", "no NVIDIA GPU on the PCI bus"),
        measured("matmul", "known_answer", True),
        measured("matmul", "throughput_bf16", 0.4),
        ended("matmul"),
    ]
    report = report_of(records, plan=replace(PLAN, device="cpu"))
    found = {one.metric: one.status for one in verdicts(report, "matmul")}
    assert found == {"known_answer": "PASS", "throughput_bf16": "SKIP"}
    assert report.status == "FAIL"
    assert report.hosts[0].device == "cpu"
    assert verdicts(report_of(records), "matmul", "throughput_bf16")[0].status == "ERROR"


def test_the_worst_of_several_outcomes_of_one_cell_counts() -> None:
    report = report_of([*good(), ended("matmul", GPU0, "error", "it crashed"), ended("matmul", GPU0)])
    assert report.status == "ERROR"


def test_the_deadlines_in_force_are_in_the_report() -> None:
    assert report_of(good()).hosts[0].timings["deadline_matmul"] == 120.0


def test_more_subjects_than_a_host_can_have_gpus_do_not_exhaust_the_judge() -> None:
    many: list[Record] = [measured("matmul", "known_answer", True, f"GPU-{n}") for n in range(5000)]
    report = report_of([*good(), *many])
    assert report.status == "ERROR"
    assert len(report.hosts[0].gpus) <= 256


def test_a_fraction_of_a_figure_that_does_not_exist_is_error() -> None:
    odd = replace(RATE, value=Fraction(0.5, "peak:fp3"))
    assert report_of(good(), [*CRITERIA[:-1], odd]).status == "ERROR"
