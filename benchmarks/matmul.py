"""Does verifying every product cost throughput? The rate that the matmul check reports against plain torch.mm.

    python benchmarks/matmul.py [--rounds 3] [--seconds 1.5] [--dtypes bf16,fp8] [--size 8192] [--json FILE]

One GPU, one process, the same shapes and the same operands' distribution. In each round the check's own code runs
(every product verified), then plain products back to back in the check's own way and, where that is another call,
also as `x @ y` on row-major operands. Ours is the median over the rounds, plain the best of all rounds and calls.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from validators.workloads.kinds import Kind, tensor_float32, whole_precision
from validators.workloads.matmul import applicable
from validators.workloads.products import Pair, Stopwatch, measure
from validators.workloads.sizing import largest, memory_of


def plain(kind: Kind, n: int, device: torch.device, seconds: float) -> float:
    """10**12 operations a second of products back to back, nothing between them: the median over batches."""
    pair = Pair(kind, n, device, seed=11)
    tensor_float32(kind.tf32)
    rates, spent = [], 0.0
    while spent < seconds:
        watch = Stopwatch(device)
        watch.mark()
        for i in range(8):
            pair.multiply(i % 2)
        watch.mark()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        took = watch.between(0, 1)
        spent += took
        rates.append(8 * 2 * n**3 / took / 1e12)
    tensor_float32(False)
    return statistics.median(rates)


def compare(kind: Kind, device: torch.device, rounds: int, seconds: float, size: int) -> dict[str, float | int | str]:
    first = largest(kind, device, seconds, size, memory=memory_of(device))
    n = first.n
    ours, whole, bare = [first.rate(0.5)], [2 * n**3 * len(first.times) / first.total_s / 1e12], []
    verified, wrong = first.verified, first.wrong
    for _ in range(rounds):
        bare.append(plain(kind, n, device, seconds))
        run = measure(kind, n, device, seconds)
        ours.append(run.rate(0.5))
        whole.append(2 * n**3 * len(run.times) / run.total_s / 1e12)
        verified, wrong = verified + run.verified, wrong + run.wrong
    reported, best = statistics.median(ours), max(bare)
    return {
        "dtype": kind.name,
        "n": n,
        "unit": kind.unit,
        "reported": reported,
        "reported_spread": (max(ours) - min(ours)) / reported,
        "with_verification": statistics.median(whole),
        "plain_best": best,
        "plain_spread": (best - min(bare)) / best,
        "reported_of_plain": reported / best,
        "with_verification_of_plain": statistics.median(whole) / best,
        "verified_by": first.method,
        "verified": verified,
        "wrong": wrong,
        "reference_error_of_allowed": first.margin,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.5)
    parser.add_argument("--dtypes", default="")
    parser.add_argument("--size", type=int, default=0, help="side of the products; 0: as the check chooses")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    whole_precision()
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU: no GPU here, figures of no weight"
    print(f"{card}, torch {torch.__version__}")
    head = (
        "dtype",
        "n",
        "reported",
        "spread",
        "verified rate",
        "plain best",
        "spread",
        "reported/plain",
        "verified/plain",
    )
    print("  ".join(f"{word:>14}" for word in head))
    rows = []
    for kind in applicable(device, [name for name in options.dtypes.split(",") if name])[0]:
        row = compare(kind, device, options.rounds, options.seconds, options.size)
        rows.append(row)
        cells = (
            row["dtype"], row["n"], f"{row['reported']:.4g}", f"{row['reported_spread']:.2%}",
            f"{row['with_verification']:.4g}", f"{row['plain_best']:.4g}", f"{row['plain_spread']:.2%}",
            f"{row['reported_of_plain']:.2%}", f"{row['with_verification_of_plain']:.2%}",
        )  # fmt: skip
        print("  ".join(f"{cell:>14}" for cell in cells), flush=True)
        print(f"    {row['verified']} products verified by {row['verified_by']}, {row['wrong']} wrong", flush=True)
    if options.json:
        options.json.write_text(json.dumps({"device": card, "torch": torch.__version__, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
