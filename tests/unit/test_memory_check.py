"""The check `memory`: the CPU run from the bundle, the link beside the load, turns, and what is judged."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from provision.bundle import build_bundle
from tests.doubles import h200
from tests.unit.load_check import judged, measured, outcomes, plan_of, run, uuids
from validators import check
from validators.checks import memory as checks_memory
from validators.probes import pci, pythons, workload
from validators.schema import (
    ERROR,
    HOST,
    NOT_APPLICABLE,
    RAN,
    UNKNOWN,
    Measurement,
    Outcome,
    Plan,
    Progress,
    Record,
    Sample,
    Scalar,
    decode,
    encode,
)
from validators.workloads import memory, memory_patterns, memory_speed
from validators.workloads.results import Results

INFO = check.load("memory").info


def plan(device: str = "gpu", **params: Scalar) -> Plan:
    return plan_of("memory", device, **params)


@pytest.fixture(scope="module")
def cpu_run(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    """The real bundle with the real torch, on the CPU."""
    path = tmp_path_factory.mktemp("bundle") / "validators.pyz"
    path.write_bytes(build_bundle().data)
    argv = [sys.executable, "-I", str(path), "run", "memory", "--device", "cpu", "--json"]
    ran = subprocess.run(argv, capture_output=True, timeout=100, check=False, env={"PATH": "/usr/bin:/bin"})
    assert ran.returncode == 0, ran.stderr.decode()[-2000:]
    return [decode(line + b"\n") for line in ran.stdout.splitlines()]


def test_the_bundle_tests_a_small_buffer_where_the_cpu_was_asked_for(cpu_run: list[Record]) -> None:
    assert outcomes(cpu_run)[HOST].status == RAN
    found = measured(cpu_run, HOST)
    assert found["memory_errors"].value == 0
    assert found["memory_patterns"].value == 6
    assert 60 < float(str(found["memory_tested_mib"].value)) <= 64
    assert found["memory_tested"].absence == NOT_APPLICABLE
    assert float(str(found["cpu_copy_bandwidth"].value)) > 0.01
    assert found["h2d_of_link"].absence == NOT_APPLICABLE
    assert set(found) == {metric.name for metric in INFO.metrics}


def test_a_cpu_run_is_judged_without_error(cpu_run: list[Record]) -> None:
    records = [one for one in cpu_run if isinstance(one, (Measurement, Outcome, Sample, Progress))]
    verdicts = judged(records, plan("cpu"))
    assert {one.metric for one in verdicts if one.status == "PASS"} == {"memory_errors", "memory_patterns"}
    assert {one.status for one in verdicts} == {"PASS", "SKIP"}


def work(**params: Scalar) -> dict[str, Measurement]:
    """The workload in this process, on the CPU."""
    torch.set_num_threads(1)
    records: list[Record] = []
    memory.main({"memory_gib": 0.004, "rounds": 1, "seconds": 0.001, **params}, records.append)
    for record in records:
        encode(record)
    assert isinstance(records[0], Progress)
    return measured(records, HOST)


def test_a_wrong_word_reaches_the_report_with_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    def faulty(field: memory_patterns.Field, every: Any, budget_s: float) -> memory_patterns.Tally:
        def plant(_pattern: object) -> None:
            field.buffer[4000] ^= 2

        return honest(field, every, budget_s, between=plant if len(field.buffer) > 2**17 else lambda _one: None)

    honest = memory_patterns.run
    monkeypatch.setattr(memory_patterns, "run", faulty)
    found = work()
    assert found["memory_errors"].value == 3
    assert "byte 0x7d00 (bit 1)" in found["memory_errors"].note


def test_the_settings_hold() -> None:
    found = work(rounds=3, memory_gib=0.002)
    assert found["memory_patterns"].value == 9
    assert float(str(found["memory_tested_mib"].value)) <= 0.002 * 1024


def test_a_host_without_room_is_a_memory_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_speed, "host_bytes", lambda: 2**19)
    with pytest.raises(MemoryError, match="out of memory: of 0 MiB free"):
        work()


@pytest.fixture
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> Callable[[Mapping[str, Any]], None]:
    """A host with the four recorded H200s, and a Python for torch."""

    def lay(faults: Mapping[str, Any]) -> None:
        monkeypatch.setitem(sys.modules, "pynvml", h200(4, dict(faults)))

    monkeypatch.setattr(pci, "nvidia_devices", lambda _files: None)
    monkeypatch.setattr(pythons, "find_python", lambda _plan, _framework: sys.executable)
    lay({})
    return lay


def stand_in(rates: Mapping[str, float], seen: list[Mapping[str, Scalar]] | None = None) -> Callable[..., None]:
    """A workload that sends these transfer rates."""

    def workload_of(ctx: check.Context, _python: str, _name: str, params: Mapping[str, Scalar], **_: object) -> None:
        subject = str(params["subject"])
        ctx.forward(Progress("memory", subject, "load", 0.0))
        for metric, value in rates.items():
            ctx.forward(Measurement("memory", subject, metric, value, "GB/s"))
        if seen is not None:
            assert Path(str(params["turn"])).exists()
            seen.append(params)
        time.sleep(0.15)

    return workload_of


@pytest.mark.parametrize(
    ("link", "rate", "share"),
    [
        ((5, 16), 55.3, 0.8776),
        ((3, 16), 12.3, 0.7809),
        ((4, 8), 13.0, 0.8252),
        ((1, 16), 3.2, 0.8),
        ((2, 4), 1.5, 0.75),
    ],
)
def test_transfers_are_held_against_the_link(
    monkeypatch: pytest.MonkeyPatch, four_gpus: Any, link: tuple[int, int], rate: float, share: float
) -> None:
    generation, width = link
    four_gpus(
        {
            "nvmlDeviceGetCurrPcieLinkGeneration(*)": {"result": generation},
            "nvmlDeviceGetCurrPcieLinkWidth(*)": {"result": width},
        }
    )
    monkeypatch.setattr(workload, "run_workload", stand_in({"h2d_bandwidth": rate, "d2h_bandwidth": rate / 2}))
    records = run(plan())
    for uuid in uuids():
        found = measured(records, uuid)
        assert found["h2d_of_link"].value == pytest.approx(share, abs=1e-3)
        assert found["d2h_of_link"].value == pytest.approx(share / 2, abs=1e-3)
        assert f"generation {generation}, {width} lanes" in found["h2d_of_link"].note
        assert found["pcie_width_under_load"].value == width


def test_a_link_that_nvml_does_not_know_gives_the_figure_alone(monkeypatch: pytest.MonkeyPatch, four_gpus: Any) -> None:
    four_gpus({"nvmlDeviceGetCurrPcieLinkGeneration(*)": {"result": 0}})
    monkeypatch.setattr(workload, "run_workload", stand_in({"h2d_bandwidth": 50.0, "d2h_bandwidth": 50.0}))
    records = run(plan())
    found = measured(records, uuids()[0])
    assert (found["h2d_of_link"].value, found["h2d_of_link"].absence) == (None, UNKNOWN)
    assert found["h2d_bandwidth"].value == 50.0
    assert "virtual machines" in found["h2d_of_link"].note


def test_a_transfer_that_was_not_measured_is_no_share_of_the_link(
    monkeypatch: pytest.MonkeyPatch, four_gpus: Any
) -> None:
    monkeypatch.setattr(workload, "run_workload", stand_in({}))
    found = measured(run(plan()), uuids()[0])
    assert found["d2h_of_link"].absence == UNKNOWN


def test_all_gpus_take_turns_at_one_file_that_is_gone_afterwards(
    monkeypatch: pytest.MonkeyPatch, four_gpus: Any
) -> None:
    seen: list[Mapping[str, Scalar]] = []
    monkeypatch.setattr(workload, "run_workload", stand_in({}, seen))
    run(plan(memory_gib=1))
    files = {str(one["turn"]) for one in seen}
    assert len(seen) == 4
    assert len(files) == 1
    assert not Path(files.pop()).exists()
    assert seen[0]["memory_gib"] == 1


def test_errors_that_ecc_saw_meanwhile_are_told(monkeypatch: pytest.MonkeyPatch, four_gpus: Any) -> None:
    readings = iter([3, 1, 8, 2] * 4)  # corrected and uncorrected before, then after
    monkeypatch.setattr(checks_memory, "_ecc", lambda _gpu, _kind: next(readings))
    monkeypatch.setattr(workload, "run_workload", stand_in({}))
    found = measured(run(plan(parallel=False)), uuids()[0])
    assert found["ecc_corrected_meanwhile"].value == 5
    assert found["ecc_uncorrected_meanwhile"].value == 1


def test_ecc_that_is_off_counts_nothing(monkeypatch: pytest.MonkeyPatch, four_gpus: Any) -> None:
    four_gpus({"nvmlDeviceGetEccMode(*)": {"result": [0, 0]}})
    monkeypatch.setattr(workload, "run_workload", stand_in({}))
    found = measured(run(plan()), uuids()[0])
    assert found["ecc_corrected_meanwhile"].absence == NOT_APPLICABLE


def test_a_gpu_that_runs_out_of_memory_is_that_gpus_error_alone(
    monkeypatch: pytest.MonkeyPatch, four_gpus: Any
) -> None:
    bad = uuids()[1]

    def starve(_ctx: object, _python: str, _name: str, params: Mapping[str, Scalar], **_: object) -> None:
        if params["subject"] == bad:
            raise RuntimeError("workload memory exited with status 1: MemoryError: out of memory: of 80 MiB free")

    monkeypatch.setattr(workload, "run_workload", starve)
    ends = outcomes(run(plan()))
    assert {subject: end.status for subject, end in ends.items()} == {
        HOST: RAN,
        **{uuid: ERROR if uuid == bad else RAN for uuid in uuids()},
    }
    assert "of 80 MiB free" in ends[bad].detail


def test_two_that_want_the_link_have_it_one_after_the_other(tmp_path: Path) -> None:
    lock = tmp_path / "turn"
    lock.touch()
    inside: list[int] = []
    most: list[int] = []

    def transfer() -> None:
        with memory_speed.turn(str(lock)) as alone:
            assert alone
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.1)
            inside.pop()

    threads = [threading.Thread(target=transfer) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1, 1, 1]


def test_a_turn_that_never_comes_is_not_waited_for_without_end(tmp_path: Path) -> None:
    lock = tmp_path / "turn"
    lock.touch()
    with memory_speed.turn(str(lock)) as first, memory_speed.turn(str(lock), wait_s=0.05) as second:
        assert (first, second) == (True, False)
    with memory_speed.turn("") as alone:
        assert not alone
    with memory_speed.turn(str(tmp_path / "gone")) as alone:
        assert not alone


@pytest.fixture
def unpinned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Transfers within the host: pinned memory takes a GPU."""
    torch.set_num_threads(1)
    monkeypatch.setattr(memory_speed, "pinned", lambda words, dtype: torch.empty(words, dtype=dtype))


def sent(buffer: torch.Tensor) -> dict[str, Measurement]:
    records: list[Record] = []
    memory._transfers(Results("memory", "GPU-1", records.append), buffer, 0.001, alone=True)
    for record in records:
        encode(record)
    return measured(records, "GPU-1")


@pytest.mark.usefixtures("unpinned")
@pytest.mark.parametrize("words", [10, 2**18, 5 * 2**20 + 3])
def test_what_goes_to_the_host_and_back_is_compared(monkeypatch: pytest.MonkeyPatch, words: int) -> None:
    buffer = torch.zeros(words, dtype=torch.int64)
    found = sent(buffer)
    assert found["transfer_errors"].value == 0
    assert set(found) == set(memory.TRANSFERS)
    assert found["h2d_bandwidth"].labels["others"] == "waited for"

    honest = memory_speed.timed

    def broken(*arguments: Any) -> memory_speed.Speed:
        speed = honest(*arguments)
        buffer[-1] ^= 1
        return speed

    monkeypatch.setattr(memory_speed, "timed", broken)
    assert sent(buffer)["transfer_errors"].value == 1


def test_without_pinned_memory_the_rest_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> torch.Tensor:
        raise RuntimeError("CUDA error: out of host memory")

    monkeypatch.setattr(memory_speed, "pinned", refuse)
    found = sent(torch.zeros(1000, dtype=torch.int64))
    assert {one.absence for one in found.values()} == {UNKNOWN}
    assert "out of host memory" in found["d2h_bandwidth"].note


@pytest.mark.usefixtures("unpinned")
def test_a_slow_link_gets_smaller_transfers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_speed, "_times", lambda _device, _work, repeats: [4.0] * repeats)  # 1 MB/s
    buffer = torch.zeros(2**22, dtype=torch.int64)
    assert memory_speed.patient_words(buffer, buffer) == 2**19


def test_rates_are_of_single_operations() -> None:
    found = memory_speed.timed(torch.device("cpu"), lambda: time.sleep(0.01), 10**7, 0.1)
    assert len(found.rates) >= 5
    assert 0.5 < found.quantile(0.5) <= 1.0  # 10**7 bytes in 10 ms
    assert found.quantile(0.1) <= found.quantile(0.9)


def gpu_records(**values: tuple[Scalar, str]) -> list[Record]:
    uuid = "GPU-1"
    found = [Measurement("memory", uuid, name, value, unit) for name, (value, unit) in values.items()]
    return [
        Measurement("compute_capability", HOST, "gpu_count_nvml", 1, "count"),
        Measurement("compute_capability", uuid, "gpu_name", "NVIDIA H200", "text"),
        Outcome("compute_capability", uuid, RAN, "", 0.1),
        Outcome("compute_capability", HOST, RAN, "", 0.1),
        *found,
        Outcome("memory", uuid, RAN, "", 9.0),
        Outcome("memory", HOST, RAN, "", 9.0),
    ]


@pytest.mark.parametrize(
    ("metric", "value", "unit", "expected"),
    [
        ("memory_bandwidth_copy", 4280.0, "GB/s", "PASS"),
        ("memory_bandwidth_copy", 3900.0, "GB/s", "FAIL"),  # above the floor for any card, too slow for an H200
        ("memory_bandwidth_copy_spread", 0.3, "ratio", "WARN"),
        ("memory_errors", 0, "count", "PASS"),
        ("memory_errors", 1, "count", "FAIL"),
        ("memory_patterns", 1, "count", "FAIL"),
        ("memory_tested", 0.97, "ratio", "PASS"),
        ("memory_tested", 0.9, "ratio", "FAIL"),
        ("transfer_errors", 1, "count", "FAIL"),
        ("h2d_of_link", 0.88, "ratio", "PASS"),
        ("h2d_of_link", 0.7, "ratio", "WARN"),
        ("d2h_of_link", 0.4, "ratio", "FAIL"),
        ("ecc_corrected_meanwhile", 2, "count", "WARN"),
        ("ecc_uncorrected_meanwhile", 1, "count", "FAIL"),
        ("throttled_by_heat", True, "bool", "FAIL"),
        ("pcie_full_generation", False, "bool", "WARN"),
    ],
)
def test_the_default_criteria_judge_an_h200(metric: str, value: Scalar, unit: str, expected: str) -> None:
    verdicts = [one for one in judged(gpu_records(**{metric: (value, unit)}), plan()) if one.metric == metric]
    of_gpu = {one.status for one in verdicts if one.measurement is not None}
    assert expected in of_gpu
    assert expected in ("FAIL", "WARN") or of_gpu == {expected}
