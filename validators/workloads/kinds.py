"""The number formats of the matmul workload: operands, product, tolerances, and which cards have them.

Operands are standard normal (int8: uniform over -127..127), because a GPU's power, and so its clock, depends on the
data: on one H200 8192 x 8192 bf16 products ran at 788 TFLOP/s on normal data and at 894 on zeros.
They are rounded to the format first, so that the reference arithmetic sees exactly what the product sees.

A product has n x n elements of `terms` summands each: n of them, and more in formats whose products are so
quick, or whose answers so large, that verifying an n x n answer would cost over 2 % of a product over n terms.

Tolerances, for products of standard normal operands over k terms; C's elements are of the order sqrt(k):
- output rounding: at most `roundoff` * |element|.
- float32 on plain units: a rounding error of each of k partial sums S_t, together Gaussian with the variance
  sum(S_t**2) 2**-48 / 6: 0.3 k 2**-24 rms over all elements. But the partial sums are a random walk, whose integrated
  square has the tail exp(-pi**2 a / 8) at a k**2; over both, the chance of an error above y k 2**-24 is about
  exp(-3.8 y), the largest of 10**8 elements at 4.8 (seen on an H200: 4.5). 12 is allowed: 1e-12 for a whole product.
- tensor cores with a float32 accumulator cut off instead of rounding, always to one side: 2 k**1.5 2**-24.
- fp8 on Hopper keeps about 14 bits in its accumulator: k**1.5 2**-13 / 16.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Callable, Dict, Optional, Tuple

import torch
from torch import Tensor

from validators.workloads import operands
from validators.workloads.verify import Finding, elementwise, freivalds, whole_sums

Capability = Tuple[int, int]


SINGLE, DOUBLE, SUMS, WHOLE = "float32 product", "float64 product", "Freivalds' sums", "whole-number sums"
"""By which other arithmetic a product is verified; validators/workloads/verify.py says what each can miss."""


@dataclass(frozen=True)
class Kind:
    """One number format. `longer`: terms of an n x n product, by n. `absolute`: rounding error allowed at k terms."""

    name: str
    operand: torch.dtype
    output: torch.dtype
    unit: str
    capability: Capability
    lacks: str
    roundoff: float
    absolute: Callable[[int], float]
    reference: str
    transposed: bool = False
    tf32: bool = False
    exact_magnitude: int = 1
    longer: int = 1

    def bytes_needed(self, n: int) -> int:
        """Device memory of verified n x n products: two operands, the product, what the reference check holds."""
        wide = {SINGLE: 4, DOUBLE: 8}.get(self.reference, 0)
        return n * n * (self.longer * (2 * self.operand.itemsize + wide) + self.output.itemsize)

    def pool(self, length: int, seed: int) -> Tensor:
        """Representative data for operands, on the CPU."""
        return operands.normal(length, seed, self.operand, tf32=self.tf32)

    def place(self, bits: Tensor) -> Tensor:
        """The operand of these bits, on the device; the same memory."""
        return bits.view(self.operand)

    def right(self, operand: Tensor) -> Tensor:
        """The operand as the right-hand factor: tf32, fp8 and int8 tensor cores want it column-major."""
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

    def bound(self, terms: int, n: int) -> Tuple[float, float]:
        """(relative, absolute): an element off by more than relative * |element| + absolute is never missed."""
        if self.reference == SINGLE:
            return self.roundoff, self.absolute(terms) + 2 * _plain(terms)
        if self.reference == DOUBLE:
            return self.roundoff, self.absolute(terms)
        return 0.0, 2 * self._spread(terms, n)

    def flips_found_above(self, terms: int, n: int) -> float:
        """Every flip of the sign or of an exponent bit of an element larger than this is found: it is off by half."""
        relative, absolute = self.bound(terms, n)
        return absolute / (0.5 - relative)

    def _spread(self, terms: int, n: int) -> float:
        return float(7.5 * self.absolute(terms) * n**0.5)

    def check(self, left: Tensor, right: Tensor, product: Tensor, seed: int) -> Finding:
        """Verify a product by other arithmetic; see validators/workloads/verify.py."""
        terms = left.shape[1]
        if self.reference == WHOLE:
            return whole_sums(left, right, product, seed)
        if self.reference == SUMS:
            return freivalds(left, right, product, self._spread(terms, product.shape[1]), seed)
        double = self.reference == DOUBLE
        own_error = 0.0 if double else _plain(terms)
        tensor_float32(False)
        try:
            wide = torch.float64 if double else torch.float32
            return elementwise(left, right, product, self.roundoff, self.absolute(terms) + own_error, wide=wide)
        finally:
            tensor_float32(self.tf32)


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
    return 12 * terms * 2.0**-24


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
    flop, cores = "TFLOP/s", "tensor cores"
    f64, f32, f16, b16 = torch.float64, torch.float32, torch.float16, torch.bfloat16
    every = [
        Kind("fp64", f64, f64, flop, (0, 0), "", 2.0**-53, _double, SUMS, exact_magnitude=2**20),
        Kind("fp32", f32, f32, flop, (0, 0), "", 2.0**-24, _plain, DOUBLE, exact_magnitude=90),
        Kind(
            "tf32", f32, f32, flop, (8, 0), f"TF32 {cores}", 2.0**-24, _tensor, SINGLE, transposed=True, tf32=True,
            exact_magnitude=90, longer=2,
        ),
        Kind("fp16", f16, f16, flop, (7, 0), cores, 2.0**-11, _tensor, SINGLE, exact_magnitude=3),
        Kind("bf16", b16, b16, flop, (8, 0), f"bf16 {cores}", 2.0**-8, _tensor, SINGLE),
        Kind(
            "int8", torch.int8, torch.int32, "TOP/s", (7, 5), f"int8 {cores}", 0.0, _none, WHOLE, transposed=True,
            exact_magnitude=127, longer=4,
        ),
    ]  # fmt: skip
    eight: Optional[torch.dtype] = getattr(torch, "float8_e4m3fn", None)
    if eight is not None and hasattr(torch, "_scaled_mm"):
        every.insert(
            5,
            Kind(
                "fp8", eight, b16, flop, (8, 9), f"fp8 {cores}", 2.0**-8, _eighth, SINGLE, transposed=True, longer=2,
            ),
        )  # fmt: skip
    return {kind.name: kind for kind in every}
