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
COUNT_S = 2.0
COUNT_WORDS = 2**18
"""Words that are counted at once: a sum of truth values takes 8 bytes each, and little memory is left."""
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
    """A block's T(offset), and the room to compare one block; int64 of `words` each.

    `words` is a power of two: only then is a block's first index XOR the offset their sum.
    """

    def __init__(self, words: int, device: torch.device) -> None:
        if words & (words - 1):
            raise ValueError(f"{words} words are no power of two")
        self.words, self.steps = words, 0
        self.values = torch.empty(words, dtype=torch.int64, device=device)
        self.room = torch.empty_like(self.values)

    def prepare(self, steps: int) -> None:
        """Fill in T of so many steps."""
        if steps != self.steps:
            torch.arange(self.words, out=self.values)
            mix_(self.values, steps, self.room)
            self.steps = steps


class Field:
    """Memory under test: `buffer`, one-dimensional int64, in blocks of the tile's size (the last may be shorter).

    A block is right where the least and the greatest of its words XOR the tile are both the block's constant. That is
    an exact comparison of every bit in one reduction, without a mask or a count that would need more memory.
    """

    def __init__(self, buffer: Tensor, tile: Tile) -> None:
        self.buffer, self.tile = buffer, tile
        self.blocks: List[Tensor] = list(torch.split(buffer, tile.words))
        self.extremes = torch.zeros(2, len(self.blocks), dtype=torch.int64, device=buffer.device)
        self._out = list(zip(*(row.unbind() for row in self.extremes.unbind())))  # noqa: B905 - strict is 3.10+
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
        """Queue the comparison of each block; stops after each group of blocks. `bad` has the result."""
        self.tile.prepare(pattern.steps)
        for number, block in enumerate(self.blocks):
            room = self.tile.room[: len(block)]
            torch.bitwise_xor(block, self.tile.values[: len(block)], out=room)
            torch.aminmax(room, dim=0, out=self._out[number])
            if number % GROUP == GROUP - 1:
                yield

    def bad(self, pattern: Pattern) -> List[int]:
        """The blocks in which the last verification found a wrong word; waits for the device."""
        least, most = self.extremes.tolist()
        right = (self.constant(pattern, number) for number in range(len(self.blocks)))
        return [n for n, value in enumerate(right) if not least[n] == value == most[n]]

    def differences(self, pattern: Pattern, block: int) -> Tensor:
        """What a block's words differ by from what they should be, read now; on the device, in the tile's room."""
        room = self.tile.room[: len(self.blocks[block])]
        torch.bitwise_xor(self.blocks[block], self.tile.values[: len(room)], out=room)
        return room.bitwise_xor_(self.constant(pattern, block))

    def count(self, pattern: Pattern, bad: Sequence[int]) -> int:
        """Wrong words in bad blocks, read once more: at least one each, and no more than that once COUNT_S are over."""
        end, total = time.monotonic() + COUNT_S, 0
        for block in bad:
            words = 0
            if time.monotonic() < end:
                parts = torch.split(self.differences(pattern, block), COUNT_WORDS)
                words = sum(int(torch.ne(part, 0).sum()) for part in parts)
            total += max(1, words)
        return total

    def describe(self, pattern: Pattern, bad: Sequence[int], wrong: int) -> str:
        """Where wrong words are, and which of their bits, from the first bad block."""
        first = bad[0]
        start = first * self.tile.words
        text = f"{pattern.name}: {wrong} wrong words in {len(bad)} of {len(self.blocks)} blocks"
        differences = self.differences(pattern, first).cpu()  # the host has room for the list
        where = differences.nonzero()[:, 0]
        if not len(where):
            end = (start + len(differences)) * WORD
            return f"{text}; bytes {start * WORD:#x} to {end:#x} were right when read again: reading went wrong"
        named = []
        for offset in where[:NAMED].tolist():
            named.append(f"byte {(start + offset) * WORD:#x} {_bits(int(differences[offset]) & MASK)}")
        return f"{text}; first: {', '.join(named)}"


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
        tally.patterns += 1
        bad = field_.bad(pattern)
        if bad:
            wrong = field_.count(pattern, bad)
            tally.wrong += wrong
            if len(tally.notes) < MAX_NOTES:
                tally.notes.append(field_.describe(pattern, bad, wrong))
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
