"""The soak: what it measures on the CPU with the real workload, and what ends it early on recorded H200s."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from provision.bundle import build_bundle
from provision.catalogue import load_catalogue
from provision.hosts import Host
from provision.remote.intake import MAX_BYTES as INTAKE_BYTES
from provision.remote.intake import MAX_RECORDS as INTAKE_RECORDS
from provision.request import MAX_DURATION_S, Choice, make_plan, parse_duration
from tests.doubles import GPU_IS_LOST, error, h200
from tests.unit.load_check import judged, measured, uuids
from validators import check, runner
from validators.checks import soak
from validators.probes import kernel_log, nvml, pci, pythons, workload
from validators.schema import (
    ERROR,
    HOST,
    NOT_APPLICABLE,
    RAN,
    CheckRequest,
    Measurement,
    Outcome,
    Plan,
    Progress,
    Record,
    Sample,
    Scalar,
    decode_plan,
    encode,
    encode_plan,
)
from validators.workloads import soak as loading


def run(device: str = "gpu", **params: Scalar) -> list[Record]:
    request = CheckRequest("soak", 300.0, params)
    plan = Plan((request,), 330.0, {"torch": sys.executable}, device)
    found = check.load("soak")
    records: list[Record] = []
    context = check.Context(found.info, request, plan, records.append)
    with context.subject(HOST):
        found.run(context)
    for record in records:
        encode(record)
    return records


def outcome(records: list[Record], subject: str) -> Outcome:
    return next(one for one in records if isinstance(one, Outcome) and one.subject == subject)


def test_the_cpu_is_loaded_in_turn_and_counted() -> None:
    records = run("cpu", duration_s=4.0, memory_gib=1 / 256)
    assert outcome(records, HOST).status == RAN, outcome(records, HOST).detail
    found = measured(records, HOST)
    assert found["soak_complete"].value is True
    assert float(str(found["soak_time"].value)) >= 4.0
    assert int(str(found["products_verified"].value)) > 10
    assert (found["products_wrong"].value, found["memory_errors"].value) == (0, 0)
    for load in ("fp32", "memory"):
        assert measured(records, HOST, load=load)["drift"].metric == "drift"
    samples = [one for one in records if isinstance(one, Sample)]
    assert {name for one in samples for name in one.values} >= {"rate_fp32", "rate_memory", "products_verified"}
    assert found["ecc_uncorrected_during"].absence == NOT_APPLICABLE


@pytest.fixture
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> Callable[[Mapping[str, Any]], None]:
    def lay(faults: Mapping[str, Any]) -> None:
        busy = {"nvmlDeviceGetUtilizationRates(*)": {"result": {"struct": {"gpu": 99, "memory": 50}}}}
        monkeypatch.setitem(sys.modules, "pynvml", h200(4, {**busy, **faults}))

    monkeypatch.setattr(pci, "nvidia_devices", lambda _files: None)
    monkeypatch.setattr(pythons, "find_python", lambda _plan, _framework: sys.executable)
    monkeypatch.setattr(workload, "run_workload", stand_in)
    lay({})
    return lay


def stand_in(ctx: check.Context, _python: str, _name: str, params: Mapping[str, Scalar], **how: Any) -> None:
    """A workload that samples every 0.1 s, slower with time on the second GPU, until its end or a stop."""
    subject, began = str(params["subject"]), time.monotonic()
    slower = 0.3 if subject == uuids()[1] else 0.0
    ctx.forward(Progress("soak", subject, "load", 0.0))
    while (t_s := time.monotonic() - began) < float(params["duration_s"]):
        rate = 100.0 * (1 - slower * t_s / float(params["duration_s"]))
        counts = {"products_verified": 10 * t_s, "products_wrong": 0.0, "memory_errors": 0.0}
        ctx.forward(Sample("soak", subject, t_s, {"rate_bf16": rate, **counts}))
        if how["stop"].wait(0.1):
            raise RuntimeError("workload soak was stopped")


@pytest.mark.usefixtures("four_gpus")
def test_drift_and_the_spread_between_gpus_are_measured() -> None:
    records = run(duration_s=3.0)
    steady, slowing = (measured(records, uuid) for uuid in uuids()[:2])
    assert steady["drift"].value == pytest.approx(1.0, abs=0.01)
    assert slowing["drift"].value == pytest.approx(0.72, abs=0.05)
    assert slowing["drift"].labels["load"] == "bf16"
    assert steady["soak_complete"].value is True
    assert steady["power_under_load"].value is not None
    spread = measured(records, HOST)["spread_between_gpus"]
    assert spread.value == pytest.approx(0.15, abs=0.05)


def test_a_gpu_at_its_thermal_limit_is_stopped_and_the_other_goes_on(four_gpus: Any) -> None:
    four_gpus({"nvmlDeviceGetTemperature(gpu1,0)": {"result": 95}})
    records = run(duration_s=4.0)
    cool, hot = (measured(records, uuid) for uuid in uuids()[:2])
    assert cool["soak_complete"].value is True
    assert hot["soak_complete"].value is False
    assert "thermal limit: the GPU reached 95 degrees Celsius" in hot["soak_complete"].note
    assert float(str(hot["soak_time"].value)) < 3.0
    assert hot["products_wrong"].value == 0, "what it had counted until then stands"
    assert outcome(records, uuids()[1]).status == RAN


def test_an_uncorrected_ecc_error_ends_it(four_gpus: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real, begun = nvml.Gpu.get, time.monotonic()

    def get(gpu: nvml.Gpu, name: str, *args: Any) -> Any:
        if name == "GetTotalEccErrors" and args[0] == 1:
            return 3 if time.monotonic() - begun > 1.5 else 1
        return real(gpu, name, *args)

    monkeypatch.setattr(nvml.Gpu, "get", get)
    found = measured(run(duration_s=6.0), uuids()[0])
    assert found["soak_complete"].note == "ECC limit: 2 errors were not corrected"
    assert found["ecc_uncorrected_during"].value == 2


def test_a_crash_is_an_error_and_what_was_measured_stands(four_gpus: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(ctx: check.Context, python: str, name: str, params: Mapping[str, Scalar], **how: Any) -> None:
        stand_in(ctx, python, name, {**params, "duration_s": 1.0}, **how)
        if params["subject"] == uuids()[0]:
            raise RuntimeError("workload soak crashed: SIGSEGV")

    monkeypatch.setattr(workload, "run_workload", crash)
    records = run(duration_s=1.0)
    assert outcome(records, uuids()[0]).status == ERROR
    assert "SIGSEGV" in outcome(records, uuids()[0]).detail
    assert measured(records, uuids()[0])["soak_complete"].value is False
    assert outcome(records, uuids()[1]).status == RAN


def test_xids_that_come_meanwhile_are_counted(four_gpus: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with nvml.session() as session:
        address = str(session.gpus()[0][0].pci_address())
    old, new = (kernel_log.Line(t_s, f"NVRM: Xid (PCI:{address[:-2]}): 31, pid=1, name=x, Ch 1") for t_s in (5.0, 9.0))
    logs = [(old, old), (old, new), (new,)]  # the log is a ring: it forgets
    monkeypatch.setattr(
        kernel_log, "read", lambda: kernel_log.KernelLog(logs.pop(0) if len(logs) > 1 else logs[0], True, "kmsg")
    )
    records = run(duration_s=0.5)
    hit, other = (measured(records, uuid)["xids_during"] for uuid in uuids()[:2])
    assert (hit.value, other.value) == (1, 0)
    assert "Xid 31" in hit.note


def plan(device: str) -> Plan:
    return Plan((CheckRequest("soak", 300.0),), 330.0, device=device)


def test_a_soak_too_short_for_drift_says_so_and_fails_nobody() -> None:
    records = run("cpu", duration_s=0.4, memory_gib=1 / 256)
    found = measured(records, HOST)
    assert (found["drift"].value, found["soak_complete"].value) == (None, True)
    assert found["memory_errors"].value == 0
    assert [one for one in records if isinstance(one, Sample) and "rate_memory" in one.values], "it was tested"
    assert "too short" in found["drift"].note
    verdicts = {one.metric: one.status for one in judged(records, plan("cpu"))}
    assert (verdicts["drift"], verdicts["products_verified"], verdicts["products_wrong"]) == ("SKIP", "PASS", "PASS")
    assert not {"FAIL", "ERROR"} & set(verdicts.values()), verdicts


def context(records: list[Record]) -> check.Context:
    asked = CheckRequest("soak", 300.0)
    return check.Context(check.load("soak").info, asked, Plan((asked,), 330.0), records.append)


LOADS = ("fp64", "fp32", "tf32", "fp16", "bf16", "fp8", "int8", "training", "memory")


def day(subject: str, duration_s: float, gpus: int) -> tuple[list[Record], soak._Load]:
    """What one of so many GPUs sends for its workload: slices of 20 s, each with its progress."""
    records: list[Record] = []
    load_ = soak._Load(min(soak.POINTS, soak.POINTS_IN_ALL // gpus))
    listening = soak._Listening(context(records), load_, duration_s)
    t_s, clock = 0.0, 0.0
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(soak.time, "monotonic", lambda: clock)
        while t_s < duration_s:
            for name in LOADS:
                t_s += 21.0
                clock = t_s
                counts = {"products_verified": 1.5 * t_s, "products_wrong": 0.0, "memory_errors": 0.0}
                listening.forward(Sample("soak", subject, t_s, {f"rate_{name}": 747.123456789 - t_s / 1e4, **counts}))
                listening.forward(Progress("soak", subject, f"load: {name} 747.1", t_s / duration_s))
    return records, load_


@pytest.mark.parametrize(("gpus", "duration"), [(1, "24h"), (8, "24h"), (16, "24h"), (8, "6d")])
def test_days_of_soak_on_all_gpus_stay_within_what_runner_and_operator_take(gpus: int, duration: str) -> None:
    duration_s = parse_duration(duration)
    records, load_ = day(uuids_like()[0], duration_s, gpus)
    numbers = dict.fromkeys(
        ("sm_clock", "power", "temperature", "utilisation", "throttle_reasons", "memory_temperature"), 1234.5678
    )
    counters = dict.fromkeys(("ecc_corrected", "ecc_uncorrected", "pcie_replays", "xids"), 123456)
    traced = encode(Sample("soak", uuids_like()[0], 86399.123456789, {**numbers, **counters}))
    sent = gpus * (len(records) + load_.points)
    size = gpus * (sum(len(encode(one)) for one in records) + load_.points * len(traced))
    assert sent < 0.9 * runner.MAX_RECORDS
    assert size < 0.9 * runner.MAX_BYTES
    beats = duration_s / runner.HEARTBEAT_S
    assert sent + beats < 0.9 * INTAKE_RECORDS
    assert size + 120 * beats < 0.9 * INTAKE_BYTES
    for name in LOADS:
        times = [one.t_s for one in records if isinstance(one, Sample) and f"rate_{name}" in one.values]
        assert len(times) > 50, f"{name} is in the trace"
        assert times[-1] > 0.95 * duration_s
    assert load_.ends("memory")[0] > load_.ends("memory")[1], "its drift is of all slices"


def uuids_like() -> tuple[str, ...]:
    return ("GPU-e61e9e55-f157-9148-5133-f26ba45848eb",)


def rates(*values: float, every_s: float = 10.0, begin_s: float = 10.0) -> list[tuple[float, float]]:
    return [(begin_s + every_s * number, value) for number, value in enumerate(values)]


def test_the_last_load_of_a_turn_has_its_drift_too() -> None:
    """Nine loads in eight turns: the last one's first slice ends after the first tenth of the time."""
    found = soak._Load(last_s=640.0, rates={"memory": rates(*[100.0] * 7, 90.0, begin_s=80.0, every_s=80.0)})
    assert found.ends("memory") == (100.0, 90.0)


def test_a_load_that_failed_in_the_middle_has_no_drift_but_when_it_ended() -> None:
    found = soak._Load(last_s=1000.0, rates={"fp8": rates(*[100.0] * 20)})
    with pytest.raises(ValueError, match="ended after 200 of 1000 s"):
        found.ends("fp8")


def lost_and_hanging(monkeypatch: pytest.MonkeyPatch, lose: Callable[[], None]) -> Outcome:
    first, second = uuids()[:2]

    def hang(ctx: check.Context, python: str, name: str, params: Mapping[str, Scalar], **how: Any) -> None:
        if params["subject"] != first:
            stand_in(ctx, python, name, {**params, "duration_s": 4.0}, **how)
            return
        ctx.forward(Progress("soak", str(params["subject"]), "load", 0.0))
        ctx.forward(Sample("soak", str(params["subject"]), 0.1, {"rate_bf16": 1.0, "products_wrong": 0.0}))
        how["stop"].wait(1.2)
        lose()
        if how["stop"].wait(20):
            raise RuntimeError("workload soak was stopped")

    monkeypatch.setattr(workload, "run_workload", hang)
    began = time.monotonic()
    records = run(duration_s=60.0)
    assert time.monotonic() - began < 15
    assert outcome(records, first).status == ERROR
    assert measured(records, first)["soak_complete"].value is False
    assert measured(records, first)["products_wrong"].value == 0, "what it had counted until then stands"
    assert outcome(records, second).status == RAN
    assert measured(records, second)["soak_complete"].value is True
    return outcome(records, first)


def test_a_gpu_that_falls_off_while_its_workload_hangs_is_given_up(four_gpus: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(soak, "LOST_S", 1.0)
    double: Any = sys.modules["pynvml"]

    def lose() -> None:
        double.faults = {"*(gpu0*)": error(GPU_IS_LOST), "field(gpu0*": error(GPU_IS_LOST), **double.faults}

    assert "the GPU is lost: NVML has had no answer" in lost_and_hanging(monkeypatch, lose).detail


def test_a_workload_that_hangs_is_given_up_long_before_a_days_end(four_gpus: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(soak, "STALL_S", 1.5)
    assert "the workload hangs" in lost_and_hanging(monkeypatch, lambda: None).detail


def test_gpus_without_a_common_load_have_no_spread_and_say_so() -> None:
    records: list[Record] = []
    soak._between(context(records), {"a": soak._Load(rates={"fp32": rates(1.0)}), "b": soak._Load()})
    (found,) = (one for one in records if isinstance(one, Measurement))
    assert found.value is None
    assert "no two GPUs" in found.note


def test_sizes_are_sought_once_and_not_in_every_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    sought: list[int] = []
    measured_: list[int] = []
    largest, measure = loading.largest, loading.measure
    monkeypatch.setattr(loading, "largest", lambda *args, **more: sought.append(1) or largest(*args, **more))
    monkeypatch.setattr(loading, "measure", lambda *args, **more: measured_.append(1) or measure(*args, **more))
    records: list[Record] = []
    loading.main({"duration_s": 5.0, "memory_gib": 1 / 256}, records.append)
    assert len(sought) == 1
    assert len(measured_) >= 1
    slices = [one for one in records if isinstance(one, Sample) and "rate_fp32" in one.values]
    assert len(slices) == len(sought) + len(measured_)


@pytest.mark.parametrize("duration_s", [5.0, 86400.0, MAX_DURATION_S])
def test_no_deadline_ends_a_soak_before_its_time(duration_s: float) -> None:
    catalogue = load_catalogue(build_bundle())
    plan = make_plan(Host("box", "box"), catalogue, Choice(level=4, duration_s=duration_s))
    plan = decode_plan(encode_plan(plan))
    (asked,) = (one for one in plan.checks if one.name == "soak")
    assert asked.params["duration_s"] == duration_s
    assert asked.timeout_s >= duration_s + soak.START_S, "the workload's own deadline comes first"
    assert plan.deadline_s >= sum(one.timeout_s for one in plan.checks)


def test_a_clock_that_somebody_locked_is_a_warning(four_gpus: Any) -> None:
    four_gpus(
        {
            "nvmlDeviceGetClockInfo(gpu0,1)": {"result": 1005},
            "nvmlDeviceGetClockInfo(gpu[123],1)": {"result": 1980},
            "nvmlDeviceGetCurrentClocksEventReasons(*)": {"result": 0},
        }
    )
    verdicts = [one for one in judged(run(duration_s=0.5), plan("gpu")) if one.metric == "clock_held_low"]
    assert {one.subject: one.status for one in verdicts} == {
        uuid: "WARN" if number == 0 else "PASS" for number, uuid in enumerate(uuids())
    }
