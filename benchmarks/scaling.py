"""Does the scaling check report what plain DistributedDataParallel reaches? VGG19-bn at 4,096, 1,024 and 256 a GPU.

    PYTHONPATH=. python3 benchmarks/scaling.py [--counts 1,2,4] [--batches 4096,1024,256] [--rounds 1] [--quick]

Plain is the loop that most people write: bf16 autocast, channels-last, cudnn.benchmark, DistributedDataParallel with
its defaults (on one GPU too, as under torchrun), SGD with momentum, one batch that stays on the GPU, the mean over all
steps; spread is that of the timed blocks of a run.
The check's side is its own workload through its own way of starting ranks. Both run in turn, for each number of GPUs.
Without a GPU: two ranks on the CPU with tiny batches, which proves the script and nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.gpus import visible
from validators import check
from validators.probes import ranks
from validators.schema import CheckRequest, Measurement, Plan, Record

TIMEOUT_S = 100.0
BLOCKS = 4
Figure = tuple[float, float]
"""Images a second, and the spread of it over the blocks of one run."""
Rates = dict[tuple[int, int], list[Figure]]


def vgg19_bn() -> nn.Module:
    """The usual 32 x 32 form, written anew; like the check's, without biases before the normalisation."""
    layers: list[nn.Module] = []
    channels = 3
    for width in (64, 64, 0, 128, 128, 0, *(256,) * 4, 0, *(512,) * 4, 0, *(512,) * 4, 0):
        if width:
            layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(True)]
            channels = width
        else:
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 10))


def plain_rank(batches: list[int], seconds: float) -> None:
    """One rank of the plain loop; rank 0 prints the images a second of all ranks, by batch, as JSON."""
    rank, local, size = (int(os.environ[name]) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", local) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if on_gpu else "gloo")
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    model = nn.parallel.DistributedDataParallel(
        vgg19_bn().to(device, memory_format=torch.channels_last), device_ids=[local] if on_gpu else None
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9, weight_decay=5e-4)
    found = {}
    for batch in batches:
        images = torch.randn(batch, 3, 32, 32, device=device).contiguous(memory_format=torch.channels_last)
        labels = torch.randint(10, (batch,), device=device)

        def steps(count: int, images: torch.Tensor = images, labels: torch.Tensor = labels) -> float:
            if on_gpu:
                torch.cuda.synchronize()
            began = time.perf_counter()
            for _ in range(count):
                optimizer.zero_grad()
                with torch.autocast(device.type, dtype=torch.bfloat16, enabled=on_gpu):
                    loss = nn.functional.cross_entropy(model(images), labels)
                loss.backward()
                optimizer.step()
            if on_gpu:
                torch.cuda.synchronize()
            return time.perf_counter() - began

        steps(5 if on_gpu else 1)
        took = torch.tensor(steps(3 if on_gpu else 1) / (3 if on_gpu else 1), device=device)
        dist.all_reduce(took, dist.ReduceOp.MAX)
        count = max(2, round(seconds / BLOCKS / took.item()))
        spent = torch.tensor([steps(count) for _ in range(BLOCKS if on_gpu else 2)], device=device)
        dist.all_reduce(spent, dist.ReduceOp.MAX)
        every = spent.tolist()
        spread = (max(every) - min(every)) / statistics.median(every)
        found[batch] = (batch * size * count * len(every) / sum(every), spread)
    if rank == 0:
        print(json.dumps(found), flush=True)
    dist.barrier()
    dist.destroy_process_group()


def plain(count: int, batches: list[int], seconds: float) -> dict[int, Figure]:
    """The plain loop on so many GPUs. Raises RuntimeError with a rank's last words."""
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(ranks.free_port())}
    if torch.cuda.is_available():
        shared["CUDA_VISIBLE_DEVICES"] = ",".join(visible(count))
    words = ["--plain-rank", "--batches", ",".join(map(str, batches)), "--seconds", str(seconds)]
    started = []
    for rank in range(count):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        argv = [sys.executable, str(Path(__file__).resolve()), *words]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(argv, env=environment, **pipes))
    try:
        said = [process.communicate(timeout=TIMEOUT_S) for process in started]
    finally:
        for process in started:
            process.kill()
    for process, (_, words_) in zip(started, said, strict=True):
        if process.returncode:
            raise RuntimeError(f"plain: {words_.strip()[-500:]}")
    return {int(batch): tuple(figure) for batch, figure in json.loads(said[0][0].splitlines()[-1]).items()}


def ours(count: int, batches: list[int], seconds: float, records: list[Record]) -> dict[int, Figure]:
    """The check's own workload on so many GPUs."""
    on_gpu = torch.cuda.is_available()
    plan = Plan((CheckRequest("scaling", TIMEOUT_S),), TIMEOUT_S, {}, "gpu" if on_gpu else "cpu")
    mine: list[Record] = []
    context = check.Context(check.load("scaling").info, plan.checks[0], plan, mine.append)
    params = {
        "device": plan.device, "seconds": seconds, "models": "vgg19_bn", "vgg19_bn": ",".join(map(str, batches)),
        "global_batch": 0, "timeout_s": 60.0,
    }  # fmt: skip
    gpus = tuple(visible(count)) if on_gpu else ()
    environment = {"OMP_NUM_THREADS": "1"} if on_gpu else {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    try:
        ranks.run_ranks(
            context, sys.executable, "scaling_torch", params, gpus=gpus, ranks=count, timeout_s=TIMEOUT_S,
            environment=environment,
        )  # fmt: skip
    except RuntimeError as problem:
        print(f"check on {count}: {problem}", flush=True)  # what it measured before that stands
    records += mine
    kept: dict[str, dict[int, float]] = {"images_per_second": {}, "images_per_second_spread": {}}
    for one in mine:
        if isinstance(one, Measurement) and one.metric in kept and isinstance(one.value, float):
            kept[one.metric][int(one.labels["batch"])] = one.value
    spreads = kept["images_per_second_spread"]
    return {batch: (rate, spreads[batch]) for batch, rate in kept["images_per_second"].items()}


def collect(options: argparse.Namespace, counts: list[int], batches: list[int]) -> tuple[Rates, Rates, list[Record]]:
    rates: tuple[Rates, Rates] = (defaultdict(list), defaultdict(list))
    records: list[Record] = []
    for turn in range(options.rounds):
        for count in counts:
            sides = [(0, "plain"), (1, "check")]
            for which, name in sides if turn % 2 == 0 else sides[::-1]:
                began = time.perf_counter()
                try:
                    found = (
                        plain(count, batches, options.seconds)
                        if which == 0
                        else ours(count, batches, options.seconds, records)
                    )
                except (RuntimeError, subprocess.TimeoutExpired, ValueError, IndexError) as problem:
                    print(f"{name} on {count}: {problem}", flush=True)
                    continue
                for batch, figure in found.items():
                    rates[which][count, batch].append(figure)
                print(f"    {name} on {count}: {time.perf_counter() - began:.1f} s", flush=True)
    return (*rates, records)


def middle(found: list[Figure]) -> Figure:
    """The median over the rounds: the rate, and the spread within a run."""
    if not found:
        return float("nan"), float("nan")
    return statistics.median(rate for rate, _ in found), statistics.median(spread for _, spread in found)


def table(theirs: Rates, mine: Rates, counts: list[int], batches: list[int]) -> list[dict[str, float]]:
    head = ("batch/GPU", "GPUs", "plain", "speedup", "spread", "check", "speedup", "spread", "check/plain")
    print("  ".join(f"{word:>11}" for word in head))
    rows = []
    for batch in batches:
        for count in counts:
            row: dict[str, float] = {"batch": batch, "gpus": count}
            for name, rates in (("plain", theirs), ("check", mine)):
                row[name], row[f"{name}_spread"] = middle(rates.get((count, batch), []))
                row[f"{name}_speedup"] = row[name] / middle(rates.get((1, batch), []))[0]
            row["ratio"] = row["check"] / row["plain"]
            rows.append(row)
            cells = (
                f"{batch}", f"{count}", f"{row['plain']:,.0f}", f"{row['plain_speedup']:.2f}",
                f"{row['plain_spread']:.1%}", f"{row['check']:,.0f}", f"{row['check_speedup']:.2f}",
                f"{row['check_spread']:.1%}", f"{row['ratio']:.3f}",
            )  # fmt: skip
            print("  ".join(f"{cell:>11}" for cell in cells), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counts", default="")
    parser.add_argument("--batches", default="")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0.8, help="timed for each configuration")
    parser.add_argument("--quick", action="store_true", help="one and all GPUs, the largest batch only")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plain-rank", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    batches = [int(word) for word in (options.batches or ("4096,1024,256" if on_gpu else "2")).split(",")]
    if options.plain_rank:
        plain_rank(batches, options.seconds)
        return
    available = torch.cuda.device_count() if on_gpu else 2
    counts = [int(word) for word in options.counts.split(",") if word]
    counts = counts or [2**i for i in range(available.bit_length()) if 2**i <= available]
    if options.quick:
        counts, batches = sorted({1, counts[-1]}), batches[:1]
    card = torch.cuda.get_device_name(0) if on_gpu else "the CPU: no GPU here, figures of no weight"
    print(f"{card}, torch {torch.__version__}, GPUs {counts}", flush=True)
    theirs, mine, records = collect(options, counts, batches)
    rows = table(theirs, mine, counts, batches)
    for one in records:
        if isinstance(one, Measurement) and one.metric != "images_per_second":
            where = " ".join(one.labels[name] for name in ("gpus", "batch") if name in one.labels)
            value = f"{one.value:.4g}" if isinstance(one.value, float) else one.value
            print(f"    {one.metric} [{where}] {value} {one.note}")
    if options.json:
        options.json.write_text(json.dumps({"device": card, "torch": torch.__version__, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
