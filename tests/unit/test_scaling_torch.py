"""Scaling's torch program: batches that fit, the networks by name, digests, and what a step leaves behind."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.unit.load_check import values
from validators.schema import NOT_APPLICABLE, Record, Scalar
from validators.workloads import scaling_models, scaling_torch


def main_alone(monkeypatch: pytest.MonkeyPatch, fits: int, batches: str) -> list[Record]:
    """A world of one on the CPU, whose memory holds batches up to `fits`."""
    step = scaling_models.Trainer.step

    def limited(self: scaling_models.Trainer, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if len(images) > fits:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.")
        return step(self, images, labels)

    monkeypatch.setattr(scaling_models.Trainer, "step", limited)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    records: list[Record] = []
    params = {"device": "cpu", "seconds": 0.01, "models": "mnist_cnn", "mnist_cnn": batches}
    scaling_torch.main(params, records.append)
    return records


def test_a_batch_that_does_not_fit_gives_way_to_smaller_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    records = main_alone(monkeypatch, 4, "8,4,2")
    (eight,) = values(records, "images_per_second", batch="8")
    assert (eight.absence, "out of memory" in eight.note) == (NOT_APPLICABLE, True)
    assert {one.labels["batch"] for one in values(records, "images_per_second") if one.value} == {"4", "2"}


def test_where_no_batch_fits_that_is_an_error_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MemoryError, match="out of memory"):
        main_alone(monkeypatch, 1, "8,4")


def test_one_batch_a_gpu_can_stand_for_both_modes() -> None:
    params: dict[str, Scalar] = {"vgg19_bn": "4096,1024,256", "global_batch": 4096}
    assert scaling_torch.batches_of("vgg19_bn", params, 4) == {
        4096: [("weak", 4096)], 1024: [("weak", 1024), ("strong", 4096)], 256: [("weak", 256)],
    }  # fmt: skip
    assert list(scaling_torch.batches_of("vgg19_bn", params, 2)) == [4096, 2048, 1024, 256]
    assert set(scaling_torch.batches_of("vgg19_bn", params, 3)) == {4096, 1024, 256}  # thirds of 4096 are no batch


def test_the_networks_are_the_ones_that_are_named() -> None:
    sizes = {name: sum(p.numel() for p in made().parameters()) for name, (made, _) in scaling_models.MODELS.items()}
    assert sizes == {"vgg19_bn": 20_035_018, "mnist_cnn": 1_199_882}
    with pytest.raises(ValueError, match="no such model: resnet; there are vgg19_bn, mnist_cnn"):
        scaling_models.make("resnet", torch.device("cpu"))


def test_one_flipped_bit_in_one_parameter_changes_the_digest() -> None:
    model = scaling_models.make("mnist_cnn", torch.device("cpu"))
    before = int(scaling_models.digest(model))
    assert int(scaling_models.digest(scaling_models.make("mnist_cnn", torch.device("cpu")))) == before
    with torch.no_grad():
        list(model.parameters())[4].view(torch.int32)[100, 5] ^= 1
    assert int(scaling_models.digest(model)) != before


def test_a_folder_of_cifar_is_used_whole_or_not_at_all(tmp_path: Path) -> None:
    for i in range(1, 6):
        (tmp_path / f"data_batch_{i}.bin").write_bytes(bytes([i]) + bytes(range(256)) * 12 + bytes(3073 * 9999))
    device = torch.device("cpu")
    batches = scaling_models.Batches("vgg19_bn", 4, 1, device, str(tmp_path))
    images, labels = batches.take(0, 4)
    assert (batches.origin, images.shape, int(labels[0])) == ("CIFAR-10", (4, 3, 32, 32), 2)
    (tmp_path / "data_batch_5.bin").write_bytes(b"half")
    assert scaling_models.Batches("vgg19_bn", 4, 1, device, str(tmp_path)).origin == "random numbers"


def test_the_step_without_exchange_leaves_the_next_run_right(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = scaling_models.Trainer("mnist_cnn", torch.device("cpu"), rate=0.02)
    data = scaling_models.Batches("mnist_cnn", 4, 0, torch.device("cpu"))
    start = int(scaling_models.digest(trainer.model))
    trainer.step(*data.take(0, 4))
    assert int(scaling_models.digest(trainer.model)) != start
    trainer.reset()
    assert int(scaling_models.digest(trainer.model)) == start
    assert not trainer.optimizer.state
