"""What stands in the way on the host itself, and what a person should know before: blockers and warnings. Pure."""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from provision.compat.model import Blocker, Reason, Resolution
from provision.doctor.facts import Facts
from provision.host_plan.changes import branch_of, driver_changes, is_built_here, toolkits_missing
from provision.host_plan.found import driver_packages
from provision.host_plan.model import Change
from provision.profile import Profile

_SERVICES = ("nvidia-persiste", "nv-fabricmanage", "nv-hostengine", "nvidia-imex", "nvlsm", "dcgm-exporter")
"""Programs that hold the devices without a job: the services that the role nvidia_driver passes by too.
As /proc/PID/comm has them, 15 letters."""
_SECURE_BOOT = Reason(
    "modules built by DKMS load under Secure Boot only where their key is enrolled",
    "Ubuntu's and Debian's documentation of Secure Boot",
    "medium",
)
_RUN_FILE = Reason(
    "the .run installer's files and a package's overwrite one another", "NVIDIA driver installation guide, removing"
)


_ONE_SOURCE = Reason(
    "a driver's packages are all from one source: two sources upgrade each other's halves",
    "NVIDIA driver installation guide, removing",
)


def blockers_of(facts: Facts, profile: Profile, resolution: Resolution, changes: tuple[Change, ...]) -> list[Blocker]:
    """What would make an installation fail, or lose something; each with the next step."""
    found = [*_dpkg(facts, changes), *_room(facts, resolution, changes)]
    driver = resolution.part("driver")
    if driver is not None and driver.packages and driver_changes(facts, resolution):
        found += [
            *_walls(facts, profile),
            *_foreign_driver(facts, profile, driver.value),
            *_secure_boot(facts, resolution),
            *_jobs(facts),
        ]
    return found


def _dpkg(facts: Facts, changes: tuple[Change, ...]) -> Iterator[Blocker]:
    if not changes:
        return
    names = [
        f"{one.value} ({one.labels.get('state', '')})" for one in facts.all("installation.package_broken") if one.value
    ]
    if names:
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        yield Blocker(
            f"dpkg has packages left half-way: {', '.join(names[:5])}{more}",
            "on the host: sudo dpkg --configure -a && sudo apt-get -f install; then plan again",
        )
    elif facts.flag("installation.dpkg_interrupted"):
        yield Blocker("dpkg was interrupted and has not finished", "on the host: sudo dpkg --configure -a")


def _walls(facts: Facts, profile: Profile) -> Iterator[Blocker]:
    if facts.text("system.virtualisation") == "wsl":
        yield Blocker(
            "this is WSL: Windows brings the driver, and a Linux driver inside breaks it",
            'install the driver on Windows; here use a profile with [driver] source = "none"',
        )
    container = facts.text("system.container")
    if container not in ("", "none") and not is_image(profile):
        yield Blocker(
            f"this runs in a container ({container}): a driver's module belongs to the machine that runs it",
            'provision that machine; in here use a profile with [driver] source = "none"',
        )


def is_image(profile: Profile) -> bool:
    """A profile for building images: the driver's branch is named, and no card has to be there."""
    return not profile.gpu_required and profile.wish.branch != "auto"


def _foreign_driver(facts: Facts, profile: Profile, wanted: str) -> Iterator[Blocker]:
    installer = facts.first("installation.run_installer")
    there = driver_packages(facts)
    if installer is not None and installer.value != "none":
        version = installer.labels.get("version", "")
        yield Blocker(
            f"a driver{f' {version}' if version else ''} from NVIDIA's .run file is installed ({installer.value})",
            f"on the host: sudo {installer.value}; then plan again",
            (_RUN_FILE,),
        )
    elif not there and (loaded := facts.text("software.module_loaded_version")):
        path = next((one.labels.get("path", "") for one in facts.all("software.userspace_version") if one.value), "")
        where = f" (its libraries: {path})" if path else ""
        yield Blocker(
            f"driver {loaded} is loaded and no package brings it{where}: it comes from outside",
            'leave the driver to whoever brings it: a profile with [driver] source = "none"',
        )
    source = "nvidia" if profile.wish.source == "mirror" else profile.wish.source
    strangers = [one for one in there if one.source != source and one.branch]
    if strangers:
        first, branch = strangers[0], strangers[0].branch
        differs = "" if branch == branch_of(wanted) else f", of branch {branch} where {branch_of(wanted)} is planned"
        more = f" and {len(strangers) - 1} more" if len(strangers) > 1 else ""
        keep = ', or keep it with [driver] source = "distro"' if first.source == "distro" else ""
        names = " ".join(one.name for one in strangers[:40])
        yield Blocker(
            f"there is a driver from {first.came_from}: {first.name} {first.version}{more}{differs}",
            f"remove it first, on the host: sudo apt-get purge {names}{keep}",
            (_ONE_SOURCE,),
        )


def _secure_boot(facts: Facts, resolution: Resolution) -> Iterator[Blocker]:
    if facts.flag("system.secure_boot") is not True or not is_built_here(resolution):
        return
    enrolled = facts.flag("installation.signing_key_enrolled")
    if enrolled:
        return
    told = facts.first("installation.signing_key_enrolled")
    ubuntu = facts.text("system.os_id") == "ubuntu"
    certificate = told.labels["certificate"] if told and "certificate" in told.labels else ""
    make = ""
    if not certificate:
        certificate = "/var/lib/shim-signed/mok/MOK.der" if ubuntu else "/var/lib/dkms/mok.pub"
        make = "sudo update-secureboot-policy --new-key; " if ubuntu else "sudo dkms generate_mok; "
    what = "Secure Boot is on, and the key that DKMS signs modules with is not enrolled"
    if enrolled is None and not facts.is_not_applicable("installation.signing_key_enrolled"):
        why = facts.why("installation.signing_key_enrolled")
        what = f"Secure Boot is on, and whether DKMS's key is enrolled is not known ({why})"
    other = '; or use Ubuntu\'s signed modules: [driver] source = "distro"' if ubuntu else ""
    yield Blocker(
        what,
        f"on the host: {make}sudo mokutil --import {certificate}, reboot, and at the console choose Enroll MOK{other}",
        (_SECURE_BOOT,),
    )


def jobs(facts: Facts) -> tuple[str, ...]:
    """Processes on the GPU that are nobody's service: "python3 (pid 4711)"."""
    return tuple(
        f"{one.value or 'a process'} (pid {one.labels.get('pid', '?')})"
        for one in facts.all("installation.gpu_process")
        if one.value is not None and one.value not in _SERVICES
    )


def _jobs(facts: Facts) -> Iterator[Blocker]:
    if found := jobs(facts):
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        yield Blocker(
            f"{len(found)} process{'es' if len(found) > 1 else ''} on the GPU: {', '.join(found[:5])}{more}",
            "drain the host: end its jobs, or wait for them; then plan again",
        )


def _room(facts: Facts, resolution: Resolution, changes: tuple[Change, ...]) -> Iterator[Blocker]:
    """Needs are added up by file system: /usr and /var are often the same one."""
    free: dict[str, tuple[str, float]] = {}
    device_of: dict[str, str] = {}
    for one in facts.all("installation.disk_free"):
        if isinstance(one.value, (int, float)):
            path, device = one.labels.get("path", ""), one.labels.get("device", one.labels.get("path", ""))
            free.setdefault(device, (path, float(one.value)))
            device_of[path] = device
    needed: Counter[str] = Counter()
    what: dict[str, list[str]] = {}
    for name, count in _wanted(facts, resolution, changes).items():
        size = _sizes()[name]
        path = size.path
        device = device_of.get(path, "" if path == "/boot" else device_of.get("/", ""))
        if device:
            needed[device] += size.mib * count
            what.setdefault(device, []).append(name.removesuffix("_download").removesuffix("_boot"))
    for device, mib in needed.items():
        path, there = free[device]
        if there < mib:
            yield Blocker(
                f"{path} has {there:,.0f} MiB free; {', '.join(dict.fromkeys(what[device]))} need about {mib:,} MiB",
                f"free space on {path} (sudo apt-get clean, old kernels, old environments), or plan less",
            )


def _wanted(facts: Facts, resolution: Resolution, changes: tuple[Change, ...]) -> Mapping[str, int]:
    names = {one.what for one in changes if one.kind in ("install", "upgrade", "downgrade")}
    found: dict[str, int] = {}
    if {"driver", "driver packages"} & names:
        found |= {"driver": 1, "driver_download": 1, "driver_boot": 1}
    if count := len(toolkits_missing(facts, resolution)):
        found |= {"cuda_toolkit": count, "cuda_toolkit_download": count}
    return found | {name: 1 for name in ("torch", "tensorflow", "jax", "docker") if name in names}


@dataclass(frozen=True)
class _Size:
    path: str
    mib: int
    source: str


@cache
def _sizes() -> Mapping[str, _Size]:
    data = tomllib.loads((files("provision.host_plan") / "sizes.toml").read_text(encoding="utf-8"))
    return {name: _Size(**entry) for name, entry in data.items()}
