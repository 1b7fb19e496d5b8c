"""The parts of the torch workload of `cifar`: images, loader, network, optimizer, training; on real images."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.data import cifar10_folder
from validators.workloads import cifar_data
from validators.workloads.cifar_data import Images, Loader, synthetic
from validators.workloads.cifar_net import Network
from validators.workloads.cifar_optimizer import MUON, SGD, Optimizer, Recipe, orthogonal
from validators.workloads.cifar_step import Trainer, precision
from validators.workloads.cifar_train import floor_of_loss, train, window_plan, windows

CPU = torch.device("cpu")
SMALL = replace(MUON, widths=(16, 32, 32), batch=100, epochs=3.0)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def real() -> tuple[Images, Images]:
    return cifar_data.read(str(cifar10_folder()), CPU)


def test_the_official_files_are_read_whole(real: tuple[Images, Images]) -> None:
    for images, each in zip(real, (5000, 1000), strict=True):
        assert images.pixels.shape == (10 * each, 32, 32, 3)
        assert images.pixels.is_contiguous()
        assert images.labels.bincount().tolist() == [each] * 10
    means = real[0].pixels[::5].double().mean((0, 1, 2))
    for found, published in zip(means.tolist(), (125.3, 123.0, 113.9), strict=True):  # red, green, blue
        assert found == pytest.approx(published, abs=1)


def lay(folder: Path, **sizes: int) -> None:
    """Files of zeros, of the right size where none is given."""
    for name in (*cifar_data.TRAIN_FILES, cifar_data.TEST_FILE):
        with (folder / name).open("wb") as file:
            file.truncate(sizes.get(name.removesuffix(".bin"), cifar_data.FILE_IMAGES * cifar_data.RECORD_BYTES))


def test_a_half_copied_file_is_named_with_its_size(tmp_path: Path) -> None:
    lay(tmp_path, data_batch_3=1_000_000)
    with pytest.raises(RuntimeError, match=r"data_batch_3\.bin has 1000000 bytes, not 30730000: half copied"):
        cifar_data.read(str(tmp_path), CPU)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    lay(tmp_path)
    (tmp_path / "test_batch.bin").unlink()
    with pytest.raises(RuntimeError, match=r"test_batch\.bin cannot be read: No such file"):
        cifar_data.read(str(tmp_path), CPU)


def test_a_label_that_is_none_is_refused(tmp_path: Path) -> None:
    lay(tmp_path)
    with (tmp_path / "data_batch_2.bin").open("r+b") as file:
        file.seek(5 * cifar_data.RECORD_BYTES)
        file.write(b"\x0a")
    with pytest.raises(RuntimeError, match=r"data_batch_2\.bin has the label 10"):
        cifar_data.read(str(tmp_path), CPU)


def test_padding_reflects() -> None:
    pixels = synthetic(3, CPU).pixels
    expected = F.pad(pixels.permute(0, 3, 1, 2).float(), (2, 2, 2, 2), mode="reflect").permute(0, 2, 3, 1)
    assert torch.equal(cifar_data.padded(pixels, 2).float(), expected)


def place(image: Tensor, whole: Tensor) -> set[tuple[int, int, int]]:
    """Where an image was cut from the padded one: (down, right, mirrored)."""
    wide = cifar_data.padded(whole[None], 2)[0]
    return {
        (down, right, mirrored)
        for mirrored, source in enumerate((wide, wide.flip(1)))
        for down in range(5)
        for right in range(5)
        if torch.equal(source[down : down + 32, right : right + 32], image)
    }


def test_an_epoch_is_every_image_once_moved_and_mirrored_every_other_time(real: tuple[Images, Images]) -> None:
    images = real[0].head(40)
    images = Images(images.pixels, torch.arange(40))  # labels that say which image it is
    loader = Loader(images, 10)
    mirrors, places = [], set()
    for _ in range(2):
        pixels, labels = loader.epoch()
        assert sorted(labels.flatten().tolist()) == list(range(40))
        found = {}
        for image, label in zip(pixels.flatten(0, 1), labels.flatten(), strict=True):
            at = place(image, images.pixels[label])
            assert at
            places |= {one[:2] for one in at}
            found[int(label)] = {one[2] for one in at}
        mirrors.append(found)
    assert len(places) > 15  # of 25
    turned = [mirrors[0][image] != mirrors[1][image] for image in range(40)]
    assert sum(turned) >= 39  # an image may be its own mirror image
    assert 8 < sum(one == {1} for one in mirrors[0].values()) < 32


def test_ranks_share_the_batches_of_one_process() -> None:
    images = Images(synthetic(48, CPU).pixels, torch.arange(48))
    whole, *shares = (Loader(images, 12, ranks, rank) for ranks, rank in ((1, 0), (2, 0), (2, 1)))
    pixels, labels = whole.epoch()
    parts = [one.epoch() for one in shares]
    assert torch.equal(torch.cat([one[1] for one in parts], 1), labels)
    assert torch.equal(torch.cat([one[0] for one in parts], 1), pixels)


def test_what_is_not_learnt_any_more_is_not_summed_over_the_ranks_again_and_again() -> None:
    trainer = Trainer(replace(SMALL, batch=20), CPU, ranks=2)
    trainer.network.whiten(synthetic(20, CPU))
    trainer.reduce = lambda gradient: gradient.mul_(2)  # a second rank with the same images
    images = synthetic(trainer.batch, CPU)
    row = torch.zeros_like(trainer.optimizer.row)
    trainer.step(images.pixels, images.labels, row, True)
    for _ in range(3):
        trainer.step(images.pixels, images.labels, row, False)
        *_, whitening_bias = trainer.network.of_vector(trainer.optimizer.vector_gradient, True)
        assert not whitening_bias.any()


def as_modules(network: Network) -> nn.Sequential:
    """The same network the usual way, with the same weights."""
    layers: list[nn.Module] = [nn.Conv2d(3, 24, 2), nn.GELU()]
    for index, (out, into) in enumerate(network.shapes):
        layers.append(nn.Conv2d(into, out, 3, padding=1, bias=False))
        layers += [nn.MaxPool2d(2)] if index % 2 == 0 else []
        layers += [nn.BatchNorm2d(out, momentum=0.4), nn.GELU()]
    net = nn.Sequential(
        *layers, nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(network.shapes[-1][0], 10, bias=False)
    )
    learnt = network.leaves(True)
    filters = [one for one in net if isinstance(one, nn.Conv2d)]
    norms = [one for one in net if isinstance(one, nn.BatchNorm2d)]
    with torch.no_grad():
        filters[0].weight.copy_(network.whitening)
        filters[0].bias.copy_(learnt[-1])  # type: ignore[union-attr]
        for conv, kernel in zip(filters[1:], learnt, strict=False):
            conv.weight.copy_(kernel)
        net[-1].weight.copy_(learnt[len(norms)])
        for norm, bias in zip(reversed(norms), learnt[len(norms) + 1 :], strict=False):
            norm.bias.copy_(bias)
    return net


@pytest.mark.parametrize("learn_whitening", [True, False])
def test_the_gradient_is_that_of_the_same_network_in_modules(learn_whitening: bool) -> None:
    trainer = Trainer(replace(SMALL, batch=20), CPU)
    network, images = trainer.network, synthetic(20, CPU)
    network.whiten(images)
    torch.manual_seed(1)
    with torch.no_grad():
        network.vector.normal_(std=0.1)
    network.publish()
    net = as_modules(network)
    trainer._pixels.copy_(images.pixels)
    trainer._labels.copy_(images.labels)
    trainer._compute(learn_whitening)
    values = (images.pixels.permute(0, 3, 1, 2).float() - torch.tensor((125.3, 123.0, 113.9)).view(1, 3, 1, 1)) / (
        torch.tensor((63.0, 62.1, 66.7)).view(1, 3, 1, 1)
    )
    F.cross_entropy(net(values) / 256, images.labels, label_smoothing=0.2, reduction="sum").backward()
    convs = [one.weight.grad for one in net if isinstance(one, nn.Conv2d)][1:]
    ours = network.of_filters(trainer.optimizer.filter_gradient)
    for found, expected in zip(ours, convs, strict=True):
        assert expected is not None
        torch.testing.assert_close(found, expected.permute(0, 2, 3, 1).flatten(1), rtol=1e-3, atol=1e-5)
    head, *rest = network.of_vector(trainer.optimizer.vector_gradient, True)
    norms = [one.bias.grad for one in net if isinstance(one, nn.BatchNorm2d)]
    bias = net[0].bias.grad if learn_whitening else torch.zeros(24)  # type: ignore[union-attr]
    for found, expected in zip((head, *rest), (net[-1].weight.grad, *reversed(norms), bias), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_a_batch_in_parts_adds_up_and_sees_every_image() -> None:
    trainer = Trainer(replace(SMALL, batch=40), CPU)
    images = synthetic(40, CPU)
    trainer.part = 20
    trainer.network.whiten(images)
    row = torch.zeros(2)
    trainer.step(images.pixels, images.labels, row, True)
    both, loss = trainer.optimizer.gradient.clone(), float(trainer.loss)
    halves, total = torch.zeros_like(both), 0.0
    for half in (slice(0, 20), slice(20, 40)):
        one = Trainer(replace(SMALL, batch=20), CPU)
        one.network.whiten(images)
        one.step(images.pixels[half], images.labels[half], row, True)
        halves += one.optimizer.gradient
        total += float(one.loss)
    torch.testing.assert_close(both, halves)
    assert loss == pytest.approx(total)


def test_whitened_patches_are_white(real: tuple[Images, Images]) -> None:
    network = Network((16, 32, 32), CPU, torch.float32)
    sample = real[0].head(2000)
    network.whiten(sample)
    found = F.conv2d(network.normalise(sample.pixels[:500]), network.whitening).transpose(0, 1).flatten(1)
    covariance = found[:12] @ found[:12].t() / found.shape[1]
    assert float((covariance - torch.diag(covariance.diagonal())).abs().max()) < 0.15
    assert 0.5 < float(covariance.diagonal().min()) <= float(covariance.diagonal().max()) < 1.5
    torch.testing.assert_close(found[12:], -found[:12])


def test_orthogonal_matrices_have_singular_values_near_one_and_zeros_stay() -> None:
    torch.manual_seed(0)
    matrices = torch.zeros(2, 32, 90)
    matrices[0] = torch.randn(32, 90)
    matrices[1, :16, :40] = torch.randn(16, 40)
    found = orthogonal(matrices, torch.float32)
    for part in (found[0], found[1, :16, :40]):
        values = torch.linalg.svdvals(part)
        assert 0.5 < float(values.min()) <= float(values.max()) < 1.3
    assert not found[1, 16:].any()
    assert not found[1, :, 40:].any()


def test_plain_momentum_is_torchs_own() -> None:
    recipe = replace(SGD, widths=(16, 32, 32))
    network = Network(recipe.widths, CPU, torch.float32)
    network.reset(3)
    optimizer = Optimizer(network, recipe)
    weights = nn.Parameter(network.filters.clone())
    decay = recipe.decay / recipe.filter_rate
    theirs = torch.optim.SGD([weights], recipe.filter_rate, 0.85, weight_decay=decay, nesterov=True)
    torch.manual_seed(0)
    optimizer.row.fill_(1.0)
    for _ in range(4):
        gradient = torch.randn_like(weights)
        optimizer.filter_gradient.copy_(gradient)
        optimizer.update()
        weights.grad = gradient
        theirs.step()
    torch.testing.assert_close(network.filters, weights.detach())
    torch.testing.assert_close(network.leaves(False)[0].permute(0, 2, 3, 1).flatten(1), network.filter_parts[0])


def test_rates_fall_to_zero_and_the_whitening_stops_learning() -> None:
    rows = replace(MUON, epochs=2.5, whitening_epochs=1.0).rates(10)
    assert rows.shape == (25, 2)
    assert rows[0].tolist() == [1.0, 1.0]
    assert not rows[10:, 0].any()
    assert 0 < float(rows[-1, 1]) < 0.05
    triangle = SGD.rates(48)[:, 1]
    assert float(triangle[0]) == pytest.approx(0.2)
    assert float(triangle.max()) == pytest.approx(1.0, abs=0.02)
    assert float(triangle[-1]) == pytest.approx(0.07, abs=0.01)


@pytest.fixture(scope="module")
def ready(real: tuple[Images, Images]) -> tuple[Trainer, Loader, Images]:
    trainer = Trainer(SMALL, CPU)
    trainer.prepare()
    return trainer, Loader(real[0].head(1500), trainer.batch), real[1].head(500)


def test_real_images_are_learnt(ready: tuple[Trainer, Loader, Images]) -> None:
    run = train(*ready, seed=1)
    assert run.steps == 45
    assert run.losses[0] > run.losses[1] > run.losses[2]
    assert run.accuracy > 0.2  # guessing: 0.1
    assert run.accuracies[-1] > run.accuracies[0]
    assert 0 < run.loader_s < run.training_s


def test_the_same_seed_gives_the_same_run_after_another(ready: tuple[Trainer, Loader, Images]) -> None:
    trainer, loader, _ = ready
    short = replace(SMALL, epochs=0.2)
    trainer.recipe = short
    try:
        losses = [train(trainer, loader, None, seed=seed).losses for seed in (1, 2, 1)]
    finally:
        trainer.recipe = SMALL
    assert losses[0] == pytest.approx(losses[2], rel=1e-5)
    assert losses[0] != losses[1]


def test_a_loss_that_is_no_number_is_an_error(
    ready: tuple[Trainer, Loader, Images], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = ready[0]
    monkeypatch.setattr(trainer, "step", lambda *_: trainer.loss.fill_(math.nan))
    with pytest.raises(RuntimeError, match="the loss is nan after epoch 1: this device computes wrongly"):
        train(*ready)


def test_a_loss_lower_than_any_can_be_is_an_error(
    ready: tuple[Trainer, Loader, Images], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = ready[0]
    monkeypatch.setattr(trainer, "step", lambda *_: trainer.loss.add_(0.5 * trainer.batch))
    with pytest.raises(RuntimeError, match=r"the loss is 0\.500 after epoch 1; the least that it can be is 0\.86"):
        train(*ready)


def test_a_network_that_learns_nothing_is_an_error(
    ready: tuple[Trainer, Loader, Images], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = ready[0]
    monkeypatch.setattr(trainer, "step", lambda *_: trainer.loss.add_(2.4 * trainer.batch))
    with pytest.raises(RuntimeError, match=r"nothing was learnt: the loss is 2\.400, that of guessing 2\.303"):
        train(*ready)


def test_the_least_loss_is_the_labels_entropy() -> None:
    labels = torch.full((10,), 0.02)
    labels[0] = 0.82
    assert floor_of_loss(0.2) == pytest.approx(float(F.cross_entropy(labels.log()[None], labels[None])))
    assert floor_of_loss(0.0) == pytest.approx(0.0)


def test_windows_are_whole_epochs_on_a_fast_card_and_single_steps_on_a_slow_one() -> None:
    assert window_plan(0.007, 25, 3.0) == (50, 9)
    assert window_plan(0.02, 25, 3.0) == (12, 12)
    assert window_plan(2.0, 25, 3.0) == (1, 3)


def test_windows_leave_the_weights_as_they_are(ready: tuple[Trainer, Loader, Images]) -> None:
    trainer, loader, _ = ready
    trainer.reset(0)
    trainer.step(*(one[0] for one in loader.epoch()), torch.zeros(2), False)  # holds the filters at their norm
    before = trainer.network.filters.clone()
    assert len(windows(trainer, loader, 2, 3)) == 3
    torch.testing.assert_close(trainer.network.filters, before)


def test_a_recipe_larger_than_the_images_is_refused() -> None:
    with pytest.raises(ValueError, match="a batch of 200 images from 100"):
        Loader(synthetic(100, CPU), 200)


def test_steps_that_cannot_be_recorded_run_as_they_are() -> None:
    trainer = Trainer(Recipe(widths=(8, 8, 8), batch=50), CPU)
    trainer.prepare()
    assert "not recorded" in trainer.note
    assert precision(CPU) is torch.float32
