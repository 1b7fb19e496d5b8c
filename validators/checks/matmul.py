"""Matrix products on each GPU: right to the last bit, and as fast as the card should be."""

from __future__ import annotations

from typing import Dict, List, Tuple

from validators.check import Context, Metric, check
from validators.probes import gpu_load, nvml, workload
from validators.schema import HOST, Scalar

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
    ]
    for name, unit, what in (*FORMATS, ("cpu_fp32", "TFLOP/s", "float32 on the CPU, where --device cpu asked for it")):
        found.append(Metric(f"throughput_{name}", unit, f"median rate of the products, each verified: {what}"))
        found.append(
            Metric(f"throughput_{name}_spread", "ratio", "90th less 10th percentile of the rate, by the median")
        )
    return (*found, *gpu_load.UNDER_LOAD)


GPU_TIMEOUT_S = 240.0


@check(
    catches="wrong arithmetic, silent data corruption, a slow, throttled or half-powered card",
    needs=("torch: bringup_torch_python, or the frameworks role",),
    level=2,
    seconds=30,
    timeout_s=1800,
    per_gpu=True,
    params=("seconds", "dtypes", "size", "parallel", "gpu_timeout_s"),
    metrics=_metrics(),
)
def matmul(ctx: Context) -> None:
    """On each GPU: known answer, exact integers bit for bit, and TFLOP/s of each format with every product verified.

    Params: seconds a format (2), dtypes "bf16,fp8" (all), size (0: by memory and speed), parallel (true; false: one GPU
    after the other), gpu_timeout_s (240). On four H200s both ways gave the same rates (docs/matmul.md).
    """
    if ctx.plan.device == "cpu":
        _on_cpu(ctx)
        return
    with gpu_load.ready(ctx, "torch") as (python, gpus):
        parallel = bool(ctx.request.params.get("parallel", True))
        gpu_load.on_each(gpus, lambda gpu: _on_gpu(ctx, python, gpu), parallel=parallel)


def _on_gpu(ctx: Context, python: str, gpu: nvml.Gpu) -> None:
    with ctx.subject(gpu.uuid):
        params = {**_params(ctx), "subject": gpu.uuid}
        timeout_s = float(ctx.request.params.get("gpu_timeout_s", GPU_TIMEOUT_S))
        with gpu_load.watched(ctx, gpu) as watching:
            workload.run_workload(watching, python, "matmul", params, gpus=(gpu.uuid,), timeout_s=timeout_s)
        for metric in ("throughput_cpu_fp32", "throughput_cpu_fp32_spread"):
            ctx.not_applicable(metric, "measured on the GPU", gpu.uuid)


def _params(ctx: Context) -> Dict[str, Scalar]:
    return {name: value for name, value in ctx.request.params.items() if name in ("seconds", "dtypes", "size")}


def _on_cpu(ctx: Context) -> None:
    params = {**_params(ctx), "subject": HOST, "dtypes": "fp32"}
    python = gpu_load.on_the_cpu(ctx, "torch")
    workload.run_workload(ctx, python, "matmul", params, gpus=None, timeout_s=GPU_TIMEOUT_S)
    measured = ("known_answer", "exact_integer", "products_verified", "products_wrong")
    gpu_load.not_on_the_cpu(ctx, but=(*measured, "throughput_cpu_fp32", "throughput_cpu_fp32_spread"))
