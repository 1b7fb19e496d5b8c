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
from tests.hosts.disk import Disk, plain
from tests.hosts.image import USER


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

    def inventory_line(self, **variables: object) -> str:
        """Return it as a line of an INI inventory."""
        words = {
            "ansible_host": "127.0.0.1",
            "ansible_port": self.port,
            "ansible_user": USER,
            "ansible_ssh_private_key_file": self.key,
            "ansible_ssh_common_args": f"'{self.host().ssh_args}'",
            **variables,
        }
        return " ".join(["vm", *(f"{key}={value}" for key, value in words.items())])

    def ssh(self, script: str, *, timeout_s: float = 300, connect_s: int = 60) -> subprocess.CompletedProcess[str]:
        """Run a shell script in it as its user, who may sudo. The exit status is the caller's to look at."""
        words = ["ssh", "-F", "none", "-i", str(self.key), "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes"]
        words += ["-o", f"ConnectTimeout={connect_s}", "-o", "StrictHostKeyChecking=accept-new", "-p", str(self.port)]
        words += ["-o", f"UserKnownHostsFile={self.known_hosts}", f"{USER}@127.0.0.1", script]
        return subprocess.run(words, capture_output=True, text=True, check=False, timeout=timeout_s)


def available() -> bool:
    """Whether a machine can be made and booted here."""
    tools = ("qemu-system-x86_64", "qemu-img", "mke2fs", "debootstrap")
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    return os.geteuid() == 0 and all(shutil.which(name, path=path) for name in tools)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextlib.contextmanager
def virtual_machine(disk: Disk | None = None, *, kernel: str = "") -> Iterator[VirtualMachine]:
    """Boot a machine on a fresh overlay of a disk, the plain one where none is given. Nothing of it is left at the end.

    `kernel`: the release to boot, where the disk has more than one.
    """
    disk = disk or plain()
    files = disk.boot(kernel or disk.kernels[0])
    with tempfile.TemporaryDirectory(prefix="bringup-vm-") as scratch:
        directory = Path(scratch)
        overlay = directory / "overlay.qcow2"
        subprocess.run(
            ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(disk.image), str(overlay)], check=True
        )
        for accelerator, seconds in (("kvm", 40.0), ("tcg,thread=multi,tb-size=512", 600.0)):
            if accelerator == "kvm" and not os.access("/dev/kvm", os.W_OK):
                continue
            vm = VirtualMachine(_free_port(), disk.key, directory / "known_hosts")
            process = _boot(accelerator, overlay, files, port=vm.port, console=directory / "console")
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
    accelerator: str, overlay: Path, files: tuple[Path, Path], *, port: int, console: Path
) -> subprocess.Popen[bytes]:
    words = ["qemu-system-x86_64", "-accel", accelerator, "-cpu", "host" if accelerator == "kvm" else "max"]
    words += ["-smp", "2", "-m", "1536", "-machine", "q35,usb=off,vmport=off", "-nodefaults", "-display", "none"]
    words += ["-kernel", str(files[0]), "-initrd", str(files[1])]
    words += ["-append", "root=/dev/vda rw console=ttyS0 net.ifnames=0 mitigations=off quiet"]
    words += ["-drive", f"file={overlay},if=virtio,format=qcow2", "-device", "virtio-rng-pci"]
    words += ["-netdev", f"user,id=n,hostfwd=tcp:127.0.0.1:{port}-:22", "-device", "virtio-net-pci,netdev=n,romfile="]
    words += ["-serial", f"file:{console}"]
    return subprocess.Popen(words, stdin=subprocess.DEVNULL)


def _answers(vm: VirtualMachine, process: subprocess.Popen[bytes], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(subprocess.TimeoutExpired):  # on a busy machine
            if vm.ssh("true", timeout_s=60, connect_s=5).returncode == 0:
                return True
        time.sleep(1)
    return False
