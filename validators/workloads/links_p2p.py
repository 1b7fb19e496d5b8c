"""Copies from each GPU to each other one: whether they reach each other's memory, how fast, and every byte verified.

One process that sees all the GPUs, in the order of their UUIDs. A batch copies several slots one after the other, each
from its own place to its own place, so that each byte of each timed copy is compared afterwards on the GPU that got
it. Times are those of events in the source's stream, in which torch queues a copy. The latency is that of small copies
in a queue which was filled while the GPU was kept busy: what the host needs to queue them is not in it, what torch
does to keep the two GPUs' streams in order is.
"""

from __future__ import annotations

import math
import statistics
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Mapping, Sequence, Tuple

import torch
from torch import Tensor

from validators.schema import HOST, Record, Scalar
from validators.workloads.links_world import same_gpu
from validators.workloads.results import Results

CHECK = "links"
SLOT_BYTES = 2**28
MOST_SLOTS = 8
MEMORY_SHARE = 0.2
"""Of what is free on the fullest GPU: each holds what it sends and what it gets, and what comparing needs."""
LEAST_SLOT = 2**20
SMALL_ELEMENTS = 4
SMALL_COPIES = 100
QUEUE_S = 0.004
"""Seconds that a GPU is kept busy while SMALL_COPIES are queued."""
BATCH_S = 0.02
MOST_BATCHES = 20


def main(params: Mapping[str, Scalar], emit: Callable[[Record], None]) -> None:
    """Every pair, both directions. Raises RuntimeError or MemoryError with the framework's words.

    params: names, the GPUs' UUIDs with commas, as they are visible; pairs, "0-1,0-2" to measure these alone; seconds
    for each direction.
    """
    names = [name for name in str(params["names"]).split(",") if name]
    seconds = float(params.get("seconds", 0.1))
    cards = open_cards(names)
    results = Results(CHECK, HOST, emit)
    results.progress("load: copies between GPUs")
    copies = Copies(cards)
    for a, b in chosen(str(params.get("pairs", "")), len(cards)):
        results.progress(f"copies {a}-{b}")
        for source, target in ((a, b), (b, a)):
            labels = {"a": names[source], "b": names[target]}
            access = bool(torch.cuda.can_device_access_peer(source, target))
            results.value("p2p_access", access, **labels)
            run = copies.run(((source, target),), seconds)
            results.value("p2p_bandwidth", run.rate, spread=f"{run.spread:.3f}", **labels)
            results.value("p2p_latency", copies.latency(source, target) * 1e6, **labels)
            results.value("p2p_wrong", run.wrong, **labels)
        both = copies.run(((a, b), (b, a)), seconds)
        labels = {"a": names[a], "b": names[b]}
        results.value("p2p_both_ways", both.rate, spread=f"{both.spread:.3f}", **labels)
        results.value("p2p_wrong", both.wrong, "copied both ways at once" if both.wrong else "", **labels)


def open_cards(names: Sequence[str]) -> List[torch.device]:
    """The GPUs, in the order of the names. Raises RuntimeError where torch sees others."""
    if torch.version.cuda is None:
        raise RuntimeError(f"torch {torch.__version__} is a build without CUDA; install a CUDA build of torch")
    torch.cuda.init()  # type: ignore[no-untyped-call]  # torch leaves it untyped; raises with CUDA's own text
    if torch.cuda.device_count() != len(names):
        raise RuntimeError(f"torch sees {torch.cuda.device_count()} GPUs where {len(names)} were made visible")
    cards = [torch.device("cuda", index) for index in range(len(names))]
    for card, name in zip(cards, names):  # noqa: B905 - strict is 3.10+, the host may have 3.9
        same_gpu(card, name)
    return cards


def chosen(text: str, count: int) -> List[Tuple[int, int]]:
    """The pairs to measure: those of the text, else all."""
    if not text:
        return [(a, b) for a in range(count) for b in range(a + 1, count)]
    return [(int(a), int(b)) for a, _, b in (one.partition("-") for one in text.split(","))]


@dataclass
class Run:
    """Batches of copies: 10**9 bytes a second of each (both directions together), and how many bytes were wrong."""

    rates: List[float]
    wrong: int = 0

    @property
    def rate(self) -> float:
        """The median."""
        return statistics.median(self.rates)

    @property
    def spread(self) -> float:
        """90th less 10th percentile, by the median."""
        ordered = sorted(self.rates)
        return (ordered[(9 * len(ordered)) // 10] - ordered[len(ordered) // 10]) / self.rate


Way = Tuple[int, int]
"""From one device to another, by index."""


class Copies:
    """What every GPU holds: slots to send and slots to get; and two streams, so that directions do not wait."""

    def __init__(self, cards: Sequence[torch.device]) -> None:
        self.cards = list(cards)
        free = min(int(torch.cuda.mem_get_info(card)[0]) for card in cards)
        slot = SLOT_BYTES
        while slot * MOST_SLOTS > free * MEMORY_SHARE and slot > LEAST_SLOT:
            slot //= 2
        if slot * MOST_SLOTS > free * MEMORY_SHARE:
            raise MemoryError(f"out of memory on a GPU: {free / 2**20:.0f} MiB were free on the fullest of them")
        self._each = slot // 4
        self._out = [torch.empty(MOST_SLOTS, self._each, dtype=torch.int32, device=card) for card in cards]
        self._in = [torch.empty(MOST_SLOTS, self._each, dtype=torch.int32, device=card) for card in cards]
        self._steps = [torch.arange(self._each, dtype=torch.int32, device=card) for card in cards]
        self._streams = [[torch.cuda.Stream(card) for _ in range(2)] for card in cards]  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self._turn = 0
        self._busy: Dict[int, int] = {}

    def run(self, ways: Sequence[Way], seconds: float) -> Run:
        """Copy these ways at once, for about `seconds`."""
        self._batch(ways, 1)  # the first opens the way
        one, wrong = self._batch(ways, 1)
        slots = max(1, min(MOST_SLOTS, math.ceil(BATCH_S / max(one, 1e-6))))
        batches = max(3, min(MOST_BATCHES, round(seconds / max(one * slots, 1e-6))))
        run = Run([], wrong)
        for _ in range(batches):
            took, wrong = self._batch(ways, slots)
            run.rates.append(len(ways) * slots * self._each * 4 / took / 1e9)
            run.wrong += wrong
        return run

    def _batch(self, ways: Sequence[Way], slots: int) -> Tuple[float, int]:
        """Seconds that the slower way took, and the wrong bytes of all."""
        self._turn += 1
        for way in ways:
            self._fill(way, slots)
        self._wait()
        marks = [self._mark(way, lane) for lane, way in enumerate(ways)]
        for slot in range(slots):
            for lane, (source, target) in enumerate(ways):
                with self._lane(source, target, lane):
                    self._in[target][slot].copy_(self._out[source][slot], non_blocking=True)
        ends = [self._mark(way, lane) for lane, way in enumerate(ways)]
        self._wait()
        took = max(float(start.elapsed_time(ends[lane])) for lane, start in enumerate(marks)) / 1e3
        return took, sum(self._wrong(way, slots) for way in ways)

    def _lane(self, source: int, target: int, lane: int) -> ExitStack:
        """Copies are queued in the source's stream and ordered against the target's: a pair of streams a direction."""
        stack = ExitStack()
        stack.enter_context(torch.cuda.stream(self._streams[target][lane]))
        stack.enter_context(torch.cuda.stream(self._streams[source][lane]))
        return stack

    def _mark(self, way: Way, lane: int) -> Any:
        with torch.cuda.device(self.cards[way[0]]):
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch leaves it untyped
            event.record(self._streams[way[0]][lane])
        return event

    def _numbers(self, way: Way, slot: int, card: int) -> Tensor:
        """What this slot holds in this batch: another number at each place, and for each pair, slot and batch."""
        factor = 2 * (way[0] * 64 + way[1]) + 1  # odd: each place has its own
        return self._steps[card] * factor + (self._turn * 7919 + slot * 104729)

    def _fill(self, way: Way, slots: int) -> None:
        source, target = way
        for slot in range(slots):
            with torch.cuda.device(self.cards[source]):
                self._out[source][slot].copy_(self._numbers(way, slot, source))
            with torch.cuda.device(self.cards[target]):
                self._in[target][slot].zero_()

    def _wrong(self, way: Way, slots: int) -> int:
        """Bytes that are not what was sent, compared on the GPU that got them."""
        target = way[1]
        with torch.cuda.device(self.cards[target]):
            count = torch.zeros((), dtype=torch.int64, device=self.cards[target])
            for slot in range(slots):
                differs = self._in[target][slot] != self._numbers(way, slot, target)
                count += differs.sum()
            if not int(count.item()):
                return 0
            return sum(self._bytes(way, slot) for slot in range(slots))

    def _bytes(self, way: Way, slot: int) -> int:
        expected = self._numbers(way, slot, way[1]).view(torch.uint8)
        return int((self._in[way[1]][slot].view(torch.uint8) != expected).sum().item())

    def latency(self, source: int, target: int) -> float:
        """Seconds of one small copy in a full queue: the median of five queues."""
        small = self._out[source].view(-1)[:SMALL_ELEMENTS]
        place = self._in[target].view(-1)[:SMALL_ELEMENTS]
        if source not in self._busy:
            self._busy[source] = self._fills(source)
        found = []
        for _ in range(5):
            with self._lane(source, target, 0):
                for _ in range(self._busy[source]):
                    self._keep_busy(source)
                start = self._mark((source, target), 0)
                for _ in range(SMALL_COPIES):
                    place.copy_(small, non_blocking=True)
                end = self._mark((source, target), 0)
            self._wait()
            found.append(float(start.elapsed_time(end)) / 1e3 / SMALL_COPIES)
        return statistics.median(found)

    def _keep_busy(self, card: int) -> None:
        self._in[card].zero_()

    def _fills(self, card: int) -> int:
        """How often this GPU must clear what it gets to be busy for QUEUE_S."""
        with torch.cuda.device(self.cards[card]), torch.cuda.stream(self._streams[card][0]):
            start = self._mark((card, card), 0)
            for _ in range(3):
                self._keep_busy(card)
            end = self._mark((card, card), 0)
        self._wait()
        return max(1, math.ceil(QUEUE_S / max(float(start.elapsed_time(end)) / 3e3, 1e-6)))

    def _wait(self) -> None:
        for card in self.cards:
            torch.cuda.synchronize(card)
