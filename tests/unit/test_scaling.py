"""Scaling on the CPU with real torch over gloo and real TensorFlow; what fails is named, the rest stands."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.doubles import error, h200, result
from tests.need import need
from tests.unit.load_check import identity, judged, outcomes, run, uuids, values
from validators import check
from validators.checks._scaling import Cell, limited_by
from validators.checks.scaling import _Table
from validators.probes import pci, pythons, ranks, workload
from validators.probes.nvml import GPU_IS_LOST
from validators.schema import (
    ERROR,
    HOST,
    NOT_APPLICABLE,
    RAN,
    SKIPPED,
    UNKNOWN,
    CheckRequest,
    Measurement,
    Outcome,
    Plan,
    Progress,
    Record,
    Scalar,
    decode,
)

INFO = check.load("scaling").info
ROOT = Path(__file__).resolve().parents[2]


def plan(device: str = "gpu", **params: Scalar) -> Plan:
    requests = (CheckRequest("compute_capability", 30.0), CheckRequest("scaling", 300.0, params))
    named = {"torch": sys.executable, **({"tensorflow": sys.executable} if device == "cpu" else {})}
    return Plan(requests, 330.0, named, device)


def number(records: list[Record], metric: str, **labels: str) -> float:
    (one,) = values(records, metric, **labels)
    return float(str(one.value))


def efficiencies(records: list[Record], **labels: str) -> list[Measurement]:
    """Those that were measured."""
    return [one for one in values(records, "efficiency", **labels) if one.value is not None]


@pytest.fixture(scope="module")
def on_the_cpu() -> list[Record]:
    """The check itself on one and two ranks."""
    return run(plan("cpu", frameworks="torch", seconds=0.05))


def test_two_ranks_on_the_cpu_are_measured_and_agree(on_the_cpu: list[Record]) -> None:
    assert outcomes(on_the_cpu)[HOST].status == RAN, outcomes(on_the_cpu)[HOST].detail
    for mode in ("weak", "strong"):
        where = {"framework": "torch", "model": "mnist_cnn", "mode": mode, "batch": "16"}
        one = number(on_the_cpu, "images_per_second", gpus="1", **where)
        two = number(on_the_cpu, "images_per_second", gpus="2", **where)
        assert number(on_the_cpu, "speedup", gpus="2", **where) == pytest.approx(two / one)
        assert [one.value for one in values(on_the_cpu, "ranks_agree", gpus="2", **where)] == [True]
        parts = [number(on_the_cpu, f"time_{part}", gpus="2", **where) for part in ("computing", "waiting")]
        parts.append(number(on_the_cpu, "time_communicating", gpus="2", **where))
        assert sum(parts) == pytest.approx(1.0)
        assert all(0 <= part <= 1 for part in parts)
        assert number(on_the_cpu, "all_reduce_alone", gpus="2", **where) > 0
    assert number(on_the_cpu, "update_deviation", gpus="2") < 1e-4
    assert number(on_the_cpu, "loss_deviation", gpus="2") < 1e-5


def test_a_cpu_run_is_judged_without_error_and_not_by_its_efficiency(on_the_cpu: list[Record]) -> None:
    verdicts = judged([*identity(()), *on_the_cpu], plan("cpu"))
    assert {one.metric for one in verdicts if one.status == "PASS"} == {
        "ranks_agree", "loss_deviation", "update_deviation",
    }  # fmt: skip
    assert {one.status for one in verdicts} == {"PASS", "SKIP"}


FAULTS = """
import sys
import torch
import torch.distributed as dist
from validators.schema import encode
from validators.workloads import scaling_models, scaling_torch
from validators.workloads.results import Results

joined = scaling_models.Trainer.join

def summed(state, bucket):
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    return work.get_future().then(lambda done: done.value()[0])

def alone(state, bucket):
    future = torch.futures.Future()
    future.set_result(bucket.buffer())
    return future

def emit(record):
    if world.rank == 0:
        sys.stdout.write(encode(record).decode())
        sys.stdout.flush()

world = scaling_torch.World(60.0, False)
for hook in (summed, alone):
    def join(self):
        joined(self)
        self.net.register_comm_hook(None, hook)

    scaling_models.Trainer.join = join
    results = Results("scaling", "host", emit, fault=hook.__name__)
    scaling_torch.measure_model(world, "mnist_cnn", {"seconds": 0.01, "mnist_cnn": "4"}, results)
    for metric, value, note in scaling_torch.parity(world.rank, world.size, world.device):
        results.value(metric, value, note)
world.end()
"""


def test_a_reduction_that_is_fast_and_wrong_is_found() -> None:
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(ranks.free_port()),
              "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(ROOT)}  # fmt: skip
    started = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", FAULTS],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
        )
        for rank in (0, 1)
    ]
    said = [process.communicate(timeout=200)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0]
    records: list[Record] = [decode(line + b"\n") for line in said[0].splitlines()]
    for fault, agree in (("summed", True), ("alone", False)):
        assert [one.value for one in values(records, "ranks_agree", fault=fault)] == [agree]
        assert number(records, "update_deviation", fault=fault) > 0.1
    verdicts = judged([*identity(()), *records, Outcome("scaling", HOST, RAN, "", 1.0)], plan("cpu"))
    assert {one.metric for one in verdicts if one.status == "FAIL"} >= {"update_deviation", "ranks_agree"}


def test_a_world_that_does_not_answer_is_ended_at_its_deadline() -> None:
    records = run(plan("cpu", frameworks="torch", counts="1", world_timeout_s=0.5))
    end = outcomes(records)[HOST]
    assert end.status == ERROR
    assert "rank 0: workload scaling_torch timed out after 0.5 s" in end.detail


def test_mirrored_strategy_on_two_devices_of_the_cpu() -> None:
    need(importlib.util.find_spec("tensorflow") is not None, "no tensorflow in this Python")
    records = run(plan("cpu", frameworks="tensorflow", keras_cnn="8", seconds=0.05))
    assert outcomes(records)[HOST].status == RAN, outcomes(records)[HOST].detail
    for mode in ("weak", "strong"):
        where = {"framework": "tensorflow", "model": "keras_cnn", "mode": mode, "batch": "8", "gpus": "2"}
        assert number(records, "images_per_second", **where) > 0
        assert number(records, "speedup", **where) > 0
        assert 0 <= number(records, "time_communicating", **where) <= 1
    assert [one.value for one in values(records, "ranks_agree", framework="tensorflow")] == [True]


@pytest.fixture
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A host with the four recorded H200s, and a torch found on it."""

    def lay(faults: Mapping[str, Any], gpus: int = 4) -> None:
        monkeypatch.setitem(sys.modules, "pynvml", h200(gpus, dict(faults)))

    monkeypatch.setattr(pci, "nvidia_devices", lambda _files: None)
    python = {"torch": sys.executable}
    monkeypatch.setattr(pythons, "find_python", lambda _plan, framework: python.get(framework))
    lay({})
    return lay


def stand_in(fails: Callable[[tuple[str, ...]], str] = lambda _gpus: "") -> Callable[..., None]:
    """Worlds in which every GPU adds 0.9 of one."""

    def world(ctx: check.Context, _python: str, _name: str, _params: Any, *, gpus: tuple[str, ...], **_: Any) -> None:
        count = len(gpus)
        ctx.forward(Progress("scaling", HOST, "load", 0.0))
        labels = {"framework": "torch", "model": "vgg19_bn", "mode": "weak", "batch": "4096", "gpus": str(count)}
        problem = fails(gpus)
        if problem:
            raise RuntimeError(problem)
        if count > 1:
            for metric, share in (("time_computing", 0.9), ("time_communicating", 0.1), ("time_waiting", 0.0)):
                ctx.measure(metric, share, HOST, labels)
        ctx.measure("images_per_second", 1000.0 * (count * 0.9 if count > 1 else 1), HOST, labels)

    return world


@pytest.fixture
def no_load(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(ranks, "run_ranks", stand_in())
    yield


@pytest.mark.usefixtures("no_load")
def test_every_count_is_set_against_one_gpu_and_says_what_limits_it(four_gpus: Callable[..., None]) -> None:
    records = run(plan())
    assert outcomes(records)[HOST].status == RAN, outcomes(records)[HOST].detail
    assert [one.labels["gpus"] for one in efficiencies(records)] == ["2", "4"]
    for one in efficiencies(records):
        assert one.value == pytest.approx(0.9)
        assert one.note == "communication: 10% of the step is exchange of gradients not hidden"
    assert {outcomes(records)[uuid].status for uuid in uuids()} == {RAN}
    assert values(records, "images_per_second", framework="tensorflow")[0].absence == NOT_APPLICABLE


def test_what_fails_on_four_gpus_leaves_what_two_gave(
    monkeypatch: pytest.MonkeyPatch, four_gpus: Callable[..., None]
) -> None:
    world = stand_in(lambda gpus: "rank 3: NCCL error: unhandled cuda error" if len(gpus) == 4 else "")
    monkeypatch.setattr(ranks, "run_ranks", world)
    records = run(plan())
    assert number(records, "efficiency", gpus="2") == pytest.approx(0.9)
    (four,) = values(records, "images_per_second", gpus="4")
    assert four.absence == UNKNOWN
    assert "unhandled cuda error" in four.note
    ends = outcomes(records)
    assert ends[HOST].status == ERROR
    assert "torch on 4 GPUs: rank 3: NCCL error" in ends[HOST].detail
    assert [ends[uuid].status for uuid in uuids()] == [RAN, RAN, ERROR, ERROR]


def test_a_gpu_that_fell_off_is_left_out_and_the_counts_without_it_stand(
    monkeypatch: pytest.MonkeyPatch, four_gpus: Callable[..., None]
) -> None:
    gone = uuids()[1]
    four_gpus({"nvmlDeviceGetMemoryInfo(gpu1)": error(GPU_IS_LOST)})
    monkeypatch.setattr(ranks, "run_ranks", stand_in(lambda gpus: "rank 1: CUDA error" if gone in gpus else ""))
    records = run(plan())
    assert number(records, "efficiency", gpus="2") == pytest.approx(0.9)  # two others
    ends = outcomes(records)
    assert ends[gone].status == ERROR
    assert "fell off" in ends[gone].detail
    assert ends[uuids()[0]].status == RAN
    assert ends[uuids()[2]].status == RAN
    assert "3 of 4 GPUs are left" in values(records, "images_per_second", gpus="4")[0].note
    assert ends[HOST].status == ERROR


@pytest.mark.usefixtures("no_load")
def test_a_tensorflow_that_was_asked_for_and_is_not_there_is_an_error(four_gpus: Callable[..., None]) -> None:
    four_gpus({})
    for params in ({"frameworks": "torch,tensorflow"}, {"frameworks": "tensorflow"}):
        assert "no Python with tensorflow" in outcomes(run(plan(**params)))[HOST].detail
    missing = replace(plan("cpu", frameworks="tensorflow"), pythons={"tensorflow": "/bin/false"})
    assert outcomes(run(missing))[HOST].status == ERROR
    assert "/bin/false" in outcomes(run(missing))[HOST].detail


def test_a_batch_that_fits_two_gpus_and_not_four_is_not_judged_by_two(four_gpus: Callable[..., None]) -> None:
    labels = {"framework": "torch", "model": "vgg19_bn", "mode": "weak", "batch": "4096"}
    request = plan().checks[-1]
    records: list[Record] = []
    table = _Table(check.Context(INFO, request, plan(), records.append))
    for gpus, rate in (("1", 100.0), ("2", 195.0)):
        table.measure("images_per_second", rate, HOST, {**labels, "gpus": gpus})
        table.compare("torch", int(gpus))
    table.not_applicable("images_per_second", "4096 images a GPU do not fit", HOST, {**labels, "gpus": "4"})
    table.compare("torch", 4)
    (four,) = values(records, "efficiency", gpus="4")
    assert (four.absence, four.note) == (UNKNOWN, "4096 images a GPU do not fit")
    assert number(records, "efficiency", gpus="2") == pytest.approx(0.975)


def test_one_gpu_is_skipped_with_the_reason(four_gpus: Callable[..., None]) -> None:
    four_gpus({}, gpus=1)
    records = run(plan())
    assert {end.status for end in outcomes(records).values()} == {SKIPPED}
    assert "scaling needs two" in outcomes(records)[HOST].detail


@pytest.mark.usefixtures("no_load")
def test_an_unknown_framework_and_a_gpu_in_use_are_refused(
    monkeypatch: pytest.MonkeyPatch, four_gpus: Callable[..., None]
) -> None:
    assert "no such framework: 'mxnet'" in outcomes(run(plan(frameworks="mxnet")))[HOST].detail
    user = result([{"struct": {"pid": 4711, "usedGpuMemory": 1 << 30}}])
    four_gpus(
        {"nvmlDeviceGetComputeRunningProcesses(gpu3)": user, "nvmlSystemGetProcessName(4711)": result("/usr/bin/train")}
    )
    records = run(plan())
    assert "in use by process 4711" in outcomes(records)[uuids()[3]].detail
    assert [one.labels["gpus"] for one in efficiencies(records)] == ["2", "3"]


def test_tensorflow_that_crashes_leaves_what_torch_gave(
    monkeypatch: pytest.MonkeyPatch, four_gpus: Callable[..., None]
) -> None:
    def crash(*_: Any, **__: Any) -> None:
        raise RuntimeError("workload scaling_keras crashed: SIGSEGV")

    monkeypatch.setattr(ranks, "run_ranks", stand_in())
    monkeypatch.setattr(workload, "run_workload", crash)
    monkeypatch.setattr(pythons, "find_python", lambda _plan, _framework: sys.executable)
    records = run(plan())
    assert len(efficiencies(records, framework="torch")) == 2
    assert "tensorflow on 4 GPUs: workload scaling_keras crashed" in outcomes(records)[HOST].detail
    assert {outcomes(records)[uuid].status for uuid in uuids()} == {RAN}


def test_each_number_of_replicas_is_a_tensorflow_of_its_own(
    monkeypatch: pytest.MonkeyPatch, four_gpus: Callable[..., None]
) -> None:
    """In one process TensorFlow refuses a second number: CPU:1 is joining a group with size 4, but that has size 2."""
    asked = []

    def world(ctx: check.Context, *_: Any, gpus: tuple[str, ...], **__: Any) -> None:
        asked.append((_[-1]["replicas"], len(gpus)))
        labels = {"framework": "tensorflow", "model": "keras_cnn", "mode": "weak", "batch": "1024"}
        ctx.measure("images_per_second", 1000.0 * len(gpus), HOST, {**labels, "gpus": str(len(gpus))})

    monkeypatch.setattr(workload, "run_workload", world)
    monkeypatch.setattr(pythons, "find_python", lambda _plan, _framework: sys.executable)
    records = run(plan(frameworks="tensorflow"))
    assert asked == [(1, 1), (2, 2), (4, 4)]
    assert [one.value for one in efficiencies(records, framework="tensorflow") if one.value] == [1.0, 1.0]


WEAK = Cell("torch", "vgg19_bn", "weak", 4096, 4)


@pytest.mark.parametrize(
    ("cell", "found", "efficiency", "said"),
    [
        (WEAK, {"time_computing": 0.98, "time_communicating": 0.02}, 0.97, "nothing of weight"),
        (WEAK, {"time_computing": 0.7, "time_communicating": 0.3, "all_reduce_alone": 0.35}, 0.7, "communication: 30%"),
        (WEAK, {"time_computing": 0.7, "time_waiting": 0.2, "time_communicating": 0.1}, 0.7, "waiting: 20%"),
        (WEAK, {"time_computing": 0.98, "time_communicating": 0.02}, 0.7, "computing: each GPU is 28%"),
        (
            WEAK,
            {"time_computing": 0.7, "time_communicating": 0.3, "time_launching": 0.95},
            0.7,
            "small batch: launch overhead: the host needs 95%",
        ),
        (
            Cell("torch", "mnist_cnn", "strong", 4096, 4),
            {"time_computing": 0.95, "time_communicating": 0.05},
            0.4,
            "small batch: 1024 images a GPU",
        ),
        (WEAK, {"images_per_second": 1.0}, 0.5, "not known: 50% is lost"),
    ],
)
def test_the_rule_names_the_largest_part_of_the_loss(
    cell: Cell, found: dict[str, float], efficiency: float, said: str
) -> None:
    assert limited_by(cell, found, efficiency).startswith(said)


@pytest.mark.parametrize(
    ("batch", "mode", "efficiency", "expected"),
    [
        ("4096", "weak", 0.97, {"PASS"}),
        ("4096", "weak", 0.8, {"FAIL", "PASS"}),  # pays half, and is too low for H200s
        ("256", "weak", 0.75, {"PASS"}),
        ("256", "weak", 0.4, {"WARN"}),
        ("4096", "strong", 0.3, set()),
    ],
)
def test_the_default_criteria_judge_efficiency(batch: str, mode: str, efficiency: float, expected: set[str]) -> None:
    labels = {"framework": "torch", "model": "vgg19_bn", "mode": mode, "batch": batch, "gpus": "4"}
    note = "communication: 20% of the step"
    gpus = [f"GPU-{number}" for number in range(4)]
    records: list[Record] = [
        *identity(gpus),
        Measurement("scaling", HOST, "efficiency", efficiency, "ratio", labels, "", note),
        *(Outcome("scaling", subject, RAN, "", 50.0) for subject in (*gpus, HOST)),
    ]
    found = [one for one in judged(records, plan()) if one.metric == "efficiency" and one.measurement]
    assert {one.status for one in found} == expected
    assert all(note in one.reason for one in found if one.status in ("FAIL", "WARN"))
