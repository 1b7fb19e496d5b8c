"""Does each framework see each GPU, and can it compute there: the question most asked in this field."""

from __future__ import annotations

from typing import Callable, Dict, List, Mapping, Set

from validators.check import Context, Metric, Skip, check
from validators.probes import nvml, pci, pythons
from validators.probes.sysfs import Files
from validators.probes.workload import run_workload
from validators.schema import ERROR, HOST, RAN, Measurement, Record

METRICS = (
    Metric("imports", "bool", "whether the framework can be imported (note: what it said)"),
    Metric("framework_version", "version", "its version, as it says itself"),
    Metric("cuda_build", "version", "the CUDA version it was built for"),
    Metric("arch_list", "text", "machine code in its wheel: sm_90 is for compute capability 9.0, compute_90 is PTX"),
    Metric("cuda_init", "text", "what the driver library's cuInit answers"),
    Metric("devices_seen", "count", "GPUs that the framework can use (note: why none)"),
    Metric("arch_supported", "bool", "whether that machine code runs on this GPU"),
    Metric("context", "bool", "whether a CUDA context and a first kernel came about (note: the error)"),
    Metric("known_answer", "bool", "whether [[1,2,3],[4,5,6]] @ [[1,2],[3,4],[5,6]] is [[22,28],[49,64]]"),
    Metric("device_ran_on", "text", "the framework's own word for where that was computed"),
)
TIMEOUT_S = 150.0
"""For one framework: its first import from a cold disk can take a minute."""


@check(
    catches="a wheel built for another CUDA or another card, missing libraries, a GPU that takes no context",
    needs=("a framework's Python: bringup_torch_python, or the frameworks role",),
    level=2,
    seconds=10,
    timeout_s=480,
    per_gpu=True,
    metrics=METRICS,
)
def preflight(ctx: Context) -> None:
    """Per framework its CUDA build and architectures; on each GPU a context and a product whose answer is known."""
    on_cpu = ctx.plan.device == "cpu"
    if not on_cpu:
        devices = pci.nvidia_devices(Files())
        if devices is not None and not any(device.is_gpu for device in devices):
            raise Skip("no NVIDIA GPU on the PCI bus")
    gpus = {} if on_cpu else _gpus()
    seen = _Seen(ctx)
    problems = [problem for framework in _wanted(ctx) for problem in _measure(seen, framework, gpus)]
    for uuid in gpus:
        answered = uuid in seen.subjects
        detail = "" if answered else "; ".join(problems) or "no framework reached this GPU (see devices_seen)"
        ctx.outcome(uuid, RAN if answered else ERROR, detail)
    if problems:
        raise RuntimeError("; ".join(problems))


def _wanted(ctx: Context) -> List[str]:
    """torch always; another framework where the inventory names its Python or our role made it one."""
    others = [
        name
        for name in ("tensorflow", "jax")
        if name in ctx.plan.pythons or Files().exists(f"{pythons.VENVS}/{name}/bin/python3")
    ]
    return ["torch", *others]


def _gpus() -> Dict[str, str]:
    """UUID -> compute capability ("" where not told), by NVML; none where it does not answer: that is
    compute_capability's to report."""
    try:
        with nvml.session() as session:
            return {gpu.uuid: _capability(gpu.get("GetCudaComputeCapability")) for gpu in session.gpus()[0]}
    except nvml.NvmlFailure:
        return {}


def _capability(answer: object) -> str:
    return ".".join(map(str, answer)) if isinstance(answer, (tuple, list)) else ""


class _Seen(Context):
    """The same context, noting which GPUs gave an answer on the way."""

    def __init__(self, ctx: Context) -> None:
        super().__init__(ctx.info, ctx.request, ctx.plan, self._note)
        self.subjects: Set[str] = set()
        self._pass_on: Callable[[Record], None] = ctx.forward

    def _note(self, record: Record) -> None:
        if isinstance(record, Measurement) and record.subject != HOST:
            self.subjects.add(record.subject)
        self._pass_on(record)


def _measure(ctx: Context, framework: str, gpus: Mapping[str, str]) -> List[str]:
    """Measure one framework; gives what stood in the way."""
    python = pythons.find_python(ctx.plan, framework)
    if python is None:
        return [pythons.explain(ctx.plan, framework)]
    told = " ".join(f"{uuid}={capability}" for uuid, capability in gpus.items() if capability)
    params = {"framework": framework, "device": ctx.plan.device, "gpus": told}
    try:
        run_workload(ctx, python, "preflight", params, gpus=None, timeout_s=TIMEOUT_S)
    except RuntimeError as problem:
        return [f"{framework} under {python}: {problem}"]
    return []
