"""Matrix products on each GPU: right to the last bit, and as fast as the card should be."""

from __future__ import annotations

import threading
from typing import Callable, Dict, List, Tuple, Union

from validators.check import Context, Metric, Skip, check
from validators.probes import nvml, pci, pythons
from validators.probes.load_trace import BRAKED, THERMAL, Sampler, Trace
from validators.probes.sysfs import Files
from validators.schema import ERROR, HOST, NOT_APPLICABLE, Progress, Record, Scalar

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
    found += [
        Metric("sm_clock_under_load", "MHz", "median clock of the multiprocessors"),
        Metric("power_under_load", "W", "highest power draw"),
        Metric("temperature_under_load", "celsius", "highest temperature"),
        Metric("throttle_reasons_under_load", "text", "all that held the clock back; a software power cap is usual"),
        Metric("throttled_by_heat", "bool", "whether a thermal slowdown was on under load"),
        Metric("throttled_by_hardware", "bool", "whether a hardware slowdown or power brake was on under load"),
        Metric("pcie_generation_under_load", "count", "highest generation of the PCIe link; it drops when idle"),
        Metric("pcie_full_generation", "bool", "whether that is the highest that this card and slot allow"),
    ]  # fmt: skip
    return tuple(found)


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
    devices = pci.nvidia_devices(Files())
    if devices is not None and not any(device.is_gpu for device in devices):
        raise Skip("no NVIDIA GPU on the PCI bus; --device cpu runs the products on the CPU")
    with nvml.session() as session:
        gpus, lost = session.gpus()
        if not gpus:
            raise RuntimeError("; ".join(one.note for one in lost) or "NVML sees no GPU; see compute_capability")
        python = pythons.find_python(ctx.plan, "torch")
        if python is None:
            text = pythons.explain(ctx.plan, "torch")
            for gpu in gpus:
                ctx.outcome(gpu.uuid, ERROR, text)
            raise RuntimeError(text)
        if ctx.request.params.get("parallel", True):
            threads = [threading.Thread(target=_on_gpu, args=(ctx, python, gpu)) for gpu in gpus]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        else:
            for gpu in gpus:
                _on_gpu(ctx, python, gpu)
        if lost:
            raise RuntimeError("; ".join(one.note for one in lost))


class _Watching(Context):
    """The same context, telling when the load begins: the workload's first progress record."""

    def __init__(self, ctx: Context, began: Callable[[], None]) -> None:
        super().__init__(ctx.info, ctx.request, ctx.plan, self._note)
        self._pass_on, self._began = ctx.forward, began

    def _note(self, record: Record) -> None:
        if isinstance(record, Progress):
            self._began()
        self._pass_on(record)


def _on_gpu(ctx: Context, python: str, gpu: nvml.Gpu) -> None:
    # Late: the probe starts processes through the bundle, which a listing of the checks does not need.
    from validators.probes.workload import run_workload  # noqa: PLC0415 - see above

    sampler = Sampler(gpu, lambda t_s, values: ctx.sample(t_s, values, gpu.uuid))
    with ctx.subject(gpu.uuid):
        params = {**_params(ctx), "subject": gpu.uuid}
        timeout_s = float(ctx.request.params.get("gpu_timeout_s", GPU_TIMEOUT_S))
        try:
            watching = _Watching(ctx, sampler.start)
            run_workload(watching, python, "matmul", params, gpu_uuid=gpu.uuid, timeout_s=timeout_s)
        finally:
            trace = sampler.stop()
        _under_load(ctx, gpu, trace)
        for metric in ("throughput_cpu_fp32", "throughput_cpu_fp32_spread"):
            ctx.not_applicable(metric, "measured on the GPU", gpu.uuid)


def _params(ctx: Context) -> Dict[str, Scalar]:
    return {name: value for name, value in ctx.request.params.items() if name in ("seconds", "dtypes", "size")}


def _under_load(ctx: Context, gpu: nvml.Gpu, trace: Trace) -> None:
    """What held during the load, from the samples."""
    _put(ctx, gpu.uuid, "sm_clock_under_load", trace.median("sm_clock"))
    _put(ctx, gpu.uuid, "power_under_load", trace.highest("power"))
    _put(ctx, gpu.uuid, "temperature_under_load", trace.highest("temperature"))
    _put(ctx, gpu.uuid, "throttle_reasons_under_load", trace.reasons())
    _put(ctx, gpu.uuid, "throttled_by_heat", trace.throttled(THERMAL))
    _put(ctx, gpu.uuid, "throttled_by_hardware", trace.throttled(BRAKED))
    reached = trace.highest("pcie_generation")
    allowed = nvml.number(gpu.get("GetMaxPcieLinkGeneration"))
    if isinstance(reached, nvml.Absent):
        _put(ctx, gpu.uuid, "pcie_generation_under_load", reached)
        _put(ctx, gpu.uuid, "pcie_full_generation", reached)
    else:
        _put(ctx, gpu.uuid, "pcie_generation_under_load", int(reached))
        full = allowed if isinstance(allowed, nvml.Absent) else reached >= allowed
        _put(ctx, gpu.uuid, "pcie_full_generation", full)


def _put(ctx: Context, subject: str, metric: str, value: Union[Scalar, nvml.Absent]) -> None:
    if not isinstance(value, nvml.Absent):
        ctx.measure(metric, value, subject)
    elif value.kind == NOT_APPLICABLE:
        ctx.not_applicable(metric, value.note, subject)
    else:
        ctx.unknown(metric, value.note, subject)


def _on_cpu(ctx: Context) -> None:
    from validators.probes.workload import run_workload  # noqa: PLC0415 - as in _on_gpu

    python = pythons.find_python(ctx.plan, "torch")
    if python is None:
        raise RuntimeError(pythons.explain(ctx.plan, "torch"))
    params = {**_params(ctx), "subject": HOST, "dtypes": "fp32"}
    run_workload(ctx, python, "matmul", params, gpu_uuid=None, timeout_s=GPU_TIMEOUT_S)
    measured = {"known_answer", "exact_integer", "products_verified", "products_wrong"}
    for metric in ctx.info.metrics:
        if metric.name not in measured and "cpu" not in metric.name:
            ctx.not_applicable(metric.name, "a CPU run, asked for with --device cpu: no GPU was measured")
