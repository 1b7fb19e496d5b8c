"""One rank of the collectives: all-reduce over all ranks by message size, and over each pair of them alone.

Started once for each GPU (validators/probes/ranks.py). NCCL on GPUs, gloo on the CPU. Bus bandwidth as nccl-tests
defines it (github.com/NVIDIA/nccl-tests, doc/PERFORMANCE.md): bytes / seconds, times 2(n-1)/n for all-reduce and
(n-1)/n for all-gather and reduce-scatter of that many bytes in all; it is what each link carried, whatever n is.

Timed between two events in the stream, over as many all-reduces as stay exact (links_pattern.py), with a small one
ahead of them as the barrier. What comes out is compared element by element on every rank, after each batch.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field
from typing import Any, Callable, List, Mapping, Optional, Sequence, Tuple

import torch
import torch.distributed as dist
from torch import Tensor

from validators.probes.ranks import rounds
from validators.schema import HOST, Record, Scalar
from validators.workloads.links_pattern import Pattern, repeats, total
from validators.workloads.links_world import World, join
from validators.workloads.products import Stopwatch
from validators.workloads.results import Results

CHECK = "links"
FLOAT = 4
BATCH_S = 0.05
"""About so many seconds a batch; small messages: MOST_REPEATS of them."""
JUDGED_RANKS, JUDGED_BYTES = 4, 2**28
"""The peak is judged from so many GPUs and so large a message on: with less, healthy links carry less, too."""
MOST_REPEATS = 50
LEAST_BATCHES, MOST_BATCHES = 3, 40
LEAST_BYTES = 64 * 2**20
"""With less memory than for this message, a rate would say nothing of a GPU's links."""
SPARE_BYTES = 3 * 2**29
"""Left free on a GPU: NCCL's own buffers, the pattern, and what comparing needs."""


@dataclass
class Timing:
    """Seconds of one operation, batch after batch, and how many elements of the results were wrong."""

    seconds: List[float] = field(default_factory=list)
    wrong: int = 0

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """90th less 10th percentile, by the median."""
        ordered = sorted(self.seconds)
        return (ordered[(9 * len(ordered)) // 10] - ordered[len(ordered) // 10]) / self.median


def main(params: Mapping[str, Scalar], emit: Callable[[Record], None]) -> None:
    """One rank. Raises RuntimeError with NCCL's or gloo's words, and where another rank does not come.

    params: tasks, any of "all,collectives,pairs,pair,between"; names, the ranks' GPUs (UUIDs) or "rank0,..." on the
    CPU; cpu; seconds for each message size; smallest, largest and pair_bytes in bytes; together: disjoint pairs at
    once; join_s, seconds for the other ranks to come; hang_s, seconds for one operation.
    """
    world = join(params)
    cpu = world.device.type == "cpu"
    results = Results(CHECK, HOST if cpu or not world.name.startswith("GPU-") else world.name, emit)
    results.progress(f"load: {world.size} ranks, {world.backend}")
    job = _Job(world, results, params)
    tasks = str(params.get("tasks", "all")).split(",")
    everybody = _Group(job, range(world.size), None)
    if "between" in tasks:
        job.sizes(everybody, "between", step=64)
    if "all" in tasks:
        job.sizes(everybody, "allreduce", step=4)
    if "collectives" in tasks:
        job.one_way(everybody)
    if "pair" in tasks:
        job.pair(everybody)
    if "pairs" in tasks:
        job.pairs(bool(params.get("together", True)))
    world.leave()


class _Job:
    def __init__(self, world: World, results: Results, params: Mapping[str, Scalar]) -> None:
        self.world, self.results = world, results
        self.seconds = float(params.get("seconds", 0.15))
        self.smallest = int(params.get("smallest", 1024))
        wanted = int(params.get("largest", 2**31))
        pair_bytes = int(params.get("pair_bytes", 2**28))
        self.largest = world.least("room", _room(world.device, wanted))
        self.pair_bytes = min(pair_bytes, self.largest)
        self.buffer = torch.empty(self.largest // FLOAT, device=world.device)
        self.pattern = Pattern(world.device, self.largest // FLOAT)

    def sizes(self, group: _Group, what: str, step: int) -> None:
        """All-reduce from the smallest to the largest message."""
        size = self.smallest
        while True:
            size = min(size, self.largest)
            last = size == self.largest
            timing = group.all_reduce(size, self.seconds * (4 if last else 1))
            self._wrong(what, timing, size, self.world.label)
            if group.rank == 0:
                self._told(what, timing, size, group.size)
                if last and what == "allreduce":
                    self._peak(timing, size, group.size)
            if last:
                return
            size *= step

    def _peak(self, timing: Timing, size: int, ranks: int) -> None:
        """The figure that is judged. Fewer than four GPUs carry less for each link, and so do small messages."""
        if self.world.backend == "nccl" and (ranks < JUDGED_RANKS or size < JUDGED_BYTES):
            note = f"{ranks} GPUs, {in_words(size)}: judged from four GPUs and 256 MiB on; see pair_bus_bandwidth"
            for metric in ("allreduce_peak", "allreduce_peak_spread"):
                self.results.not_applicable(metric, note, subject=HOST)
            return
        self._value("allreduce_peak", _bus(size, timing, ranks), size, ranks)
        if self.world.backend == "nccl":  # of ranks that share a CPU's cores it says nothing
            self._value("allreduce_peak_spread", timing.spread, size, ranks)

    def _told(self, what: str, timing: Timing, size: int, ranks: int) -> None:
        self._value(f"{what}_bus_bandwidth", _bus(size, timing, ranks), size, ranks)
        self._value(f"{what}_time", timing.median * 1e6, size, ranks)
        self._value(f"{what}_spread", timing.spread, size, ranks)

    def _value(self, metric: str, value: float, size: int, ranks: int, **more: str) -> None:
        labels = {"bytes": str(size), "size": in_words(size), "ranks": str(ranks), "backend": self.world.backend}
        self.results.value(metric, value, subject=HOST, **labels, **more)

    def one_way(self, group: _Group) -> None:
        """All-gather and reduce-scatter at the largest size."""
        size = self.largest // group.size // 512 * 512 * group.size
        for what, timing in (
            ("allgather", group.all_gather(size, 2 * self.seconds)),
            ("reducescatter", group.reduce_scatter(size, 2 * self.seconds)),
        ):
            self._wrong(what, timing, size, self.world.label)
            if group.rank == 0:
                rate = size / timing.median * (group.size - 1) / group.size / 1e9
                self._value(f"{what}_bus_bandwidth", rate, size, group.size, spread=f"{timing.spread:.3f}")

    def pairs(self, together: bool) -> None:
        """Every pair of ranks by itself; those of one round have no rank in common and may run at once."""
        patience = self.world.patience  # a new group would take torch's default, half an hour over gloo
        every = [pair for one in rounds(self.world.size) for pair in one]
        handles = {pair: dist.new_group(list(pair), timeout=patience) for pair in every}
        for number, one in enumerate(rounds(self.world.size)):
            for turn, some in enumerate([one] if together else [[pair] for pair in one]):
                self.world.meet(f"round{number}.{turn}")
                for pair in some:
                    if self.world.rank in pair:
                        self.pair(_Group(self, pair, handles[pair]))

    def pair(self, group: _Group) -> None:
        """One pair of ranks."""
        a, b = (self.world.names[rank] for rank in group.ranks)
        if group.rank == 0:
            self.results.progress(f"pair {group.ranks[0]}-{group.ranks[1]}")
        timing = group.all_reduce(self.pair_bytes, 2 * self.seconds)
        self._wrong("pair", timing, self.pair_bytes, f"{a} with {b}")
        if group.rank == 0:
            labels = {"a": a, "b": b, "size": in_words(self.pair_bytes), "spread": f"{timing.spread:.3f}"}
            self.results.value("pair_bus_bandwidth", _bus(self.pair_bytes, timing, 2), subject=HOST, **labels)

    def _wrong(self, what: str, timing: Timing, size: int, where: str) -> None:
        metric = "between_wrong" if what == "between" else "allreduce_wrong"
        note = f"{what} of {in_words(size)}, {where}" if timing.wrong else ""
        self.results.value(metric, timing.wrong, note, rank=str(self.world.rank))


class _Group:
    """The ranks of one communicator; `handle` None: all of them."""

    def __init__(self, job: _Job, ranks: Sequence[int], handle: Optional[Any]) -> None:
        self.job, self.ranks, self.handle = job, list(ranks), handle
        self.size, self.rank = len(self.ranks), self.ranks.index(job.world.rank)
        self._key = "group" + "-".join(map(str, self.ranks)) if handle is not None else "everybody"
        self._turn = 0
        self._small = torch.zeros(1, device=job.world.device)

    def all_reduce(self, size: int, seconds: float) -> Timing:
        """In place, of `size` bytes."""
        own = self.job.buffer[: size // FLOAT]
        pattern, ranks = self.job.pattern, self.size
        return self._timed(
            lambda shift: pattern.fill(own, self.rank + 1, shift),
            lambda: dist.all_reduce(own, group=self.handle),
            lambda count, shift: pattern.wrong(own, total(ranks) * ranks ** (count - 1), shift),
            repeats(ranks, MOST_REPEATS),
            seconds,
        )

    def all_gather(self, size: int, seconds: float) -> Timing:
        """Of `size` bytes in all: each rank gives its part."""
        whole, part = self._whole_and_part(size)
        pattern, each = self.job.pattern, part.numel()

        def refill(shift: int) -> None:
            whole.zero_()
            pattern.fill(part, self.rank + 1, shift)

        def wrong(_count: int, shift: int) -> int:
            return sum(pattern.wrong(whole[r * each : (r + 1) * each], r + 1, shift) for r in range(self.size))

        return self._timed(
            refill, lambda: dist.all_gather_into_tensor(whole, part, group=self.handle), wrong, MOST_REPEATS, seconds
        )

    def reduce_scatter(self, size: int, seconds: float) -> Timing:
        """Of `size` bytes on each rank, of which it gets its part of the sum."""
        whole, part = self._whole_and_part(size)
        pattern, each = self.job.pattern, part.numel()

        def refill(shift: int) -> None:
            part.zero_()
            pattern.fill(whole, self.rank + 1, shift)

        def wrong(_count: int, shift: int) -> int:
            return pattern.wrong(part, total(self.size), shift + self.rank * each)

        return self._timed(
            refill, lambda: dist.reduce_scatter_tensor(part, whole, group=self.handle), wrong, MOST_REPEATS, seconds
        )

    def _whole_and_part(self, size: int) -> Tuple[Tensor, Tensor]:
        each = size // FLOAT // self.size
        return self.job.buffer[: each * self.size], torch.empty(each, device=self.job.buffer.device)

    def _timed(
        self,
        refill: Callable[[int], None],
        step: Callable[[], Any],
        wrong: Callable[[int, int], int],
        most: int,
        seconds: float,
    ) -> Timing:
        """Batches of steps for about `seconds`; each batch begins with new numbers and ends with comparing them."""
        timing = Timing()
        first = 0.0
        for shift in range(2):  # the first connects, and is not timed
            refill(shift)
            first = self._batch(step, 1)
            timing.wrong += wrong(1, shift)
        count, batches = self._agree(first, most, seconds)
        for shift in range(2, 2 + batches):
            refill(shift)
            timing.seconds.append(self._batch(step, count) / count)
            timing.wrong += wrong(count, shift)
        return timing

    def _batch(self, step: Callable[[], Any], count: int) -> float:
        watch = Stopwatch(self.job.world.device)
        dist.all_reduce(self._small, group=self.handle)
        watch.mark()
        for _ in range(count):
            step()
        watch.mark()
        if self.job.world.device.type == "cuda":
            torch.cuda.synchronize(self.job.world.device)
        return watch.between(0, 1)

    def _agree(self, first: float, most: int, seconds: float) -> Tuple[int, int]:
        """Steps in a batch, and batches: every rank must do as many, so the first of them says."""
        count = max(1, min(most, math.ceil(BATCH_S / max(first, 1e-6))))
        batches = max(LEAST_BATCHES, min(MOST_BATCHES, round(seconds / (count * max(first, 1e-6)))))
        self._turn += 1
        said = self.job.world.say(f"{self._key}/{self._turn}", f"{count} {batches}", self.rank == 0)
        return int(said.split()[0]), int(said.split()[1])


def _bus(size: int, timing: Timing, ranks: int) -> float:
    return size / timing.median * 2 * (ranks - 1) / ranks / 1e9


def _room(device: torch.device, wanted: int) -> int:
    """Bytes of the largest message that this rank's memory allows, a power of two. Raises MemoryError."""
    if device.type == "cpu":
        return wanted
    free, memory = torch.cuda.mem_get_info(device)
    room = wanted
    while 1.5 * room > free - SPARE_BYTES and room > 1:
        room //= 2
    if room < min(wanted, LEAST_BYTES):
        raise MemoryError(
            f"out of memory on the GPU: {free / 2**30:.1f} GiB of {memory / 2**30:.1f} GiB were free, too little for "
            f"messages of {in_words(LEAST_BYTES)}; nvidia-smi shows which process holds the rest"
        )
    return room


def in_words(size: int) -> str:
    """Bytes as "256 MiB"."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if size >= unit:
            return f"{size / unit:.4g} {name}"
    return f"{size} B"
