"""Is our device copy as fast as a plain large one, and our pinned transfer as fast as a plain large pinned copy?

    python benchmarks/memory.py [--quick] [--json FILE]

One GPU, one process, about 25 s (--quick: 12 s). Ours is the check's own code, as it runs in the check, inside the
buffer that takes nearly all of the memory; plain is torch's copy_ in a loop between two events, on tensors of its
own. Rounds of both sides alternate. Then: how fast the patterns go by tile size, and the copy by size.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from validators.workloads import memory_patterns as patterns
from validators.workloads import memory_speed as speed
from validators.workloads.memory import TILE_MIB, take
from validators.workloads.products import Stopwatch

GIB = 2**30
Found = dict[str, object]


def looped(device: torch.device, work: Callable[[], object], moved: int, seconds: float) -> float:
    """GB/s of a plain loop: one pair of marks around all of it."""
    work()
    sync(device)
    began = time.perf_counter()
    work()
    sync(device)
    repeats = max(5, int(seconds / max(time.perf_counter() - began, 1e-6)))
    watch = Stopwatch(device)
    watch.mark()
    for _ in range(repeats):
        work()
    watch.mark()
    sync(device)
    return moved * repeats / watch.between(0, 1) / 1e9


def sync(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def free_bytes(device: torch.device) -> int:
    return int(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else 2**28


def plain_copy(device: torch.device, seconds: float) -> float:
    size = min(8 * GIB, free_bytes(device) // 3)
    source = torch.ones(size // 8, dtype=torch.int64, device=device)
    target = torch.empty_like(source)
    return looped(device, lambda: target.copy_(source), 2 * source.numel() * 8, seconds)


def plain_transfer(device: torch.device, to_device: bool, seconds: float) -> float:
    host = torch.ones(GIB // 8, dtype=torch.int64, pin_memory=device.type == "cuda")
    there = torch.ones(GIB // 8, dtype=torch.int64, device=device)
    source, target = (host, there) if to_device else (there, host)
    return looped(device, lambda: target.copy_(source, non_blocking=True), GIB, seconds)


def ours(device: torch.device, seconds: float) -> dict[str, speed.Speed]:
    """The check's own way, in the check's own buffer."""
    _, buffer, _ = take(device, 0 if device.type == "cuda" else 2**26, TILE_MIB)
    found = {
        "copy": speed.device_copy(buffer, seconds),
        "read": speed.device_read(buffer, seconds),
        "write": speed.device_write(buffer, seconds),
    }
    if device.type == "cuda":
        moved = speed.transfers(buffer, seconds)
        found.update(h2d=moved.to_device, d2h=moved.to_host, pageable_h2d=moved.pageable)
    return found


def compare(device: torch.device, rounds: int, seconds: float) -> list[Found]:
    mine: dict[str, list[speed.Speed]] = {}
    plain: dict[str, list[float]] = {"copy": [], "h2d": [], "d2h": []}
    for _ in range(rounds):
        plain["copy"].append(plain_copy(device, seconds))
        if device.type == "cuda":
            plain["h2d"].append(plain_transfer(device, True, seconds))
            plain["d2h"].append(plain_transfer(device, False, seconds))
            torch.cuda.empty_cache()
        for name, one in ours(device, seconds).items():
            mine.setdefault(name, []).append(one)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return [row(name, found, plain.get(name, [])) for name, found in mine.items()]


def row(name: str, found: list[speed.Speed], plain: list[float]) -> Found:
    medians = [one.quantile(0.5) for one in found]
    middle = statistics.median(medians)
    best = max(plain) if plain else None
    return {
        "what": name,
        "ours_gbs": middle,
        "ours_between_rounds": (max(medians) - min(medians)) / middle,
        "ours_within": statistics.median(one.spread for one in found),
        "ours_mib": found[0].moved / 2**20,
        "plain_best_gbs": best,
        "plain_between_rounds": (best - min(plain)) / best if best else None,
        "ours_of_plain": middle / best if best else None,
    }


def shown(value: object) -> str:
    return f"{value:.5g}" if isinstance(value, float) else "-" if value is None else str(value)


def print_table(rows: list[Found]) -> None:
    for one in rows:
        print("  ".join(f"{key}={shown(value)}" for key, value in one.items()), flush=True)


def by_tile(device: torch.device, rounds: int) -> list[Found]:
    """The whole memory, written and verified, with tiles of several sizes."""
    rows: list[Found] = []
    for mib in (8, 16, 32, 64, 128):
        began = time.perf_counter()
        tile, buffer, free = take(device, 0 if device.type == "cuda" else 2**26, float(mib))
        took = time.perf_counter() - began
        tally = patterns.run(patterns.Field(buffer, tile), list(patterns.patterns(rounds)), 10.0)
        bytes_each = buffer.numel() * 8
        rows.append(
            {
                "tile_mib": mib,
                "allocate_s": took,
                "tested_of_free": bytes_each / free,
                "tested_gib": bytes_each / GIB,
                "patterns": tally.patterns,
                "errors": tally.wrong,
                "seconds": tally.seconds,
                "write_gbs": bytes_each * tally.patterns / tally.write_s / 1e9,
                "verify_gbs": bytes_each * tally.patterns / tally.verify_s / 1e9,
            }
        )
        del tile, buffer
        print_table(rows[-1:])
    return rows


def by_size(device: torch.device) -> list[Found]:
    """Plain device copies, GB/s read and written: where the cache ends."""
    rows: list[Found] = []
    for mib in (1, 8, 32, 128, 512, 2048, 8192):
        if 3 * mib * 2**20 > free_bytes(device):
            break
        source = torch.ones(mib * 2**17, dtype=torch.int64, device=device)
        target = torch.empty_like(source)
        rate = looped(device, lambda s=source, t=target: t.copy_(s), 2 * mib * 2**20, 0.05)  # type: ignore[misc]
        rows.append({"copy_mib": mib, "gbs": rate})
        del source, target
    print_table(rows)
    return rows


def detect(device: torch.device) -> list[Found]:
    """Planted faults, in the real memory: found or not."""
    rows: list[Found] = []
    for name, plant in FAULTS.items():
        tile, buffer, _ = take(device, min(4 * GIB, free_bytes(device) // 2), TILE_MIB)
        field = patterns.Field(buffer, tile)
        tally = patterns.run(field, list(patterns.patterns(1)), 10.0, between=lambda _one, p=plant, f=field: p(f))  # type: ignore[misc]
        rows.append({"fault": name, "wrong_words": tally.wrong, "found": bool(tally.wrong), "note": tally.notes[:1]})
        del tile, buffer, field
    print_table(rows)
    return rows


def _flip(field: patterns.Field) -> None:
    field.buffer[len(field.buffer) // 3] ^= 1 << 41


def _swap(field: patterns.Field) -> None:
    size = 512
    one, other = field.buffer[:size], field.buffer[-size:]
    kept = one.clone()
    one.copy_(other)
    other.copy_(kept)


def _stuck(field: patterns.Field) -> None:
    field.buffer[12345] |= 1 << 7


def _address_line(field: patterns.Field) -> None:
    half = 1 << (len(field.buffer).bit_length() - 2)
    field.buffer[:half].copy_(field.buffer[half : 2 * half])


def _lost_write(field: patterns.Field) -> None:
    field.buffer[777:779].fill_(0)


FAULTS: dict[str, Callable[[patterns.Field], None]] = {
    "none (must be false)": lambda _field: None,
    "one bit flipped": _flip,
    "two runs of 4 KiB swapped": _swap,
    "one bit stuck at 1": _stuck,
    "the highest address line stuck": _address_line,
    "a write that was lost": _lost_write,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU: no GPU here, figures of no weight"
    print(f"{card}, torch {torch.__version__}, free {free_bytes(device) / GIB:.1f} GiB", flush=True)
    rounds, seconds = (2, 0.15) if options.quick else (4, 0.3)
    parts: dict[str, Callable[[], list[Found]]] = {
        "compare": lambda: compare(device, rounds, seconds),
        "patterns by tile": lambda: by_tile(device, 1 if options.quick else 2),
        "copy by size": lambda: by_size(device),
        "planted faults": lambda: detect(device),
    }
    every: dict[str, object] = {"device": card, "torch": torch.__version__}
    for name, part in parts.items():
        began = time.perf_counter()
        print(f"# {name}", flush=True)
        try:
            every[name] = part()
            if name == "compare":
                print_table(every[name])  # type: ignore[arg-type]
        except Exception:  # noqa: BLE001 - the other parts go on
            print(f"{name} failed:\n{traceback.format_exc()}", flush=True)
        sync(device)
        if device.type == "cuda":
            torch.cuda.empty_cache()
        print(f"  ({time.perf_counter() - began:.1f} s)", flush=True)
    if options.json:
        options.json.write_text(json.dumps(every, indent=1))


if __name__ == "__main__":
    main()
