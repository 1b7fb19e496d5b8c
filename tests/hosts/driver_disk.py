"""A disk with NVIDIA's real driver: Debian's own packages, installed by our role, the module built by DKMS.

A container host is given a kernel, then the role installs the driver there over SSH as on any host; what the host
is then becomes the disk. So the module is compiled at full speed, outside emulation, and loaded by a kernel of its
own later. The container runs the machine's kernel, for which no headers exist: the role builds for the kernel of the
next boot and says that a reboot is needed. A second kernel comes last and without headers, so that DKMS builds
nothing for it: what a careless kernel update leaves.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from provision.plays import PlayResult, run_play
from tests.hosts import containers
from tests.hosts.containers import ContainerHost
from tests.hosts.disk import Disk, cached, content
from tests.hosts.image import FILES, PACKAGES

KERNEL = "linux-image-cloud-amd64 initramfs-tools"
# The package of the kernel itself: beside its metapackage the role would see to that kernel's headers and module too.
OTHER_KERNEL = "linux-image-amd64"
_DEPENDENCY = f"$(apt-cache depends {OTHER_KERNEL} | sed -n 's/^ *Depends: \\(linux-image-[0-9]\\)/\\1/p' | head -n 1)"
WISH: dict[str, object] = {
    "nvidia_driver_source": "distro",
    "nvidia_driver_module": "proprietary",
    "nvidia_driver_in_container": True,
    "docker_source": "none",
    "nvtop_from": "none",
}
_ROLES = Path(__file__).resolve().parents[2] / "playbooks" / "roles"
_APT = "DEBIAN_FRONTEND=noninteractive apt-get -qy --no-install-recommends install"


@dataclass(frozen=True)
class Run:
    """How a run of the role went: what it changed, how long it took, the tasks that ran, and what asks for a reboot."""

    changed: int
    duration_s: float
    tasks: tuple[str, ...]
    reboot_reasons: str


@dataclass(frozen=True)
class DriverDisk(Disk):
    """The disk, and how the role's runs that made it went."""

    @property
    def runs(self) -> tuple[Run, ...]:
        """The role's first run on that host, and the second."""
        return tuple(Run(**one) for one in json.loads((self.directory / "runs.json").read_text()))

    @property
    def kernel(self) -> str:
        """The kernel that the module was built for."""
        return next(release for release in self.kernels if "cloud" in release)

    @property
    def kernel_without_module(self) -> str:
        """The kernel for which there were no headers."""
        return next(release for release in self.kernels if "cloud" not in release)


def driver_disk() -> DriverDisk:
    """The disk, made once for its content, the role's own files among it: five minutes, most of them DKMS's."""
    text = f"{PACKAGES} {KERNEL} {OTHER_KERNEL} {WISH}"
    roles = [_ROLES / name for name in ("preflight", "host_python", "nvidia_driver")]
    return DriverDisk(cached("driver", content(Path(__file__), FILES, *roles, text=text), _grow).directory)


def _grow(tree: Path, beside: Path) -> None:
    with containers.container_hosts(1) as (host,):
        (beside / "runs.json").write_text(json.dumps([asdict(run) for run in install(host)], indent=1))
        export(host, tree)


def install(host: ContainerHost) -> list[Run]:
    """Give a container host a kernel, the driver by our role (twice), and a kernel without headers."""
    host.sh(f"apt-get -q update && {_APT} {KERNEL}")
    with tempfile.TemporaryDirectory() as scratch:
        told = [_told(play(host, Path(scratch)), host.sh("cat /run/gpu-bringup/reboot", check=False)) for _ in range(2)]
    host.sh(f"{_APT} {_DEPENDENCY} && apt-get clean")
    return told


def play(host: ContainerHost, directory: Path) -> PlayResult:
    """Run site.yml for the driver alone. Raises RuntimeError where it fails."""
    result = run_play("site.yml", [host.host()], artifact_dir=directory, extra_vars=WISH, known_hosts=host.known_hosts)
    if not result.ok:
        raise RuntimeError("; ".join(one.sentence() for one in result.failures) or result.message)
    return result


def _told(result: PlayResult, reasons: str) -> Run:
    return Run(result.changed, round(result.duration_s, 1), tasks_run(result), reasons)


def tasks_run(result: PlayResult) -> tuple[str, ...]:
    """Return "role: task" of each task that was not skipped."""
    lines = result.events_path.read_text().splitlines() if result.events_path else []
    events = [json.loads(line) for line in lines]
    ran = [one for one in events if one.get("kind") in ("ok", "note", "changed")]
    return tuple(f"{one.get('role')}: {one.get('task')}" for one in ran)


def export(host: ContainerHost, tree: Path) -> None:
    """Write the file system of a container host into an empty folder."""
    tar = tree.with_suffix(".tar")
    host.docker("export", "--output", str(tar), host.name)
    subprocess.run(["tar", "-C", str(tree), "--numeric-owner", "-xf", str(tar)], check=True)
    tar.unlink()
    (tree / ".dockerenv").unlink()  # systemd and our own check would take the machine for a container
