"""Does verifying every product cost throughput? The rate that the matmul check reports against plain torch.mm.

    python benchmarks/matmul.py [--rounds 2] [--seconds 0.8] [--dtypes bf16,fp8] [--quick] [--json FILE]

One GPU, one process, the same shapes and the same operands' distribution. In each round the check's own code runs
(every product verified), then plain products back to back, nothing between them, at every size that the check chooses
from. Ours is the median over the rounds, plain the best of all sizes and rounds. Then both again at 8192: what part of
the time verification takes there ("share"), and the rate with it counted in.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from validators.workloads.kinds import Kind, tensor_float32, whole_precision
from validators.workloads.matmul import SECONDS, applicable
from validators.workloads.products import Pair, Run, Stopwatch, measure
from validators.workloads.sizing import fitting, largest, memory_of

OTHERS = {"tf32": ("gpu-burn's tf32 burn", 353.0), "bf16": ("plain torch.mm at 4096, its best", 747.0)}
"""Others' figures on one H200, measured 2026-11-21, to beside which ours are printed."""
COLUMNS = "dtype n reported spread plain_best plain_n reported/plain n verified share verified/plain reference"


def plain(kind: Kind, n: int, device: torch.device, seconds: float) -> float:
    """10**12 operations a second of products back to back, nothing between them: the median over batches."""
    pair = Pair(kind, n, device, seed=11)
    tensor_float32(kind.tf32)
    rates, spent, count = [], 0.0, 8
    while spent < seconds:
        watch = Stopwatch(device)
        watch.mark()
        for i in range(count):
            pair.multiply(i % 2)
        watch.mark()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        took = watch.between(0, 1)
        if spent:  # the first batch is the warm-up
            rates.append(count * 2 * n * n * pair.terms / took / 1e12)
        spent += took
        count = max(2, min(256, int(0.1 / (took / count))))
    tensor_float32(False)
    return statistics.median(rates) if rates else count * 2 * n * n * pair.terms / took / 1e12


def share(run: Run) -> float:
    """The part of the time that verification takes."""
    return 1 - sum(run.times) / run.total_s


def compare(kind: Kind, device: torch.device, rounds: int, seconds: float, side: int) -> dict[str, object]:
    began = time.monotonic()
    ours: list[Run] = [largest(kind, device, seconds, 0, memory=memory_of(device))]
    check_s = time.monotonic() - began
    free = memory_of(device)[0]
    n = ours[0].n
    shapes = [m for m in fitting(kind, free) if m == n or (device.type == "cuda" and m in (16384, 8192, 4096))]
    bare: dict[int, list[float]] = {m: [] for m in shapes}
    burns: list[Run] = []
    beside: list[float] = []
    for turn in range(rounds):
        for m in shapes:
            if 2 * m * m * m * kind.longer / (bare[n][0] if bare[n] else ours[0].rate(0.5)) / 1e12 < 0.1:
                bare[m].append(plain(kind, m, device, seconds / 2))
        burns.append(measure(kind, side, device, seconds))
        beside.append(plain(kind, side, device, seconds))
        if turn:
            ours.append(largest(kind, device, seconds, 0, memory=memory_of(device)))
    rates = [run.rate(0.5) for run in ours]
    best_n = max((m for m in bare if bare[m]), key=lambda m: max(bare[m]))
    best, reported = max(bare[best_n]), statistics.median(rates)
    verified = statistics.median(run.rate_with_verification for run in burns)
    every = [*ours, *burns]
    return {
        "dtype": kind.name,
        "unit": kind.unit,
        "n": [run.n for run in ours],
        "reported": reported,
        "spread": (max(rates) - min(rates)) / reported,
        "plain": {str(m): found for m, found in bare.items()},
        "plain_best": best,
        "plain_n": best_n,
        "reported_of_plain": reported / best,
        "side": side,
        "verified": verified,
        "share": statistics.median(map(share, burns)),
        "verified_of_plain": verified / statistics.median(beside),
        "with_verification": statistics.median(run.rate_with_verification for run in ours),
        "method": ours[0].method,
        "products": sum(run.verified for run in every),
        "wrong": sum(run.wrong for run in every),
        "operand_rows_wrong": sum(run.operands_wrong for run in every),
        "notes": [note for run in every for note in run.notes],
        "reference_error_of_allowed": max(run.margin for run in every),
        "flips_found_above": kind.flips_found_above(ours[0].terms, n),
        "seconds_of_check": check_s,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--dtypes", default="")
    parser.add_argument("--side", type=int, default=0, help="where the cost of verifying is read; 0: 8192, CPU 1024")
    parser.add_argument("--quick", action="store_true", help="one round")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    gpu = device.type == "cuda"
    whole_precision()
    card = torch.cuda.get_device_name(device) if gpu else "the CPU: no GPU here, figures of no weight"
    print(f"{card}, torch {torch.__version__}")
    print("".join(f"{word:>15}" for word in COLUMNS.split()))
    rows = []
    for kind in applicable(device, [name for name in options.dtypes.split(",") if name])[0]:
        try:
            rounds = 1 if options.quick else options.rounds
            row = compare(kind, device, rounds, options.seconds, options.side or (8192 if gpu else 1024))
        except (RuntimeError, MemoryError, TypeError, NotImplementedError) as problem:
            print(f"{kind.name}: {str(problem).splitlines()[0]}", flush=True)
            continue
        rows.append(row)
        show(row)
    if options.json:
        options.json.write_text(json.dumps({"device": card, "torch": torch.__version__, "rows": rows}, indent=1))


def show(row: dict[str, object]) -> None:
    first = row["n"][0] if isinstance(row["n"], list) else 0
    cells = (
        row["dtype"], first, f"{row['reported']:.4g}", f"{row['spread']:.2%}", f"{row['plain_best']:.4g}",
        row["plain_n"],
        f"{row['reported_of_plain']:.2%}", row["side"], f"{row['verified']:.4g}", f"{row['share']:.2%}",
        f"{row['verified_of_plain']:.2%}", f"{row['reference_error_of_allowed']:.2f}",
    )  # fmt: skip
    print("".join(f"{cell:>15}" for cell in cells))
    sides = ", ".join(f"{m}: {max(found):.4g}" for m, found in dict(row["plain"]).items() if found)  # type: ignore[call-overload]
    print(
        f"    plain at {sides}; chosen {row['n']}; with verification there {row['with_verification']:.4g}; "
        f"{row['products']} verified by {row['method']}, {row['wrong']} wrong, {row['operand_rows_wrong']} operand "
        f"rows wrong; {row['seconds_of_check']:.1f} s for the format, the timed {SECONDS} s among them"
    )
    for note in list(row["notes"])[:3]:  # type: ignore[call-overload]
        print(f"    {note}")
    if row["dtype"] in OTHERS:
        name, figure = OTHERS[str(row["dtype"])]
        print(f"    {name}: {figure:g}; with every product verified ours is {row['with_verification'] / figure:.1%}")  # type: ignore[operator]
    sys.stdout.flush()


if __name__ == "__main__":
    main()
