"""Sustained load on every GPU: does it hold its rate, its answers and its temperature for hours."""

from __future__ import annotations

import statistics
import threading
from dataclasses import dataclass, field
from typing import Dict, List, Mapping, Optional, Tuple

from validators.check import Context, Metric, check
from validators.probes import gpu_load, kernel_log, nvml, workload, xid
from validators.probes.load_trace import Readings, Sampler
from validators.probes.soak_limits import COUNTERS, Limits, limits, readings
from validators.schema import HOST, Record, Sample

DURATION_S = 600.0
"""Seconds of load where --duration does not say otherwise."""
POINTS = 1500
"""Points of the trace that are kept for one GPU, whatever the duration: a report can show so many."""
START_S = 120.0
"""Seconds that the workload may take beyond its duration: imports, the first products, the last slice."""

METRICS: Tuple[Metric, ...] = (
    Metric("soak_time", "s", "seconds under load"),
    Metric("soak_complete", "bool", "whether the whole duration was reached (note: what ended it before)"),
    Metric("products_verified", "count", "products that were verified, all formats"),
    Metric("products_wrong", "count", "products that were wrong"),
    Metric("memory_errors", "count", "64-bit words of memory that did not keep their pattern"),
    Metric("rate", "ratio", "median rate of a load, as a share of its first tenth (label: which, and its figures)"),
    Metric("drift", "ratio", "rate of the last tenth of the time by that of the first tenth; label: which load"),
    Metric("spread_between_gpus", "ratio", "largest less smallest median rate of the host's GPUs, by the middle one"),
    Metric("time_throttled_by_heat", "ratio", "share of the readings under load with a thermal slowdown"),
    Metric("memory_temperature_under_load", "celsius", "highest temperature of the memory"),
    Metric("ecc_corrected_during", "count", "ECC errors that were corrected meanwhile"),
    Metric("ecc_uncorrected_during", "count", "ECC errors that were not"),
    Metric("pcie_replays_during", "count", "PCIe packets that were sent again meanwhile"),
    Metric("xids_during", "count", "XIDs in the kernel's log meanwhile (note: the last)"),
    *gpu_load.UNDER_LOAD,
)


@check(
    catches="a card that is good for a minute: drift with heat, rare wrong answers, memory that forgets, a flaky link",
    needs=("torch: bringup_torch_python, or the frameworks role",),
    level=4,
    seconds=DURATION_S,
    timeout_s=DURATION_S + START_S + 60,
    per_gpu=True,
    params=("duration_s", "slice_s", "memory_gib"),
    metrics=METRICS,
)
def soak(ctx: Context) -> None:
    """On each GPU, all at once: verified products and memory patterns in turn for the whole duration, with a trace.

    Params: duration_s (600; `--duration 24h` sets it), slice_s seconds of one load at a time (20), memory_gib of the
    GPU at most (0: all that is free). It ends early where a GPU reaches the temperature at which it would slow down, or
    has an ECC error that was not corrected.
    """
    if ctx.plan.device == "cpu":
        _on_cpu(ctx)
        return
    with gpu_load.ready(ctx, "torch") as (python, gpus):
        loads = {gpu.uuid: _Load() for gpu in gpus}
        before = _kernel_log()
        gpu_load.on_each(gpus, lambda gpu: _on_gpu(ctx, python, gpu, loads[gpu.uuid], before))
        _between(ctx, loads)


@dataclass
class _Load:
    """What came from one GPU's workload: rates by load, with their times, and the last of the running counts."""

    rates: Dict[str, List[Tuple[float, float]]] = field(default_factory=dict)
    counts: Dict[str, int] = field(default_factory=dict)
    last_s: float = 0.0

    def take(self, sample: Sample) -> None:
        self.last_s = max(self.last_s, sample.t_s)
        for name, value in sample.values.items():
            if name in COUNTERS:
                self.counts[name] = int(value)
            elif name.startswith("rate_"):
                self.rates.setdefault(name[len("rate_") :], []).append((sample.t_s, value))

    def part(self, name: str, first: float, last: float) -> Optional[float]:
        """The median rate between two shares of the time."""
        values = [rate for t_s, rate in self.rates[name] if first * self.last_s <= t_s <= last * self.last_s]
        return statistics.median(values) if values else None


class _Listening(Context):
    """The same context, noting what the workload sends; it goes on to the operator all the same."""

    def __init__(self, ctx: Context, load: _Load) -> None:
        super().__init__(ctx.info, ctx.request, ctx.plan, self._note)
        self._pass_on, self._load = ctx.forward, load

    def _note(self, record: Record) -> None:
        if isinstance(record, Sample):
            self._load.take(record)
        self._pass_on(record)


def _on_gpu(ctx: Context, python: str, gpu: nvml.Gpu, load: _Load, before: Mapping[str, int]) -> None:
    with ctx.subject(gpu.uuid):
        duration_s = float(ctx.request.params.get("duration_s", DURATION_S))
        guard = _Guard(limits(gpu))
        first = readings(gpu)

        sampler = Sampler(
            gpu,
            lambda t_s, values: ctx.sample(t_s, values, gpu.uuid),
            period_s=1.0,
            apart_s=duration_s / POINTS,
            more=readings,
            look=guard.look,
        )
        params = {**ctx.request.params, "subject": gpu.uuid, "duration_s": duration_s}
        problem = ""
        with gpu_load.watched(_Listening(ctx, load), gpu, sampler=lambda _gpu: sampler) as watching:
            try:
                workload.run_workload(
                    watching, python, "soak", params,
                    gpus=(gpu.uuid,), timeout_s=duration_s + START_S, stop=guard.stop,
                )  # fmt: skip
            except RuntimeError as ended:  # what it measured until then stands
                problem = guard.why or str(ended)
        _results(ctx, gpu.uuid, load, problem, guard)
        gpu_load.put(ctx, gpu.uuid, "memory_temperature_under_load", sampler.trace.highest("memory_temperature"))
        _during(ctx, gpu, first, before)
        if problem and not guard.why:
            raise RuntimeError(problem)


class _Guard:
    """Ends the load of one GPU, once and for all, where it reaches a limit."""

    def __init__(self, limits: Limits) -> None:
        self.stop = threading.Event()
        self.why = ""
        self._limits = limits
        self.hot = self.readings = 0

    def look(self, _t_s: float, numbers: Mapping[str, float]) -> None:
        self.readings += 1
        self.hot += self._limits.hot(numbers)
        why = self._limits.reached(numbers)
        if why and not self.why:
            self.why = why
            self.stop.set()


def _results(ctx: Context, subject: str, load: _Load, problem: str, guard: Optional[_Guard]) -> None:
    ctx.measure("soak_time", load.last_s, subject)
    ctx.measure("soak_complete", not problem, subject, note=problem)
    for name in ("products_verified", "products_wrong", "memory_errors"):
        if name in load.counts:
            ctx.measure(name, load.counts[name], subject)
        else:
            ctx.unknown(name, problem or "the workload counted none", subject)
    for name in load.rates:
        labels = {"load": name}
        first, whole, last = load.part(name, 0.0, 0.1), load.part(name, 0.0, 1.0), load.part(name, 0.9, 1.0)
        if not first or whole is None or last is None:
            ctx.unknown("drift", "too short: no figure in the first or the last tenth", subject, labels)
            continue
        told = {**labels, "first": f"{first:.4g}", "last": f"{last:.4g}", "median": f"{whole:.4g}"}
        ctx.measure("rate", whole / first, subject, told)
        ctx.measure("drift", last / first, subject, told)
    if guard is not None and guard.readings:
        ctx.measure("time_throttled_by_heat", guard.hot / guard.readings, subject)


def _during(ctx: Context, gpu: nvml.Gpu, first: Readings, before: Mapping[str, int]) -> None:
    """What the counters of GPU and kernel did meanwhile."""
    last = readings(gpu)
    for name in ("ecc_corrected", "ecc_uncorrected", "pcie_replays"):
        begun, ended = first[name], last[name]
        missing = next((one for one in (begun, ended) if isinstance(one, nvml.Absent)), None)
        if missing is not None:
            gpu_load.put(ctx, gpu.uuid, f"{name}_during", missing)
        else:
            ctx.measure(f"{name}_during", int(ended - begun), gpu.uuid)  # type: ignore[operator]  # neither is Absent
    address = gpu.pci_address()
    after = _kernel_log()
    if not after or not before or isinstance(address, nvml.Absent):
        ctx.unknown("xids_during", "the kernel's log cannot be read", gpu.uuid)
        return
    fresh = {line: count - before.get(line, 0) for line, count in after.items() if line.startswith(address[:-2])}
    new = {line: count for line, count in fresh.items() if count > 0}
    ctx.measure("xids_during", sum(new.values()), gpu.uuid, note="; ".join(new))


def _kernel_log() -> Dict[str, int]:
    """XIDs by "address number": how often; "read" is always there, an empty answer is a log that cannot be read."""
    try:
        events = xid.xids(kernel_log.read().lines)
    except kernel_log.LogUnreadable:
        return {}
    return {"read": 0, **{f"{one.pci_address} Xid {one.number}": one.count for one in events}}


def _between(ctx: Context, loads: Mapping[str, _Load]) -> None:
    """How far the GPUs of the host lie apart, for each load that more than one has."""
    for name in sorted({name for load in loads.values() for name in load.rates}):
        medians = [load.part(name, 0.0, 1.0) for load in loads.values() if name in load.rates]
        found = sorted(one for one in medians if one is not None)
        if len(found) > 1:
            ctx.measure("spread_between_gpus", (found[-1] - found[0]) / statistics.median(found), HOST, {"load": name})
    if len(loads) < 2:
        ctx.not_applicable("spread_between_gpus", "one GPU")


def _on_cpu(ctx: Context) -> None:
    load = _Load()
    duration_s = float(ctx.request.params.get("duration_s", DURATION_S))
    params = {**ctx.request.params, "subject": HOST, "duration_s": duration_s}
    python = gpu_load.on_the_cpu(ctx, "torch")
    workload.run_workload(_Listening(ctx, load), python, "soak", params, gpus=None, timeout_s=duration_s + START_S)
    _results(ctx, HOST, load, "", None)
    measured = ("soak_time", "soak_complete", "products_verified", "products_wrong", "memory_errors", "rate", "drift")
    gpu_load.not_on_the_cpu(ctx, but=measured)
