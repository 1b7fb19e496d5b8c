"""The links between GPUs: of one host, pair by pair and all together, and between hosts."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from typing import Dict, Mapping, Sequence, Tuple, Union

from validators.check import Context, Metric, Skip, check
from validators.probes import gpu_load, meeting, nvml, peers, ranks
from validators.probes.link_jobs import JOB_S, Heard, Jobs
from validators.schema import ERROR, HOST, NOT_APPLICABLE, RAN, Scalar

BETWEEN = ("between_bus_bandwidth", "between_time", "between_spread", "between_wrong")
OF_A_GPU = ("p2p_wrong", "allreduce_wrong")
ON_THE_CPU = ("allreduce_bus_bandwidth", "allreduce_time", "allreduce_spread", "allreduce_peak", "allreduce_wrong",
              "pair_bus_bandwidth")  # fmt: skip

CPU_SIZES: Mapping[str, Scalar] = {"largest": 2**24, "pair_bytes": 2**22, "seconds": 0.1}


@check(
    catches="a slow, broken or corrupting NVLink, PCIe switch or network; NCCL that hangs",
    needs=("torch: bringup_torch_python, or the frameworks role", "two GPUs or more"),
    level=3,
    seconds=30,
    timeout_s=1200,
    per_gpu=True,
    params=(
        "seconds", "p2p_seconds", "smallest", "largest", "pair_bytes", "together", "ranks", "hang_s", "job_s",
        "alone_s",
        "between_hosts", "between_index", "between_address", "between_port", "between_run", "between_wait_s",
    ),
    metrics=(
        Metric("link_kind", "text", "how two GPUs are joined: NV18 (NVLinks), PIX, PXB, PHB, NODE, SYS (PCIe)"),
        Metric("p2p_access", "bool", "whether GPU a can use the memory of GPU b"),
        Metric("p2p_bandwidth", "GB/s", "median rate of large copies from GPU a to GPU b"),
        Metric("p2p_both_ways", "GB/s", "the same, both ways at once, added up"),
        Metric("p2p_latency", "us", "a small copy from GPU a to GPU b, in a full queue"),
        Metric("p2p_of_median", "ratio", "p2p_bandwidth by the median of the pairs that are joined in the same way"),
        Metric("p2p_wrong", "count", "bytes that arrived wrong, in copies from or to this GPU (note: which)"),
        Metric("allreduce_bus_bandwidth", "GB/s", "what each link carried: bytes / seconds * 2(n-1)/n, by size"),
        Metric("allreduce_time", "us", "median time of an all-reduce, by message size"),
        Metric("allreduce_spread", "ratio", "90th less 10th percentile of that time, by the median"),
        Metric("allreduce_peak", "GB/s", "bus bandwidth of the largest message"),
        Metric("allreduce_peak_spread", "ratio", "its spread, on GPUs"),
        Metric("allreduce_wrong", "count", "wrong elements in sums that this GPU got (note: of which all-reduce)"),
        Metric("allgather_bus_bandwidth", "GB/s", "bytes / seconds * (n-1)/n of an all-gather, largest message"),
        Metric("reducescatter_bus_bandwidth", "GB/s", "the same of a reduce-scatter"),
        Metric("pair_bus_bandwidth", "GB/s", "bus bandwidth of an all-reduce of GPUs a and b alone"),
        Metric("pair_of_median", "ratio", "that, by the median of the pairs that are joined in the same way"),
        Metric("between_bus_bandwidth", "GB/s", "bus bandwidth of an all-reduce over all hosts of the run, by size"),
        Metric("between_time", "us", "its median time"),
        Metric("between_spread", "ratio", "90th less 10th percentile of that time, by the median"),
        Metric("between_wrong", "count", "wrong elements in the sums that this host got"),
    ),
)  # fmt: skip
def links(ctx: Context) -> None:
    """Copies between each two GPUs, NCCL over all and over each pair alone, every byte verified; also between hosts.

    Params: seconds a message size (0.15), p2p_seconds a direction (0.1), smallest, largest (2 GiB) and pair_bytes,
    together (disjoint pairs at once; by default where NVLink joins all), ranks (CPU run: 2 to 4), and deadlines in
    seconds: hang_s of one operation (30), job_s (150), alone_s (60). `--between-hosts` sets those named between.
    """
    if ctx.plan.device == "cpu":
        _on_cpu(ctx)
        return
    with gpu_load.ready(ctx, "torch") as (python, gpus):
        _on_gpus(ctx, python, gpus)


def _on_gpus(ctx: Context, python: str, gpus: Sequence[nvml.Gpu]) -> None:
    began = time.monotonic()
    names = [gpu.uuid for gpu in gpus]
    kinds = peers.kinds(gpus)

    def link(a: str, b: str) -> str:
        kind = kinds.get((a, b), "unknown")
        return kind if isinstance(kind, str) else "unknown"

    switched = peers.on_switches(gpus)

    def alike(a: str, b: str) -> str:
        return "NVSwitch" if {a, b} <= switched else link(a, b)

    heard = Heard(ctx, names, link, alike)
    problem = _between(heard, python, names)
    if len(gpus) == 1:
        _alone(ctx, names[0], problem)
        return
    _say_kinds(heard, kinds)
    jobs = Jobs(heard, python, names)
    jobs.copies()
    together = ctx.flag("together", all(link(*pair).startswith("NV") for pair in kinds))
    jobs.collectives(together)
    shared = bool(jobs.problems) and not together
    heard.say_of_median("p2p_of_median", "p2p_bandwidth", jobs.failed["p2p_bandwidth"], shared)
    heard.say_of_median("pair_of_median", "pair_bus_bandwidth", jobs.failed["pair_bus_bandwidth"], shared)
    lost = jobs.lost()
    for name in names:
        if name not in lost:
            for metric in OF_A_GPU:
                heard.say_wrong(metric, name)
        status, detail = (ERROR, f"none of its links gave an answer: {lost[name]}") if name in lost else (RAN, "")
        ctx.outcome(name, status, detail, time.monotonic() - began)
    if text := "; ".join(one for one in (problem, jobs.verdict()) if one):
        raise RuntimeError(text)


def _alone(ctx: Context, name: str, problem: str) -> None:
    """A host with one GPU that may be loaded has links to other hosts only."""
    if "between_hosts" not in ctx.request.params:
        raise Skip("one GPU: there is no link to another one to measure")
    note = "one GPU: there is no other one on this host"
    for metric in ctx.info.metrics:
        if metric.name not in BETWEEN:
            ctx.not_applicable(metric.name, note, name if metric.name in OF_A_GPU else HOST)
    ctx.outcome(name, RAN)
    if problem:
        raise RuntimeError(problem)


def _say_kinds(heard: Heard, kinds: Mapping[Tuple[str, str], Union[str, nvml.Absent]]) -> None:
    for (a, b), kind in kinds.items():
        if heard.names.index(a) > heard.names.index(b):
            continue
        labels = heard.labels("link_kind", a, b)
        if isinstance(kind, nvml.Absent):
            say = heard.not_applicable if kind.kind == NOT_APPLICABLE else heard.unknown
            say("link_kind", kind.note, labels=labels)
        else:
            heard.measure("link_kind", kind, labels=labels)


def _on_cpu(ctx: Context) -> None:
    """The same collectives over gloo, for reference; every sum is verified here, too."""
    python = gpu_load.on_the_cpu(ctx, "torch")
    count = int(ctx.request.params.get("ranks", 4 if (os.cpu_count() or 1) >= 4 else 2))
    if count < 2:
        raise ValueError(f"ranks={count}: an all-reduce needs two or more")
    heard = Heard(ctx, [f"rank{rank}" for rank in range(count)], lambda _a, _b: "host")
    heard.request = replace(ctx.request, params={**CPU_SIZES, **ctx.request.params})
    problem = _between(heard, python, ())
    jobs = Jobs(heard, python, ())
    jobs.collectives(together=False)
    heard.say_wrong("allreduce_wrong", HOST)
    gpu_load.not_on_the_cpu(ctx, but=(*ON_THE_CPU, *BETWEEN))
    if text := "; ".join(one for one in (problem, jobs.verdict()) if one):
        raise RuntimeError(text)


def _between(heard: Heard, python: str, gpus: Sequence[str]) -> str:
    """All hosts of the run together, where the operator asked for it. Returns what went wrong."""
    asked = heard.request.params
    if "between_hosts" not in asked:
        for metric in BETWEEN:
            heard.not_applicable(metric, "not asked for: --between-hosts measures all hosts of a run together")
        return ""
    hosts = str(asked["between_hosts"]).split()
    address = str(asked["between_address"])
    count = len(gpus) or int(asked.get("ranks", 1))
    try:
        place = meeting.Meeting(
            hosts, int(asked["between_index"]), address, int(asked["between_port"]), str(asked["between_run"]),
            float(asked.get("between_wait_s", 60.0)),
        ).join(count)  # fmt: skip
        ranks.run_ranks(
            heard, python, "links_ranks", _between_params(asked, not gpus), gpus=gpus, ranks=count, master=address,
            port=place.port, first_rank=place.first_rank, world=place.world, environment=_interface(place.interface),
            timeout_s=float(asked.get("job_s", JOB_S)),
        )  # fmt: skip
    except RuntimeError as problem:
        for metric in BETWEEN:
            heard.unknown(metric, str(problem))
        return f"between hosts: {problem}"
    heard.say_wrong("between_wrong", HOST)
    if place.first_rank:
        for metric in BETWEEN[:3]:
            heard.not_applicable(metric, f"the first host, {hosts[0]}, reports it")
    return ""


def _between_params(asked: Mapping[str, Scalar], cpu: bool) -> Dict[str, Scalar]:
    given = {name: asked[name] for name in ("hang_s", "seconds") if name in asked}
    return {"smallest": 1024, "largest": 2**22 if cpu else 2**28, **given, "tasks": "between", "cpu": cpu}


def _interface(name: str) -> Dict[str, str]:
    """gloo takes the interface of the host's own name, which may be loopback: it is told the one that leads there."""
    return {"GLOO_SOCKET_IFNAME": name} if name and "GLOO_SOCKET_IFNAME" not in os.environ else {}
