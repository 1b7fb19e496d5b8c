"""A virtual machine: a Debian with its own kernel, SSH on a port of loopback. KVM where it boots, else emulation.

with virtual_machine() as vm:
    run_play("site.yml", [vm.host()], ...)
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from provision.hosts import Host
from tests.hosts.image import USER, cache_directory, host_files, mirror, tree_tar

NETWORK = "[Match]\nName=eth0\n[Network]\nAddress=10.0.2.15/24\nGateway=10.0.2.2\n"
"""QEMU's user network, fixed: no waiting for DHCP."""


@dataclass(frozen=True)
class VirtualMachine:
    """A machine that answers over SSH."""

    port: int
    key: Path
    known_hosts: Path

    def host(self, name: str = "vm") -> Host:
        """Return it as a Host."""
        options = f"-F none -o IdentitiesOnly=yes -o UserKnownHostsFile={self.known_hosts}"
        return Host(name, "127.0.0.1", self.port, USER, private_key_file=str(self.key), ssh_args=options)


def available() -> bool:
    """Whether a machine can be made and booted here."""
    tools = ("qemu-system-x86_64", "qemu-img", "mke2fs", "debootstrap")
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    return os.geteuid() == 0 and all(shutil.which(name, path=path) for name in tools)


def _disk() -> tuple[Path, Path, Path]:
    """Return disk, kernel and initrd, made once: the tree of the container hosts with a kernel of its own."""
    base = cache_directory() / "vm"
    found = (base / "disk.qcow2", base / "vmlinuz", base / "initrd.img")
    if all(path.exists() for path in found):
        return found
    base.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=base) as scratch:
        tree = Path(scratch) / "tree"
        tree.mkdir()
        subprocess.run(["tar", "-C", str(tree), "-xf", str(tree_tar())], check=True)
        host_files(tree / "setup")
        (tree / "etc/systemd/network").mkdir(parents=True, exist_ok=True)
        (tree / "etc/systemd/network/eth0.network").write_text(NETWORK)
        (tree / "etc/fstab").write_text("/dev/vda / ext4 defaults 0 1\n")
        (tree / "etc/hostname").write_text("vm\n")
        (tree / "etc/hosts").write_text("127.0.0.1 localhost vm\n")
        key = base / "key"
        key.unlink(missing_ok=True)
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
        (tree / "etc/apt/sources.list").write_text(f"deb {mirror()} bookworm main\n")
        _in_tree(tree, "apt-get -q update")
        _in_tree(tree, "apt-get -qy --no-install-recommends install linux-image-cloud-amd64 initramfs-tools")
        # A new initrd in the guest would cost minutes under emulation, and QEMU boots the one outside anyway.
        _in_tree(tree, "sh /setup/files/setup.sh; systemctl enable systemd-networkd; apt-get clean")
        (tree / "etc/initramfs-tools/update-initramfs.conf").write_text("update_initramfs=no\nbackup_initramfs=no\n")
        login = tree / "home" / USER / ".ssh"
        login.mkdir()
        shutil.copy(f"{key}.pub", login / "authorized_keys")
        _in_tree(tree, f"chown -R {USER}: /home/{USER}/.ssh; chmod 0700 /home/{USER}/.ssh")
        shutil.rmtree(tree / "setup")
        (tree / "etc/resolv.conf").unlink(missing_ok=True)
        (tree / "etc/resolv.conf").write_text("nameserver 10.0.2.3\n")
        for unit in ("systemd-udevd.service", "systemd-udev-trigger.service"):
            (tree / "etc/systemd/system" / unit).unlink(missing_ok=True)  # masked for containers alone
        kernel, initrd = (sorted((tree / "boot").glob(f"{name}-*"))[-1] for name in ("vmlinuz", "initrd.img"))
        shutil.copy(kernel, found[1])
        shutil.copy(initrd, found[2])
        raw = Path(scratch) / "disk.raw"
        subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", str(tree), str(raw), "8G"], check=True)
        part = Path(scratch) / "disk.qcow2"
        subprocess.run(["qemu-img", "convert", "-O", "qcow2", str(raw), str(part)], check=True)
        part.rename(found[0])
    return found


def _in_tree(tree: Path, script: str) -> None:
    shutil.copy("/etc/resolv.conf", tree / "etc/resolv.conf")
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
    done = subprocess.run(
        ["chroot", str(tree), "sh", "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{script}: {(done.stdout + done.stderr)[-2000:]}")


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextlib.contextmanager
def virtual_machine() -> Iterator[VirtualMachine]:
    """Boot a machine on a fresh overlay of the disk. Nothing of it is left at the end."""
    disk, kernel, initrd = _disk()
    with tempfile.TemporaryDirectory(prefix="bringup-vm-") as scratch:
        directory = Path(scratch)
        overlay = directory / "overlay.qcow2"
        subprocess.run(
            ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(disk), str(overlay)], check=True
        )
        for accelerator, seconds in (("kvm", 40.0), ("tcg,thread=multi,tb-size=512", 300.0)):
            if accelerator == "kvm" and not os.access("/dev/kvm", os.W_OK):
                continue
            vm = VirtualMachine(_free_port(), disk.with_name("key"), directory / "known_hosts")
            process = _boot(
                accelerator, overlay, kernel=kernel, initrd=initrd, port=vm.port, console=directory / "console"
            )
            try:
                # Booting is the probe: /dev/kvm being there does not say that this kernel runs under it.
                if not _answers(vm, process, seconds):
                    continue
                yield vm
                return
            finally:
                process.terminate()
                process.wait(20)
        console = (directory / "console").read_text(errors="replace")[-2000:]
        raise RuntimeError(f"the virtual machine does not answer over SSH: {console}")


def _boot(
    accelerator: str, overlay: Path, *, kernel: Path, initrd: Path, port: int, console: Path
) -> subprocess.Popen[bytes]:
    words = ["qemu-system-x86_64", "-accel", accelerator, "-cpu", "host" if accelerator == "kvm" else "max"]
    words += ["-smp", "2", "-m", "1536", "-machine", "q35,usb=off,vmport=off", "-nodefaults", "-display", "none"]
    words += ["-kernel", str(kernel), "-initrd", str(initrd)]
    words += ["-append", "root=/dev/vda rw console=ttyS0 net.ifnames=0 mitigations=off quiet"]
    words += ["-drive", f"file={overlay},if=virtio,format=qcow2", "-device", "virtio-rng-pci"]
    words += ["-netdev", f"user,id=n,hostfwd=tcp:127.0.0.1:{port}-:22", "-device", "virtio-net-pci,netdev=n,romfile="]
    words += ["-serial", f"file:{console}"]
    return subprocess.Popen(words, stdin=subprocess.DEVNULL)


def _answers(vm: VirtualMachine, process: subprocess.Popen[bytes], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    login = ["ssh", "-F", "none", "-i", str(vm.key), "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes"]
    login += ["-o", "ConnectTimeout=5", "-o", "StrictHostKeyChecking=accept-new", "-p", str(vm.port)]
    login += ["-o", f"UserKnownHostsFile={vm.known_hosts}", f"{USER}@127.0.0.1", "true"]
    while time.monotonic() < deadline and process.poll() is None:
        if subprocess.run(login, capture_output=True, check=False, timeout=60).returncode == 0:
            return True
        time.sleep(1)
    return False
