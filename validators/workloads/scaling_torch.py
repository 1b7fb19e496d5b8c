"""One rank of DistributedDataParallel: images a second of each network and batch, and where a step's time went.

Run by validators/probes/ranks.py with torchrun's environment: on GPUs over NCCL, on the CPU over gloo. A world of one
trains the bare network: that is what a user of one GPU runs. Rank 0 speaks for all; what a rank decides on (how many
steps, whether a batch fits) is agreed on first, since a rank that goes its own way makes the others wait for ever.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import statistics
import time
from dataclasses import dataclass, field
from typing import Callable, Dict, List, Mapping, Sequence, Tuple

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from validators.schema import HOST, Record, Scalar
from validators.workloads.products import Stopwatch
from validators.workloads.results import Results
from validators.workloads.scaling_models import MODELS, Batches, Trainer, digest
from validators.workloads.scaling_parity import parity

CHECK = "scaling"
BLOCKS = 8
"""Steps are timed in so many blocks: their spread is the figure's."""


class World:
    """The ranks of this run, and what they agree on."""

    def __init__(self, timeout_s: float, on_gpu: bool) -> None:
        self.rank, self.size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        local = int(os.environ.get("LOCAL_RANK", "0"))
        self.device = torch.device("cuda", local) if on_gpu else torch.device("cpu")
        if on_gpu:
            if torch.version.cuda is None:
                raise RuntimeError(f"torch {torch.__version__} is a build without CUDA; install a CUDA build of torch")
            torch.cuda.init()  # type: ignore[no-untyped-call]  # raises with CUDA's own text
            if torch.cuda.device_count() <= local:
                raise RuntimeError(f"torch sees {torch.cuda.device_count()} GPUs, and rank {self.rank} needs one more")
            torch.cuda.set_device(self.device)
        if self.size > 1:
            limit = datetime.timedelta(seconds=timeout_s)
            if on_gpu:
                dist.init_process_group("nccl", timeout=limit, device_id=self.device)
            else:
                dist.init_process_group("gloo", timeout=limit)

    def gather(self, values: Sequence[float]) -> List[List[float]]:
        """The values of every rank, in the ranks' order, on every rank."""
        if self.size == 1:
            return [list(values)]
        own = torch.tensor(values, dtype=torch.float64, device=self.device)
        every = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(every, own)
        return [one.tolist() for one in every]

    def worst(self, value: float) -> float:
        """The highest of the ranks' values, on every rank."""
        return max(one[0] for one in self.gather([value]))

    def agree(self, trainer: Trainer) -> bool:
        """Whether every rank's parameters are the same to the last bit."""
        word = int(digest(trainer.model))
        halves = self.gather([float(word & 0xFFFFFFFF), float(word >> 32)])  # both exact in float64
        return all(one == halves[0] for one in halves)

    def settle(self) -> None:
        """Wait until this rank's device has nothing left to do."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def end(self) -> None:
        """All together: the ranks' meeting place ends with rank 0."""
        if self.size > 1:
            self.gather([0.0])
            self.settle()
            dist.destroy_process_group()


@dataclass
class Run:
    """What one network with one batch a GPU gave. Times are seconds a step; one list entry per block or per rank."""

    batch: int
    steps: int
    blocks: List[float]
    alone: List[float] = field(default_factory=list)
    launch: float = 0.0
    reduce: float = 0.0
    agree: bool = False
    finite: bool = True

    def step(self) -> float:
        """The median block's."""
        return statistics.median(self.blocks)

    def rate(self, size: int) -> float:
        """Images a second of all ranks."""
        return self.batch * size / self.step()

    def spread(self) -> float:
        """Slowest less fastest block, by the median."""
        return (max(self.blocks) - min(self.blocks)) / self.step()


def main(params: Mapping[str, Scalar], emit: Callable[[Record], None]) -> None:
    """Measure this world. Raises RuntimeError with the framework's words, MemoryError where no batch fits.

    params: device "gpu" or "cpu"; seconds a configuration; models, names with commas; for each model's name its
    batches a GPU, with commas; global_batch of strong scaling; data, a folder of CIFAR-10 or empty; timeout_s.
    """
    on_gpu = params.get("device", "gpu") != "cpu"
    world = World(float(params.get("timeout_s", 60.0)), on_gpu)
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = False  # float32 means float32, on cards without a half format
    results = Results(CHECK, HOST, emit if world.rank == 0 else _silent, framework="torch", gpus=str(world.size))
    names = [name.strip() for name in str(params.get("models", ",".join(MODELS))).split(",") if name.strip()]
    results.progress(f"load: {world.size} ranks")
    problem: List[str] = []
    for number, name in enumerate(names):
        results.progress(f"{name} on {world.size}", number / len(names))
        problem += measure_model(world, name, params, results)
    if world.size > 1:
        found = parity(world.rank, world.size, world.device)
        for metric, value, note in found:
            results.value(metric, value, note, model="mnist_cnn", dtype="fp32")
    world.end()
    if len(problem) == len(names):
        raise MemoryError("; ".join(problem))


def _silent(_record: Record) -> None:
    """Rank 0 speaks for all."""


def batches_of(name: str, params: Mapping[str, Scalar], size: int) -> Dict[int, List[Tuple[str, int]]]:
    """Batch a GPU -> the (mode, batch) that it stands for: weak with that batch, strong with the whole one."""
    found: Dict[int, List[Tuple[str, int]]] = {}
    for word in str(params.get(name, "")).split(","):
        if word.strip():
            found.setdefault(int(word), []).append(("weak", int(word)))
    whole = int(params.get("global_batch", 0))
    if whole and whole % size == 0:
        found.setdefault(whole // size, []).append(("strong", whole))
    return dict(sorted(found.items(), reverse=True))


def measure_model(world: World, name: str, params: Mapping[str, Scalar], results: Results) -> List[str]:
    """Every batch of one network, the largest first. Gives why, where no batch fits."""
    wanted = batches_of(name, params, world.size)
    trainer = Trainer(name, world.device)
    dtype = str(trainer.dtype or torch.float32).replace("torch.", "")
    fitting, why = _fitting(world, trainer, name, list(wanted), str(params.get("data", "")))
    for batch in wanted:
        if batch not in fitting:
            for mode, label in wanted[batch]:
                labels = {"model": name, "mode": mode, "batch": str(label), "dtype": dtype}
                results.not_applicable("images_per_second", f"{batch} images a GPU do not fit: {why}", **labels)
    if not fitting:
        return [f"{name}: {why}"]
    data = Batches(name, max(fitting), world.rank, world.device, str(params.get("data", "")))
    if world.size > 1:
        trainer.join()
    for batch in fitting:
        run = measure(world, trainer, data, batch, float(params.get("seconds", 0.7)))
        if not run.finite:
            raise RuntimeError(f"{name} at {batch} a GPU: the parameters are no finite numbers any more")
        for mode, label in wanted[batch]:
            labels = {"model": name, "mode": mode, "batch": str(label), "dtype": dtype}
            report(world, results, run, f"{batch} a GPU, {data.origin}", labels)
    return []


def _fitting(world: World, trainer: Trainer, name: str, batches: List[int], folder: str) -> Tuple[List[int], str]:
    """The batches that every rank has the memory for: a step of the bare network is tried from the largest on.

    Before DistributedDataParallel is there: a rank that runs out of memory inside it leaves the others waiting.
    """
    why = ""
    for number, batch in enumerate(batches):
        lacks = 0.0
        held: List[torch.Tensor] = []
        try:
            held.append(torch.empty(_ahead(world, trainer), dtype=torch.uint8, device=world.device))
            trainer.step(*Batches(name, batch, world.rank, world.device, folder).take(0, batch))
            world.settle()
        except torch.cuda.OutOfMemoryError as problem:
            lacks, why = 1.0, str(problem).splitlines()[0]
        held.clear()
        trainer.reset()
        if lacks and world.device.type == "cuda":  # only now: the exception held the tensors
            torch.cuda.empty_cache()
        if not world.worst(lacks):
            return batches[number:], why
        why = why or "out of memory on another GPU"
    return [], why


def _ahead(world: World, trainer: Trainer) -> int:
    """Bytes that training together takes beyond the bare network: buckets, gradients beside them, NCCL's buffers."""
    if world.size == 1 or world.device.type != "cuda":
        return 0
    return 8 * sum(parameter.numel() for parameter in trainer.model.parameters()) + 2**28


def measure(world: World, trainer: Trainer, data: Batches, batch: int, seconds: float) -> Run:
    """Time the step as it is, then without the exchange of gradients, then that exchange alone."""
    trainer.reset()
    count = [0]

    def step() -> None:
        trainer.step(*data.take(count[0], batch))
        count[0] += 1

    blocks, steps = timed(world, step, seconds)
    run = Run(batch, steps, _slowest(world.gather(blocks)))
    run.launch = world.worst(launching(world, step))
    run.agree = world.agree(trainer)
    run.finite = not world.worst(float(not _finite(trainer)))
    if world.size > 1:
        with trainer.net.no_sync() if isinstance(trainer.net, DistributedDataParallel) else contextlib.nullcontext():
            alone, _ = timed(world, step, seconds / 3, warm=2)
        run.alone = [statistics.median(one) for one in world.gather(alone)]
        run.reduce = world.worst(all_reduce_alone(world, trainer))
    trainer.reset()
    return run


def _slowest(ranks: List[List[float]]) -> List[float]:
    return [max(block) for block in zip(*ranks)]  # noqa: B905 - strict is 3.10+, the host may have 3.9


def _finite(trainer: Trainer) -> bool:
    return all(bool(torch.isfinite(parameter.detach().sum())) for parameter in trainer.model.parameters())


def timed(world: World, step: Callable[[], None], seconds: float, warm: int = 4) -> Tuple[List[float], int]:
    """Seconds a step in each block, on this rank, and the number of steps. At least three blocks of one step."""
    for _ in range(warm):
        step()
    world.settle()
    began = time.perf_counter()
    step()
    step()
    world.settle()
    each = max(world.worst((time.perf_counter() - began) / 2), 1e-6)
    blocks = max(3, min(BLOCKS, int(3 * seconds / each)))
    steps = max(1, round(seconds / each / blocks))
    watch = Stopwatch(world.device)
    watch.mark()
    for _ in range(blocks):
        for _ in range(steps):
            step()
        watch.mark()
    world.settle()
    return [watch.between(i, i + 1) / steps for i in range(blocks)], blocks * steps


def launching(world: World, step: Callable[[], None]) -> float:
    """Seconds that the host takes to queue a step on an idle GPU; 0 on the CPU, where queueing is computing."""
    if world.device.type != "cuda":
        return 0.0
    taken = []
    for _ in range(3):
        world.settle()
        began = time.perf_counter()
        step()
        taken.append(time.perf_counter() - began)
    world.settle()
    return statistics.median(taken)


def all_reduce_alone(world: World, trainer: Trainer) -> float:
    """Seconds of one all-reduce of as many bytes as the gradients have, with nothing beside it."""
    count = sum(parameter.numel() for parameter in trainer.model.parameters())
    data = torch.zeros(count, device=world.device)
    dist.all_reduce(data)
    watch = Stopwatch(world.device)
    world.settle()
    for _ in range(6):
        watch.mark()
        dist.all_reduce(data)
    watch.mark()
    world.settle()
    return statistics.median(watch.between(i, i + 1) for i in range(6))


def report(world: World, results: Results, run: Run, note: str, labels: Mapping[str, str]) -> None:
    """Send one configuration. The parts of a step add up to 1 unless it was faster with the exchange than without."""
    step = run.step()
    results.value("images_per_second", run.rate(world.size), f"{note}; {run.steps} steps", **labels)
    results.value("images_per_second_spread", run.spread(), **labels)
    if world.device.type == "cuda":
        results.value("time_launching", run.launch / step, **labels)
    if world.size == 1:
        return
    results.value("ranks_agree", run.agree, "" if run.agree else "the ranks' parameters differ", **labels)
    mean, longest = statistics.fmean(run.alone), max(run.alone)
    slowest = f"rank {run.alone.index(longest)} is the slowest: {longest * 1e3:.4g} ms, the mean {mean * 1e3:.4g} ms"
    results.value("time_computing", min(1.0, mean / step), **labels)
    results.value("time_waiting", min(1.0, longest / step) - min(1.0, mean / step), slowest, **labels)
    results.value("time_communicating", max(0.0, 1 - longest / step), f"{step * 1e3:.4g} ms a step", **labels)
    results.value("all_reduce_alone", run.reduce / step, f"{run.reduce * 1e3:.4g} ms", **labels)
