"""Memory of one device: patterns over nearly all of it, its bandwidth, and the link to the host.

Run by the host's framework Python with one GPU visible. The patterns are in memory_patterns.py, the rates in
memory_speed.py. On the CPU the same patterns run over a small buffer.
"""

from __future__ import annotations

import contextlib
from typing import Callable, Mapping, Tuple

import torch
from torch import Tensor

from validators.schema import HOST, Record, Scalar
from validators.workloads import memory_patterns as patterns
from validators.workloads import memory_speed as speed
from validators.workloads.matmul import open_device
from validators.workloads.results import Results

CPU_BYTES = 64 * 2**20
ROUNDS = 2
BUDGET_S = 6.0
"""For all patterns; pattern and complement always run."""
SECONDS = 0.25
"""For each rate."""
TILE_MIB = 32.0
"""Of the pattern that stays in the cache while blocks of the same size are written and verified."""
TRANSFERS = ("h2d_bandwidth", "h2d_bandwidth_spread", "d2h_bandwidth", "d2h_bandwidth_spread",
             "h2d_pageable_bandwidth", "transfer_errors")  # fmt: skip


def main(params: Mapping[str, Scalar], emit: Callable[[Record], None]) -> None:
    """Measure one device. Raises MemoryError where it has no memory to test, RuntimeError with the framework's text.

    params: subject (GPU UUID, or "host" for a CPU run); memory_gib, the most to test (0: all that is free); rounds of
    three patterns; seconds a rate; turn, a file to lock while the link is measured; tile_mib.
    """
    subject = str(params.get("subject", HOST))
    device = open_device(subject)
    results = Results("memory", subject, emit)
    cap = int(float(params.get("memory_gib", 0.0)) * 2**30)
    if device.type == "cpu" and not cap:
        cap = CPU_BYTES
    results.progress("load: patterns", 0.0)
    tile, buffer, free = take(device, cap, float(params.get("tile_mib", TILE_MIB)))
    _patterns(results, patterns.Field(buffer, tile), int(params.get("rounds", ROUNDS)))
    _tested(results, buffer, free, cap)
    seconds = float(params.get("seconds", SECONDS))
    results.progress("load: bandwidth", 0.5)
    if device.type == "cpu":
        copied = speed.device_copy(buffer, seconds)
        _rate(results, "cpu_copy_bandwidth", copied)
        return
    _rate(results, "memory_bandwidth_copy", speed.device_copy(buffer, seconds))
    _rate(results, "memory_bandwidth_read", speed.device_read(buffer, seconds))
    _rate(results, "memory_bandwidth_write", speed.device_write(buffer, seconds))
    with speed.turn(str(params.get("turn", ""))) as alone:
        results.progress("load: transfers", 0.75)
        _transfers(results, buffer, seconds, alone)


def take(device: torch.device, cap: int, tile_mib: float) -> Tuple[patterns.Tile, Tensor, int]:
    """A tile, the largest buffer to be had beside it, and the bytes that were free for both. Raises MemoryError."""
    free, _ = free_and_total(device)
    before = _held(device)
    few = "out of memory: {:.0f} MiB are free on the device, too little to test; nvidia-smi shows who holds the rest"
    try:
        tile = patterns.Tile(patterns.tile_words(min(free, cap) if cap else free, tile_mib), device)
        rehearse(tile)
    except RuntimeError as problem:  # CUDA has words of its own where a kernel finds no room
        if "out of memory" not in str(problem):
            raise
        raise MemoryError(few.format(free / 2**20)) from None

    def now() -> int:
        return free_and_total(device)[0] + _held(device) - before  # what was taken for the tile was free, too

    def make(words: int) -> Tensor:
        return torch.empty(words, dtype=torch.int64, device=device)

    buffer, there = patterns.allocate(now, cap, make)
    return tile, buffer, there


def _held(device: torch.device) -> int:
    """Bytes of the device that this program has from the driver."""
    return torch.cuda.memory_reserved(device) if device.type == "cuda" else 0


def rehearse(tile: patterns.Tile) -> None:
    """Run every operation once on a few words: kernels are loaded on first use, and need memory then."""
    few = torch.empty(min(len(tile.values), 2**16), dtype=torch.int64, device=tile.values.device)
    patterns.run(patterns.Field(few, tile), list(patterns.patterns(1)), BUDGET_S)
    speed.device_copy(few, 0.0)
    speed.device_read(few, 0.0)
    speed.device_write(few, 0.0)
    if few.device.type == "cuda":
        with contextlib.suppress(RuntimeError):  # no pinned memory to be had: told by the transfers, the rest stands
            speed.transfers(few, 0.0, pinned_bytes=2**16)


def free_and_total(device: torch.device) -> Tuple[int, int]:
    """Bytes of the device (of the host, for the CPU) that are free, and all of them."""
    if device.type == "cpu":
        return speed.host_bytes(), speed.host_bytes()
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    return int(free), int(total)


def _patterns(results: Results, field: patterns.Field, rounds: int) -> None:
    every = list(patterns.patterns(max(1, rounds)))
    tally = patterns.run(field, every, BUDGET_S)
    size = len(field.buffer) * patterns.WORD
    labels = {
        "write_rate": f"{size * tally.patterns / max(tally.write_s, 1e-9) / 1e9:.4g} GB/s",
        "verify_rate": f"{size * tally.patterns / max(tally.verify_s, 1e-9) / 1e9:.4g} GB/s",
    }
    short = "" if tally.patterns == len(every) else f"of {len(every)}: {BUDGET_S:g} s were over"
    results.value("memory_patterns", tally.patterns, short, **labels)
    results.value("memory_errors", tally.wrong, "; ".join(tally.notes))


def _tested(results: Results, buffer: Tensor, free: int, cap: int) -> None:
    size = len(buffer) * patterns.WORD
    results.value("memory_tested_mib", size / 2**20, f"{free / 2**20:.0f} MiB were free")
    if results.subject == HOST:
        results.not_applicable("memory_tested", "a CPU run tests a small buffer of the host's memory")
    elif cap and cap < free:
        results.not_applicable(
            "memory_tested", f"memory_gib allowed {cap / 2**30:g} GiB of {free / 2**30:.1f} GiB free"
        )
    else:
        results.value("memory_tested", min(1.0, size / free))


def _rate(results: Results, metric: str, found: speed.Speed, **labels: str) -> None:
    results.value(metric, found.quantile(0.5), mib=f"{found.moved / 2**20:.0f}", times=str(len(found.rates)), **labels)
    results.value(f"{metric}_spread", found.spread)


def _transfers(results: Results, buffer: Tensor, seconds: float, alone: bool) -> None:
    others = "waited for" if alone else "may run at the same time"
    try:
        found = speed.transfers(buffer, seconds)
    except RuntimeError as problem:  # no pinned memory to be had: the rest stands
        for metric in TRANSFERS:
            results.unknown(metric, f"transfers failed: {problem}")
        return
    _rate(results, "h2d_bandwidth", found.to_device, others=others)
    _rate(results, "d2h_bandwidth", found.to_host, others=others)
    pageable = found.pageable
    results.value("h2d_pageable_bandwidth", pageable.quantile(0.5), others=others, spread=f"{pageable.spread:.3f}")
    results.value("transfer_errors", found.wrong, f"of {found.to_host.moved // patterns.WORD} words there and back")
