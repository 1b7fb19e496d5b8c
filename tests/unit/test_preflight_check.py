"""The check `preflight` with real torch, and with Pythons that lack or spoil a framework."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from tests.need import need
from tests.unit import load_check
from tests.unit.host_tree import Measured, context
from tests.unit.load_check import fake_python
from validators.check import Skip, load
from validators.probes import gpu_contexts, pci, pythons
from validators.probes.gpu_contexts import Card
from validators.schema import ERROR, HOST, NOT_APPLICABLE, RAN, CheckRequest, Measurement, Outcome, Plan

UUID = "GPU-bc0980de-e367-052e-70cb-c28b0154c9a8"


def cpu_plan(python: str) -> Plan:
    return Plan((), 300.0, {"torch": python}, "cpu")


def run_on_cpu(python: str) -> tuple[Measured, str]:
    """What torch gives, and what stood in the way."""
    ctx, records = context("preflight", cpu_plan(python), frameworks="torch")
    with ctx.subject(HOST):
        load("preflight").run(ctx)
    (outcome,) = (one for one in records if isinstance(one, Outcome))
    of_torch = [one for one in records if isinstance(one, Measurement) and one.labels.get("framework") == "torch"]
    return Measured(of_torch), "" if outcome.status == RAN else outcome.detail


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

    found, problem = run_on_cpu(fake_python(tmp_path, torch=body))

    assert not problem
    assert found.value("imports") is False
    assert "libcudart.so.13: cannot open shared object file" in found.one("imports").note
    assert found.all("known_answer") == []


def test_a_torch_that_segfaults_is_an_error_that_names_the_signal(tmp_path: Path):
    _, problem = run_on_cpu(fake_python(tmp_path, torch="import ctypes; ctypes.string_at(0)"))

    assert "SIGSEGV" in problem or "signal 11" in problem


def test_without_a_gpu_it_is_skipped_unless_the_cpu_is_asked_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pci, "nvidia_devices", lambda files: [])
    ctx, _ = context("preflight")

    with pytest.raises(Skip, match="no NVIDIA GPU"):
        load("preflight").run(ctx)


def test_a_gpu_that_no_framework_reached_is_an_error_of_that_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(pci, "nvidia_devices", lambda files: None)
    monkeypatch.setattr(gpu_contexts, "cards", lambda: {UUID: Card(UUID, "9.0")})
    plan = Plan((), 300.0, {"torch": fake_python(tmp_path, torch="raise OSError('no libcuda')")})
    ctx, records = context("preflight", plan, frameworks="torch")

    load("preflight").run(ctx)

    (outcome,) = (one for one in records if isinstance(one, Outcome))
    assert (outcome.subject, outcome.status) == (UUID, ERROR)


def test_a_framework_that_nobody_named_is_found_and_one_that_is_not_there_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the Python that the inventory named for another; asked for by name its absence is a failure."""
    python = fake_python(tmp_path, torch="raise ImportError('no CUDA')", jax="raise ImportError('no libdevice')")
    only = [pythons.Candidate(python, "named")]
    monkeypatch.setattr(pythons, "candidates", lambda _plan, _framework: only)

    def run(frameworks: str) -> tuple[Measured, Outcome]:
        asked = CheckRequest("preflight", 60.0, {"frameworks": frameworks})
        records = load_check.run(Plan((asked,), 60.0, {"torch": python}, "cpu"))
        return Measured(records), load_check.outcomes(records)[HOST]

    found, end = run("")
    assert end.status == RAN, end.detail
    assert found.one("imports", framework="torch").value is False
    lying_about, absent = found.one("imports", framework="jax"), found.one("imports", framework="mxnet")
    assert (lying_about.absence, "no libdevice" in lying_about.note) == (NOT_APPLICABLE, True)
    assert (absent.absence, "bringup_mxnet_python" in absent.note) == (NOT_APPLICABLE, True)
    assert run("torch,jax")[0].one("imports", framework="jax").value is False
    assert run("torch")[0].one("imports", framework="jax").note == "left out by the parameter frameworks"
    assert run("torch,mxnet")[1].status == ERROR
    assert "no Python with mxnet" in run("torch,mxnet")[1].detail
    assert "no such framework: caffe" in run("caffe")[1].detail
