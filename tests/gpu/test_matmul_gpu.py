"""The matmul workload on a real GPU: every format right, and planted faults found there too."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from provision.bundle import build_bundle
from tests.doubles.faulty_products import always, bits, flip, once, spoil
from tests.need import need
from validators.workloads import exact, kinds, matmul, products, sizing


@pytest.fixture
def gpu() -> torch.device:
    need(torch.cuda.is_available(), "no GPU on this machine", installable=False)
    kinds.whole_precision()
    return torch.device("cuda", 0)


@pytest.fixture(params=sorted(kinds.kinds()))
def kind(request: pytest.FixtureRequest, gpu: torch.device) -> kinds.Kind:
    found = kinds.kinds()[request.param]
    need(
        torch.cuda.get_device_capability(gpu) >= found.capability,
        f"this card has no {found.lacks}",
        installable=False,
    )
    return found


def test_every_format_is_right_and_repeats_its_bits(kind: kinds.Kind, gpu: torch.device) -> None:
    found = products.measure(kind, 4096, gpu, 0.2)
    assert (found.wrong, found.notes) == (0, [])
    assert found.method == "checksums"
    assert found.margin <= 1


def test_one_flipped_bit_in_one_product_is_found(kind: kinds.Kind, gpu: torch.device) -> None:
    found = products.measure(spoil(kind, once(9, flip(0))), 2048, gpu, 0.05)
    assert found.wrong == 1


def test_a_tile_that_is_wrong_each_time_is_found(kind: kinds.Kind, gpu: torch.device) -> None:
    def scale(out: Tensor) -> None:
        out[128:256, 256:384] *= 2

    found = products.measure(spoil(kind, always(scale)), 2048, gpu, 0.05)
    assert found.wrong == found.verified


def test_whole_numbers_are_right_to_the_last_bit(kind: kinds.Kind, gpu: torch.device) -> None:
    assert exact.ExactInteger(gpu).wrong(kind) == ""
    assert exact.known_answer([kind], gpu) == []


def test_whole_numbers_are_right_at_the_size_of_the_timed_products(kind: kinds.Kind, gpu: torch.device) -> None:
    for n in (4096, 8192):
        assert exact.wrong_at_full_size(kind, n, gpu) == ""
    found = exact.wrong_at_full_size(spoil(kind, always(flip(0, 77, 4001))), 4096, gpu)
    assert "1 of 4096 rows are wrong at n=4096, the first is row 77" in found


def test_a_bit_of_an_operand_that_changed_on_the_card_is_found(kind: kinds.Kind, gpu: torch.device) -> None:
    for bit, _ in bits(kind.operand):
        pair = products.Pair(spoil(kind, operand_fault=once(2, flip(bit, 7, 2047))), 2048, gpu, 1)
        found = products.Run(2048)
        pair.check_operands(found, "before")
        assert found.operands_wrong == 1


def test_sign_and_exponent_flips_above_the_bound_are_found_when_they_repeat(
    kind: kinds.Kind, gpu: torch.device
) -> None:
    kinds.tensor_float32(kind.tf32)
    pair = products.Pair(kind, 1024, gpu, 7)
    healthy = []
    for which in (0, 1):
        pair.multiply(which)
        healthy.append(pair.out.double().abs())
    smallest = torch.minimum(*healthy)
    smallest[smallest <= kind.flips_found_above(pair.terms, 1024)] = float("inf")
    row, column = divmod(int(smallest.argmin()), 1024)
    for bit, part in bits(kind.output):
        if part != "mantissa bit":
            pair.kind = spoil(kind, always(flip(bit, row, column)))
            found = products.Run(1024, pair.terms)
            pair.reference(found, 7)
            assert found.wrong == found.verified, bit
    kinds.tensor_float32(False)


def test_the_digest_repeats(kind: kinds.Kind, gpu: torch.device) -> None:
    assert exact.digest(kind, gpu) == exact.digest(kind, gpu)


@pytest.fixture
def small_card(gpu: torch.device) -> Iterator[torch.device]:
    """As on a card of 4 GiB: torch is refused any more."""
    torch.cuda.empty_cache()
    sizing.limit_memory(gpu, 4.0)
    yield gpu
    sizing._caps.clear()
    torch.cuda.set_per_process_memory_fraction(1.0, gpu)


def test_a_card_of_4_gib_gets_a_fair_run(kind: kinds.Kind, small_card: torch.device) -> None:
    memory = sizing.memory_of(small_card)
    assert memory[0] <= memory[1] == 4 * 2**30
    torch.cuda.reset_peak_memory_stats(small_card)
    found = sizing.largest(kind, small_card, 0.1, 0, memory=memory)
    assert found.n >= 4096
    assert (found.wrong, found.operands_wrong) == (0, 0)
    assert exact.wrong_at_full_size(kind, found.n, small_card) == ""
    assert torch.cuda.max_memory_reserved(small_card) <= 4 * 2**30


def test_a_size_that_a_small_card_cannot_hold_gives_way_to_a_smaller_one(small_card: torch.device) -> None:
    found = sizing.largest(kinds.kinds()["fp64"], small_card, 0.1, 16384, memory=sizing.memory_of(small_card))
    assert 2048 <= found.n < 16384


def test_memory_that_is_taken_gives_an_error_that_says_so(gpu: torch.device) -> None:
    free, total = sizing.memory_of(gpu)
    with pytest.raises(MemoryError, match=r"out of memory on the GPU: .* GiB were free"):
        sizing.largest(kinds.kinds()["fp32"], gpu, 0.1, 0, memory=(min(free, 2**29), total))


def test_another_gpu_than_the_one_named_is_an_error(gpu: torch.device) -> None:
    if torch.cuda.device_count() == 1 and hasattr(torch.cuda.get_device_properties(gpu), "uuid"):
        with pytest.raises(RuntimeError, match="torch ran on GPU"):
            matmul.open_device("GPU-00000000-0000-0000-0000-000000000000")


def test_the_check_runs_on_every_gpu_from_the_bundle(gpu: torch.device, tmp_path: Path) -> None:
    bundle = tmp_path / "validators.pyz"
    bundle.write_bytes(build_bundle().data)
    ran = subprocess.run(
        [sys.executable, "-I", str(bundle), "run", "matmul", "--share", "--json"],
        capture_output=True,
        timeout=280,
        check=False,
    )
    records = [json.loads(line) for line in ran.stdout.splitlines()]
    outcomes = {one["subject"]: one["status"] for one in records if one["type"] == "outcome"}
    assert set(outcomes.values()) == {"ran"}, ran.stderr[-2000:]
    values = {one["metric"]: one["value"] for one in records if one["type"] == "measurement"}
    assert (values["known_answer"], values["exact_integer"], values["products_wrong"]) == (True, True, 0)
    assert any(one["type"] == "sample" and one["values"]["power"] > 0 for one in records)
