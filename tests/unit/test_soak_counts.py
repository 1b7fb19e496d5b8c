"""The soak counts what ran and nothing else: a load that never ran, or died, has no count that could pass."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from tests.unit.load_check import judged, measured, uuids
from tests.unit.test_soak import context, four_gpus, outcome, plan, run, stand_in
from validators import check
from validators.checks import soak
from validators.probes import workload
from validators.schema import ERROR, HOST, RAN, UNKNOWN, Progress, Record, Sample, Scalar
from validators.workloads import soak as loading

__all__ = ["four_gpus"]  # a fixture
COUNTS = ("products_verified", "products_wrong", "memory_errors")
RIGHT = {"products_verified": 10, "products_wrong": 0}


def products(took_s: float = 0.0) -> loading.Slice:
    def slice_of(_seconds: float) -> tuple[float, dict[str, int]]:
        time.sleep(took_s)
        return 100.0, dict(RIGHT)

    return slice_of


def patterns(*found: int | Exception) -> loading.Slice:
    """Memory that has so many wrong words in each slice, the last ones from then on, or fails."""
    left = list(found)

    def slice_of(_seconds: float) -> tuple[float, dict[str, int]]:
        time.sleep(0.02)
        now = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(now, Exception):
            raise now
        return 1000.0, {"memory_errors": now}

    return slice_of


FULL = MemoryError("out of memory: of 12 MiB free on the device, not even 1 MiB could be taken")


def load(
    monkeypatch: pytest.MonkeyPatch, loads: dict[str, loading.Slice], duration_s: float
) -> tuple[list[dict[str, float]], str]:
    """The values of each sample of a workload with these loads, and what it raised in the end."""
    records: list[Record] = []
    monkeypatch.setattr(loading, "_loads", lambda _device, _gib: dict(loads))
    raised = ""
    try:
        loading.main({"duration_s": duration_s}, records.append)
    except RuntimeError as problem:
        raised = str(problem)
    return [dict(one.values) for one in records if isinstance(one, Sample)], raised


def test_every_load_runs_once_though_the_duration_ends_within_the_first_round(monkeypatch: pytest.MonkeyPatch) -> None:
    loads = {"fp32": products(0.2), "bf16": products(0.2), "memory": patterns(0)}
    sent, raised = load(monkeypatch, loads, 0.1)
    assert not raised
    assert [next(iter(one)) for one in sent] == ["rate_fp32", "rate_bf16", "rate_memory"], "once, and no second round"
    assert [one.get("memory_errors") for one in sent] == [None, None, 0], "no count of it before it ran"
    assert sent[-1]["products_verified"] == 20


def test_the_second_round_ends_with_the_duration(monkeypatch: pytest.MonkeyPatch) -> None:
    sent, _ = load(monkeypatch, {"fp32": products(0.6), "memory": patterns(0)}, 1.0)
    assert [next(iter(one)) for one in sent] == ["rate_fp32", "rate_memory", "rate_fp32"]


def test_memory_that_died_in_its_first_slice_has_no_count(monkeypatch: pytest.MonkeyPatch) -> None:
    sent, raised = load(monkeypatch, {"fp32": products(0.02), "memory": patterns(FULL)}, 0.1)
    assert "memory: out of memory" in raised
    assert len(sent) > 1, "the other load goes on"
    assert not any("memory_errors" in one for one in sent)
    assert sent[-1]["products_wrong"] == 0


def test_products_that_died_in_their_first_slice_have_no_count(monkeypatch: pytest.MonkeyPatch) -> None:
    def died(_seconds: float) -> tuple[float, dict[str, int]]:
        raise NotImplementedError("no kernel for this card")

    sent, raised = load(monkeypatch, {"fp8": died, "memory": patterns(0)}, 0.1)
    assert "fp8: no kernel" in raised
    assert {name for one in sent for name in one} == {"rate_memory", "memory_errors"}


def test_what_a_load_counted_before_it_died_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    sent, raised = load(monkeypatch, {"fp32": products(0.02), "memory": patterns(3, 4, FULL)}, 1.0)
    assert "memory: out of memory" in raised
    assert sent[-1]["memory_errors"] == 7
    assert "rate_fp32" in sent[-1]


def in_this_process(ctx: check.Context, _python: str, name: str, params: Mapping[str, Scalar], **_: Any) -> None:
    """The real workload, but for its loads, on the CPU; it ends as another process would."""
    try:
        loading.main(params, ctx.forward)
    except RuntimeError as problem:
        raise RuntimeError(f"workload {name} exited with status 1: {problem}") from None


def verdicts(records: list[Record], device: str) -> dict[str, str]:
    return {one.metric: one.status for one in judged(records, plan(device))}


def test_a_soak_without_tested_memory_is_an_error_and_its_products_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workload, "run_workload", in_this_process)
    monkeypatch.setattr(loading, "_loads", lambda _device, _gib: {"fp32": products(0.02), "memory": patterns(FULL)})
    records = run("cpu", duration_s=0.3)
    found = measured(records, HOST)
    assert (found["memory_errors"].value, found["memory_errors"].absence) == (None, UNKNOWN)
    assert "memory: out of memory" in found["memory_errors"].note
    assert (found["products_wrong"].value, found["soak_complete"].value) == (0, False)
    assert "memory: out of memory" in found["soak_complete"].note
    assert outcome(records, HOST).status == ERROR
    told = verdicts(records, "cpu")
    assert (told["memory_errors"], told["soak_complete"], told["products_wrong"]) == ("ERROR", "FAIL", "PASS")


def test_a_gpu_that_is_stopped_before_its_memory_ran_has_no_verdict_on_it(
    four_gpus: Callable[[Mapping[str, Any]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory_yet(ctx: check.Context, _python: str, _name: str, params: Mapping[str, Scalar], **how: Any) -> None:
        subject = str(params["subject"])
        if subject != uuids()[1]:
            stand_in(ctx, _python, _name, params, **how)
            return
        ctx.forward(Progress("soak", subject, "load", 0.0))
        ctx.forward(Sample("soak", subject, 0.1, {"rate_bf16": 1.0, **RIGHT}))
        assert how["stop"].wait(20)
        raise RuntimeError("workload soak was stopped")

    monkeypatch.setattr(workload, "run_workload", no_memory_yet)
    four_gpus({"nvmlDeviceGetTemperature(gpu1,0)": {"result": 95}})
    records = run(duration_s=2.0)
    hot = measured(records, uuids()[1])
    assert hot["soak_complete"].value is False
    assert (hot["memory_errors"].value, hot["memory_errors"].absence) == (None, UNKNOWN)
    assert "thermal limit" in hot["memory_errors"].note
    assert hot["products_wrong"].value == 0, "what it had counted until then stands"
    assert outcome(records, uuids()[1]).status == RAN
    told = {one.subject: one.status for one in judged(records, plan("gpu")) if one.metric == "memory_errors"}
    assert [told[uuid] for uuid in uuids()[:2]] == ["PASS", "ERROR"]


@pytest.mark.parametrize("missing", COUNTS)
def test_what_the_workload_never_counted_is_unknown_though_it_ended_well(missing: str) -> None:
    records: list[Record] = []
    counts = {name: 1 for name in COUNTS if name != missing}
    soak._results(context(records), HOST, soak._Load(counts=counts), "", None)
    found = measured(records, HOST)
    assert found[missing].absence == UNKNOWN
    assert {name: found[name].value for name in counts} == counts


def test_without_throttle_reasons_there_is_no_share_of_time_throttled_by_heat(
    four_gpus: Callable[[Mapping[str, Any]], None],
) -> None:
    four_gpus({"nvmlDeviceGetCurrentClocks*Reasons(gpu0)": {"error": 3}})
    records = run(duration_s=0.5)
    blind, other = (measured(records, uuid)["time_throttled_by_heat"] for uuid in uuids()[:2])
    assert (blind.value, blind.absence) == (None, UNKNOWN)
    assert other.value == 0
