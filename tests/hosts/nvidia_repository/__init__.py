"""A signed stub of NVIDIA's package repositories, for hosts that have no GPU and no way out.

    repository = build(tmp_path / "repository", family="debian", broken={"580.178.04": "dkms-fails"})
    url = repository.copy_to(host)                      # file:/srv/... on a container host
    with serve(repository, gateway(host)) as url: ...   # or over HTTP, from the host's gateway
    extra = repository.variables(url)                   # what the role nvidia_repository is given

What is faithful: names of packages and the form of their versions; which depend on which, as far as it decides what
apt does (branch in the name up to 580 on Ubuntu; Debian's nvidia-open-580 that takes a later branch too; `cuda` that
drags a driver; the pinning packages at priority 1000, of which there is room for one); the label "NVIDIA CUDA" that
NVIDIA's own priority file goes by; a signature that apt checks; where files go; what dkms, nvidia-smi, nvcc and
nvidia-ctk answer and with which exit codes; the module file, an ELF whose .modinfo modinfo and depmod read.

What is not: nothing computes. Libraries are text. dkms compiles nothing (it needs the headers' directory all the
same). "Loading" the module is writing its version to /run/stub-nvidia/loaded: at boot by stub-nvidia.service, and by
`modprobe nvidia` through an `install` line of modprobe.d. nvidia-smi compares that with libnvidia-ml.so.1 and so gives
the real exit 9 (nothing loaded) and 18 (another version). Dozens of NVIDIA's packages are left out. Versions of the
pinning packages are made up. linux-headers-$(uname -r) is here for the kernel that container hosts share, since no
archive has it. No GPU is behind any of it: /etc/stub-nvidia/gpu-name says what nvidia-smi calls the one that it claims.

A breakage goes by a driver version ("580.178.04") or by one package ("nvidia-container-toolkit=1.19.1-1"):
preinst-fails, postinst-fails, postinst-hangs, missing-dependency, needs-contrib (no fault: it depends on a real package
of Debian's contrib), file-conflict, truncated (for either); dkms-fails,
smi-fails-after-reboot, wrong-module-version (driver versions alone). "Release": unsigned, expired, not-valid-yet.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tests.hosts.containers import ContainerHost
from tests.hosts.nvidia_repository import driver, toolkit
from tests.hosts.nvidia_repository.deb import Package, dearmour, make_key, write_packages, write_release
from tests.hosts.nvidia_repository.server import serve_directory

Family = Literal["ubuntu", "debian"]

DRIVERS = {"580.159.04": "13.0", "580.178.04": "13.0", "595.91.07": "13.2"}
"""Driver version -> the newest CUDA that it says it runs."""
TOOLKITS = ("12.9.1", "13.0.2", "13.1.1")
CONTAINER_TOOLKITS = ("1.18.2", "1.19.1")
DRIVER_BREAKAGES = ("dkms-fails", "smi-fails-after-reboot", "wrong-module-version")
BREAKAGES = (
    "preinst-fails",
    "postinst-fails",
    "postinst-hangs",
    "missing-dependency",
    "needs-contrib",
    "file-conflict",
    "truncated",
)
RELEASE_STATES = ("", "unsigned", "expired", "not-valid-yet")
LABEL = "NVIDIA CUDA"
_APTS_OWN_FILE = "/usr/share/doc/apt/copyright"
_KEY_USER = "cudatools (a stub) <cudatools@gpu-bringup.invalid>"


@dataclass(frozen=True)
class Repository:
    """A flat repository at `path`. `key`: armoured text, also at `path`/key.asc; `fingerprint`: forty hex digits."""

    path: Path
    key: str
    fingerprint: str

    @property
    def url(self) -> str:
        """It, for apt on this machine."""
        return f"file:{self.path}/"

    def variables(self, url: str) -> dict[str, object]:
        """Return the variables that lead a host to it for everything of NVIDIA's, the container toolkit too."""
        return {
            "nvidia_repository_wanted": True,
            "nvidia_repository_url": url,
            "nvidia_repository_key": self.key,
            "nvidia_repository_fingerprint": self.fingerprint,
            "container_toolkit_repository_url": "",
        }

    def copy_to(self, host: ContainerHost, directory: str = "/srv/nvidia-repository") -> str:
        """Copy it onto a container host; return the file: URL there. Anew replaces what was there."""
        host.sh(f"rm -rf {directory}")
        host.docker("cp", str(self.path), f"{host.name}:{directory}")
        return f"file:{directory}/"

    def resign(self, state: str = "") -> None:
        """Sign the Release anew, in a state of RELEASE_STATES."""
        if state not in RELEASE_STATES:
            raise ValueError(f"no such state of a Release: {state}")
        write_release(self.path, _home(self.path), label=LABEL, state=state)


def build(
    directory: Path,
    *,
    family: Family = "debian",
    versions: Sequence[str] = tuple(DRIVERS),
    toolkits: Sequence[str] = TOOLKITS,
    container_toolkits: Sequence[str] = CONTAINER_TOOLKITS,
    kernels: Sequence[str] | None = None,
    broken: Mapping[str, str] | None = None,
) -> Repository:
    """Build the repository in `directory` (made; its signing key lies beside it).

    `family`: whose names the driver has; container hosts are Debian 12 unless their /etc/os-release was replaced.
    `kernels`: those that have linux-headers; None: the running one. Raises ValueError for an unknown breakage.
    """
    broken = dict(broken or {})
    directory.mkdir(parents=True)
    directory.chmod(0o755)  # apt reads file: repositories as a user of its own
    key, fingerprint = make_key(_home(directory), _KEY_USER)
    names = driver.ubuntu if family == "ubuntu" else driver.debian
    packages = driver.build_tools([os.uname().release] if kernels is None else kernels)
    for version in versions:
        breakage = broken.get(version, "")
        special = breakage if breakage in DRIVER_BREAKAGES else ""
        packages += names(version, cuda=DRIVERS.get(version, "13.0"), breakage=special) + driver.common(version)
    packages += [driver.pinning(branch) for branch in sorted({version.partition(".")[0] for version in versions})]
    for version in toolkits:
        packages += toolkit.cuda(version)
    if toolkits:
        packages += toolkit.cuda_metapackages(toolkits)
    for version in container_toolkits:
        packages += toolkit.container_toolkit(version)
    packages.append(toolkit.keyring(dearmour(key), f"{family}-stub", f"file:{directory}/"))
    state = broken.pop("Release", "")
    packages = [_break(package, _breakage(package, broken)) for package in packages]
    unknown = set(broken.values()) - set(BREAKAGES) - set(DRIVER_BREAKAGES)
    if unknown:
        raise ValueError(f"no such breakage: {', '.join(sorted(unknown))}")
    write_packages(directory, packages)
    for package in packages:
        if _breakage(package, broken) == "truncated":
            path = directory / package.filename
            path.write_bytes(path.read_bytes()[:-700])
    (directory / "key.asc").write_text(key)
    repository = Repository(directory, key, fingerprint)
    repository.resign(state)
    return repository


@contextlib.contextmanager
def serve(repository: Repository, address: str = "127.0.0.1", *, dies_in: str = "", port: int = 0) -> Iterator[str]:
    """Serve it over HTTP; yields its URL. `dies_in`: a file with this in its name breaks off in its middle."""
    with serve_directory(repository.path, address, dies_in=dies_in, port=port) as url:
        yield url


def gateway(host: ContainerHost) -> str:
    """Return this machine's address on a container host's network."""
    return f"{host.address.rpartition('.')[0]}.1"


def _home(directory: Path) -> Path:
    """Where the signing key lies: beside the repository, and not within what is served and copied."""
    return directory.with_name(f"{directory.name}.gnupg")


def _breakage(package: Package, broken: Mapping[str, str]) -> str:
    """The breakage of one package: its own, or that of the driver version where it is the one to carry it."""
    own = broken.get(f"{package.name}={package.version}", "")
    if own:
        return own
    breakage = broken.get(package.version.partition("-")[0], "")
    kernel = package.name.startswith(("nvidia-dkms", "nvidia-kernel-dkms", "nvidia-kernel-open-dkms"))
    userspace = package.name.startswith(("nvidia-utils", "nvidia-driver-cuda"))
    libraries = package.name.startswith(("libnvidia-compute", "libcuda1"))
    carries = {
        "missing-dependency": userspace,
        "needs-contrib": userspace,
        "file-conflict": userspace,
        "truncated": libraries,
    }
    return breakage if carries.get(breakage, kernel) else ""


def _break(package: Package, breakage: str) -> Package:
    """Return it with a breakage that any package can have."""
    fail = 'echo "{0}: the stub was told to fail in its {1}" >&2\nexit 1\n'
    if breakage in ("preinst-fails", "postinst-fails"):
        script = breakage.partition("-")[0]
        return dataclasses.replace(package, scripts={**package.scripts, script: fail.format(package.name, script)})
    if breakage == "postinst-hangs":
        return dataclasses.replace(package, scripts={**package.scripts, "postinst": "exec sleep 86400\n"})
    if breakage in ("missing-dependency", "needs-contrib"):
        other = "update-glx" if breakage == "needs-contrib" else "nvidia-package-that-nobody-has (>= 1)"
        depends = ", ".join(filter(None, [package.depends, other]))
        return dataclasses.replace(package, depends=depends)
    if breakage == "file-conflict":
        return dataclasses.replace(package, files={**package.files, _APTS_OWN_FILE: "taken\n"})
    return package
