"""How large a product to measure: as large as memory and time allow, smaller where memory runs out."""

from __future__ import annotations

import os
from typing import Callable, Iterator, Tuple

import torch

from validators.workloads.kinds import Kind, tensor_float32
from validators.workloads.products import Pair, Run, Stopwatch, measure

SIZES = (16384, 12288, 8192, 6144, 4096, 3072, 2048, 1024, 512)
LEAST = 2048
"""A smaller product for lack of memory would measure the launch, not the card."""
PRODUCT_S = 0.05
"""Sizes are chosen so that one product takes no longer, seconds."""
MEMORY_SHARE = 0.8
OVERHEAD_BYTES = 2**30


def sizes(kind: Kind, free_bytes: int, rate: float, wanted: int = 0) -> Iterator[int]:
    """Sides to try, largest first: those that memory and, at `rate` operations a second, patience allow."""
    fits = [n for n in SIZES if n * n * kind.bytes_each + OVERHEAD_BYTES <= free_bytes * MEMORY_SHARE]
    if wanted:
        yield from [wanted] + [n for n in fits if n < wanted]
        return
    patient = [n for n in fits if 2 * n**3 / rate <= PRODUCT_S]
    yield from patient or fits[-1:]


def probe(kind: Kind, device: torch.device) -> float:
    """Operations a second of a few products: at n = 1024, and at 4096 where that takes no longer than PRODUCT_S."""
    rate = _rate(kind, 1024, device)
    return _rate(kind, 4096, device) if 2 * 4096**3 / rate <= PRODUCT_S else rate


def _rate(kind: Kind, n: int, device: torch.device, repeats: int = 4) -> float:
    tensor_float32(kind.tf32)
    pair = Pair(kind, n, device, seed=1)
    watch = Stopwatch(device)
    pair.multiply(1)
    watch.mark()
    for _ in range(repeats):
        pair.multiply(0)
    watch.mark()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    tensor_float32(False)
    return 2 * n**3 * repeats / max(watch.between(0, 1), 1e-6)


def largest(
    kind: Kind,
    device: torch.device,
    seconds: float,
    wanted: int,
    *,
    memory: Tuple[int, int],
    run_one: Callable[[Kind, int, torch.device, float], Run] = measure,
) -> Run:
    """Measure at the largest size that runs: where memory runs out, the next smaller. Raises MemoryError."""
    free, total = memory
    least = LEAST if device.type == "cuda" else SIZES[-1]
    text = ""
    if any(n >= least for n in sizes(kind, free, float("inf"))):
        for n in sizes(kind, free, probe(kind, device), wanted):
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


def memory_of(device: torch.device) -> Tuple[int, int]:
    """Free and total bytes, of the GPU or of the host."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(device)
        return int(free), int(total)
    page = os.sysconf("SC_PAGE_SIZE")
    return os.sysconf("SC_AVPHYS_PAGES") * page, os.sysconf("SC_PHYS_PAGES") * page
