"""Numbers whose sums are known to the last bit, so that every byte that crossed a link can be verified.

All-reduce: rank r holds base(i) * (r + 1), where base runs over 1 .. 127 and over again. The sum over n ranks is
base(i) * n(n+1)/2, and each further all-reduce of the result multiplies it by n: whole numbers, exact in float32 as
long as they stay under 2**24, or under its largest exponent where n is a power of two. A rank left out, taken twice or
put at another place (127 divides no block of a power of two) gives another number.
"""

from __future__ import annotations

import torch
from torch import Tensor

PERIOD = 127
BLOCK = PERIOD * 2**17
"""Elements worked on at a time (64 MiB): a multiple of PERIOD, so that every block has the same numbers."""
EXACT_BITS = 24
"""float32 holds every whole number up to 2**24."""
EXPONENT_BITS = 100
"""Its exponent goes on to 2**127: room for multiplying by a power of two."""


def total(ranks: int) -> int:
    """What `ranks` ranks sum to, in units of base(i)."""
    return ranks * (ranks + 1) // 2


def repeats(ranks: int, most: int) -> int:
    """How many in-place all-reduces may follow one another, with a result that is still exact."""
    highest, count = PERIOD * total(ranks), 1
    bits = EXPONENT_BITS if ranks & (ranks - 1) == 0 else EXACT_BITS
    while count < most and highest * ranks < 2**bits:
        highest, count = highest * ranks, count + 1
    return count


class Pattern:
    """base(i) on one device. `shift` moves the numbers along, so that yesterday's result is not today's."""

    def __init__(self, device: torch.device, elements: int) -> None:
        self._block = min(BLOCK, -(-elements // PERIOD) * PERIOD)
        steps = torch.arange(self._block + PERIOD, device=device, dtype=torch.int32)
        self._base = (steps % PERIOD + 1).to(torch.float32)

    def fill(self, target: Tensor, scale: int, shift: int) -> None:
        """target[i] = base(i + shift) * scale."""
        for start in range(0, target.numel(), self._block):
            part = target[start : start + self._block]
            torch.mul(self._numbers(part.numel(), shift), float(scale), out=part)

    def wrong(self, found: Tensor, scale: int, shift: int) -> int:
        """How many elements are not base(i + shift) * scale. Waits for the device."""
        count = torch.zeros((), device=found.device, dtype=torch.int64)
        for start in range(0, found.numel(), self._block):
            part = found[start : start + self._block]
            count += (part != self._numbers(part.numel(), shift) * float(scale)).sum()
        return int(count.item())

    def _numbers(self, elements: int, shift: int) -> Tensor:
        return self._base[shift % PERIOD :][:elements]
