"""The check around the workload: which Python, which GPU, what is read beside the load, and what is judged."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from provision.bundle import build_bundle
from tests.doubles import h200
from tests.unit.load_check import judged, measured, outcomes, plan_of, run, uuids
from validators import check
from validators.probes import load_trace, nvml, pci, pythons, workload
from validators.probes.nvml import Absent
from validators.schema import (
    ERROR,
    HOST,
    NOT_APPLICABLE,
    RAN,
    SKIPPED,
    UNKNOWN,
    Measurement,
    Outcome,
    Plan,
    Progress,
    Record,
    Sample,
    Scalar,
    decode,
)

INFO = check.load("matmul").info


def plan(device: str = "gpu", **params: Scalar) -> Plan:
    return plan_of("matmul", device, **params)


@pytest.fixture(scope="module")
def cpu_run(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    """The real bundle with the real torch, on the CPU."""
    path = tmp_path_factory.mktemp("bundle") / "validators.pyz"
    path.write_bytes(build_bundle().data)
    argv = [sys.executable, "-I", str(path), "run", "matmul", "--device", "cpu", "--json"]
    ran = subprocess.run(argv, capture_output=True, timeout=200, check=False, env={"PATH": "/usr/bin:/bin"})
    assert ran.returncode == 0, ran.stderr.decode()[-2000:]
    return [decode(line + b"\n") for line in ran.stdout.splitlines()]


def test_the_bundle_measures_the_cpu_where_that_was_asked_for(cpu_run: list[Record]) -> None:
    assert outcomes(cpu_run)[HOST].status == RAN
    found = measured(cpu_run, HOST)
    assert found["known_answer"].value is True
    assert found["exact_integer"].value is True
    assert found["products_wrong"].value == 0
    assert int(str(found["products_verified"].value)) >= 10
    assert float(str(found["throughput_cpu_fp32"].value)) > 1e-4
    assert found["throughput_bf16"].absence == NOT_APPLICABLE
    assert "--device cpu" in found["throughput_bf16"].note


def test_a_cpu_run_is_judged_without_error_and_says_that_no_gpu_was_measured(cpu_run: list[Record]) -> None:
    records = [one for one in cpu_run if isinstance(one, (Measurement, Outcome, Sample, Progress))]
    verdicts = judged(records, plan("cpu"))
    passed = {one.metric for one in verdicts if one.status == "PASS"}
    assert passed == {"known_answer", "exact_integer", "products_wrong", "products_verified", "operand_rows_wrong"}
    assert {one.status for one in verdicts} == {"PASS", "SKIP"}
    assert any("no GPU was measured" in one.reason for one in verdicts if one.metric == "throughput_bf16")


@pytest.fixture
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> Callable[[Mapping[str, Any]], None]:
    """A host with the four recorded H200s."""

    def lay(faults: Mapping[str, Any]) -> None:
        monkeypatch.setitem(sys.modules, "pynvml", h200(4, dict(faults)))

    monkeypatch.setattr(pci, "nvidia_devices", lambda _files: None)
    lay({})
    return lay


def test_a_host_without_a_gpu_is_skipped_and_says_how_to_use_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pci, "nvidia_devices", lambda _files: ())
    end = outcomes(run(plan()))[HOST]
    assert end.status == SKIPPED
    assert "--device cpu" in end.detail


@pytest.mark.usefixtures("four_gpus")
def test_a_torch_without_cuda_is_each_gpus_error(tmp_path: Path) -> None:
    records = run(plan())
    for uuid in uuids():
        end = outcomes(records)[uuid]
        assert end.status == ERROR
        assert "is a build without CUDA" in end.detail
    assert not [one for one in records if isinstance(one, Measurement)]


@pytest.mark.usefixtures("four_gpus")
def test_a_host_without_torch_is_an_error_that_names_the_interpreters(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "bare")], check=True)
    bare = str(tmp_path / "bare" / "bin" / "python3")
    asked = Plan(plan().checks, 330.0, {"torch": bare})
    ends = outcomes(run(asked))
    for subject in (HOST, *uuids()):
        assert ends[subject].status == ERROR
        assert bare in ends[subject].detail
        assert "bringup_torch_python" in ends[subject].detail


def loaded(seconds: float, before: Callable[[], None] = lambda: None) -> Callable[..., None]:
    """A workload that takes `seconds` under load."""

    def stand_in(ctx: check.Context, _python: str, _name: str, params: Mapping[str, Scalar], **_: object) -> None:
        before()
        ctx.forward(Progress("matmul", str(params["subject"]), "load", 0.0))
        time.sleep(seconds)

    return stand_in


BUSY = {"nvmlDeviceGetUtilizationRates(*)": {"result": {"struct": {"gpu": 99, "memory": 50}}}}


def under_load(monkeypatch: pytest.MonkeyPatch, lay: Callable[[Mapping[str, Any]], None], faults: Any) -> Any:
    lay({**BUSY, **faults})
    monkeypatch.setattr(workload, "run_workload", loaded(0.4))
    monkeypatch.setattr(pythons, "find_python", lambda _plan, _framework: sys.executable)
    return run(plan())


def test_clock_power_and_heat_are_read_beside_the_load(monkeypatch: pytest.MonkeyPatch, four_gpus: Any) -> None:
    records = under_load(monkeypatch, four_gpus, {})
    for uuid in uuids():
        found = measured(records, uuid)
        assert float(str(found["sm_clock_under_load"].value)) > 100
        assert 20 < float(str(found["power_under_load"].value)) < 1500
        assert found["pcie_full_generation"].value is True
        assert found["throttled_by_heat"].value is False
        samples = [one for one in records if isinstance(one, Sample) and one.subject == uuid]
        assert len(samples) >= 2
        assert set(samples[0].values) == {"sm_clock", "power", "temperature", "utilisation", "throttle_reasons"}
        assert samples[0].t_s < samples[1].t_s


def test_reading_begins_with_the_load_and_not_with_the_import(monkeypatch: pytest.MonkeyPatch, four_gpus: Any) -> None:
    four_gpus(BUSY)
    monkeypatch.setattr(pythons, "find_python", lambda _plan, _framework: sys.executable)
    monkeypatch.setattr(workload, "run_workload", loaded(0.3, before=lambda: time.sleep(0.6)))
    records = run(plan(parallel=False))
    first = next(i for i, one in enumerate(records) if isinstance(one, Sample))
    assert any(isinstance(one, Progress) for one in records[: first + 2])  # the two come at once, in either order


def test_a_hot_card_and_a_braked_one_are_told(monkeypatch: pytest.MonkeyPatch, four_gpus: Any) -> None:
    reasons = {
        "nvmlDeviceGetCurrentClocksEventReasons(gpu1)": {"result": 0x40},
        "nvmlDeviceGetCurrentClocksEventReasons(gpu2)": {"result": 0x80 | 0x4},
    }
    records = under_load(monkeypatch, four_gpus, reasons)
    cool, hot, braked, _ = (measured(records, uuid) for uuid in uuids())
    assert (cool["throttled_by_heat"].value, cool["throttled_by_hardware"].value) == (False, False)
    assert (hot["throttled_by_heat"].value, hot["throttled_by_hardware"].value) == (True, False)
    assert (braked["throttled_by_heat"].value, braked["throttled_by_hardware"].value) == (False, True)
    assert braked["throttle_reasons_under_load"].value == "software power cap, hardware power brake"


def test_a_link_at_a_lower_generation_under_load_is_told(monkeypatch: pytest.MonkeyPatch, four_gpus: Any) -> None:
    faults = {"nvmlDeviceGetCurrPcieLinkGeneration(gpu0)": {"result": 3}}
    found = measured(under_load(monkeypatch, four_gpus, faults), uuids()[0])
    assert (found["pcie_generation_under_load"].value, found["pcie_full_generation"].value) == (3, False)


def test_what_nvml_does_not_support_is_no_value(monkeypatch: pytest.MonkeyPatch, four_gpus: Any) -> None:
    faults = {
        "nvmlDeviceGetPowerUsage(*)": {"error": nvml.NOT_SUPPORTED},
        "nvmlDeviceGetCurrentClocksEventReasons(*)": {"error": nvml.NOT_SUPPORTED},
        "nvmlDeviceGetTemperature(*)": {"error": nvml.GPU_IS_LOST},
    }
    found = measured(under_load(monkeypatch, four_gpus, faults), uuids()[0])
    assert (found["power_under_load"].value, found["power_under_load"].absence) == (None, NOT_APPLICABLE)
    assert (found["throttled_by_heat"].value, found["throttled_by_heat"].absence) == (None, NOT_APPLICABLE)
    assert (found["temperature_under_load"].value, found["temperature_under_load"].absence) == (None, UNKNOWN)


def test_idle_moments_are_not_read_as_load() -> None:
    trace = load_trace.Trace()
    trace.add({"utilisation": 0, "sm_clock": 345, "reasons": 0x40})
    assert isinstance(trace.median("sm_clock"), Absent)
    assert isinstance(trace.throttled(load_trace.THERMAL), Absent)
    trace.add({"utilisation": 100, "sm_clock": 1500, "reasons": 0x4})
    assert trace.median("sm_clock") == 1500
    assert trace.throttled(load_trace.THERMAL) is False


def test_a_gpu_whose_workload_crashes_is_that_gpus_error_alone(
    monkeypatch: pytest.MonkeyPatch, four_gpus: Callable[[Mapping[str, Any]], None]
) -> None:
    bad = uuids()[1]

    def crash(_ctx: object, _python: str, _name: str, params: Mapping[str, Scalar], **_: object) -> None:
        if params["subject"] == bad:
            raise RuntimeError("workload matmul was ended by SIGSEGV: CUDA error: no kernel image is available")

    monkeypatch.setattr(workload, "run_workload", crash)
    monkeypatch.setattr(pythons, "find_python", lambda _plan, _framework: sys.executable)
    for parallel in (False, True):
        ends = outcomes(run(plan(parallel=parallel)))
        assert {subject: end.status for subject, end in ends.items()} == {
            HOST: RAN,
            **{uuid: ERROR if uuid == bad else RAN for uuid in uuids()},
        }
        assert "no kernel image is available" in ends[bad].detail


def test_every_metric_of_the_workload_is_declared_by_the_check(cpu_run: list[Record]) -> None:
    declared = {metric.name: metric.unit for metric in INFO.metrics}
    for one in cpu_run:
        if isinstance(one, Measurement):
            assert declared[one.metric] == one.unit
    assert json.dumps(sorted(declared))
