"""Devices that get products wrong: faults planted in the operands and in the results of a number format.

A place of a fault is drawn once, so that a permanent fault hits the same place in the same way each time, as a broken
circuit does: a card that is compared with itself agrees with itself.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from validators.workloads.kinds import Kind
from validators.workloads.operands import BITS

Fault = Callable[[int, Tensor], None]
"""(number of the product or of the operand, from 1; the matrix, to be spoilt in place)"""
Change = Callable[[Tensor], None]


@dataclasses.dataclass(frozen=True)
class Faulty(Kind):
    """A format whose device gets products wrong. `skips`: numbers of the products that do not run."""

    fault: Fault = lambda _number, _out: None
    skips: Callable[[int], bool] = lambda _number: False
    operand_fault: Fault = lambda _number, _operand: None
    calls: list[int] = dataclasses.field(default_factory=list)
    placed: list[int] = dataclasses.field(default_factory=list)

    def multiply(self, left: Tensor, right: Tensor, out: Tensor) -> None:
        self.calls.append(1)
        number = len(self.calls)
        if not self.skips(number):
            super().multiply(left, right, out)
            self.fault(number, out)

    def place(self, bits: Tensor) -> Tensor:
        self.placed.append(1)
        operand = super().place(bits)
        self.operand_fault(len(self.placed), operand)
        return operand


def spoil(
    kind: Kind,
    fault: Fault = lambda *_: None,
    skips: Callable[[int], bool] = lambda _: False,
    operand_fault: Fault = lambda *_: None,
) -> Faulty:
    """The same format on a device with this fault."""
    values = {field.name: getattr(kind, field.name) for field in dataclasses.fields(Kind)}
    return Faulty(**values, fault=fault, skips=skips, operand_fault=operand_fault)


def always(change: Change) -> Fault:
    """Permanent: each product, in the same place."""
    return lambda _number, out: change(out)


def once(number: int, change: Change) -> Fault:
    """Transient: one product."""
    return lambda now, out: change(out) if now == number else None


def flip(bit: int, row: int = 5, column: int = 9) -> Change:
    """One bit of one element; bit 0 is the lowest."""

    def change(matrix: Tensor) -> None:
        words = matrix.view(BITS[matrix.element_size()])
        mask = 1 << bit
        words[row, column] ^= mask - (1 << 8 * matrix.element_size()) if mask >> 8 * matrix.element_size() - 1 else mask

    return change


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a result's bits are laid out: mantissa from bit 0, exponent, sign; whole numbers have neither."""

    mantissa: int
    exponent: int

    def name(self, bit: int) -> str:
        """mantissa, exponent, sign, or for a whole number its bit."""
        if not self.exponent:
            return "whole-number bit"
        if bit < self.mantissa:
            return "mantissa bit"
        return "exponent bit" if bit < self.mantissa + self.exponent else "sign bit"


LAYOUTS = {
    torch.float64: Layout(52, 11),
    torch.float32: Layout(23, 8),
    torch.float16: Layout(10, 5),
    torch.bfloat16: Layout(7, 8),
    torch.int32: Layout(32, 0),
    torch.int8: Layout(8, 0),
    **({torch.float8_e4m3fn: Layout(3, 4)} if hasattr(torch, "float8_e4m3fn") else {}),
}


def bits(dtype: torch.dtype) -> Iterator[tuple[int, str]]:
    """Each bit of a format and what it is part of."""
    for bit in range(8 * dtype.itemsize):
        yield bit, LAYOUTS[dtype].name(bit)


def shapes(n: int, dice: random.Random) -> dict[str, Change]:
    """Faults of more than one bit, in places that the dice choose. A tile is an eighth of the side, 128 at most."""
    a, b = dice.sample(range(n), 2)
    row, column = dice.randrange(n), dice.randrange(n)
    side = max(1, min(128, n // 8))
    top, left = (side * dice.randrange(n // side) for _ in "xy")
    tile = (slice(top, top + side), slice(left, left + side))

    def swap_rows(out: Tensor) -> None:
        out[[a, b]] = out[[b, a]]

    def swap_columns(out: Tensor) -> None:
        out[:, [a, b]] = out[:, [b, a]]

    def scale(factor: float) -> Change:
        def change(out: Tensor) -> None:
            out[tile] = (out[tile].double() * factor).to(out.dtype)

        return change

    def stuck_at_previous(out: Tensor) -> None:
        out[row, column] = out[row, column - 1]

    return {
        "element stuck at 0": lambda out: out[row, column].zero_(),
        "element stuck at 1": lambda out: out[row, column].fill_(1),
        "element stuck at its neighbour": stuck_at_previous,
        "row of zeros": lambda out: out[row].zero_(),
        "row of another": lambda out: out[a].copy_(out[b].clone()),
        "rows swapped": swap_rows,
        "columns swapped": swap_columns,
        "tile times 2": scale(2.0),
        "tile times 1.01": scale(1.01),
        "tile of zeros": scale(0.0),
    }
