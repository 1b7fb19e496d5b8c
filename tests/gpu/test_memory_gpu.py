"""The memory workload on a real GPU: all of it right, planted faults found, and small cards served."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
import torch

from tests.need import need
from validators import check
from validators.schema import HOST, CheckRequest, Measurement, Outcome, Plan, Record, Sample
from validators.workloads import memory, memory_patterns, memory_speed
from validators.workloads.memory_patterns import Field, Pattern, patterns, run

GIB = 2**30


@pytest.fixture
def gpu() -> Iterator[torch.device]:
    need(torch.cuda.is_available(), "no GPU on this machine", installable=False)
    yield torch.device("cuda", 0)
    torch.cuda.empty_cache()


def test_words_on_the_gpu_are_those_of_the_definition(gpu: torch.device) -> None:
    tile, buffer, _ = memory.take(gpu, GIB, 1.0)
    field = Field(buffer, tile)
    for pattern in patterns(2):
        for _ in field.write(pattern):
            pass
        for index in (0, 1, tile.words - 1, tile.words, 5 * tile.words + 17, len(buffer) - 1):
            wanted = memory_patterns.signed(memory_patterns.mix(index, pattern.steps) ^ pattern.seed)
            assert int(buffer[index]) == wanted


def test_nearly_all_memory_is_tested(gpu: torch.device) -> None:
    tile, buffer, free = memory.take(gpu, 0, memory.TILE_MIB)
    assert len(buffer) * 8 >= 0.95 * free
    tally = run(Field(buffer, tile), list(patterns(2)), 30.0)
    assert (tally.patterns, tally.wrong, tally.notes) == (6, 0, [])


@pytest.mark.parametrize("place", ["front", "middle", "rear"])
def test_one_flipped_bit_in_all_the_memory_is_found(gpu: torch.device, place: str) -> None:
    tile, buffer, _ = memory.take(gpu, 0, memory.TILE_MIB)
    word = {"front": 0, "middle": len(buffer) // 2 + 1, "rear": len(buffer) - 1}[place]

    def flip(pattern: Pattern) -> None:
        if pattern.name == "round 1, complement":
            buffer[word] ^= memory_patterns.signed(1 << 63)

    tally = run(Field(buffer, tile), list(patterns(1)), 30.0, between=flip)
    assert tally.wrong == 1
    assert f"byte {word * 8:#x} (bit 63)" in tally.notes[0]


def test_everything_wrong_is_counted_in_bounded_memory(gpu: torch.device) -> None:
    tile, buffer, _ = memory.take(gpu, 0, memory.TILE_MIB)
    field = Field(buffer, tile)
    tally = run(field, list(patterns(1)), 30.0, between=lambda _pattern: buffer.fill_(0))
    assert tally.wrong >= 3 * len(field.blocks)


@pytest.mark.parametrize("line", [0, 3, 12, 20, 25])
def test_an_address_line_that_is_stuck_is_found(gpu: torch.device, line: int) -> None:
    tile, buffer, _ = memory.take(gpu, GIB, 4.0)
    pairs = buffer[: len(buffer) >> (line + 1) << (line + 1)].view(-1, 2, 1 << line)

    def alias(_pattern: Pattern) -> None:
        pairs[:, 0].copy_(pairs[:, 1])

    tally = run(Field(buffer, tile), list(patterns(1)), 30.0, between=alias)
    assert tally.wrong >= 3 * pairs[:, 0].numel() or line == 0  # more blocks than are counted one by one
    assert tally.wrong > 0


def test_a_gpu_with_one_gib_free_is_tested_too(gpu: torch.device) -> None:
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(gpu)
    need(free > 3 * GIB, "no memory to take away", installable=False)
    ballast = torch.empty(free - GIB, dtype=torch.uint8, device=gpu)
    try:
        tile, buffer, _ = memory.take(gpu, 0, memory.TILE_MIB)
        there, _ = torch.cuda.mem_get_info(gpu)
        assert len(buffer) * 8 >= 0.95 * (len(buffer) * 8 + there)
        tally = run(Field(buffer, tile), list(patterns(1)), 30.0)
        assert (tally.patterns, tally.wrong) == (3, 0)
        assert memory_speed.device_copy(buffer, 0.02).quantile(0.5) > 0
        assert memory_speed.transfers(buffer, 0.02).wrong == 0
    finally:
        del ballast


def test_a_gpu_without_memory_is_an_error_that_says_so(gpu: torch.device) -> None:
    torch.cuda.empty_cache()
    size, _ = torch.cuda.mem_get_info(gpu)
    ballast = []
    while size >= 512:
        try:
            ballast.append(torch.empty(size, dtype=torch.uint8, device=gpu))
        except torch.cuda.OutOfMemoryError:
            size //= 2
    try:
        with pytest.raises(MemoryError, match="out of memory"):
            memory.take(gpu, 0, memory.TILE_MIB)
    finally:
        del ballast


def test_transfers_bring_back_what_was_sent(gpu: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    _, buffer, _ = memory.take(gpu, 4 * GIB, memory.TILE_MIB)
    found = memory_speed.transfers(buffer, 0.1)
    assert found.wrong == 0
    assert min(one.quantile(0.5) for one in (found.to_device, found.to_host, found.pageable)) > 0

    honest = memory_speed.timed

    def broken(*arguments: object) -> memory_speed.Speed:
        speed = honest(*arguments)  # type: ignore[arg-type]
        torch.cuda.synchronize(gpu)
        buffer[-5] ^= 1
        return speed

    monkeypatch.setattr(memory_speed, "timed", broken)
    assert memory_speed.transfers(buffer, 0.01).wrong == 1


def test_the_check_measures_every_gpu(gpu: torch.device) -> None:
    torch.cuda.empty_cache()
    request = CheckRequest("memory", 300.0)
    asked = Plan((request,), 330.0, {"torch": sys.executable}, share=True)  # this process has a context there, too
    records: list[Record] = []
    context = check.Context(check.load("memory").info, request, asked, records.append)
    with context.subject(HOST):
        check.load("memory").run(context)
    outcomes = {one.subject: one for one in records if isinstance(one, Outcome)}
    assert len(outcomes) >= 2
    assert {one.status for one in outcomes.values()} == {"ran"}, outcomes
    declared = {metric.name for metric in check.load("memory").info.metrics}
    for subject in set(outcomes) - {HOST}:
        found = {one.metric: one for one in records if isinstance(one, Measurement) and one.subject == subject}
        assert set(found) == declared
        assert (found["memory_errors"].value, found["transfer_errors"].value) == (0, 0)
        assert float(str(found["memory_tested"].value)) >= 0.95
        assert found["memory_patterns"].value == 6
        assert float(str(found["memory_bandwidth_copy"].value)) > 0
        assert found["h2d_bandwidth"].labels["others"] == "waited for"
        share = found["h2d_of_link"].value
        assert share is None or 0 < float(str(share)) < 1
    assert any(isinstance(one, Sample) and one.values.get("power", 0) > 0 for one in records)
