"""The workload with real torch on the CPU; with a GPU that fails in each way, through an adapter that plays it."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.need import need
from tests.unit.host_tree import Measured, context
from validators.check import Skip, load
from validators.checks import preflight as check
from validators.frameworks.base import LEFT, PRODUCT, RIGHT, Device, Missing, Product, serves
from validators.probes import pci
from validators.schema import ERROR, HOST, NOT_APPLICABLE, RAN, UNKNOWN, Outcome, Plan, Record
from validators.workloads import preflight as workload

UUID = "GPU-bc0980de-e367-052e-70cb-c28b0154c9a8"


def cpu_plan(python: str) -> Plan:
    return Plan((), 300.0, {"torch": python}, "cpu")


def run_on_cpu(python: str) -> tuple[Measured, str]:
    ctx, records = context("preflight", cpu_plan(python))
    with ctx.subject(HOST):
        load("preflight").run(ctx)
    (outcome,) = (one for one in records if isinstance(one, Outcome))
    return Measured(records), "" if outcome.status == RAN else outcome.detail


def fake(root: Path, body: str) -> str:
    """A Python with a distribution `torch` whose module is this text."""
    site = root / "site"
    (site / "torch-9.9.9.dist-info").mkdir(parents=True)
    (site / "torch.py").write_text(body)
    python = root / "python3"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={site} exec {sys.executable} -S "$@"\n')
    python.chmod(0o755)
    return str(python)


def test_real_torch_gives_the_known_answer_on_the_cpu():
    need(importlib.util.find_spec("torch") is not None, "torch for this Python (extra `torch`)")

    found, problem = run_on_cpu(sys.executable)

    assert not problem
    assert found.value("imports") is True
    assert found.value("known_answer") is True
    assert found.value("device_ran_on") == "cpu"
    assert found.one("known_answer").subject == HOST
    assert {one.labels["framework"] for one in found.records} == {"torch"}


def test_a_missing_torch_names_the_interpreters_and_the_variable(tmp_path: Path):
    python = tmp_path / "python3"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -S -I "$@"\n')
    python.chmod(0o755)

    found, problem = run_on_cpu(str(python))

    assert found.records == []
    assert str(python) in problem
    assert "bringup_torch_python" in problem


def test_a_torch_that_cannot_be_imported_is_measured_so_and_its_words_kept(tmp_path: Path):
    body = "raise ImportError('libcudart.so.13: cannot open shared object file')"

    found, problem = run_on_cpu(fake(tmp_path, body))

    assert not problem
    assert found.value("imports") is False
    assert "libcudart.so.13: cannot open shared object file" in found.one("imports").note
    assert found.all("known_answer") == []


def test_a_torch_that_segfaults_is_an_error_that_names_the_signal(tmp_path: Path):
    _, problem = run_on_cpu(fake(tmp_path, "import ctypes; ctypes.string_at(0)"))

    assert "SIGSEGV" in problem or "signal 11" in problem


def test_without_a_gpu_it_is_skipped_unless_the_cpu_is_asked_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pci, "nvidia_devices", lambda files: [])
    ctx, _ = context("preflight")

    with pytest.raises(Skip, match="no NVIDIA GPU"):
        load("preflight").run(ctx)


def test_a_gpu_that_no_framework_reached_is_an_error_of_that_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(pci, "nvidia_devices", lambda files: None)
    monkeypatch.setattr(check, "_gpus", lambda: {UUID: "9.0"})
    ctx, records = context("preflight", Plan((), 300.0, {"torch": fake(tmp_path, "raise OSError('no libcuda')")}))

    load("preflight").run(ctx)

    (outcome,) = (one for one in records if isinstance(one, Outcome))
    assert (outcome.subject, outcome.status) == (UUID, ERROR)


def test_check_and_workload_declare_the_same_metrics():
    assert {metric.name: metric.unit for metric in check.METRICS} == workload.UNITS


def test_the_known_product_is_one():
    rows = [
        [sum(a * b for a, b in zip(row, column, strict=True)) for column in zip(*RIGHT, strict=True)] for row in LEFT
    ]

    assert rows == PRODUCT


class Played:
    """A framework on a host with one GPU; what a test gives is what its method does."""

    def __init__(self, **plays: Any) -> None:
        self.plays = plays

    def _play(self, name: str, otherwise: Any) -> Any:
        play = self.plays.get(name, otherwise)
        if isinstance(play, BaseException):
            raise play
        return play

    def version(self) -> str:
        return "2.11.0+cu130"

    def cuda_build(self) -> str:
        return str(self._play("cuda_build", "13.0"))

    def architectures(self) -> list[str]:
        return list(self._play("architectures", ["sm_80", "sm_90"]))

    def devices(self) -> list[Device]:
        return list(self._play("devices", [Device(0, UUID, (9, 0))]))

    def create_context(self, device: Device) -> None:
        self._play("create_context", None)

    def multiply(self, device: Device | None) -> Product:
        found = self._play("multiply", Product(PRODUCT, "cuda:0"))
        assert isinstance(found, Product)
        return found


def play(monkeypatch: pytest.MonkeyPatch, gpus: str = "", **plays: Any) -> Measured:
    monkeypatch.setitem(workload.ADAPTERS, "torch", (__name__, "made"))  # type: ignore[arg-type]  # a plain dict in fact
    monkeypatch.setattr(sys.modules[__name__], "made", lambda: Played(**plays), raising=False)
    records: list[Record] = []
    workload.main({"framework": "torch", "device": "gpu", "gpus": gpus}, records.append)
    return Measured(records)


def test_a_good_gpu_passes_every_step(monkeypatch: pytest.MonkeyPatch):
    found = play(monkeypatch)

    assert found.value("devices_seen") == 1
    for metric in ("arch_supported", "context", "known_answer"):
        assert (found.value(metric), found.one(metric).subject) == (True, UUID)
    assert found.value("arch_list") == "sm_80,sm_90"


def test_a_driver_too_old_keeps_its_words_and_the_wheel_is_still_judged(monkeypatch: pytest.MonkeyPatch):
    words = "The NVIDIA driver on your system is too old (found version 12020)"

    found = play(monkeypatch, f"{UUID}=7.0", devices=RuntimeError(words))

    assert found.value("devices_seen") == 0
    assert words in found.one("devices_seen").note
    assert found.value("arch_supported") is False
    assert found.one("arch_supported").labels["capability"] == "7.0"
    assert found.all("known_answer") == []


def test_an_unsupported_card_keeps_cuda_s_words(monkeypatch: pytest.MonkeyPatch):
    words = "CUDA error: no kernel image is available for execution on the device\nCompile with `TORCH_USE_CUDA_DSA`"

    found = play(monkeypatch, devices=[Device(0, UUID, (7, 0))], create_context=RuntimeError(words))

    assert found.value("arch_supported") is False
    assert found.value("context") is False
    assert "no kernel image is available" in found.one("context").note
    assert "TORCH_USE_CUDA_DSA" not in found.one("context").note
    assert found.all("known_answer") == []


def test_a_gpu_that_the_framework_does_not_see_is_unknown_whatever_another_framework_says_of_it(
    monkeypatch: pytest.MonkeyPatch,
):
    found = play(monkeypatch, f"{UUID}=9.0 GPU-hidden=9.0")

    (hidden,) = [one for one in found.all("context") if one.subject == "GPU-hidden"]
    assert (hidden.absence, hidden.labels["framework"]) == (UNKNOWN, "torch")
    assert "does not see this GPU" in hidden.note


def test_a_wrong_product_is_false_and_shown(monkeypatch: pytest.MonkeyPatch):
    found = play(monkeypatch, multiply=Product([[22.0, 28.0], [49.0, 65.0]], "cuda:0"))

    assert found.value("known_answer") is False
    assert "65.0" in found.one("known_answer").note


def test_a_product_from_the_cpu_is_no_answer_of_the_gpu(monkeypatch: pytest.MonkeyPatch):
    found = play(monkeypatch, multiply=Product(PRODUCT, "cpu"))

    assert found.one("known_answer").absence == UNKNOWN
    assert "ran on cpu" in found.one("known_answer").note


def test_a_multiplication_that_fails_is_unknown(monkeypatch: pytest.MonkeyPatch):
    found = play(monkeypatch, multiply=RuntimeError("CUBLAS_STATUS_NOT_INITIALIZED"))

    assert found.one("known_answer").absence == UNKNOWN
    assert "CUBLAS" in found.one("known_answer").note


def test_a_build_that_says_nothing_is_absent_and_not_supported(monkeypatch: pytest.MonkeyPatch):
    found = play(monkeypatch, cuda_build=Missing("CPU-only"), architectures=Missing("no list"))

    assert found.one("cuda_build").value is None
    assert found.one("arch_supported").absence == NOT_APPLICABLE


def test_a_card_of_unknown_capability_is_not_called_supported(monkeypatch: pytest.MonkeyPatch):
    assert play(monkeypatch, devices=[Device(0, UUID, None)]).one("arch_supported").absence == UNKNOWN


@pytest.mark.parametrize(
    ("capability", "architectures", "by"),
    [
        ((9, 0), ["sm_75", "sm_80", "sm_90"], "sm_90"),
        ((8, 9), ["sm_80", "sm_86", "sm_90"], "sm_80"),
        ((12, 1), ["sm_90", "sm_120"], "sm_120"),
        ((7, 0), ["sm_75", "sm_80"], ""),
        ((8, 0), ["sm_86"], ""),
        ((10, 3), ["sm_100"], "sm_100"),
        ((10, 3), ["sm_100f"], "sm_100f"),
        ((10, 3), ["sm_100a"], ""),
        ((10, 0), ["sm_100a"], "sm_100a"),
        ((12, 0), ["sm_90", "compute_90"], "compute_90"),
        ((8, 6), ["sm_90", "compute_90"], ""),
        ((9, 0), ["garbage", "sm_", "sm_9"], ""),
    ],
)
def test_machine_code_serves_its_major_and_ptx_whatever_is_newer(
    capability: tuple[int, int], architectures: Sequence[str], by: str
):
    supported, named = serves(capability, architectures)

    assert supported is bool(by)
    assert named.startswith(by)
