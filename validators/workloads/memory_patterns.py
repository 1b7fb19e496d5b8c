"""Patterns over a device's memory: written everywhere, then verified everywhere, word by word and exactly.

A 64-bit word holds T(its index) XOR seed, T being some steps of a xorshift generator (13, 7, 17; Marsaglia, "Xorshift
RNGs", Journal of Statistical Software 8(14), 2003). T is linear over GF(2) and invertible, which gives two things:

- No two words hold the same value, so whatever an address line, a decoder or a swapped block does to addresses is
  found: the word that is read was written for another index.
- T(block XOR offset) is T(block) XOR T(offset). So one tile of T(offset) is made once, and a block is written or
  verified with the tile and one constant.

A round is the pattern, its complement, and the pattern again: every bit of every word holds both values and changes
both ways (as the moving inversions of memory testers do). The next round takes another T. Nothing here waits for the
device but once in GROUP blocks, to look at the time, and at the end of each verification.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Callable, Dict, Iterator, List, Sequence, Tuple

import torch
from torch import Tensor

WORD = 8
"""Bytes in a word."""
MASK = 2**64 - 1
STEPS = (16, 19, 17, 18)
"""Steps of the generator in each round; from 16 on, one bit of the index changes 20 to 44 of the word's 64."""
SEED = 0x9E3779B97F4A7C15
"""2**64 by the golden ratio: any number with both values in many places would do."""
GROUP = 256
"""Blocks between two looks at the time."""
MAX_NOTES = 4
NAMED = 4
"""So many wrong words are named in a note."""


def mix(number: int, steps: int) -> int:
    """T: `steps` steps of xorshift64 from a 64-bit number, one of them: x ^= x << 13, x ^= x >> 7, x ^= x << 17."""
    for _ in range(steps):
        number ^= (number << 13) & MASK
        number ^= number >> 7
        number ^= (number << 17) & MASK
    return number


def mix_(words: Tensor, steps: int, room: Tensor) -> Tensor:
    """The same of each word (int64), in place; `room` is as large and is overwritten."""
    for _ in range(steps):
        for left, by in ((True, 13), (False, 7), (True, 17)):
            if left:
                torch.bitwise_left_shift(words, by, out=room)
            else:  # int64 is signed, so its right shift drags the sign in
                torch.bitwise_right_shift(words, by, out=room).bitwise_and_(2 ** (64 - by) - 1)
            words.bitwise_xor_(room)
    return words


def signed(number: int) -> int:
    """The int64 with these 64 bits."""
    return number - 2**64 if number >= 2**63 else number


@dataclass(frozen=True)
class Pattern:
    """T of so many steps, XOR seed."""

    name: str
    steps: int
    seed: int


def patterns(rounds: int) -> Iterator[Pattern]:
    """Three for each round: pattern, complement, pattern."""
    for number in range(rounds):
        steps, seed = STEPS[number % len(STEPS)], mix(SEED, number + 1)
        for part, one in (("", seed), (", complement", seed ^ MASK), (", again", seed)):
            yield Pattern(f"round {number + 1}{part}", steps, one)


@dataclass
class Tally:
    """What was found. `patterns`: how many were written and verified; `wrong`: words, over all verifications."""

    patterns: int = 0
    wrong: int = 0
    notes: List[str] = field(default_factory=list)
    seconds: float = 0.0
    write_s: float = 0.0
    verify_s: float = 0.0


class Tile:
    """A block's T(offset), and the room to compare one block; int64, int64 and bool of `words` each.

    `words` is a power of two: only then is a block's first index XOR the offset their sum.
    """

    def __init__(self, words: int, device: torch.device) -> None:
        if words & (words - 1):
            raise ValueError(f"{words} words are no power of two")
        self.words, self.steps = words, 0
        self.values = torch.empty(words, dtype=torch.int64, device=device)
        self.room = torch.empty_like(self.values)
        self.differs = torch.empty(words, dtype=torch.bool, device=device)

    def prepare(self, steps: int) -> None:
        """Fill in T of so many steps."""
        if steps != self.steps:
            torch.arange(self.words, out=self.values)
            mix_(self.values, steps, self.room)
            self.steps = steps


class Field:
    """Memory under test: `buffer`, one-dimensional int64, in blocks of the tile's size (the last may be shorter)."""

    def __init__(self, buffer: Tensor, tile: Tile) -> None:
        self.buffer, self.tile = buffer, tile
        self.blocks: List[Tensor] = list(torch.split(buffer, tile.words))
        self.counts = torch.zeros(len(self.blocks), dtype=torch.int64, device=buffer.device)
        self._counts = self.counts.unbind()
        self._starts: Dict[int, List[int]] = {}

    def constant(self, pattern: Pattern, block: int) -> int:
        """What a block's words differ by from the tile: T(its first index) XOR seed."""
        if pattern.steps not in self._starts:
            self._starts[pattern.steps] = self._mixed_starts(pattern.steps)
        return signed(self._starts[pattern.steps][block] ^ pattern.seed)

    def _mixed_starts(self, steps: int) -> List[int]:
        images: Dict[int, int] = {}
        found = [0]  # T(0) is 0
        for number in range(1, len(self.blocks)):
            lowest = number & -number
            if lowest not in images:
                images[lowest] = mix(lowest * self.tile.words, steps)
            found.append(found[number ^ lowest] ^ images[lowest])  # T is linear
        return found

    def write(self, pattern: Pattern) -> Iterator[None]:
        """Queue the writing of a pattern; stops after each group of blocks."""
        self.tile.prepare(pattern.steps)
        for number, block in enumerate(self.blocks):
            values = self.tile.values[: len(block)]
            torch.bitwise_xor(values, self.constant(pattern, number), out=block)
            if number % GROUP == GROUP - 1:
                yield

    def verify(self, pattern: Pattern) -> Iterator[None]:
        """Queue the count of wrong words in each block; stops after each group of blocks."""
        self.tile.prepare(pattern.steps)
        for number, block in enumerate(self.blocks):
            length = len(block)
            room, differs = self.tile.room[:length], self.tile.differs[:length]
            torch.bitwise_xor(block, self.tile.values[:length], out=room)
            torch.ne(room, self.constant(pattern, number), out=differs)
            torch.sum(differs, dim=0, dtype=torch.int64, out=self._counts[number])
            if number % GROUP == GROUP - 1:
                yield

    def describe(self, pattern: Pattern, counts: Sequence[int]) -> str:
        """Where the wrong words are, and which of their bits: the first bad block is read once more."""
        bad = [number for number, count in enumerate(counts) if count]
        first = bad[0]
        text = f"{pattern.name}: {sum(counts)} wrong words in {len(bad)} of {len(counts)} blocks"
        room = self.tile.room[: len(self.blocks[first])]
        torch.bitwise_xor(self.blocks[first], self.tile.values[: len(room)], out=room)
        differences = room.bitwise_xor_(self.constant(pattern, first)).cpu()  # the host has room for a list
        where = differences.nonzero()[:, 0]
        start = first * self.tile.words
        if not len(where):
            byte = start * WORD
            return f"{text}; block at byte {byte:#x} was right when read again: reading went wrong, or it heals"
        named = []
        for offset in where[:NAMED].tolist():
            named.append(f"byte {(start + offset) * WORD:#x} {_bits(int(differences[offset]) & MASK)}")
        return f"{text}; first of {len(where)} in one block: {', '.join(named)}"


def _bits(difference: int) -> str:
    which = [str(bit) for bit in range(64) if difference >> bit & 1]
    shown = ", ".join(which[:6])
    return f"(bit{'s' if len(which) > 1 else ''} {shown}{f' and {len(which) - 6} more' if len(which) > 6 else ''})"


def run(
    field_: Field,
    every: Sequence[Pattern],
    budget_s: float,
    *,
    between: Callable[[Pattern], None] = lambda _pattern: None,
) -> Tally:
    """Write and verify patterns. Out of time it stops after the second (pattern and complement), or a later one.

    `between` is called when all of a pattern is written. Raises RuntimeError where one pattern alone takes more than
    ten times the budget.
    """
    tally, began = Tally(), time.monotonic()
    for pattern in every:
        if tally.patterns >= 2 and time.monotonic() - began > budget_s:
            break
        tally.write_s += _swept(field_, field_.write(pattern), budget_s)
        between(pattern)
        tally.verify_s += _swept(field_, field_.verify(pattern), budget_s)
        counts = field_.counts.tolist()
        tally.patterns += 1
        wrong = sum(counts)
        tally.wrong += wrong
        if wrong and len(tally.notes) < MAX_NOTES:
            tally.notes.append(field_.describe(pattern, counts))
    tally.seconds = time.monotonic() - began
    return tally


def _swept(field_: Field, queueing: Iterator[None], budget_s: float) -> float:
    """Seconds of one pass over the memory."""
    began = time.monotonic()
    for _ in queueing:
        _wait(field_.buffer.device)
        if time.monotonic() - began > 10 * budget_s:
            raise RuntimeError(f"one pass over the memory took more than {10 * budget_s:g} s, and was given up")
    _wait(field_.buffer.device)
    return time.monotonic() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def tile_words(free_bytes: int, tile_mib: float) -> int:
    """Words of a tile: a power of two, at most `tile_mib` MiB and 1/256 of the memory (the tile is not tested)."""
    most = max(1024, min(int(tile_mib * 2**20), free_bytes // 256) // WORD)
    return int(2 ** (most.bit_length() - 1))


ATTEMPTS: Tuple[float, ...] = (0.98, 0.975, 0.97, 0.965, 0.96, 0.955, 0.9, 0.8, 0.65, 0.5, 0.3, 0.15)
"""Shares of the free memory to try; the rest stays for the driver, and for what is loaded on first use."""


def allocate(
    free: Callable[[], int], cap: int, make: Callable[[int], Tensor], least: int = 2**20
) -> Tuple[Tensor, int]:
    """The largest buffer to be had, and the bytes that were free at that moment. Raises MemoryError.

    `free` asks anew before each attempt, since others may take memory meanwhile. `cap`: bytes at most, 0 for no cap.
    """
    text = ""
    for share in ATTEMPTS:
        there = free()
        wanted = int(share * (min(there, cap) if cap else there)) // WORD
        if wanted * WORD < least:
            break
        try:
            return make(wanted), there
        except torch.cuda.OutOfMemoryError as problem:
            text = f": {str(problem).splitlines()[0]}"
    raise MemoryError(
        f"out of memory: of {free() / 2**20:.0f} MiB free on the device, not even {least / 2**20:.0f} MiB could be "
        f"taken to test them{text}; nvidia-smi shows which process holds the rest"
    )
