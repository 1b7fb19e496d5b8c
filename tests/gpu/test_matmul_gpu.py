"""The matmul workload on a real GPU: every format right, and planted faults found there too."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from provision.bundle import build_bundle
from tests.doubles.faulty_products import always, flip, once, spoil
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
        [sys.executable, "-I", str(bundle), "run", "matmul", "--json"], capture_output=True, timeout=280, check=False
    )
    records = [json.loads(line) for line in ran.stdout.splitlines()]
    outcomes = {one["subject"]: one["status"] for one in records if one["type"] == "outcome"}
    assert set(outcomes.values()) == {"ran"}, ran.stderr[-2000:]
    values = {one["metric"]: one["value"] for one in records if one["type"] == "measurement"}
    assert (values["known_answer"], values["exact_integer"], values["products_wrong"]) == (True, True, 0)
    assert any(one["type"] == "sample" and one["values"]["power"] > 0 for one in records)
