"""Reports to render in tests: healthy, without GPU, unreachable, hostile, and a fleet with every verdict."""

from __future__ import annotations

from dataclasses import replace

from provision.criteria.model import Criterion
from provision.report.model import HostReport, Report, Status, Verdict
from tests.unit.report_parts import (
    RATES,
    UUIDS,
    chain,
    facts,
    gpus,
    host,
    measurement,
    samples,
    throughput,
    verdict,
)
from validators.schema import HOST, UNKNOWN, Sample, Scalar


def _health(uuid: str) -> list[Verdict]:
    def health(metric: str, value: Scalar, unit: str, rule: str, *, bound: Scalar, required: str) -> Verdict:
        return verdict(
            "PASS",
            measurement("gpu_health", metric, value, unit, uuid),
            rule,
            bound,
            required,
            because="any other value means failing hardware",
            source="NVIDIA GPU Memory Error Management r580",
        )

    return [
        health("ecc_uncorrected_volatile", 0, "count", "equals", bound=0, required="equals 0"),
        health("ecc_uncorrected_aggregate", 0, "count", "equals", bound=0, required="equals 0"),
        health("remapped_rows_pending", False, "bool", "equals", bound=False, required="equals false"),
        health("remapped_rows_failed", False, "bool", "equals", bound=False, required="equals false"),
        health("pcie_width", 16, "count", "equals", bound=16, required="equals 16"),
        health("nvlink_active", 18, "count", "equals", bound=18, required="equals 18"),
        health("temperature", 34, "celsius", "at_most", bound=87, required="at most 87 °C"),
        health("persistence_mode", True, "bool", "equals", bound=True, required="equals true"),
    ]


def healthy_host(name: str = "h200-01", count: int = 4) -> HostReport:
    """Four H200s that do what they should."""
    found = [
        verdict(
            "PASS",
            measurement("system", "gpu_count", count, "count"),
            "at_least",
            1,
            "at least 1",
            because="a GPU host has a GPU",
            source="definition",
        ),
        verdict(
            "PASS",
            measurement("software", "driver_consistent", True, "bool"),
            "equals",
            True,
            "equals true",
            because="a module and a libcuda of two versions refuse each other",
            source="NVIDIA driver installation guide",
        ),
        Verdict("SKIP", "preflight", HOST, "jax", "jax is not installed on this host"),
    ]
    traces: list[tuple[str, Sample]] = []
    for at, gpu in enumerate(gpus(count)):
        found += _health(gpu.uuid)
        found.append(
            verdict(
                "PASS",
                measurement("matmul", "known_answer", True, "bool", gpu.uuid),
                "equals",
                True,
                "equals true",
                because="[[22, 28], [49, 64]] is arithmetic",
                source="definition",
            )
        )
        found += [throughput(gpu.uuid, dtype, round(rate * (1 - 0.006 * at), 3)) for dtype, rate in RATES.items()]
        traces += samples(gpu.uuid)
    total = sum(one.status == "PASS" for one in found)
    return host(name, "PASS", f"all {total} criteria met on {count} GPUs", found, count=count, traces=traces)


def slow_gpu_host(name: str = "h200-02") -> HostReport:
    """One GPU of four throttles, one warns about PCIe replays, and one check crashed."""
    well = healthy_host(name)
    found = [
        throughput(
            one.subject,
            one.metric.removeprefix("throughput_"),
            round(RATES[one.metric.removeprefix("throughput_")] * 0.71, 2),
        )
        if one.subject == UUIDS[2] and one.metric.startswith("throughput_")
        else one
        for one in well.verdicts
    ]
    found.append(
        verdict(
            "WARN",
            measurement("gpu_health", "pcie_replays", 4211, "count", UUIDS[1], note="since the driver was loaded"),
            "at_most",
            100,
            "at most 100",
            reason="4,211 replays are over 100",
            because="a clean link replays rarely",
            source="DCGM default",
            next_step="reseat the card or its riser, then count again under load",
        )
    )
    found.append(
        Verdict(
            "ERROR",
            "preflight",
            UUIDS[3],
            "context",
            "the child of preflight was killed by SIGSEGV after 4.1 s",
            next_step="run `python3 bundle.pyz run preflight` on the host and read its stderr",
        )
    )
    traces = [point for at, uuid in enumerate(UUIDS) for point in samples(uuid, 1.0 if at == 2 else 0.0)]
    return replace(
        well,
        status="FAIL",
        headline="GPU 2 misses 7 of its throughput criteria; preflight crashed on GPU 3",
        verdicts=tuple(found),
        samples=tuple(traces),
    )


def gpuless_host(name: str = "localhost") -> HostReport:
    """No NVIDIA device; the product ran on the CPU because the user asked for it."""
    found = [
        verdict(
            "FAIL",
            measurement("system", "gpu_count", 0, "count"),
            "at_least",
            1,
            "at least 1",
            reason="no NVIDIA GPU on the PCI bus",
            because="a GPU host has a GPU",
            source="definition",
            next_step="lspci -d 10de: ; reseat the card; ask the provider",
        ),
        verdict(
            "PASS",
            measurement("matmul", "known_answer", True, "bool", device="cpu"),
            "equals",
            True,
            "equals true",
            because="[[22, 28], [49, 64]] is arithmetic",
            source="definition",
        ),
        Verdict("SKIP", "gpu_health", HOST, "", "no NVIDIA GPU on the PCI bus"),
        Verdict("SKIP", "compute_capability", HOST, "", "no NVIDIA GPU on the PCI bus"),
    ]
    extra = [*facts(0), measurement("matmul", "throughput_fp32", 0.21874, "TFLOP/s", device="cpu")]
    made = host(
        name,
        "FAIL",
        "no NVIDIA GPU on the PCI bus; the matmul ran on the CPU as a reference",
        found,
        count=0,
        extra=extra,
        the_chain=chain(0, "no device of vendor 10de on the PCI bus", "lspci -d 10de:"),
    )
    return replace(made, device="cpu")


def unreachable_host(name: str = "h200-07") -> HostReport:
    """Nothing came back."""
    return HostReport(
        name=name,
        address="10.20.0.17",
        status="ERROR",
        headline="no route to 10.20.0.17 port 22 within 15 s",
        verdicts=(
            Verdict(
                "ERROR",
                "connection",
                HOST,
                "ConnectError",
                "no route to 10.20.0.17 port 22 within 15 s",
                next_step=f"ping 10.20.0.17; is {name} switched on, and is port 22 open to you?",
            ),
        ),
        timings={"connect": 15.002, "deadline_connect": 15.0},
        duration_s=15.004,
        started_unix=1795237860.0,
    )


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
    one = measurement("system", "motherboard", text, "text", text, note=text, **{text[:200]: text})
    bad = Verdict(
        "FAIL",
        text,
        text,
        text,
        text,
        one,
        Criterion(text, text, text, "text", "equals", text, text, text, "FAIL", text, text, text),
        text,
        None,
        text,
    )
    made = host(
        name or text,
        "FAIL",
        text,
        [
            bad,
            replace(bad, status="ERROR"),
            replace(bad, status="WARN"),
            replace(bad, status="SKIP"),
            replace(bad, status="PASS"),
        ],
        count=2,
        gpu_name=text,
        extra=[
            measurement("system", "os_id", text, "text"),
            measurement("system", "odd", None, "text", note=text, absence=UNKNOWN),
        ],
        the_chain=chain(3, text, text),
        traces=[("matmul", Sample("matmul", text, t / 3, {text: 1.0, "power": float(t)})) for t in range(9)],
    )
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
        "h200-03",
        "FAIL",
        "the driver's module and library are of two versions; no GPU can be used",
        [
            verdict(
                "FAIL",
                measurement(
                    "software", "driver_consistent", False, "bool", note="module 570.86.15, libcuda 580.159.04"
                ),
                "equals",
                True,
                "equals true",
                reason="the loaded module and the library are of two versions",
                because="a module and a libcuda of two versions refuse each other",
                source="NVIDIA driver installation guide",
                next_step="reboot, or: rmmod -a nvidia_uvm nvidia_drm nvidia_modeset nvidia; modprobe nvidia",
            ),
            Verdict(
                "ERROR", "compute_capability", HOST, "gpu_count_nvml", mismatch, next_step="mend the broken link first"
            ),
        ],
        the_chain=chain(
            5, mismatch, "reboot, or unload nvidia_uvm, nvidia_drm, nvidia_modeset and nvidia, then: modprobe nvidia"
        ),
        count=0,
    )
    nothing = HostReport(
        "cpu-box",
        "10.20.0.31",
        "SKIP",
        "no check applies to this host",
        (Verdict("SKIP", "gpu_health", HOST, "", "no NVIDIA GPU on the PCI bus, none expected"),),
    )
    warned = healthy_host("h200-04")
    replays = slow_gpu_host().verdicts[-2]
    warned = replace(
        warned, status="WARN", headline="1 warning: PCIe replays on GPU 1", verdicts=(*warned.verdicts, replays)
    )
    return report(
        healthy_host("h200-01"),
        slow_gpu_host("h200-02"),
        broken,
        warned,
        healthy_host("h200-05"),
        healthy_host("h200-06"),
        unreachable_host("h200-07"),
        gpuless_host("h200-08"),
        healthy_host("h200-09"),
        healthy_host("h200-10"),
        nothing,
        healthy_host("h200-12"),
    )


def fleet(count: int) -> Report:
    """A large fleet: every 25th host fails, every 40th cannot be reached."""
    well, slow = healthy_host(), slow_gpu_host()
    return report(
        *(
            unreachable_host(f"node-{at:04d}")
            if at % 40 == 7
            else replace(slow if at % 25 == 3 else well, name=f"node-{at:04d}")
            for at in range(count)
        ),
        run_id="20261121-fleet",
    )


EXAMPLES = {
    "healthy": healthy,
    "gpuless": lambda: report(gpuless_host()),
    "unreachable": lambda: report(unreachable_host()),
    "hostile": hostile,
    "mixed": mixed,
    "empty": report,
}
"""Name -> builder."""
