"""A host as planted files, measured by the real checks, planned by the real resolver: what tests of plans share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from provision.compat.model import Wish
from provision.doctor.facts import Facts
from provision.host_plan.machine import facts_of
from provision.host_plan.make import plan_of_facts
from provision.host_plan.model import HostPlan
from provision.profile import Profile
from tests.unit.host_tree import H200, context, grow, tools, tree
from validators.checks import installation, software, system
from validators.schema import Record

KERNEL = "6.8.0-49-generic"
CARD = "/sys/bus/pci/devices/0000:00:06.0"
STANDARD = Profile("standard", wish=Wish())
DAY = "2026-11-21"
MIB = 2**20
DRIVER = ("libnvidia-compute-580", "nvidia-dkms-580-open", "nvidia-utils-580")
"""What the resolver names for an H200 on Ubuntu 24.04 from NVIDIA's repository."""
VENDORS = {
    "nvidia": "cudatools <cudatools@nvidia.com>",
    "ubuntu": "Ubuntu Core Developers <ubuntu-devel-discuss@lists.ubuntu.com>",
}
PROC = "NVRM version: NVIDIA UNIX {}  {}  Release Build\n"


def package(name: str, version: str, status: str = "install ok installed", vendor: str = "nvidia") -> str:
    return (
        f"Package: {name}\nStatus: {status}\nMaintainer: {VENDORS[vendor]}\nArchitecture: amd64\nVersion: {version}\n"
    )


def loaded(version: str, flavour: str = "open") -> dict[str, str]:
    """The files of a loaded module."""
    kind = "Open Kernel Module for x86_64" if flavour == "open" else "x86_64 Kernel Module"
    return {"/proc/driver/nvidia/version": PROC.format(kind, version), "/proc/modules": "nvidia 1 0 - Live 0x0\n"}


def bare(**files: Any) -> dict[str, Any]:
    """An H200 with Ubuntu 24.04, headers, apt, and no driver at all; files say otherwise, None takes one away."""
    base = {
        path: content
        for path, content in tree(H200).items()
        if not path.startswith(
            ("/proc/driver", "/proc/modules", "/sys/module", "/dev/", "/usr/local", "/etc/alternatives")
        )
    }
    base = {path: one for path, one in base.items() if not path.endswith("/driver")}
    base |= {
        "/proc/sys/kernel/osrelease": KERNEL,
        "/proc/1/comm": "systemd\n",
        "/proc/locks": "1: FLOCK  ADVISORY  WRITE 1 00:01:1 0 EOF\n",
        "/var/lib/dpkg/status": package("base-files", "13", vendor="ubuntu"),
        f"/lib/modules/{KERNEL}/build/Makefile": "",
        f"/boot/vmlinuz-{KERNEL}": "",
    }
    return {path: one for path, one in {**base, **files}.items() if one is not None}


def measured(root: Path, files: Mapping[str, Any], outputs: Mapping[str, str] | None = None) -> list[Record]:
    """The records of the three checks over such a tree. The file systems are this machine's unless told otherwise."""
    planted = grow(root, files)
    found: list[Record] = []
    for name, collect in (
        ("system", system.collect),
        ("software", software.collect),
        ("installation", installation.collect),
    ):
        ctx, records = context(name)
        if name == "system":
            collect(ctx, planted)  # type: ignore[call-arg]  # this one takes no tools
        else:
            collect(ctx, planted, tools(**(outputs or {})))  # type: ignore[call-arg]  # the others do
        found += records
    return found


def facts(root: Path, files: Mapping[str, Any], free_mib: Mapping[str, int] | None = None) -> Facts:
    """The same as facts. `free_mib`: path -> free space, each path a file system of its own."""
    from dataclasses import replace

    from validators.schema import Measurement

    records: list[Record] = []
    room = {"/": 500_000, "/usr": 500_000, "/var": 500_000, "/opt": 500_000, "/boot": 1_000, **(free_mib or {})}
    for one in measured(root, files):
        if isinstance(one, Measurement) and one.metric == "disk_free":
            path = one.labels["path"]
            records.append(replace(one, value=room[path], labels={"path": path, "device": path}))
        else:
            records.append(one)
    return facts_of(records)


def plan(root: Path, profile: Profile = STANDARD, free_mib: Mapping[str, int] | None = None, **files: Any) -> HostPlan:
    """The plan of a bare H200 host with these files."""
    return plan_of_facts("box", facts(root, bare(**files), free_mib), profile, today=DAY)


def kinds(made: HostPlan) -> list[tuple[str, str]]:
    return [(one.kind, one.what) for one in made.changes]


def blocked(made: HostPlan) -> str:
    """All blockers as one text."""
    return "\n".join(f"{one.what} -> {one.next_step}" for one in made.blockers)


def status(names: Sequence[str], version: str, *, held: bool = False, vendor: str = "nvidia") -> str:
    state = "hold ok installed" if held else "install ok installed"
    return "\n".join(package(name, version, state, vendor) for name in names)
