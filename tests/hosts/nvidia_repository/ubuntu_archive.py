"""A stub of what Ubuntu's own archive has for a driver: prebuilt signed modules and the kernels they are for.

Names, versions and dependencies are the archive's: a module's package has the kernel's version, depends on the kernel's
image alone (neither on its headers nor on the rest of its modules), and says by a range of nvidia-kernel-common which
driver it is for. Objects and signatures are two packages there, linked to a module on the host; here the module comes
whole, at the place where the other stubs look for it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.hosts.nvidia_repository import driver
from tests.hosts.nvidia_repository.deb import Package, write_packages

RELEASE = "Origin: Ubuntu\nLabel: Ubuntu\nSuite: noble-updates\nCodename: noble\n"


def write(directory: Path, drivers: Mapping[str, Sequence[str]], kernels: Sequence[str]) -> None:
    """Write the archive. `drivers`: version -> the kernels that have a module of it, the newest last.

    A kernel is "6.8.0-149-generic"; each of them is in the archive with its metapackages.
    """
    directory.mkdir()
    directory.chmod(0o755)
    packages = [package for kernel in kernels for package in _kernel(kernel)]
    signed: set[str] = set()
    for build, (version, its) in enumerate(drivers.items()):
        packages += _driver(version)
        for kernel in its:
            packages += _module(version, kernel, build)
            signed.add(f"{kernel} {build}")
        packages.append(_metapackage(version, its[-1], build))
    packages += [
        Package(f"linux-signatures-nvidia-{kernel}", _built(kernel, int(build)))
        for kernel, build in sorted(one.split() for one in signed)
    ]
    write_packages(directory, packages)
    data = (directory / "Packages").read_bytes()
    index = f"SHA256:\n {hashlib.sha256(data).hexdigest()} {len(data)} Packages\n"
    (directory / "Release").write_text(RELEASE + index)


def _version(kernel: str) -> str:
    """6.8.0-149.149 of 6.8.0-149-generic."""
    base, abi, _ = kernel.split("-", 2)
    return f"{base}-{abi}.{abi}"


def _built(kernel: str, build: int) -> str:
    """The version of modules that were built anew for a later driver: 6.8.0-149.149+1."""
    return _version(kernel) + (f"+{build}" if build else "")


def _kernel(kernel: str) -> list[Package]:
    version, flavour = _version(kernel), kernel.split("-", 2)[2]
    same = f"(= {version})"
    return [
        Package(
            f"linux-image-{kernel}", version, f"linux-modules-{kernel}", files={f"/boot/vmlinuz-{kernel}": "stub\n"}
        ),
        Package(f"linux-modules-{kernel}", version, files={f"/lib/modules/{kernel}/kernel/stub": "stub\n"}),
        Package(f"linux-modules-extra-{kernel}", version, f"linux-image-{kernel}"),
        Package(f"linux-headers-{kernel}", version, files={f"/usr/src/linux-headers-{kernel}/Makefile": "# a stub\n"}),
        Package(f"linux-image-{flavour}", version, f"linux-image-{kernel}, linux-modules-extra-{kernel}"),
        Package(f"linux-headers-{flavour}", version, f"linux-headers-{kernel}"),
        Package(f"linux-{flavour}", version, f"linux-image-{flavour} {same}, linux-headers-{flavour} {same}"),
    ]


def _range(version: str) -> str:
    name = f"nvidia-kernel-common-{version.partition('.')[0]}-server"
    return f"{name} (<= {version}-1), {name} (>= {version})"


def _module(version: str, kernel: str, build: int) -> list[Package]:
    name, own = f"nvidia-{version.partition('.')[0]}-server-open-{kernel}", _built(kernel, build)
    modinfo = f"license={driver.OPEN_LICENSE}\0version={version}\0name=nvidia\0vermagic={kernel} SMP mod_unload \0"
    data = (driver.elf_head() + modinfo.encode()).ljust(len(driver.elf_head()) + driver.MODINFO_BYTES, b"\0")
    depends = f"linux-image-{kernel} | linux-image-unsigned-{kernel}, linux-signatures-nvidia-{kernel} (= {own})"
    return [
        Package(
            f"linux-modules-{name}",
            own,
            f"{depends}, linux-objects-{name} (= {own}), {_range(version)}",
            files={f"/lib/modules/{kernel}/kernel/nvidia-{version.partition('.')[0]}srv-open/nvidia.ko": data},
            scripts=dict.fromkeys(("postinst", "postrm"), f"depmod {kernel} 2>/dev/null || true\n"),
        ),
        Package(f"linux-objects-{name}", own, f"linux-image-{kernel} | linux-image-unsigned-{kernel}"),
    ]


def _metapackage(version: str, kernel: str, build: int) -> Package:
    name, flavour = f"linux-modules-nvidia-{version.partition('.')[0]}-server-open", kernel.split("-", 2)[2]
    own = _built(kernel, build)
    return Package(f"{name}-{flavour}", own, f"{name}-{kernel} (= {own}), {_range(version)}")


def _rival(name: str) -> dict[str, str]:
    """Of this there is room for one branch."""
    return {"Provides": name, "Conflicts": name, "Replaces": name}


def _driver(version: str) -> list[Package]:
    branch, pv = version.partition(".")[0], f"{version}-0ubuntu0.24.04.1"
    same = f"(= {pv})"
    compute, common = f"libnvidia-compute-{branch}-server", f"nvidia-kernel-common-{branch}-server"
    utils, source = f"nvidia-compute-utils-{branch}-server", f"nvidia-kernel-source-{branch}-server-open"
    needs = ", ".join(f"{name} {same}" for name in (compute, common, utils, source))
    return [
        driver.libraries(compute, pv, version, ["libcuda", "libnvidia-ml"], **_rival("libnvidia-compute")),
        Package(common, pv, fields=_rival("nvidia-kernel-common")),
        Package(source, pv, f"{common} {same}", fields=_rival("nvidia-kernel-source")),
        driver.service(
            "nvidia-persistenced",
            pv,
            "/usr/bin/nvidia-persistenced",
            driver.text("nvidia-persistenced", version=version),
            package=utils,
            **_rival("nvidia-compute-utils"),
        ),
        Package(f"nvidia-headless-no-dkms-{branch}-server-open", pv, needs),
        driver.smi(f"nvidia-utils-{branch}-server", pv, version, f"{compute} {same}", "13.0", **_rival("nvidia-utils")),
        driver.service(
            "nvidia-fabricmanager",
            pv,
            "/usr/bin/nv-fabricmanager",
            driver.text("nv-fabricmanager", version=version),
            package=f"nvidia-fabricmanager-{branch}",
            **_rival("nvidia-fabricmanager"),
        ),
        driver.libraries(f"libnvidia-nscq-{branch}", pv, version, ["libnvidia-nscq"], **_rival("libnvidia-nscq")),
    ]
