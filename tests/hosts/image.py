"""The image of the container hosts: a Debian with systemd, sshd and two users, cached by its own content.

Where an image can be pulled it is `FROM debian:12`; where none can, a tree by debootstrap from the
machine's own mirror.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Protocol

SUITE = "bookworm"
PACKAGES = (
    "systemd,systemd-sysv,dbus,udev,openssh-server,python3,python3-apt,sudo,iproute2,ca-certificates,kmod,procps,"
    "lsb-release,curl,gnupg,libpam-systemd"
)
COMPONENTS = "main,contrib,non-free,non-free-firmware"
USER = "op"
CAREFUL_USER = "careful"  # whose sudo asks for a password
SUDO_PASSWORD = "correct-horse-battery"  # noqa: S105  of a user in a throw-away container
FILES = Path(__file__).with_name("files")


class Docker(Protocol):
    """An engine: docker's arguments in, standard output out."""

    def __call__(self, *args: str, stdin: bytes | None = None, timeout_s: float = 600) -> str: ...


def cache_directory() -> Path:
    """Where what takes minutes is kept between runs."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    path = Path(base) / "gpu-bringup-tests"
    path.mkdir(parents=True, exist_ok=True)
    return path


def mirror() -> str:
    """The machine's own Debian mirror: the first URI of its apt sources."""
    for path in sorted(Path("/etc/apt/sources.list.d").glob("*.sources")):
        for line in path.read_text().splitlines():
            if line.startswith("URIs:") and "debian" in line:
                return line.split()[1]
    for line in (
        Path("/etc/apt/sources.list").read_text().splitlines() if Path("/etc/apt/sources.list").exists() else ()
    ):
        words = [word for word in line.split() if not word.startswith("[")]
        if words[:1] == ["deb"]:
            return words[1]
    raise RuntimeError("this machine's apt sources name no Debian mirror")


def tree_tar() -> Path:
    """A bare Debian as a tar, by debootstrap; about two minutes the first time."""
    name = hashlib.sha256(f"{SUITE} {PACKAGES} {COMPONENTS}".encode()).hexdigest()[:12]
    tar = cache_directory() / f"debian-{name}.tar"
    if tar.exists():
        return tar
    with tempfile.TemporaryDirectory(dir=cache_directory()) as scratch:
        tree = Path(scratch) / "tree"
        options = ["--variant=minbase", f"--components={COMPONENTS}", f"--include={PACKAGES}"]
        program = shutil.which("debootstrap", path=f"{os.environ['PATH']}:/usr/sbin") or "debootstrap"
        subprocess.run([program, *options, SUITE, str(tree), mirror()], check=True, stdout=subprocess.DEVNULL)
        part = Path(scratch) / "part.tar"
        subprocess.run(
            ["tar", "-C", str(tree), "--exclude=./var/cache/apt/archives/*.deb", "-cf", str(part), "."], check=True
        )
        part.rename(tar)
    return tar


def can_pull(docker: Docker) -> bool:
    """Whether this engine has debian:12, or can get it."""
    try:
        docker("image", "inspect", "debian:12")
    except subprocess.CalledProcessError:
        try:
            docker("pull", "-q", "debian:12", timeout_s=90)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
            return False
    return True


def host_files(directory: Path) -> None:
    """Lay out what goes into the image: our files, and the machine's own ways to its mirrors."""
    shutil.copytree(FILES, directory / "files")
    for name in ("certs", "apt.conf.d"):
        (directory / name).mkdir()
    for path in Path("/usr/local/share/ca-certificates").glob("*.crt"):
        shutil.copy(path, directory / "certs")
    for path in Path("/etc/apt/apt.conf.d").glob("*"):
        # Those that name a way out or relax a check; the machine's own hooks are of no use in there.
        if "Acquire::" in path.read_text(errors="replace"):
            shutil.copy(path, directory / "apt.conf.d")
    pip = Path("/etc/pip.conf")
    (directory / "pip.conf").write_text(pip.read_text() if pip.exists() else "")


def build(docker: Docker, *, pull: bool) -> str:
    """Return the name of an image of the hosts, built now or before."""
    with tempfile.TemporaryDirectory(dir=cache_directory()) as scratch:
        context = Path(scratch)
        host_files(context)
        digest = hashlib.sha256(f"{pull} {PACKAGES} {COMPONENTS}".encode())
        for path in sorted(item for item in context.rglob("*") if item.is_file()):
            digest.update(str(path.relative_to(context)).encode() + path.read_bytes())
        name = f"gpu-bringup-test-host:{digest.hexdigest()[:12]}"
        if docker("images", "-q", name).strip():
            return name
        base = "debian:12"
        install = f"RUN apt-get update -q && apt-get install -qy --no-install-recommends {PACKAGES.replace(',', ' ')}\n"
        if not pull:
            base, install = "gpu-bringup-test-base:latest", ""
            docker("import", str(tree_tar()), base)
        dockerfile = f"FROM {base}\n{install}COPY . /setup\nRUN sh /setup/files/setup.sh && rm -r /setup\n"
        (context / "Dockerfile").write_text(dockerfile)
        docker("build", "-q", "-t", name, str(context))
        return name
