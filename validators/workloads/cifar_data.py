"""CIFAR-10 as tensors: the official binary files, stand-ins for them, and the batches of an epoch.

A record of the binary form is one label byte and 3 x 32 x 32 pixels, red, green, blue planes, row by row
(https://www.cs.toronto.edu/~kriz/cifar.html). Five files hold 10,000 training images each, a sixth the test images.
Pixels stay bytes until the network reads them: 389 MB on the device for all training images, padded and mirrored.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Tuple

import torch
from torch import Tensor

SIDE, CLASSES = 32, 10
RECORD_BYTES = 1 + 3 * SIDE * SIDE
FILE_IMAGES = 10_000
TRAIN_FILES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
TEST_FILE = "test_batch.bin"
SAMPLE = 2000
"""Images, as they are, that the whitening is computed from."""
SHIFT = 2
"""Images are moved by up to so many pixels each way."""


@dataclass(frozen=True)
class Images:
    """uint8 images (n, 32, 32, 3) and their labels (n, int64), on one device."""

    pixels: Tensor
    labels: Tensor

    def head(self, count: int) -> Images:
        """The first `count` images."""
        return Images(self.pixels[:count], self.labels[:count])


def read(folder: str, device: torch.device) -> Tuple[Images, Images]:
    """The 50,000 training and 10,000 test images. Raises RuntimeError for a file that is not what it must be."""
    parts = [_file(Path(folder) / name, device) for name in TRAIN_FILES]
    train = Images(torch.cat([one.pixels for one in parts]), torch.cat([one.labels for one in parts]))
    return train, _file(Path(folder) / TEST_FILE, device)


def _file(path: Path, device: torch.device) -> Images:
    expected = FILE_IMAGES * RECORD_BYTES
    data = bytearray(expected)
    try:
        size = path.stat().st_size
        with path.open("rb", buffering=0) as file:
            if size == expected:
                size = file.readinto(data) or 0
    except OSError as problem:
        raise RuntimeError(f"CIFAR-10: {path.name} cannot be read: {problem.strerror}") from None
    if size != expected:
        raise RuntimeError(f"CIFAR-10: {path.name} has {size} bytes, not {expected}: half copied, or another form")
    records = torch.frombuffer(data, dtype=torch.uint8).view(FILE_IMAGES, RECORD_BYTES)
    labels = records[:, 0].to(torch.int64)
    if int(labels.max()) >= CLASSES:
        raise RuntimeError(f"CIFAR-10: {path.name} has the label {int(labels.max())}; labels are 0 to 9")
    pixels = records.to(device)[:, 1:].view(-1, 3, SIDE, SIDE)
    return Images(pixels.permute(0, 2, 3, 1).contiguous(), labels.to(device))


def synthetic(count: int, device: torch.device, seed: int = 0) -> Images:
    """Random images with random labels: as fast to train on as real ones, and nothing to learn."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (64, SIDE, SIDE, 3), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, CLASSES, (count,), generator=generator)
    return Images(pixels.to(device).repeat(-(-count // 64), 1, 1, 1)[:count].contiguous(), labels.to(device))


def padded(pixels: Tensor, by: int) -> Tensor:
    """Images (n, h, w, 3) with `by` pixels reflected at each edge."""
    height, width = pixels.shape[1:3]
    rows, columns = (_reflected(length, by).to(pixels.device) for length in (height, width))
    return pixels.index_select(1, rows).index_select(2, columns)


def _reflected(length: int, by: int) -> Tensor:
    inside = torch.arange(length)
    return torch.cat([inside[1 : by + 1].flip(0), inside, inside[-by - 1 : -1].flip(0)])


class Loader:
    """The training images on the device, and each epoch's choice of them: shuffled, moved, every other time mirrored.

    An image is mirrored in every second epoch, beginning with a random half of them in the first (alternating flip).
    `rank` of `ranks` takes its share of each batch; all draw from the same seed.
    """

    def __init__(self, images: Images, batch: int, ranks: int = 1, rank: int = 0) -> None:
        self.count, self.batch, self.ranks, self.rank = len(images.labels), batch, ranks, rank
        self.steps = self.count // batch
        if self.steps < 1:
            raise ValueError(f"a batch of {batch} images from {self.count}")
        self.labels = images.labels
        self.sample = Images(images.pixels[:SAMPLE].clone(), images.labels[:SAMPLE])
        side = SIDE + 2 * SHIFT
        both = torch.empty(2, self.count, side, side, 3, dtype=torch.uint8, device=images.pixels.device)
        both[0] = padded(images.pixels, SHIFT)
        both[1] = both[0].flip(2)
        row = side * 3
        self._windows = both.as_strided(
            (2 * self.count, 2 * SHIFT + 1, 2 * SHIFT + 1, SIDE, SIDE * 3), (side * row, row, 3, row, 1)
        )
        self.reset(0)

    def reset(self, seed: int) -> None:
        """Begin anew, with the epochs of this seed."""
        device = self.labels.device
        self._generator = torch.Generator(device).manual_seed(seed)
        self._epoch = 0
        self._mirrored = torch.randint(0, 2, (self.count,), generator=self._generator, device=device)

    def epoch(self) -> Tuple[Tensor, Tensor]:
        """The next epoch: images (steps, batch of this rank, 32, 32, 3) and labels (steps, batch of this rank)."""
        draw, device = self._generator, self.labels.device
        chosen = torch.randperm(self.count, generator=draw, device=device)[: self.steps * self.batch]
        down, right = torch.randint(0, 2 * SHIFT + 1, (2, len(chosen)), generator=draw, device=device)
        if self.ranks > 1:
            chosen, down, right = (self._share(one) for one in (chosen, down, right))
        mirror = (self._mirrored[chosen] + self._epoch) % 2
        self._epoch += 1
        pixels = self._windows[chosen + self.count * mirror, down, right]
        return pixels.view(self.steps, -1, SIDE, SIDE, 3), self.labels[chosen].view(self.steps, -1)

    def _share(self, values: Tensor) -> Tensor:
        return values.view(self.steps, self.ranks, -1)[:, self.rank].reshape(-1)
