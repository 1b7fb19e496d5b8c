"""The kernels of a host: which run now and next, their headers, what DKMS built for them, and which keys they trust."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import List, Optional, Tuple

from validators.probes.driver import Tool, module_files
from validators.probes.sysfs import Files

_MOK = "/sys/firmware/efi/efivars/MokListRT-605dab50-e046-4300-abb6-3dd810dd8b23"
_CERTIFICATES = (
    "/var/lib/shim-signed/mok/MOK.der",
    "/var/lib/dkms/mok.pub",
)
"""What DKMS signs with: Ubuntu's, Debian's."""
_LIMIT_BYTES = 1 << 20
_MAX = 64


@dataclass(frozen=True)
class Kernel:
    """One kernel: whether its headers and an nvidia module are there for it."""

    release: str
    headers: bool
    module: bool


def kernel(files: Files, release: str) -> Kernel:
    """What is there for a kernel. `headers`: its build folder has a Makefile, and not only a link to nowhere."""
    return Kernel(release, files.exists(f"/lib/modules/{release}/build/Makefile"), bool(module_files(files, release)))


def next_boot(files: Files) -> str:
    """The newest kernel in /boot, which the boot loader starts by default; empty where /boot has none."""
    images = [name[len("vmlinuz-") :] for name in files.names("/boot")[:_MAX] if name.startswith("vmlinuz-")]
    return max(images, key=order, default="")


def order(release: str) -> Tuple[Tuple[int, int, str], ...]:
    """A kernel's release as something to sort by: numbers as numbers, and before any word."""
    return tuple(
        (1, int(part), "") if part.isdecimal() else (0, 0, part) for part in re.findall(r"\d+|[a-z]+", release)
    )


@dataclass(frozen=True)
class Build:
    """One module that DKMS manages. `state`: added, built or installed, as `dkms status` would say."""

    module: str
    version: str
    kernel: str
    state: str


def dkms(files: Files) -> List[Build]:
    """DKMS's tree: every module and version, once per kernel that it was built for."""
    found = []
    for module in files.names("/var/lib/dkms")[:_MAX]:
        for version in files.names(f"/var/lib/dkms/{module}")[:_MAX]:
            place = f"/var/lib/dkms/{module}/{version}"
            if version.startswith("kernel-") or not files.exists(f"{place}/source"):
                continue  # `kernel-<release>-<arch>` is DKMS's link to the version that is installed
            kernels = [name for name in files.names(place)[:_MAX] if name not in ("source", "build")]
            kernels = [name for name in kernels if files.names(f"{place}/{name}")]
            for release in kernels:
                state = "installed" if _is_installed(files, module, release) else "built"
                found.append(Build(module, version, release, state))
            if not kernels:
                found.append(Build(module, version, "", "added"))
    return found


def _is_installed(files: Files, module: str, release: str) -> bool:
    links = [name for name in files.names(f"/var/lib/dkms/{module}") if name.startswith(f"kernel-{release}-")]
    return bool(links)


def signing_certificate(files: Files) -> str:
    """The certificate that modules built on this host are signed with, or empty."""
    return next((path for path in _CERTIFICATES if files.exists(path)), "")


def is_enrolled(files: Files, certificate: str, tool: Tool) -> Tuple[Optional[bool], str]:
    """Whether the firmware's list of machine owner keys has the certificate, and how that is known.

    The list that the boot loader leaves behind holds certificates in DER, byte for byte.
    """
    wanted, keys = files.data(certificate, _LIMIT_BYTES), files.data(_MOK, _LIMIT_BYTES)
    if wanted and keys is not None:
        return wanted in keys, _MOK
    if wanted and files.exists("/sys/firmware/efi/efivars") and not files.exists(_MOK):
        return False, f"no machine owner key is enrolled: {_MOK} is not there"
    answer = tool(("mokutil", "--test-key", certificate))
    said = f"{answer.stdout}\n{answer.stderr}"
    if "is already enrolled" in said:
        return True, "mokutil --test-key"
    if "is not enrolled" in said:
        return False, "mokutil --test-key"
    return None, files.why(certificate) if not wanted else answer.problem or "mokutil does not tell"
