"""Timed matrix products of one number format, each of them verified.

Two operands x, y give two products of n x n elements, x y and y x, in turn and into the same memory, so that a product
that did not run, or ran in part, leaves the other one's elements behind and is found. The operands are verified on the
device, before the first product and after the last (operands.py). Both products are verified by other arithmetic once;
every timed product is then verified against them. Verification runs on the device between the products and
outside of their timing; what each method can miss is written in validators/workloads/verify.py.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, List, Union

import torch

from validators.workloads.kinds import Kind, tensor_float32
from validators.workloads.operands import Operand, pool_length, windows
from validators.workloads.verify import Bits, Nearness

BATCH_S = 0.1
"""Products are queued in batches of about so many seconds, so that the device never waits for the host."""
MAX_NOTES = 4
"""So many wrong products are described."""
SETTLE_S = 0.8
"""Load before the timing, always as long. A power limit is felt only after 0.7 s, and then the rate swings, on an H200
with a period of about 1.2 s: until then batches are alike, which says nothing. Runs with equal loads before the timing
agreed within 0.02 to 0.4 %, others within 0.4 to 2.6 %."""


@dataclass
class Run:
    """What the timed products of one format gave. Times in seconds."""

    n: int
    terms: int = 0
    method: str = ""
    times: List[float] = field(default_factory=list)
    total_s: float = 0.0
    verified: int = 0
    wrong: int = 0
    operands_wrong: int = 0
    notes: List[str] = field(default_factory=list)
    margin: float = 0.0

    @property
    def operations(self) -> int:
        """Of one product."""
        return 2 * self.n**2 * (self.terms or self.n)

    @property
    def mean_rate(self) -> float:
        """10**12 operations a second over the products' own time. Where a power limit makes the clock swing, this
        varies far less from run to run than the median of the products."""
        return float(self.operations * len(self.times) / sum(self.times) / 1e12)

    def rate(self, share: float) -> float:
        """10**12 operations a second at a quantile of the products, 0.5 for the median."""
        ordered = sorted(self.times)
        return float(self.operations / ordered[min(len(ordered) - 1, int((1 - share) * len(ordered)))] / 1e12)

    @property
    def rate_with_verification(self) -> float:
        """10**12 operations a second, the checksums' time counted in."""
        return float(self.operations * len(self.times) / self.total_s / 1e12)

    def note(self, text: str) -> None:
        """Describe a fault, if not too many have been."""
        if len(self.notes) < MAX_NOTES:
            self.notes.append(text)


class Stopwatch:
    """Times single products: on a GPU by events in the stream of work, on the CPU by the clock."""

    def __init__(self, device: torch.device) -> None:
        self._gpu = device.type == "cuda"
        self._marks: List[Any] = []  # all of them events, or all of them seconds

    def mark(self) -> None:
        """Now, in the order of the device's work."""
        if self._gpu:
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch leaves it untyped
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    def between(self, first: int, last: int) -> float:
        """Seconds from one mark to another; the device has finished."""
        start, end = self._marks[first], self._marks[last]
        return float(start.elapsed_time(end)) / 1e3 if self._gpu else float(end - start)


class Pair:
    """The two products of one format. `deterministic`: whether the device gets that one wrong each time."""

    def __init__(self, kind: Kind, n: int, device: torch.device, seed: int) -> None:
        self.kind, self.n, self.device, self.terms = kind, n, device, n * kind.longer
        pool = kind.pool(pool_length(self.terms), seed)
        begin = windows(n, self.terms, len(pool), seed)
        self.operands = [Operand(pool, one, self.terms, device, kind.place) for one in begin]
        x, y = (operand.matrix for operand in self.operands)
        self._factors = ((x, kind.right(y)), (y, kind.right(x)))
        self.out = kind.empty(n, n, device)
        self.deterministic = [False, False]

    @property
    def operations(self) -> int:
        """Of one product."""
        return 2 * self.n**2 * self.terms

    def multiply(self, which: int) -> None:
        """Queue product 0 or 1 into `out`."""
        left, right = self._factors[which]
        self.kind.multiply(left, right, self.out)

    def check_operands(self, run: Run, when: str) -> None:
        """Whether the device holds the operands that the CPU made."""
        for name, operand in zip("xy", self.operands):  # noqa: B905 - strict is 3.10+, the host may have 3.9
            rows = operand.wrong_rows()
            run.operands_wrong += len(rows)
            if rows:
                run.note(f"operand {name} is wrong on the device in {len(rows)} rows from row {rows[0]}, {when}")

    def reference(self, run: Run, seed: int) -> Union[Bits, Nearness]:
        """Verify both products by other arithmetic, see whether their bits repeat, and give what verifies the rest."""
        bits = Bits(self.out, seed)
        for which in (0, 1):
            self._run(which, run)
            right = self._verified(which, run, seed)
            if not right:  # once, or each time?
                self._run(which, run)
                right = self._verified(which, run, seed)
            self.deterministic[which] = not right
            bits.learn(self.out)
        repeats = [self._repeats(which, bits, run, seed) for which in (0, 1)]
        if all(repeats):
            return bits
        near = Nearness(self.kind.roundoff, self.kind.absolute(self.terms), self.n)
        for which in (0, 1):
            self._run(which, run)
            self._verified(which, run, seed)
            near.learn(self.out)
        return near

    def _repeats(self, which: int, bits: Bits, run: Run, seed: int) -> bool:
        """Whether a product's bits are those that were learnt. Of three that differ, the two that agree are right."""
        room, second = bits.rooms(2, self.device)
        self._run(which, run)
        bits.record(which, self.out, room)
        rows = bits.bad_rows(which, room)
        if not rows:
            run.wrong += self.deterministic[which]
            return True
        right = self._verified(which, run, seed)
        self._run(which, run)
        bits.record(which, self.out, second)
        alike = not bits.bad_rows(which, second)
        if not alike and torch.equal(room, second):
            bits.known[which] = second  # what was learnt was wrong, by less than the reference check can see
            self.deterministic[which] = not self._verified(which, run, seed)
        elif not alike:
            self._verified(which, run, seed)
            return False
        else:
            run.wrong += self.deterministic[which]
        if right:  # a wrong one that no other arithmetic counted
            run.wrong += 1
            run.note(f"product {run.verified - 1} or the one before it differs from row {rows[0]}; two others agree")
        return True

    def _run(self, which: int, run: Run) -> None:
        self.multiply(which)
        run.verified += 1

    def _verified(self, which: int, run: Run, seed: int) -> bool:
        """Verify the product that ran last by other arithmetic."""
        finding = self.kind.check(*self._factors[which], self.out, seed)
        run.margin = max(run.margin, finding.worst)
        if finding.wrong:
            run.wrong += 1
            run.note(
                f"product {run.verified}, checked by other arithmetic, is wrong in {finding.wrong} places "
                f"from row {finding.first_row}"
            )
        return not finding.wrong


def measure(kind: Kind, n: int, device: torch.device, seconds: float, seed: int = 7) -> Run:
    """Products of one format for about `seconds`, each verified."""
    run = Run(n, n * kind.longer)
    tensor_float32(kind.tf32)
    try:
        pair = Pair(kind, n, device, seed)
        pair.check_operands(run, "before the first product")
        verifier = pair.reference(run, seed)
        run.method = verifier.method
        once = max(batch(pair, verifier, run, 2, keep=False), 1e-6) / 2
        once = settle(pair, verifier, run, once, min(SETTLE_S, seconds))
        size = even(BATCH_S / once)
        spent = 0.0
        while spent < seconds - size * once / 2 or not run.times:  # to the nearest batch: one swing, not one and a bit
            spent += batch(pair, verifier, run, size, keep=True)
        pair.check_operands(run, "after the last product")
    finally:
        tensor_float32(False)
    return run


def even(count: float) -> int:
    """A batch has 2 to 128 products, as many of the one as of the other."""
    return min(128, max(2, int(count) // 2 * 2))


def settle(pair: Pair, verifier: Union[Bits, Nearness], run: Run, once: float, for_s: float) -> float:
    """Load for so many seconds. Returns what one product and its verification took in the end."""
    warm = 0.0
    while warm < for_s:
        size = even(BATCH_S / once)
        took = batch(pair, verifier, run, size, keep=False)
        once, warm = max(took / size, 1e-6), warm + took
    return once


def batch(pair: Pair, verifier: Union[Bits, Nearness], run: Run, count: int, *, keep: bool) -> float:
    """Queue `count` products and their verification, then read the results. Returns seconds."""
    watch = Stopwatch(pair.device)
    rooms = verifier.rooms(count, pair.device)
    for i in range(count):
        watch.mark()
        pair.multiply(i % 2)
        watch.mark()
        verifier.record(i % 2, pair.out, rooms[i])
    watch.mark()
    if pair.device.type == "cuda":
        torch.cuda.synchronize(pair.device)
    total = watch.between(0, 2 * count)
    for i, wrong in enumerate(verifier.wrong(rooms)):
        run.verified += 1
        run.wrong += wrong or pair.deterministic[i % 2]
        if wrong:
            rows = verifier.bad_rows(i % 2, rooms[i])
            run.note(f"product {run.verified} differs from row {rows[0]} to {rows[-1]}")
    if keep:
        run.times += [watch.between(2 * i, 2 * i + 1) for i in range(count)]
        run.total_s += total
    return total
