"""Preflight on a real GPU, by the real bundle: every framework that this Python has, and what hides a GPU from it."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from provision.bundle import build_bundle
from tests.need import need
from tests.unit.host_tree import Measured
from validators.schema import RAN, CheckRequest, Outcome, Plan, Record, decode, encode_plan

HERE = [name for name in ("torch", "tensorflow", "jax") if importlib.util.find_spec(name)]


def run(folder: Path, names: list[str], **environ: str) -> tuple[Measured, list[Outcome]]:
    need(torch.cuda.is_available(), "no GPU on this machine", installable=False)
    bundle = folder / "validators.pyz"
    bundle.write_bytes(build_bundle().data)
    plan = Plan((CheckRequest("preflight", 400.0),), 430.0, dict.fromkeys(names, sys.executable), "gpu")
    argv = [sys.executable, "-I", "-S", str(bundle), "wire"]
    host = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, **environ})
    records: list[Record] = []
    with host:
        assert host.stdin and host.stdout
        host.stdin.write(encode_plan(plan))
        host.stdin.flush()
        for line in host.stdout:
            records.append(decode(line))
            if b'"type":"bye"' in line:
                break
        host.stdin.close()
    return Measured(records), [one for one in records if isinstance(one, Outcome)]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> tuple[Measured, list[Outcome]]:
    return run(tmp_path_factory.mktemp("bundle"), HERE)


@pytest.mark.parametrize("framework", HERE)
def test_every_gpu_computes_and_learns_where_it_was_asked_to(
    good: tuple[Measured, list[Outcome]], framework: str
) -> None:
    found, outcomes = good
    assert {one.status for one in outcomes} == {RAN}, outcomes
    count = torch.cuda.device_count()
    assert found.value("devices_seen", framework=framework) == count
    assert found.value("devices_missing", framework=framework) == 0
    for metric in ("context", "ran_on_gpu", "known_answer", "loss_falls"):
        values = found.all(metric, framework=framework)
        assert [one.value for one in values] == [True] * count, values
        assert len({one.subject for one in values}) == count
    for one in found.all("loss_falls", framework=framework):
        first, last = (float(word) for word in one.note.split(" in ")[0].split(" to "))
        assert (first, last) == (pytest.approx(0.0567, rel=0.02), pytest.approx(0.0262, rel=0.05))  # as on the CPU
    for metric in ("cudnn_version", "nccl_version"):
        assert found.one(metric, framework=framework).value, found.one(metric, framework=framework)


def test_torch_tells_the_cudnn_that_it_uses(good: tuple[Measured, list[Outcome]]) -> None:
    number = torch.backends.cudnn.version() or 0
    need(number >= 90000, "cuDNN 9", installable=False)

    expected = f"{number // 10000}.{number % 10000 // 100}.{number % 100}"
    assert good[0].value("cudnn_version", framework="torch") == expected


def test_a_hidden_gpu_is_missing_by_its_uuid(tmp_path: Path) -> None:
    need(torch.cuda.is_available() and torch.cuda.device_count() > 1, "two GPUs", installable=False)

    found, _ = run(tmp_path, ["torch"], CUDA_VISIBLE_DEVICES="1")

    hidden = f"GPU-{torch.cuda.get_device_properties(0).uuid}"
    assert found.value("devices_missing", framework="torch") == torch.cuda.device_count() - 1
    assert hidden in found.one("devices_missing", framework="torch").note


def test_every_gpu_hidden_is_a_fallback_to_the_cpu(tmp_path: Path) -> None:
    found, _ = run(tmp_path, HERE, CUDA_VISIBLE_DEVICES="")

    for framework in HERE:
        assert found.value("devices_seen", framework=framework) == 0
        assert found.value("ran_on_gpu", framework=framework) is False
        assert "CUDA_VISIBLE_DEVICES is set to ''" in found.one("devices_missing", framework=framework).note
