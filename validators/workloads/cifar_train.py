"""Trains the network of cifar_net.py to the end of a recipe, and measures its speed in steady state."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Callable, Iterator, List, Optional, Tuple

import torch
from torch import Tensor

from validators.workloads.cifar_data import CLASSES, Images, Loader
from validators.workloads.cifar_optimizer import LOOK_AHEAD_EVERY
from validators.workloads.cifar_step import Trainer, synchronize

WINDOW_S = 0.25


@dataclass
class Run:
    """A training: seconds of the training alone, and of its loader; each epoch's mean loss and plain accuracy."""

    steps: int = 0
    training_s: float = 0.0
    loader_s: float = 0.0
    losses: List[float] = field(default_factory=list)
    accuracies: List[float] = field(default_factory=list)
    accuracy: float = 0.0
    evaluation_s: float = 0.0


def floor_of_loss(smoothing: float) -> float:
    """The least that a mean cross-entropy against smoothed labels can be: the entropy of those labels."""
    other = smoothing / CLASSES
    own = 1 - smoothing + other
    return -(own * math.log(own) + ((CLASSES - 1) * other * math.log(other) if other else 0.0))


def train(
    trainer: Trainer, loader: Loader, test: Optional[Images], *, seed: int = 0,
    share: Callable[[], None] = lambda: None, each_epoch: bool = True,
    told: Callable[[str, float], None] = lambda _text, _done: None,
) -> Run:  # fmt: skip
    """Train to the end of the recipe, then evaluate on `test` (None: this process trains and doesn't evaluate).

    `share` evens out batch norm's statistics over a job's processes before an evaluation. Raises RuntimeError for a
    loss that is no number, that is lower than any can be, or that did not fall below that of guessing.
    """
    recipe, run, device = trainer.recipe, Run(), trainer.device
    steps, rows = recipe.steps(loader.steps), recipe.rates(loader.steps).to(device)
    trainer.reset(seed)
    loader.reset(seed)
    synchronize(device)
    began = time.perf_counter()
    trainer.network.whiten(loader.sample)
    while run.steps < steps:
        loading = time.perf_counter()
        pixels, labels = loader.epoch()
        synchronize(device)
        run.loader_s += time.perf_counter() - loading
        before = run.steps
        for batch in range(min(loader.steps, steps - run.steps)):
            row = rows[run.steps]
            trainer.step(pixels[batch], labels[batch], row, run.steps < recipe.whitening_epochs * loader.steps)
            run.steps += 1
            if recipe.look_ahead and (run.steps % LOOK_AHEAD_EVERY == 0 or run.steps == steps):
                trainer.optimizer.look_ahead(1.0 if run.steps == steps else 0.95**5 * (run.steps / steps) ** 3)
        synchronize(device)
        run.training_s += time.perf_counter() - began
        _account(trainer, run, run.steps - before)
        share()
        if test is not None and each_epoch:
            run.accuracies.append(trainer.evaluate(test, thorough=False))
        told(f"load: epoch {len(run.losses)}, loss {run.losses[-1]:.3f}", run.steps / steps)
        synchronize(device)
        began = time.perf_counter()
    if run.losses[-1] >= math.log(CLASSES) and test is not None:
        raise RuntimeError(
            f"nothing was learnt: the loss is {run.losses[-1]:.3f}, that of guessing {math.log(CLASSES):.3f}"
        )
    if test is not None:
        began = time.perf_counter()
        run.accuracy = trainer.evaluate(test)
        run.evaluation_s = time.perf_counter() - began
    return run


def _account(trainer: Trainer, run: Run, steps: int) -> None:
    loss = float(trainer.loss) / (steps * trainer.batch)
    trainer.loss.zero_()
    run.losses.append(loss)
    if not math.isfinite(loss):
        raise RuntimeError(
            f"the loss is {loss} after epoch {len(run.losses)}: this device computes wrongly, or a program on it does; "
            "matmul tells which"
        )
    least = floor_of_loss(trainer.recipe.smoothing)
    if loss < 0.99 * least:
        raise RuntimeError(
            f"the loss is {loss:.3f} after epoch {len(run.losses)}; the least that it can be is {least:.3f}"
        )


def window_plan(step_s: float, per_epoch: int, seconds: float) -> Tuple[int, int]:
    """Steps of a window, and how many windows: WINDOW_S each, whole epochs where an epoch is not much longer."""
    size = max(1, round(WINDOW_S / step_s))
    if size > per_epoch // 2:
        size = -(-size // per_epoch) * per_epoch
    return size, max(3, round(seconds / (size * step_s)))


def windows(trainer: Trainer, loader: Loader, size: int, count: int) -> List[float]:
    """Images a second of this process in `count` windows of `size` training steps; the rates are zero meanwhile."""
    still, device = torch.zeros(2, device=trainer.device), trainer.device
    batches, speeds = _endless(loader), []
    for _ in range(count):
        synchronize(device)
        began = time.perf_counter()
        for _ in range(size):
            trainer.step(*next(batches), still, False)
        synchronize(device)
        speeds.append(size * trainer.batch / (time.perf_counter() - began))
    return speeds


def copy_s(trainer: Trainer, loader: Loader) -> float:
    """Seconds that copying an epoch's batches to where the network reads them takes."""
    still = torch.zeros(2, device=trainer.device)
    pixels, labels = loader.epoch()
    synchronize(trainer.device)
    began = time.perf_counter()
    for batch in range(loader.steps):
        trainer.copy_only(pixels[batch], labels[batch], still)
    synchronize(trainer.device)
    return time.perf_counter() - began


def _endless(loader: Loader) -> Iterator[Tuple[Tensor, Tensor]]:
    while True:
        pixels, labels = loader.epoch()
        for batch in range(loader.steps):
            yield pixels[batch], labels[batch]
