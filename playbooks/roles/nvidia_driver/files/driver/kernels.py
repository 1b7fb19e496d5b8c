"""Kernels: that of the next boot, its metapackages and headers, and Ubuntu's prebuilt modules for them."""

import re
from pathlib import Path

from archive import PREBUILT

# The package of a prebuilt module: its driver and flavour (linux-modules-nvidia-580-server-open), and the kernel or
# the kernel's flavour.
MODULE = re.compile(r"^(linux-modules-nvidia-\d+(?:-server)?(?:-open)?)-(\S+)$")


def boot_kernels(kernel):
    """Return the kernel that counts and the one of the next boot: the newest that is installed."""
    names = [path.name.partition("-")[2] for path in Path("/boot").glob("vmlinuz-*")]
    names.sort(
        key=lambda name: [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"[.+-]", name)]
    )
    return kernel, names[-1] if names else kernel


def kernel_metapackages(apt):
    """Return the installed metapackages that bring the next kernel: linux-image-generic, linux-aws, ..."""
    found = []
    for package in apt.present:
        if package.current_ver is not None and re.match(r"linux-(image-|headers-)?[a-z]", package.name):
            flavour = re.sub(r"^linux-(image-|headers-)?", "", package.name)
            kinds = r"(generic|virtual|aws|azure|gcp|oracle|kvm|nvidia|lowlatency|amd64|cloud-amd64|rt-amd64)"
            if re.fullmatch(kinds + r"(-hwe-[\d.]+|-lts-[\d.]+|-[\d.]+)?", flavour):
                found.append(package.name)
    return sorted(found)


def headers(apt, kernels, wish):
    """Return the header packages to install, and whether none can be had for any kernel that will run.

    Those of the running kernel, and the metapackage, so that the next kernel gets its headers, and its module, too.
    """
    if not wish["builds"]:
        return {"packages": [], "impossible": False}
    missing = []
    possible = False
    for kernel in dict.fromkeys(kernels):
        name = f"linux-headers-{kernel}"
        if Path(f"/lib/modules/{kernel}/build").is_dir():
            possible = True
        elif apt.package(name) is not None and apt.package(name).version_list:
            possible = True
            missing.append(name)
    for name in kernel_metapackages(apt):
        if name.startswith("linux-image-"):
            meta = name.replace("linux-image-", "linux-headers-", 1)
            if apt.package(meta) is not None and apt.package(meta).version_list and not apt.installed(meta):
                missing.append(meta)
    return {"packages": missing, "impossible": not possible}


def for_running(apt, names, number, kernel):
    """Return the prebuilt module's package of the running kernel, where the archive has it for this driver.

    `names` has the flavour's, whose module is for the archive's newest kernel alone.
    """
    found = {}
    for match in filter(None, map(MODULE.match, names)):
        name = f"{match[1]}-{kernel}"
        version = apt.prebuilt(name, number)
        if version and name not in names:
            found[name] = version
    return found


def leftovers(apt, targets, drivers, number):
    """Return the installed packages of prebuilt modules that are of another driver or flavour than `targets`."""
    there = {name for name in drivers if PREBUILT.match(name)} - set(targets)
    wanted = {match[1] for match in map(MODULE.match, targets) if match}
    kept = set()
    for name in there:
        match = MODULE.match(name)
        if match and (not wanted or match[1] in wanted) and apt.suits(apt.package(name).current_ver, number):
            groups = apt.package(name).current_ver.depends_list.get("Depends", [])
            kept |= {name, *(one.target_pkg.name for group in groups for one in group)}
    return sorted(there - kept)


def whole(apt, targets, install):
    """Return what makes a kernel whole that comes with a prebuilt module: its metapackages.

    The module alone brings the image, without the rest of its modules and the headers.
    """
    if not any(re.match(r"linux-image-(unsigned-)?\d", name) for name in install):
        return []
    metas = kernel_metapackages(apt)
    flavours = [match[2] for match in map(MODULE.match, targets) if match and not match[2][0].isdigit()]
    found = [name for name in metas if re.sub(r"^linux-(image-|headers-)?", "", name) in flavours]
    if not any(name.startswith("linux-image-") for name in found):
        # An image of a cloud has linux-image-virtual, say; a host without any gets its flavour's.
        found = metas or [f"linux-image-{one}" for one in flavours if apt.known(f"linux-image-{one}")]
    return [name for name in found if name not in install]
