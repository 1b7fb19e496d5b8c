"""What example reports are made of: measurements, verdicts, chains, traces and hosts, as the real ones look."""

from __future__ import annotations

import math
from collections.abc import Mapping

from provision.criteria.model import Criterion, Fraction
from provision.report.model import Chain, Gpu, HostReport, Link, LinkState, Status, Verdict
from validators.schema import HOST, NOT_APPLICABLE, UNKNOWN, Measurement, Sample, Scalar

UUIDS = (
    "GPU-7709412d-4311-971c-c1a2-c9acd66ec533",
    "GPU-1b2d7a90-93f4-0c45-8c3a-5a7e61d0a7f1",
    "GPU-c5ad5f6e-8a18-b6b1-2f0e-0f3b1c9e4d22",
    "GPU-e0c1b8d4-27aa-4c0f-9d55-b3f6a1e78c90",
)
PEAKS: Mapping[str, float] = {
    "fp64": 66.9,
    "fp32": 66.9,
    "tf32": 494.7,
    "fp16": 989.4,
    "bf16": 989.4,
    "fp8": 1978.9,
    "int8": 1978.9,
}
RATES: Mapping[str, float] = {
    "fp64": 60.72,
    "fp32": 51.43,
    "tf32": 441.9,
    "fp16": 771.6,
    "bf16": 786.2,
    "fp8": 1462.0,
    "int8": 1490.0,
}
LINKS = (
    ("PCI device", "4 NVIDIA GPUs on the PCI bus: 10de:2335 at 0000:00:06.0 and three more"),
    ("driver supports the card", "driver 580.159.04 lists 10de:2335"),
    ("module for this kernel", "nvidia.ko built for 6.8.0-79-generic"),
    ("module loaded", "nvidia 580.159.04 (open) is loaded, nouveau is not"),
    ("device nodes", "/dev/nvidia0 to /dev/nvidia3, /dev/nvidiactl, /dev/nvidia-uvm"),
    ("userspace version", "libcuda 580.159.04 = module 580.159.04"),
    ("NVML answers", "4 GPUs"),
    ("fabric state", "completed, success"),
    ("CUDA build", "torch 2.13.0+cu130 needs CUDA 13.0; the driver serves 13.0"),
    ("architectures", "the wheel has sm_90, the card is 9.0"),
    ("CUDA context", "a context on each of 4 GPUs"),
    ("known answer", "[[22, 28], [49, 64]] on each of 4 GPUs"),
)


def measurement(
    check: str,
    metric: str,
    value: Scalar | None,
    unit: str,
    subject: str = HOST,
    *,
    note: str = "",
    absence: str = "",
    **labels: str,
) -> Measurement:
    """A measurement, as a host would send it."""
    return Measurement(check, subject, metric, value, unit, labels, absence, note)


def verdict(
    status: Status,
    one: Measurement,
    rule: str,
    value: Scalar | Fraction,
    required: str,
    *,
    reason: str = "",
    required_value: Scalar | None = None,
    because: str = "the card's datasheet promises it",
    source: str = "NVIDIA H200 datasheet, dense",
    next_step: str = "",
) -> Verdict:
    """A verdict over a measurement, with its criterion."""
    criterion = Criterion(
        id=one.metric,
        check=one.check,
        metric=one.metric,
        unit=one.unit,
        rule=rule,  # type: ignore[arg-type]  # a test's own literal
        value=value,
        because=because,
        source=source,
        severity="WARN" if status == "WARN" else "FAIL",
        advice=next_step,
    )
    return Verdict(
        status,
        one.check,
        one.subject,
        one.metric,
        reason,
        one,
        criterion,
        required,
        required_value if required_value is not None else (value if not isinstance(value, Fraction) else None),
        next_step,
    )


def chain(broken_at: int | None = None, evidence: str = "", mend: str = "", state: LinkState = "broken") -> Chain:
    """The twelve links; `broken_at` (from 0) is the first that does not hold."""
    if broken_at is None:
        return Chain(tuple(Link(name, "holds", text) for name, text in LINKS), "All 12 links hold.")
    links = tuple(
        Link(name, "holds", text)
        if at < broken_at
        else Link(name, state, evidence, mend)
        if at == broken_at
        else Link(name, "not_reached", "")
        for at, (name, text) in enumerate(LINKS)
    )
    return Chain(links, f"The first broken link is “{LINKS[broken_at][0]}”: {evidence}.")


def gpus(count: int = 4, name: str = "NVIDIA H200") -> tuple[Gpu, ...]:
    """So many GPUs as NVML names them."""
    return tuple(
        Gpu(UUIDS[at] if at < len(UUIDS) else f"GPU-{at:08d}", at, name, f"00000000:{at:02x}:06.0", "9.0")
        for at in range(count)
    )


def throughput(uuid: str, dtype: str, rate: float) -> Verdict:
    """Measured against 70% of the dense peak."""
    unit = "TOP/s" if dtype == "int8" else "TFLOP/s"
    needed = round(PEAKS[dtype] * 0.7, 1)
    one = measurement("matmul", f"throughput_{dtype}", rate, unit, uuid, framework="torch")
    short = 100 * (1 - rate / needed)
    return verdict(
        "PASS" if rate >= needed else "FAIL",
        one,
        "at_least",
        Fraction(0.7, f"peak:{dtype}_tensor"),
        f"at least {needed:g} {unit}",
        reason="" if rate >= needed else f"{rate:g} {unit} is {short:.0f}% under {needed:g} {unit}",
        required_value=needed,
        because="a healthy card reaches 70% of its dense peak in a large product",
        next_step=""
        if rate >= needed
        else "nvidia-smi -q -d PERFORMANCE,POWER,TEMPERATURE under load; compare the cooling with its neighbours",
    )


def samples(uuid: str, heat: float = 0.0, points: int = 90) -> list[tuple[str, Sample]]:
    """Ten seconds of load; `heat` > 0 throttles the clock half way."""
    found = []
    for at in range(points):
        t = 10.0 * at / (points - 1)
        load = 1 - math.exp(-t / 0.6)
        drop = heat * max(0.0, t - 4) * 60
        wave = math.sin(at * 1.7) * 6
        values = {
            "sm_clock": round(1980 - 180 * load - drop + wave),
            "power": round(128 + 540 * load - drop * 0.4 + wave, 1),
            "temperature": round(34 + (28 + 30 * heat) * (1 - math.exp(-t / 4))),
            "utilisation": 0 if at == 0 else 100,
        }
        found.append(("matmul", Sample("matmul", uuid, round(t, 3), {k: float(v) for k, v in values.items()})))
    return found


def facts(count: int, name: str = "NVIDIA H200") -> list[Measurement]:
    found = [
        measurement("system", "os_id", "ubuntu", "text"),
        measurement("system", "os_version", "24.04", "version"),
        measurement("system", "kernel_release", "6.8.0-79-generic", "text"),
        measurement("system", "cpu_model", "Intel(R) Xeon(R) Platinum 8481C", "text"),
        measurement("system", "cpu_sockets", 2, "count"),
        measurement("system", "cpu_cores", 104, "count"),
        measurement("system", "memory_total", 2063721, "MiB"),
        measurement("system", "secure_boot", None, "bool", note="no EFI variables", absence=UNKNOWN),
        measurement("software", "module_loaded_version", "580.159.04", "version"),
        measurement("software", "module_flavour", "open", "text"),
        measurement("software", "docker", "29.1.2", "version"),
        measurement("compute_capability", "cuda_driver", "13.0", "version"),
    ]
    found += [
        measurement("system", "pci_gpu", "10de:2335", "text", address=f"0000:00:{6 + at:02x}.0", driver="nvidia")
        for at in range(count)
    ]
    for gpu in gpus(count, name):
        found += [
            measurement("compute_capability", "gpu_name", gpu.name, "text", gpu.uuid, index=str(gpu.index)),
            measurement("compute_capability", "sm_count", 132, "count", gpu.uuid),
            measurement("compute_capability", "memory_total", 143771, "MiB", gpu.uuid),
            measurement("compute_capability", "power_limit_default", 700, "W", gpu.uuid),
            measurement("gpu_health", "pcie_replays", 3 * gpu.index, "count", gpu.uuid),
            measurement("gpu_health", "fan_speed", None, "percent", gpu.uuid, note="no fans", absence=NOT_APPLICABLE),
        ]
    return found


def host(
    name: str,
    status: Status,
    headline: str,
    verdicts: list[Verdict],
    *,
    the_chain: Chain | None = None,
    count: int = 4,
    gpu_name: str = "NVIDIA H200",
    extra: list[Measurement] | None = None,
    traces: list[tuple[str, Sample]] | None = None,
) -> HostReport:
    """A host that answered."""
    judged = [one.measurement for one in verdicts if one.measurement]
    return HostReport(
        name=name,
        address="10.20.0.11",
        status=status,
        headline=headline,
        verdicts=tuple(verdicts),
        chain=the_chain or chain(),
        gpus=gpus(count, gpu_name),
        measurements=tuple(judged + (facts(count, gpu_name) if extra is None else extra)),
        samples=tuple(traces or ()),
        started_unix=1795237860.25,
        duration_s=94.318,
        timings={
            "connect": 0.214,
            "upload": 0.061,
            "run": 93.9,
            "deadline_connect": 15.0,
            "deadline_run": 600.0,
            "deadline_silence": 60.0,
        },
        bundle="3f1e0a94f0b9c24d6a5b1d9c1f0e8a7b5c3d2e1f0a9b8c7d6e5f4a3b2c1d0e9f",
    )
