"""Timed matrix products of one number format, each of them verified.

Two n x n operands x, y give two products, x y and y x, in turn and into the same memory, so that a product that did
not run, or ran in part, leaves the other one's elements behind and is found. Both are verified by other arithmetic
once; every timed product is then verified against them. Verification runs on the device between the products and
outside of their timing; what each method can miss is written in validators/workloads/verify.py.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, List, Union

import torch

from validators.workloads.kinds import Kind, tensor_float32
from validators.workloads.verify import Bits, Nearness

BATCH_S = 0.25
"""Products are queued in batches of about so many seconds, so that the device never waits for the host."""
MAX_NOTES = 4
"""So many wrong products are described."""
WARM_S = 0.4
"""Load before the first timed product of a format: clocks and power settle."""


@dataclass
class Run:
    """What the timed products of one format gave. Times in seconds."""

    n: int
    method: str = ""
    times: List[float] = field(default_factory=list)
    total_s: float = 0.0
    verified: int = 0
    wrong: int = 0
    notes: List[str] = field(default_factory=list)
    margin: float = 0.0

    def rate(self, share: float) -> float:
        """10**12 operations a second at a quantile of the products, 0.5 for the median."""
        ordered = sorted(self.times)
        return float(2 * self.n**3 / ordered[min(len(ordered) - 1, int((1 - share) * len(ordered)))] / 1e12)


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
    """The two products of one format, and the verified answers to them."""

    def __init__(self, kind: Kind, n: int, device: torch.device, seed: int) -> None:
        self.kind, self.n, self.device = kind, n, device
        x, y = kind.draw(n, device, seed), kind.draw(n, device, seed + 1)
        self._factors = ((x, kind.right(y)), (y, kind.right(x)))
        self.out = kind.empty(n, n, device)
        self.deterministic = [False, False]
        """Whether the device gets this product wrong each time."""

    def multiply(self, which: int) -> None:
        """Queue product 0 or 1 into `out`."""
        left, right = self._factors[which]
        self.kind.multiply(left, right, self.out)

    def reference(self, run: Run, seed: int) -> Union[Bits, Nearness]:
        """Verify both products by other arithmetic, see whether their bits repeat, and give what verifies the rest."""
        bits = Bits(self.out, seed)
        near = Nearness(self.kind.roundoff, self.kind.absolute(self.n), self.n)
        for which in (0, 1):
            right = self._checked(which, run, seed) or self._checked(which, run, seed)  # once more, after a wrong one
            self.deterministic[which] = not right
            bits.learn(self.out)
            near.learn(self.out)
        repeats = True
        room = bits.room(self.device)
        for which in (0, 1):
            right = self._checked(which, run, seed)
            bits.record(which, self.out, room)
            if right and not self.deterministic[which] and bits.bad_rows(which, room):
                repeats = False  # right both times, and not the same bits
        return bits if repeats else near

    def _checked(self, which: int, run: Run, seed: int) -> bool:
        """Run a product and verify it by other arithmetic."""
        self.multiply(which)
        finding = self.kind.check(*self._factors[which], self.out, seed)
        run.verified += 1
        run.margin = max(run.margin, finding.worst)
        if finding.wrong:
            run.wrong += 1
            run.notes.append(
                f"product {run.verified}, checked by other arithmetic, is wrong in {finding.wrong} places "
                f"from row {finding.first_row}"
            )
        return not finding.wrong


def measure(kind: Kind, n: int, device: torch.device, seconds: float, seed: int = 7) -> Run:
    """Products of one format for about `seconds`, each verified."""
    run = Run(n)
    tensor_float32(kind.tf32)
    try:
        pair = Pair(kind, n, device, seed)
        verifier = pair.reference(run, seed)
        run.method = verifier.method
        once = max(batch(pair, verifier, run, 2, keep=False), 1e-6) / 2
        size = min(64, max(2, int(BATCH_S / once) // 2 * 2))
        warm = 0.0
        while warm < min(WARM_S, seconds / 4):
            warm += batch(pair, verifier, run, size, keep=False)
        spent = 0.0
        while spent < seconds or not run.times:
            spent += batch(pair, verifier, run, size, keep=True)
    finally:
        tensor_float32(False)
    return run


def batch(pair: Pair, verifier: Union[Bits, Nearness], run: Run, count: int, *, keep: bool) -> float:
    """Queue `count` products and their verification, then read the results. Returns seconds."""
    watch = Stopwatch(pair.device)
    rooms = [verifier.room(pair.device) for _ in range(count)]
    for i in range(count):
        watch.mark()
        pair.multiply(i % 2)
        watch.mark()
        verifier.record(i % 2, pair.out, rooms[i])
    watch.mark()
    if pair.device.type == "cuda":
        torch.cuda.synchronize(pair.device)
    total = watch.between(0, 2 * count)
    for i, room in enumerate(rooms):
        rows = verifier.bad_rows(i % 2, room)
        run.verified += 1
        run.wrong += bool(rows or pair.deterministic[i % 2])
        if rows and len(run.notes) < MAX_NOTES:
            run.notes.append(f"product {run.verified} differs from row {rows[0]} to {rows[-1]}")
    if keep:
        run.times += [watch.between(2 * i, 2 * i + 1) for i in range(count)]
        run.total_s += total
    return total
