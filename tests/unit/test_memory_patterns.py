"""The memory patterns on the CPU: right memory passes, and every fault that is planted is found."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from validators.workloads import memory, memory_patterns
from validators.workloads.memory_patterns import Field, Pattern, Tally, Tile, allocate, mix, patterns, run

CPU = torch.device("cpu")
TILE = 2**10
WORDS = 20 * TILE + 300
"""Not whole tiles, not a power of two."""


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def field(words: int = WORDS, tile: int = TILE) -> Field:
    return Field(torch.empty(words, dtype=torch.int64), Tile(tile, CPU))


def found(
    plant: Callable[[Tensor, Pattern], object], *, only: str = "", rounds: int = 1, tested: Field | None = None
) -> Tally:
    """Run with a fault that is planted when all is written: in each pattern, or in the one named."""
    tested = tested or field()

    def between(pattern: Pattern) -> None:
        if only in ("", pattern.name):
            plant(tested.buffer, pattern)

    return run(tested, list(patterns(rounds)), 30.0, between=between)


def expected(pattern: Pattern, words: int) -> list[int]:
    """By definition, word by word, in Python's own arithmetic."""
    return [memory_patterns.signed(mix(index, pattern.steps) ^ pattern.seed) for index in range(words)]


def test_memory_that_holds_its_words_has_no_error() -> None:
    tally = found(lambda _buffer, _pattern: None, rounds=3)
    assert (tally.patterns, tally.wrong, tally.notes) == (9, 0, [])


def test_each_word_is_what_the_definition_says() -> None:
    def compare(buffer: Tensor, pattern: Pattern) -> None:
        assert buffer.tolist() == expected(pattern, len(buffer))

    assert found(compare, rounds=2).patterns == 6


@pytest.mark.parametrize("steps", memory_patterns.STEPS)
def test_no_two_indices_have_the_same_word(steps: int) -> None:
    basis: list[int] = []  # T is linear: it is injective where the images of the 64 bits are independent
    for bit in range(64):
        image = mix(1 << bit, steps)
        for other in basis:
            image = min(image, image ^ other)
        assert image, f"bit {bit} is a sum of lower ones"
        basis.append(image)
    assert mix(12345 ^ 2**40, steps) == mix(12345, steps) ^ mix(2**40, steps)
    changed = [bin(mix(1 << bit, steps)).count("1") for bit in range(64)]
    assert 16 <= min(changed) <= max(changed) <= 48


def test_every_bit_holds_both_values_and_changes_both_ways() -> None:
    seen: list[Tensor] = []
    found(lambda buffer, _pattern: seen.append(buffer.clone()))
    first, second, third = seen
    assert torch.equal(first, ~second)
    assert torch.equal(first, third)


@pytest.mark.parametrize("bit", range(64))
def test_one_flipped_bit_is_found_and_named(bit: int) -> None:
    def flip(buffer: Tensor, _pattern: Pattern) -> None:
        buffer[5 * TILE + 7] ^= memory_patterns.signed(1 << bit)

    tally = found(flip, only="round 1, complement")
    assert tally.wrong == 1
    assert f"byte {(5 * TILE + 7) * 8:#x} (bit {bit})" in tally.notes[0]


@pytest.mark.parametrize("word", [0, TILE - 1, TILE, WORDS - 1])
def test_the_first_and_last_words_are_tested_too(word: int) -> None:
    def flip(buffer: Tensor, _pattern: Pattern) -> None:
        buffer[word] ^= 1

    assert found(flip, only="round 1").wrong == 1


@pytest.mark.parametrize("value", [0, 1])
@pytest.mark.parametrize("bit", [0, 31, 63])
def test_a_bit_that_is_stuck_is_found_whatever_the_value(bit: int, value: int) -> None:
    mask = memory_patterns.signed(1 << bit)

    def stick(buffer: Tensor, _pattern: Pattern) -> None:
        word = int(buffer[4242])
        buffer[4242] = word | mask if value else word & ~mask

    assert found(stick).wrong in (1, 2)  # wrong in the pattern and again, or in the complement


@pytest.mark.parametrize("line", range(14))
def test_an_address_line_that_is_stuck_is_found(line: int) -> None:
    """Every index with that bit reads and writes the cell of the one without: the later write stays."""

    def alias(buffer: Tensor, _pattern: Pattern) -> None:
        index = torch.arange(len(buffer))
        with_line = index[(index >> line & 1).bool()]
        buffer[with_line & ~(1 << line)] = buffer[with_line]

    tally = found(alias, only="round 1")
    assert tally.wrong == sum(1 for index in range(WORDS) if index >> line & 1)


def test_two_regions_that_are_the_same_memory_are_found() -> None:
    tested = field()
    tested.blocks[3] = tested.blocks[11]
    tally = found(lambda _buffer, _pattern: None, tested=tested)
    assert tally.wrong == 3 * TILE
    assert "1 of 21 blocks" in tally.notes[0]


@pytest.mark.parametrize("size", [1, 8, 512, TILE, 3 * TILE])
def test_regions_that_changed_places_are_found(size: int) -> None:
    def swap(buffer: Tensor, _pattern: Pattern) -> None:
        one, other = buffer[2 * TILE : 2 * TILE + size], buffer[9 * TILE : 9 * TILE + size]
        kept = one.clone()
        one.copy_(other)
        other.copy_(kept)

    assert found(swap, only="round 1, again").wrong == 2 * size


def test_a_write_that_is_lost_is_found() -> None:
    """The block keeps what the pattern before left there, in each of two rounds."""
    before: list[Tensor] = []

    def lose(buffer: Tensor, _pattern: Pattern) -> None:
        block = buffer[TILE : 2 * TILE]
        written = block.clone()
        if before:
            block.copy_(before[-1])
        before.append(written)

    assert found(lose, rounds=2).wrong == 5 * TILE


def test_a_fault_that_heals_before_it_is_read_again_is_counted() -> None:
    tested = field()
    honest = tested.differences
    healed: list[int] = []

    def heal(pattern: Pattern, block: int) -> Tensor:
        if not healed:
            tested.buffer[77] ^= 4
            healed.append(block)
        return honest(pattern, block)

    def plant(buffer: Tensor, _pattern: Pattern) -> None:
        buffer[77] ^= 4

    tested.differences = heal  # type: ignore[method-assign]
    tally = found(plant, only="round 1", tested=tested)
    assert tally.wrong == 1
    assert "right when read again" in tally.notes[0]


def test_notes_are_few_even_where_everything_is_wrong() -> None:
    tally = found(lambda buffer, _pattern: buffer.zero_(), rounds=4)
    assert tally.wrong >= 12 * (WORDS - 1)
    assert len(tally.notes) == memory_patterns.MAX_NOTES
    assert all(len(note) < 400 for note in tally.notes)


def test_out_of_time_it_stops_after_pattern_and_complement() -> None:
    tested = field()
    assert run(tested, list(patterns(4)), -1.0).patterns == 2


def test_a_pass_that_takes_far_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_patterns, "GROUP", 4)
    with pytest.raises(RuntimeError, match="was given up"):
        run(field(), list(patterns(1)), -1.0)


def test_a_tile_is_a_power_of_two_and_small_beside_the_memory() -> None:
    for free in (2**28, 2**30, 3 * 2**30, 139 * 2**30):
        words = memory_patterns.tile_words(free, 32)
        assert words & (words - 1) == 0
        assert 2 * words * 8 <= free * 0.01
        assert words * 8 <= 32 * 2**20
    with pytest.raises(ValueError, match="no power of two"):
        Tile(1000, CPU)


class Card:
    """A device with so many bytes free, from which others take some after the first look."""

    def __init__(self, free: int, taken: int = 0) -> None:
        self._free, self._taken, self.asked = free, taken, 0
        self.tried: list[int] = []

    def free(self) -> int:
        self.asked += 1
        return self._free

    def make(self, words: int) -> Tensor:
        self.tried.append(words * 8)
        if self._taken:
            self._free, self._taken = self._free - self._taken, 0
        if words * 8 > self._free * 0.99:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB\nmore words")
        return torch.empty(1, dtype=torch.int64)


def test_nearly_all_that_is_free_is_taken() -> None:
    card = Card(2**30)
    allocate(card.free, 0, card.make)
    assert card.tried == [int(0.98 * 2**30) // 8 * 8]


def test_memory_that_somebody_takes_meanwhile_is_left_to_him() -> None:
    card = Card(8 * 2**30, taken=5 * 2**30)
    _, free = allocate(card.free, 0, card.make)
    assert free == 3 * 2**30
    assert card.tried[-1] >= 0.95 * free
    assert len(card.tried) == 2


def test_a_cap_holds() -> None:
    card = Card(8 * 2**30)
    allocate(card.free, 2**30, card.make)
    assert card.tried[-1] <= 2**30


def test_no_memory_at_all_is_an_error_that_says_how_much_was_free() -> None:
    card = Card(2**30)

    def refuse(_words: int) -> Tensor:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate\nand so on")

    with pytest.raises(MemoryError, match=r"of 1024 MiB free .* CUDA out of memory. Tried to allocate; nvidia-smi"):
        allocate(card.free, 0, refuse)
    with pytest.raises(MemoryError, match="of 0 MiB free"):
        allocate(Card(1000).free, 0, refuse)


def test_the_tile_and_the_buffer_are_both_counted_as_free() -> None:
    tile, buffer, free = memory.take(CPU, 2**20 * 8, 32.0)
    assert 0.95 * 2**23 <= len(buffer) * 8 <= 2**23
    assert tile.words * 8 * 256 <= 2**23
    assert free > 2**23
