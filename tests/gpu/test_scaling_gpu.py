"""Scaling on real GPUs: over NCCL the ranks agree, the parts of a step add up, and a card too small is told."""

from __future__ import annotations

import os
import sys

import pytest
import torch

from tests.need import need
from validators import check
from validators.probes import ranks
from validators.schema import HOST, RAN, SKIPPED, CheckRequest, Measurement, Outcome, Plan, Record, Scalar
from validators.workloads import scaling_models, scaling_torch


@pytest.fixture
def gpu() -> torch.device:
    need(torch.cuda.is_available(), "no GPU on this machine", installable=False)
    return torch.device("cuda", 0)


def world(count: int, **params: Scalar) -> list[Record]:
    """One world of the workload on the first GPUs."""
    plan = Plan((CheckRequest("scaling", 120.0),), 120.0)
    records: list[Record] = []
    context = check.Context(check.load("scaling").info, plan.checks[0], plan, records.append)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    gpus = visible.split(",")[:count] if visible else [str(i) for i in range(count)]
    every: dict[str, Scalar] = {"device": "gpu", "seconds": 0.2, "timeout_s": 60.0, **params}
    ranks.run_ranks(context, sys.executable, "scaling_torch", every, gpus=gpus, timeout_s=120.0)
    return records


def values(records: list[Record], metric: str, **labels: str) -> list[Measurement]:
    return [
        one
        for one in records
        if isinstance(one, Measurement) and one.metric == metric and labels.items() <= one.labels.items()
    ]


@pytest.mark.parametrize("name", sorted(scaling_models.MODELS))
def test_a_step_on_the_gpu_learns_and_repeats_from_the_same_start(gpu: torch.device, name: str) -> None:
    trainer = scaling_models.Trainer(name, gpu, rate=0.01)
    data = scaling_models.Batches(name, 64, 0, gpu)
    losses = [float(trainer.step(*data.take(0, 64))) for _ in range(10)]
    assert losses[-1] < losses[0]
    trainer.reset()
    assert float(trainer.step(*data.take(0, 64))) == pytest.approx(losses[0], rel=0.02)


def test_one_gpu_gives_a_rate_and_its_spread(gpu: torch.device) -> None:
    records = world(1, models="vgg19_bn", vgg19_bn="256", global_batch=256)
    for mode in ("weak", "strong"):
        (rate,) = values(records, "images_per_second", mode=mode)
        assert float(str(rate.value)) > 0
    assert not values(records, "time_communicating")
    (launching,) = values(records, "time_launching", mode="weak")
    assert float(str(launching.value)) > 0


def test_two_gpus_agree_and_do_what_one_would(gpu: torch.device) -> None:
    need(torch.cuda.device_count() > 1, "one GPU on this machine", installable=False)
    records = world(2, vgg19_bn="256,64", mnist_cnn="256", global_batch=256)
    agree = values(records, "ranks_agree")
    assert len(agree) == 5  # weak 256, 64 and strong 128 a GPU; weak 256 and strong 128
    assert all(one.value is True for one in agree)
    for part in values(records, "time_computing"):
        (waiting,) = values(records, "time_waiting", **part.labels)
        (communicating,) = values(records, "time_communicating", **part.labels)
        whole = sum(float(str(one.value)) for one in (part, waiting, communicating))
        assert whole == pytest.approx(1.0)
    (loss,), (update,) = values(records, "loss_deviation"), values(records, "update_deviation")
    assert float(str(loss.value)) < 1e-3
    assert float(str(update.value)) < 1e-2


def test_a_batch_beyond_the_memory_gives_way_to_one_that_fits(
    gpu: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    total = torch.cuda.get_device_properties(gpu).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, 2**30 / total), gpu)  # 1 GiB: less than a small card's
    records: list[Record] = []
    params: dict[str, Scalar] = {"seconds": 0.1, "models": "vgg19_bn", "vgg19_bn": "4096,64"}
    try:
        scaling_torch.main(params, records.append)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, gpu)
    (large,) = values(records, "images_per_second", batch="4096")
    assert "do not fit" in large.note
    (small,) = values(records, "images_per_second", batch="64")
    assert float(str(small.value)) > 0


def test_the_check_runs_on_all_gpus_and_is_skipped_on_one(gpu: torch.device) -> None:
    # share: this very process may hold a GPU since the tests before
    requests = (CheckRequest("scaling", 280.0, {"seconds": 0.2, "frameworks": "torch"}),)
    plan = Plan(requests, 300.0, {"torch": sys.executable}, share=True)
    records: list[Record] = []
    context = check.Context(check.load("scaling").info, plan.checks[0], plan, records.append)
    with context.subject(HOST):
        check.load("scaling").run(context)
    ends = {one.subject: one for one in records if isinstance(one, Outcome)}
    if torch.cuda.device_count() == 1:
        assert ends[HOST].status == SKIPPED
        return
    assert {end.status for end in ends.values()} == {RAN}, ends[HOST].detail
    assert len(ends) == 1 + torch.cuda.device_count()
    found = values(records, "efficiency", model="vgg19_bn", mode="weak", gpus=str(torch.cuda.device_count()))
    assert found
    assert all(float(str(one.value)) > 0 for one in found)
    assert {one.labels["batch"] for one in values(records, "limited_by", mode="weak")} >= {"4096", "256"}
    clocks = values(records, "sm_clock_under_load")
    assert {one.subject for one in clocks} == set(ends) - {HOST}
