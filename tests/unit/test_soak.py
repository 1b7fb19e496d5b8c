"""The soak: what it measures on the CPU with the real workload, and what ends it early on recorded H200s."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from tests.doubles import h200
from validators import check
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
    encode,
)


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


def measured(records: list[Record], subject: str, **labels: str) -> dict[str, Measurement]:
    return {
        one.metric: one
        for one in records
        if isinstance(one, Measurement) and one.subject == subject and labels.items() <= one.labels.items()
    }


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


def uuids() -> list[str]:
    with nvml.session() as session:
        return [gpu.uuid for gpu in session.gpus()[0]]


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
    line = kernel_log.Line(5.0, f"NVRM: Xid (PCI:{address[:-2]}): 31, pid=1, name=x, Ch 1")
    logs = [(line,), (line, line), (line, line)]
    monkeypatch.setattr(
        kernel_log, "read", lambda: kernel_log.KernelLog(logs.pop(0) if len(logs) > 1 else logs[0], True, "kmsg")
    )
    records = run(duration_s=0.5)
    hit, other = (measured(records, uuid)["xids_during"] for uuid in uuids()[:2])
    assert (hit.value, other.value) == (1, 0)
    assert "Xid 31" in hit.note
