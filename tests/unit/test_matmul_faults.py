"""Faults in operands, faults that repeat, and whole numbers: what must be found, bit by bit, in every format."""

from __future__ import annotations

import dataclasses
import random

import pytest
import torch
from torch import Tensor

from tests.doubles.faulty_products import always, bits, flip, once, shapes, spoil
from validators.workloads import exact, operands, products
from validators.workloads.kinds import kinds, whole_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", sorted(kinds()))
def test_a_bit_of_an_operand_that_changed_on_the_device_is_found(name: str) -> None:
    kind = kinds()[name]
    for bit, _ in bits(kind.operand):
        pair = products.Pair(spoil(kind, operand_fault=once(2, flip(bit, 7, 33))), 64, CPU, 1)
        found = products.Run(64)
        pair.check_operands(found, "before")
        assert found.operands_wrong == 1
        assert found.notes == ["operand y is wrong on the device in 1 rows from row 7, before"]


@pytest.mark.parametrize("when", ["rows", "columns", "places"])
def test_operands_whose_parts_changed_places_are_found(when: str) -> None:
    def swap(operand: Tensor) -> None:
        if when == "rows":
            operand[[3, 9]] = operand[[9, 3]]
        elif when == "columns":
            operand[:, [3, 9]] = operand[:, [9, 3]]
        else:
            operand[5, [3, 9]] = operand[5, [9, 3]]

    pair = products.Pair(spoil(kinds()["bf16"], operand_fault=once(1, swap)), 64, CPU, 1)
    found = products.Run(64)
    pair.check_operands(found, "before")
    assert found.operands_wrong == {"rows": 2, "columns": 64, "places": 1}[when]


def test_an_operand_that_changes_while_products_run_is_found() -> None:
    pairs: list[Tensor] = []
    kind = spoil(
        kinds()["fp32"],
        lambda number, _out: flip(30, 2, 2)(pairs[0]) if number == 9 else None,
        operand_fault=lambda _number, operand: pairs.append(operand),
    )
    found = products.measure(kind, 64, CPU, 0.02)
    assert found.operands_wrong == 1
    assert found.wrong > 0


def test_operands_are_the_same_numbers_on_every_machine() -> None:
    drawn = operands.draws(1000, 7)
    assert (drawn[:4].tolist(), int(drawn.sum())) == ([46136, 21222, 19940, 62119], 33091189)
    values = operands.normal(2**16, 7, torch.float64)
    assert abs(float(values.mean())) < 0.02
    assert abs(float(values.std()) - 1) < 0.01
    assert len(values.view(torch.int64).bitwise_and(2**29 - 1).unique()) > 60_000  # every bit is in use


def sign_and_exponent(name: str) -> list[int]:
    return [bit for bit, part in bits(kinds()[name].output) if part != "mantissa bit"]


@pytest.mark.parametrize("name", sorted(kinds()))
def test_every_sign_and_exponent_flip_above_the_bound_is_found_also_when_it_repeats(name: str) -> None:
    kind = kinds()[name]
    whole_precision()
    pair = products.Pair(kind, 64, CPU, 7)
    floor = kind.flips_found_above(pair.terms, 64)
    healthy = []
    for which in (0, 1):
        pair.multiply(which)
        healthy.append(pair.out.double().abs())
    smallest = torch.minimum(*healthy)
    places = (smallest > floor).nonzero()
    least = places[smallest[smallest > floor].argmin()]
    for bit in sign_and_exponent(name):
        for row, column in ([int(one) for one in least], [int(one) for one in places[bit * 31 % len(places)]]):
            pair.kind = spoil(kind, always(flip(bit, row, column)))
            found = products.Run(64, pair.terms)
            pair.reference(found, 7)
            assert found.wrong == found.verified, (bit, row, column)


@pytest.mark.parametrize("name", sorted(kinds()))
def test_whole_numbers_at_full_size_find_a_flip_of_any_bit(name: str) -> None:
    whole_precision()
    for bit, _ in bits(kinds()[name].output):
        found = exact.wrong_at_full_size(spoil(kinds()[name], always(flip(bit, 5, 9))), 64, CPU)
        assert found == f"{name}: 1 of 64 rows are wrong at n=64, the first is row 5", bit
    assert exact.wrong_at_full_size(kinds()[name], 64, CPU) == ""


@pytest.mark.parametrize("name", ["fp32", "bf16", "int8"])
def test_faults_of_every_shape_are_found_once_and_always(name: str) -> None:
    dice = random.Random(3)  # noqa: S311
    for what, change in shapes(64, dice).items():
        for fault, least in ((once(7, change), 1), (always(change), 4)):
            pair = products.Pair(spoil(kinds()[name], fault), 64, CPU, 7)
            found = products.Run(64, pair.terms)
            verifier = pair.reference(found, 7)
            products.batch(pair, verifier, found, 4, keep=True)
            assert found.wrong >= least, what


def test_a_wrong_operand_of_the_whole_numbers_is_told() -> None:
    kind = spoil(kinds()["fp32"], operand_fault=once(1, flip(3)))
    assert "left operand is wrong on the device in 1 rows from row 5" in exact.wrong_at_full_size(kind, 64, CPU)


@pytest.mark.parametrize("n", [2048, 4096, 8192, 16384])
@pytest.mark.parametrize("name", sorted(kinds()))
def test_whole_numbers_are_exact_at_every_size(name: str, n: int) -> None:
    kind = kinds()[name]
    terms = n * kind.longer
    m, density = exact.magnitude_and_density(kind, terms)
    values = operands.whole(2**20, 1, m, density).double()
    assert 0.99 * m < float(values.abs().max()) <= m
    accumulator = {torch.float64: 53, torch.int32: 31}.get(kind.output, 24)
    assert terms * m * m <= 2**accumulator
    spread = float((values**2).mean()) * terms**0.5
    assert 6.5 * spread < 2 ** exact._SIGNIFICAND[kind.output]
    if name == "fp8":
        assert terms * float(values.abs().mean()) ** 2 < 2**exact.EIGHTH_BITS


def test_the_digest_is_of_every_bit_and_repeats() -> None:
    whole_precision()
    healthy = exact.digest(kinds()["bf16"], CPU, 64)
    assert len(healthy) == 32
    assert exact.digest(kinds()["bf16"], CPU, 64) == healthy
    assert exact.digest(spoil(kinds()["bf16"], always(flip(0))), CPU, 64) != healthy


@pytest.mark.parametrize("name", sorted(kinds()))
def test_the_exact_integer_product_is_right_to_the_last_bit(name: str) -> None:
    whole_precision()
    assert exact.ExactInteger(CPU).wrong(kinds()[name]) == ""


@pytest.mark.parametrize("name", sorted(kinds()))
def test_the_exact_integer_product_finds_one_wrong_bit(name: str) -> None:
    whole_precision()
    kind = kinds()[name]
    # The lowest bit of a bf16 near 1 is 1/128: flip one that whole numbers have.
    found = exact.ExactInteger(CPU).wrong(spoil(kind, always(flip(8 * kind.output.itemsize - 1))))
    found_low = exact.ExactInteger(CPU).wrong(spoil(kind, always(flip(0))))
    assert f"{name}: 1 of {512 * 512} elements are wrong" in found
    assert f"{name}: 1 of {512 * 512} elements are wrong" in found_low


@pytest.mark.parametrize("name", sorted(kinds()))
def test_every_partial_sum_is_exact_at_the_size_that_gpus_run(name: str) -> None:
    kind = kinds()[name]
    largest, limit = exact.bounds(kind, exact.SIZE)
    assert largest <= limit
    exact.answer(kind, 1024)  # raises where an element does not fit its output


def test_numbers_too_large_to_be_exact_are_refused() -> None:
    kind = dataclasses.replace(kinds()["fp32"], exact_magnitude=400)
    with pytest.raises(ValueError, match="not exact"):
        exact.answer(kind, 512)
    with pytest.raises(ValueError, match="does not fit"):
        exact.answer(dataclasses.replace(kinds()["bf16"], exact_magnitude=9), 512)
