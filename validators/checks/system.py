"""What the machine is made of, with no driver and no root: every figure is from sysfs, procfs or /etc."""

from __future__ import annotations

import platform
import re
import shutil
from typing import Dict, List, Optional, Set, Tuple

from validators.check import Context, Metric, check
from validators.probes import pci
from validators.probes.sysfs import Files

_SECURE_BOOT = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
_CPU = "/sys/devices/system/cpu"
_BLOCK = "/sys/class/block"
_DMI = "/sys/class/dmi/id"
_NOT_DISKS = ("loop", "ram", "zram", "dm-", "md", "sr", "fd", "nbd")
_MIB = 2**20

METRICS = (
    Metric("os_id", "text", "distribution: ID of /etc/os-release"),
    Metric("os_version", "version", "its VERSION_ID"),
    Metric("os_name", "text", "its PRETTY_NAME"),
    Metric("kernel_release", "text", "uname -r"),
    Metric("architecture", "text", "uname -m"),
    Metric("cpu_model", "text", "model name of the first processor"),
    Metric("cpu_sockets", "count", "processor packages"),
    Metric("cpu_cores", "count", "physical cores"),
    Metric("cpu_threads", "count", "logical processors online"),
    Metric("numa_nodes", "count", "NUMA nodes"),
    Metric("memory_total", "MiB", "MemTotal: installed memory less what firmware and kernel keep"),
    Metric("disk_size", "MiB", "size of one disk (labels: device, model, rotational)"),
    Metric("disk_total", "MiB", "sum of all disks"),
    Metric("root_total", "MiB", "size of the root file system"),
    Metric("root_free", "MiB", "what an ordinary user can still write on the root file system"),
    Metric("board", "text", "motherboard: vendor and name"),
    Metric("product", "text", "system: vendor and product name"),
    Metric("bios", "text", "firmware: vendor, version, date"),
    Metric("gpu_count", "count", "NVIDIA GPUs on the PCI bus, driver or not"),
    Metric("pci_gpu", "text", "PCI id of one GPU (labels: address, driver, subsystem, class)"),
    Metric("gpu_model", "text", "NVIDIA's name for that PCI id (labels: address)"),
    Metric("nvswitch_count", "count", "NVSwitches on the PCI bus"),
    Metric("secure_boot", "bool", "whether Secure Boot is on: then only signed modules load"),
    Metric("virtualisation", "text", "hypervisor that the host runs under, or none"),
    Metric("container", "text", "container that this runs in, or none"),
    Metric("iommu", "bool", "whether the kernel uses an IOMMU"),
    Metric("boot_id", "text", "changes with every boot"),
    Metric("uptime", "s", "since boot"),
)


@check(
    catches="a card that fell off the bus, a missing DIMM or disk, another model than was ordered",
    level=1,
    seconds=0.1,
    timeout_s=20,
    metrics=METRICS,
)
def system(ctx: Context) -> None:
    """The parts of the machine: OS, processors, memory, disks, board, and each NVIDIA device on the PCI bus."""
    collect(ctx, Files())


def collect(ctx: Context, files: Files) -> None:
    """Measure the host whose files these are."""
    _operating_system(ctx, files)
    _processors(ctx, files)
    _memory(ctx, files)
    _disks(ctx, files)
    _board(ctx, files)
    _gpus(ctx, files)
    _firmware_and_walls(ctx, files)


def _operating_system(ctx: Context, files: Files) -> None:
    release = parse_os_release(files.text("/etc/os-release") or files.text("/usr/lib/os-release") or "")
    for metric, key in (("os_id", "ID"), ("os_name", "PRETTY_NAME")):
        _text(ctx, metric, release.get(key, ""), f"/etc/os-release has no {key}")
    if release.get("VERSION_ID"):
        ctx.measure("os_version", release["VERSION_ID"])
    elif release.get("ID"):
        ctx.not_applicable("os_version", "a distribution without releases: no VERSION_ID in /etc/os-release")
    else:
        ctx.unknown("os_version", files.why("/etc/os-release"))
    kernel = files.text("/proc/sys/kernel/osrelease")
    _text(ctx, "kernel_release", kernel or "", files.why("/proc/sys/kernel/osrelease"))
    ctx.measure("architecture", platform.machine())
    boot = files.text("/proc/sys/kernel/random/boot_id")
    _text(ctx, "boot_id", boot or "", files.why("/proc/sys/kernel/random/boot_id"))
    uptime = re.match(r"\d+(\.\d+)?", files.text("/proc/uptime") or "")
    if uptime:
        ctx.measure("uptime", float(uptime.group()))
    else:
        ctx.unknown("uptime", files.why("/proc/uptime"))


def parse_os_release(text: str) -> Dict[str, str]:
    """The variables of an os-release file, unquoted."""
    found = {}
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        if equals and re.fullmatch(r"[A-Z][A-Z0-9_]*", name):
            found[name] = value.strip().strip("\"'")
    return found


def _processors(ctx: Context, files: Files) -> None:
    info = files.text("/proc/cpuinfo", 16384) or ""
    model = re.search(r"^model name\s*:\s*(.+)$", info, re.MULTILINE)
    _text(ctx, "cpu_model", model.group(1).strip() if model else "", "/proc/cpuinfo has no model name")
    sockets: Set[int] = set()
    cores: Set[Tuple[int, int]] = set()
    threads = [name for name in files.names(_CPU) if re.fullmatch(r"cpu\d+", name)]
    threads = [name for name in threads if files.number(f"{_CPU}/{name}/online") != 0]
    for name in threads:
        socket = files.number(f"{_CPU}/{name}/topology/physical_package_id")
        core = files.number(f"{_CPU}/{name}/topology/core_id")
        if socket is not None and core is not None:
            sockets.add(socket)
            cores.add((socket, core))
    nodes = [name for name in files.names("/sys/devices/system/node") if re.fullmatch(r"node\d+", name)]
    for metric, number in (
        ("cpu_sockets", len(sockets)),
        ("cpu_cores", len(cores)),
        ("cpu_threads", len(threads)),
        ("numa_nodes", len(nodes)),
    ):
        _count(ctx, metric, number or None, f"{_CPU} does not tell")


def _memory(ctx: Context, files: Files) -> None:
    total = re.search(r"^MemTotal:\s*(\d+) kB$", files.text("/proc/meminfo") or "", re.MULTILINE)
    _count(ctx, "memory_total", int(total.group(1)) // 1024 if total else None, files.why("/proc/meminfo"))


def _disks(ctx: Context, files: Files) -> None:
    sizes: List[int] = []
    for name in files.names(_BLOCK):
        place = f"{_BLOCK}/{name}"
        if name.startswith(_NOT_DISKS) or files.exists(f"{place}/partition") or not files.exists(f"{place}/device"):
            continue
        sectors = files.number(f"{place}/size")
        if not sectors:
            continue
        rotational = files.number(f"{place}/queue/rotational")
        labels = {
            "device": name,
            "model": files.text(f"{place}/device/model", 256) or "",
            "rotational": {0: "no", 1: "yes"}.get(-1 if rotational is None else rotational, "unknown"),
        }
        sizes.append(sectors * 512)
        ctx.measure("disk_size", sectors * 512 // _MIB, labels=labels)
    if sizes:
        ctx.measure("disk_total", sum(sizes) // _MIB)
    else:
        ctx.unknown("disk_total", f"{_BLOCK} shows no disk (inside a container it need not)")
    try:
        usage = shutil.disk_usage(files.root or "/")
        ctx.measure("root_total", usage.total // _MIB)
        ctx.measure("root_free", usage.free // _MIB)
    except OSError as problem:
        for metric in ("root_total", "root_free"):
            ctx.unknown(metric, f"the root file system does not answer: {problem.strerror}")


def _board(ctx: Context, files: Files) -> None:
    tree = files.text("/proc/device-tree/model", 256) or ""
    for metric, names in (
        ("board", ("board_vendor", "board_name")),
        ("product", ("sys_vendor", "product_name")),
        ("bios", ("bios_vendor", "bios_version", "bios_date")),
    ):
        parts = [files.text(f"{_DMI}/{name}", 256) for name in names]
        text = " ".join(part for part in parts if part) or (tree if metric == "board" else "")
        if text:
            ctx.measure(metric, text)
        elif files.exists(_DMI):
            ctx.unknown(metric, f"{_DMI} says nothing about it")
        else:
            ctx.not_applicable(metric, "no SMBIOS tables: a small virtual machine, or a container")


def _gpus(ctx: Context, files: Files) -> None:
    devices = pci.nvidia_devices(files)
    if devices is None:
        for metric in ("gpu_count", "nvswitch_count"):
            ctx.unknown(metric, f"no {pci.DEVICES}: this host shows no PCI bus (a container, or WSL)")
        return
    gpus = [device for device in devices if device.is_gpu]
    ctx.measure("gpu_count", len(gpus))
    ctx.measure("nvswitch_count", sum(device.is_nvswitch for device in devices))
    if not gpus:
        ctx.not_applicable("gpu_model", "no NVIDIA GPU on the PCI bus")
    for gpu in gpus:
        place = {"address": gpu.address}
        labels = {
            **place,
            "driver": gpu.driver,
            "subsystem": gpu.subsystem,
            "class": f"{gpu.pci_class >> 8:04x}",
        }
        ctx.measure("pci_gpu", gpu.id, labels=labels)
        name = pci.name_of(gpu)
        if name:
            ctx.measure("gpu_model", name, labels=place)
        else:
            note = f"{gpu.id} (subsystem {gpu.subsystem}) is not in NVIDIA's list of driver 595"
            ctx.unknown("gpu_model", note, labels=place)


def _firmware_and_walls(ctx: Context, files: Files) -> None:
    variable = files.data(_SECURE_BOOT, 16)
    if not files.exists("/sys/firmware/efi"):
        ctx.not_applicable("secure_boot", "not started through EFI: no /sys/firmware/efi")
    elif variable is not None and len(variable) == 5 and variable[4] in (0, 1):
        ctx.measure("secure_boot", variable[4] == 1)
    else:
        ctx.unknown("secure_boot", files.why(_SECURE_BOOT))
    ctx.measure("virtualisation", virtualisation(files))
    ctx.measure("container", container(files))
    if files.exists("/sys/class/iommu"):
        ctx.measure("iommu", bool(files.names("/sys/class/iommu")))
    else:
        ctx.unknown("iommu", "no /sys/class/iommu")


_HYPERVISORS = (
    ("amazon ec2", "amazon"),
    ("google", "google"),
    ("vmware", "vmware"),
    ("virtualbox", "virtualbox"),
    ("qemu", "qemu"),
    ("kvm", "kvm"),
    ("openstack", "openstack"),
    ("virtual machine", "hyper-v"),
)


def virtualisation(files: Files) -> str:
    """Which hypervisor this runs under, or "none"; "yes" where the processor says so and nothing names it."""
    if "microsoft" in (files.text("/proc/sys/kernel/osrelease") or "").lower():
        return "wsl"
    kind = files.text("/sys/hypervisor/type", 64)
    flagged = re.search(r"^flags\s*:.*\bhypervisor\b", files.text("/proc/cpuinfo", 16384) or "", re.MULTILINE)
    named = " ".join(files.text(f"{_DMI}/{name}", 256) or "" for name in ("sys_vendor", "product_name")).lower()
    if not flagged and not kind and (platform.machine() == "x86_64" or "metal" in named):
        return "none"
    guess = next((name for text, name in _HYPERVISORS if text in named), "")
    return kind or guess or ("yes" if flagged else "none")


def container(files: Files) -> str:
    """Which container this runs in, or "none"."""
    told = files.text("/run/systemd/container", 64)
    if told:
        return told
    if files.exists("/.dockerenv"):
        return "docker"
    if files.exists("/run/.containerenv"):
        return "podman"
    groups = files.text("/proc/1/cgroup", 4096) or ""
    for name in ("docker", "kubepods", "lxc", "libpod"):
        if f"/{name}" in groups:
            return name
    return "none"


def _text(ctx: Context, metric: str, value: str, why_not: str) -> None:
    if value:
        ctx.measure(metric, value)
    else:
        ctx.unknown(metric, why_not)


def _count(ctx: Context, metric: str, value: Optional[int], why_not: str) -> None:
    if value is not None:
        ctx.measure(metric, value)
    else:
        ctx.unknown(metric, why_not)
