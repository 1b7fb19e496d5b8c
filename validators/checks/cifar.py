"""CIFAR-10 on each GPU and on all of them: how fast a framework trains, and whether what it trains is any good."""

from __future__ import annotations

import statistics
import threading
from contextlib import contextmanager
from typing import Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

from validators.check import Context, Metric, check
from validators.probes import datasets, gpu_load, nvml, pythons, ranks, workload
from validators.schema import HOST, NOT_APPLICABLE, Measurement, Progress, Record, Sample, Scalar

WORKLOADS: Mapping[str, str] = {"torch": "cifar_torch", "tensorflow": "cifar_keras"}
"""Framework -> its program in validators/workloads/. All take the parameters that `_params` names and send TRAINING,
each with the labels framework, gpus ("1", "4"; "0" on the CPU) and batch (images a step of one GPU)."""

TRAINING: Tuple[Metric, ...] = (
    Metric("images_per_second", "images/s", "training speed in steady state: median over windows, all GPUs together"),
    Metric("images_per_second_spread", "ratio", "90th less 10th percentile of the windows' speeds, by the median"),
    Metric("accuracy", "ratio", "share of the official 10,000 test images that the trained network names rightly"),
    Metric("accuracy_rises", "bool", "whether the last epoch's accuracy is above the first one's (note: each epoch's)"),
    Metric("time_to_accuracy", "s", "from the start of the process to the target accuracy, everything counted"),
    Metric("training_time", "s", "the training alone: first step to last, after the warm-up on synthetic images"),
    Metric("epochs", "count", "passes over the 50,000 training images, a begun one counted"),
    Metric("steps", "count", "steps of the optimizer"),
    Metric("time_in_loader", "ratio", "share of the training in which images were chosen, shuffled and augmented"),
    Metric("time_in_copy", "ratio", "share of the training in which images were copied to where the network reads"),
    Metric("time_in_compute", "ratio", "share of the training in which the network computed"),
)
"""What a workload of this check sends of each run."""

CPU: Tuple[Metric, ...] = (
    Metric("cpu_images_per_second", "images/s", "training speed of the same network on the host's CPU"),
)
BESIDE: Tuple[Metric, ...] = (
    Metric("utilisation", "percent", "median of the GPU's utilisation while it trained, as NVML reads it"),
    Metric("gpu_over_cpu", "ratio", "images a second of this GPU by those of the CPU; param cpu_baseline=true"),
)
HOSTS: Tuple[Metric, ...] = (
    Metric("slowest_of_fastest", "ratio", "images a second of the slowest GPU by the fastest, each alone, of one name"),
)

GPU_TIMEOUT_S = 420.0


@check(
    catches="a GPU that computes and does not train: wrong kernels, a slow or starved card, one that drags the rest",
    needs=("torch or tensorflow: bringup_torch_python, bringup_tensorflow_python, or the frameworks role",),
    level=3,
    seconds=90,
    timeout_s=3600,
    per_gpu=True,
    params=(
        "frameworks", "epochs", "batch", "seconds", "target", "parallel", "together", "cpu_baseline", "memory_gib",
        "gpu_timeout_s",
    ),
    data=("cifar10",),
    metrics=(*TRAINING, *CPU, *BESIDE, *HOSTS, *gpu_load.UNDER_LOAD),
)  # fmt: skip
def cifar(ctx: Context) -> None:
    """CIFAR-10 trained to an accuracy on each GPU at once, then on all in one job: images/s, accuracy, where time went.

    Params: frameworks ("torch,tensorflow"), epochs and batch (0: the workload's own choice), seconds of the speed's
    measurement (3), target accuracy (the workload's own), parallel (true; false: one GPU after the other), together
    (true; false: no job over all GPUs), cpu_baseline (false; true: the CPU's speed too), memory_gib (0: all; 4: torch
    uses no more, as on a card of 4 GiB), gpu_timeout_s (420).
    """
    jobs = _Jobs(ctx)
    if ctx.plan.device == "cpu":
        jobs.on_the_cpu()
        return
    with gpu_load.ready(ctx, jobs.first()) as (_, gpus):
        if ctx.flag("cpu_baseline", False):
            jobs.cpu_baseline()
        gpu_load.on_each(gpus, jobs.on_gpu, parallel=ctx.flag("parallel", True))
        jobs.compare(gpus)
        jobs.on_all(gpus)


class _Jobs:
    """The frameworks that this run has, and their workloads on each GPU, on all, on the CPU."""

    def __init__(self, ctx: Context) -> None:
        self.ctx = ctx
        named = [one.strip() for one in str(ctx.request.params.get("frameworks", "")).split(",") if one.strip()]
        unknown = [one for one in named if one not in WORKLOADS]
        if unknown:
            raise ValueError(f"no such framework: {', '.join(unknown)}; there are {', '.join(WORKLOADS)}")
        self.pythons: Dict[str, str] = {}
        self.absent: Dict[str, str] = dict.fromkeys(WORKLOADS, "left out by the parameter frameworks")
        self.missing: List[str] = []
        for framework in named or WORKLOADS:
            python = pythons.find_python(ctx.plan, framework)
            if python is not None:
                self.pythons[framework] = python
                del self.absent[framework]
                continue
            self.absent[framework] = pythons.explain(ctx.plan, framework)
            if framework in named or ctx.plan.pythons.get(framework):  # asked for by name: its absence is a failure
                self.missing.append(self.absent[framework])
        self.data, self.no_data = _dataset(ctx)
        self.timeout_s = float(ctx.request.params.get("gpu_timeout_s", GPU_TIMEOUT_S))
        self.good: Dict[str, List[nvml.Gpu]] = {framework: [] for framework in WORKLOADS}
        self.speeds: Dict[str, Dict[str, float]] = {}
        self.cpu_speed: Dict[str, float] = {}
        self.unfit: Dict[str, str] = {}
        """Framework -> why its workload does not run with what the host has."""

    def first(self) -> str:
        """The framework that says whether anything can run: one that is there, else torch."""
        return next(iter(self.pythons), "torch")

    def params(self, framework: str, subject: str, gpus: int, **more: Scalar) -> Dict[str, Scalar]:
        """What a workload gets. `no_data`: why there is none, where data is empty."""
        given = {
            name: value
            for name, value in self.ctx.request.params.items()
            if name in ("epochs", "batch", "seconds", "target", "memory_gib")
        }
        return {**given, "subject": subject, "data": self.data, "no_data": self.no_data, "gpus": gpus, **more}

    def on_gpu(self, gpu: nvml.Gpu) -> None:
        """Train on one GPU with each framework; closes the GPU."""
        with self.ctx.subject(gpu.uuid):
            seen = _Seen(self.ctx)
            problems = list(self.missing)
            with gpu_load.watched(seen, gpu) as watching:
                for framework, python in self.pythons.items():
                    params = self.params(framework, gpu.uuid, 1)
                    try:
                        with seen.of(framework):
                            workload.run_workload(
                                watching, python, WORKLOADS[framework], params, gpus=(gpu.uuid,),
                                timeout_s=self.timeout_s,
                            )  # fmt: skip
                        self.good[framework].append(gpu)
                    except RuntimeError as problem:
                        problems.append(f"{framework}: {problem}")
            self.unfit.update(seen.unfit)
            self._beside(gpu.uuid, seen)
            self._without(gpu.uuid)
            if problems:
                raise RuntimeError("; ".join(problems))

    def _beside(self, uuid: str, seen: _Seen) -> None:
        for framework in self.pythons:
            labels = {"framework": framework, "gpus": "1"}
            used = seen.utilisation.get(framework)
            if used:
                self.ctx.measure("utilisation", statistics.median(used), uuid, labels)
            elif framework in seen.unfit:
                self.ctx.not_applicable("utilisation", seen.unfit[framework], uuid, labels)
            else:
                self.ctx.unknown("utilisation", "NVML gave no reading while it trained", uuid, labels)
            ours, theirs = seen.speed.get(framework), self.cpu_speed.get(framework)
            if ours:
                self.speeds.setdefault(framework, {})[uuid] = ours
            if ours and theirs:
                self.ctx.measure("gpu_over_cpu", ours / theirs, uuid, labels)
            else:
                why = "the CPU was not measured; --param cifar.cpu_baseline=true does"
                self.ctx.not_applicable("gpu_over_cpu", why, uuid, labels)

    def _without(self, subject: str) -> None:
        """The cells of the frameworks that this host hasn't, and the CPU's on a GPU."""
        for framework, why in self.absent.items():
            for metric in (*TRAINING, *BESIDE, *(HOSTS if self.ctx.plan.device == "cpu" else ())):
                self.ctx.not_applicable(metric.name, why, subject, {"framework": framework})
        if subject != HOST:
            self.ctx.not_applicable("cpu_images_per_second", "measured on the GPU", subject)

    def compare(self, gpus: Sequence[nvml.Gpu]) -> None:
        """The slowest GPU by the fastest, for each framework: like cards train alike."""
        names = {nvml.text(gpu.get("GetName")) for gpu in gpus}
        for framework in WORKLOADS:
            labels, speeds = {"framework": framework}, self.speeds.get(framework, {})
            why = self.absent.get(framework, "") or self.unfit.get(framework, "")
            if not why and (len(gpus) < 2 or len(names) > 1):
                why = "one GPU has nothing to be compared with" if len(gpus) < 2 else "GPUs of several names"
            if why:
                self.ctx.not_applicable("slowest_of_fastest", why, labels=labels)
            elif len(speeds) < 2:
                self.ctx.unknown("slowest_of_fastest", "fewer than two GPUs have a speed", labels=labels)
            else:
                slowest, fastest = min(speeds, key=speeds.__getitem__), max(speeds.values())
                note = f"slowest: {slowest}, {speeds[slowest]:,.0f} images/s; fastest: {fastest:,.0f}"
                self.ctx.measure("slowest_of_fastest", speeds[slowest] / fastest, labels=labels, note=note)

    def on_all(self, gpus: Sequence[nvml.Gpu]) -> None:
        """One job over all GPUs that trained alone. Raises RuntimeError with what failed."""
        ctx = self.ctx
        if not ctx.flag("together", True) or len(gpus) < 2:
            return
        problems = []
        for framework, python in self.pythons.items():
            if framework in self.unfit:
                continue
            uuids = [gpu.uuid for gpu in gpus if gpu in self.good[framework]]
            if len(uuids) < 2:
                problems.append(f"{framework}: no job over all GPUs: fewer than two of them trained alone")
                continue
            params = self.params(framework, HOST, len(uuids))
            try:
                if framework == "torch":
                    ranks.run_ranks(
                        ctx, python, WORKLOADS[framework], params, gpus=uuids, timeout_s=self.timeout_s
                    )  # fmt: skip
                else:  # MirroredStrategy: one process has all
                    workload.run_workload(
                        ctx, python, WORKLOADS[framework], params, gpus=uuids, timeout_s=self.timeout_s
                    )  # fmt: skip
            except RuntimeError as problem:
                problems.append(f"{framework} on {len(uuids)} GPUs: {problem}")
        if problems:
            raise RuntimeError("; ".join(problems))

    def cpu_baseline(self) -> None:
        """The CPU's speed with each framework, before any GPU works."""
        seen = _Seen(self.ctx)
        for framework, python in self.pythons.items():
            params = {**self.params(framework, HOST, 0), "epochs": 0, "batch": 0}
            try:
                workload.run_workload(seen, python, WORKLOADS[framework], params, gpus=(), timeout_s=self.timeout_s)
            except RuntimeError as problem:  # the GPUs are measured nevertheless; then it is said
                self.missing.append(f"{framework} on the CPU: {problem}")
        self.cpu_speed = seen.cpu_speed

    def on_the_cpu(self) -> None:
        """A CPU run: its speed, and the accuracy where epochs were asked for. Raises RuntimeError."""
        if not self.pythons:
            raise RuntimeError("; ".join(self.missing) or pythons.explain(self.ctx.plan, "torch"))
        for framework, python in self.pythons.items():
            params = self.params(framework, HOST, 0)
            workload.run_workload(self.ctx, python, WORKLOADS[framework], params, gpus=None, timeout_s=self.timeout_s)
            for metric in (*BESIDE, *HOSTS):
                self.ctx.not_applicable(metric.name, "a CPU run: no GPU was measured", labels={"framework": framework})
        self._without(HOST)
        gpu_load.not_on_the_cpu(self.ctx, but=[metric.name for metric in (*TRAINING, *CPU, *BESIDE, *HOSTS)])
        if self.missing:
            raise RuntimeError("; ".join(self.missing))


SPEEDLESS = ("images_per_second", NOT_APPLICABLE)


class _Seen(Context):
    """The same context, noting each framework's speed and the GPU's utilisation while its training runs."""

    def __init__(self, ctx: Context) -> None:
        super().__init__(ctx.info, ctx.request, ctx.plan, self._note)
        self._pass_on = ctx.forward
        self._lock = threading.Lock()
        self._framework, self._loaded = "", False
        self.utilisation: Dict[str, List[float]] = {}
        self.speed: Dict[str, float] = {}
        self.cpu_speed: Dict[str, float] = {}
        self.unfit: Dict[str, str] = {}

    @contextmanager
    def of(self, framework: str) -> Iterator[None]:
        """What is read meanwhile, from the workload's first progress with a fraction on, is of this framework."""
        self._framework, self._loaded = framework, False
        try:
            yield
        finally:
            self._loaded = False

    def _note(self, record: Record) -> None:
        with self._lock:
            if isinstance(record, Progress):
                self._loaded = self._loaded or record.fraction >= 0  # compiling, which loads no GPU, has no fraction
            elif isinstance(record, Sample) and self._loaded and "utilisation" in record.values:
                self.utilisation.setdefault(self._framework, []).append(record.values["utilisation"])
            elif isinstance(record, Measurement) and isinstance(record.value, (int, float)):
                speeds: Optional[Dict[str, float]] = {
                    "images_per_second": self.speed,
                    "cpu_images_per_second": self.cpu_speed,
                }.get(record.metric)
                if speeds is not None:
                    speeds[record.labels.get("framework", "")] = float(record.value)
            elif isinstance(record, Measurement) and (record.metric, record.absence) == SPEEDLESS:
                self.unfit[record.labels.get("framework", "")] = record.note
        self._pass_on(record)


def _dataset(ctx: Context) -> Tuple[str, str]:
    """The folder of the real images, or why there is none. Raises DamagedData for a folder that was named."""
    if ctx.plan.device == "cpu" and not ctx.request.params.get("epochs"):
        return "", "a CPU run without epochs takes no real images"
    try:
        return datasets.find(ctx, "cifar10").folder, ""
    except datasets.NoData as reason:
        return "", str(reason)
