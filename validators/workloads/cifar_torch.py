"""CIFAR-10 in torch, on one GPU, as one process of a job over several, or on the CPU: speed, accuracy, where time went.

Run by the host's framework Python, its GPUs visible. The network is in cifar_net.py, one step of its training in
cifar_step.py, the training in cifar_train.py.
Order: warm-up on synthetic images (kernels chosen, steps recorded), training to the end of the recipe, evaluation on
the official test images, and only then the speed in steady state, so that the verdict on accuracy comes early.
"""

from __future__ import annotations

import math
import os
import time
from dataclasses import replace
from datetime import timedelta
from typing import Callable, List, Mapping, Optional, Tuple

import torch
import torch.distributed as dist
from torch import Tensor

from validators.schema import HOST, Record, Scalar
from validators.workloads import cifar_terms
from validators.workloads.cifar_data import Images, Loader, read, synthetic
from validators.workloads.cifar_optimizer import MUON, Recipe
from validators.workloads.cifar_step import Trainer, synchronize
from validators.workloads.cifar_terms import Terms, process_age_s
from validators.workloads.cifar_train import Run, copy_s, train, window_plan, windows
from validators.workloads.matmul import open_device
from validators.workloads.results import Results
from validators.workloads.sizing import limit_memory

TARGET = 0.94
CPU_BATCH = 100
CPU_STEPS = 24
"""On the CPU without epochs: as many steps, a few of them a window."""
TRAINING_LIMIT_S = 300.0
"""A slower card trains for as many steps as fit, and its accuracy is not judged."""
SYNTHETIC_IMAGES = 50_000


class Job:
    """This process's place in a job: its device, its rank, and how tensors are summed over the job's processes."""

    def __init__(self, terms: Terms) -> None:
        self.rank = int(os.environ.get("RANK", "0")) if terms.subject == HOST else 0
        self.ranks = int(os.environ.get("WORLD_SIZE", "1")) if terms.subject == HOST else 1
        if terms.gpus > 1:
            if self.ranks != terms.gpus:
                raise ValueError(f"a job over {terms.gpus} GPUs has {self.ranks} processes")
            self.device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(self.device)
        else:
            self.device = torch.device("cpu") if terms.gpus == 0 else open_device(terms.subject)

    def join(self, trainer: Trainer) -> None:
        """Begin to work together. After recording: NCCL's own threads and recording don't go well together."""
        if self.ranks > 1:
            if self.device.type == "cuda":
                dist.init_process_group("nccl", timeout=timedelta(seconds=60), device_id=self.device)
            else:
                dist.init_process_group("gloo", timeout=timedelta(seconds=60))
            trainer.reduce = self.sum
            warm = torch.zeros_like(trainer.optimizer.gradient)
            self.sum(warm)

    def sum(self, values: Tensor) -> None:
        """Sum a tensor over all processes, in place."""
        if self.ranks > 1:
            dist.all_reduce(values)

    def first(self, *values: float) -> List[float]:
        """The first process's numbers, in all of them."""
        told = torch.tensor(values if self.rank == 0 else [0.0] * len(values), device=self.device, dtype=torch.float64)
        self.sum(told)
        return [float(one) for one in told]


def main(params: Mapping[str, Scalar], emit: Callable[[Record], None]) -> None:
    """Train and measure. Raises RuntimeError or MemoryError with the framework's own words where it can't.

    params: see cifar_terms.Terms; target 0 is 0.94, batch is that of a step over all GPUs.
    """
    imported = process_age_s()
    terms = Terms.of(params)
    if terms.gpus == 0 and not terms.epochs:
        _cpu_speed(terms, emit)
        return
    job = Job(terms)
    recipe = replace(MUON, epochs=terms.epochs or MUON.epochs, batch=terms.batch or MUON.batch)
    limit_memory(job.device, terms.memory_gib)
    opened = process_age_s()
    images, test = _images(terms, job.device)
    loader = Loader(images, recipe.batch // job.ranks * job.ranks, job.ranks, job.rank)
    synchronize(job.device)
    loaded = process_age_s()
    trainer = Trainer(recipe, job.device, ranks=job.ranks)
    trainer.prepare()
    job.join(trainer)
    recipe = trainer.recipe = _bounded(recipe, trainer, loader, job)
    found = cifar_terms.results(terms, "torch", trainer.batch, emit if job.rank == 0 else _nowhere)
    found.progress("load: training begins", 0.0)
    ready = process_age_s()
    run = train(
        trainer, loader, test if job.rank == 0 else None, share=lambda: _even(trainer, job), told=found.progress
    )
    note = (
        f"{imported:.2f} s Python and torch, {opened - imported:.2f} s the device, {loaded - opened:.2f} s data, "
        f"{ready - loaded:.2f} s warm-up, {run.training_s:.2f} s training, {run.evaluation_s:.2f} s the last evaluation"
    )
    cut = recipe.epochs < (terms.epochs or MUON.epochs)
    _send_learnt(found, terms, run, loader, note, too_slow=cut, trained_on_real=test is not None)
    step_s = job.first(run.training_s / run.steps)[0]
    size, count = window_plan(step_s, loader.steps, terms.seconds)
    speeds = [run.steps * trainer.batch / run.training_s] if not terms.seconds else []
    speeds = [job.ranks * one for one in speeds or windows(trainer, loader, size, count)]
    if terms.gpus:
        about = f"{_name(trainer)}, {trainer.part} images at a time{'; ' + trainer.note if trainer.note else ''}"
        cifar_terms.send_speed(found, speeds, about)
    else:
        cifar_terms.on_the_cpu(found, speeds, trained=True)
    epoch_s = run.training_s / run.steps * loader.steps
    cifar_terms.send_time(found, run.loader_s / run.training_s, copy_s(trainer, loader) / epoch_s)
    if job.ranks > 1:
        dist.destroy_process_group()


def _nowhere(_record: Record) -> None:
    """Where the records of all ranks but the first go."""


def _name(trainer: Trainer) -> str:
    return str(trainer.network.dtype).replace("torch.", "")


def _images(terms: Terms, device: torch.device) -> Tuple[Images, Optional[Images]]:
    if not terms.data:
        return synthetic(SYNTHETIC_IMAGES, device), None
    return read(terms.data, device)


def _bounded(recipe: Recipe, trainer: Trainer, loader: Loader, job: Job) -> Recipe:
    """The recipe, shortened where this device would need longer than TRAINING_LIMIT_S."""
    if job.device.type == "cpu":
        return recipe
    windows(trainer, loader, 1, 1)
    step_s = job.first(trainer.batch / windows(trainer, loader, 2, 1)[0])[0]
    fits = TRAINING_LIMIT_S / step_s / loader.steps
    return recipe if recipe.epochs <= fits else replace(recipe, epochs=max(math.floor(fits), 1 / loader.steps))


def _even(trainer: Trainer, job: Job) -> None:
    """Batch norm's statistics, the mean over the job's processes."""
    if job.ranks > 1:
        job.sum(trainer.network.statistics)
        trainer.network.statistics.div_(job.ranks)


def _send_learnt(
    found: Results, terms: Terms, run: Run, loader: Loader, note: str, *, too_slow: bool,
    trained_on_real: bool,
) -> None:  # fmt: skip
    age_s = process_age_s()
    found.value("training_time", run.training_s)
    found.value("steps", run.steps)
    found.value("epochs", math.ceil(run.steps / loader.steps))
    if trained_on_real and not too_slow:
        cifar_terms.send_learnt(
            found, run.accuracy, run.accuracies, target=terms.target or TARGET, age_s=age_s, note=note
        )
        return
    why = terms.no_data
    if trained_on_real:
        why = (
            f"too slow for the whole recipe within {TRAINING_LIMIT_S:g} s: {run.steps} steps, {run.accuracy:.4f} so far"
        )
    cifar_terms.without(found, ("accuracy", "accuracy_rises", "time_to_accuracy"), why)


def _cpu_speed(terms: Terms, emit: Callable[[Record], None]) -> None:
    """A few dozen steps at a small batch on the CPU."""
    batch = terms.batch or CPU_BATCH
    trainer = Trainer(replace(MUON, batch=batch), torch.device("cpu"))
    loader = Loader(synthetic(10 * batch, trainer.device), batch)
    found = cifar_terms.results(terms, "torch", batch, emit)
    trainer.network.whiten(loader.sample)
    found.progress("load: the CPU", 0.0)
    windows(trainer, loader, 1, 1)
    speeds: List[float] = []
    end = time.monotonic() + max(10.0, 4 * terms.seconds)
    while len(speeds) < CPU_STEPS // 2 and (len(speeds) < 3 or time.monotonic() < end):
        speeds += windows(trainer, loader, 2, 1)
    cifar_terms.on_the_cpu(found, speeds, trained=False)
