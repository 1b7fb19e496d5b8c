"""MNIST on each GPU: the MLP of Keras's example, trained to 98.5 % of the official test images."""

from __future__ import annotations

from typing import Dict, List, Mapping, Tuple

from validators.check import Context, Metric, check
from validators.probes import gpu_load, nvml, pythons, workload
from validators.schema import HOST, Scalar

WORKLOADS: Mapping[str, Tuple[str, Tuple[str, ...]]] = {
    "torch": ("mnist_torch", ("mlp", "cnn")),
    "tensorflow": ("mnist_keras", ("mlp",)),
}
"""Framework -> its program in validators/workloads/, and the models that it has."""

METRICS: Tuple[Metric, ...] = (
    Metric("accuracy", "ratio", "share of the official 10,000 test images that the trained network names rightly"),
    Metric("time_to_accuracy", "s", "from the start of the process to the target accuracy, imports and all"),
    Metric("epochs", "count", "passes over the 60,000 training images until then"),
    Metric("seconds_per_epoch", "s", "one such pass: the median"),
    Metric("parameters", "count", "numbers that the network learns; the MLP has 669,706"),
    Metric("images_per_second", "images/s", "training speed in steady state: median over windows"),
    Metric("images_per_second_spread", "ratio", "90th less 10th percentile of the windows' speeds, by the median"),
)
GPU_TIMEOUT_S = 300.0


@check(
    catches="a framework that falls back to the CPU, a GPU that computes and does not learn, a slow start",
    needs=("torch or tensorflow: bringup_torch_python, bringup_tensorflow_python, or the frameworks role",),
    level=3,
    seconds=30,
    timeout_s=2400,
    per_gpu=True,
    params=("frameworks", "models", "epochs", "batch", "target", "subset", "seconds", "parallel", "gpu_timeout_s"),
    data=("mnist",),
    metrics=METRICS,
)
def mnist(ctx: Context) -> None:
    """MNIST's MLP (784-512-512-10, dropout 0.2) to 98.5 % on each GPU, in torch and Keras; in torch a CNN, too.

    Params: frameworks ("torch,tensorflow"), models ("mlp,cnn"; on the CPU "mlp"), epochs at most and batch (0: its own
    choice), target accuracy (0.985), subset (0: all training images), seconds of the speed's measurement (1), parallel
    (true; false: one GPU after the other), gpu_timeout_s for each training (300).
    """
    jobs = _Jobs(ctx)
    if ctx.plan.device == "cpu":
        jobs.on_the_cpu()
        return
    with gpu_load.ready(ctx, next(iter(jobs.pythons), "torch")) as (_, gpus):
        gpu_load.on_each(gpus, jobs.on_gpu, parallel=ctx.flag("parallel", True))


class _Jobs:
    """The frameworks that this run has, and their trainings on a GPU or on the CPU."""

    def __init__(self, ctx: Context) -> None:
        self.ctx = ctx
        named = _named(ctx, "frameworks", tuple(WORKLOADS))
        on_cpu = ctx.plan.device == "cpu"
        models = _named(ctx, "models", ("mlp", "cnn"))
        self.models = models or (["mlp"] if on_cpu else ["mlp", "cnn"])
        self.left_out = "left out by the parameter models" if models else "minutes an epoch on the CPU; models=mlp,cnn"
        self.pythons: Dict[str, str] = {}
        self.absent: Dict[str, str] = {}
        self.missing: List[str] = []
        for framework in WORKLOADS:
            if named and framework not in named:
                self.absent[framework] = "left out by the parameter frameworks"
                continue
            python = pythons.find_python(ctx.plan, framework)
            if python is not None:
                self.pythons[framework] = python
                continue
            self.absent[framework] = pythons.explain(ctx.plan, framework)
            if framework in named or ctx.plan.pythons.get(framework):  # asked for by name: its absence is a failure
                self.missing.append(self.absent[framework])
        if not any(set(WORKLOADS[name][1]) & set(self.models) for name in named or WORKLOADS):
            raise ValueError(f"{', '.join(named)} has no {', '.join(self.models)}: nothing is left to train")
        self.data, self.no_data = _dataset(ctx)

    def on_gpu(self, gpu: nvml.Gpu) -> None:
        """All trainings on one GPU; closes the GPU."""
        with self.ctx.subject(gpu.uuid):
            self._run(gpu.uuid, 1)

    def on_the_cpu(self) -> None:
        """All trainings on the CPU. Raises RuntimeError."""
        if not self.pythons:
            raise RuntimeError("; ".join(self.missing) or pythons.explain(self.ctx.plan, "torch"))
        self._run(HOST, 0)

    def _run(self, subject: str, gpus: int) -> None:
        problems = list(self.missing)
        given = {
            name: value
            for name, value in self.ctx.request.params.items()
            if name in ("epochs", "batch", "target", "subset", "seconds")
        }
        timeout_s = float(self.ctx.request.params.get("gpu_timeout_s", GPU_TIMEOUT_S))
        for framework, python in self.pythons.items():
            program, models = WORKLOADS[framework]
            for model in (one for one in models if one in self.models):
                params: Dict[str, Scalar] = {
                    **given, "subject": subject, "data": self.data, "no_data": self.no_data, "gpus": gpus,
                    "model": model,
                }  # fmt: skip
                try:
                    workload.run_workload(
                        self.ctx, python, program, params, gpus=(subject,) if gpus else None, timeout_s=timeout_s
                    )  # fmt: skip
                except RuntimeError as problem:
                    problems.append(f"{framework}, {model}: {problem}")
        for framework in self.pythons:
            for model in (one for one in WORKLOADS[framework][1] if one not in self.models):
                labels = {"framework": framework, "model": model, "gpus": str(gpus)}
                for metric in METRICS:
                    self.ctx.not_applicable(metric.name, self.left_out, subject, labels)
        for framework, why in self.absent.items():
            for metric in METRICS:
                self.ctx.not_applicable(metric.name, why, subject, {"framework": framework})
        if problems:
            raise RuntimeError("; ".join(problems))


def _named(ctx: Context, param: str, there_are: Tuple[str, ...]) -> List[str]:
    """The names in a parameter, empty where it was not given. Raises ValueError for one that there is none of."""
    named = [one.strip() for one in str(ctx.request.params.get(param, "")).split(",") if one.strip()]
    unknown = [one for one in named if one not in there_are]
    if unknown:
        raise ValueError(f"{param}: there is no {', '.join(unknown)}; there are {', '.join(there_are)}")
    return named


def _dataset(ctx: Context) -> Tuple[str, str]:
    """The folder of the images, or why there is none."""
    from validators.probes import datasets  # noqa: PLC0415 - it reads much; not for a list of checks

    try:
        return datasets.find(ctx, "mnist").folder, ""
    except datasets.NoData as reason:
        return "", str(reason)
