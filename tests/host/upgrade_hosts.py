"""Container hosts with a driver of the stub repository on them, and a DOUBLE of the GPU that they do not have.

The double is an overlay of the bundle: pynvml replays a recorded H200, but nvmlInit, the driver's version and the
library's come from what the stub's packages have installed and "loaded" (/run/stub-nvidia/loaded, libnvidia-ml.so.1),
with NVML's own errors where they disagree. The PCI bus, the kernel's log and
/proc/driver/nvidia/version are doubles as well. So the
path from NVML's answers to a verdict is real, and the GPU is not. Files on a host plant faults of the card:
/etc/stub-nvidia/lost-with and hot-with name the driver version under which it is lost or too hot.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest import mock

from provision.bundle import Bundle, build_bundle
from provision.compat.model import Machine
from provision.host_plan.make import plan_of_machine
from provision.upgrade.planner import profile_for
from provision.upgrade.plays import Plays
from tests.doubles import overlay
from tests.hosts import containers
from tests.hosts.containers import ContainerHost
from tests.hosts.containers import container_hosts as start
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


PLAIN = str(Path(__file__).parent / "roles" / "plain_driver")
"""A double of the driver's roles; it says what for."""


def plain_variables(version: str, repository: Repository, url: str) -> dict[str, object]:
    """What that double is given."""
    same = ("libcuda1", "libnvidia-ml1", "nvidia-kernel-support", "nvidia-persistenced", "nvidia-modprobe")
    names = [*PACKAGES, *same]
    return {
        **repository.variables(url),
        "nvidia_driver_version": version,
        "nvidia_driver_packages": list(PACKAGES),
        "plain_packages": " ".join(f"{name}={version}-1" for name in names),
        "plain_key": f"/etc/apt/keyrings/nvidia-{version}.asc",
    }


def plain_install(host: ContainerHost, repository: Repository, url: str) -> None:
    """Put the OLD driver on a host by hand, held, and "load" it."""
    variables = plain_variables(OLD, repository, url)
    host.sh(f"cat >{variables['plain_key']}", stdin=repository.key.encode())
    host.sh(
        f"echo 'deb [signed-by={variables['plain_key']}] {url} ./' >/etc/apt/sources.list.d/nvidia.list\n"
        "apt-get -q update -o Dir::Etc::sourcelist=/etc/apt/sources.list.d/nvidia.list -o Dir::Etc::sourceparts=-\n"
        f"apt-get -q -y install linux-headers-$(uname -r) {variables['plain_packages']}\n"
        f"apt-mark hold {' '.join(PACKAGES)}; systemctl daemon-reload; modprobe nvidia; nvidia-smi -L"
    )


PACKAGES = ("nvidia-driver-cuda", "nvidia-kernel-open-dkms")
"""What the resolver names for Debian 12, and what is held."""


def variables_for(to: str, repository: Repository, url: str) -> dict[str, object]:
    """What the resolver says for an H200 on Debian 12, led to the stub repository."""
    machine = Machine(gpus=("10de:2335",), os="debian-12", kernel=os.uname().release)
    plan = plan_of_machine("any", machine, profile_for(to), today="2026-11-21")
    assert not plan.blockers, plan.blockers
    return {**plan.variables, **repository.variables(url)}


def install(hosts: Sequence[ContainerHost], version: str, repository: Repository, url: str, folder: Path) -> None:
    """Put a driver on hosts by the roles, as `bringup provision` does, and "load" it."""
    variables = variables_for(version, repository, url)
    plays = Plays(folder, [host.host(variables=VARIABLES) for host in hosts])
    names = [host.name for host in hosts]
    plan = dict.fromkeys(names, variables)
    results = plays.run("upgrade.yml", "old", names, tags=("install",), deadline_s=280, bringup_plan=plan)
    assert all(result.ok for result in results.values()), results
    for host in hosts:
        host.sh("modprobe nvidia; nvidia-smi -L")


@contextlib.contextmanager
def hosts_with_driver(count: int, repository: Repository, folder: Path) -> Iterator[tuple[ContainerHost, ...]]:
    """Hosts that are provisioned with the OLD driver. It is installed on one, whose file system the others begin with.

    `repository` is at URL on each of them.
    """
    with start(1) as (first,):
        url = repository.copy_to(first, DIRECTORY)
        install([first], OLD, repository, url, folder)
        first.sh("apt-get clean; rm -f /etc/ssh/ssh_host_*; ssh-keygen -A; echo uninitialized >/etc/machine-id; sync")
        image = f"gpu-bringup-test-upgrade:{os.getpid()}"
        first.docker("commit", first.name, image)
        docker = first.docker
    try:
        with mock.patch.object(containers, "build", lambda *_args, **_more: image), start(count) as hosts:
            for host in hosts:
                host.sh("for i in $(seq 50); do [ -s /run/stub-nvidia/loaded ] && exit 0; sleep 0.2; done; exit 1")
            yield hosts
    finally:
        docker("image", "rm", "-f", image)


DIRECTORY = "/srv/nvidia-repository"
NEW_DIRECTORY = "/srv/nvidia-repository-new"
URL, NEW_URL = f"file:{DIRECTORY}/", f"file:{NEW_DIRECTORY}/"
VARIABLES = {"nvidia_driver_in_container": True}
"""Inventory variables of these hosts."""
