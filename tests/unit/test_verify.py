"""The ways a product is verified: what each must find, on real arithmetic of every number format."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from validators.workloads import operands, verify
from validators.workloads.kinds import Kind, kinds, whole_precision

CPU = torch.device("cpu")
NAMES = sorted(kinds())
N = 64


def product(kind: Kind, seed: int, n: int = N) -> tuple[Tensor, Tensor, Tensor]:
    whole_precision()
    terms = n * kind.longer
    pool = kind.pool(64 * terms, seed)
    begin = operands.windows(n, terms, len(pool), seed)
    left, other = (operands.Operand(pool, one, terms, CPU, kind.place).matrix for one in begin)
    right = kind.right(other)
    out = kind.empty(n, n, CPU)
    kind.multiply(left, right, out)
    return left, right, out


@pytest.mark.parametrize("name", NAMES)
def test_clean_products_pass_the_reference_check_for_many_seeds(name: str) -> None:
    kind = kinds()[name]
    for seed in range(60):
        left, right, out = product(kind, seed)
        finding = kind.check(left, right, out, seed)
        assert finding.wrong == 0, (seed, finding)
        assert finding.worst <= 1


@pytest.mark.parametrize("name", ["fp64", "fp32", "bf16", "int8"])
def test_clean_products_pass_at_a_larger_size_too(name: str) -> None:
    kind = kinds()[name]
    for seed in range(3):
        left, right, out = product(kind, seed, 512)
        assert kind.check(left, right, out, seed).wrong == 0


def test_the_tolerances_are_tight_enough_to_tell_tf32_from_float32() -> None:
    kind = kinds()["fp32"]
    left, right, _ = product(kind, 3, 512)
    coarse = (left.view(torch.int32) & -(2**13)).view(torch.float32) @ right
    assert kind.check(left, right, coarse, 3).wrong > 0


FAULTS: dict[str, Callable[[Tensor], None]] = {
    "a sign": lambda c: c.__setitem__((3, 7), -c[3, 7]),
    "a wrong row": lambda c: c[11].zero_(),
    "two rows swapped": lambda c: c.__setitem__(slice(4, 6), c[4:6].flip(0).clone()),
    "two columns swapped": lambda c: c.__setitem__((slice(None), slice(4, 6)), c[:, 4:6].flip(1).clone()),
    "a stuck tile": lambda c: c[16:32, 16:32].fill_(1),
    "another product's rows": lambda c: c[32:].copy_(c[:32].clone()),
    "twice the value": lambda c: c[40].mul_(2),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", NAMES)
def test_the_reference_check_finds(name: str, fault: str) -> None:
    kind = kinds()[name]
    for seed in range(10):
        left, right, out = product(kind, seed)
        FAULTS[fault](out)
        assert kind.check(left, right, out, seed).wrong > 0


@pytest.mark.parametrize("name", [name for name in NAMES if name != "int8"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_no_number_is_wrong(name: str, value: float) -> None:
    kind = kinds()[name]
    left, right, out = product(kind, 5)
    out[9, 9] = value
    finding = kind.check(left, right, out, 5)
    assert finding.wrong >= 1
    assert finding.first_row == 9


def test_freivalds_never_misses_one_element_above_twice_its_threshold() -> None:
    kind = kinds()["fp64"]
    left, right, out = product(kind, 1)
    threshold = 1e-9
    for seed in range(300):
        row, column = seed % N, (7 * seed) % N
        broken = out.clone()
        broken[row, column] += 2.1 * threshold * (-1) ** seed
        finding = verify.freivalds(left, right, broken, threshold, seed)
        assert (finding.wrong, finding.first_row) == (1, row)


def test_freivalds_on_whole_numbers_finds_an_error_of_one() -> None:
    kind = kinds()["int8"]
    left, right, out = product(kind, 2)
    out[0, 0] += 1
    assert kind.check(left, right, out, 2).wrong == 1


@pytest.mark.parametrize("name", ["bf16", "fp16", "fp8", "tf32"])
def test_the_elementwise_check_finds_any_element_above_its_threshold(name: str) -> None:
    kind = kinds()[name]
    left, right, out = product(kind, 6)
    reference = left.float() @ right.float()
    allowed = reference.abs() * kind.roundoff + kind.absolute(N * kind.longer) + 12 * N * kind.longer * 2.0**-24
    for place in range(0, N * N, 37):
        row, column = divmod(place, N)
        broken = out.clone()
        wanted = float(reference[row, column] + 1.02 * allowed[row, column])
        broken[row, column] = wanted + abs(wanted) * 2 * kind.roundoff  # survives the rounding to the format
        assert kind.check(left, right, broken, 6).wrong == 1


def flipped(matrix: Tensor, byte: int, bit: int) -> Tensor:
    broken = matrix.clone()
    raw = broken.view(torch.uint8).view(-1)
    raw[byte] ^= 1 << bit
    return broken


def checksums(name: str, like: Tensor) -> verify.Projection | verify.WordSums:
    return verify.Projection(like, 9) if name == "Projection" else verify.WordSums(like)


def summed(method: verify.Projection | verify.WordSums, matrix: Tensor) -> Tensor:
    room = method.rooms(1, CPU)[0]
    method.into(matrix, room)
    return room


@pytest.mark.parametrize("method", ["Projection", "WordSums"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int32])
def test_checksums_find_every_single_flipped_bit(dtype: torch.dtype, method: str) -> None:
    matrix = (torch.randn(N, N) * 50).to(dtype)
    sums = checksums(method, matrix)
    known = summed(sums, matrix)
    assert torch.equal(known, summed(sums, matrix.clone()))
    size = matrix.numel() * matrix.element_size()
    for byte in range(0, size, 61):
        for bit in range(8):
            assert not torch.equal(known, summed(sums, flipped(matrix, byte, bit))), (byte, bit)


@pytest.mark.parametrize("fault", FAULTS)
def test_checksums_find(fault: str) -> None:
    for seed in range(20):
        matrix = torch.randn(N, N, generator=torch.Generator().manual_seed(seed)).to(torch.bfloat16)
        bits = verify.Bits(matrix, seed)
        bits.learn(matrix)
        room = bits.rooms(1, CPU)[0]
        bits.record(0, matrix, room)
        assert bits.bad_rows(0, room) == []
        broken = matrix.clone()
        FAULTS[fault](broken)
        bits.record(0, broken, room)
        assert bits.bad_rows(0, room), seed


def test_checksums_miss_a_random_wrong_segment_no_oftener_than_stated() -> None:
    # One column of weights alone: at most 1/254. Sixteen columns of their own weights: never in this many tries.
    like = torch.zeros(64, 64, dtype=torch.bfloat16)
    missed = one_missed = tries = 0
    for seed in range(40):
        sums = verify.Projection(like, seed)
        generator = torch.Generator().manual_seed(1000 + seed)
        for _ in range(100):
            wrong = torch.zeros(64, 128, dtype=torch.int8)
            places = torch.randint(0, 128, (2,), generator=generator)
            wrong[0, places] = torch.randint(1, 4, (2,), generator=generator, dtype=torch.int8)
            difference = summed(sums, wrong.view(torch.bfloat16))
            touched = difference[: 64 * 128 // sums.segment][0]
            missed += not bool(touched.any())
            one_missed += int((touched == 0).sum())
            tries += 1
    assert missed == 0
    assert one_missed <= 2 * tries * verify.COLUMNS / 254


def test_the_largest_possible_checksum_is_exact() -> None:
    segment = max(verify.SEGMENTS)
    assert segment * 128 * 127 < 2**31
    sums = verify.Projection(torch.zeros(32, 32), 1)
    sums.segment, sums.count = segment, 32
    sums._weights = torch.full((segment, verify.COLUMNS), 127, dtype=torch.int8)
    worst = torch.full((32, segment), -128, dtype=torch.int8)
    assert summed(sums, worst).unique().tolist() == [-128 * 127 * segment]


def test_a_flagged_segment_names_the_row_it_begins_in() -> None:
    matrix = torch.randn(512, 256)
    bits = verify.Bits(matrix, 4)
    bits.learn(matrix)
    broken = matrix.clone()
    broken[300, 5] += 1
    room = bits.rooms(1, CPU)[0]
    bits.record(0, broken, room)
    rows = bits.bad_rows(0, room)
    assert rows == [300]


def test_without_an_int8_product_the_checksums_are_sums_of_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> Tensor:
        raise RuntimeError("_int_mm is not implemented for this device")

    monkeypatch.setattr(torch, "_int_mm", refuse)
    matrix = torch.randn(N, N)
    bits = verify.Bits(matrix, 1)
    bits.learn(matrix)
    room = bits.rooms(1, CPU)[0]
    bits.record(0, flipped(matrix, 4 * (5 * N + 3), 0), room)
    assert bits.bad_rows(0, room) == [5]


def test_nearness_forgives_rounding_and_nothing_else() -> None:
    matrix = torch.randn(N, N)
    near = verify.Nearness(2.0**-24, 1e-4, N)
    near.learn(matrix)
    room = near.rooms(1, CPU)[0]
    near.record(0, matrix + 1.5e-4, room)
    assert near.bad_rows(0, room) == []
    broken = matrix.clone()
    broken[8, 8] += 2.5e-4
    broken[9, 9] = float("nan")
    near.record(0, broken, room)
    assert near.bad_rows(0, room) == [8, 9]
