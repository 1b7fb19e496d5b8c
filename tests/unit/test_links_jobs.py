"""Collectives over real gloo ranks on the CPU: right sums, planted faults found, the culprit named."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from validators import check
from validators.probes import ranks, workload
from validators.schema import (
    ERROR,
    HOST,
    RAN,
    CheckRequest,
    Measurement,
    Outcome,
    Plan,
    Record,
    Scalar,
    encode,
)
from validators.workloads import links_pattern

Plant = Callable[[str], None]
ROOT = Path(__file__).parents[2]
INFO = check.load("links").info
SMALL: dict[str, Scalar] = {
    "ranks": 3, "smallest": 4096, "largest": 2**16, "pair_bytes": 2**16, "seconds": 0.01,
    "hang_s": 2.0, "job_s": 60.0, "alone_s": 30.0,
}  # fmt: skip


@pytest.fixture
def plant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plant:
    """The workload with a fault: lines that are added to the end of it."""

    def add(lines: str) -> None:
        root = tmp_path / "root"
        shutil.copytree(ROOT / "validators", root / "validators", ignore=shutil.ignore_patterns("__pycache__"))
        with (root / "validators" / "workloads" / "links_ranks.py").open("a") as program:
            program.write(lines)
        monkeypatch.setattr(workload, "bundle_root", lambda: str(root))

    return add


def run(**params: Scalar) -> list[Record]:
    records: list[Record] = []
    asked = CheckRequest("links", 120.0, {**SMALL, **params})
    ctx = check.Context(INFO, asked, Plan((asked,), 120.0, {"torch": sys.executable}, "cpu"), records.append)
    with ctx.subject(HOST):
        check.load("links").run(ctx)
    for record in records:
        encode(record)
    return records


def values(records: list[Record], metric: str) -> list[Measurement]:
    return [one for one in records if isinstance(one, Measurement) and one.metric == metric]


def pairs(records: list[Record]) -> set[str]:
    return {one.labels["pair"] for one in values(records, "pair_bus_bandwidth") if one.value is not None}


def end(records: list[Record]) -> Outcome:
    (found,) = [one for one in records if isinstance(one, Outcome)]
    assert found.subject == HOST
    return found


def test_three_ranks_reduce_right_together_and_each_pair_alone() -> None:
    records = run()
    assert end(records).status == RAN, end(records).detail
    (wrong,) = values(records, "allreduce_wrong")
    assert (wrong.value, wrong.subject) == (0, HOST)
    assert [one.labels["size"] for one in values(records, "allreduce_bus_bandwidth")] == ["4 KiB", "16 KiB", "64 KiB"]
    (peak,) = values(records, "allreduce_peak")
    assert float(str(peak.value)) > 0
    assert peak.labels["bytes"] == "65536"
    assert pairs(records) == {"0-1", "0-2", "1-2"}
    for metric in INFO.metrics:
        assert values(records, metric.name), f"nothing is said of {metric.name}"


WRONG = """
_right = dist.all_reduce
def _flip(tensor, group=None):
    _right(tensor, group=group)
    if tensor.numel() > 1 and dist.get_rank() == 1:
        tensor.view(torch.int32)[5] ^= 1
dist.all_reduce = _flip
"""


def test_a_flipped_bit_in_sums_is_counted_and_placed(plant: Plant) -> None:
    plant(WRONG)
    records = run()
    (wrong,) = values(records, "allreduce_wrong")
    assert int(str(wrong.value)) > 0
    assert "allreduce of 64 KiB, all 3 ranks" in wrong.note
    assert "rank1 with rank2" in wrong.note
    assert "rank0 with rank2" not in wrong.note
    assert end(records).status == RAN, "wrong sums are judged, they are no error of the check"


HANGS = """
_pair = _Job.pair
def _hang(self, group):
    if {self.world.names[rank] for rank in group.ranks} == {"rank0", "rank1"} and self.world.name == "rank1":
        import time
        time.sleep(600)
    _pair(self, group)
_Job.pair = _hang
"""


def test_a_pair_that_hangs_is_named_and_the_others_stand(plant: Plant) -> None:
    plant(HANGS)
    records = run()
    assert end(records).status == ERROR
    assert "all-reduce of rank0 with rank1: " in end(records).detail
    assert "with rank2" not in end(records).detail
    assert pairs(records) == {"0-2", "1-2"}
    (hung,) = [one for one in values(records, "pair_bus_bandwidth") if one.absence == "unknown"]
    assert hung.labels["pair"] == "0-1"
    assert values(records, "allreduce_peak"), "what was measured before it stands"
    (wrong,) = values(records, "allreduce_wrong")
    assert wrong.value == 0


DIES = """
_reduce = _Group.all_reduce
def _die(self, size, seconds):
    if self.job.world.name == "rank2":
        raise RuntimeError("CUDA error: GPU is lost")
    return _reduce(self, size, seconds)
_Group.all_reduce = _die
"""


def test_a_rank_that_is_lost_is_named_and_the_others_are_measured(plant: Plant) -> None:
    plant(DIES)
    records = run()
    detail = end(records).detail
    assert end(records).status == ERROR
    assert "rank2: none of its links gave an answer: " in detail
    assert "rank0: " not in detail
    assert "CUDA error: GPU is lost" in detail
    assert pairs(records) == {"0-1"}
    assert {one.labels["pair"] for one in values(records, "pair_bus_bandwidth") if one.value is None} == {"0-2", "1-2"}


WRONG_PART = """
def _change(whole, part, group=None):
    _gather(whole, part, group=group)
    if dist.get_rank() == 2:
        whole[7] += 1
dist.all_gather_into_tensor = _change
"""


def test_gathered_and_scattered_parts_are_verified_too(plant: Plant) -> None:
    """The collectives that the check runs on GPUs alone; gloo has them, too."""
    plant("_gather = dist.all_gather_into_tensor\n" + WRONG_PART)
    records: list[Record] = []
    asked = CheckRequest("links", 120.0)
    ctx = check.Context(INFO, asked, Plan((asked,), 120.0), records.append)
    params = {**SMALL, "tasks": "collectives", "cpu": True, "names": "rank0,rank1,rank2"}
    ranks.run_ranks(ctx, sys.executable, "links_ranks", params, gpus=(), ranks=3, timeout_s=60.0)
    for metric in ("allgather_bus_bandwidth", "reducescatter_bus_bandwidth"):
        (rate,) = values(records, metric)
        assert float(str(rate.value)) > 0
    wrong = {
        (one.labels["rank"], one.note.split()[0]): one.value for one in values(records, "allreduce_wrong") if one.note
    }
    assert set(wrong) == {("2", "allgather")}, "one element of what rank 2 gathered was changed; nothing else was"
    sent = [one for one in values(records, "allreduce_wrong") if one.labels["rank"] != "2"]
    assert {one.value for one in sent} == {0}


def test_one_rank_alone_is_refused() -> None:
    assert "two or more" in end(run(ranks=1)).detail


@pytest.mark.parametrize("ranks", [2, 3, 4, 5, 6, 7, 8, 12, 16])
def test_sums_of_the_pattern_are_exact_as_long_as_it_says(ranks: int) -> None:
    pattern = links_pattern.Pattern(torch.device("cpu"), 1000)
    parts = []
    for rank in range(ranks):
        part = torch.empty(1000)
        pattern.fill(part, rank + 1, 3)
        parts.append(part)
    count = links_pattern.repeats(ranks, 50)
    found = torch.zeros(1000)
    for part in parts:
        found += part
    for _ in range(count - 1):
        twice = torch.zeros(1000)
        for _rank in range(ranks):
            twice += found
        found = twice
    scale = links_pattern.total(ranks) * ranks ** (count - 1)
    assert torch.isfinite(found).all()
    assert pattern.wrong(found, scale, 3) == 0
    assert pattern.wrong(found, scale, 4) == 1000, "another batch's sums are no answer"
    found.view(torch.int32)[17] ^= 1
    assert pattern.wrong(found, scale, 3) == 1
    lacking = torch.stack(parts[1:]).sum(0)
    assert pattern.wrong(lacking, links_pattern.total(ranks), 3) == 1000, "a rank that is left out is seen"


def test_blocks_larger_than_one_have_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links_pattern, "BLOCK", links_pattern.PERIOD * 2)
    pattern = links_pattern.Pattern(torch.device("cpu"), 10_000)
    found = torch.empty(10_000)
    pattern.fill(found, 2, 130)
    assert found.tolist() == [2.0 * ((index + 130) % 127 + 1) for index in range(10_000)]
    assert pattern.wrong(found, 2, 3) == 0
    found[128:256] = found[0:128].clone()  # a block of 512 bytes at another place
    assert pattern.wrong(found, 2, 3) == 128
