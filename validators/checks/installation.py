"""What an installation would meet: packages and their state, apt's sources and locks, kernels, keys, who is at work."""

from __future__ import annotations

import os
import platform
import re
from typing import Dict, List, Optional, Sequence

from validators.check import Context, Metric, check
from validators.probes import apt, command, dpkg, driver, gpu_users, kernels
from validators.probes.driver import Tool
from validators.probes.packages import STATUS
from validators.probes.sysfs import Files

METRICS = (
    Metric("package", "version", "an installed package that matters here (labels: name, vendor, origin, archive)"),
    Metric("package_held", "text", "a package that apt must not change: its selection is hold (labels: version)"),
    Metric("package_pin", "text", "apt preferences about NVIDIA, CUDA or everything (labels: pin, priority, file)"),
    Metric("package_broken", "text", "a package left half-way (labels: state, version)"),
    Metric("packages_broken", "count", "how many there are: apt installs nothing before they are mended"),
    Metric("dpkg_interrupted", "bool", "whether dpkg left a journal: it wants `dpkg --configure -a`"),
    Metric("apt_source", "text", "where apt fetches from: scheme and host, no credentials (labels: suite, file)"),
    Metric("apt_lock", "text", "a lock of apt or dpkg that is held now, or none (labels: pid, program)"),
    Metric("unattended_upgrades", "bool", "whether packages are upgraded by themselves at night"),
    Metric("dkms_module", "version", "a module that DKMS manages (labels: module, kernel, state)"),
    Metric("kernel_headers", "bool", "whether headers of the running kernel are there (labels: kernel)"),
    Metric("kernel_headers_offered", "bool", "whether they are installed, or in apt's lists"),
    Metric("kernel_next", "text", "newest kernel in /boot: what the next boot starts (labels: headers, module)"),
    Metric("reboot_required", "bool", "whether packages ask for a reboot (labels: packages)"),
    Metric("signing_key_enrolled", "bool", "whether the firmware trusts what DKMS signs with (labels: certificate)"),
    Metric("run_installer", "text", "traces of a driver from NVIDIA's .run file, or none (labels: version)"),
    Metric("gpu_processes", "count", "processes that hold /dev/nvidia* open, where all could be looked into"),
    Metric("gpu_process", "text", "one of them (labels: pid, nodes)"),
    Metric(
        "disk_free",
        "MiB",
        "what an installation can still write (labels: path, device: paths of one file system share it)",
    ),
    Metric("python_available", "version", "a python3.N on the usual paths, by its name (labels: path)"),
    Metric("cloud_init", "text", "whether cloud-init is running, done or absent: it installs packages too"),
)

_OF_INTEREST = re.compile(
    r"(lib)?nvidia-.*|libcuda1|libcudadebugger1|lib(nvcuvid|xnvctrl|nvoptix|nvsdm)\S*|(xserver-xorg-video|firmware)-nvidia\S*"
    r"|linux-(modules|objects|signatures)-nvidia-\S*|cuda(-\d\S*|-drivers\S*|-toolkit\S*|-runtime-\S*|-keyring|-compat-\S*)?"
    r"|nvlink5?(-\d+)?|nvlsm|libcudnn\d+(-cuda-\d+)?|libnccl2|datacenter-gpu-manager\S*"
    r"|docker-ce|docker\.io|moby-engine|podman|containerd(\.io)?|nvtop"
    r"|dkms|linux-headers-\S*|linux-image-\S*|mokutil|shim-signed|unattended-upgrades"
)
_BY_ORIGIN = re.compile(r"(lib)?nvidia-.*|cuda-.*|libcuda1|linux-modules-nvidia-\S*|docker-ce|docker\.io")
_OF_PINS = re.compile(r"nvidia|cuda|(^|\s)\*(\s|$)", re.IGNORECASE)
_MAX_EACH = 200
_RUN_FILES = ("/usr/bin/nvidia-uninstall", "/usr/bin/nvidia-installer", "/usr/local/bin/nvidia-uninstall")
_INSTALLER_LOG = "/var/log/nvidia-installer.log"
_PLACES = ("/", "/var", "/usr", "/opt", "/boot")
_CLOUD_INIT = "/run/cloud-init"


def _run(argv: Sequence[str]) -> command.Ran:
    return command.run(argv, timeout_s=5.0)


@check(
    catches="a half-installed package, a held one, a foreign source, a key that is not enrolled, a job on the GPU",
    level=1,
    seconds=0.2,
    timeout_s=30,
    metrics=METRICS,
)
def installation(ctx: Context) -> None:
    """What provisioning meets: packages, holds, apt's sources and locks, kernels, keys, GPU processes, disks."""
    collect(ctx, Files(), _run)


def collect(ctx: Context, files: Files, tool: Tool) -> None:
    """Measure the host whose files and tools these are."""
    release = files.text("/proc/sys/kernel/osrelease") or platform.release()
    known = dpkg.everything(files)
    _packages(ctx, files, known, tool)
    _apt(ctx, files, known)
    _unattended(ctx, files, known)
    _kernels(ctx, files, release)
    _signing_key(ctx, files, tool)
    _run_installer(ctx, files, known)
    _gpu_processes(ctx, files)
    _disks(ctx, files)
    _pythons(ctx, files)
    ctx.measure("cloud_init", cloud_init(files))


def _packages(ctx: Context, files: Files, known: Optional[List[dpkg.Package]], tool: Tool) -> None:
    if known is None:
        why = f"{files.why(STATUS)}: not a Debian or Ubuntu, or an image without dpkg"
        for metric in ("package", "package_held", "package_broken", "packages_broken", "dpkg_interrupted"):
            ctx.unknown(metric, why)
        return
    wanted = [one for one in known if one.is_installed and _OF_INTEREST.fullmatch(one.name)][:_MAX_EACH]
    origins = apt.origins(files, {one.name: one.version for one in wanted if _BY_ORIGIN.fullmatch(one.name)})
    strange = {
        one.name: one.version
        for one in wanted
        if one.vendor == "other" and one.name not in origins and _BY_ORIGIN.fullmatch(one.name)
    }
    origins.update(apt.asked_origins(files, strange, tool))
    for one in wanted:
        origin = origins.get(one.name, apt.Origin("", ""))
        labels = {"name": one.name, "vendor": one.vendor, "origin": origin.site, "archive": origin.label}
        ctx.measure("package", one.version, labels=labels)
    if not wanted:
        ctx.not_applicable("package", "none of the packages that matter here is installed")
    held = [one for one in known if one.want == "hold"]
    for one in held[:_MAX_EACH]:
        ctx.measure("package_held", one.name, labels={"version": one.version})
    if not held:
        ctx.not_applicable("package_held", "no package is on hold")
    broken = [one for one in known if one.is_broken]
    for one in broken[:_MAX_EACH]:
        labels = {"state": one.state if one.flag == "ok" else f"{one.state} {one.flag}", "version": one.version}
        ctx.measure("package_broken", one.name, labels=labels)
    if not broken:
        ctx.not_applicable("package_broken", "no package is half-installed, unpacked or half-configured")
    ctx.measure("packages_broken", len(broken))
    ctx.measure("dpkg_interrupted", dpkg.was_interrupted(files))


def _apt(ctx: Context, files: Files, known: Optional[List[dpkg.Package]]) -> None:
    sources = apt.sources(files)
    for one in sources[:_MAX_EACH]:
        labels = {"suite": one.suite, "components": one.components, "file": one.file}
        ctx.measure("apt_source", one.site, labels=labels)
    if not sources:
        ctx.not_applicable("apt_source", "apt has no sources here")
    pins = [one for one in apt.pins(files) if _OF_PINS.search(f"{one.package} {one.pin}")]
    for pin in pins[:_MAX_EACH]:
        labels = {"pin": pin.pin, "priority": pin.priority, "file": pin.file}
        ctx.measure("package_pin", pin.package, labels=labels)
    if not pins:
        ctx.not_applicable("package_pin", "no apt preferences about NVIDIA, CUDA or everything")
    holders = dpkg.lock_holders(files)
    if holders is None:
        ctx.unknown("apt_lock", files.why("/proc/locks"))
    elif known is None:
        ctx.not_applicable("apt_lock", "there is no dpkg here")
    elif not holders:
        ctx.measure("apt_lock", "none")
    for holder in holders or ():
        labels = {"pid": str(holder.pid), "program": holder.program}
        ctx.measure("apt_lock", holder.lock, labels=labels)


def _unattended(ctx: Context, files: Files, known: Optional[List[dpkg.Package]]) -> None:
    if known is None:
        ctx.unknown("unattended_upgrades", files.why(STATUS))
        return
    there = any(one.name == "unattended-upgrades" and one.is_installed for one in known)
    on = apt.settings(files).get("apt::periodic::unattended-upgrade", "0")
    ctx.measure("unattended_upgrades", there and on not in ("0", "", "false", "no"))


def _kernels(ctx: Context, files: Files, release: str) -> None:
    running = kernels.kernel(files, release)
    ctx.measure("kernel_headers", running.headers, labels={"kernel": release})
    offered = True if running.headers else apt.in_lists(files, f"linux-headers-{release}")
    if offered is None:
        ctx.unknown("kernel_headers_offered", "apt's lists are kept compressed, or there are none")
    else:
        ctx.measure("kernel_headers_offered", offered, labels={"kernel": release})
    newest = kernels.next_boot(files)
    if newest:
        coming = kernels.kernel(files, newest)
        labels = {"headers": _yes(coming.headers), "module": _yes(coming.module), "running": _yes(newest == release)}
        ctx.measure("kernel_next", newest, labels=labels)
    else:
        ctx.not_applicable("kernel_next", "no kernel in /boot: it comes from outside (a container, a direct boot)")
    packages = (files.text("/run/reboot-required.pkgs", 4096) or "").split()
    asked = files.exists("/run/reboot-required")
    ctx.measure("reboot_required", asked, labels={"packages": " ".join(dict.fromkeys(packages))[:1000]})
    builds = kernels.dkms(files)
    for one in builds[:_MAX_EACH]:
        labels = {"module": one.module, "kernel": one.kernel, "state": one.state}
        ctx.measure("dkms_module", one.version, labels=labels)
    if not builds:
        ctx.not_applicable("dkms_module", "DKMS manages no module here")


def _signing_key(ctx: Context, files: Files, tool: Tool) -> None:
    if not files.exists("/sys/firmware/efi"):
        ctx.not_applicable("signing_key_enrolled", "not started through EFI: no /sys/firmware/efi")
        return
    certificate = kernels.signing_certificate(files)
    if not certificate:
        ctx.not_applicable("signing_key_enrolled", "no key yet: DKMS makes one when it first signs a module")
        return
    enrolled, how = kernels.is_enrolled(files, certificate, tool)
    labels = {"certificate": certificate}
    if enrolled is None:
        ctx.unknown("signing_key_enrolled", how, labels=labels)
    else:
        ctx.measure("signing_key_enrolled", enrolled, labels=labels, note=how)


def _run_installer(ctx: Context, files: Files, known: Optional[List[dpkg.Package]]) -> None:
    path = next((one for one in _RUN_FILES if files.exists(one)), "")
    if not path:
        ctx.measure("run_installer", "none")
        return
    log = files.text(_INSTALLER_LOG, 65536) or ""
    version = re.search(r"^installer version: (\d{1,4}(?:\.\d{1,4}){1,3})$", log, re.MULTILINE)
    found = version.group(1) if version else driver.loaded(files).version
    ctx.measure("run_installer", path, labels={"version": found})


def _gpu_processes(ctx: Context, files: Files) -> None:
    if not any(name.startswith("nvidia") for name in files.names("/dev")):
        ctx.not_applicable("gpu_processes", "no /dev/nvidia* on this host")
        return
    found, hidden = gpu_users.users(files)
    if hidden:
        seen = f"; {len(found)} of this user's own hold them" if found else ""
        ctx.unknown("gpu_processes", f"{hidden} processes of other users cannot be looked into without root{seen}")
    else:
        ctx.measure("gpu_processes", len(found))
    for one in found[:_MAX_EACH]:
        ctx.measure("gpu_process", one.program, labels={"pid": str(one.pid), "nodes": " ".join(one.nodes)[:500]})


def _disks(ctx: Context, files: Files) -> None:
    for path in _PLACES:
        try:
            free, device = os.statvfs(files.root + path), os.stat(files.root + path).st_dev
        except OSError as problem:
            if path != "/boot":  # a container has none, and needs none
                ctx.unknown("disk_free", f"{path}: {problem.strerror}", labels={"path": path})
            continue
        ctx.measure("disk_free", free.f_bavail * free.f_frsize >> 20, labels={"path": path, "device": str(device)})


def _pythons(ctx: Context, files: Files) -> None:
    found: Dict[str, str] = {}
    for folder in ("/usr/bin", "/usr/local/bin"):
        for name in files.names(folder):
            match = re.fullmatch(r"python(3\.\d+)", name)
            if match:
                found.setdefault(match.group(1), f"{folder}/{name}")
    for version, path in sorted(found.items()):
        ctx.measure("python_available", version, labels={"path": path})
    if not found:
        ctx.not_applicable("python_available", "no python3.N in /usr/bin or /usr/local/bin")


def cloud_init(files: Files) -> str:
    """How far cloud-init is: absent, disabled, running or done."""
    if files.exists(f"{_CLOUD_INIT}/result.json"):
        return "done"
    if files.exists(f"{_CLOUD_INIT}/disabled"):
        return "disabled"
    if files.exists(f"{_CLOUD_INIT}/status.json") or files.exists(f"{_CLOUD_INIT}/enabled"):
        return "running"
    return "absent"


def _yes(flag: bool) -> str:
    return "yes" if flag else "no"
