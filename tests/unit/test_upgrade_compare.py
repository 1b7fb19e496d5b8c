"""As good as before: the recorded H200 against itself, with faults laid over the second measurement."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provision.report.model import HostReport
from provision.upgrade.compare import compare, driver_of, not_fit
from tests.doubles import GPU_IS_LOST, error, result
from tests.unit.nvml_host import h200_host, log_with
from validators.schema import UNKNOWN, Measurement

DRIVER = "580.159.04"
BEFORE = h200_host().judged()
RATE = Measurement("matmul", BEFORE.gpus[0].uuid, "throughput_bf16", 700.0, "TFLOP/s")


def worse(before: HostReport, after: HostReport, driver: str = DRIVER, tolerance: float = 0.95) -> list[str]:
    return [one.sentence for one in compare(before, after, driver=driver, tolerance=tolerance)]


def with_rate(rate: float) -> HostReport:
    return replace(BEFORE, measurements=(*BEFORE.measurements, replace(RATE, value=rate)))


def test_a_host_that_measures_the_same_is_as_good_as_before() -> None:
    assert not_fit(BEFORE) == ""
    assert worse(BEFORE, h200_host().judged()) == []
    assert worse(BEFORE, h200_host().judged(), "580") == []


@pytest.mark.parametrize("wanted", ["595.91.07", "595", "58", "580.15", ""])
def test_another_driver_than_the_one_asked_for_is_worse_whatever_else_holds(wanted: str) -> None:
    (sentence,) = worse(BEFORE, BEFORE, wanted)
    assert "the driver that runs is 580.159.04" in sentence


def test_a_mismatch_after_the_upgrade_is_said_in_nvmls_own_words() -> None:
    found = worse(BEFORE, h200_host(faults={"nvmlInit()": error(18)}).judged())
    assert "Driver/library version mismatch" in found[0]


def test_a_gpu_that_is_gone_is_missed_by_its_uuid() -> None:
    before = h200_host(4).judged()
    after = h200_host(4, {"nvmlDeviceGetHandleByIndex(2)": error(GPU_IS_LOST)}).judged()
    found = worse(before, after)
    assert any(before.gpus[2].uuid in sentence and "3 of 4 GPUs" in sentence for sentence in found)


def test_a_criterion_that_held_and_fails_now_is_worse() -> None:
    found = worse(BEFORE, h200_host(log=log_with(79)).judged())
    assert any("gpu_health.xid held before" in sentence for sentence in found)


def test_a_metric_that_disappears_is_worse_though_nothing_fails() -> None:
    gone = replace(
        BEFORE, measurements=tuple(one for one in BEFORE.measurements if one.metric != "temperature_slowdown")
    )
    assert any(
        "temperature_slowdown was measured before and is not now" in sentence for sentence in worse(BEFORE, gone)
    )


def test_a_metric_that_cannot_be_read_any_more_has_disappeared() -> None:
    blind = tuple(
        replace(one, value=None, absence=UNKNOWN) if one.metric == "memory_total" else one
        for one in BEFORE.measurements
    )
    assert any("memory_total was measured before" in one for one in worse(BEFORE, replace(BEFORE, measurements=blind)))


@given(st.floats(1, 2000), st.floats(1, 2000), st.floats(0.01, 1))
def test_throughput_counts_against_the_hosts_own_and_nothing_else(old: float, new: float, tolerance: float) -> None:
    found = worse(with_rate(old), with_rate(new), tolerance=tolerance)
    assert bool(found) == (new < tolerance * old)
    assert all("of this host before the upgrade" in sentence for sentence in found)


def test_a_throughput_that_was_not_measured_again_is_worse() -> None:
    assert any("throughput_bf16 was measured before" in sentence for sentence in worse(with_rate(700), BEFORE))


def test_nothing_measured_is_never_as_good_as_before() -> None:
    nothing = replace(BEFORE, measurements=(), verdicts=(), gpus=())
    assert worse(BEFORE, nothing)
    assert worse(nothing, nothing)


@given(st.sets(st.integers(0, len(BEFORE.measurements) - 1), min_size=1, max_size=5))
def test_whatever_measurement_is_left_out_it_is_missed(left_out: set[int]) -> None:
    rest = tuple(one for at, one in enumerate(BEFORE.measurements) if at not in left_out)
    lost = [BEFORE.measurements[at] for at in left_out if BEFORE.measurements[at].value is not None]
    assert bool(worse(BEFORE, replace(BEFORE, measurements=rest))) == bool(lost)


@given(st.sets(st.integers(0, len(BEFORE.verdicts) - 1), min_size=1, max_size=5))
def test_whatever_verdict_is_not_given_again_it_is_missed(left_out: set[int]) -> None:
    rest = tuple(one for at, one in enumerate(BEFORE.verdicts) if at not in left_out)
    lost = [BEFORE.verdicts[at] for at in left_out if BEFORE.verdicts[at].status in ("PASS", "WARN")]
    assert bool(worse(BEFORE, replace(BEFORE, verdicts=rest))) == bool(lost)


def test_a_host_that_fails_before_is_refused_with_the_reason() -> None:
    assert "gpu_health.xid" in not_fit(h200_host(log=log_with(79)).judged())
    assert "no driver answers" in not_fit(h200_host(faults={"nvmlInit()": error(9)}).judged())


def test_what_a_host_sends_cannot_colour_a_sentence() -> None:
    after = h200_host(faults={"nvmlSystemGetDriverVersion()": result("\x1b[31m595.91.07\n")}).judged()
    assert "\x1b" not in "".join(worse(BEFORE, after)) and "\n" not in "".join(worse(BEFORE, after))
    assert driver_of(after) != DRIVER
