"""What a second, a fourth, an eighth GPU of a host adds, and why it is no more."""

from __future__ import annotations

from typing import Callable, Dict, List, Mapping, Sequence, Set, Tuple

from validators.check import Context, Metric, Skip, check
from validators.checks._scaling import Cell, limited_by
from validators.probes import gpu_load, nvml, pythons, ranks, workload
from validators.schema import ERROR, HOST, NOT_APPLICABLE, RAN, SKIPPED, Measurement, Record, Scalar

METRICS = (
    Metric("images_per_second", "images/s", "median rate of all GPUs together while training"),
    Metric("images_per_second_spread", "ratio", "slowest less fastest block of steps, by the median"),
    Metric("speedup", "ratio", "images a second against one GPU: the same batch a GPU (weak) or in all (strong)"),
    Metric("efficiency", "ratio", "that by the number of GPUs; 1 is all that can be had (note: what limits it)"),
    Metric("time_computing", "ratio", "of a step: the mean rank's time without the exchange of gradients"),
    Metric("time_waiting", "ratio", "of a step: what the slowest rank needs beyond the mean, for which all wait"),
    Metric("time_communicating", "ratio", "of a step: exchange of gradients that computing does not hide"),
    Metric(
        "time_launching", "ratio", "the host's time to queue a step, by the step; near 1 the GPU waits for the host"
    ),
    Metric("all_reduce_alone", "ratio", "the same bytes exchanged with nothing beside it, by the step"),
    Metric("limited_by", "text", "what keeps the efficiency from 1, by the rule of docs/scaling.md"),
    Metric("ranks_agree", "bool", "whether all GPUs hold the same parameters to the last bit after the timed steps"),
    Metric("loss_deviation", "ratio", "loss of all GPUs together against one GPU alone, same steps, same whole batch"),
    Metric("update_deviation", "ratio", "the same for what training added to the parameters"),
)

DEFAULTS: Mapping[str, Scalar] = {
    "seconds": 0.6,
    "models": "vgg19_bn,mnist_cnn",
    "vgg19_bn": "4096,1024,256",
    "mnist_cnn": "4096,256",
    "keras_cnn": "1024",
    "global_batch": 4096,
}
ON_THE_CPU: Mapping[str, Scalar] = {
    "seconds": 0.1,
    "models": "mnist_cnn",
    "vgg19_bn": "2",
    "mnist_cnn": "16",
    "keras_cnn": "16",
    "global_batch": 16,
}
WORLD_TIMEOUT_S = 180.0
"""For one number of GPUs; within it an exchange that hangs is ended after two thirds."""


@check(
    catches="slow or missing links between GPUs, a host too slow for its GPUs, gradients reduced wrongly",
    needs=("torch: bringup_torch_python, or the frameworks role", "two GPUs", "tensorflow, where it is there"),
    level=3,
    seconds=120,
    timeout_s=1500,
    per_gpu=True,
    params=(*DEFAULTS, "frameworks", "counts", "world_timeout_s"),
    metrics=(*METRICS, *gpu_load.UNDER_LOAD),
)
def scaling(ctx: Context) -> None:
    """Training on 1, 2, 4, ... GPUs of the host: images/s, speedup, where the time goes, and whether results agree.

    Params: frameworks (torch,tensorflow), counts "1,2" (1, 2, 4, ... and all), models (vgg19_bn,mnist_cnn), for each
    model's name its batches a GPU, keras_cnn the TensorFlow network's, global_batch of strong scaling (4096), seconds a
    configuration (0.6), world_timeout_s (180). Images are random numbers, or CIFAR-10 where its folder is on the host:
    throughput needs no accuracy.
    """
    if ctx.plan.device == "cpu":
        _on_the_cpu(ctx)
        return
    wanted = _frameworks(ctx)
    with gpu_load.ready(ctx, "torch" if "torch" in wanted else "tensorflow") as (python, gpus):
        if len(gpus) < 2:
            for gpu in gpus:
                ctx.outcome(gpu.uuid, SKIPPED, "scaling needs a second GPU")
            raise Skip("one GPU that may be loaded: scaling needs two of a host")
        runs = _Runs(ctx, gpus)
        with gpu_load.watched(ctx, *gpus) as watching:
            table = _Table(watching)
            if "torch" in wanted:
                runs.torch(table, python)
            if "tensorflow" in wanted:
                runs.tensorflow(table)
        runs.end()
        table.fill({**runs.missing, **_left_out(wanted)})


def _frameworks(ctx: Context) -> List[str]:
    names = [name.strip() for name in str(ctx.request.params.get("frameworks", "torch,tensorflow")).split(",")]
    for name in names:
        if name not in ("torch", "tensorflow"):
            raise ValueError(f"no such framework: {name!r}; there are torch, tensorflow")
    return names


def _by_name(ctx: Context) -> bool:
    """Whether TensorFlow was asked for by name: its absence is a failure then."""
    named = ctx.plan.pythons.get("tensorflow") or "tensorflow" in str(ctx.request.params.get("frameworks", ""))
    return bool(named)


def _left_out(wanted: Sequence[str]) -> Dict[str, str]:
    text = "left out by the parameters, or not measured for want of memory: see images_per_second"
    names = {name: f"{name} was left out by the parameter frameworks" for name in ("torch", "tensorflow")}
    return {"": text, **{name: why for name, why in names.items() if name not in wanted}}


def counts_of(ctx: Context, available: int) -> List[int]:
    """1, 2, 4, ... and all of them; or those asked for that are there, 1 among them: the others are set against it."""
    asked = str(ctx.request.params.get("counts", ""))
    if asked:
        return sorted({1, *(int(word) for word in asked.split(",") if 1 <= int(word) <= available)})
    return sorted({available, *(2**i for i in range(available.bit_length()) if 2**i <= available)})


class _Table(Context):
    """The same context, which keeps the rates on their way past and sets each against one GPU's."""

    def __init__(self, ctx: Context) -> None:
        super().__init__(ctx.info, ctx.request, ctx.plan, self._note)
        self._pass_on: Callable[[Record], None] = ctx.forward
        self._cells: Dict[Cell, Dict[str, float]] = {}
        self._labels: Dict[Cell, Mapping[str, str]] = {}
        self._told: Set[Tuple[str, str, str]] = set()
        self._unfit: Dict[Cell, Tuple[Mapping[str, str], str]] = {}
        self._seen: Set[str] = set()

    def has(self, framework: str) -> bool:
        """Whether any rate of this framework has come."""
        return any(cell.framework == framework and "images_per_second" in one for cell, one in self._cells.items())

    def _note(self, record: Record) -> None:
        if isinstance(record, Measurement):
            self._seen.add(record.metric)
        if isinstance(record, Measurement) and {"mode", "gpus"} <= set(record.labels):
            cell = Cell.of(record.labels)
            if isinstance(record.value, (int, float)) and not isinstance(record.value, bool):
                self._cells.setdefault(cell, {})[record.metric] = float(record.value)
                self._labels[cell] = record.labels
            elif record.metric == "images_per_second":
                self._unfit[cell] = record.labels, record.note
        self._pass_on(record)

    def compare(self, framework: str, count: int) -> None:
        """Send speedup, efficiency and what limits it of every configuration on so many GPUs; of one that fewer of them
        measured together and that so many did not, that it is not known.
        """
        for cell, (labels, why) in self._unfit.items():
            fewer = (self._cells.get(cell.on(some), {}) for some in range(2, count))
            if (cell.framework, cell.gpus) == (framework, count) and any("images_per_second" in one for one in fewer):
                for metric in ("speedup", "efficiency", "limited_by"):
                    self.unknown(metric, why, HOST, labels)
        for cell, found in self._cells.items():
            if (cell.framework, cell.gpus) != (framework, count) or count == 1 or "images_per_second" not in found:
                continue
            labels = self._labels[cell]
            if cell.mode == "weak":
                self._told.add((cell.framework, cell.model, str(cell.batch)))
            one = self._cells.get(cell.on(1), {})
            if "images_per_second" not in one:
                for metric in ("speedup", "efficiency", "limited_by"):
                    self.unknown(metric, "there is no rate of one GPU to set it against", HOST, labels)
                continue
            speedup = found["images_per_second"] / one["images_per_second"]
            why = limited_by(cell, found, speedup / count)
            self.measure("speedup", speedup, HOST, labels)
            if self.plan.device == "cpu":
                self.not_applicable("efficiency", "a CPU run: the ranks share its cores", HOST, labels)
            else:
                self.measure("efficiency", speedup / count, HOST, labels, why)
            self.measure("limited_by", why, HOST, labels)

    def fill(self, reasons: Mapping[str, str]) -> None:
        """The efficiencies that a full run has and this one has not, with the reason: by framework, else ""'s."""
        for framework, models in (("torch", ("vgg19_bn", "mnist_cnn")), ("tensorflow", ("keras_cnn",))):
            for model in models:
                for batch in str(DEFAULTS[model]).split(","):
                    if (framework, model, batch) not in self._told:
                        labels = {"framework": framework, "model": model, "mode": "weak", "batch": batch}
                        self.not_applicable("efficiency", reasons.get(framework, reasons[""]), HOST, labels)
        if "ranks_agree" not in self._seen:
            self.not_applicable("ranks_agree", "no run used two GPUs together")
        for metric in ("loss_deviation", "update_deviation"):
            if metric not in self._seen:
                self.not_applicable(metric, reasons.get("torch", "no run of torch used two GPUs together"))


class _Runs:
    """The worlds of one host, smallest first, each on its own: what fails at four leaves what two gave."""

    def __init__(self, ctx: Context, gpus: Sequence[nvml.Gpu]) -> None:
        self._ctx = ctx
        self._gpus = list(gpus)
        self._well = list(gpus)
        self._used: Dict[str, bool] = {}
        self._problems: List[str] = []
        self.missing: Dict[str, str] = {}
        """Framework -> why it was not measured."""
        self._timeout_s = float(ctx.request.params.get("world_timeout_s", WORLD_TIMEOUT_S))

    def torch(self, table: _Table, python: str) -> None:
        """Each number of GPUs in processes of its own, one a GPU."""
        for count in counts_of(self._ctx, len(self._gpus)):
            problem = ""
            while len(self._well) >= count:
                chosen = [gpu.uuid for gpu in self._well[:count]]
                problem = _world(table, python, _params(self._ctx, "gpu", self._timeout_s), chosen, self._timeout_s)
                if not problem:
                    self._used.update(dict.fromkeys(chosen, True))
                    break
                if not self._drop_the_lost(problem):
                    break
            lacks = f"{len(self._well)} of {len(self._gpus)} GPUs are left"
            if len(self._well) < count:
                problem = f"{problem or 'not tried'}; {lacks}"
            self._close(table, "torch", count, problem)

    def tensorflow(self, table: _Table) -> None:
        """Each number of GPUs in a process of its own: TensorFlow keeps the groups of a strategy for a process's life,
        and refuses another number of GPUs."""
        python = pythons.find_python(self._ctx.plan, "tensorflow")
        if python is None:
            text = pythons.explain(self._ctx.plan, "tensorflow")
            if _by_name(self._ctx):
                self._problems.append(text)
            self._ctx.not_applicable("images_per_second", text, HOST, {"framework": "tensorflow"})
            self.missing["tensorflow"] = text
            return
        for count in counts_of(self._ctx, len(self._gpus)):
            uuids = [gpu.uuid for gpu in self._well[:count]]
            if len(uuids) < count:
                return
            problem = _keras(table, python, _params(self._ctx, "gpu", self._timeout_s), uuids, self._timeout_s)
            self._close(table, "tensorflow", count, problem)
            if problem:
                continue
            if not table.has("tensorflow"):
                self.missing["tensorflow"] = "TensorFlow measured nothing: see its images_per_second"
                return
            self._used.update(dict.fromkeys(uuids, True))

    def _close(self, table: _Table, framework: str, count: int, problem: str) -> None:
        table.compare(framework, count)  # what came before it broke stands
        if problem:
            text = f"{framework} on {count} GPU{'s' * (count > 1)}: {problem}"
            self._problems.append(text)
            self._ctx.unknown("images_per_second", text, HOST, {"framework": framework, "gpus": str(count)})

    def _drop_the_lost(self, problem: str) -> bool:
        """Whether a GPU no longer answers NVML: it fell off, and its world is tried again without it."""
        lost = [gpu for gpu in self._well if _is_lost(gpu)]
        for gpu in lost:
            self._well.remove(gpu)
            self._used[gpu.uuid] = False
            self._ctx.outcome(gpu.uuid, ERROR, f"it no longer answers NVML: it fell off during the run ({problem})")
        return bool(lost)

    def end(self) -> None:
        """Each GPU's outcome, and the host's. Raises RuntimeError for what failed."""
        for gpu in self._gpus:
            if gpu.uuid not in self._used:
                text = "; ".join(self._problems) or "no run used this GPU"
                self._ctx.outcome(gpu.uuid, ERROR if self._problems else SKIPPED, text)
            elif self._used[gpu.uuid]:
                self._ctx.outcome(gpu.uuid, RAN)
        if self._problems:
            raise RuntimeError("; ".join(self._problems))


def _is_lost(gpu: nvml.Gpu) -> bool:
    answer = gpu.get("GetMemoryInfo")
    return isinstance(answer, nvml.Absent) and answer.kind != NOT_APPLICABLE


def _world(ctx: Context, python: str, params: Mapping[str, Scalar], uuids: Sequence[str], timeout_s: float) -> str:
    """Run one world of torch; gives what went wrong."""
    on_gpu = params["device"] == "gpu"
    count = len(uuids) or int(params["ranks"])
    environment = {"OMP_NUM_THREADS": "1"}  # as torchrun sets it
    if not on_gpu:
        environment["GLOO_SOCKET_IFNAME"] = "lo"  # one host: whatever its name resolves to
    try:
        ranks.run_ranks(
            ctx, python, "scaling_torch", params,
            gpus=tuple(uuids), ranks=count, timeout_s=timeout_s, environment=environment,
        )  # fmt: skip
    except RuntimeError as problem:
        return str(problem)
    return ""


def _keras(ctx: Context, python: str, params: Mapping[str, Scalar], uuids: Sequence[str], timeout_s: float) -> str:
    """Run TensorFlow on these GPUs, on params' ranks of the CPU for none; gives what went wrong."""
    told = {**params, "replicas": len(uuids) or params["ranks"]}
    try:
        workload.run_workload(ctx, python, "scaling_keras", told, gpus=tuple(uuids) or None, timeout_s=timeout_s)
    except RuntimeError as problem:
        return str(problem)
    return ""


def _params(ctx: Context, device: str, timeout_s: float) -> Dict[str, Scalar]:
    defaults = DEFAULTS if device == "gpu" else ON_THE_CPU
    params = {name: ctx.request.params.get(name, value) for name, value in defaults.items()}
    folder = ctx.plan.data.get("cifar10", "")
    return {**params, "device": device, "data": folder, "timeout_s": timeout_s * 2 / 3}


def _on_the_cpu(ctx: Context) -> None:
    """One and two ranks over gloo, with tiny batches: that the way works, and that the results agree."""
    wanted = _frameworks(ctx)
    table, problems = _Table(ctx), []
    timeout_s = float(ctx.request.params.get("world_timeout_s", WORLD_TIMEOUT_S))
    params = _params(ctx, "cpu", timeout_s)
    if "torch" in wanted:
        python = gpu_load.on_the_cpu(ctx, "torch")
        for count in counts_of(ctx, 2):
            problem = _world(table, python, {**params, "ranks": count}, (), timeout_s)
            table.compare("torch", count)
            if problem:
                problems.append(f"{count} ranks: {problem}")
    tensorflow = pythons.find_python(ctx.plan, "tensorflow") if "tensorflow" in wanted else None
    if tensorflow is not None:
        for count in counts_of(ctx, 2):
            problem = _keras(table, tensorflow, {**params, "ranks": count}, (), timeout_s)
            table.compare("tensorflow", count)
            problems += [f"tensorflow: {problem}"] if problem else []
    elif "tensorflow" in wanted and _by_name(ctx):
        problems.append(pythons.explain(ctx.plan, "tensorflow"))
    if problems:
        raise RuntimeError("; ".join(problems))
    table.fill({**_left_out(wanted), "": "a CPU run: the ranks share its cores"})
    gpu_load.not_on_the_cpu(ctx, but=[metric.name for metric in METRICS])
