"""Matrix products on each GPU: right to the last bit, and as fast as the card should be."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Dict, List, Sequence, Set, Tuple

from validators.check import Context, Metric, check
from validators.probes import gpu_load, nvml, workload
from validators.schema import HOST, UNKNOWN, Measurement, Record, Scalar

FORMATS: Tuple[Tuple[str, str, str], ...] = (
    ("fp64", "TFLOP/s", "float64"),
    ("fp32", "TFLOP/s", "float32 on the plain units, TF32 off"),
    ("tf32", "TFLOP/s", "float32 operands rounded to TF32, on the tensor cores"),
    ("fp16", "TFLOP/s", "float16, on the tensor cores"),
    ("bf16", "TFLOP/s", "bfloat16, on the tensor cores"),
    ("fp8", "TFLOP/s", "float8 e4m3 with bfloat16 output, on the tensor cores"),
    ("int8", "TOP/s", "int8 with int32 output, on the tensor cores"),
)


def _metrics() -> Tuple[Metric, ...]:
    found: List[Metric] = [
        Metric("known_answer", "bool", "whether [[1,2,3],[4,5,6]] @ [[1,2],[3,4],[5,6]] is [[22,28],[49,64]]"),
        Metric("exact_integer", "bool", "whether a product of whole numbers is right in every bit, in each format"),
        Metric("products_verified", "count", "products that were verified, the timed ones among them"),
        Metric("products_wrong", "count", "products that differ from the verified answer (note: which, in which rows)"),
        Metric("bits_repeat", "bool", "whether equal products had equal bits, for each format"),
        Metric("operand_rows_wrong", "count", "rows of operands that are not, on the device, what the CPU made"),
        Metric("digest", "text", "hash of the bits of one fixed product: equal on like GPUs under the same torch"),
        Metric("digests_agree", "bool", "whether the host's GPUs of one name gave the same digest, for each format"),
        Metric("digests_agree_in_fleet", "bool", "the same over the hosts that are judged together; the judge says it"),
    ]
    for name, unit, what in (*FORMATS, ("cpu_fp32", "TFLOP/s", "float32 on the CPU, where --device cpu asked for it")):
        found.append(Metric(f"throughput_{name}", unit, f"rate over the products' own time, each verified: {what}"))
        found.append(
            Metric(
                f"throughput_{name}_spread", "ratio", "90th less 10th percentile of the products' rates, by the rate"
            )
        )
    return (*found, *gpu_load.UNDER_LOAD)


GPU_TIMEOUT_S = 240.0
OF_WORKLOAD = ("seconds", "dtypes", "size", "memory_gib")
PARAMS = (*OF_WORKLOAD, "parallel", "gpu_timeout_s")


@check(
    catches="wrong arithmetic, silent data corruption, a slow, throttled or half-powered card",
    needs=("torch: bringup_torch_python, or the frameworks role",),
    level=2,
    seconds=30,
    timeout_s=1800,
    per_gpu=True,
    params=PARAMS,
    metrics=_metrics(),
)
def matmul(ctx: Context) -> None:
    """On each GPU: known answer, exact integers bit for bit, and TFLOP/s of each format with every product verified.

    Params: seconds a format (1.2), dtypes "bf16,fp8" (all), size (0: the fastest of what memory and time allow),
    memory_gib (0: all; 4: as on a card of 4 GiB), parallel (true; false: one GPU after the other), gpu_timeout_s (240).
    On four H200s both ways gave the same rates (docs/matmul.md).
    """
    if ctx.plan.device == "cpu":
        _on_cpu(ctx)
        return
    with gpu_load.ready(ctx, "torch") as (python, gpus):
        parallel = ctx.flag("parallel", True)
        digests = Digests()
        gpu_load.on_each(gpus, lambda gpu: _on_gpu(ctx, python, gpu, digests), parallel=parallel)
        digests.compare(ctx, gpus)


def _on_gpu(ctx: Context, python: str, gpu: nvml.Gpu, digests: Digests) -> None:
    with ctx.subject(gpu.uuid):
        params = {**_params(ctx), "subject": gpu.uuid}
        timeout_s = float(ctx.request.params.get("gpu_timeout_s", GPU_TIMEOUT_S))
        with gpu_load.watched(ctx, gpu) as watching:
            reading = _Reading(watching, digests)
            workload.run_workload(reading, python, "matmul", params, gpus=(gpu.uuid,), timeout_s=timeout_s)
        for metric in ("throughput_cpu_fp32", "throughput_cpu_fp32_spread"):
            ctx.not_applicable(metric, "measured on the GPU", gpu.uuid)


Labels = Tuple[Tuple[str, str], ...]


class Digests:
    """What like GPUs of one host gave for the same products, as it comes in."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: Dict[str, Dict[Labels, Dict[str, str]]] = {}  # dtype -> labels -> UUID -> digest
        self._failed: Set[str] = set()

    def take(self, one: Measurement) -> None:
        """Keep a digest. GPUs are alike where all its labels are equal; provision/verdict/fleet.py says so, too."""
        like = tuple(sorted(one.labels.items()))
        with self._lock:
            found = self._found.setdefault(one.labels.get("dtype", ""), {})
            if isinstance(one.value, str):
                found.setdefault(like, {})[one.subject] = one.value
            elif one.absence == UNKNOWN:
                self._failed.add(one.labels.get("dtype", ""))

    def compare(self, ctx: Context, gpus: Sequence[nvml.Gpu]) -> None:
        """Measure digests_agree for each format; not applicable where there are no two like GPUs to compare."""
        if len(gpus) < 2:
            ctx.not_applicable("digests_agree", "one GPU alone has none to agree with")
            return
        for dtype, found in self._found.items():
            groups = [group for group in found.values() if len(group) > 1]
            if groups:
                notes = [_odd_ones(group) for group in groups]
                ctx.measure("digests_agree", not any(notes), HOST, {"dtype": dtype}, "; ".join(filter(None, notes)))
            elif found or dtype in self._failed:
                ctx.unknown("digests_agree", "no two like GPUs gave a product to compare", HOST, {"dtype": dtype})
            else:
                ctx.not_applicable("digests_agree", "no GPU here measured this format", HOST, {"dtype": dtype})


def _odd_ones(group: Dict[str, str]) -> str:
    """Which GPUs differ from most of their like; empty where all agree."""
    (usual, times), *others = Counter(group.values()).most_common()
    if not others:
        return ""
    if 2 * times <= len(group):
        return "they differ, and no answer is the usual one: " + ", ".join(sorted(group))
    odd = ", ".join(sorted(uuid for uuid, bits in group.items() if bits != usual))
    return f"{odd} differs from the other {times}"


class _Reading(Context):
    """The same context, which keeps the digests that pass."""

    def __init__(self, ctx: Context, digests: Digests) -> None:
        super().__init__(ctx.info, ctx.request, ctx.plan, self._read)
        self._pass_on, self._digests = ctx.forward, digests

    def _read(self, record: Record) -> None:
        if isinstance(record, Measurement) and record.metric == "digest":
            self._digests.take(record)
        self._pass_on(record)


def _params(ctx: Context) -> Dict[str, Scalar]:
    return {name: value for name, value in ctx.request.params.items() if name in OF_WORKLOAD}


def _on_cpu(ctx: Context) -> None:
    params = {**_params(ctx), "subject": HOST, "dtypes": "fp32"}
    python = gpu_load.on_the_cpu(ctx, "torch")
    workload.run_workload(ctx, python, "matmul", params, gpus=None, timeout_s=GPU_TIMEOUT_S)
    measured = ("known_answer", "exact_integer", "products_verified", "products_wrong", "operand_rows_wrong")
    gpu_load.not_on_the_cpu(ctx, but=(*measured, "throughput_cpu_fp32", "throughput_cpu_fp32_spread"))
