"""MNIST: the idx files, and what the workloads of both frameworks share of the training.

The idx form (http://yann.lecun.com/exdb/mnist/): a big-endian magic number, a big-endian size for each dimension,
then the bytes. Every image is seen at one of nine places, moved by -1, 0 or 1 pixels each way: without that the MLP
ends between 98.4 and 98.5 % (measured 2026-11-21: 98.48 and 98.42 after 15 epochs), with it at 98.8 %.
"""

from __future__ import annotations

import math
import statistics
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, List, Mapping, NamedTuple, Protocol, Tuple

from validators.schema import HOST, Record
from validators.workloads.cifar_terms import process_age_s, spread
from validators.workloads.results import Results

PARAMETERS = 669_706
"""Of the MLP: 784 x 512 + 512, 512 x 512 + 512, 512 x 10 + 10."""
TARGET = 0.985
SIDE, CLASSES = 28, 10
TRAIN = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
TEST = ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
WHOLE = {TRAIN[0]: 60_000, TEST[0]: 10_000}
OWN = {"mlp": (15, 512), "cnn": (10, 512)}
"""Model -> the most epochs, and images in a step. Adam's rate falls to 0 over so many epochs."""
RATE = {"mlp": 2e-3, "cnn": 2e-3}
SPEED_S, MOST_S = 1.0, 240.0
"""Seconds of measuring the speed after the training, and those after which no further epoch is begun."""


class Idx(NamedTuple):
    """n images of 28 x 28 bytes, and n labels."""

    images: bytes
    labels: bytes


def read(folder: str) -> Tuple[Idx, Idx]:
    """The 60,000 training and 10,000 test images. Raises RuntimeError for a file that is not what it must be."""
    return _pair(Path(folder), *TRAIN), _pair(Path(folder), *TEST)


def _pair(folder: Path, images: str, labels: str) -> Idx:
    count = WHOLE[images]
    pixels = _file(folder / images, (0x803, count, SIDE, SIDE))
    named = _file(folder / labels, (0x801, count))
    if max(named) >= CLASSES:
        raise RuntimeError(f"MNIST: {labels} has the label {max(named)}; labels are 0 to 9")
    return Idx(pixels, named)


def _file(path: Path, head: Tuple[int, ...]) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as problem:
        raise RuntimeError(f"MNIST: {path.name} cannot be read: {problem.strerror}") from None
    expected = 4 * len(head) + math.prod(head[1:])
    if data[:2] == b"\x1f\x8b":
        raise RuntimeError(f"MNIST: {path.name} is packed by gzip under a name without .gz: unpack it")
    if len(data) != expected:
        raise RuntimeError(f"MNIST: {path.name} has {len(data)} bytes, not {expected}: half copied or another form")
    found = struct.unpack(f">{len(head)}I", data[: 4 * len(head)])
    if found != head:
        raise RuntimeError(f"MNIST: {path.name} begins with {found}, not {head}: not the official idx file")
    return data[4 * len(head) :]


def synthetic(count: int) -> Idx:
    """Images that say nothing, for the speed alone."""
    labels = bytes(i % CLASSES for i in range(count))
    return Idx(bytes(i * 7 % 251 for i in range(SIDE * SIDE)) * count, labels)


@dataclass(frozen=True)
class Asked:
    """The parameters. `gpus`: 0 for a CPU run. `subset`: so many training images only, 0 for all; `mode`: Keras's."""

    subject: str
    data: str
    no_data: str
    gpus: int
    model: str
    epochs: int
    batch: int
    target: float
    subset: int
    seconds: float
    mode: str

    @classmethod
    def of(cls, params: Mapping[str, Any]) -> Asked:
        """From a workload's parameters; 0 means its own choice. Raises ValueError for one that makes no sense."""
        model = str(params.get("model", "mlp"))
        if model not in OWN:
            raise ValueError(f"no such model: {model}; there are {', '.join(OWN)}")
        epochs, batch = (int(params.get(name, 0)) for name in ("epochs", "batch"))
        asked = cls(
            subject=str(params.get("subject", HOST)),
            data=str(params.get("data", "")),
            no_data=str(params.get("no_data", "")) or "no MNIST on this host",
            gpus=int(params.get("gpus", 1)),
            model=model,
            epochs=epochs or OWN[model][0],
            batch=batch or OWN[model][1],
            target=float(params.get("target", 0.0)) or TARGET,
            subset=int(params.get("subset", 0)),
            seconds=float(params.get("seconds", 0.0)) or SPEED_S,
            mode=str(params.get("mode", "")),
        )
        if min(asked.epochs, asked.batch, asked.subset, asked.seconds) < 0 or not 0 < asked.target <= 1:
            raise ValueError("epochs, batch, subset and seconds are not negative, target is between 0 and 1")
        return asked

    def images(self) -> Tuple[Idx, Idx]:
        """What to train on and to test with. Raises RuntimeError for files that are not right."""
        train, test = read(self.data) if self.data else (synthetic(self.subset or 60_000), synthetic(1000))
        count = min(self.subset or len(train.labels), len(train.labels))
        return Idx(train.images[: count * SIDE * SIDE], train.labels[:count]), test


class Machine(Protocol):
    """A training of either framework."""

    def epoch(self, epochs: int) -> float:
        """Train for one of `epochs` epochs; seconds."""

    def accuracy(self) -> float:
        """Share of the test images named rightly."""

    def speeds(self, seconds: float) -> List[float]:
        """Images a second in each window, measured for about so many seconds."""


LEARNT = ("accuracy", "time_to_accuracy", "epochs", "seconds_per_epoch")
METRICS = (*LEARNT, "parameters", "images_per_second", "images_per_second_spread")


def results(asked: Asked, framework: str, emit: Callable[[Record], None], **labels: str) -> Results:
    """The sender, with the labels that all measurements of this check carry."""
    named = {"model": asked.model, "gpus": str(asked.gpus), "batch": str(asked.batch), **labels}
    return Results("mnist", asked.subject, emit, framework=framework, **named)


def train(found: Results, machine: Machine, asked: Asked) -> None:
    """Train until the target is reached or the epochs are over, send what came of it, then measure the speed."""
    if asked.data:
        _learn(found, machine, asked)
    else:
        for metric in LEARNT:
            found.not_applicable(metric, asked.no_data)
    found.progress("measuring images a second")
    speeds = machine.speeds(asked.seconds)
    found.value("images_per_second", statistics.median(speeds), f"{len(speeds)} windows")
    found.value("images_per_second_spread", spread(speeds), f"{len(speeds)} windows")


def _learn(found: Results, machine: Machine, asked: Asked) -> None:
    ready_s = process_age_s()
    each: List[float] = []
    took: List[float] = []
    while len(each) < asked.epochs and (not each or each[-1] < asked.target):
        took.append(machine.epoch(asked.epochs))
        each.append(machine.accuracy())
        found.progress(f"epoch {len(each)}: {each[-1]:.4f} of the test images", len(each) / asked.epochs)
        if process_age_s() - ready_s > MOST_S:
            break
    age_s = process_age_s()
    listed = ", ".join(f"{one:.4f}" for one in each)
    if each[-1] < asked.target and len(each) < asked.epochs:
        why = f"too slow: {len(each)} of {asked.epochs} epochs in {MOST_S:g} s; after each: {listed}"
        found.not_applicable("accuracy", why)
    else:
        found.value("accuracy", each[-1], f"of the official 10,000 test images after each epoch: {listed}")
    if each[-1] >= asked.target:
        note = f"to {asked.target:.3f}: {ready_s:.1f} s until the first step, {sum(took):.2f} s of training"
        found.value("time_to_accuracy", age_s, note)
    else:
        found.not_applicable("time_to_accuracy", f"{asked.target:.3f} was not reached: see accuracy")
    found.value("epochs", len(each))
    found.value("seconds_per_epoch", statistics.median(took), f"median of {len(took)}")


def moved(step: int) -> Tuple[int, int]:
    """How far the images of a step are moved, down and right: each of the nine places in turn."""
    return step % 3 - 1, step // 3 % 3 - 1
