"""Does the links check report what the links can do? Its figures against bare loops, one after the other.

    PYTHONPATH=. python3 benchmarks/links.py [--quick] [--json FILE]

All GPUs of the host, 2 or more. All-reduce of 2 GiB: a bare torch.distributed NCCL loop (its own few lines below: no
verifying, no barriers in between) in a process for each GPU, and the check's own workload; before and after. Copies of
256 MiB from each GPU to each other: a bare `copy_` loop, and the check's. The order is bare, check, bare, check.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from validators.probes.ranks import free_port

ROOT = Path(__file__).resolve().parent.parent

BARE = """
import os, sys, time, torch, torch.distributed as dist
rank, size, seconds = int(os.environ["RANK"]), int(sys.argv[1]), float(sys.argv[2])
cuda = torch.cuda.is_available()
if cuda: torch.cuda.set_device(rank)
dist.init_process_group("nccl" if cuda else "gloo")
x = torch.zeros(size // 4, device="cuda" if cuda else "cpu")
now = time.perf_counter
sync = torch.cuda.synchronize if cuda else (lambda: None)
for _ in range(3): dist.all_reduce(x)
sync(); rates = []; n = dist.get_world_size(); end = now() + seconds
steps = 10 if cuda else 2
for _ in range(max(3, int(float(sys.argv[3])))):
    sync(); t = now()
    for _ in range(steps): dist.all_reduce(x)
    sync(); rates.append(size / ((now() - t) / steps) * 2 * (n - 1) / n / 1e9)
if rank == 0: print("RATES", " ".join(map(str, rates)), flush=True)
os._exit(0)
"""

COPY = """
import sys, time, torch
n = torch.cuda.device_count(); size = int(sys.argv[1])
for a in range(n):
    for b in range(n):
        if a == b: continue
        x = torch.empty(size, dtype=torch.uint8, device=f"cuda:{a}"); y = torch.empty(size, dtype=torch.uint8, device=f"cuda:{b}")
        y.copy_(x); rates = []
        for _ in range(5):
            torch.cuda.synchronize(a); torch.cuda.synchronize(b)
            s = torch.cuda.Event(enable_timing=True); e = torch.cuda.Event(enable_timing=True)
            with torch.cuda.device(a):
                s.record()
                for _ in range(8): y.copy_(x, non_blocking=True)
                e.record()
            torch.cuda.synchronize(a); torch.cuda.synchronize(b)
            rates.append(8 * size / (s.elapsed_time(e) / 1e3) / 1e9)
        print("PAIR", a, b, sorted(rates)[2], flush=True)
"""  # noqa: E501 - a script of its own, short as a person would type it


def processes(program: list[str], count: int, environment: dict[str, str], stdin: bytes = b"") -> list[str]:
    """Run a rank in each of `count` processes; what each printed. Raises RuntimeError with the first that failed."""
    shared = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_DEVICE_ORDER": "PCI_BUS_ID", **environment}
    port = str(free_port())
    started = []
    with tempfile.TemporaryDirectory() as folder:
        for rank in range(count):
            own = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count),
                   "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}  # fmt: skip
            out, err = (Path(folder) / f"{name}{rank}" for name in ("out", "err"))
            with out.open("wb") as o, err.open("wb") as e:
                started.append(subprocess.Popen(program, env=own, stdin=subprocess.PIPE, stdout=o, stderr=e))
        end = time.monotonic() + 90
        try:
            for one in started:
                if one.stdin:
                    one.stdin.write(stdin)
                    one.stdin.flush()
            codes = [one.wait(max(1.0, end - time.monotonic())) for one in started]
        finally:
            for one in started:
                one.kill()
        said = [(Path(folder) / f"out{rank}").read_text() for rank in range(count)]
        for rank, code in enumerate(codes):
            if code:
                words = (Path(folder) / f"err{rank}").read_text().strip()[-1500:]
                raise RuntimeError(f"rank {rank} ended with {code}: {words}")
        return said


RANK = """
import sys, json
from validators.workloads import {name} as workload
from validators.schema import Measurement
def emit(record):
    if isinstance(record, Measurement): print(json.dumps([record.metric, record.value, dict(record.labels), record.subject]), flush=True)
workload.main(json.loads(sys.argv[1]), emit)
import os; sys.stdout.flush(); os._exit(0)
"""  # noqa: E501 - as above


def ours(name: str, params: dict[str, Any], count: int) -> list[tuple[str, Any, dict[str, str], str]]:
    """The check's workload, and all that its processes sent."""
    said = processes([sys.executable, "-c", RANK.format(name=name), json.dumps(params)], count, {})
    return [tuple(json.loads(line)) for text in said for line in text.splitlines() if line.startswith("[")]  # type: ignore[misc]


def bare(size: int, count: int, batches: int) -> list[float]:
    said = processes([sys.executable, "-c", BARE, str(size), "1", str(batches)], count, {})
    return [float(word) for word in next(t for t in said if "RATES" in t).split("RATES")[1].split()]


def spread(rates: list[float]) -> float:
    return (max(rates) - min(rates)) / statistics.median(rates)


def all_reduce(count: int, size: int, rounds: int, names: list[str], cpu: bool) -> dict[str, Any]:
    theirs: list[float] = []
    mine: list[float] = []
    wrong = 0
    took = []
    rest: list[tuple[str, Any, dict[str, str], str]] = []
    for number in range(rounds):
        theirs += bare(size, count, 5)
        began = time.monotonic()
        whole = number == rounds - 1
        params = {
            "names": ",".join(names), "cpu": cpu, "largest": size, "smallest": 1024 if whole else size,
            "tasks": ("all,pairs" if cpu else "all,collectives,pairs") if whole else "all",
        }  # fmt: skip
        found = ours("links_ranks", params, count)
        took.append(time.monotonic() - began)
        mine += [value for metric, value, labels, _ in found
                 if metric == "allreduce_bus_bandwidth" and labels["bytes"] == str(size)]  # fmt: skip
        wrong += sum(value for metric, value, _, _ in found if metric == "allreduce_wrong")
        rest = found
    print(f"\nall-reduce of {size >> 20} MiB, {count} ranks, bus bandwidth in GB/s")
    best, median = statistics.median(theirs), statistics.median(mine)
    print(f"  bare loop {best:8.1f} (median of {len(theirs)} batches, spread {spread(theirs):.2%})")
    print(f"  the check {median:8.1f} (median of {len(mine)} runs, spread {spread(mine):.2%}), {wrong} wrong elements")
    print(f"  check / bare {median / best:.2%}; the last job, all sizes and pairs, took {took[-1]:.1f} s", flush=True)
    for metric, value, labels, _ in rest:
        if "bus_bandwidth" in metric or metric in ("allreduce_time", "allreduce_peak_spread"):
            where = labels.get("size", "") + (f" {labels['a']} {labels['b']}" if "a" in labels else "")
            print(f"    {metric:28} {value:12.3f} {where} {labels.get('spread', '')}")
    return {"bare": theirs, "check": mine, "ratio": median / best, "wrong": wrong, "seconds": took, "all": rest}


def copies(count: int, names: list[str]) -> dict[str, Any]:
    plain: dict[tuple[int, int], list[float]] = {}
    mine: dict[tuple[int, int], list[float]] = {}
    wrong = 0
    rest: list[tuple[str, Any, dict[str, str], str]] = []
    took = 0.0
    for _ in range(2):
        (said,) = processes([sys.executable, "-c", COPY, str(2**28)], 1, {})
        for line in said.splitlines():
            if line.startswith("PAIR"):
                _, a, b, rate = line.split()
                plain.setdefault((int(a), int(b)), []).append(float(rate))
        began = time.monotonic()
        rest = ours("links_p2p", {"names": ",".join(names)}, 1)
        took = time.monotonic() - began
        wrong += sum(value for metric, value, _, _ in rest if metric == "p2p_wrong")
        for metric, value, labels, _ in rest:
            if metric == "p2p_bandwidth":
                mine.setdefault((names.index(labels["a"]), names.index(labels["b"])), []).append(value)
    print(f"\ncopies of 256 MiB, GB/s; {wrong} wrong bytes; the check's whole matrix took {took:.1f} s")
    ratios = []
    for pair in sorted(plain):
        ratios.append(statistics.median(mine[pair]) / statistics.median(plain[pair]))
        print(f"  {pair[0]} > {pair[1]}: bare {statistics.median(plain[pair]):7.1f}, check "
              f"{statistics.median(mine[pair]):7.1f}, ratio {ratios[-1]:.2%}")  # fmt: skip
    for metric, value, labels, _ in rest:
        if metric in ("p2p_latency", "p2p_both_ways"):
            print(f"    {metric:16} {value:10.2f} {names.index(labels['a'])} {names.index(labels['b'])}")
    print(f"  check / bare: median {statistics.median(ratios):.2%}, least {min(ratios):.2%}", flush=True)
    return {"ratios": ratios, "wrong": wrong, "seconds": took, "all": rest}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one round instead of two")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    count = torch.cuda.device_count()
    cpu = count == 0
    print(
        torch.cuda.get_device_name(0) if count else "the CPU: figures of no weight", count, "torch", torch.__version__
    )
    if count == 1:
        print("one GPU: nothing to measure between")
        return
    names = [f"rank{rank}" for rank in range(count or 2)]
    if count and hasattr(torch.cuda.get_device_properties(0), "uuid"):
        names = [f"GPU-{torch.cuda.get_device_properties(index).uuid}" for index in range(count)]
    kept: dict[str, Any] = {}
    parts = {
        "all-reduce": lambda: all_reduce(count or 2, 2**24 if cpu else 2**31, 1 if options.quick else 2, names, cpu)
    }
    if count:
        parts["copies"] = lambda: copies(count, names)
    for part, run in parts.items():
        try:
            kept[part] = run()
        except Exception:  # noqa: BLE001 - the other part is worth having
            print(f"\n{part} failed:", flush=True)
            traceback.print_exc(file=sys.stdout)
    if options.json:
        options.json.write_text(json.dumps(kept, indent=1))


if __name__ == "__main__":
    main()
