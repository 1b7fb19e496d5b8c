"""The copies between GPUs, on a DOUBLE of torch.cuda whose three cards are the CPU's memory: what is compared with
what, and that nothing wrong goes by. Streams and rates are a real GPU's business (tests/gpu/test_links_gpu.py).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import pytest
import torch

from validators.schema import Measurement, Progress, Record
from validators.workloads import links_p2p
from validators.workloads.links_p2p import Copies


class Event:
    def __init__(self, enable_timing: bool = False) -> None:
        assert enable_timing

    def record(self, _stream: object = None) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, other: Event) -> float:
        return (other.at - self.at) * 1e3


@pytest.fixture(autouse=True)
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "Stream", lambda card: card)
    for name in ("stream", "device"):
        monkeypatch.setattr(torch.cuda, name, lambda _one: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _card: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _card: (64 * 2**20, 2**30))
    monkeypatch.setattr(torch.cuda, "can_device_access_peer", lambda a, b: (a, b) != (2, 0))
    yield


@pytest.fixture
def copies() -> Copies:
    return Copies([torch.device("cpu")] * 3)


def test_slots_are_cut_to_the_memory_that_is_free(copies: Copies, monkeypatch: pytest.MonkeyPatch) -> None:
    assert copies._each * 4 * links_p2p.MOST_SLOTS <= 64 * 2**20 * links_p2p.MEMORY_SHARE
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _card: (2**20, 2**30))
    with pytest.raises(MemoryError, match="out of memory on a GPU: 1 MiB were free"):
        Copies([torch.device("cpu")])


def test_copies_one_way_and_both_ways_are_right(copies: Copies) -> None:
    one = copies.run(((0, 1),), 0.01)
    both = copies.run(((0, 1), (1, 0)), 0.01)
    assert (one.wrong, both.wrong) == (0, 0)
    assert one.rate > 0
    assert both.rate > 0
    assert copies.latency(0, 1) > 0


def test_a_changed_byte_a_copy_that_never_ran_and_a_stale_one_are_found(copies: Copies) -> None:
    copies._turn += 1
    copies._fill((0, 1), 2)
    assert copies._wrong((0, 1), 2) > copies._each, "nothing was copied"
    for slot in range(2):
        copies._in[1][slot].copy_(copies._out[0][slot])
    assert copies._wrong((0, 1), 2) == 0
    copies._in[1][1].view(torch.uint8)[77] ^= 128
    assert copies._wrong((0, 1), 2) == 1
    copies._in[1][1].copy_(copies._out[0][0])
    assert copies._wrong((0, 1), 2) > 0, "another slot's bytes"
    copies._in[1][1].copy_(copies._out[0][1])
    copies._turn += 1
    assert copies._wrong((0, 1), 2) > 0, "bytes of the batch before"


def test_every_pair_has_numbers_of_its_own(copies: Copies) -> None:
    seen = {tuple(copies._numbers((a, b), 0, a)[:64].tolist()) for a in range(3) for b in range(3) if a != b}
    assert len(seen) == 6


def test_every_direction_is_reported_and_pairs_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links_p2p, "open_cards", lambda names: [torch.device("cpu")] * len(names))
    monkeypatch.setattr(links_p2p, "MOST_BATCHES", 3)
    sent: list[Record] = []
    links_p2p.main({"names": "GPU-a,GPU-b,GPU-c", "seconds": 0.01}, sent.append)
    assert isinstance(sent[0], Progress)
    found = [one for one in sent if isinstance(one, Measurement)]
    ways = [(one.labels["a"][-1], one.labels["b"][-1]) for one in found if one.metric == "p2p_bandwidth"]
    assert ways == [("a", "b"), ("b", "a"), ("a", "c"), ("c", "a"), ("b", "c"), ("c", "b")]
    denied = [one.labels for one in found if one.metric == "p2p_access" and one.value is False]
    assert denied == [{"a": "GPU-c", "b": "GPU-a"}]
    assert len([one for one in found if one.metric == "p2p_both_ways"]) == 3
    assert {one.value for one in found if one.metric == "p2p_wrong"} == {0}
    assert links_p2p.chosen("0-2,1-2", 3) == [(0, 2), (1, 2)]
