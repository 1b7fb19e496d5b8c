"""Links on real GPUs: copies and NCCL right to the last byte, planted faults found, a lost rank named."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest
import torch

from tests.need import need
from validators import check
from validators.probes import workload
from validators.schema import ERROR, HOST, CheckRequest, Measurement, Outcome, Plan, Record, Scalar
from validators.workloads import links_p2p, links_pattern


@pytest.fixture
def cards() -> list[torch.device]:
    need(torch.cuda.is_available(), "no GPU on this machine", installable=False)
    need(torch.cuda.device_count() >= 2, "one GPU: no link to another", installable=False)
    return [torch.device("cuda", index) for index in range(torch.cuda.device_count())]


def test_sums_of_the_pattern_are_exact_on_a_gpu() -> None:
    need(torch.cuda.is_available(), "no GPU on this machine", installable=False)
    gpu = torch.device("cuda", 0)
    pattern = links_pattern.Pattern(gpu, 2**26)
    found = torch.empty(2**26, device=gpu)
    pattern.fill(found, 3, 5)
    assert pattern.wrong(found, 3, 5) == 0
    found.view(torch.int32)[2**25 + 77] ^= 1
    assert pattern.wrong(found, 3, 5) == 1
    assert pattern.wrong(found, 3, 6) == 2**26


def test_copies_arrive_whole_in_both_directions(cards: list[torch.device]) -> None:
    copies = links_p2p.Copies(cards)
    one = copies.run(((0, 1),), 0.05)
    both = copies.run(((0, 1), (1, 0)), 0.05)
    assert (one.wrong, both.wrong) == (0, 0)
    assert min(one.rate, both.rate, copies.latency(0, 1)) > 0


def test_a_byte_that_changes_on_the_way_is_counted(cards: list[torch.device], monkeypatch: pytest.MonkeyPatch) -> None:
    copies = links_p2p.Copies(cards)
    real = links_p2p.Copies._wrong

    def flip(self: links_p2p.Copies, way: tuple[int, int], slots: int) -> int:
        self._in[way[1]][0].view(torch.uint8)[12345] ^= 4
        return real(self, way, slots)

    monkeypatch.setattr(links_p2p.Copies, "_wrong", flip)
    took, wrong = copies._batch(((0, 1),), 2)
    assert wrong == 1
    assert took > 0


def test_a_copy_that_never_ran_is_all_wrong(cards: list[torch.device]) -> None:
    copies = links_p2p.Copies(cards)
    copies._turn += 1
    copies._fill((0, 1), 1)
    copies._wait()
    assert copies._wrong((0, 1), 1) > 0


def run(**params: Scalar) -> list[Record]:
    """The check by its own way, through a plan that shares the GPUs: this process holds them, too."""
    need("CUDA_VISIBLE_DEVICES" not in os.environ, "GPUs are hidden, which the check sees", installable=False)
    records: list[Record] = []
    asked = CheckRequest("links", 280.0, params)
    plan = Plan((asked,), 300.0, {"torch": sys.executable}, share=True)
    ctx = check.Context(check.load("links").info, asked, plan, records.append)
    with ctx.subject(HOST):
        check.load("links").run(ctx)
    return records


def test_the_check_measures_every_pair(cards: list[torch.device]) -> None:
    records = run()
    ends = {one.subject: (one.status, one.detail) for one in records if isinstance(one, Outcome)}
    assert {status for status, _ in ends.values()} == {"ran"}, ends
    values = [one for one in records if isinstance(one, Measurement)]
    count = len(cards)
    pairs = count * (count - 1) // 2
    for metric, many in (
        ("p2p_bandwidth", 2 * pairs), ("p2p_both_ways", pairs), ("pair_bus_bandwidth", pairs),
        ("allreduce_peak", int(count > 2)), ("allgather_bus_bandwidth", 1), ("reducescatter_bus_bandwidth", 1),
        ("p2p_wrong", count), ("allreduce_wrong", count),
    ):  # fmt: skip
        assert len([one for one in values if one.metric == metric and one.value is not None]) == many, metric
    assert {one.value for one in values if one.metric in ("p2p_wrong", "allreduce_wrong")} == {0}


def test_one_visible_gpu_less_than_named_is_an_error_that_says_so(cards: list[torch.device]) -> None:
    with pytest.raises(RuntimeError, match="were made visible"):
        links_p2p.open_cards(["GPU-none"] * (len(cards) + 1))


HANG = """
_pair = _Job.pair
def _hang(self, group):
    if {self.world.names[rank] for rank in group.ranks} == NAMES and self.world.name == NAME:
        import time
        time.sleep(600)
    _pair(self, group)
_Job.pair = _hang
"""
LOST = """
_reduce = _Group.all_reduce
def _lose(self, size, seconds):
    if self.job.world.name == NAME:
        torch.ones(4, device=self.job.world.device)[torch.tensor([99], device=self.job.world.device)].sum().item()
    return _reduce(self, size, seconds)
_Group.all_reduce = _lose
"""


@pytest.mark.parametrize("fault", [HANG, LOST])
def test_a_pair_that_hangs_and_a_gpu_whose_context_breaks_are_named_and_the_others_stand(
    cards: list[torch.device], fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rank that sleeps, which NCCL's watchdog must end; and a real error of CUDA (an index out of bounds)."""
    need(len(cards) >= 3, "two GPUs have no other pair", installable=False)
    uuids = [f"GPU-{torch.cuda.get_device_properties(card).uuid}" for card in cards]
    root = tmp_path / "root"
    shutil.copytree(Path(__file__).parents[2] / "validators", root / "validators")
    with (root / "validators" / "workloads" / "links_ranks.py").open("a") as program:
        program.write(fault.replace("NAMES", repr(set(uuids[:2]))).replace("NAME", repr(uuids[0])))
    monkeypatch.setattr(workload, "bundle_root", lambda: str(root))
    records = run(largest=2**26, hang_s=15.0, job_s=100.0, alone_s=60.0, p2p_seconds=0.01)
    (end,) = [one for one in records if isinstance(one, Outcome) and one.subject == HOST]
    assert end.status == ERROR
    assert uuids[0] in end.detail
    found = {
        frozenset((one.labels["a"], one.labels["b"]))
        for one in records
        if isinstance(one, Measurement) and one.metric == "pair_bus_bandwidth" and one.value is not None
    }
    expected = {frozenset((a, b)) for a in uuids for b in uuids if a < b}
    broken = {frozenset(uuids[:2])} if fault == HANG else {pair for pair in expected if uuids[0] in pair}
    assert found == expected - broken
