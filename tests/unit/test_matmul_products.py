"""Timed products with faults planted in the device's arithmetic: each one must be counted as wrong."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.doubles.faulty_products import Fault, Faulty, always, bits, flip, once, shapes, spoil
from validators.schema import NOT_APPLICABLE, UNKNOWN, Measurement, Record
from validators.workloads import exact, matmul, operands, products, sizing
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
    found = run(faulty("bf16", on({number}, flip(0))))
    assert found.wrong == 1
    assert found.method == "checksums"


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
    found = run(kind)
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
        found = exact.wrong_at_full_size(faulty(name, always(flip(bit, 5, 9))), 64, CPU)
        assert found == f"{name}: 1 of 64 rows are wrong at n=64, the first is row 5", bit
    assert exact.wrong_at_full_size(kinds()[name], 64, CPU) == ""


@pytest.mark.parametrize("name", ["fp32", "bf16", "int8"])
def test_faults_of_every_shape_are_found_once_and_always(name: str) -> None:
    dice = random.Random(3)  # noqa: S311
    for what, change in shapes(64, dice).items():
        for fault, least in ((once(7, change), 1), (always(change), 4)):
            pair = products.Pair(faulty(name, fault), 64, CPU, 7)
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
    assert exact.digest(faulty("bf16", always(flip(0))), CPU, 64) != healthy


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


@pytest.mark.parametrize("name", sorted(kinds()))
def test_the_exact_integer_product_is_right_to_the_last_bit(name: str) -> None:
    whole_precision()
    assert exact.ExactInteger(CPU).wrong(kinds()[name]) == ""


@pytest.mark.parametrize("name", sorted(kinds()))
def test_the_exact_integer_product_finds_one_wrong_bit(name: str) -> None:
    whole_precision()
    kind = kinds()[name]
    # The lowest bit of a bf16 near 1 is 1/128: flip one that whole numbers have.
    found = exact.ExactInteger(CPU).wrong(faulty(name, lambda _number, out: flip(8 * kind.output.itemsize - 1)(out)))
    found_low = exact.ExactInteger(CPU).wrong(faulty(name, lambda _number, out: flip(0)(out)))
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


def test_a_wrong_known_answer_is_told() -> None:
    assert exact.known_answer(list(kinds().values()), CPU) == []


def test_formats_that_take_no_small_matrix_have_no_known_answer_rather_than_a_right_one() -> None:
    records: list[Record] = []
    matmul.main({"subject": "host", "dtypes": "int8", "seconds": 0.01, "size": 256}, records.append)
    found = {one.metric: one for one in records if isinstance(one, Measurement)}
    assert (found["known_answer"].value, found["known_answer"].absence) == (None, NOT_APPLICABLE)
    assert found["exact_integer"].value is True


def test_where_no_format_applies_nothing_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matmul, "applicable", lambda device, names: ([], [(kinds()["fp8"], "this card has none")]))
    records: list[Record] = []
    matmul.main({"subject": "host", "dtypes": "fp8"}, records.append)
    assert not [one for one in records if isinstance(one, Measurement) and one.value is not None]


GIB = 2**30
FAST, SLOW = 7e14, 2.5e11


@pytest.mark.parametrize(
    ("name", "free_gib", "rate", "expected"),
    [
        ("bf16", 139, FAST, 16384),
        ("bf16", 22, 1.2e14, 12288),  # L4: patience, not memory
        ("bf16", 3.5, FAST, 12288),
        ("fp64", 139, 6e13, 8192),
        ("fp64", 15, SLOW, 1024),  # T4: double precision at 0.25 TFLOP/s
        ("fp32", 3.5, 1e13, 6144),
        ("fp8", 139, 1.3e15, 8192),  # twice the terms: no larger an operand than 16384 x 16384
        ("int8", 180, 4e15, 8192),
    ],
)
def test_the_size_follows_memory_and_patience(name: str, free_gib: float, rate: float, expected: int) -> None:
    assert next(sizing.sizes(kinds()[name], int(free_gib * GIB), rate)) == expected


def test_sizes_go_down_and_fit_the_memory() -> None:
    kind = kinds()["fp32"]
    tried = list(sizing.sizes(kind, 4 * GIB, 1e15))
    assert tried == sorted(tried, reverse=True)
    assert all(kind.bytes_needed(n) < 4 * GIB for n in tried)


def test_the_fastest_size_is_taken_and_of_like_ones_the_largest(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {16384: 690e12, 8192: 690e12, 4096: 747e12}
    monkeypatch.setattr(sizing, "burst", lambda _kind, n, _device, _seconds: rates[n])
    candidates = [16384, 12288, 8192, 6144, 4096, 3072, 2048]
    cuda = torch.device("cuda")
    assert sizing.fastest(kinds()["bf16"], cuda, candidates, 100 * GIB) == [4096, 3072, 2048]
    rates[4096] = 691e12
    assert sizing.fastest(kinds()["bf16"], cuda, candidates, 100 * GIB) == candidates


def test_fp32_is_smaller_where_its_float64_reference_would_take_long() -> None:
    kind = kinds()["fp32"]
    assert next(sizing.sizes(kind, 100 * GIB, 8e13, 0, 1.3e12)) == 8192  # a GeForce RTX 4090: float64 at 1/64
    assert next(sizing.sizes(kind, 4 * GIB, 2e12, 0, 6.5e10)) == 3072  # a GTX 1050 Ti


def test_a_card_of_4_gib_gets_products_of_a_fair_size_in_every_format() -> None:
    for kind in kinds().values():
        assert next(sizing.sizes(kind, int(3.6 * GIB), 2e13)) >= 4096, kind.name


def test_a_size_that_was_asked_for_comes_first() -> None:
    assert next(sizing.sizes(kinds()["bf16"], 100 * GIB, FAST, 5120)) == 5120


def out_of_memory(above: int) -> tuple[list[int], Callable[[Kind, int, torch.device, float], products.Run]]:
    tried: list[int] = []

    def attempt(_kind: Kind, n: int, _device: torch.device, _seconds: float) -> products.Run:
        tried.append(n)
        if n > above:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 512 MiB.\nmore")
        return products.Run(n)

    return tried, attempt


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    monkeypatch.setattr(sizing, "probe", lambda _kind, _device: FAST)
    monkeypatch.setattr(sizing, "burst", lambda _kind, n, _device, _seconds: FAST * (1 + n / 2**20))
    return torch.device("cuda")


def test_a_size_for_which_memory_runs_out_gives_way_to_the_next(gpu: torch.device) -> None:
    tried, attempt = out_of_memory(above=6144)
    found = sizing.largest(kinds()["bf16"], gpu, 1.0, 0, memory=(100 * GIB, 141 * GIB), run_one=attempt)
    assert found.n == 6144
    assert tried == [16384, 12288, 8192, 6144]


def test_memory_held_by_somebody_else_is_an_error_that_says_so(gpu: torch.device) -> None:
    tried, attempt = out_of_memory(above=0)
    with pytest.raises(MemoryError, match=r"out of memory on the GPU: 0\.5 GiB of 141\.0 GiB were free.*nvidia-smi"):
        sizing.largest(kinds()["bf16"], gpu, 1.0, 0, memory=(GIB // 2, 141 * GIB), run_one=attempt)
    assert tried == []  # a product that small would measure the launch


def test_memory_that_runs_out_at_every_size_is_an_error_with_cudas_words(gpu: torch.device) -> None:
    tried, attempt = out_of_memory(above=0)
    with pytest.raises(MemoryError, match="at 2048 x 2048: CUDA out of memory"):
        sizing.largest(kinds()["bf16"], gpu, 1.0, 0, memory=(100 * GIB, 141 * GIB), run_one=attempt)
    assert tried[-1] == sizing.LEAST


def test_the_probe_gives_a_rate() -> None:
    assert sizing.probe(kinds()["fp32"], CPU) > 1e8


def emitted(monkeypatch: pytest.MonkeyPatch, **formats: Kind) -> dict[str, Measurement]:
    """What the workload sends for these formats on the CPU."""
    monkeypatch.setattr(matmul, "kinds", lambda: formats)
    records: list[Record] = []
    matmul.main({"dtypes": ",".join(formats), "size": N, "seconds": 0.02}, records.append)
    return {one.metric: one for one in records if isinstance(one, Measurement)}


class Unsupported(Faulty):
    def multiply(self, left: Tensor, right: Tensor, out: Tensor) -> None:
        raise RuntimeError("torch._scaled_mm is only supported on CUDA devices with compute capability >= 9.0")


def unsupported(name: str) -> Kind:
    values = {field.name: getattr(kinds()[name], field.name) for field in dataclasses.fields(Kind)}
    return Unsupported(**values)


def test_a_format_that_torch_cannot_do_is_unknown_and_the_others_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    found = emitted(monkeypatch, fp32=kinds()["fp32"], fp8=unsupported("fp8"))
    assert found["throughput_fp8"].absence == UNKNOWN
    assert "compute capability >= 9.0" in found["throughput_fp8"].note
    assert float(str(found["throughput_cpu_fp32"].value)) > 0
    assert found["exact_integer"].absence == UNKNOWN
    assert found["products_wrong"].value == 0


def test_a_device_on_which_nothing_runs_is_an_error_with_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match=r"compute capability >= 9\.0"):
        emitted(monkeypatch, fp8=unsupported("fp8"))


def test_wrong_products_are_counted_over_all_formats(monkeypatch: pytest.MonkeyPatch) -> None:
    def negate(_number: int, out: Tensor) -> None:
        out[0, 0] = -out[0, 0]

    found = emitted(monkeypatch, fp32=kinds()["fp32"], bf16=faulty("bf16", negate))
    assert found["exact_integer"].value is False
    assert "bf16: 1 of" in found["exact_integer"].note
    assert int(str(found["products_wrong"].value)) > 0
    assert found["products_wrong"].note.startswith("bf16: product 1,")


def test_an_unknown_dtype_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(ValueError, match="no such dtype: bf61; there are fp64"):
        matmul.main({"dtypes": "bf61"}, lambda _record: None)


def test_formats_newer_than_the_card_are_not_applicable_and_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (7, 5))
    chosen, absent = matmul.applicable(torch.device("cuda"), [])
    assert [kind.name for kind in chosen] == ["fp64", "fp32", "fp16", "int8"]
    assert {kind.name: why for kind, why in absent}["fp8"] == (
        "fp8 tensor cores came with compute capability 8.9; this card has 7.5"
    )
