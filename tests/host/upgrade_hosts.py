"""Container hosts with a driver of the stub repository on them, and a DOUBLE of the GPU that they do not have.

The double is an overlay of the bundle: pynvml replays a recorded H200, but nvmlInit, the driver's version and the
library's come from what the stub's packages have installed and "loaded" (/run/stub-nvidia/loaded, libnvidia-ml.so.1),
with NVML's own errors where they disagree. The PCI bus, the kernel's log and
/proc/driver/nvidia/version are doubles as well. So the
path from NVML's answers to a verdict is real, and the GPU is not. Files on a host plant faults of the card:
/etc/stub-nvidia/lost-with and slow-with name the driver version under which it is lost or its PCIe link is narrow.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from provision.bundle import Bundle, build_bundle
from tests.doubles import overlay
from tests.hosts.containers import ContainerHost
from tests.hosts.nvidia_repository import Repository

OLD, NEW, NEWEST = "580.159.04", "580.178.04", "595.91.07"

_PYNVML = """

def _installed() -> str:
    try:
        return os.readlink("/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1").partition(".so.")[2]
    except OSError:
        return ""


def _text(path: str) -> str:
    try:
        with open(path) as file:
            return file.read().strip()
    except OSError:
        return ""


def _state() -> None:
    loaded, library = _text("/run/stub-nvidia/loaded"), _installed()
    faults = {
        "nvmlSystemGetDriverVersion()": {"result": loaded},
        "nvmlSystemGetNVMLVersion()": {"result": f"13.{library}"},
    }
    if not library:
        faults["nvmlInit()"] = {"error": 12}
    elif not loaded:
        faults["nvmlInit()"] = {"error": 9}
    elif loaded != library:
        faults["nvmlInit()"] = {"error": 18}
    if loaded and loaded == _text("/etc/stub-nvidia/lost-with"):
        faults["nvmlDeviceGetHandleByIndex*"] = {"error": 15}
    if loaded and loaded == _text("/etc/stub-nvidia/hot-with"):
        faults["nvmlDeviceGetTemperature(gpu0,0)"] = {"result": 99}
    _REPLAY.faults = faults


_state()
"""
_PCI = """

def nvidia_devices(files):  # the double's bus
    return [PciDevice("0000:00:06.0", 0x2335, 0x10DE, 0x18BE, 0x030200, "nvidia")]
"""
_DRIVER = """

def loaded(files):  # the double's kernel
    version = files.text("/run/stub-nvidia/loaded", 64) or ""
    return Loaded(version.strip(), "open" if version.strip() else "")
"""

_LOG = """

def read():  # the double's kernel log: clean, from the boot on
    return KernelLog(parse_text("[    0.000000] Linux version\\n", "dmesg").lines, True, "the double")
"""


def bundle_with_double() -> Bundle:
    """The checks, with the double in the GPU's place."""
    files = overlay(1)
    files["pynvml.py"] += _PYNVML.encode()
    spec = importlib.util.find_spec("validators")
    assert spec and spec.origin
    probes = Path(spec.origin).parent / "probes"
    for name, tail in (("pci", _PCI), ("driver", _DRIVER), ("kernel_log", _LOG)):
        files[f"validators/probes/{name}.py"] = (probes / f"{name}.py").read_bytes() + tail.encode()
    return build_bundle(files)


def install_old(host: ContainerHost, repository: Repository, url: str, *, version: str = OLD) -> None:
    """Put a driver on a host by hand, held, and "load" it."""
    host.sh("mkdir -p /etc/apt/keyrings && cat >/etc/apt/keyrings/nvidia.asc", stdin=repository.key.encode())
    host.sh(
        f"echo 'deb [signed-by=/etc/apt/keyrings/nvidia.asc] {url} ./' >/etc/apt/sources.list.d/nvidia.list\n"
        "apt-get -q update -o Dir::Etc::sourcelist=/etc/apt/sources.list.d/nvidia.list -o Dir::Etc::sourceparts=-\n"
        f"{_install(version)}\n"
        f"apt-mark hold {' '.join(packages_of(version))}\n"
        "systemctl daemon-reload; modprobe nvidia"
    )


def packages_of(version: str) -> tuple[str, ...]:
    """What is installed and held for a version."""
    return "nvidia-open", "nvidia-kernel-open-dkms", "nvidia-driver-cuda", "nvidia-driver", "libcuda1", "libnvidia-ml1"


def _install(version: str) -> str:
    names = [*packages_of(version), "libnvidia-gl", "nvidia-kernel-support", "nvidia-persistenced", "nvidia-modprobe"]
    wanted = " ".join(f"{name}={version}-1" for name in names)
    return f"DEBIAN_FRONTEND=noninteractive apt-get -q -y install linux-headers-$(uname -r) {wanted}"
