"""Memory of each GPU: every word holds what was written, as fast as it is built, and the link to the host."""

from __future__ import annotations

import os
import tempfile
import threading
from contextlib import contextmanager, suppress
from typing import Dict, Iterator, List, Mapping, Tuple, Union

from validators.check import Context, Metric, check
from validators.probes import gpu_load, nvml, workload
from validators.probes.gpu_memory import CORRECTED, UNCORRECTED, VOLATILE
from validators.schema import HOST, NOT_APPLICABLE, Measurement, Record, Scalar

GPU_TIMEOUT_S = 180.0
LOOK_S = 0.1
"""Between two looks at the link under load."""

LANE_GBS: Mapping[int, float] = {
    1: 2.5 * 8 / 10 / 8,
    2: 5.0 * 8 / 10 / 8,
    3: 8.0 * 128 / 130 / 8,
    4: 16.0 * 128 / 130 / 8,
    5: 32.0 * 128 / 130 / 8,
    6: 64.0 * 242 / 256 / 8,
}
"""GB/s of one PCIe lane and direction: GT/s x the line code's share / 8 bits. PCI Express base specifications: 8b/10b
up to generation 2, 128b/130b up to 5, 242 of 256 bytes of a flit in 6. 16 lanes of generation 5 are 63 GB/s."""

OF_LINK: Mapping[str, str] = {"h2d_bandwidth": "h2d_of_link", "d2h_bandwidth": "d2h_of_link"}
ECC: Tuple[Tuple[str, int], ...] = (("ecc_corrected_meanwhile", CORRECTED), ("ecc_uncorrected_meanwhile", UNCORRECTED))
ON_THE_CPU = (
    "memory_errors",
    "memory_patterns",
    "memory_tested_mib",
    "cpu_copy_bandwidth",
    "cpu_copy_bandwidth_spread",
)


def _metrics() -> Tuple[Metric, ...]:
    found: List[Metric] = [
        Metric("memory_errors", "count", "words that were not what was written, over all patterns (note: which, bits)"),
        Metric("memory_patterns", "count", "patterns written to all of the tested memory, then verified"),
        Metric("memory_tested", "ratio", "tested, of the memory that was free"),
        Metric("memory_tested_mib", "MiB", "memory tested"),
        Metric("ecc_corrected_meanwhile", "count", "errors that ECC corrected while the check ran"),
        Metric("ecc_uncorrected_meanwhile", "count", "errors that ECC found and could not correct while the check ran"),
        Metric("transfer_errors", "count", "words that came back wrong from the host"),
        Metric("h2d_of_link", "ratio", "h2d_bandwidth, of what the PCIe link carries: generation x width x line code"),
        Metric("d2h_of_link", "ratio", "d2h_bandwidth, of what the PCIe link carries"),
        Metric("pcie_width_under_load", "count", "widest PCIe link seen under load, in lanes"),
        Metric("h2d_pageable_bandwidth", "GB/s", "host to device from memory that is not pinned, for information"),
    ]
    for name, what in (
        ("memory_bandwidth_copy", "device to device, bytes read and bytes written"),
        ("memory_bandwidth_read", "summing int64 words"),
        ("memory_bandwidth_write", "filling"),
        ("h2d_bandwidth", "host to device from pinned memory"),
        ("d2h_bandwidth", "device to host into pinned memory"),
        ("cpu_copy_bandwidth", "a copy in the host's memory, where --device cpu asked for it"),
    ):
        found.append(Metric(name, "GB/s", f"median rate: {what}"))
        found.append(Metric(f"{name}_spread", "ratio", "90th less 10th percentile of the rate, by the median"))
    return (*found, *gpu_load.UNDER_LOAD)


@check(
    catches="bad memory cells and address lines, slow memory, a slow or narrow PCIe link",
    needs=("torch: bringup_torch_python, or the frameworks role",),
    level=2,
    seconds=10,
    timeout_s=900,
    per_gpu=True,
    params=("memory_gib", "rounds", "seconds", "tile_mib", "parallel", "gpu_timeout_s"),
    metrics=_metrics(),
)
def memory(ctx: Context) -> None:
    """On each GPU: patterns over nearly all free memory, device bandwidth, and pinned transfers against the PCIe link.

    Params: memory_gib, the most to test (0: all that is free), rounds of three patterns (2), seconds for each rate
    (0.25), tile_mib (32), parallel (true; false: one GPU after the other), gpu_timeout_s (180). GPUs are tested at
    once, but transfer one after the other, since they share the host's memory.
    """
    if ctx.plan.device == "cpu":
        python = gpu_load.on_the_cpu(ctx, "torch")
        params = {**_params(ctx), "subject": HOST}
        workload.run_workload(ctx, python, "memory", params, gpus=None, timeout_s=GPU_TIMEOUT_S)
        gpu_load.not_on_the_cpu(ctx, but=(*ON_THE_CPU, "memory_tested"))
        return
    with gpu_load.ready(ctx, "torch") as (python, gpus), _turn() as turn:
        parallel = ctx.flag("parallel", True)
        gpu_load.on_each(gpus, lambda gpu: _on_gpu(ctx, python, gpu, turn), parallel=parallel)


def _params(ctx: Context) -> Dict[str, Scalar]:
    own = ("memory_gib", "rounds", "seconds", "tile_mib")
    return {name: value for name, value in ctx.request.params.items() if name in own}


@contextmanager
def _turn() -> Iterator[str]:
    """A file for the workloads to lock; empty where the host lets none be made."""
    path = ""
    with suppress(OSError):
        handle, path = tempfile.mkstemp(prefix="bringup-turn-")
        os.close(handle)
    try:
        yield path
    finally:
        with suppress(OSError):
            os.unlink(path)


def _on_gpu(ctx: Context, python: str, gpu: nvml.Gpu, turn: str) -> None:
    with ctx.subject(gpu.uuid):
        params = {**_params(ctx), "subject": gpu.uuid, "turn": turn}
        timeout_s = float(ctx.request.params.get("gpu_timeout_s", GPU_TIMEOUT_S))
        before = {metric: _ecc(gpu, kind) for metric, kind in ECC}
        noting = _Noting(ctx)
        with _Link(gpu) as link, gpu_load.watched(noting, gpu) as watching:
            workload.run_workload(watching, python, "memory", params, gpus=(gpu.uuid,), timeout_s=timeout_s)
        for metric, kind in ECC:
            gpu_load.put(ctx, gpu.uuid, metric, _growth(before[metric], _ecc(gpu, kind)))
        _link(ctx, gpu.uuid, noting.rates, link)
        for metric in ("cpu_copy_bandwidth", "cpu_copy_bandwidth_spread"):
            ctx.not_applicable(metric, "measured on the GPU", gpu.uuid)


class _Noting(Context):
    """The same context, noting the transfer rates that pass through."""

    def __init__(self, ctx: Context) -> None:
        super().__init__(ctx.info, ctx.request, ctx.plan, self._note)
        self._pass_on = ctx.forward
        self.rates: Dict[str, float] = {}

    def _note(self, record: Record) -> None:
        if isinstance(record, Measurement) and record.metric in OF_LINK and isinstance(record.value, (int, float)):
            self.rates[record.metric] = float(record.value)
        self._pass_on(record)


class _Link:
    """Looks at a GPU's PCIe link beside the load. The highest counts: an idle link saves power, and lanes."""

    def __init__(self, gpu: nvml.Gpu) -> None:
        self._gpu = gpu
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.generation: Union[int, float, nvml.Absent] = nvml.Absent("unknown", "the link was not looked at")
        self.width: Union[int, float, nvml.Absent] = self.generation

    def __enter__(self) -> _Link:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(timeout=10.0)

    def _run(self) -> None:
        while True:
            self.generation = _highest(self.generation, nvml.number(self._gpu.get("GetCurrPcieLinkGeneration")))
            self.width = _highest(self.width, nvml.number(self._gpu.get("GetCurrPcieLinkWidth")))
            if self._end.wait(LOOK_S):
                return


def _highest(
    so_far: Union[int, float, nvml.Absent], now: Union[int, float, nvml.Absent]
) -> Union[int, float, nvml.Absent]:
    if isinstance(now, nvml.Absent):
        return now if isinstance(so_far, nvml.Absent) else so_far
    return now if isinstance(so_far, nvml.Absent) else max(so_far, now)


def link_gbs(generation: int, width: int) -> Union[float, nvml.Absent]:
    """GB/s that a PCIe link carries in one direction, headers of packets included."""
    if generation in LANE_GBS and width > 0:
        return LANE_GBS[generation] * width
    text = f"NVML gives PCIe generation {generation}, {width} lanes: no such link, as in some virtual machines"
    return nvml.Absent("unknown", text)


def _link(ctx: Context, subject: str, rates: Mapping[str, float], link: _Link) -> None:
    generation, width = link.generation, link.width
    gpu_load.put(ctx, subject, "pcie_width_under_load", width if isinstance(width, nvml.Absent) else int(width))
    carries: Union[float, nvml.Absent]
    if isinstance(generation, nvml.Absent):
        carries = generation
    elif isinstance(width, nvml.Absent):
        carries = width
    else:
        carries = link_gbs(int(generation), int(width))
    for metric, share in OF_LINK.items():
        if isinstance(carries, nvml.Absent):
            gpu_load.put(ctx, subject, share, carries)
        elif metric in rates:
            note = f"{rates[metric]:.4g} of {carries:.4g} GB/s: generation {generation}, {width} lanes"
            ctx.measure(share, rates[metric] / carries, subject, note=note)
        else:
            ctx.unknown(share, f"{metric} was not measured", subject)


def _ecc(gpu: nvml.Gpu, kind: int) -> Union[int, float, nvml.Absent]:
    mode = gpu.get("GetEccMode")
    if not isinstance(mode, nvml.Absent) and not mode[0]:
        return nvml.Absent(NOT_APPLICABLE, "ECC is switched off, so nothing is counted")
    return nvml.number(gpu.get("GetTotalEccErrors", kind, VOLATILE))


def _growth(before: Union[int, float, nvml.Absent], after: Union[int, float, nvml.Absent]) -> Union[int, nvml.Absent]:
    if isinstance(before, nvml.Absent):
        return before
    return after if isinstance(after, nvml.Absent) else max(0, int(after) - int(before))
