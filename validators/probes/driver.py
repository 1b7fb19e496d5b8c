"""The NVIDIA driver's four copies on a host: the loaded module, the module file, the package, the libraries."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Callable, Dict, List, Mapping, Sequence, Tuple

from validators.probes import command
from validators.probes.sysfs import Files

Tool = Callable[[Sequence[str]], command.Ran]
"""How a check runs a tool; tests hand in recorded output."""

PROC_VERSION = "/proc/driver/nvidia/version"
LIBRARIES = ("libcuda.so.1", "libnvidia-ml.so.1")
_LIBRARY_FOLDERS = (
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/usr/local/nvidia/lib64",
    "/usr/lib/wsl/lib",
    "/run/opengl-driver/lib",
)
_DEP_LIMIT_BYTES = 16 << 20
# Debian builds nvidia-current(-open).ko and nvidia-tesla-470.ko; nvidia-uvm.ko and its like are other modules.
_MODULE_FILE = re.compile(
    r"^(\S*/)?nvidia(?:-current|-tesla|-legacy)?(?:-\d+(?:xx)?)?(?:-open)?\.ko(?:\.\w+)?$",
)


@dataclass(frozen=True)
class Loaded:
    """The module in the running kernel; empty where none is loaded or the text is not understood."""

    version: str = ""
    flavour: str = ""


def loaded(files: Files) -> Loaded:
    """What runs. Reads procfs, and /sys/module for the version where that is garbled."""
    found = parse_proc_version(files.text(PROC_VERSION, 4096) or "")
    return Loaded(found.version or files.text("/sys/module/nvidia/version", 64) or "", found.flavour)


def parse_proc_version(text: str) -> Loaded:
    """The version and flavour of /proc/driver/nvidia/version; "Open Kernel Module" is the open one."""
    line = re.search(
        r"^NVRM version: NVIDIA UNIX (Open )?.{0,40}?Kernel Module(?: for \S+)?\s+(\d+(?:\.\d+)+)\s", text, re.MULTILINE
    )
    if not line:
        return Loaded()
    return Loaded(line.group(2), "open" if line.group(1) else "proprietary")


def is_loaded(files: Files, module: str) -> bool:
    """Whether a module is in the running kernel."""
    lines = (files.text("/proc/modules") or "").splitlines()
    return any(line.split(" ", 1)[0] == module for line in lines) or files.exists(f"/sys/module/{module}/initstate")


def module_files(files: Files, kernel: str) -> List[str]:
    """The nvidia module files for a kernel: from modules.dep, or from DKMS's folders where depmod did not run."""
    folder = f"/lib/modules/{kernel}"
    listed = (
        line.partition(":")[0] for line in (files.text(f"{folder}/modules.dep", _DEP_LIMIT_BYTES) or "").split("\n")
    )
    found = [name if name.startswith("/") else f"{folder}/{name}" for name in listed if _MODULE_FILE.match(name)]
    found = [path for path in found if files.exists(path)]
    for place in ("updates/dkms", "updates", "extra", "kernel/drivers/video"):
        names = (name for name in files.names(f"{folder}/{place}") if _MODULE_FILE.match(name))
        found += [path for path in (f"{folder}/{place}/{name}" for name in names) if path not in found]
    return found


def kernels_with_module(files: Files) -> List[str]:
    """All kernels below /lib/modules that have an nvidia module."""
    return [name for name in files.names("/lib/modules")[:64] if module_files(files, name)]


def build_logs(files: Files, kernel: str) -> List[str]:
    """Logs of DKMS builds of an nvidia module that are still lying there: a build that did not end well."""
    found = []
    for name in files.names("/var/lib/dkms"):
        if name.startswith("nvidia"):
            for version in files.names(f"/var/lib/dkms/{name}"):
                log = f"/var/lib/dkms/{name}/{version}/build/make.log"
                built = f"/var/lib/dkms/{name}/{version}/{kernel}"
                if files.exists(log) and not files.exists(built):
                    found.append(log)
    return found


def modinfo(text: str) -> Loaded:
    """Version and flavour of `modinfo`'s output; the licence tells the flavour."""
    fields: Dict[str, str] = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    licence = fields.get("license", "")
    flavour = {"NVIDIA": "proprietary", "Dual MIT/GPL": "open"}.get(licence, "")
    return Loaded(fields.get("version", ""), flavour)


_ATTEMPT = "Nvlink Core is being initialized"  # the module's first word each time that it is loaded
_SAID = re.compile(
    r"NVRM: "
    r"|nvidia[\w-]*: (?:version magic|disagrees about version|Unknown symbol|exports duplicate symbol|unexpected)"
    r"|(?:Lockdown: .*|Loading of )(?:unsigned )?module .*(?:restricted|rejected)",
    re.IGNORECASE,
)


def last_attempt(messages: Sequence[str]) -> str:
    """What the kernel's log says of the last time that the nvidia module was to be loaded; empty where nothing.

    At most 300 characters; "NVRM: No NVIDIA GPU found." on a host without one.
    """
    said: List[str] = []
    before: List[str] = []
    for one in messages:
        if _ATTEMPT in one and said:
            said, before = [], said
        elif _SAID.match(one):
            said.append(one.strip())
    # An attempt may be on its way right now: NVML has the module loaded when it starts.
    return " ".join(dict.fromkeys(said or before))[:300]


def libraries(files: Files, ldconfig: str) -> Mapping[str, Tuple[str, str]]:
    """Library -> (real path, version) as the dynamic linker would find it; version is empty where the name has none.

    `ldconfig` is the output of `ldconfig -p`, in the linker's order; the usual folders come after it.
    """
    found: Dict[str, Tuple[str, str]] = {}
    for name in LIBRARIES:
        cached = re.findall(
            rf"^\s*{re.escape(name)} \(libc6,(?:x86-64|AArch64)[^)]*\) => (\S+)$", ldconfig, re.MULTILINE
        )
        for path in [*cached, *(f"{folder}/{name}" for folder in _LIBRARY_FOLDERS)]:
            if files.exists(path):
                real = files.real(path)
                version = re.search(r"\.so\.(\d+(?:\.\d+)+)$", real)
                found[name] = (real, version.group(1) if version else "")
                break
    return found


_MODULE_PACKAGE = re.compile(
    r"nvidia(?:-[a-z]+)?(?:-\d+(?:xx)?)?-(?:open-)?kernel-(?:open-)?dkms"  # Debian; NVIDIA's repository for Debian
    r"|nvidia-dkms(?:-\d+)?(?:-server)?(?:-open)?"  # Ubuntu; NVIDIA's repository for Ubuntu
    r"|linux-modules-nvidia-(\d+)\S*-(?:\d+\.\d+\S*)"  # Ubuntu, built and signed for one kernel
)


def module_packages(packages: Mapping[str, str], kernel: str) -> Dict[str, str]:
    """Installed package that brings the kernel module -> driver version ("580" where the name has only the branch).

    A package of a prebuilt module counts for its own kernel only.
    """
    found = {}
    for name, version in packages.items():
        match = _MODULE_PACKAGE.fullmatch(name)
        if not match:
            continue
        branch = match.group(1)
        if branch:
            if name.endswith(kernel):
                found[name] = branch
        else:
            found[name] = re.sub(r"^\d+:|-.*$", "", version)
    return found
