"""Timed products with faults planted in the device's arithmetic: each one must be counted as wrong."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.doubles.faulty_products import Fault, Faulty, flip, spoil
from validators.workloads import products
from validators.workloads.kinds import Kind, kinds, whole_precision

CPU = torch.device("cpu")


N = 128


def faulty(name: str, fault: Fault = lambda *_: None, skips: Callable[[int], bool] = lambda _: False) -> Faulty:
    return spoil(kinds()[name], fault, skips)


def run(kind: Kind, n: int = N, seconds: float = 0.02) -> products.Run:
    whole_precision()
    return products.measure(kind, n, CPU, seconds)


def on(numbers: set[int], change: Callable[[Tensor], None]) -> Fault:
    return lambda number, out: change(out) if number in numbers else None


@pytest.mark.parametrize("name", sorted(kinds()))
def test_a_healthy_device_has_no_wrong_product_and_a_rate(name: str) -> None:
    found = run(kinds()[name])
    assert found.wrong == 0
    assert found.notes == []
    assert found.times
    assert found.verified >= len(found.times)
    assert 0 < found.rate(0.1) <= found.rate(0.5) <= found.rate(0.9)


@pytest.mark.parametrize("name", sorted(kinds()))
def test_one_flipped_bit_in_one_timed_product_is_one_wrong_product(name: str) -> None:
    for bit in (0, 3, 7):  # the lowest mantissa bits: far below any tolerance
        found = run(faulty(name, on({7}, flip(bit))))
        assert found.wrong == 1, bit
        assert found.notes[0].startswith("product 7 differs from row ")


def test_several_wrong_products_are_all_counted() -> None:
    found = run(faulty("fp32", on({6, 8, 9}, flip(1))))
    assert found.wrong == 3


@pytest.mark.parametrize("number", range(1, 7))
def test_a_bit_too_low_for_other_arithmetic_is_found_in_the_first_products_too(number: int) -> None:
    found = run(faulty("fp32", on({number}, flip(0))))
    assert found.wrong == 1
    assert found.method == "checksums"


def test_the_same_wrong_answer_each_time_is_wrong_each_time() -> None:
    def negate(_number: int, out: Tensor) -> None:
        out[3, 4] = -out[3, 4]

    found = run(faulty("bf16", negate))
    assert found.wrong == found.verified
    assert "product 1, checked by other arithmetic, is wrong in 1 places from row 3" in found.notes[0]


def test_a_product_that_does_not_run_is_found() -> None:
    found = run(faulty("fp32", skips=lambda number: number == 8))
    assert found.wrong == 1


def test_products_that_stop_running_altogether_are_found() -> None:
    found = run(faulty("fp32", skips=lambda number: number > 6))
    assert found.wrong >= (found.verified - 6) // 2


def test_a_product_of_which_half_is_written_is_found() -> None:
    whole = kinds()["fp32"]

    class Half(Faulty):
        def multiply(self, left: Tensor, right: Tensor, out: Tensor) -> None:
            self.calls.append(1)
            if len(self.calls) == 10:
                torch.mm(left[: N // 2], right, out=out[: N // 2])
            else:
                torch.mm(left, right, out=out)

    values = {field.name: getattr(whole, field.name) for field in dataclasses.fields(whole)}
    found = run(Half(**values))
    assert found.wrong == 1


def restless(number: int, out: Tensor) -> None:
    """A library that rounds differently from call to call."""
    out[:, number % N] += 1e-6


def test_a_library_that_does_not_repeat_its_bits_is_verified_within_the_tolerance() -> None:
    found = run(faulty("fp32", restless))
    assert found.method == "tolerance"
    assert found.wrong == 0


def test_a_wrong_element_is_found_where_the_library_does_not_repeat_its_bits() -> None:
    def fault(number: int, out: Tensor) -> None:
        restless(number, out)
        if number == 9:
            out[17, 3] += 1

    found = run(faulty("fp32", fault))
    assert found.method == "tolerance"
    assert found.wrong == 1
    assert "row 17 to 17" in found.notes[0]


@pytest.mark.parametrize("number", range(1, 6))
def test_a_product_that_goes_wrong_before_the_timing_is_one_wrong_product(number: int) -> None:
    found = run(faulty("bf16", on({number}, lambda out: out[2].zero_())))
    assert found.wrong == 1
    assert found.method == "checksums"
