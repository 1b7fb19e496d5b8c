"""Sustained load on every GPU: does it hold its rate, its answers and its temperature for hours."""

from __future__ import annotations

import statistics
import threading
import time
from dataclasses import dataclass, field
from typing import Dict, List, Mapping, Optional, Tuple, Union

from validators.check import Context, Metric, check
from validators.probes import gpu_load, nvml, workload
from validators.probes.load_trace import Readings, Sampler
from validators.probes.soak_limits import COUNTERS, Limits, Xids, limits, readings
from validators.schema import HOST, Progress, Record, Sample

DURATION_S = 600.0
"""Seconds of load where --duration does not say otherwise."""
POINTS = 1500
"""Points of a trace that one GPU may send, whatever the duration: a report can show so many."""
POINTS_IN_ALL = 12_000
"""Of all GPUs of the host: with as many of the workload's samples and of its progress this stays under the runner's
50,000 records and 16 MiB of one check."""
FIGURES = 5
"""Rates of one load from which on its drift is told."""
LOST_S = 30.0
"""Seconds without any answer of NVML after which a GPU counts as fallen off."""
STALL_S = 600.0
"""Seconds without a word of the workload, beside its slices, after which it counts as hung."""
START_S = 120.0
"""Seconds that the workload may take beyond its duration: imports, the last slice, and the first round of all loads,
which is finished though the duration is over (29 s on an H200 with slices of 2.25 s)."""

METRICS: Tuple[Metric, ...] = (
    Metric("soak_time", "s", "seconds under load"),
    Metric("soak_complete", "bool", "whether the whole duration was reached (note: what ended it before)"),
    Metric("products_verified", "count", "products that were verified, all formats"),
    Metric("products_wrong", "count", "products that were wrong"),
    Metric("memory_errors", "count", "64-bit words of memory that did not keep their pattern"),
    Metric("rate", "ratio", "median rate of a load, as a share of its first tenth (label: which, and its figures)"),
    Metric("drift", "ratio", "rate of a load's last tenth of slices by that of its first tenth (label: which load)"),
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
        loads = {gpu.uuid: _Load(min(POINTS, POINTS_IN_ALL // len(gpus))) for gpu in gpus}
        with Xids() as xids:
            gpu_load.on_each(gpus, lambda gpu: _on_gpu(ctx, python, gpu, loads[gpu.uuid], xids))
        _between(ctx, loads)


@dataclass
class _Load:
    """What came from one GPU's workload: rates by load, with their times, and the last of the running counts.

    `points`: samples that go on to the operator. `heard`: when it last said something, by the monotonic clock.
    """

    points: int = POINTS
    rates: Dict[str, List[Tuple[float, float]]] = field(default_factory=dict)
    counts: Dict[str, int] = field(default_factory=dict)
    last_s: float = 0.0
    heard: float = field(default_factory=time.monotonic)

    def take(self, sample: Sample) -> None:
        self.last_s = max(self.last_s, sample.t_s)
        for name, value in sample.values.items():
            if name in COUNTERS:
                self.counts[name] = int(value)
            elif name.startswith("rate_"):
                self.rates.setdefault(name[len("rate_") :], []).append((sample.t_s, value))

    def median(self, name: str) -> float:
        """The median rate."""
        return statistics.median(rate for _, rate in self.rates[name])

    def ends(self, name: str) -> Tuple[float, float]:
        """The median rates of the first and of the last tenth of a load's slices. Raises ValueError: none to tell."""
        figures = [rate for _, rate in self.rates[name]]
        ended_s = self.rates[name][-1][0]
        if len(figures) < FIGURES:
            raise ValueError(f"too short: {len(figures)} slices, {FIGURES} are needed")
        if ended_s < 0.8 * self.last_s:
            raise ValueError(f"it ended after {ended_s:.0f} of {self.last_s:.0f} s")
        tenth = max(1, len(figures) // 10)
        return statistics.median(figures[:tenth]), statistics.median(figures[-tenth:])


class _Listening(Context):
    """The same context, noting all that the workload sends. No more of it goes on to the operator than the load's
    `points` samples and as much progress within the duration; each of the loads has its share.
    """

    def __init__(self, ctx: Context, load: _Load, duration_s: float) -> None:
        super().__init__(ctx.info, ctx.request, ctx.plan, self._note)
        self._pass_on, self._load, self._apart_s = ctx.forward, load, duration_s / load.points
        self._due: Dict[str, float] = {}
        self._told = float("-inf")

    def _note(self, record: Record) -> None:
        self._load.heard = time.monotonic()
        if isinstance(record, Sample):
            self._load.take(record)
            name = next((one for one in record.values if one not in COUNTERS), "")
            if record.t_s < self._due.get(name, 0.0):
                return
            self._due[name] = record.t_s
            self._due[name] += self._apart_s * len(self._due)
        elif isinstance(record, Progress):
            if self._load.heard < self._told + self._apart_s:
                return
            self._told = self._load.heard
        self._pass_on(record)


def _on_gpu(ctx: Context, python: str, gpu: nvml.Gpu, load: _Load, xids: Xids) -> None:
    with ctx.subject(gpu.uuid):
        duration_s = float(ctx.request.params.get("duration_s", DURATION_S))
        guard = _Guard(limits(gpu), load, float(ctx.request.params.get("slice_s", 0.0)))
        first = readings(gpu)
        address = gpu.pci_address()

        def send(t_s: float, values: Mapping[str, float]) -> None:
            new = xids.count(address)  # not among the readings: it would pass for an answer of a GPU that is lost
            ctx.sample(t_s, values if isinstance(new, nvml.Absent) else {**values, "xids": new}, gpu.uuid)

        sampler = Sampler(
            gpu,
            send,
            period_s=1.0,
            apart_s=duration_s / load.points,
            more=readings,
            look=guard.look,
        )
        params = {**ctx.request.params, "subject": gpu.uuid, "duration_s": duration_s}
        problem = ""
        with gpu_load.watched(_Listening(ctx, load, duration_s), gpu, sampler=lambda _gpu: sampler) as watching:
            sampler.start()  # now, not at the first progress: an import or a driver that hangs is seen, too
            try:
                workload.run_workload(
                    watching, python, "soak", params,
                    gpus=(gpu.uuid,), timeout_s=duration_s + START_S, stop=guard.stop,
                )  # fmt: skip
            except RuntimeError as ended:  # what it measured until then stands
                problem = guard.why or guard.fault or str(ended)
        _results(ctx, gpu.uuid, load, problem, guard)
        gpu_load.put(ctx, gpu.uuid, "memory_temperature_under_load", sampler.trace.highest("memory_temperature"))
        _during(ctx, gpu, first)
        _xids(ctx, gpu.uuid, address, xids, guard.looked_s)
        if problem and not guard.why:
            raise RuntimeError(problem)


class _Guard:
    """Ends the load of one GPU, once and for all: `why` where it reaches a limit, `fault` where it is lost or hangs."""

    def __init__(self, limits: Limits, load: _Load, slice_s: float) -> None:
        self.stop = threading.Event()
        self.why = self.fault = ""
        self._limits, self._load, self._stall_s = limits, load, STALL_S + slice_s
        self.looked_s = self._answered_s = 0.0
        self.hot = self.readings = 0

    def look(self, t_s: float, numbers: Mapping[str, float]) -> None:
        self.looked_s = t_s
        if self.stop.is_set():
            return
        if numbers:
            self._answered_s = t_s
            self.readings += "reasons" in numbers
            self.hot += self._limits.hot(numbers)
        self.why = self._limits.reached(numbers)
        if t_s > self._answered_s + LOST_S:
            self.fault = f"the GPU is lost: NVML has had no answer from it for {LOST_S:.0f} s; dmesg may say why"
        elif time.monotonic() > self._load.heard + self._stall_s:
            self.fault = f"the workload hangs: it has said nothing for {self._stall_s:.0f} s"
        if self.why or self.fault:
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
        try:
            first, last = load.ends(name)
        except ValueError as why:
            ctx.unknown("drift", str(why), subject, labels)
            continue
        told = {**labels, "first": f"{first:.4g}", "last": f"{last:.4g}", "median": f"{load.median(name):.4g}"}
        ctx.measure("rate", load.median(name) / first, subject, told)
        ctx.measure("drift", last / first, subject, told)
    if not load.rates:
        ctx.unknown("drift", problem or "no load sent a rate", subject)
    if guard is not None and guard.readings:
        ctx.measure("time_throttled_by_heat", guard.hot / guard.readings, subject)
    elif guard is not None:
        ctx.unknown("time_throttled_by_heat", "no throttle reasons were read under load", subject)


def _during(ctx: Context, gpu: nvml.Gpu, first: Readings) -> None:
    """What the counters of the GPU did meanwhile."""
    last = readings(gpu)
    for name in ("ecc_corrected", "ecc_uncorrected", "pcie_replays"):
        begun, ended = first[name], last[name]
        if isinstance(begun, nvml.Absent):
            gpu_load.put(ctx, gpu.uuid, f"{name}_during", begun)
        elif isinstance(ended, nvml.Absent):
            gpu_load.put(ctx, gpu.uuid, f"{name}_during", ended)
        elif ended < begun:
            ctx.unknown(f"{name}_during", f"the counter went from {begun} to {ended}: it was reset", gpu.uuid)
        else:
            ctx.measure(f"{name}_during", int(ended - begun), gpu.uuid)


def _xids(ctx: Context, subject: str, address: Union[str, nvml.Absent], xids: Xids, t_s: float) -> None:
    """The XIDs of the whole load; the trace ends with them, too."""
    xids.read()
    new = xids.of(address)
    if isinstance(new, nvml.Absent):
        ctx.unknown("xids_during", new.note, subject)
        return
    count = sum(one.count for one in new)
    ctx.sample(t_s, {"xids": count}, subject)
    ctx.measure("xids_during", count, subject, note="; ".join(f"Xid {one.number}: {one.line}" for one in new))


def _between(ctx: Context, loads: Mapping[str, _Load]) -> None:
    """How far the GPUs of the host lie apart, for each load that more than one has."""
    told = False
    for name in sorted({name for load in loads.values() for name in load.rates}):
        found = sorted(load.median(name) for load in loads.values() if name in load.rates)
        if len(found) > 1:
            ctx.measure("spread_between_gpus", (found[-1] - found[0]) / statistics.median(found), HOST, {"load": name})
            told = True
    if len(loads) < 2:
        ctx.not_applicable("spread_between_gpus", "one GPU")
    elif not told:
        ctx.unknown("spread_between_gpus", "no two GPUs sent rates of the same load")


def _on_cpu(ctx: Context) -> None:
    load = _Load()
    duration_s = float(ctx.request.params.get("duration_s", DURATION_S))
    params = {**ctx.request.params, "subject": HOST, "duration_s": duration_s}
    python = gpu_load.on_the_cpu(ctx, "torch")
    listening = _Listening(ctx, load, duration_s)
    problem = ""
    try:
        workload.run_workload(listening, python, "soak", params, gpus=None, timeout_s=duration_s + START_S)
    except RuntimeError as ended:  # what it measured until then stands, as on a GPU
        problem = str(ended)
    _results(ctx, HOST, load, problem, None)
    measured = ("soak_time", "soak_complete", "products_verified", "products_wrong", "memory_errors", "rate", "drift")
    gpu_load.not_on_the_cpu(ctx, but=measured)
    if problem:
        raise RuntimeError(problem)
