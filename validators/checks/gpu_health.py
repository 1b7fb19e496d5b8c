"""Is each GPU in good health: memory, links, heat, power, modes, and what the kernel's log says of it."""

from __future__ import annotations

from typing import List, Optional

from validators.check import Context, Metric, Skip, check
from validators.probes import gpu_links, gpu_memory, gpu_state, kernel_log, pci, xid
from validators.probes.gpu_report import report
from validators.probes.nvml import GPU_IS_LOST, RESET_REQUIRED, Absent, Found, Gpu, NvmlFailure, session
from validators.probes.sysfs import Files
from validators.schema import HOST, UNKNOWN

_MEMORY = (
    Metric("ecc_enabled", "bool", "ECC is on"),
    Metric("ecc_change_pending", "bool", "ECC changes at the next reset"),
    Metric("ecc_corrected", "count", "corrected memory errors since the driver was loaded"),
    Metric("ecc_uncorrected", "count", "uncorrected memory errors since the driver was loaded"),
    Metric("ecc_corrected_lifetime", "count", "corrected memory errors over the card's life"),
    Metric("ecc_uncorrected_lifetime", "count", "uncorrected memory errors over the card's life"),
    Metric("sram_threshold_exceeded", "bool", "more SRAM errors than NVIDIA allows a card to have"),
    Metric("sram_uncorrected", "count", "uncorrected SRAM errors since the driver was loaded"),
    Metric("sram_uncorrected_lifetime", "count", "uncorrected SRAM errors over the card's life"),
    Metric("remapped_rows_corrected", "count", "memory rows replaced after corrected errors"),
    Metric("remapped_rows_uncorrected", "count", "memory rows replaced after uncorrected errors"),
    Metric("row_remap_pending", "bool", "a row is replaced at the next reset"),
    Metric("row_remap_failed", "bool", "a row could not be replaced"),
    Metric("banks_without_spare", "count", "memory banks with no spare row left; labels: banks by spares left"),
    Metric("retired_pages_corrected", "count", "pages retired after corrected errors (Turing and older)"),
    Metric("retired_pages_uncorrected", "count", "pages retired after an uncorrected error (Turing and older)"),
    Metric("retired_pages", "count", "pages retired for either reason (Turing and older)"),
    Metric("page_retirement_pending", "bool", "a page is retired at the next reset"),
    Metric("channel_repair_pending", "bool", "a memory channel is repaired at the next reset"),
    Metric("tpc_repair_pending", "bool", "a processing cluster is repaired at the next reset"),
    Metric("unrepairable_memory", "bool", "memory that nothing repairs"),
    Metric("recovery_action", "text", "what the driver asks for to make the GPU whole again"),
)
_LINKS = (
    Metric("pcie_width", "count", "lanes in use; label max"),
    Metric("pcie_width_fraction", "ratio", "lanes in use of those that card and slot have"),
    Metric("pcie_generation", "count", "PCIe generation now; it drops at idle (label state)"),
    Metric("pcie_replays", "count", "PCIe packets sent again since the last reset"),
    Metric("pcie_correctable_errors", "count", "correctable PCIe errors"),
    Metric("pcie_nonfatal_errors", "count", "uncorrectable PCIe errors, not fatal"),
    Metric("pcie_fatal_errors", "count", "fatal PCIe errors"),
    Metric("fabric_state", "text", "registration with the NVLink fabric"),
    Metric("fabric_status", "text", "how that registration ended"),
    Metric("fabric_health", "text", "problems that the fabric states"),
    Metric("nvlink_links", "count", "NVLinks that the GPU has"),
    Metric("nvlink_active", "count", "NVLinks that are up; label down names the others"),
    Metric("nvlink_active_fraction", "ratio", "NVLinks that are up of those that the GPU has"),
    Metric("nvlink_speed", "GB/s", "speed of the slowest active NVLink, one direction"),
    Metric("nvlink_replays", "count", "NVLink packets sent again, all links; label links"),
    Metric("nvlink_recoveries", "count", "times an NVLink had to be trained again"),
    Metric("nvlink_crc_errors", "count", "NVLink packets with a wrong checksum"),
    Metric("nvlink_link_integrity_errors", "count", "NVLink 5: local link integrity errors"),
    Metric("nvlink_recovery_failures", "count", "NVLink 5: recoveries that failed"),
    Metric("nvlink_effective_errors", "count", "NVLink 5: errors left after error correction"),
    Metric("nvlink_symbol_errors", "count", "NVLink 5: symbol errors"),
)
_STATE = (
    Metric("throttle_reasons", "text", "what holds the clocks now, harmless reasons among them"),
    Metric("throttle_faults", "text", "faults that hold the clocks now"),
    Metric("thermal_violation_time", "s", "time that heat held the clocks down since the driver was loaded"),
    Metric("power_violation_time", "s", "time that the power cap held the clocks down since then"),
    Metric("temperature", "celsius", "of the GPU"),
    Metric("temperature_slowdown", "celsius", "where the hardware slows the clocks"),
    Metric("temperature_shutdown", "celsius", "where the hardware switches off"),
    Metric("temperature_operating_max", "celsius", "the highest for which the card is made"),
    Metric("temperature_margin", "celsius", "left to the lowest limit"),
    Metric("memory_temperature", "celsius", "of the memory"),
    Metric("memory_temperature_margin", "celsius", "left to the memory's limit"),
    Metric("power", "W", "drawn now"),
    Metric("power_limit", "W", "in force; label default: what the card is shipped with, in watts"),
    Metric("power_limit_fraction", "ratio", "limit in force of the default"),
    Metric("sm_clock", "MHz", "of the SMs now"),
    Metric("memory_clock", "MHz", "of the memory now"),
    Metric("application_clock_fraction", "ratio", "application clock of its default"),
    Metric("performance_state", "count", "P-state now: 0 is the fastest"),
    Metric("persistence_mode", "bool", "the driver keeps the GPU initialised without a client"),
    Metric("compute_mode", "text", "who may use the GPU"),
    Metric("mig_enabled", "bool", "the card is split into instances"),
    Metric("mig_change_pending", "bool", "MIG changes at the next reset"),
    Metric("inforom_valid", "bool", "the card's configuration memory has a right checksum"),
    Metric("utilisation", "percent", "of the GPU now"),
    Metric("compute_processes", "count", "processes that compute on the GPU now; the note names them"),
)
_LOG = (
    Metric("responds", "bool", "the GPU answers, and does not ask for a reset first"),
    Metric("xid", "text", 'an XID of this GPU in the kernel\'s log since boot, or "none"; labels count, first, last'),
    Metric("sxid", "text", 'an SXid of an NVSwitch there, or "none"'),
    Metric("gpu_start_failures", "count", "GPUs that the driver could not start"),
    Metric("kernel_log_complete", "bool", "the kernel's log that was read goes back to the boot"),
)


@check(
    catches="memory that failed or is about to, a link that is down or narrow, heat, a driver that asks for a reset",
    needs=("NVML", "the kernel's log (root, or group adm or systemd-journal)"),
    level=1,
    seconds=0.5,
    timeout_s=60,
    per_gpu=True,
    metrics=_MEMORY + _LINKS + _STATE + _LOG,
)
def gpu_health(ctx: Context) -> None:
    """Each GPU's memory errors, links, fabric, heat, power and modes by NVML, and its XIDs in the kernel's log."""
    try:
        log: Optional[kernel_log.KernelLog] = kernel_log.read()
        why = ""
    except kernel_log.LogUnreadable as problem:
        log, why = None, f"the kernel's log cannot be read: {problem}"
    addresses: List[str] = []
    lost: List[Absent] = []
    try:
        with session() as nvml:
            gpus, lost = nvml.gpus()
            for one in lost:
                ctx.measure("responds", False, note=one.note)
            linked = [gpu.uuid for gpu in gpus if _has_active_links(gpu)]
            for gpu in gpus:
                with ctx.subject(gpu.uuid):
                    _measure(ctx, gpu, any(uuid != gpu.uuid for uuid in linked))
                    address = gpu.pci_address()
                    if isinstance(address, Absent):
                        ctx.unknown("xid", f"the GPU's PCI address is unknown: {address.note}", gpu.uuid)
                    else:
                        addresses.append(address)
                        _events(ctx, log, why, address, gpu.uuid)
            if not gpus:
                raise NvmlFailure("no_gpu", "; ".join(one.note for one in lost) or "NVML counts no GPU")
    except NvmlFailure:
        if lost or _gpus_on_bus():
            _host(ctx, log, why, addresses)
            raise
        # A clean log of a host without a GPU is nothing to be judged; a fault in it is.
        for event in xid.xids(log.lines) if log is not None else ():
            _event(ctx, "xid", event, HOST)
        raise Skip("no NVIDIA GPU on the PCI bus") from None
    _host(ctx, log, why, addresses)


def _gpus_on_bus() -> bool:
    devices = pci.nvidia_devices(Files())
    return devices is None or any(device.is_gpu for device in devices)  # None: not known to be without one


def _has_active_links(gpu: Gpu) -> bool:
    links = gpu_links.active_links(gpu)
    return not isinstance(links, Absent) and bool(links[1])


def _measure(ctx: Context, gpu: Gpu, peer_links_active: bool) -> None:
    found: List[Found] = [
        *gpu_memory.read(gpu),
        *gpu_links.read(gpu, peer_links_active),
        *gpu_state.read(gpu),
    ]
    gone = [one.reading for one in found if isinstance(one.reading, Absent)]
    gone = [reading for reading in gone if reading.code in (GPU_IS_LOST, RESET_REQUIRED)]
    ctx.measure("responds", not gone, gpu.uuid, note=gone[0].note if gone else "")
    for one in found:
        report(ctx, one, gpu.uuid)


def _events(ctx: Context, log: Optional[kernel_log.KernelLog], why: str, address: str, subject: str) -> None:
    if log is None:
        ctx.unknown("xid", why, subject)
        return
    here = [event for event in xid.xids(log.lines) if _same_device(event.pci_address, address)]
    for event in here:
        _event(ctx, "xid", event, subject)
    if not here:
        ctx.measure("xid", "none", subject)


def _same_device(one: str, other: str) -> bool:
    return one.rpartition(".")[0] == other.rpartition(".")[0]


def _event(ctx: Context, metric: str, event: xid.Event, subject: str) -> None:
    labels = {
        "count": str(event.count),
        "first": f"{event.first_s:.0f} s after boot",
        "last": f"{event.last_s:.0f} s after boot",
        "pci_address": event.pci_address,
    }
    ctx.measure(metric, str(event.number), subject, labels, event.line)


def _host(ctx: Context, log: Optional[kernel_log.KernelLog], why: str, addresses: List[str]) -> None:
    """What the log says of NVSwitches, of GPUs that NVML no longer reaches, and of itself."""
    if log is None:
        for metric in ("kernel_log_complete", "sxid", "gpu_start_failures"):
            report(ctx, Found(metric, Absent(UNKNOWN, why)))
        return
    ctx.measure("kernel_log_complete", log.complete, labels={"source": log.source, "lines": str(len(log.lines))})
    failures = xid.start_failures(log.lines)
    ctx.measure("gpu_start_failures", len(failures), note="; ".join(list(failures.values())[:8]))
    switches = xid.sxids(log.lines)
    for event in switches:
        _event(ctx, "sxid", event, HOST)
    if not switches:
        ctx.measure("sxid", "none")
    for event in xid.xids(log.lines):
        if not any(_same_device(event.pci_address, address) for address in addresses):
            _event(ctx, "xid", event, HOST)
