"""Does verifying every product cost throughput? The rate that the matmul check reports against plain torch.mm.

    python benchmarks/matmul.py [--rounds 2] [--seconds 0.6] [--dtypes bf16,fp8] [--quick] [--json FILE]

One GPU, one process, the same shapes and the same operands. In each round the check's own code runs (every product
verified), then plain products back to back at every size that the check chooses from, after as long a run-up and for
as long. Both sides are operations by time, dips of a power limit included; then the median over the rounds. Then at
8192 batches with and without verification, in turn: "share" is the part of the time that verification takes,
"verified/plain" the ratio of the two rates.
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
from validators.workloads.products import Pair, Run, batch, even
from validators.workloads.sizing import fitting, in_turn, largest, memory_of, timed

OTHERS = {"tf32": ("gpu-burn's tf32 burn", 353.0), "bf16": ("plain torch.mm at 4096, its best", 747.0)}
"""Others' figures on one H200, measured 2026-11-21, to beside which ours are printed."""
COLUMNS = "dtype n reported spread plain_best plain_n reported/plain n verified share verified/plain reference"


def both(kind: Kind, n: int, device: torch.device, turns: int) -> tuple[Run, list[float]]:
    """Batches of verified and of plain products in turn, on the same operands: the first's run, the second's rates."""
    run = Run(n, n * kind.longer)
    tensor_float32(kind.tf32)
    try:
        pair = Pair(kind, n, device, seed=7)
        verifier = pair.reference(run, 7)
        count = even(0.1 / timed(pair, 4))
        rates = []
        for turn in range(2 * turns):
            batch(pair, verifier, run, count, keep=turn >= turns)
            rates.append(pair.operations / timed(pair, count) / 1e12)
    finally:
        tensor_float32(False)
    return run, rates[turns:]


def compare(kind: Kind, device: torch.device, rounds: int, seconds: float, side: int) -> dict[str, object]:
    ours: list[Run] = []
    check_s: list[float] = []
    bare: dict[int, list[float]] = {}
    turns = 6 if device.type == "cuda" else 1
    for _ in range(rounds):
        began = time.monotonic()
        ours.append(largest(kind, device, seconds, 0, memory=memory_of(device)))
        check_s.append(time.monotonic() - began)
        n = ours[-1].n
        fits = [m for m in fitting(kind, memory_of(device)[0]) if m in (16384, 8192, 4096) and device.type == "cuda"]
        shapes = sorted({n, *(m for m in fits if 2e-12 * m**3 * kind.longer / ours[0].mean_rate < 0.06)})
        for m in shapes:  # each for itself, as ours runs: 0.8 s of run-up, then 1.2 s
            rates = in_turn(kind, [m], device, 20 if device.type == "cuda" else 2, 0.1)[m]
            bare.setdefault(m, []).append(statistics.harmonic_mean(rates[len(rates) * 2 // 5 :]) / 1e12)
    verified, beside = both(kind, side, device, turns)
    reported = [run.mean_rate for run in ours]
    middles = {m: statistics.median(found) for m, found in bare.items()}
    best_n = max(middles, key=lambda m: middles[m])
    every = [*ours, verified]
    return {
        "dtype": kind.name,
        "unit": kind.unit,
        "n": [run.n for run in ours],
        "reported": statistics.median(reported),
        "medians": [run.rate(0.5) for run in ours],
        "means": reported,
        "spread": (max(reported) - min(reported)) / statistics.median(reported),
        "plain": {str(m): found for m, found in bare.items()},
        "plain_best": middles[best_n],
        "plain_n": best_n,
        "reported_of_plain": statistics.median(reported) / middles[best_n],
        "side": side,
        "verified": verified.rate_with_verification,
        "share": 1 - sum(verified.times) / verified.total_s,
        "verified_of_plain": verified.rate_with_verification / statistics.median(beside),
        "with_verification": statistics.median(run.rate_with_verification for run in ours),
        "method": ours[0].method,
        "products": sum(run.verified for run in every),
        "wrong": sum(run.wrong for run in every),
        "operand_rows_wrong": sum(run.operands_wrong for run in every),
        "notes": [note for run in every for note in run.notes],
        "reference_error_of_allowed": max(run.margin for run in every),
        "flips_found_above": kind.flips_found_above(ours[0].terms, ours[0].n),
        "seconds_of_check": statistics.median(check_s),
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
    sides = ", ".join(f"{m}: {statistics.median(found):.4g}" for m, found in dict(row["plain"]).items() if found)  # type: ignore[call-overload]
    print(
        "    reported "
        + ", ".join(f"{one:.4g}" for one in row["means"])
        + "; medians of their products "
        + ", ".join(f"{one:.4g}" for one in row["medians"])
    )  # type: ignore[attr-defined]
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
