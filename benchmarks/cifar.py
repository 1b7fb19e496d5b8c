"""CIFAR-10 in torch beside a plain loop of the same network: accuracy, training time, process start to verdict.

    python3 benchmarks/cifar.py --data FOLDER      # FOLDER: the official binary files; without: synthetic, no accuracy
        --runs 10       trainings for the mean accuracy
        --quick         3 trainings, one fresh process, a short plain loop
        --sweep         instead: variants of the recipe, --runs (default 3) each
        --profile       instead: the kernels that one epoch spends its time in
        --all           instead: each GPU alone, all at once each for itself, all in one job

On a GPU; on a machine without one it runs on the CPU at a toy size, to show that it works.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

BEGAN = time.time()

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from benchmarks.gpus import visible  # noqa: E402
from validators.workloads import cifar_step  # noqa: E402
from validators.workloads.cifar_data import Loader, read, synthetic  # noqa: E402
from validators.workloads.cifar_optimizer import MUON, SGD, Recipe  # noqa: E402
from validators.workloads.cifar_step import Trainer  # noqa: E402
from validators.workloads.cifar_train import train, window_plan, windows  # noqa: E402

TARGET = 0.94


def line(*cells: object, sep: str = "  ") -> None:
    print(*cells, sep=sep, flush=True)


def part(name: str, work: Callable[[], None]) -> None:
    """One part; the others go on where it fails."""
    line(f"\n== {name} (at {time.time() - BEGAN:.0f} s)")
    try:
        work()
    except Exception:  # noqa: BLE001 - printed; the next part goes on
        traceback.print_exc(file=sys.stdout)


class Bench:
    """The data on the device, and what both sides share."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.toy = self.device.type == "cpu"
        self.recipe = replace(MUON, widths=(16, 32, 32), epochs=2.0, batch=100) if self.toy else MUON
        real = read(options.data, self.device) if options.data else None
        self.images, self.test = real or (synthetic(50_000, self.device), None)
        if self.toy:
            self.images, self.test = self.images.head(1000), self.test and self.test.head(500)
        self.loaders: dict[int, Loader] = {}

    def loader(self, batch: int) -> Loader:
        """The training images in such batches; one at a time is kept."""
        if batch not in self.loaders:
            self.loaders.clear()
            self.loaders[batch] = Loader(self.images, batch)
        return self.loaders[batch]

    def trainer(self, recipe: Recipe, **how: object) -> tuple[Trainer, float]:
        """A trainer that is ready, and the seconds that making it so took."""
        began = time.perf_counter()
        trainer = Trainer(recipe, self.device, **how)  # type: ignore[arg-type]
        trainer.prepare()
        return trainer, time.perf_counter() - began

    def runs(self, recipe: Recipe, count: int, **how: object) -> dict[str, float]:
        """Train so often with other seeds; prints a row."""
        trainer, prepared = self.trainer(recipe, **how)
        loader = self.loader(trainer.batch)
        windows(trainer, loader, 2, 1)
        done = [train(trainer, loader, self.test, seed=seed, each_epoch=False) for seed in range(count)]
        found = [one.accuracy for one in done]
        times = [one.training_s for one in done]
        row = {
            "accuracy": statistics.mean(found),
            "accuracy_sd": statistics.stdev(found) if count > 1 else 0.0,
            "least": min(found),
            "training_s": statistics.median(times),
            "training_spread": (max(times) - min(times)) / statistics.median(times),
            "evaluation_s": statistics.median(one.evaluation_s for one in done),
            "loader_s": statistics.median(one.loader_s for one in done),
            "prepare_s": prepared,
            "loss": done[-1].losses[-1],
        }
        line(*(f"{name} {value:.4f}" for name, value in row.items()), trainer.note, f"part {trainer.part}")
        return row


def accuracy(bench: Bench) -> None:
    count = bench.options.runs or (3 if bench.options.quick else 10)
    row = bench.runs(bench.recipe, count)
    if bench.test is None:
        line("no real images: no accuracy")
        return
    line(
        f"mean accuracy of {count} runs {row['accuracy']:.4f} (target {TARGET}), "
        f"training {row['training_s']:.3f} s (target 1.9)"
    )
    line(f"training and its last evaluation (mirrored, moved): {row['training_s'] + row['evaluation_s']:.3f} s")


def speed(bench: Bench) -> None:
    """Images a second: ours, and plain loops of the same network over images on the GPU."""
    seconds = 1.0 if bench.options.quick or bench.toy else 3.0
    trainer, _ = bench.trainer(bench.recipe)
    loader = bench.loader(trainer.batch)
    first = trainer.batch / windows(trainer, loader, 2, 2)[-1]
    speeds = windows(trainer, loader, *window_plan(first, loader.steps, seconds))
    ours = statistics.median(speeds)
    line(
        f"ours {ours:,.0f} images/s, coefficient of variation {statistics.pstdev(speeds) / ours:.2%}, "
        f"{len(speeds)} windows"
    )
    loops = [
        ("recorded: no", None),
        ("plain, float16, channels last", torch.float16),
        ("plain, float32", torch.float32),
    ]
    for name, dtype in loops:
        if dtype is None:
            eager, _ = bench.trainer(bench.recipe, record=False)
            theirs = statistics.median(windows(eager, loader, 2 if bench.toy else loader.steps, 3))
            del eager
        else:
            theirs = plain(bench, dtype, seconds)
        line(f"{name}: {theirs:,.0f} images/s; ours is {ours / theirs:.2f} times that")


def block(into: int, out: int) -> list[nn.Module]:
    return [
        nn.Conv2d(into, out, 3, padding=1, bias=False), nn.MaxPool2d(2), nn.BatchNorm2d(out), nn.GELU(),
        nn.Conv2d(out, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.GELU(),
    ]  # fmt: skip


def plain(bench: Bench, dtype: torch.dtype, seconds: float) -> float:
    """The loop that one writes first: modules, autocast or not, torch.optim.SGD, a random crop and flip a batch."""
    widths, batch, device = bench.recipe.widths, bench.recipe.batch, bench.device
    layers = [nn.Conv2d(3, 24, 2), nn.GELU()]
    for into, out in zip((24, *widths), widths, strict=False):
        layers += block(into, out)
    net = nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 10, bias=False)).to(
        device
    )
    half = dtype != torch.float32 and device.type == "cuda"
    if half:
        net = net.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, nesterov=True)
    scaler = torch.amp.GradScaler(device.type, enabled=half)
    values = bench.images.pixels.permute(0, 3, 1, 2).float().div(255).sub(0.47).div(0.25).contiguous()
    speeds: list[float] = []
    end = time.perf_counter() + seconds
    while len(speeds) < 3 or time.perf_counter() < end:
        began = time.perf_counter()
        count = 0
        for chosen in torch.randperm(len(values), device=device).split(batch)[: 10 if not bench.toy else 2]:
            images = augmented(values[chosen])
            if half:
                images = images.contiguous(memory_format=torch.channels_last)
            with torch.autocast(device.type, dtype=torch.float16, enabled=half):
                loss = F.cross_entropy(net(images), bench.images.labels[chosen], label_smoothing=0.2)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            count += len(chosen)
        if device.type == "cuda":
            torch.cuda.synchronize()
        speeds.append(count / (time.perf_counter() - began))
    return statistics.median(speeds[1:])


def augmented(images: Tensor) -> Tensor:
    wide = F.pad(images, (2, 2, 2, 2), mode="reflect")
    down, right = (int(one) for one in torch.randint(0, 5, (2,)))
    moved = wide[:, :, down : down + 32, right : right + 32]
    mirror = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
    return torch.where(mirror, moved.flip(3), moved)


def start(options: argparse.Namespace, gpu: str, seconds: float, **more: str) -> subprocess.Popen[str]:
    """The workload in a process of its own, on this GPU (or these)."""
    argv = [sys.executable, str(Path(__file__).resolve()), "--fresh", "--data", options.data]
    argv += ["--kernels-tried", str(options.kernels_tried), "--seconds", str(seconds)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": gpu, **more}
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def end(process: subprocess.Popen[str]) -> str:
    """What it printed, or the last of its errors."""
    try:
        out, errors = process.communicate(timeout=300)
    finally:
        process.kill()
    return out.rstrip() or errors[-1500:]


def fresh(bench: Bench) -> None:
    """New processes, each from its start to its verdict on accuracy."""
    usual = cifar_step.KERNELS_TRIED
    for tried in [usual] if bench.options.quick or bench.toy else [usual, usual, usual, 3, 0]:
        line(f"cuDNN times {tried} kernels for each convolution")
        bench.options.kernels_tried = tried
        began = time.time()
        text = end(start(bench.options, visible(1)[0], 0))
        line(f"whole process {time.time() - began:.2f} s")
        line(text)


def rates(name: str, text: str) -> float:
    """The images/s in what a process printed; not a number where it measured none. Prints it all."""
    line(name, text, sep="\n")
    found = [words[1] for words in map(str.split, text.splitlines()) if words[:1] == ["images_per_second"]]
    return float(found[0]) if found else math.nan


def on_all(bench: Bench) -> None:
    """Each GPU while the rest idles against the same while all work, each for itself; then one job over all."""
    from validators.probes.ranks import free_port  # noqa: PLC0415

    count = torch.cuda.device_count()
    alone = {gpu: rates(f"GPU {gpu}, alone", end(start(bench.options, gpu, 3))) for gpu in visible(count)}
    begun = {gpu: start(bench.options, gpu, 3) for gpu in visible(count)}
    at_once = {gpu: rates(f"GPU {gpu}, all at once", end(process)) for gpu, process in begun.items()}
    for gpu, one in alone.items():
        line(f"GPU {gpu}: {at_once[gpu]:,.0f} images/s at once, {one:,.0f} alone: {at_once[gpu] / one:.2%}")
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    together = ",".join(visible(count))
    job = [start(bench.options, together, 3, RANK=str(rank), LOCAL_RANK=str(rank), **shared) for rank in range(count)]
    for rank, process in enumerate(job):
        if text := end(process):  # process 0 measures; another has words only where it failed
            line(f"one job over {count}, process {rank}", text, sep="\n")


def fresh_process(options: argparse.Namespace) -> None:
    """The workload itself, as the check runs it."""
    from validators.schema import Measurement  # noqa: PLC0415
    from validators.workloads import cifar_torch  # noqa: PLC0415

    cifar_step.KERNELS_TRIED = options.kernels_tried
    count = int(os.environ.get("WORLD_SIZE", "1"))
    params = {
        "subject": "GPU" if count == 1 else "host",
        "data": options.data,
        "gpus": count,
        "seconds": options.seconds,
    }
    if not torch.cuda.is_available():
        params.update(subject="host", gpus=0, epochs=0)

    def show(record: object) -> None:
        if isinstance(record, Measurement) and record.value is not None:
            line("   ", record.metric, record.value, record.note)

    cifar_torch.main(params, show)


def sweep(bench: Bench) -> None:
    count = bench.options.runs or 3
    variants: list[tuple[str, Recipe]] = [
        ("as it is: 10 epochs of 2000", bench.recipe),
        ("8 epochs", replace(bench.recipe, epochs=8.0)),
        ("9 epochs", replace(bench.recipe, epochs=9.0)),
        ("9.5 epochs", replace(bench.recipe, epochs=9.5)),
        ("11 epochs", replace(bench.recipe, epochs=11.0)),
        ("batch 1000, rates as they are", replace(bench.recipe, batch=1000, decay=0.002)),
        ("batch 1562, rates as they are", replace(bench.recipe, batch=1562, decay=0.003)),
        ("filter rate 0.18", replace(bench.recipe, filter_rate=0.18)),
        ("filter rate 0.30", replace(bench.recipe, filter_rate=0.30)),
        ("bias rate 0.08", replace(bench.recipe, bias_rate=0.08)),
        ("bias rate 0.035", replace(bench.recipe, bias_rate=0.035)),
        ("head rate 1.0", replace(bench.recipe, head_rate=1.0)),
        ("head rate 0.45", replace(bench.recipe, head_rate=0.45)),
        ("momentum 0.7 of filters", replace(bench.recipe, filter_momentum=0.7)),
        ("9 epochs, lookahead", replace(bench.recipe, epochs=9.0, look_ahead=True)),
        ("9 epochs, widths 64 192 256", replace(bench.recipe, epochs=9.0, widths=(64, 192, 256))),
        ("whitening learns 2 epochs", replace(bench.recipe, whitening_epochs=2.0)),
        ("the paper's: SGD, 9.9 epochs of 1024", SGD),
        ("SGD, batch 2000, 12 epochs", replace(SGD, batch=2000, epochs=12.0)),
    ]
    if bench.toy:
        variants = variants[:2]
    for name, recipe in variants:
        try:
            line(f"-- {name} (at {time.time() - BEGAN:.0f} s)")
            bench.runs(recipe, count)
        except Exception as problem:  # noqa: BLE001 - printed; the next variant goes on
            line(f"   failed: {type(problem).__name__}: {problem}")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def profile(bench: Bench) -> None:
    """The kernels of one epoch, by time; the same steps run, not replayed, so that names are seen."""
    from torch.profiler import ProfilerActivity  # noqa: PLC0415
    from torch.profiler import profile as profiled  # noqa: PLC0415

    trainer, _ = bench.trainer(bench.recipe, record=False)
    loader = bench.loader(trainer.batch)
    windows(trainer, loader, 2, 1)
    kinds = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if bench.device.type == "cuda" else [])
    with profiled(activities=kinds, record_shapes=True) as seen:
        windows(trainer, loader, 10, 1)
    by = "self_device_time_total" if bench.device.type == "cuda" else "self_cpu_time_total"
    line(seen.key_averages().table(sort_by=by, row_limit=45, max_name_column_width=90))
    line(seen.key_averages(group_by_input_shape=True).table(sort_by=by, row_limit=40, max_shapes_column_width=110))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="")
    parser.add_argument("--runs", type=int, default=0)
    for flag in ("--quick", "--sweep", "--profile", "--all", "--fresh"):
        parser.add_argument(flag, action="store_true")
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--kernels-tried", type=int, default=cifar_step.KERNELS_TRIED)
    options = parser.parse_args()
    if options.fresh:
        fresh_process(options)
        return
    bench = Bench(options)
    card = torch.cuda.get_device_name(0) if bench.device.type == "cuda" else "the CPU: a toy size, figures of no weight"
    line(f"{card}, torch {torch.__version__}, started {BEGAN:.0f}, data: {options.data or 'synthetic'}")
    if options.sweep:
        part("variants of the recipe", lambda: sweep(bench))
    elif options.all:
        part("all GPUs", lambda: on_all(bench))
    elif options.profile:
        part("kernels", lambda: profile(bench))
    else:
        part("accuracy and training time", lambda: accuracy(bench))
        part("images a second", lambda: speed(bench))
        part("fresh processes", lambda: fresh(bench))


if __name__ == "__main__":
    main()
