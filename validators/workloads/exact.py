"""Products whose answer is known to the last bit.

The known answer is [[1, 2, 3], [4, 5, 6]] @ [[1, 2], [3, 4], [5, 6]] = [[22, 28], [49, 64]].

The exact-integer product has operands of random whole numbers in -m..m. It has one right answer, whatever the
order of summation, because every partial sum is a whole number that the accumulator holds exactly
(n m**2 <= 2**24 in float32, 2**53 in float64, 2**31 in int32; with m = 1 and n = 2048 even in the about 14 bits that
fp8 accumulates with on Hopper), and because no element is larger than the output's significand (2**8 for bf16, 2**11
for fp16). It runs twice: at n = 2048, where every element is compared with the answer that the CPU computed, in
float64, where it is exact too; and at the size of the timed products, so that every place of their answer is proven,
where each row's sums are compared modulo 2**64 (verify.whole_sums).

So a fault that hits one place of a product, and hits it each time, is found here however small it is.
"""

from __future__ import annotations

import ctypes
import hashlib
from typing import Dict, List, Tuple

import torch
from torch import Tensor

from validators.workloads import operands
from validators.workloads.kinds import Kind, tensor_float32
from validators.workloads.products import Pair
from validators.workloads.verify import whole_sums

SIZE, SIZE_CPU = 2048, 512
"""Side of the exact-integer product: 256 tiles of 128 x 128, more than any card has multiprocessors."""

HEADROOM = 7.0
"""The largest of 2**28 normal numbers is at 6.1 standard deviations: the answer's elements stay under this many."""

EIGHTH_BITS = 13
"""Whole numbers up to 2**13 are exact in the about 14 bits that fp8 accumulates with on Hopper."""

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


def magnitude_and_density(kind: Kind, terms: int) -> Tuple[int, float]:
    """How large whole numbers may be at so many terms, and what share of them may not be zero."""
    accumulator = {torch.float64: 53, torch.int32: 31}.get(kind.output, 24)
    m = max(1, min(kind.exact_magnitude, int((2**accumulator / terms) ** 0.5)))
    square = m * (m + 1) / 3  # the mean of a square, uniform over -m..m
    density = 2 ** _SIGNIFICAND[kind.output] / (HEADROOM * square * terms**0.5)
    if kind.name == "fp8":
        density = min(density, (2**EIGHTH_BITS / (2 * terms * square)) ** 0.5)
    return m, min(1.0, density)


def wrong_at_full_size(kind: Kind, n: int, device: torch.device, seed: int = 21) -> str:
    """The exact-integer product at this size: empty where every row is right, else what is wrong."""
    terms = n * kind.longer
    m, density = magnitude_and_density(kind, terms)
    length = operands.pool_length(terms)
    pool = operands.whole(length, seed, m, density).to(kind.operand)
    begin = operands.windows(n, terms, length, seed)
    left, right = (operands.Operand(pool, one, terms, device, kind.place) for one in begin)
    for name, operand in (("left", left), ("right", right)):
        rows = operand.wrong_rows()
        if rows:
            return f"{kind.name}: the {name} operand is wrong on the device in {len(rows)} rows from row {rows[0]}"
    out = kind.empty(n, n, device)
    factor = kind.right(right.matrix)
    tensor_float32(kind.tf32)
    try:
        kind.multiply(left.matrix, factor, out)
    finally:
        tensor_float32(False)
    finding = whole_sums(left.matrix, factor, out, seed)
    if not finding.wrong:
        return ""
    return f"{kind.name}: {finding.wrong} of {n} rows are wrong at n={n}, the first is row {finding.first_row}"


DIGEST_SIZE = 2048
"""Side of the product whose bits are compared between GPUs."""


def digest(kind: Kind, device: torch.device, n: int = DIGEST_SIZE) -> str:
    """BLAKE2b-128 of the bits of one product of fixed normal operands: equal on like GPUs under the same torch."""
    tensor_float32(kind.tf32)
    try:
        pair = Pair(kind, n, device, seed=3)
        pair.multiply(0)
        product = pair.out.cpu().contiguous()
    finally:
        tensor_float32(False)
    buffer = (ctypes.c_ubyte * (product.numel() * product.element_size())).from_address(product.data_ptr())
    return hashlib.blake2b(buffer, digest_size=16).hexdigest()


def cublas(maps: str = "/proc/self/maps") -> str:
    """The version of the cuBLAS that this process has loaded, which the bits depend on; empty where it doesn't tell."""
    try:
        with open(maps, encoding="utf-8", errors="replace") as lines:
            path = next(line.split(maxsplit=5)[-1].strip() for line in lines if "libcublasLt.so" in line)
        version = ctypes.CDLL(path).cublasLtGetVersion  # size_t cublasLtGetVersion(void), cuBLAS documentation
        version.restype = ctypes.c_size_t
        return str(version())
    except (OSError, StopIteration, AttributeError):
        return ""
