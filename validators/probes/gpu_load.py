"""Load on GPUs: which of them may be loaded, under which Python, and what they did meanwhile.

A check that loads GPUs is one `with ready(ctx, "torch") as (python, gpus):`, then its workload for each of them
(`on_each`) or for all together, inside `watched`, which measures UNDER_LOAD.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import Callable, Iterator, List, Optional, Sequence, Tuple, Union

from validators.check import Context, Metric, Skip
from validators.probes import nvml, pci, pythons
from validators.probes.gpu_state import COMPUTE_MODES, GRAPHICS, MAX_NAMED_PROCESSES, SM
from validators.probes.load_trace import BRAKED, THERMAL, UNHINDERED, Sampler, Trace
from validators.probes.sysfs import Files
from validators.schema import ERROR, NOT_APPLICABLE, SKIPPED, Progress, Record, Scalar

UNDER_LOAD: Tuple[Metric, ...] = (
    Metric("sm_clock_under_load", "MHz", "median clock of the multiprocessors"),
    Metric("clock_held_low", "bool", "whether it was under 0.8 of what the card allows, not for power or heat"),
    Metric("power_under_load", "W", "highest power draw"),
    Metric("temperature_under_load", "celsius", "highest temperature"),
    Metric("throttle_reasons_under_load", "text", "all that held the clock back; a software power cap is usual"),
    Metric("throttled_by_heat", "bool", "whether a thermal slowdown was on under load"),
    Metric("throttled_by_hardware", "bool", "whether a hardware slowdown or power brake was on under load"),
    Metric("pcie_generation_under_load", "count", "highest generation of the PCIe link; it drops when idle"),
    Metric("pcie_full_generation", "bool", "whether that is the highest that this card and slot allow"),
)  # fmt: skip
"""What `watched` measures of each GPU; a check that uses it declares these metrics."""

APPLICATION_CLOCKS = 0x2
"""nvmlClocksEventReasonApplicationsClocksSetting."""
HELD_LOW = 0.8
"""Share of the highest clock under which a clock without power or heat as its reason was set by somebody."""
HELD_SHARE = 0.5
"""Such a clock must have been read in so large a share of the readings: a reading on the way up says nothing."""


@contextmanager
def ready(ctx: Context, framework: str) -> Iterator[Tuple[str, List[nvml.Gpu]]]:
    """The framework's Python, and the GPUs that may be loaded; each of the others has its outcome already.

    Raises Skip where the host has no GPU, RuntimeError where none answers, where no Python has the framework, and at
    the end, once the others are measured, for GPUs that NVML counts and cannot reach.
    """
    devices = pci.nvidia_devices(Files())
    if devices is not None and not any(device.is_gpu for device in devices):
        raise Skip("no NVIDIA GPU on the PCI bus; --device cpu runs it on the CPU")
    with nvml.session() as session:
        gpus, lost = session.gpus()
        if not gpus:
            raise RuntimeError("; ".join(one.note for one in lost) or "NVML sees no GPU; see compute_capability")
        free, reasons = [], {}
        for gpu in gpus:
            status, why = obstacle(gpu, ctx.plan.share)
            if status:
                reasons[status] = f"no GPU of this host may be loaded: {why}"
                ctx.outcome(gpu.uuid, status, why)
            else:
                free.append(gpu)
        if free:
            yield _python(ctx, framework, free), free
        elif ERROR in reasons:
            raise RuntimeError("; ".join([reasons[ERROR], *(one.note for one in lost)]))
        elif lost:  # not a host to be skipped
            raise RuntimeError("; ".join([*reasons.values(), *(one.note for one in lost)]))
        else:
            raise Skip(reasons[SKIPPED])
        if lost:
            raise RuntimeError("; ".join(one.note for one in lost))


def _python(ctx: Context, framework: str, gpus: Sequence[nvml.Gpu]) -> str:
    python = pythons.find_python(ctx.plan, framework)
    if python is None:
        text = pythons.explain(ctx.plan, framework)
        for gpu in gpus:
            ctx.outcome(gpu.uuid, ERROR, text)
        raise RuntimeError(text)
    return python


def on_the_cpu(ctx: Context, framework: str) -> str:
    """The framework's Python for a CPU run. Raises RuntimeError where there is none."""
    python = pythons.find_python(ctx.plan, framework)
    if python is None:
        raise RuntimeError(pythons.explain(ctx.plan, framework))
    return python


def obstacle(gpu: nvml.Gpu, share: bool) -> Tuple[str, str]:
    """Why this GPU may not be loaded: an outcome's status and its reason; empty where it may."""
    mig = gpu.get("GetMigMode")
    if not isinstance(mig, nvml.Absent) and mig[0]:
        return SKIPPED, "MIG is on: the card as a whole cannot be loaded; nvidia-smi -mig 0 turns it off"
    mode = gpu.get("GetComputeMode")
    name = COMPUTE_MODES.get(0 if isinstance(mode, nvml.Absent) else mode, "")
    if name == "prohibited":
        return ERROR, "its compute mode is Prohibited: no program can use it; nvidia-smi -c DEFAULT allows it"
    named = ", ".join(_users(gpu))
    if named and name.startswith("exclusive"):
        return (
            ERROR,
            f"in use by {named}, and its compute mode is Exclusive: no second program can use it; end the first",
        )
    if named and not share:
        return ERROR, f"in use by {named}; a load now would disturb it and be disturbed: end it, or insist with --share"
    return "", ""


def _users(gpu: nvml.Gpu) -> List[str]:
    processes = gpu.get("GetComputeRunningProcesses")
    if isinstance(processes, nvml.Absent):
        return []
    named = []
    for process in processes[:MAX_NAMED_PROCESSES]:
        name = nvml.text(gpu.nvml.call("nvmlSystemGetProcessName", int(process.pid)))
        named.append(f"process {process.pid}" + ("" if isinstance(name, nvml.Absent) else f" ({name[:120]})"))
    return named


def on_each(gpus: Sequence[nvml.Gpu], work: Callable[[nvml.Gpu], None], *, parallel: bool = True) -> None:
    """Call `work` for every GPU, at once or one after the other. `work` closes its GPU: `with ctx.subject(uuid)`."""
    if not parallel:
        for gpu in gpus:
            work(gpu)
        return
    threads = [threading.Thread(target=work, args=(gpu,)) for gpu in gpus]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@contextmanager
def watched(
    ctx: Context, *gpus: nvml.Gpu, sampler: Optional[Callable[[nvml.Gpu], Sampler]] = None
) -> Iterator[Context]:
    """The context to give to a workload: from its first progress record on the GPUs are traced, then measured."""
    make = sampler or (lambda gpu: Sampler(gpu, _sender(ctx, gpu.uuid)))
    samplers = [make(gpu) for gpu in gpus]
    try:
        yield _Watching(ctx, samplers)
    finally:
        traces = [sampler.stop() for sampler in samplers]
    for gpu, trace in zip(gpus, traces):  # noqa: B905 - strict is 3.10+, the host may have 3.9
        under_load(ctx, gpu, trace)


def _sender(ctx: Context, uuid: str) -> Callable[..., None]:
    return lambda t_s, values: ctx.sample(t_s, values, uuid)


class _Watching(Context):
    """The same context, telling when the load begins: the workload's first progress record."""

    def __init__(self, ctx: Context, samplers: Sequence[Sampler]) -> None:
        super().__init__(ctx.info, ctx.request, ctx.plan, self._note)
        self._pass_on, self._samplers = ctx.forward, samplers

    def _note(self, record: Record) -> None:
        if isinstance(record, Progress):
            for sampler in self._samplers:
                sampler.start()
        self._pass_on(record)


def under_load(ctx: Context, gpu: nvml.Gpu, trace: Trace) -> None:
    """UNDER_LOAD, from the samples."""
    put(ctx, gpu.uuid, "sm_clock_under_load", trace.median("sm_clock"))
    put(ctx, gpu.uuid, "clock_held_low", _held_low(gpu, trace))
    put(ctx, gpu.uuid, "power_under_load", trace.highest("power"))
    put(ctx, gpu.uuid, "temperature_under_load", trace.highest("temperature"))
    put(ctx, gpu.uuid, "throttle_reasons_under_load", trace.reasons())
    put(ctx, gpu.uuid, "throttled_by_heat", trace.throttled(THERMAL))
    put(ctx, gpu.uuid, "throttled_by_hardware", trace.throttled(BRAKED))
    reached = trace.highest("pcie_generation")
    allowed = nvml.number(gpu.get("GetMaxPcieLinkGeneration"))
    if isinstance(reached, nvml.Absent):
        put(ctx, gpu.uuid, "pcie_generation_under_load", reached)
        put(ctx, gpu.uuid, "pcie_full_generation", reached)
    else:
        put(ctx, gpu.uuid, "pcie_generation_under_load", int(reached))
        full = allowed if isinstance(allowed, nvml.Absent) else reached >= allowed
        put(ctx, gpu.uuid, "pcie_full_generation", full)


def _held_low(gpu: nvml.Gpu, trace: Trace) -> Union[bool, nvml.Absent]:
    """Whether somebody locked the clock (nvidia-smi -lgc, -ac). No event reason of NVML's says that for certain, so:
    most readings without heat, brake or power limit, and their median under HELD_LOW of what the card allows.

    That is its highest clock; where the reason "application clocks" is on, no more than the card's own default for
    them, under which some old cards (K80: 562 of 875 MHz) stay without anybody's doing.
    """
    highest = nvml.number(gpu.get("GetMaxClockInfo", SM))
    limited = trace.throttled(APPLICATION_CLOCKS)
    for one in (trace.median("sm_clock"), highest, limited):
        if isinstance(one, nvml.Absent):
            return one
    default = nvml.number(gpu.get("GetDefaultApplicationsClock", GRAPHICS)) if limited else highest
    known = [float(one) for one in (highest, default) if not isinstance(one, nvml.Absent) and one > 0]
    free = trace.median(UNHINDERED)
    if isinstance(free, nvml.Absent) or trace.share(UNHINDERED, "reasons") < HELD_SHARE:
        return False
    return free < HELD_LOW * min(known, default=0.0)


def put(ctx: Context, subject: str, metric: str, value: Union[Scalar, nvml.Absent]) -> None:
    """Measure what NVML answered, or why it has no answer."""
    if not isinstance(value, nvml.Absent):
        ctx.measure(metric, value, subject)
    elif value.kind == NOT_APPLICABLE:
        ctx.not_applicable(metric, value.note, subject)
    else:
        ctx.unknown(metric, value.note, subject)


def not_on_the_cpu(ctx: Context, but: Optional[Sequence[str]] = None) -> None:
    """After a CPU run: the metrics that only a GPU has are not applicable. `but`: those that were measured."""
    for metric in ctx.info.metrics:
        if metric.name not in (but or ()):
            ctx.not_applicable(metric.name, "a CPU run, asked for with --device cpu: no GPU was measured")
