"""CIFAR-10 in torch on real GPUs: to the accuracy, recorded as not recorded, in little memory, on all at once."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from provision.bundle import build_bundle
from tests.data import cifar10_folder
from tests.need import need
from validators.workloads import cifar_data, sizing
from validators.workloads.cifar_data import Images, Loader
from validators.workloads.cifar_optimizer import MUON
from validators.workloads.cifar_step import Trainer
from validators.workloads.cifar_train import train

GIB = 2**30


@pytest.fixture
def gpu() -> torch.device:
    need(torch.cuda.is_available(), "no GPU on this machine", installable=False)
    return torch.device("cuda", 0)


@pytest.fixture
def real(gpu: torch.device) -> tuple[Images, Images]:
    return cifar_data.read(str(cifar10_folder()), gpu)


@pytest.fixture
def capped(gpu: torch.device) -> Iterator[None]:
    """No more memory than a 4 GB card has free beside its desktop."""
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(min(1.0, 3.2 * GIB / torch.cuda.mem_get_info(gpu)[1]), gpu)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0, gpu)
    torch.cuda.empty_cache()


def ready(gpu: torch.device, **how: object) -> Trainer:
    trainer = Trainer(MUON, gpu, **how)  # type: ignore[arg-type]
    trainer.prepare()
    return trainer


def test_real_images_are_learnt_to_the_accuracy(gpu: torch.device, real: tuple[Images, Images]) -> None:
    trainer = ready(gpu)
    assert trainer.note == ""
    run = train(trainer, Loader(real[0], trainer.batch), real[1])
    assert run.accuracy > 0.93
    assert run.accuracies[-1] > run.accuracies[0]


def test_recorded_steps_learn_what_others_learn(gpu: torch.device, real: tuple[Images, Images]) -> None:
    losses = []
    for record in (True, False):
        trainer = ready(gpu, record=record)
        trainer.recipe = replace(MUON, epochs=4.0)  # beyond the third, from which on the whitening's bias rests
        losses.append(train(trainer, Loader(real[0], trainer.batch), None, seed=5).losses)
        del trainer
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_a_batch_in_parts_learns_as_well(gpu: torch.device, real: tuple[Images, Images]) -> None:
    trainer = Trainer(MUON, gpu)
    trainer.part = 500
    trainer.prepare()
    run = train(trainer, Loader(real[0], trainer.batch), real[1])
    assert trainer.part == 500
    assert run.accuracy > 0.93


@pytest.mark.usefixtures("capped")
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_card_with_4_gb_trains(gpu: torch.device, real: tuple[Images, Images], dtype: torch.dtype) -> None:
    loader = Loader(real[0], MUON.batch)
    trainer = ready(gpu, dtype=dtype)
    trainer.recipe = replace(MUON, epochs=1.0)
    run = train(trainer, loader, real[1])
    assert run.accuracy > 0.4
    assert trainer.part < MUON.batch or dtype is torch.float16


def test_no_room_at_all_is_a_memory_error(gpu: torch.device) -> None:
    torch.cuda.empty_cache()
    trainer = Trainer(MUON, gpu)
    room = torch.cuda.memory_reserved(gpu) + 24 * 2**20
    torch.cuda.set_per_process_memory_fraction(room / torch.cuda.mem_get_info(gpu)[1], gpu)
    try:
        with pytest.raises(MemoryError, match="out of memory on the GPU, even at"):
            trainer.prepare()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, gpu)
        torch.cuda.empty_cache()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_parts_are_chosen_from_the_memory_there_is(gpu: torch.device, dtype: torch.dtype) -> None:
    sizing.limit_memory(gpu, 4.0)
    try:
        trainer = Trainer(MUON, gpu, dtype=dtype)
        chosen = trainer.part
        torch.cuda.reset_peak_memory_stats(gpu)
        trainer.prepare()
        assert trainer.part == chosen < MUON.batch  # the choice was right at once
        assert torch.cuda.max_memory_reserved(gpu) <= 4 * GIB
    finally:
        sizing._caps.clear()
        torch.cuda.set_per_process_memory_fraction(1.0, gpu)
        torch.cuda.empty_cache()


def test_the_check_trains_on_every_gpu_and_on_all(gpu: torch.device, tmp_path: Path) -> None:
    bundle = tmp_path / "validators.pyz"
    bundle.write_bytes(build_bundle().data)
    argv = [sys.executable, "-I", str(bundle), "run", "cifar", "--json", "--param", "cifar.frameworks=torch"]
    argv += ["--share", "--data", f"cifar10={cifar10_folder()}"]  # share: this very process is on the GPU, too
    ran = subprocess.run(argv, capture_output=True, timeout=300, check=False)
    records = [json.loads(line) for line in ran.stdout.splitlines()]
    ends = {one["subject"]: one["status"] for one in records if one["type"] == "outcome"}
    count = torch.cuda.device_count()
    assert set(ends.values()) == {"ran"}, ran.stderr[-2000:]
    assert len(ends) == count + 1
    found = [one for one in records if one["type"] == "measurement" and one["value"] is not None]
    speeds = {one["labels"]["gpus"] for one in found if one["metric"] == "images_per_second"}
    assert speeds == ({"1"} if count == 1 else {"1", str(count)})
    accuracies = [one["value"] for one in found if one["metric"] == "accuracy"]
    assert len(accuracies) == count + (count > 1)
    assert min(accuracies) > 0.93
    assert {"time_to_accuracy", "utilisation"} <= {one["metric"] for one in found}
