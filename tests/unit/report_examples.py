"""Reports to render in tests: healthy, without GPU, unreachable, hostile, and a fleet with every verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from provision.criteria.model import Criterion, Fraction
from provision.report.model import Chain, Gpu, HostReport, Link, LinkState, Report, Status, Verdict
from validators.schema import HOST, NOT_APPLICABLE, UNKNOWN, Measurement, Sample, Scalar

UUIDS = (
    "GPU-7709412d-4311-971c-c1a2-c9acd66ec533",
    "GPU-1b2d7a90-93f4-0c45-8c3a-5a7e61d0a7f1",
    "GPU-c5ad5f6e-8a18-b6b1-2f0e-0f3b1c9e4d22",
    "GPU-e0c1b8d4-27aa-4c0f-9d55-b3f6a1e78c90",
)
PEAKS: Mapping[str, float] = {
    "fp64": 66.9, "fp32": 66.9, "tf32": 494.7, "fp16": 989.4, "bf16": 989.4, "fp8": 1978.9, "int8": 1978.9,
}  # fmt: skip
RATES: Mapping[str, float] = {
    "fp64": 60.72, "fp32": 51.43, "tf32": 441.9, "fp16": 771.6, "bf16": 786.2, "fp8": 1462.0, "int8": 1490.0,
}  # fmt: skip
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
    reason: str,
    required_value: Scalar | None = None,
    because: str = "the card's datasheet promises it",
    source: str = "NVIDIA H200 datasheet, dense",
    next_step: str = "",
) -> Verdict:
    """A verdict over a measurement, with its criterion."""
    criterion = Criterion(
        id=one.metric, check=one.check, metric=one.metric, unit=one.unit, rule=rule,  # type: ignore[arg-type]  # a test's own literal
        value=value, because=because, source=source, severity="WARN" if status == "WARN" else "FAIL", advice=next_step,
    )  # fmt: skip
    return Verdict(
        status, one.check, one.subject, one.metric, reason, one, criterion, required,
        required_value if required_value is not None else (value if not isinstance(value, Fraction) else None), next_step,
    )  # fmt: skip


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
        "PASS" if rate >= needed else "FAIL", one, "at_least", Fraction(0.7, f"peak:{dtype}_tensor"),
        f"at least {needed:g} {unit}",
        "" if rate >= needed else f"{rate:g} {unit} is {short:.0f}% under {needed:g} {unit}",
        needed, "a healthy card reaches 70% of its dense peak in a large product",
        next_step="" if rate >= needed else "nvidia-smi -q -d PERFORMANCE,POWER,TEMPERATURE under load; compare the cooling with its neighbours",
    )  # fmt: skip


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


def _health(uuid: str) -> list[Verdict]:
    def health(metric: str, value: Scalar, unit: str, rule: str, bound: Scalar, required: str) -> Verdict:
        return verdict(
            "PASS", measurement("gpu_health", metric, value, unit, uuid), rule, bound, required, "",
            because="any other value means failing hardware", source="NVIDIA GPU Memory Error Management r580",
        )  # fmt: skip

    return [
        health("ecc_uncorrected_volatile", 0, "count", "equals", 0, "equals 0"),
        health("ecc_uncorrected_aggregate", 0, "count", "equals", 0, "equals 0"),
        health("remapped_rows_pending", False, "bool", "equals", False, "equals false"),
        health("remapped_rows_failed", False, "bool", "equals", False, "equals false"),
        health("pcie_width", 16, "count", "equals", 16, "equals 16"),
        health("nvlink_active", 18, "count", "equals", 18, "equals 18"),
        health("temperature", 34, "celsius", "at_most", 87, "at most 87 °C"),
        health("persistence_mode", True, "bool", "equals", True, "equals true"),
    ]


def _facts(count: int, name: str = "NVIDIA H200") -> list[Measurement]:
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
            measurement("gpu_health", "fan_speed", None, "percent", gpu.uuid, "no fans", NOT_APPLICABLE),
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
        name=name, address="10.20.0.11", status=status, headline=headline, verdicts=tuple(verdicts),
        chain=the_chain or chain(), gpus=gpus(count, gpu_name),
        measurements=tuple(judged + (_facts(count, gpu_name) if extra is None else extra)),
        samples=tuple(traces or ()), started_unix=1795237860.25, duration_s=94.318,
        timings={"connect": 0.214, "upload": 0.061, "run": 93.9, "deadline_connect": 15.0, "deadline_run": 600.0,
                 "deadline_silence": 60.0},
        bundle="3f1e0a94f0b9c24d6a5b1d9c1f0e8a7b5c3d2e1f0a9b8c7d6e5f4a3b2c1d0e9f",
    )  # fmt: skip


def healthy_host(name: str = "h200-01", count: int = 4) -> HostReport:
    """Four H200s that do what they should."""
    found = [
        verdict("PASS", measurement("system", "gpu_count", count, "count"), "at_least", 1, "at least 1", "",
                because="a GPU host has a GPU", source="definition"),
        verdict("PASS", measurement("software", "driver_consistent", True, "bool"), "equals", True, "equals true", "",
                because="a module and a libcuda of two versions refuse each other", source="NVIDIA driver installation guide"),
        Verdict("SKIP", "preflight", HOST, "jax", "jax is not installed on this host"),
    ]  # fmt: skip
    traces: list[tuple[str, Sample]] = []
    for at, gpu in enumerate(gpus(count)):
        found += _health(gpu.uuid)
        found.append(
            verdict("PASS", measurement("matmul", "known_answer", True, "bool", gpu.uuid), "equals", True, "equals true",
                    "", because="[[22, 28], [49, 64]] is arithmetic", source="definition")
        )  # fmt: skip
        found += [throughput(gpu.uuid, dtype, round(rate * (1 - 0.006 * at), 3)) for dtype, rate in RATES.items()]
        traces += samples(gpu.uuid)
    total = sum(one.status == "PASS" for one in found)
    return host(name, "PASS", f"all {total} criteria met on {count} GPUs", found, count=count, traces=traces)


def slow_gpu_host(name: str = "h200-02") -> HostReport:
    """One GPU of four throttles, one warns about PCIe replays, and one check crashed."""
    well = healthy_host(name)
    found = [
        throughput(one.subject, one.metric.removeprefix("throughput_"), round(RATES[one.metric.removeprefix("throughput_")] * 0.71, 2))
        if one.subject == UUIDS[2] and one.metric.startswith("throughput_")
        else one
        for one in well.verdicts
    ]  # fmt: skip
    found.append(
        verdict("WARN", measurement("gpu_health", "pcie_replays", 4211, "count", UUIDS[1], "since the driver was loaded"),
                "at_most", 100, "at most 100", "4,211 replays are over 100", because="a clean link replays rarely",
                source="DCGM default", next_step="reseat the card or its riser, then count again under load")
    )  # fmt: skip
    found.append(
        Verdict("ERROR", "preflight", UUIDS[3], "context", "the child of preflight was killed by SIGSEGV after 4.1 s",
                next_step="run `python3 bundle.pyz run preflight` on the host and read its stderr")
    )  # fmt: skip
    traces = [point for at, uuid in enumerate(UUIDS) for point in samples(uuid, 1.0 if at == 2 else 0.0)]
    return replace(
        well, status="FAIL", headline="GPU 2 misses 7 of its throughput criteria; preflight crashed on GPU 3",
        verdicts=tuple(found), samples=tuple(traces),
    )  # fmt: skip


def gpuless_host(name: str = "localhost") -> HostReport:
    """No NVIDIA device; the product ran on the CPU because the user asked for it."""
    found = [
        verdict("FAIL", measurement("system", "gpu_count", 0, "count"), "at_least", 1, "at least 1",
                "no NVIDIA GPU on the PCI bus", because="a GPU host has a GPU", source="definition",
                next_step="lspci -d 10de: ; reseat the card; ask the provider"),
        verdict("PASS", measurement("matmul", "known_answer", True, "bool", device="cpu"), "equals", True, "equals true", "",
                because="[[22, 28], [49, 64]] is arithmetic", source="definition"),
        Verdict("SKIP", "gpu_health", HOST, "", "no NVIDIA GPU on the PCI bus"),
        Verdict("SKIP", "compute_capability", HOST, "", "no NVIDIA GPU on the PCI bus"),
    ]  # fmt: skip
    extra = [*_facts(0), measurement("matmul", "throughput_fp32", 0.21874, "TFLOP/s", device="cpu")]
    made = host(
        name, "FAIL", "no NVIDIA GPU on the PCI bus; the matmul ran on the CPU as a reference", found, count=0, extra=extra,
        the_chain=chain(0, "no device of vendor 10de on the PCI bus", "lspci -d 10de:"),
    )  # fmt: skip
    return replace(made, device="cpu")


def unreachable_host(name: str = "h200-07") -> HostReport:
    """Nothing came back."""
    return HostReport(
        name=name, address="10.20.0.17", status="ERROR", headline="no route to 10.20.0.17 port 22 within 15 s",
        verdicts=(
            Verdict("ERROR", "connection", HOST, "ConnectError", "no route to 10.20.0.17 port 22 within 15 s",
                    next_step=f"ping 10.20.0.17; is {name} switched on, and is port 22 open to you?"),
        ),
        timings={"connect": 15.002, "deadline_connect": 15.0}, duration_s=15.004, started_unix=1795237860.0,
    )  # fmt: skip


HOSTILE = (
    "<script>alert(1)</script>",
    "[bold red]not red[/] [link=file:///etc/passwd]x[/link]",
    "\x1b[31mred\x1b[0m \x1b]0;title\x07 \x1b[2J",
    "gpu\u202egnp.exe \u2066x\u2069 \u200bzero",
    "a|b `code` *bold* @everyone #12 ![x](http://127.0.0.1/x.png) <img src=http://127.0.0.1/y.png>",
    "{{ 7 * 7 }} {% raw %} ${x} %s {0}",
    "]]>&amp;<![CDATA[ \x00\x0b\ufffe \ud800",
    "Z" + "\u0301" * 400 + " W" * 10,
    "A" * 4096,
    "'\"><svg onload=alert(2)> javascript:alert(3)",
    "many\nlines\r\nand\ttabs\u2028here",
)
"""Texts that a host may send."""


def hostile_host(text: str, name: str = "") -> HostReport:
    """A host that sends `text` wherever text may stand."""
    one = measurement("system", "motherboard", text, "text", text, text, **{text[:200]: text})
    bad = Verdict(
        "FAIL", text, text, text, text, one,
        Criterion(text, text, text, "text", "equals", text, text, text, "FAIL", text, text, text), text, None, text,
    )  # fmt: skip
    made = host(
        name or text, "FAIL", text, [bad, replace(bad, status="ERROR"), replace(bad, status="WARN"),
        replace(bad, status="SKIP"), replace(bad, status="PASS")], count=2, gpu_name=text, extra=[
            measurement("system", "os_id", text, "text"), measurement("system", "odd", None, "text", note=text, absence=UNKNOWN),
        ], the_chain=chain(3, text, text), traces=[("matmul", Sample("matmul", text, t / 3, {text: 1.0, "power": float(t)})) for t in range(9)],
    )  # fmt: skip
    return replace(made, address=text, bundle=text, timings={text: 1.0, "deadline_" + text: 2.0})


def report(*hosts: HostReport, run_id: str = "20261121-041100-h200", command: str = "") -> Report:
    """A run over these hosts; the worst host's status is the run's."""
    order: tuple[Status, ...] = ("FAIL", "ERROR", "WARN", "PASS", "SKIP")
    return Report(
        run_id=run_id,
        status=next((status for status in order if any(one.status == status for one in hosts)), "ERROR"),
        created="2026-11-21T04:11:00Z",
        judged="2026-11-21T04:13:41Z",
        version="0.1.0",
        hosts=hosts,
        command=command or "bringup validate -i inventory.ini --limit h200",
        criteria_files=(
            ("defaults/gpu_health.toml", "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"),
            ("defaults/matmul.toml", "60303ae22b998861bce3b28f33eec1be758a213c86c93c076dbe9f558c11c752"),
        ),
    )


def healthy() -> Report:
    """One healthy host with four GPUs."""
    return report(healthy_host())


def hostile() -> Report:
    """Every hostile text, on a host of its own."""
    made = report(*(hostile_host(text) for text in HOSTILE), run_id=HOSTILE[0], command=HOSTILE[2])
    return replace(made, notes=HOSTILE, version=HOSTILE[3], criteria_files=tuple((text, text) for text in HOSTILE))


def mixed() -> Report:
    """Twelve hosts with every verdict, a broken chain among them."""
    mismatch = "NVML says: Driver/library version mismatch (module 570.86.15, libcuda 580.159.04)"
    broken = host(
        "h200-03", "FAIL", "the driver's module and library are of two versions; no GPU can be used",
        [
            verdict("FAIL", measurement("software", "driver_consistent", False, "bool", note="module 570.86.15, libcuda 580.159.04"),
                    "equals", True, "equals true", "the loaded module and the library are of two versions",
                    because="a module and a libcuda of two versions refuse each other",
                    source="NVIDIA driver installation guide",
                    next_step="reboot, or: systemctl stop nvidia-persistenced; rmmod nvidia_uvm nvidia_drm nvidia_modeset nvidia; modprobe nvidia"),
            Verdict("ERROR", "compute_capability", HOST, "gpu_count_nvml", mismatch, next_step="mend the broken link first"),
        ],
        the_chain=chain(5, mismatch, "reboot, or unload nvidia_uvm, nvidia_drm, nvidia_modeset and nvidia, then: modprobe nvidia"),
        count=0,
    )  # fmt: skip
    nothing = HostReport("cpu-box", "10.20.0.31", "SKIP", "no check applies to this host", (
        Verdict("SKIP", "gpu_health", HOST, "", "no NVIDIA GPU on the PCI bus, none expected"),
    ))  # fmt: skip
    warned = healthy_host("h200-04")
    replays = slow_gpu_host().verdicts[-2]
    warned = replace(
        warned, status="WARN", headline="1 warning: PCIe replays on GPU 1", verdicts=(*warned.verdicts, replays)
    )
    return report(
        healthy_host("h200-01"), slow_gpu_host("h200-02"), broken, warned, healthy_host("h200-05"), healthy_host("h200-06"),
        unreachable_host("h200-07"), gpuless_host("h200-08"), healthy_host("h200-09"), healthy_host("h200-10"),
        nothing, healthy_host("h200-12"),
    )  # fmt: skip


def fleet(count: int) -> Report:
    """A large fleet: every 25th host fails, every 40th cannot be reached."""
    well, slow = healthy_host(), slow_gpu_host()
    return report(
        *(
            unreachable_host(f"node-{at:04d}") if at % 40 == 7 else replace(slow if at % 25 == 3 else well, name=f"node-{at:04d}")
            for at in range(count)
        ),
        run_id="20261121-fleet",
    )  # fmt: skip


EXAMPLES = {
    "healthy": healthy,
    "gpuless": lambda: report(gpuless_host()),
    "unreachable": lambda: report(unreachable_host()),
    "hostile": hostile,
    "mixed": mixed,
    "empty": lambda: report(),
}
"""Name -> builder."""
