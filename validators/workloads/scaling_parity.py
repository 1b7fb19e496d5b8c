"""Is what several GPUs compute together the same as what one computes? A fast reduction that is wrong is found here.

A few steps of the MNIST CNN (no batch normalisation, no dropout) in float32: once on the whole batch by rank 0 alone,
once with each rank on its part. Averaged gradients of equal parts are the gradient of the whole, so parameters differ
by rounding only. What training added to the parameters is compared: a gradient that was summed and not averaged, left
out or taken twice changes that by tenths, rounding by 10**-6 to 10**-4 (measured on the CPU, 2 ranks: 5e-7).
"""

from __future__ import annotations

from typing import List, Tuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from validators.schema import Scalar
from validators.workloads.scaling_models import CLASSES, SEED, Trainer

STEPS = 8
PER_RANK = 32
RATE = 0.02

Finding = Tuple[str, Scalar, str]


def parity(rank: int, size: int, device: torch.device) -> List[Finding]:
    """(metric, value, note) of the comparison; the values are rank 0's, and all ranks take part."""
    images, labels = _whole(size, device)
    alone = Trainer("mnist_cnn", device, rate=RATE, whole=True)
    together = Trainer("mnist_cnn", device, rate=RATE, whole=True)
    together.join()
    part = slice(rank * PER_RANK, (rank + 1) * PER_RANK)
    for _ in range(STEPS):
        together.step(images[part], labels[part])
        if rank == 0:
            alone.step(images, labels)
    expected, found = _loss(alone.model, images, labels), _loss(together.model, images, labels)
    update, reached = alone.update(), together.update()
    dist.barrier(device_ids=[device.index] if device.type == "cuda" else None)
    if rank:
        return []
    note = f"{STEPS} steps of {size * PER_RANK} images; loss {expected:.6g} by one, {found:.6g} by {size} together"
    deviation = float((reached - update).norm() / update.norm())
    return [
        ("loss_deviation", abs(found - expected) / abs(expected), note),
        ("update_deviation", deviation, f"of what {STEPS} steps of {size * PER_RANK} images added to the parameters"),
    ]


def _whole(size: int, device: torch.device) -> Tuple[Tensor, Tensor]:
    """The whole batch, the same on every rank: drawn on the CPU, where a seed means the same everywhere."""
    generator = torch.Generator().manual_seed(SEED)
    images = torch.randn(size * PER_RANK, 1, 28, 28, generator=generator)
    labels = torch.randint(CLASSES, (size * PER_RANK,), generator=generator)
    return images.to(device).contiguous(memory_format=torch.channels_last), labels.to(device)


def _loss(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return float(nn.functional.cross_entropy(model(images), labels))
