"""Stubs of the driver's packages, by NVIDIA's names for Ubuntu and for Debian."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

from tests.hosts.nvidia_repository.deb import Package

FILES = Path(__file__).with_name("files")
LIB = "/usr/lib/x86_64-linux-gnu"
MODINFO_BYTES = 1024
OPEN_LICENSE = "Dual MIT/GPL"
CLOSED_LICENSE = "NVIDIA"
_BUILD_ERROR = """make: Entering directory '/usr/src/linux-headers'
nvidia/nv-mmap.c: In function 'nvidia_mmap_helper':
nvidia/nv-mmap.c:585:5: error: implicit declaration of function 'nv_vm_flags_set'
make[3]: *** [nvidia/nv-mmap.o] Error 1
make: *** [Makefile:82: modules] Error 2
"""
_ADD_AND_BUILD = """set -e
case "$1" in configure) ;; *) exit 0 ;; esac
echo "Loading new nvidia-@V@ DKMS files..."
dkms add -m nvidia -v @V@
built=
for build in /lib/modules/*/build; do
    kernel=${build#/lib/modules/}
    kernel=${kernel%/build}
    [ -d "$build" ] || continue
    echo "Building for $kernel"
    echo "Building initial module for $kernel"
    dkms install -m nvidia -v @V@ -k "$kernel" || exit $?
    echo "Done."
    built="$built $kernel"
done
case " $built " in
*" $(uname -r) "*) ;;
*)
    echo "Module build for kernel $(uname -r) was skipped since the"
    echo "kernel headers for this kernel do not seem to be installed." ;;
esac
systemctl daemon-reload 2>/dev/null || true
"""
_REMOVE = "dkms remove -m nvidia -v @V@ --all || true\n"


def text(name: str, **values: str) -> str:
    """A file of ours with @NAME@ filled in."""
    content = (FILES / name).read_text()
    for key, value in values.items():
        content = content.replace(f"@{key.upper()}@", value)
    return content


def elf_head(modinfo_bytes: int = MODINFO_BYTES) -> bytes:
    """Everything of an ELF relocatable up to its section .modinfo, which is the rest of the file."""
    names = b"\0.modinfo\0.shstrtab\0".ljust(24, b"\0")
    sections, offset = 3, 64
    data = offset + sections * 64
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01",
        1,  # ET_REL
        62,  # EM_X86_64
        1,
        0,
        0,
        offset,
        0,
        64,
        0,
        0,
        64,
        sections,
        2,
    )
    table = struct.pack("<IIQQQQIIQQ", *[0] * 10)
    table += struct.pack("<IIQQQQIIQQ", 1, 1, 2, 0, data + len(names), modinfo_bytes, 0, 0, 1, 0)
    table += struct.pack("<IIQQQQIIQQ", 10, 3, 0, 0, data, len(names), 0, 0, 1, 0)
    return header + table + names


def kernel_package(
    name: str, package_version: str, version: str, *, license_text: str, depends: str, breakage: str, others: str
) -> Package:
    """The package whose postinst has DKMS build the module."""
    source = f"/usr/src/nvidia-{version}"
    module_version = version
    if breakage == "wrong-module-version":
        first, _, last = version.rpartition(".")
        module_version = f"{first}.{int(last) + 1:02d}"
    modinfo = [f"license={license_text}", f"version={module_version}", "alias=pci:v000010DEd*sv*sd*bc03sc02i00*"]
    if breakage == "smi-fails-after-reboot":
        modinfo.append("stub_loads=no")
    files: dict[str, str | bytes] = {
        f"{source}/dkms.conf": f'PACKAGE_NAME="nvidia"\nPACKAGE_VERSION="{version}"\nAUTOINSTALL="yes"\n',
        f"{source}/stub-module": elf_head(),
        f"{source}/stub-modinfo": "\n".join(modinfo) + "\n",
        "/usr/lib/stub-nvidia/load": text("load"),
        "/usr/lib/stub-nvidia/unload": text("unload"),
        "/usr/lib/modprobe.d/stub-nvidia.conf": (
            "install nvidia /usr/lib/stub-nvidia/load\nremove nvidia /usr/lib/stub-nvidia/unload\n"
        ),
        "/usr/lib/systemd/system/stub-nvidia.service": text("stub-nvidia.service"),
    }
    if breakage == "dkms-fails":
        files[f"{source}/stub-build-fails"] = _BUILD_ERROR
    return Package(
        name,
        package_version,
        depends,
        files=files,
        links={"/usr/lib/systemd/system/sysinit.target.wants/stub-nvidia.service": "../stub-nvidia.service"},
        scripts={"postinst": _ADD_AND_BUILD.replace("@V@", version), "prerm": _REMOVE.replace("@V@", version)},
        fields={"Provides": "nvidia-kernel-module", "Conflicts": others, "Replaces": others},
    )


def _library(name: str, version: str) -> tuple[str, dict[str, str]]:
    """A versioned library's path and the links to it."""
    return f"{LIB}/{name}.so.{version}", {
        f"{LIB}/{name}.so.1": f"{name}.so.{version}",
        f"{LIB}/{name}.so": f"{name}.so.1",
    }


def libraries(name: str, package_version: str, version: str, which: Sequence[str], **fields: str) -> Package:
    """A package of libraries that hold nothing but their version."""
    files: dict[str, str | bytes] = {}
    links: dict[str, str] = {}
    for library in which:
        path, more = _library(library, version)
        files[path] = f"stub of {library} {version}\n" * 2000  # big enough for a download that dies in the middle
        links |= more
    return Package(name, package_version, files=files, links=links, fields=fields)


def smi(name: str, package_version: str, version: str, depends: str, cuda: str, **fields: str) -> Package:
    """The package that has nvidia-smi."""
    return Package(
        name,
        package_version,
        depends,
        files={"/usr/bin/nvidia-smi": text("nvidia-smi", version=version, cuda=cuda)},
        fields=fields,
    )


def service(
    name: str, package_version: str, program: str, content: str, depends: str = "", *, package: str = "", **fields: str
) -> Package:
    """A package of a program and its unit `name`; its own name, where that is another, is `package`."""
    unit = f"[Unit]\nDescription=Stub of {name}\n\n[Service]\nType=oneshot\nRemainAfterExit=yes\n"
    unit += f"ExecStart={program}\n\n[Install]\nWantedBy=multi-user.target\n"
    return Package(
        package or name,
        package_version,
        depends,
        files={program: content, f"/usr/lib/systemd/system/{name}.service": unit},
        scripts={
            "postinst": "systemctl daemon-reload 2>/dev/null || true\n",
            "prerm": f'[ "$1" != remove ] || systemctl stop {name} 2>/dev/null || true\n',
        },
        fields=fields,
    )


def pinning(branch_or_version: str) -> Package:
    """NVIDIA's package that holds apt to a branch or a version, by a preferences file."""
    pattern = f"{branch_or_version}-*" if "." in branch_or_version else f"{branch_or_version}.*"
    names = "*nvidia* cuda-drivers* libcuda1 libcudadebugger1 libnvcuvid1 libxnvctrl*"
    preferences = f"Package: {names}\nPin: version {pattern}\nPin-Priority: 1000\n"
    return Package(
        f"nvidia-driver-pinning-{branch_or_version}",
        f"{branch_or_version}-1",
        files={"/etc/apt/preferences.d/nvidia-driver-pin": preferences},
        fields={"Provides": "nvidia-driver-pinning", "Conflicts": "nvidia-driver-pinning"},
        architecture="all",
    )


def _support(name: str, package_version: str) -> Package:
    blacklist = "blacklist nouveau\nblacklist lbm-nouveau\nalias nouveau off\nalias lbm-nouveau off\n"
    return Package(name, package_version, files={"/usr/lib/modprobe.d/nvidia-graphics-drivers.conf": blacklist})


def common(version: str) -> list[Package]:
    """What has the same name on Ubuntu and Debian, and one version a driver version."""
    both = f"{version}-1"
    return [
        pinning(version),
        service("nvidia-fabricmanager", both, "/usr/bin/nv-fabricmanager", text("nv-fabricmanager", version=version)),
        libraries("libnvidia-nscq", both, version, ["libnvidia-nscq"]),
        service(
            "nvidia-persistenced", both, "/usr/bin/nvidia-persistenced", text("nvidia-persistenced", version=version)
        ),
        libraries("libnvsdm", both, version, ["libnvsdm"]),
        Package("nvidia-imex", both),
        *_nvlink5(version),
        Package("nvidia-modprobe", both, files={"/usr/bin/nvidia-modprobe": "#!/bin/sh\nexec modprobe nvidia\n"}),
    ]


def _nvlink5(version: str) -> list[Package]:
    """HGX Blackwell's metapackages, of the driver's version; libibumad3 and infiniband-diags are the distribution's."""
    both, branch = f"{version}-1", version.partition(".")[0]
    parts = ("nvidia-fabricmanager", "libnvidia-nscq", "libnvsdm", "nvidia-imex")
    depends = ", ".join(["nvlsm", *(f"{name} (= {both})" for name in parts)])
    names = [f"nvlink5-{branch}"] if int(branch) < 590 else ["nvlink5"]
    return [Package(name, both, depends) for name in names]


def ubuntu(version: str, *, cuda: str, breakage: str = "") -> list[Package]:
    """Ubuntu's: with the branch in the name up to 580, without it from 590."""
    branch = version.partition(".")[0]
    pv = f"{version}-1ubuntu1"
    suffix = f"-{branch}" if int(branch) < 590 else ""
    same = f"(= {pv})"
    dkms = f"nvidia-dkms{suffix}"
    opened = f"{dkms}-open"
    rivals = {"Provides": "nvidia-libcompute", "Conflicts": "nvidia-libcompute", "Replaces": "nvidia-libcompute"}
    kernel_depends = f"dkms, nvidia-kernel-common{suffix} {same}"
    packages = [
        libraries(f"libnvidia-compute{suffix}", pv, version, ["libcuda", "libnvidia-ml"], **rivals),
        smi(
            f"nvidia-utils{suffix}",
            pv,
            version,
            f"libnvidia-compute{suffix} {same}",
            cuda,
            Provides="nvidia-smi-program",
            Conflicts="nvidia-smi-program",
            Replaces="nvidia-smi-program",
        ),
        _support(f"nvidia-kernel-common{suffix}", pv),
        libraries(f"libnvidia-gl{suffix}", pv, version, ["libGLX_nvidia"]),
    ]
    for name, license_text in ((opened, OPEN_LICENSE), (dkms, CLOSED_LICENSE)):
        packages.append(
            kernel_package(
                name,
                pv,
                version,
                license_text=license_text,
                depends=kernel_depends,
                breakage=breakage,
                others="nvidia-kernel-module",
            )
        )
    everything = f"libnvidia-compute{suffix} {same}, nvidia-utils{suffix} {same}, libnvidia-gl{suffix} {same}"
    everything += f", nvidia-persistenced (= {version}-1), nvidia-modprobe (= {version}-1)"
    packages += [
        Package(f"nvidia-driver{suffix}-open", pv, f"{opened} {same}, {everything}"),
        Package(f"nvidia-driver{suffix}", pv, f"{dkms} {same}, {everything}"),
        Package(f"nvidia-open{suffix}", pv, f"nvidia-driver{suffix}-open {same}"),
        Package(f"cuda-drivers{suffix}", pv, f"nvidia-driver{suffix} {same}"),
    ]
    if suffix:
        packages += [
            Package("cuda-drivers", pv, f"cuda-drivers{suffix} {same}"),
            Package("nvidia-open", pv, f"nvidia-open{suffix} {same}"),
        ]
    return packages


def debian(version: str, *, cuda: str, breakage: str = "") -> list[Package]:
    """Debian's: no branch in a name, but for the two metapackages, which take any later branch as well."""
    branch = version.partition(".")[0]
    pv = f"{version}-1"
    same = f"(= {pv})"
    packages = [
        libraries("libcuda1", pv, version, ["libcuda"]),
        libraries("libnvidia-ml1", pv, version, ["libnvidia-ml"]),
        libraries("libnvidia-gl", pv, version, ["libGLX_nvidia"]),
        smi(
            "nvidia-driver-cuda",
            pv,
            version,
            f"libcuda1 {same}, libnvidia-ml1 {same}, nvidia-persistenced {same}, nvidia-modprobe {same}",
            cuda,
        ),
        _support("nvidia-kernel-support", pv),
        Package("nvidia-driver", pv, f"nvidia-driver-cuda {same}, libnvidia-gl {same}"),
    ]
    for name, license_text in (("nvidia-kernel-open-dkms", OPEN_LICENSE), ("nvidia-kernel-dkms", CLOSED_LICENSE)):
        packages.append(
            kernel_package(
                name,
                pv,
                version,
                license_text=license_text,
                depends=f"dkms, nvidia-kernel-support {same}",
                breakage=breakage,
                others="nvidia-kernel-module",
            )
        )
    packages += [
        Package("nvidia-open", pv, f"nvidia-kernel-open-dkms {same}, nvidia-driver {same}"),
        Package("cuda-drivers", pv, f"nvidia-kernel-dkms {same}, nvidia-driver {same}"),
    ]
    if int(branch) < 590:
        later = f"(>= {version})"
        packages += [
            Package(f"nvidia-open-{branch}", pv, f"nvidia-kernel-open-dkms {later}, nvidia-driver {later}"),
            Package(f"cuda-drivers-{branch}", pv, f"nvidia-kernel-dkms {later}, nvidia-driver {later}"),
        ]
    return packages


def build_tools(kernels: Sequence[str]) -> list[Package]:
    """A stub of dkms, and headers for each kernel whose name a package can have."""
    packages = [Package("dkms", "1:3.4.0-1", "kmod", files={"/usr/sbin/dkms": text("dkms")}, architecture="all")]
    packages.append(Package("nvlsm", "2025.06.11-1"))
    for kernel in kernels:
        if set(kernel) <= set("abcdefghijklmnopqrstuvwxyz0123456789.+-"):
            headers = f"/usr/src/linux-headers-{kernel}"
            packages.append(
                Package(
                    f"linux-headers-{kernel}",
                    f"{kernel.split('-')[0]}-1",
                    files={f"{headers}/Makefile": "# a stub\n"},
                    links={f"/lib/modules/{kernel}/build": headers},
                )
            )
    return packages
