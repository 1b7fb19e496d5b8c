"""Which faults does the matmul check find? Planted ones, its method beside a card that is compared with itself.

    python benchmarks/faults.py [--n 1024] [--trials 8] [--dtypes bf16,fp8] [--quick] [--json FILE]

Each fault is planted in one place of the device's answers (or operands): in one product (transient), or in every
product in the same place (permanent). "ours" is what the check runs: operands against the CPU's checksums, products by
other arithmetic, timed products bit for bit, whole numbers. "itself" is how gpu-burn looks for faults: later
products against the card's first one, an element counts when it is off by more than 0.001 (float64: 1e-7).
The last table is the promise: of sign and exponent flips of an element above the stated bound none is missed, by the
products' own verification alone (without the whole numbers), also when they repeat. On the CPU: small, for the method.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import defaultdict
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.doubles.faulty_products import Change, Faulty, always, bits, flip, once, shapes, spoil
from validators.workloads import exact
from validators.workloads.kinds import Kind, kinds, tensor_float32, whole_precision
from validators.workloads.matmul import applicable
from validators.workloads.products import Pair, Run, batch

TIMED = 4
"""Products after the reference ones."""
TRANSIENT = 6
"""The product that a transient fault hits: the first four are the reference ones."""
Tally = dict[tuple[str, str, str], list[tuple[bool, bool]]]


class Bench:
    """One format: the products without a fault, and what each method says once one is planted."""

    def __init__(self, kind: Kind, n: int, device: torch.device) -> None:
        self.kind, self.n, self.device = kind, n, device
        self.pair = Pair(kind, n, device, seed=7)
        tensor_float32(kind.tf32)
        self.healthy = [self._product(which) for which in (0, 1)]

    def _product(self, which: int) -> Tensor:
        self.pair.multiply(which)
        return self.pair.out.clone()

    def ours(self, faulty: Faulty) -> bool:
        """Whether the verification of the products finds it."""
        self.pair.kind = faulty
        run = Run(self.n, self.pair.terms)
        verifier = self.pair.reference(run, 7)
        batch(self.pair, verifier, run, TIMED, keep=True)
        self.pair.kind = self.kind
        return run.wrong > 0

    def whole_numbers(self, faulty: Faulty) -> bool:
        """Whether the exact-integer product of the same size finds it."""
        return bool(exact.wrong_at_full_size(faulty, self.n, self.device))

    def itself(self, faulty: Faulty) -> bool:
        """Whether a comparison of later products with the first one finds it."""
        allowed = 1e-7 if self.kind.output is torch.float64 else 1e-3
        self.pair.kind = faulty
        first, found = self._product(0), False
        for _ in range(TRANSIENT):
            off = (self._product(0).double() - first.double()).abs()
            found = found or not bool((off <= allowed).all())  # what is no number counts too
        self.pair.kind = self.kind
        return found

    def operand(self, change: Change) -> tuple[bool, bool]:
        """The same for a fault in an operand before the first product: the checksums, and the card with itself."""
        pair = Pair(spoil(self.kind, operand_fault=once(1, change)), self.n, self.device, seed=7)
        run = Run(self.n, pair.terms)
        pair.check_operands(run, "before the first product")
        kept, self.pair = self.pair, pair
        itself = self.itself(spoil(self.kind))
        self.pair = kept
        return run.operands_wrong > 0, itself


def plant(bench: Bench, trials: int, dice: random.Random, tally: Tally, promise: dict[str, list[bool]]) -> None:
    """All faults on one format."""
    name, n = bench.kind.name, bench.n
    floor = bench.kind.flips_found_above(bench.pair.terms, n)
    for bit, part in bits(bench.kind.output):
        for _ in range(trials):
            row, column = dice.randrange(n), dice.randrange(n)
            found = judge(bench, tally, name, part, flip(bit, row, column))
            value = min(abs(float(product[row, column])) for product in bench.healthy)
            if part != "mantissa bit" and value > floor:
                promise[name] += found
    for _ in range(trials):
        for what, change in shapes(n, dice).items():
            judge(bench, tally, name, what, change)
    for bit, part in bits(bench.kind.operand):
        row, column = dice.randrange(n), dice.randrange(bench.pair.terms)
        tally[name, "permanent", f"operand, {part}"].append(bench.operand(flip(bit, row, column)))


def judge(bench: Bench, tally: Tally, name: str, what: str, change: Change) -> list[bool]:
    """Plant it once and always; returns whether the products' own verification found it."""
    transient = spoil(bench.kind, once(TRANSIENT, change))
    seen = bench.ours(transient)
    tally[name, "transient", what].append((seen, bench.itself(spoil(bench.kind, once(3, change)))))
    permanent = bench.ours(spoil(bench.kind, always(change)))
    whole = permanent or bench.whole_numbers(spoil(bench.kind, always(change)))
    itself = bench.itself(spoil(bench.kind, always(change)))
    tally[name, "permanent", what].append((whole, itself))
    if what.endswith("bit"):
        tally[name, "permanent, without whole numbers", what].append((permanent, itself))
    return [seen, permanent]


def show(tally: Tally, promise: dict[str, list[bool]], floors: dict[str, str]) -> None:
    names = list(floors)
    print("\nfound of planted, ours | itself")
    print(f"{'':<56}" + "".join(f"{name:>14}" for name in names))
    for what, when in dict.fromkeys((what, when) for _, when, what in tally):
        cells = []
        for name in names:
            found = tally.get((name, when, what), [])
            share = [f"{sum(one[i] for one in found) / len(found):.0%}" for i in (0, 1)] if found else []
            cells.append(f"{' | '.join(share):>14}")
        print(f"{what + ', ' + when:<56}" + "".join(cells))
    print("\nsign and exponent flips (whole numbers: any bit) of an element above the bound, transient and permanent")
    for name in names:
        found = promise[name]
        print(f"  {name}: {sum(found)} of {len(found)} found; bound {floors[name]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=0, help="side of the products; 0: 1024 on a GPU, 96 on the CPU")
    parser.add_argument("--trials", type=int, default=0, help="places for each bit and fault; 0: 2 on a GPU, else 1")
    parser.add_argument("--dtypes", default="")
    parser.add_argument("--quick", action="store_true", help="one place for each")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    gpu = device.type == "cuda"
    whole_precision()
    n = options.n or (1024 if gpu else 96)
    trials = 1 if options.quick else options.trials or (2 if gpu else 1)
    card = torch.cuda.get_device_name(device) if gpu else "the CPU"
    print(f"{card}, torch {torch.__version__}, {n} x {n} products, {trials} places for each bit and fault")
    names = [one for one in options.dtypes.split(",") if one]
    if not gpu and not names:
        names = list(kinds())
    tally: Tally = defaultdict(list)
    promise: dict[str, list[bool]] = defaultdict(list)
    floors: dict[str, str] = {}
    dice = random.Random(1)  # noqa: S311 - places of faults
    for kind in applicable(device, names)[0]:
        began = time.monotonic()
        try:
            bench = Bench(kind, n, device)
            floors[kind.name] = (
                f"{kind.flips_found_above(bench.pair.terms, n):.3g} where elements are of the order "
                f"{float(bench.healthy[0].double().std()):.3g}"
            )
            plant(bench, trials, dice, tally, promise)
        except (RuntimeError, TypeError, NotImplementedError) as problem:
            print(f"{kind.name}: {str(problem).splitlines()[0]}")
        print(f"{kind.name}: {time.monotonic() - began:.1f} s", flush=True)
        tensor_float32(False)
    show(tally, promise, floors)
    if options.json:
        rows = [
            {"dtype": d, "when": w, "fault": f, "planted": len(v),
             "ours": sum(a for a, _ in v), "itself": sum(b for _, b in v)}
            for (d, w, f), v in tally.items()
        ]  # fmt: skip
        options.json.write_text(
            json.dumps({"device": card, "torch": torch.__version__, "n": n, "rows": rows}, indent=1)
        )


if __name__ == "__main__":
    main()
