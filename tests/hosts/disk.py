"""Disks that a virtual machine boots from, made of a tree without a loop device; kept between runs by their content.

`plain()` is a bare Debian with a kernel of its own: what the container hosts are, and a network.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.hosts.image import FILES, USER, cache_directory, host_files, mirror, tree_tar

NETWORK = "[Match]\nName=eth0\n[Network]\nAddress=10.0.2.15/24\nGateway=10.0.2.2\n"
"""QEMU's user network, fixed: no waiting for DHCP."""
SIZE = "8G"


@dataclass(frozen=True)
class Disk:
    """A folder with `disk.qcow2`, the key that logs in, and each kernel of the disk beside its initrd."""

    directory: Path

    @property
    def image(self) -> Path:
        """The disk: never booted from but through an overlay."""
        return self.directory / "disk.qcow2"

    @property
    def key(self) -> Path:
        """The private key of the user of the hosts."""
        return self.directory / "key"

    @property
    def kernels(self) -> tuple[str, ...]:
        """The releases that can be booted."""
        return tuple(sorted(path.name.partition("-")[2] for path in self.directory.glob("vmlinuz-*")))

    def boot(self, release: str) -> tuple[Path, Path]:
        """Return a kernel and its initrd."""
        return self.directory / f"vmlinuz-{release}", self.directory / f"initrd.img-{release}"


def plain() -> Disk:
    """A bare Debian with the cloud kernel; under two minutes the first time."""
    return cached("plain", content(FILES, text=f"{tree_tar().name} {NETWORK}"), _grow_plain)


def content(*paths: Path, text: str = "") -> str:
    """A digest of files and folders, and of a text: what a disk is made from."""
    digest = hashlib.sha256(text.encode())
    for top in (Path(__file__), *paths):
        for path in [top] if top.is_file() else sorted(one for one in top.rglob("*") if one.is_file()):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def cached(name: str, key: str, grow: Callable[[Path, Path], None]) -> Disk:
    """Return a disk of this content, made now or before.

    `grow` fills its first folder with a tree; what it puts into the second is kept beside the disk.
    """
    home = cache_directory() / "disks"
    home.mkdir(exist_ok=True)
    directory = home / f"{name}-{key}"
    with (home / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # runs at the same time make it once
        if not directory.exists():
            _make(name, directory, grow)
    return Disk(directory)


def _make(name: str, directory: Path, grow: Callable[[Path, Path], None]) -> None:
    with tempfile.TemporaryDirectory(dir=directory.parent) as scratch:
        tree, made = Path(scratch) / "tree", Path(scratch) / "made"
        tree.mkdir()
        made.mkdir()
        grow(tree, made)
        _write(tree, made)
        for old in directory.parent.glob(f"{name}-*"):  # of an older content: up to two gigabytes each
            shutil.rmtree(old)
        made.rename(directory)


def _grow_plain(tree: Path, _: Path) -> None:
    subprocess.run(["tar", "-C", str(tree), "-xf", str(tree_tar())], check=True)
    host_files(tree / "setup")
    (tree / "etc/apt/sources.list").write_text(f"deb {mirror()} bookworm main\n")
    in_tree(tree, "apt-get -q update")
    in_tree(tree, "apt-get -qy --no-install-recommends install linux-image-cloud-amd64 initramfs-tools")
    in_tree(tree, "sh /setup/files/setup.sh; apt-get clean")
    shutil.rmtree(tree / "setup")


def in_tree(tree: Path, script: str) -> None:
    """Run a shell script with the tree as its root. Raises RuntimeError with what it said."""
    shutil.copy("/etc/resolv.conf", tree / "etc/resolv.conf")
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
    done = subprocess.run(
        ["chroot", str(tree), "sh", "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{script}: {(done.stdout + done.stderr)[-2000:]}")


def _write(tree: Path, made: Path) -> None:
    """Turn a tree of a container host into a machine of its own, and write it to a disk."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(made / "key")], check=True)
    login = tree / "home" / USER / ".ssh"
    login.mkdir(exist_ok=True)
    shutil.copy(made / "key.pub", login / "authorized_keys")
    in_tree(tree, f"chown -R {USER}: /home/{USER}/.ssh; chmod 0700 /home/{USER}/.ssh")
    in_tree(tree, "systemctl enable systemd-networkd")
    for unit in ("systemd-udevd.service", "systemd-udev-trigger.service"):
        (tree / "etc/systemd/system" / unit).unlink(missing_ok=True)  # masked for containers alone
    for path in (tree / "var/log/journal").glob("*"):
        shutil.rmtree(path)
    for name, text in {
        "etc/systemd/network/eth0.network": NETWORK,
        "etc/fstab": "/dev/vda / ext4 defaults 0 1\n",
        "etc/hostname": "vm\n",
        "etc/hosts": "127.0.0.1 localhost vm\n",
        "etc/resolv.conf": "nameserver 10.0.2.3\n",
        # A new initrd in the guest would cost minutes under emulation, and QEMU boots the one outside anyway.
        "etc/initramfs-tools/update-initramfs.conf": "update_initramfs=no\nbackup_initramfs=no\n",
    }.items():
        (tree / name).unlink(missing_ok=True)
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text)
    for part in ("vmlinuz", "initrd.img"):
        for path in (tree / "boot").glob(f"{part}-*"):
            shutil.copy(path, made)
    raw = made / "disk.raw"
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", "-d", str(tree), str(raw), SIZE], check=True)
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", str(raw), str(made / "disk.qcow2")], check=True)
    raw.unlink()
