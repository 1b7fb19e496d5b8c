"""How large a product to measure: the fastest of what memory and time allow, smaller where memory runs out."""

from __future__ import annotations

import os
from typing import Callable, Dict, Iterator, List, Tuple

import torch

from validators.workloads.kinds import DOUBLE, Kind, kinds, tensor_float32
from validators.workloads.products import Pair, Run, Stopwatch, even, measure

SIZES = (16384, 12288, 8192, 6144, 4096, 3072, 2048, 1024, 512)
COMPARED = (8192, 4096)
"""Beside the largest that time allows these are tried."""
LEAST = 2048
"""A smaller product for lack of memory would measure the launch, not the card."""
PRODUCT_S = 0.05
"""Sizes are chosen so that one product takes no longer, seconds."""
MOST_TERMS = 2**28
"""Elements of an operand, n times the terms: 16384 x 16384."""
BURST_S, TURNS = 0.05, 3
"""Load at each of the sizes that are compared, in turn and without a pause; the first turn is not counted."""
LARGER_WITHIN = 0.01
"""A larger size is preferred to a faster one by no more than this share: verifying costs it less, and it varies less.
In the first tenths of a second, before the power limit is met, a small size is faster than it stays."""
MEMORY_SHARE = 0.8
OVERHEAD_BYTES = 2**30
DOUBLE_S = 1.0
"""fp32 is verified by a float64 product, which a gaming card takes 64 times as long for; seconds each."""

_caps: Dict[int, int] = {}


def fitting(kind: Kind, free_bytes: int) -> List[int]:
    """Sides that this much memory allows, largest first."""
    room = free_bytes * MEMORY_SHARE - OVERHEAD_BYTES
    return [n for n in SIZES if kind.bytes_needed(n) <= room and n * n * kind.longer <= MOST_TERMS]


def sizes(
    kind: Kind, free_bytes: int, rate: float, wanted: int = 0, double_rate: float = float("inf")
) -> Iterator[int]:
    """Sides to try, largest first: those that memory and, at `rate` operations a second, patience allow."""
    fits = fitting(kind, free_bytes)
    if wanted:
        yield from [wanted] + [n for n in fits if n < wanted]
        return
    patient = [n for n in fits if 2 * n**3 * kind.longer / rate <= PRODUCT_S]
    if kind.reference == DOUBLE:
        patient = [n for n in patient if 2 * n**3 / double_rate <= DOUBLE_S]
    yield from patient or fits[-1:]


def probe(kind: Kind, device: torch.device) -> float:
    """Operations a second of a few products: at n = 1024, and at 4096 where that takes no longer than PRODUCT_S."""
    rate = burst(kind, 1024, device)
    return burst(kind, 4096, device) if 2 * 4096**3 * kind.longer / rate <= PRODUCT_S else rate


def burst(kind: Kind, n: int, device: torch.device) -> float:
    """Operations a second of four products."""
    tensor_float32(kind.tf32)
    try:
        pair = Pair(kind, n, device, seed=7)
        pair.multiply(1)
        return pair.operations / timed(pair, 4)
    finally:
        tensor_float32(False)


def timed(pair: Pair, count: int) -> float:
    """Seconds of one of so many products back to back."""
    watch = Stopwatch(pair.device)
    watch.mark()
    for i in range(count):
        pair.multiply(i % 2)
    watch.mark()
    if pair.device.type == "cuda":
        torch.cuda.synchronize(pair.device)
    return max(watch.between(0, 1), 1e-6) / count


def in_turn(kind: Kind, sides: List[int], device: torch.device, turns: int, burst_s: float) -> Dict[int, List[float]]:
    """Operations a second of products back to back at each of these sizes, turn by turn and without a pause."""
    tensor_float32(kind.tf32)
    try:
        pairs = [Pair(kind, n, device, seed=7) for n in sides]
        for pair in pairs:  # a kernel is loaded at its first call
            timed(pair, 2)
        counts = [even(burst_s / timed(pair, 2)) for pair in pairs]
        found: Dict[int, List[float]] = {n: [] for n in sides}
        for _ in range(turns):
            for pair, count in zip(pairs, counts):  # noqa: B905 - strict is 3.10+, the host may have 3.9
                found[pair.n].append(pair.operations / timed(pair, count))
    finally:
        tensor_float32(False)
    return found


def fastest(kind: Kind, device: torch.device, candidates: List[int], free: int) -> List[int]:
    """The candidates from the fastest on; smaller ones after it, for where memory runs out."""
    compared = [n for n in candidates if n == candidates[0] or n in COMPARED]
    needed = sum(map(kind.bytes_needed, compared)) + OVERHEAD_BYTES
    if device.type != "cuda" or len(compared) < 2 or needed > free * MEMORY_SHARE:
        return candidates
    try:
        rates = in_turn(kind, compared, device, TURNS, BURST_S)
    except torch.cuda.OutOfMemoryError:  # somebody else took it meanwhile
        return candidates
    best = compared[0]
    for n in compared[1:]:
        if sum(rates[n][1:]) > sum(rates[best][1:]) * (1 + LARGER_WITHIN):
            best = n
    return [n for n in candidates if n <= best]


def largest(
    kind: Kind,
    device: torch.device,
    seconds: float,
    wanted: int,
    *,
    memory: Tuple[int, int],
    run_one: Callable[[Kind, int, torch.device, float], Run] = measure,
) -> Run:
    """Measure at the size that runs fastest: where memory runs out, the next smaller. Raises MemoryError."""
    free, total = memory
    least = LEAST if device.type == "cuda" else SIZES[-1]
    text = ""
    if any(n >= least for n in fitting(kind, free)):
        double_rate = burst(kinds()["fp64"], 1024, device) if kind.reference == DOUBLE else float("inf")
        candidates = list(sizes(kind, free, probe(kind, device), wanted, double_rate))
        for n in candidates if wanted else fastest(kind, device, candidates, free):
            if text and n < least:
                break
            try:
                return run_one(kind, n, device, seconds)
            except torch.cuda.OutOfMemoryError as problem:
                text = f"; at {n} x {n}: {str(problem).splitlines()[0]}"
            if device.type == "cuda":  # only now: the exception held the tensors
                torch.cuda.empty_cache()
    where = "the GPU" if device.type == "cuda" else "the host"
    raise MemoryError(
        f"out of memory on {where}: {free / 2**30:.1f} GiB of {total / 2**30:.1f} GiB were free, too little for "
        f"{kind.name} products of {least} x {least} or more{text}; nvidia-smi shows which process holds the rest"
    )


def limit_memory(device: torch.device, gib: float) -> None:
    """Use no more than so many GiB of the GPU's memory from now on, as on a smaller card; 0 or less: all of it."""
    if device.type == "cuda" and gib > 0:
        cap = int(min(gib * 2**30, torch.cuda.mem_get_info(device)[1]))
        _caps[device.index or 0] = cap
        torch.cuda.set_per_process_memory_fraction(cap / torch.cuda.mem_get_info(device)[1], device)


def memory_of(device: torch.device) -> Tuple[int, int]:
    """Free and total bytes, of the GPU (under the cap of `limit_memory`, where there is one) or of the host."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        free, total = (int(one) for one in torch.cuda.mem_get_info(device))
        cap = _caps.get(device.index or 0, total)
        return min(free, max(0, cap - torch.cuda.memory_reserved(device))), min(total, cap)
    page = os.sysconf("SC_PAGE_SIZE")
    return os.sysconf("SC_AVPHYS_PAGES") * page, os.sysconf("SC_PHYS_PAGES") * page
