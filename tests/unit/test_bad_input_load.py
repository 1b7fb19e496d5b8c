"""Bad input of the load checks that is no one check's alone: a GPU of eight that falls off, a full card, no engine."""

from __future__ import annotations

import copy
import importlib
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from provision.hosts import Host
from provision.remote import container
from provision.remote.start import not_started
from tests.doubles import GPU_IS_LOST, error, recording, result
from tests.doubles.replay_pynvml import Replay
from tests.unit.test_links_jobs import HANGS, Plant, end, plant, run
from validators import check
from validators.probes import kernel_log, nvml, pci, pythons, workload
from validators.schema import ERROR, HOST, RAN, CheckRequest, Measurement, Outcome, Plan, Progress, Record, Scalar
from validators.workloads import cifar_step, links_ranks, memory
from validators.workloads.cifar_optimizer import MUON

__all__ = ["plant"]  # a fixture
FALLS = 5
BUSY = {"nvmlDeviceGetUtilizationRates(*)": result({"struct": {"gpu": 99, "memory": 50}})}
LOST = "CUDA error: an uncorrectable error: the GPU has fallen off the bus"


def eight_gpus() -> Replay:
    """The recorded host with four H200s, once more for GPUs 4 to 7 (with UUIDs of their own)."""
    found = recording(4)
    calls = copy.deepcopy(found["calls"])
    for index in range(4):
        again = f"gpu{index + 4}"
        calls[f"nvmlDeviceGetHandleByIndex({index + 4})"] = {"handle": again}
        for name, answer in found["calls"].items():
            if f"gpu{index}" in name:
                calls[name.replace(f"gpu{index}", again)] = answer
        uuid = calls[f"nvmlDeviceGetUUID(gpu{index})"]["result"]
        calls[f"nvmlDeviceGetUUID({again})"] = result(uuid[:-1] + ("0" if uuid[-1] != "0" else "1"))
    calls["nvmlDeviceGetCount()"] = result(8)
    return Replay(importlib.import_module("pynvml"), {**found, "calls": calls}, dict(BUSY))


@pytest.mark.parametrize("name", ["matmul", "memory", "soak"])
def test_one_gpu_of_eight_that_falls_off_under_load_is_its_own_error_and_seven_results_stand(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    double = eight_gpus()
    monkeypatch.setitem(sys.modules, "pynvml", double)
    monkeypatch.setattr(pci, "nvidia_devices", lambda _files: None)
    monkeypatch.setattr(kernel_log, "read", lambda: kernel_log.KernelLog((), True, "kmsg"))
    monkeypatch.setattr(pythons, "find_python", lambda _plan, _framework: sys.executable)
    with nvml.session() as session:
        uuids = [gpu.uuid for gpu in session.gpus()[0]]
    assert len(set(uuids)) == 8
    gone = threading.Event()

    def fall_off(ctx: check.Context, _python: str, _name: str, params: Mapping[str, Scalar], **_: Any) -> None:
        ctx.forward(Progress(name, str(params["subject"]), "load", 0.0))
        if params["subject"] == uuids[FALLS]:
            double.faults = {f"nvmlDevice*(gpu{FALLS}*)": error(GPU_IS_LOST), **double.faults}
            gone.set()
            raise RuntimeError(f"workload {name} exited with status 1: {LOST}")
        assert gone.wait(20)
        threading.Event().wait(0.6)  # its trace goes on after the other fell off

    monkeypatch.setattr(workload, "run_workload", fall_off)
    asked = CheckRequest(name, 60.0, {"parallel": True} if name == "matmul" else {})
    records: list[Record] = []
    loaded = check.load(name)
    ctx = check.Context(loaded.info, asked, Plan((asked,), 60.0, {"torch": sys.executable}, "gpu"), records.append)
    with ctx.subject(HOST):
        loaded.run(ctx)

    ends = {one.subject: one for one in records if isinstance(one, Outcome)}
    assert {uuid: ends[uuid].status for uuid in uuids} == {
        uuid: ERROR if uuid == uuids[FALLS] else RAN for uuid in uuids
    }
    assert LOST in ends[uuids[FALLS]].detail
    assert not any(LOST in ends[uuid].detail for uuid in uuids if uuid != uuids[FALLS])
    clocks = {
        one.subject: one.value
        for one in records
        if isinstance(one, Measurement) and one.metric == "sm_clock_under_load"
    }
    assert all(clocks[uuid] for uuid in uuids if uuid != uuids[FALLS]), "the seven others are measured to the end"


@pytest.mark.parametrize(
    ("said", "raised", "words"),
    [
        (
            "CUDA error: out of memory",
            MemoryError,
            r"out of memory: \d+ MiB are free on the device, too little to test",
        ),
        ("CUDA error: GPU is lost", RuntimeError, "GPU is lost"),
    ],
)
def test_a_card_without_room_for_a_kernel_says_so_and_another_error_keeps_its_words(
    said: str, raised: type[Exception], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(_tile: object) -> None:
        raise RuntimeError(said)

    monkeypatch.setattr(memory, "rehearse", no_room)
    with pytest.raises(raised, match=words):
        memory.take(torch.device("cpu"), 1 << 20, 0.1)


def test_a_card_too_full_for_nccl_s_least_message_says_how_much_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (4 * 2**30, 4 * 2**30))
    assert links_ranks._room(gpu, 2**31) == 2**30, "a card of 4 GB reduces 1 GiB"
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (2**29, 4 * 2**30))
    with pytest.raises(MemoryError, match=r"0\.5 GiB of 4\.0 GiB were free, too little for messages of 64 MiB"):
        links_ranks._room(gpu, 2**31)


@pytest.mark.parametrize(("room", "part"), [(100, 100), (60, 50), (20, 0)])
def test_cifar_trains_in_smaller_parts_where_memory_runs_out(
    room: int, part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = cifar_step.Trainer(replace(MUON, widths=(8, 8, 8), batch=200), torch.device("cpu"))
    compute = trainer._compute

    def on_a_small_card(learn_whitening: bool) -> None:
        if trainer.part > room:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore")
        compute(learn_whitening)

    monkeypatch.setattr(trainer, "_compute", on_a_small_card)
    if part:
        trainer.prepare()
        assert (trainer.part, trainer.batch) == (part, 200)
    else:
        with pytest.raises(MemoryError, match=r"even at 50 images at a time: CUDA out of memory\. Tried .* 2 GiB"):
            trainer.prepare()


def test_an_all_reduce_that_hangs_ends_by_its_own_deadline_and_not_by_the_jobs(plant: Plant) -> None:
    plant(HANGS)
    detail = end(run(hang_s=2.0, job_s=60.0, alone_s=60.0)).detail
    assert "all-reduce of rank0 with rank1: " in detail
    assert "(last begun: pair 0-1)" in detail
    assert "timed out after" not in detail, "the words of the job's deadline"


IMAGE = "registry.example/torch:1"
NO_PYTHON = (
    "docker: Error response from daemon: failed to create task for container: OCI runtime create failed: runc create "
    'failed: unable to start container process: error during container init: exec: "python3": executable file not '
    "found in $PATH: unknown."
)

NO_PYTHON_IN_PODMAN = (
    "Error: crun: executable file `python3` not found in $PATH: No such file or directory: OCI runtime attempted to "
    "invoke a command that was not found"
)


def started(folder: Path, said: str = "") -> tuple[int, bytes]:
    """The command for a host's image, run here where only `folder` is on the PATH: exit status and stderr."""
    if said:
        engine = folder / "docker"
        engine.write_text(f"#!/bin/sh\necho '{said}' >&2\nexit 127\n")
        engine.chmod(0o755)
    argv = container.start(Host("box", "box", image=IMAGE), ["python3"], {})
    done = subprocess.run(
        ["/bin/sh", *argv[1:]], env={"PATH": str(folder)}, capture_output=True, timeout=20, check=False
    )
    return done.returncode, done.stderr


def test_a_host_without_docker_or_podman_says_so(tmp_path: Path) -> None:
    told = not_started(Host("box", "box", image=IMAGE), *started(tmp_path))
    assert told.message == "box: there is no docker and no podman on this host"
    assert "bringup provision" in told.hint


@pytest.mark.parametrize("words", [NO_PYTHON, NO_PYTHON_IN_PODMAN], ids=["runc", "crun"])
def test_an_image_without_python_is_named(tmp_path: Path, words: str) -> None:
    told = not_started(Host("box", "box", image=IMAGE), *started(tmp_path, words))
    assert told.message == f"box: the image {IMAGE} has no python3"
    assert "Python 3.9" in told.hint
