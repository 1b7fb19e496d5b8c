"""Products whose answer is known to the last bit.

The known answer is [[1, 2, 3], [4, 5, 6]] @ [[1, 2], [3, 4], [5, 6]] = [[22, 28], [49, 64]].

The exact-integer product has n x n operands of random whole numbers in -m..m. It has one right answer, whatever the
order of summation, because every partial sum is a whole number that the accumulator holds exactly
(n m**2 <= 2**24 in float32, 2**53 in float64, 2**31 in int32; with m = 1 and n = 2048 even in the about 14 bits that
fp8 accumulates with on Hopper), and because no element is larger than the output's significand (checked on the
answer: 2**8 for bf16, 2**11 for fp16). The answer is computed on the CPU in float64, where it is exact too.
"""

from __future__ import annotations

from typing import Dict, List, Tuple

import torch
from torch import Tensor

from validators.workloads.kinds import Kind, tensor_float32

SIZE, SIZE_CPU = 2048, 512
"""Side of the exact-integer product: 256 tiles of 128 x 128, more than any card has multiprocessors."""

_SIGNIFICAND = {
    torch.bfloat16: 8,
    torch.float16: 11,
    torch.float32: 24,
    torch.float64: 53,
    torch.int32: 31,
}


def takes_small(kind: Kind) -> bool:
    """Whether the known answer can be asked of it: fp8 and int8 take no matrix this small, TF32 is fp32 there."""
    return not (kind.transposed or kind.tf32)


def known_answer(kinds: List[Kind], device: torch.device) -> List[str]:
    """What is wrong with [[22, 28], [49, 64]], a sentence for each format that takes it and has it wrong."""
    wrong = []
    for kind in filter(takes_small, kinds):
        left = torch.tensor([[1, 2, 3], [4, 5, 6]], device=device, dtype=kind.operand)
        right = torch.tensor([[1, 2], [3, 4], [5, 6]], device=device, dtype=kind.operand)
        answer = torch.mm(left, right).tolist()
        if answer != [[22, 28], [49, 64]]:
            wrong.append(f"{kind.name} gives {answer}")
    return wrong


def bounds(kind: Kind, n: int) -> Tuple[int, int]:
    """The largest partial sum that can occur, and the largest one that is exact."""
    accumulator = {torch.float64: 53, torch.int32: 31}.get(kind.output, 24)
    return n * kind.exact_magnitude**2, 2**accumulator


def answer(kind: Kind, n: int, seed: int = 20) -> Tuple[Tensor, Tensor, Tensor]:
    """Operands and their product, whole numbers in float64 on the CPU. Raises ValueError where it would be inexact."""
    largest, exact = bounds(kind, n)
    if largest > exact:
        raise ValueError(f"{kind.name}: partial sums up to {largest} are not exact at n={n}")
    generator = torch.Generator().manual_seed(seed)
    m = kind.exact_magnitude
    left, right = (
        torch.randint(-m, m + 1, (n, n), generator=generator, dtype=torch.int64).double() for _ in ("left", "right")
    )
    product = left @ right
    if float(product.abs().max()) > 2 ** _SIGNIFICAND[kind.output]:
        raise ValueError(f"{kind.name}: an element of the answer does not fit its output at n={n}")
    return left, right, product


class ExactInteger:
    """Runs the exact-integer product of each format; formats with the same numbers share the answer."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._n = SIZE_CPU if device.type == "cpu" else SIZE
        self._answers: Dict[int, Tuple[Tensor, Tensor, Tensor]] = {}

    def wrong(self, kind: Kind) -> str:
        """Empty where every element is right, else what is wrong."""
        if kind.exact_magnitude not in self._answers:
            self._answers[kind.exact_magnitude] = answer(kind, self._n)
        left, right, expected = self._answers[kind.exact_magnitude]
        a = left.to(self._device, kind.operand)
        b = right.to(self._device, kind.operand)
        b = b.t().contiguous() if kind.transposed else b
        out = kind.empty(self._n, self._n, self._device)
        tensor_float32(kind.tf32)
        kind.multiply(a, kind.right(b), out)
        tensor_float32(False)
        return differences(kind, out.cpu().double(), expected)


def differences(kind: Kind, got: Tensor, expected: Tensor) -> str:
    """Where two matrices differ, or empty. The sign of a zero is no difference; a NaN is one."""
    bad = ~(got == expected)
    count = int(bad.sum())
    if not count:
        return ""
    row, column = (int(i) for i in bad.nonzero()[0])
    first = f"[{row}][{column}] is {float(got[row, column])}, not {float(expected[row, column])}"
    return f"{kind.name}: {count} of {bad.numel()} elements are wrong; {first}"
