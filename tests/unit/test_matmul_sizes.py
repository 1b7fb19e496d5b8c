"""How large a product is measured: by speed, memory and patience; and what happens where memory runs out."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from validators.workloads import products, sizing
from validators.workloads.kinds import Kind, kinds

CPU = torch.device("cpu")


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
    monkeypatch.setattr(sizing, "in_turn", lambda _kind, sides, *_: {n: [9e14, rates[n], rates[n]] for n in sides})
    candidates = [16384, 12288, 8192, 6144, 4096, 3072, 2048]
    cuda = torch.device("cuda")
    assert sizing.fastest(kinds()["bf16"], cuda, candidates, 100 * GIB) == [4096, 3072, 2048]
    rates[4096] = 695e12
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
    monkeypatch.setattr(sizing, "in_turn", lambda _kind, sides, *_: {n: [1.0, 1.0] for n in sides})
    monkeypatch.setattr(sizing, "burst", lambda *_: FAST)
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
