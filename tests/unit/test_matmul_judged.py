"""Like GPUs that must agree, a clock that somebody locked, and how the default criteria judge an H200."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from tests.doubles import h200
from tests.unit.load_check import judged, measured, run, uuids
from tests.unit.test_matmul_check import four_gpus, plan, under_load
from validators import check
from validators.probes import pci, pythons, workload
from validators.schema import HOST, NOT_APPLICABLE, RAN, UNKNOWN, Measurement, Outcome, Record, Scalar

__all__ = ["four_gpus"]  # a fixture


def test_a_clock_that_somebody_locked_low_is_told_and_fails(monkeypatch: pytest.MonkeyPatch, four_gpus: Any) -> None:
    faults = {
        **{f"nvmlDeviceGetClockInfo(gpu{i},1)": {"result": 1005 if i == 2 else 1980} for i in range(4)},
        "nvmlDeviceGetCurrentClocksEventReasons(*)": {"result": 0},
    }
    records = under_load(monkeypatch, four_gpus, faults)
    held = {uuid: measured(records, uuid)["clock_held_low"].value for uuid in uuids()}
    assert list(held.values()) == [False, False, True, False]
    verdicts = {one.subject: one for one in judged(records, plan()) if one.metric == "clock_held_low"}
    assert {uuid: verdicts[uuid].status == "FAIL" for uuid in uuids()} == held
    assert "nvidia-smi -rgc" in verdicts[uuids()[2]].next_step


def digesting(digests: Mapping[str, Mapping[str, str | None]]) -> Callable[..., None]:
    """A workload whose GPUs give these digests: UUID -> format -> digest, None for a product that failed."""

    def stand_in(ctx: check.Context, _python: str, _name: str, params: Mapping[str, Scalar], **_: object) -> None:
        uuid = str(params["subject"])
        for dtype, value in digests[uuid].items():
            labels = {"dtype": dtype, "torch": "2.13", "gpu": "NVIDIA H200"}
            absence = "" if value else UNKNOWN
            ctx.forward(Measurement("matmul", uuid, "digest", value, "text", labels, absence))

    return stand_in


def agreement(
    monkeypatch: pytest.MonkeyPatch, lay: Any, digests: Mapping[str, Mapping[str, str | None]]
) -> dict[str, Measurement]:
    lay({})
    monkeypatch.setattr(workload, "run_workload", digesting(digests))
    monkeypatch.setattr(pythons, "find_python", lambda _plan, _framework: sys.executable)
    found = [one for one in run(plan()) if isinstance(one, Measurement) and one.metric == "digests_agree"]
    assert {one.subject for one in found} == {HOST}
    return {one.labels.get("dtype", ""): one for one in found}


def test_like_gpus_whose_products_differ_are_told_by_name(monkeypatch: pytest.MonkeyPatch, four_gpus: Any) -> None:
    everyone = uuids()
    odd = everyone[2]
    found = agreement(
        monkeypatch,
        four_gpus,
        {uuid: {"bf16": "b0" if uuid == odd else "a0", "fp64": "c0", "fp8": None} for uuid in everyone},
    )
    assert (found["bf16"].value, found["fp64"].value) == (False, True)
    assert found["bf16"].note == f"{odd} differs from the other 3"
    assert found["fp8"].absence == UNKNOWN


def test_two_gpus_that_differ_name_both(monkeypatch: pytest.MonkeyPatch, four_gpus: Any) -> None:
    first, second, *rest = uuids()
    found = agreement(
        monkeypatch, four_gpus, {first: {"bf16": "a"}, second: {"bf16": "b"}, **{uuid: {} for uuid in rest}}
    )
    assert found["bf16"].value is False
    assert first in found["bf16"].note
    assert second in found["bf16"].note


def test_the_digest_of_one_gpu_alone_has_none_to_agree_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", h200(1, {}))
    monkeypatch.setattr(pci, "nvidia_devices", lambda _files: None)
    found = agreement(monkeypatch, lambda _faults: None, {uuids()[0]: {"bf16": "a"}})
    assert found[""].absence == NOT_APPLICABLE


def h200_records(**values: tuple[Scalar, str]) -> list[Record]:
    uuid = "GPU-1"
    identity: list[Record] = [
        Measurement("compute_capability", HOST, "gpu_count_nvml", 1, "count"),
        Measurement("compute_capability", uuid, "gpu_name", "NVIDIA H200", "text"),
        Outcome("compute_capability", uuid, RAN, "", 0.1),
        Outcome("compute_capability", HOST, RAN, "", 0.1),
    ]
    found = [Measurement("matmul", uuid, name, value, unit) for name, (value, unit) in values.items()]
    return [*identity, *found, Outcome("matmul", uuid, RAN, "", 20.0), Outcome("matmul", HOST, RAN, "", 20.0)]


@pytest.mark.parametrize(
    ("metric", "value", "unit", "expected"),
    [
        ("throughput_bf16", 689.0, "TFLOP/s", "PASS"),
        ("throughput_bf16", 560.0, "TFLOP/s", "FAIL"),  # above the floor for any card, too slow for an H200
        ("throughput_fp64", 54.6, "TFLOP/s", "PASS"),
        ("throughput_fp64", 33.0, "TFLOP/s", "FAIL"),  # the vector rate: the tensor cores did not run
        ("throughput_fp8", 1336.0, "TFLOP/s", "PASS"),
        ("throughput_int8", 927.0, "TOP/s", "PASS"),
        ("throughput_int8", 130.0, "TOP/s", "FAIL"),
        ("throughput_bf16_spread", 0.5, "ratio", "WARN"),
        ("products_wrong", 1, "count", "FAIL"),
        ("products_verified", 0, "count", "FAIL"),
        ("known_answer", False, "bool", "FAIL"),
        ("exact_integer", False, "bool", "FAIL"),
        ("operand_rows_wrong", 1, "count", "FAIL"),
        ("digests_agree", False, "bool", "FAIL"),
        ("clock_held_low", True, "bool", "FAIL"),
        ("throttled_by_heat", True, "bool", "FAIL"),
        ("throttled_by_hardware", True, "bool", "FAIL"),
        ("pcie_full_generation", False, "bool", "WARN"),
    ],
)
def test_the_default_criteria_judge_an_h200(metric: str, value: Scalar, unit: str, expected: str) -> None:
    verdicts = [one for one in judged(h200_records(**{metric: (value, unit)}), plan()) if one.metric == metric]
    of_gpu = {one.status for one in verdicts if one.measurement is not None}
    assert expected in of_gpu
    assert expected == "FAIL" or of_gpu == {expected}
