"""The written software list of a host: driver, CUDA, containers, frameworks, from files where there are files."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import sys
from typing import Callable, Dict, List, Mapping, Optional, Sequence

from validators.check import Context, Metric, check
from validators.probes import command, driver, kernel_log, packages, pci, pythons
from validators.probes.driver import Tool
from validators.probes.sysfs import Files

METRICS = (
    Metric("nouveau_loaded", "bool", "whether the nouveau module holds the cards"),
    Metric("module_loaded_version", "version", "version of the nvidia module in the running kernel"),
    Metric("module_flavour", "text", "open or proprietary: of the loaded module, else of its file"),
    Metric(
        "module_for_kernel", "bool", "whether an nvidia module exists for the running kernel (labels: path, kernel)"
    ),
    Metric("module_file_version", "version", "version of that file"),
    Metric("module_package_version", "version", "version of the package that brings the module (labels: package)"),
    Metric("userspace_version", "version", "version of a driver library (labels: library, path)"),
    Metric("driver_consistent", "bool", "whether the loaded module and libnvidia-ml are the same version"),
    Metric("device_nodes", "count", "/dev/nvidia0, /dev/nvidia1, ..."),
    Metric("device_control_node", "bool", "whether /dev/nvidiactl is there"),
    Metric("uvm_node", "bool", "whether /dev/nvidia-uvm is there: CUDA needs it"),
    Metric("device_nodes_open", "bool", "whether this user may read and write the device nodes"),
    Metric("fabric_manager", "version", "Fabric Manager's package: must be the driver's version"),
    Metric("cuda_toolkit", "version", "the CUDA toolkit that /usr/local/cuda or PATH leads to (labels: path)"),
    Metric("cuda_toolkit_other", "version", "another CUDA toolkit on this host (labels: path)"),
    Metric("container_toolkit", "version", "NVIDIA Container Toolkit"),
    Metric("docker", "version", "Docker"),
    Metric("podman", "version", "Podman"),
    Metric("nvtop", "version", "nvtop"),
    Metric("python", "version", "the Python that runs this bundle (labels: path)"),
    Metric("framework_version", "version", "a framework, by its metadata (labels: framework, python, origin)"),
    Metric("framework_elsewhere", "version", "the same framework in a Python further down the order"),
)

_TOOLS: Mapping[str, Mapping[str, object]] = {
    "container_toolkit": {
        "packages": ("nvidia-container-toolkit", "nvidia-container-toolkit-base"),
        "tool": "nvidia-ctk",
    },
    "docker": {"packages": ("docker-ce", "docker.io", "moby-engine"), "tool": "docker"},
    "podman": {"packages": ("podman",), "tool": "podman"},
    "nvtop": {"packages": ("nvtop",), "tool": "nvtop"},
}
"""Metric -> the packages that bring it, and the tool whose --version tells where no package does."""


NO_GPU = "no NVIDIA GPU on the PCI bus"


def _run(argv: Sequence[str]) -> command.Ran:
    return command.run(argv, timeout_s=5.0)


@check(
    catches="a module that does not match its libraries, a driver for another kernel, a missing or older package",
    level=1,
    seconds=0.3,
    timeout_s=30,
    metrics=METRICS,
)
def software(ctx: Context) -> None:
    """The driver's module, package and libraries, CUDA, container tools, and the frameworks in each Python."""
    collect(ctx, Files(), _run, _kernel_messages)
    _frameworks(ctx)


def _kernel_messages() -> List[str]:
    try:
        return [line.text for line in kernel_log.read().lines]
    except kernel_log.LogUnreadable:
        return []  # it only explains: what it is about was measured without it


def collect(ctx: Context, files: Files, tool: Tool, kernel_messages: Callable[[], Sequence[str]] = tuple) -> None:
    """Measure the host whose files, tools and kernel log these are, but for its Pythons."""
    kernel = files.text("/proc/sys/kernel/osrelease") or platform.release()
    installed = packages.installed(files)
    now = driver.loaded(files)
    devices = pci.nvidia_devices(files)
    without_gpu = devices is not None and not any(device.is_gpu for device in devices)
    _module(ctx, files, tool, kernel=kernel, now=now, expected=not without_gpu or _has_driver(files, installed, kernel))
    if not now.version and not driver.is_loaded(files, "nvidia"):
        _not_loaded(ctx, driver.module_files(files, kernel), without_gpu, kernel_messages)
    _packages(ctx, installed, kernel)
    _libraries(ctx, files, tool, now)
    _nodes(ctx, files, without_gpu)
    _cuda(ctx, files, installed or {}, tool)
    _tools(ctx, installed or {}, tool)
    ctx.measure("python", platform.python_version(), labels={"path": sys.executable})


def _has_driver(files: Files, installed: Optional[Mapping[str, str]], kernel: str) -> bool:
    """Whether somebody has installed a driver here, GPU or not: by its package, or a module for any kernel."""
    return bool(driver.module_packages(installed or {}, kernel) or driver.kernels_with_module(files))


def _not_loaded(
    ctx: Context, paths: Sequence[str], without_gpu: bool, kernel_messages: Callable[[], Sequence[str]]
) -> None:
    note = "no nvidia module is loaded"
    if paths:
        reason = driver.last_attempt(kernel_messages())
        note += f"; {paths[0]} is there for this kernel"
        note += f", and {NO_GPU}" if without_gpu else ""
        note += f'; the kernel\'s log: "{reason}"' if reason else ""
    ctx.not_applicable("module_loaded_version", note)


def _module(ctx: Context, files: Files, tool: Tool, *, kernel: str, now: driver.Loaded, expected: bool) -> None:
    """`expected`: a module for this kernel should be here, since there is a GPU or an installed driver."""
    is_loaded = bool(now.version) or driver.is_loaded(files, "nvidia")
    ctx.measure("nouveau_loaded", driver.is_loaded(files, "nouveau"))
    if now.version:
        ctx.measure("module_loaded_version", now.version)
    elif is_loaded:
        ctx.unknown("module_loaded_version", f"nvidia is loaded; {files.why(driver.PROC_VERSION)}")
    paths = driver.module_files(files, kernel)
    labels = {"kernel": kernel, "path": paths[0] if paths else ""}
    on_disk = driver.Loaded()
    if paths:
        answer = tool(("modinfo", paths[0]))
        on_disk = driver.modinfo(answer.stdout)
        ctx.measure("module_for_kernel", True, labels=labels)
        if on_disk.version:
            ctx.measure("module_file_version", on_disk.version, labels={"path": paths[0]})
        else:
            ctx.unknown("module_file_version", answer.problem or f"modinfo {paths[0]} names no version")
    elif is_loaded:
        labels["path"] = "/sys/module/nvidia"
        ctx.measure("module_for_kernel", True, labels=labels, note="it is loaded; no file of it below /lib/modules")
        ctx.not_applicable("module_file_version", f"no module file below /lib/modules/{kernel}")
    elif not expected:
        ctx.not_applicable("module_for_kernel", NO_GPU, labels=labels)
        ctx.not_applicable("module_file_version", NO_GPU)
    else:
        labels["other_kernels"] = " ".join(driver.kernels_with_module(files))
        labels["build_log"] = " ".join(driver.build_logs(files, kernel))
        ctx.measure("module_for_kernel", False, labels=labels, note=f"no nvidia module below /lib/modules/{kernel}")
        ctx.not_applicable("module_file_version", f"no module file below /lib/modules/{kernel}")
    if now.flavour or on_disk.flavour:
        ctx.measure("module_flavour", now.flavour or on_disk.flavour, labels={"loaded": "yes" if now.flavour else "no"})
    elif is_loaded or paths:
        ctx.unknown("module_flavour", f"neither {driver.PROC_VERSION} nor modinfo's licence tells")
    else:
        ctx.not_applicable("module_flavour", "there is no nvidia module")


def _packages(ctx: Context, installed: Optional[Mapping[str, str]], kernel: str) -> None:
    if installed is None:
        for metric in ("module_package_version", "fabric_manager"):
            ctx.unknown(metric, f"no {packages.STATUS}: not a Debian or Ubuntu, or an image without dpkg")
        return
    found = driver.module_packages(installed, kernel)
    for name, version in sorted(found.items()):
        ctx.measure("module_package_version", version, labels={"package": name})
    if not found:
        ctx.not_applicable("module_package_version", "no package brings an nvidia module")
    managers = [name for name in installed if re.fullmatch(r"nvidia-fabricmanager(-\d+)?", name)]
    for name in managers:
        ctx.measure("fabric_manager", packages.upstream(installed[name]), labels={"package": name})
    if not managers:
        ctx.not_applicable("fabric_manager", "not installed")


def _libraries(ctx: Context, files: Files, tool: Tool, now: driver.Loaded) -> None:
    answer = tool(("/sbin/ldconfig", "-p"))
    found = driver.libraries(files, answer.stdout)
    for name in driver.LIBRARIES:
        path, version = found.get(name, ("", ""))
        labels = {"library": name.partition(".")[0], "path": path}
        if version:
            ctx.measure("userspace_version", version, labels=labels)
        elif path:
            ctx.unknown("userspace_version", f"{path} does not carry its version in its name", labels=labels)
        else:
            ctx.not_applicable("userspace_version", f"no {name} on this host {answer.problem}".strip(), labels=labels)
    management = found.get("libnvidia-ml.so.1", ("", ""))[1]
    if now.version and management:
        # libcuda may be newer on purpose (the cuda-compat package); libnvidia-ml never may.
        ctx.measure("driver_consistent", now.version == management, note=f"module {now.version}, library {management}")
    elif not now.version:
        ctx.not_applicable("driver_consistent", "no nvidia module is loaded")
    else:
        ctx.unknown("driver_consistent", "no libnvidia-ml.so.1 whose version is known")


def _nodes(ctx: Context, files: Files, without_gpu: bool) -> None:
    cards = [f"/dev/{name}" for name in files.names("/dev") if re.fullmatch(r"nvidia\d+", name)]
    cards = [path for path in cards if files.is_device(path)]
    control, uvm = files.is_device("/dev/nvidiactl"), files.is_device("/dev/nvidia-uvm")
    ctx.measure("device_nodes", len(cards))
    ctx.measure("device_control_node", control)
    if without_gpu and not uvm:
        ctx.not_applicable("uvm_node", NO_GPU)
    else:
        ctx.measure("uvm_node", uvm)
    if not cards and not control:
        ctx.not_applicable("device_nodes_open", "no device nodes")
        return
    nodes = cards + (["/dev/nvidiactl"] if control else []) + (["/dev/nvidia-uvm"] if uvm else [])
    shut = [path for path in nodes if not os.access(files.root + path, os.R_OK | os.W_OK)]
    ctx.measure("device_nodes_open", not shut, note=f"this user may not open {', '.join(shut)}" if shut else "")


def _cuda(ctx: Context, files: Files, installed: Mapping[str, str], tool: Tool) -> None:
    found: Dict[str, str] = {}
    silent = ""
    for name in ["cuda", *(name for name in files.names("/usr/local") if re.fullmatch(r"cuda-\d+(\.\d+)?", name))]:
        path = files.real(f"/usr/local/{name}")
        version = toolkit_version(files, path) or nvcc_version(
            tool((f"{files.root}{path}/bin/nvcc", "--version")).stdout
        )
        if version:
            found.setdefault(path, version)
        elif files.exists(path):
            silent = f"{path} is there, and neither version.json, version.txt nor bin/nvcc tells its version"
    debian = installed.get("nvidia-cuda-toolkit")
    if debian:
        found.setdefault("/usr/bin/nvcc", packages.upstream(debian))
    if not found:
        version = nvcc_version(tool(("nvcc", "--version")).stdout)
        if version:
            found["nvcc"] = version
    if not found and silent:
        ctx.unknown("cuda_toolkit", silent)
    elif not found:
        ctx.not_applicable("cuda_toolkit", "not installed: no /usr/local/cuda*, no nvcc")
    for number, (path, version) in enumerate(found.items()):
        ctx.measure("cuda_toolkit_other" if number else "cuda_toolkit", version, labels={"path": path})


def nvcc_version(text: str) -> str:
    """The version in what `nvcc --version` prints ("release 13.0, V13.0.88" is 13.0.88); empty where there is none."""
    release = re.search(r"^Cuda compilation tools, release \d+\.\d+, V(\d+(?:\.\d+)+)", text, re.MULTILINE)
    return release.group(1) if release else ""


def toolkit_version(files: Files, path: str) -> str:
    """The version of the toolkit below a folder: version.json (11.1 and newer) or version.txt; empty where neither."""
    text = files.text(f"{path}/version.json") or ""
    try:
        return str(json.loads(text)["cuda"]["version"])
    except (ValueError, LookupError, TypeError):
        old = re.match(r"CUDA Version (\d+(?:\.\d+)+)$", files.text(f"{path}/version.txt") or "")
        return old.group(1) if old else ""


def _tools(ctx: Context, installed: Mapping[str, str], tool: Tool) -> None:
    for metric, how in _TOOLS.items():
        name, brings = str(how["tool"]), how["packages"]
        package = next((one for one in brings if one in installed), "") if isinstance(brings, tuple) else ""
        if package:
            ctx.measure(metric, packages.upstream(installed[package]), labels={"package": package})
            continue
        answer = tool((name, "--version"))
        version = re.search(r"\bversion:? v?(\d+(?:\.\d+)+)", answer.stdout)
        if version:
            ctx.measure(metric, version.group(1), labels={"path": shutil.which(name) or name})
        elif answer.returncode is None and answer.problem.endswith("is not there"):
            ctx.not_applicable(metric, f"not installed: no package, no {name} on PATH")
        else:
            ctx.unknown(metric, answer.problem or f"{name} --version names no version")


def _frameworks(ctx: Context) -> None:
    order = {name: pythons.candidates(ctx.plan, name) for name in pythons.FRAMEWORKS}
    distinct = {one.path: one for wanted in order.values() for one in wanted}
    asked = {one.path: one for one in pythons.inspect(list(distinct.values()))}
    for framework, wanted in order.items():
        found: List[pythons.Interpreter] = [asked[one.path] for one in wanted if asked[one.path].version_of(framework)]
        for number, one in enumerate(found):
            labels = {"framework": framework, "python": one.path, "origin": one.origin}
            metric = "framework_elsewhere" if number else "framework_version"
            ctx.measure(metric, one.version_of(framework), labels=labels)
        if not found:
            looked = ", ".join(one.path for one in wanted) or "no python3 at all"
            ctx.not_applicable(
                "framework_version", f"not installed; looked at {looked}", labels={"framework": framework}
            )
