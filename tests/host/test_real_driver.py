"""NVIDIA's real driver, of Debian's packages, on a kernel of its own without a GPU: what it says, and what we say.

The role installed it (tests.hosts.driver_disk); a virtual machine boots what the role left.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from provision.plays import run_play
from tests.hosts import containers, vm
from tests.hosts.driver_disk import WISH, DriverDisk, driver_disk, tasks_run
from tests.hosts.vm import VirtualMachine
from tests.need import need

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

ROOT = Path(__file__).resolve().parents[2]
COMMAND = "from provision.cli import main; main()"
WORDS = ROOT / "tests/fixtures/trees/driver-words-debian-12-vm-without-gpu-535.261.03.txt"


@pytest.fixture(scope="module")
def disk() -> DriverDisk:
    need(vm.available(), "root with qemu-system-x86, qemu-utils, e2fsprogs and debootstrap could boot a machine")
    need(containers.available(), "no Docker engine runs, and root with docker.io and iptables could start one")
    return driver_disk()


@pytest.fixture(scope="module")
def machine(disk: DriverDisk) -> Iterator[VirtualMachine]:
    with vm.virtual_machine(disk, kernel=disk.kernel) as booted:
        yield booted


def recorded(command: str) -> tuple[int, str]:
    """Exit status and last line of a command as it was recorded."""
    part = next(one for one in WORDS.read_text().split("# ") if one.startswith(f"{command}; "))
    head, *lines = part.splitlines()
    return int(head.rpartition(" ")[2]), lines[-1]


def said(machine: VirtualMachine, command: str) -> tuple[int, str]:
    """The same of the machine."""
    done = machine.ssh(f"sudo {command} 2>&1")
    assert done.stdout.strip(), done.stderr
    return done.returncode, done.stdout.strip().splitlines()[-1]


def bringup(machine: VirtualMachine, directory: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command of ours against the machine, as root there: its kernel log is root's."""
    (directory / "hosts.ini").write_text(machine.inventory_line(ansible_become="true") + "\n")
    return subprocess.run(
        [sys.executable, "-c", COMMAND, *words, "-i", "hosts.ini"],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def validated(machine: VirtualMachine, directory: Path) -> dict[tuple[str, str], dict[str, object]]:
    """Check and metric -> verdict, after `bringup validate --level 1`."""
    done = bringup(machine, directory, "validate", "--level", "1", "--json")
    assert done.returncode == 1, done.stderr
    (host,) = json.loads(done.stdout)["hosts"]
    return {(one["check"], one["metric"]): one for one in host["verdicts"]}


def measured(directory: Path) -> dict[tuple[str, str], dict[str, object]]:
    """Check and metric -> the measurement that the host sent, of the only run there."""
    (records,) = directory.glob("runs/*/hosts/*/records.jsonl")
    found = (json.loads(line) for line in records.read_text().splitlines())
    return {(one["check"], one["metric"]): one for one in found if one["type"] == "measurement"}


def test_the_role_built_the_module_for_the_kernel_of_the_next_boot_and_asked_for_that_reboot(disk: DriverDisk) -> None:
    first, second = disk.runs
    assert first.changed >= 3
    assert second.changed == 0
    for run in (first, second):
        assert "reboot: Say that a reboot is needed" in run.tasks
        assert "was installed and is not loaded" in run.reboot_reasons


def test_the_module_is_there_for_its_kernel_and_finds_no_gpu(machine: VirtualMachine, disk: DriverDisk) -> None:
    assert machine.ssh("uname -r").stdout.strip() == disk.kernel
    assert machine.ssh("/sbin/modinfo -F vermagic nvidia-current").stdout.split()[0] == disk.kernel
    assert said(machine, "modprobe nvidia-current") == recorded("modprobe nvidia-current")
    assert "No such device" in said(machine, "modprobe nvidia-current")[1]
    assert "NVRM: No NVIDIA GPU found." in machine.ssh("sudo dmesg").stdout
    # Debian's own name for it: the usual one says nothing of a device.
    assert said(machine, "modprobe nvidia") == recorded("modprobe nvidia")
    status, words = said(machine, "nvidia-smi")
    assert (status, words) == recorded("nvidia-smi")
    assert status == 9


def test_validate_says_what_is_there_and_calls_none_of_it_working(
    machine: VirtualMachine, disk: DriverDisk, tmp_path: Path
) -> None:
    verdicts = validated(machine, tmp_path)
    assert verdicts["system", "gpu_count"]["status"] == "FAIL"
    proofs = ("compute_capability", "gpu_health")
    working = {key for key, one in verdicts.items() if one["status"] == "PASS"} - {("software", "module_for_kernel")}
    assert not {key for key in working if key[0] in proofs or "driver" in key[1] or "module" in key[1]}, working

    facts = measured(tmp_path)
    path = f"/lib/modules/{disk.kernel}/updates/dkms/nvidia-current.ko"
    assert facts["software", "module_for_kernel"]["value"] is True
    assert facts["software", "module_for_kernel"]["labels"] == {"kernel": disk.kernel, "path": path}
    version = facts["software", "module_package_version"]["value"]
    assert facts["software", "module_file_version"]["value"] == version
    assert facts["software", "userspace_version"]["value"] == version
    assert facts["software", "module_flavour"]["value"] == "proprietary"
    loaded = facts["software", "module_loaded_version"]
    assert loaded["absence"] == "not_applicable"
    # What the kernel's log says of it is added where the log has it at that moment: NVML may just be trying again.
    assert loaded["note"].startswith(
        f"no nvidia module is loaded; {path} is there for this kernel, and no NVIDIA GPU on the PCI bus"
    )


def test_doctor_says_that_the_driver_waits_for_a_gpu(machine: VirtualMachine, tmp_path: Path) -> None:
    done = bringup(machine, tmp_path, "doctor")
    words = " ".join(done.stdout.split())
    assert done.returncode == 1, done.stderr
    assert "No NVIDIA GPU is on the PCI bus" in words
    assert "is installed for this kernel and waits for one" in words


def test_the_role_finds_nothing_to_do_after_the_reboot_and_asks_for_no_other(
    machine: VirtualMachine, tmp_path: Path
) -> None:
    result = run_play(
        "site.yml", [machine.host()], artifact_dir=tmp_path, extra_vars=WISH, known_hosts=machine.known_hosts
    )
    assert result.ok, [failure.sentence() for failure in result.failures]
    assert result.changed == 0
    ran = tasks_run(result)
    assert "nvidia_driver: Load the module" in ran
    assert "nvidia_driver: Say what was verified" in ran
    assert "reboot: Say that a reboot is needed" not in ran
    assert not machine.ssh("cat /sys/module/nvidia/version").stdout


def test_a_kernel_that_came_without_headers_has_no_module_and_is_told_so(disk: DriverDisk, tmp_path: Path) -> None:
    with vm.virtual_machine(disk, kernel=disk.kernel_without_module) as other:
        assert said(other, "modprobe nvidia-current") == (
            1,
            f"modprobe: FATAL: Module nvidia-current not found in directory /lib/modules/{disk.kernel_without_module}",
        )
        verdicts = validated(other, tmp_path)
        done = bringup(other, tmp_path, "doctor")
    assert verdicts["software", "module_for_kernel"]["status"] == "FAIL"
    facts = measured(tmp_path)
    labels = facts["software", "module_for_kernel"]["labels"]
    assert isinstance(labels, dict)
    assert labels["other_kernels"] == disk.kernel
    assert f"and not for the running kernel {disk.kernel_without_module}" in " ".join(done.stdout.split())
