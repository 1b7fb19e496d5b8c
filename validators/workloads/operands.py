"""Operands of known bits: made on the CPU, laid out on the device, and verified there against the CPU's checksums.

A product of a corrupted operand is right about the wrong numbers, so nothing that looks at the product alone can tell.
Each row of an operand is a window, of its own offset, into one pool of random numbers that the CPU made. The CPU's
prefix sums over the pool then give every row's checksum without the CPU ever holding the whole operand: the sum of the
elements' bits, and their sum weighted by position, both modulo 2**64. One wrong element is never missed, nor two that
changed places, nor two rows that did.

The numbers come from Python's own generator and integer arithmetic, so that every machine makes the same ones.
"""

from __future__ import annotations

import random
from functools import lru_cache
from statistics import NormalDist
from typing import Callable, Dict, List, Optional, Sequence

import torch
from torch import Tensor

POOL_ROWS, MOST = 64, 2**20
"""Numbers in the pool: so many rows of the operand, and at most so many."""

BLOCK_BYTES = 256 * 2**20
"""Temporary memory of one step."""

BITS: Dict[int, torch.dtype] = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Bytes of an element -> the integers that hold its bits."""


def pool_length(terms: int) -> int:
    """Numbers in the pool for operands with rows of so many terms."""
    return min(POOL_ROWS * terms, MOST)


@lru_cache(maxsize=8)
def draws(length: int, seed: int) -> Tensor:
    """Whole numbers, uniform over 0..65535, int64."""
    raw = bytearray(random.Random(seed).randbytes(2 * length))  # noqa: S311 - numbers to multiply
    return torch.frombuffer(raw, dtype=torch.int16).long() & 0xFFFF


@lru_cache(maxsize=1)
def _quantiles() -> Tensor:
    """65,536 values that are standard normal when drawn uniformly; float32, the largest is 4.3."""
    normal = NormalDist()
    return torch.tensor([normal.inv_cdf((i + 0.5) / 65536) for i in range(65536)], dtype=torch.float64).float()


def normal(length: int, seed: int, dtype: torch.dtype, *, tf32: bool = False) -> Tensor:
    """Standard normal numbers in this format, every bit of the significand in use. int8: uniform over -127..127."""
    drawn = draws(length, seed)
    if dtype is torch.int8:
        return (drawn % 255 - 127).to(torch.int8)
    values = _quantiles()[drawn]
    if dtype is torch.float64:  # a float32's 23 bits, and 29 random ones below them
        low = drawn.roll(1) << 13 | drawn.roll(2) >> 3
        return (values.double().view(torch.int64) | low).view(torch.float64)
    if tf32:  # keep the 10 mantissa bits that TF32 reads
        values = (values.view(torch.int32) & -(2**13)).view(torch.float32)
    return values.to(dtype)


def whole(length: int, seed: int, magnitude: int, density: float) -> Tensor:
    """Whole numbers, uniform over -magnitude..magnitude, of which all but `density` are made zero; int64."""
    drawn = draws(length, seed)
    wide = drawn << 16 | drawn.roll(1)
    return (wide % (2 * magnitude + 1) - magnitude) * (drawn.roll(2) < int(density * 65536))


@lru_cache(maxsize=8)
def windows(rows: int, columns: int, length: int, seed: int) -> List[List[int]]:
    """For each of two matrices, where in the pool its rows begin: no two rows begin at the same place."""
    dice = random.Random(seed + 1)  # noqa: S311 - places in a pool of numbers
    chosen = dice.sample(range(length - columns), 2 * rows)
    return [chosen[:rows], chosen[rows:]]


class Operand:
    """A matrix on the device whose every row's checksum the CPU knows. `place` gives the bits their number format."""

    def __init__(
        self,
        pool: Tensor,
        offsets: Sequence[int],
        columns: int,
        device: torch.device,
        place: Callable[[Tensor], Tensor],
    ) -> None:
        bits = pool.view(BITS[pool.element_size()])
        starts = torch.tensor(offsets, dtype=torch.int64)
        self._made = (bits, starts)
        self._expected: Optional[Tensor] = None
        self._bits = torch.empty(len(offsets), columns, dtype=bits.dtype, device=device)
        on_device, starts, places = bits.to(device), starts.to(device), torch.arange(columns, device=device)
        step = max(1, BLOCK_BYTES // (16 * columns))
        for row in range(0, len(offsets), step):
            self._bits[row : row + step] = on_device[starts[row : row + step, None] + places]
        self.matrix = place(self._bits)

    def wrong_rows(self) -> List[int]:
        """Rows that do not hold, bit for bit, what the CPU made."""
        now = self.matrix.view(self._bits.dtype)
        if self._expected is None:
            bits, starts = self._made
            self._expected = _window_sums(bits.long(), starts, now.shape[1]).to(now.device)
        weights = torch.arange(1, now.shape[1] + 1, device=now.device)
        step = max(1, BLOCK_BYTES // (32 * now.shape[1]))
        found: List[int] = []
        for row in range(0, now.shape[0], step):
            words = now[row : row + step].long()
            sums = torch.stack([words.sum(dim=1), (words * weights).sum(dim=1)], dim=1)
            bad = (sums != self._expected[row : row + step]).any(dim=1)
            found += [row + int(one) for one in bad.nonzero()[:, 0]]
        return found


def _window_sums(words: Tensor, starts: Tensor, columns: int) -> Tensor:
    """For each window of the pool: the sum of its words, and their sum times 1, 2, 3, ...; modulo 2**64."""
    zero = torch.zeros(1, dtype=torch.int64)
    plain = torch.cat([zero, words.cumsum(0)])
    weighted = torch.cat([zero, (words * torch.arange(len(words))).cumsum(0)])
    total = plain[starts + columns] - plain[starts]
    return torch.stack([total, weighted[starts + columns] - weighted[starts] - (starts - 1) * total], dim=1)
