"""Links on real GPUs: copies and NCCL right to the last byte, planted faults found, a lost rank named."""

from __future__ import annotations

import sys

import pytest
import torch

from tests.need import need
from validators import check
from validators.schema import HOST, CheckRequest, Measurement, Outcome, Plan, Record
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
    assert 0.5 < one.rate < 2000
    assert both.rate > 0.9 * one.rate
    assert 5e-7 < copies.latency(0, 1) < 1e-3


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


def test_the_check_measures_every_pair(cards: list[torch.device]) -> None:
    """By the check's own way through a plan that shares the GPUs: this process holds them, too."""
    records: list[Record] = []
    asked = CheckRequest("links", 280.0)
    plan = Plan((asked,), 300.0, {"torch": sys.executable}, share=True)
    ctx = check.Context(check.load("links").info, asked, plan, records.append)
    with ctx.subject(HOST):
        check.load("links").run(ctx)
    ends = {one.subject: (one.status, one.detail) for one in records if isinstance(one, Outcome)}
    assert {status for status, _ in ends.values()} == {"ran"}, ends
    values = [one for one in records if isinstance(one, Measurement)]
    count = len(cards)
    for metric, many in (
        ("p2p_bandwidth", count * (count - 1)), ("p2p_both_ways", count * (count - 1) // 2),
        ("pair_bus_bandwidth", count * (count - 1) // 2), ("allreduce_peak", int(count > 2)),
        ("allgather_bus_bandwidth", 1), ("reducescatter_bus_bandwidth", 1), ("p2p_wrong", count), ("allreduce_wrong", count),
    ):  # fmt: skip
        assert len([one for one in values if one.metric == metric and one.value is not None]) == many, metric
    assert {one.value for one in values if one.metric in ("p2p_wrong", "allreduce_wrong")} == {0}


def test_one_visible_gpu_less_than_named_is_an_error_that_says_so(cards: list[torch.device]) -> None:
    with pytest.raises(RuntimeError, match="were made visible"):
        links_p2p.open_cards(["GPU-none"] * (len(cards) + 1))
