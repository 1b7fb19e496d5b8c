"""The number formats of the matmul workload: operands, product, tolerances, and which cards have them.

Operands are standard normal (int8: uniform over -127..127), because a GPU's power, and so its clock, depends on the
data: on one H200 8192 x 8192 bf16 products ran at 788 TFLOP/s on normal data and at 894 on zeros.
They are rounded to the format first, so that the reference arithmetic sees exactly what the product sees.

Tolerances, for products of standard normal operands over k terms; C's elements are of the order sqrt(k):
- output rounding: at most `roundoff` * |element|.
- float32 on plain units: k roundings of partial sums up to sqrt(k) give 0.3 k 2**-24 rms; 4 k 2**-24 is allowed
  (the largest of 10**8 elements is at about 2).
- tensor cores with a float32 accumulator cut off instead of rounding, always to one side: 2 k**1.5 2**-24.
- fp8 on Hopper keeps about 14 bits in its accumulator: k**1.5 2**-13 / 16.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Callable, Dict, Optional, Tuple

import torch
from torch import Tensor

from validators.workloads.verify import Finding, elementwise, freivalds

Capability = Tuple[int, int]


@dataclass(frozen=True)
class Kind:
    """One number format. `bytes_each`: device memory for each element of an n x n problem, checks included."""

    name: str
    operand: torch.dtype
    output: torch.dtype
    unit: str
    capability: Capability
    lacks: str
    bytes_each: int
    roundoff: float
    absolute: Callable[[int], float]
    by_element: bool
    transposed: bool = False
    tf32: bool = False
    exact_magnitude: int = 1

    def draw(self, n: int, device: torch.device, seed: int) -> Tensor:
        """An n x n operand of representative data."""
        generator = torch.Generator(device).manual_seed(seed)
        if self.operand is torch.int8:
            return torch.randint(-127, 128, (n, n), generator=generator, device=device, dtype=torch.int8)
        wide = torch.float64 if self.operand is torch.float64 else torch.float32
        values = torch.randn(n, n, generator=generator, device=device, dtype=wide)
        if self.tf32:  # keep the 10 mantissa bits that TF32 reads
            values.view(torch.int32).bitwise_and_(-(2**13))
        return values.to(self.operand)

    def right(self, operand: Tensor) -> Tensor:
        """The operand as the right-hand factor: fp8 and int8 tensor cores want it column-major."""
        return operand.t() if self.transposed else operand

    def empty(self, rows: int, columns: int, device: torch.device) -> Tensor:
        """Room for a product."""
        return torch.empty(rows, columns, device=device, dtype=self.output)

    def multiply(self, left: Tensor, right: Tensor, out: Tensor) -> None:
        """out = left @ right in this format; `tensor_float32` has been called for it."""
        if self.name == "fp8":
            one = _one(left.device)
            torch._scaled_mm(left, right, scale_a=one, scale_b=one, out_dtype=self.output, use_fast_accum=True, out=out)
        elif self.name == "int8":
            torch._int_mm(left, right, out=out)
        else:
            torch.mm(left, right, out=out)

    def check(self, left: Tensor, right: Tensor, product: Tensor, seed: int) -> Finding:
        """Verify a product by other arithmetic; see validators/workloads/verify.py."""
        terms = left.shape[1]
        if self.by_element:
            tensor_float32(False)
            reference_error = 4 * terms * 2.0**-24
            finding = elementwise(left, right, product, self.roundoff, self.absolute(terms) + reference_error)
            tensor_float32(self.tf32)
            return finding
        spread: float = 7.5 * self.absolute(terms) * product.shape[1] ** 0.5
        return freivalds(left, right, product, spread, seed)


_ones: Dict[torch.device, Tensor] = {}


def _one(device: torch.device) -> Tensor:
    if device not in _ones:
        _ones[device] = torch.ones((), device=device)
    return _ones[device]


def tensor_float32(on: bool) -> None:
    """Let float32 products round their operands to TF32, or not."""
    with warnings.catch_warnings():  # torch 2.9 and later prefer another name, which torch 2.6 doesn't know
        warnings.simplefilter("ignore")
        torch.backends.cuda.matmul.allow_tf32 = on


def whole_precision() -> None:
    """No TF32 unasked, no partial sums in half precision."""
    tensor_float32(False)
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False


def _plain(terms: int) -> float:
    return 4 * terms * 2.0**-24


def _tensor(terms: int) -> float:
    return float(2 * terms**1.5 * 2.0**-24)


def _double(terms: int) -> float:
    return 4 * terms * 2.0**-53


def _eighth(terms: int) -> float:
    return float(terms**1.5 * 2.0**-13 / 16)


def _none(terms: int) -> float:
    return 0.0


def kinds() -> Dict[str, Kind]:
    """The formats by name, in the order in which they run; fp8 only where this torch has it."""
    flop, tensor_cores = "TFLOP/s", "tensor cores"
    every = [
        Kind(
            "fp64", torch.float64, torch.float64, flop, (0, 0), "", 40, 2.0**-53, _double, False,
            exact_magnitude=2**20,
        ),
        Kind("fp32", torch.float32, torch.float32, flop, (0, 0), "", 20, 2.0**-24, _plain, False, exact_magnitude=90),
        Kind(
            "tf32", torch.float32, torch.float32, flop, (8, 0), f"TF32 {tensor_cores}", 24, 2.0**-24, _tensor, True,
            tf32=True, exact_magnitude=90,
        ),
        Kind(
            "fp16", torch.float16, torch.float16, flop, (7, 0), tensor_cores, 14, 2.0**-11, _tensor, True,
            exact_magnitude=3,
        ),
        Kind("bf16", torch.bfloat16, torch.bfloat16, flop, (8, 0), f"bf16 {tensor_cores}", 14, 2.0**-8, _tensor, True),
        Kind(
            "int8", torch.int8, torch.int32, "TOP/s", (7, 5), f"int8 {tensor_cores}", 14, 0.0, _none, False,
            transposed=True, exact_magnitude=127,
        ),
    ]  # fmt: skip
    eight: Optional[torch.dtype] = getattr(torch, "float8_e4m3fn", None)
    if eight is not None and hasattr(torch, "_scaled_mm"):
        every.insert(
            5,
            Kind(
                "fp8", eight, torch.bfloat16, flop, (8, 9), f"fp8 {tensor_cores}", 12, 2.0**-8, _eighth, True,
                transposed=True,
            ),
        )  # fmt: skip
    return {kind.name: kind for kind in every}
