"""Products of every format and memory patterns, in turn, on one device for a long time.

After each slice it sends a sample with that load's rate and the running counts, so that nothing is lost where it is
ended early. What has not run yet has no count. Products: validators/workloads/products.py, every one verified;
patterns: memory_patterns.py.
"""

from __future__ import annotations

import contextlib
import time
from typing import Callable, Dict, List, Mapping, Tuple

import torch

from validators.schema import HOST, Record, Scalar
from validators.workloads import memory, memory_patterns
from validators.workloads.kinds import Kind, whole_precision
from validators.workloads.matmul import OPERATION_FAILED, applicable, open_device
from validators.workloads.products import Run, measure
from validators.workloads.results import Results
from validators.workloads.sizing import largest, limit_memory, memory_of

SLICE_S = 20.0
"""Seconds of one load before the next takes its turn, where the duration is long enough."""
TURNS = 10
"""Every load has its turn at least so often, so that the first tenth of the time can be set against the last."""

Slice = Callable[[float], Tuple[float, Dict[str, int]]]
"""Runs for so many seconds; gives its rate (10**12 operations or 10**9 bytes a second) and what it counted."""


def main(params: Mapping[str, Scalar], emit: Callable[[Record], None]) -> None:
    """Load one device: every load at least once, though the first round may take longer than the duration.

    Raises RuntimeError or MemoryError, with the framework's text, where nothing can run or one of the loads has died.
    params: subject (GPU UUID, or "host" for a CPU run), duration_s, slice_s, memory_gib at most (0: all that is free).
    """
    subject = str(params.get("subject", HOST))
    duration_s = float(params.get("duration_s", 60.0))
    gib = float(params.get("memory_gib", 0.0))
    device = open_device(subject)
    limit_memory(device, gib)
    whole_precision()
    results = Results("soak", subject, emit)
    loads = _loads(device, gib)
    slice_s = min(float(params.get("slice_s", SLICE_S)), duration_s / (TURNS * len(loads)))
    results.progress(f"load: {', '.join(loads)} in turn, {slice_s:.3g} s each", 0.0)
    counts: Dict[str, int] = {}  # no zero for what never ran: it would pass for a measurement
    began = time.monotonic()
    failed: Dict[str, str] = {}
    untried = set(loads)
    while loads and (untried or time.monotonic() - began < duration_s):
        for name, run in list(loads.items()):
            untried.discard(name)
            try:
                rate, counted = run(slice_s)
            except (MemoryError, *OPERATION_FAILED) as problem:
                if _lost(problem):
                    raise
                failed[name] = str(problem)
                del loads[name]
                continue
            for what, number in counted.items():
                counts[what] = counts.get(what, 0) + number
            t_s = time.monotonic() - began
            results.sample(t_s, {f"rate_{name}": rate, **counts})
            results.progress(f"load: {name} {rate:.4g}", min(1.0, t_s / duration_s))
            if t_s >= duration_s and not untried:
                break
    if failed:
        raise RuntimeError("; ".join(f"{name}: {why}" for name, why in failed.items()))


def _lost(problem: Exception) -> bool:
    """Whether the device itself is gone, so that no other load can run on it either."""
    return isinstance(problem, RuntimeError) and "CUDA error" in str(problem)


def _loads(device: torch.device, gib: float) -> Dict[str, Slice]:
    chosen: List[Kind] = applicable(device, [])[0]
    loads: Dict[str, Slice] = {kind.name: _products(kind, device) for kind in chosen}
    loads["memory"] = lambda seconds: _patterns(device, gib, seconds)
    return loads


def _products(kind: Kind, device: torch.device) -> Slice:
    size = 0  # chosen in the first slice, kept for the others: rates of different sizes cannot be compared

    def slice_of(seconds: float) -> Run:
        memory = memory_of(device)  # hands back what the load before held
        if size:  # no probing again: it would leave the device idle between its kernels
            with contextlib.suppress(torch.cuda.OutOfMemoryError):
                return measure(kind, size, device, seconds)
        return largest(kind, device, seconds, size, memory=memory_of(device) if size else memory)

    def run(seconds: float) -> Tuple[float, Dict[str, int]]:
        nonlocal size
        found = slice_of(seconds)
        size = found.n
        return found.mean_rate, {
            "products_verified": found.verified,
            "products_wrong": found.wrong + bool(found.operands_wrong),
        }

    return run


def _patterns(device: torch.device, gib: float, seconds: float) -> Tuple[float, Dict[str, int]]:
    cap = int(gib * 2**30)
    if device.type == "cpu" and not cap:
        cap = memory.CPU_BYTES
    memory_of(device)  # hands back what the products held
    tile, buffer, _ = memory.take(device, cap, memory.TILE_MIB)
    tally = memory_patterns.run(memory_patterns.Field(buffer, tile), list(memory_patterns.patterns(64)), seconds)
    moved = 2 * buffer.numel() * memory_patterns.WORD * tally.patterns
    return moved / (tally.write_s + tally.verify_s) / 1e9, {"memory_errors": tally.wrong}
