"""What is in a driver's way on a host, and what a person is told: one plain sentence, and the host as it was.

On a container host with a stub of NVIDIA's repository. Secure Boot, WSL and programs on a GPU are planted (a mokutil
that answers, another /proc/version, a file that a process holds open), since a container host has none of them.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.host.driver_play import OLD, DriverHost, driver_host
from tests.hosts.containers import available
from tests.hosts.containers import container_hosts as start
from tests.hosts.nvidia_repository import gateway, serve
from tests.hosts.nvidia_repository.deb import Package, write_packages
from tests.need import need

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DriverHost]:
    need(available(), "no Docker engine runs, and root with docker.io, debootstrap and iptables could start one")
    with start(1) as (one,), driver_host(one, tmp_path_factory.mktemp("faults"), broken=True) as host:
        host.done(roles=["nvidia_repository"])
        yield host


@pytest.fixture
def box(ready: DriverHost) -> Iterator[DriverHost]:
    """The host without a driver."""
    yield ready
    ready.clean()


def refused_and_untouched(host: DriverHost, version: str = OLD, **variables: object) -> str:
    """Return the sentence of a play that fails, and leaves packages, holds, marks and settings as they were."""
    before = host.state()
    said = host.refused(version, **variables)
    assert host.state() == before
    assert host.sh("dpkg --audit") == ""
    return said


@contextlib.contextmanager
def program(host: DriverHost, path: str, script: str) -> Iterator[None]:
    host.host.sh(f"cat >{path}; chmod 0755 {path}", stdin=f"#!/bin/sh\n{script}\n".encode())
    try:
        yield
    finally:
        host.sh(f"rm {path}")


def planted(host: DriverHost, *packages: Package) -> None:
    """Put packages' files into /srv/planted on the host, with an index."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "planted"
        folder.mkdir()
        folder.chmod(0o755)
        write_packages(folder, packages)
        host.sh("rm -rf /srv/planted")
        host.host.docker("cp", str(folder), f"{host.host.name}:/srv/planted")


# An installation that breaks: the package names what failed, and the host gets back what it had.
BREAKS = {
    "580.100.01": ["the pre-installation script of the package nvidia-kernel-open-dkms failed", "fail in its preinst"],
    "580.100.02": [
        "the post-installation script of the package nvidia-kernel-open-dkms failed",
        "fail in its postinst",
    ],
    "580.100.04": ["nvidia-package-that-nobody-has", "Nothing was changed"],
    "580.100.05": ["the file /usr/share/doc/apt/copyright, which belongs to the package apt"],
    "580.100.06": ["the repository's index says"],
    "580.100.07": ["DKMS could not build the module for the kernel", "implicit declaration", "nvidia-make.log"],
    "580.100.08": ["the module for the kernel", "is of version 580.100.09 and the packages are 580.100.08"],
}


@pytest.mark.parametrize("version", BREAKS)
def test_an_installation_that_breaks_is_undone_and_its_cause_named(box: DriverHost, version: str) -> None:
    said = refused_and_untouched(box, version)
    for words in BREAKS[version]:
        assert words in said


def test_a_script_that_hangs_is_ended_and_undone(box: DriverHost) -> None:
    said = refused_and_untouched(box, "580.100.03", nvidia_driver_install_timeout_s=20)
    assert "did not end in 20 s" in said
    assert "Setting up nvidia-kernel-open-dkms" in said
    assert box.sh("pgrep -af 'sleep 8640[0]|dpk[g]' || true") == ""


@pytest.mark.parametrize("version", ["580.100.03", "580.100.07"])
def test_a_driver_that_was_there_works_again_after_an_attempt_at_another(box: DriverHost, version: str) -> None:
    box.done()
    box.sh("modprobe nvidia")
    said = refused_and_untouched(box, version, nvidia_driver_install_timeout_s=20)
    assert "brought back" in said
    assert box.sh("nvidia-smi --query-gpu=driver_version --format=csv,noheader") == OLD
    assert box.sh("modinfo -F version nvidia") == OLD
    assert "nvidia-driver-cuda" in box.sh("apt-mark showhold")
    assert box.done(roles=["nvidia_driver/verify"]).ok


def test_a_mirror_that_dies_in_the_middle_of_a_download_is_said(box: DriverHost) -> None:
    with serve(box.repository, gateway(box.host), dies_in="libcuda1_580") as url:
        box.done(roles=["nvidia_repository"], nvidia_repository_url=url)
        said = refused_and_untouched(box)
    box.done(roles=["nvidia_repository"])
    assert "the repository broke off during the download" in said
    assert "libcuda1" in said


def test_a_signature_from_the_future_is_the_clock_s_fault(box: DriverHost) -> None:
    box.sh('echo \'Acquire::Check-Date "true"; Acquire::Check-Valid-Until "true";\' >/etc/apt/apt.conf.d/zz-tests')
    box.repository.resign("not-valid-yet")
    url = box.repository.copy_to(box.host, "/srv/future")
    try:
        said = refused_and_untouched(box, roles=["nvidia_repository", "nvidia_driver"], nvidia_repository_url=url)
    finally:
        box.repository.resign()
        box.sh("rm -r /srv/future /etc/apt/apt.conf.d/zz-tests")
    assert "clock" in said


def test_a_driver_of_nvidia_s_that_needs_debian_s_contrib_gets_it(box: DriverHost) -> None:
    assert box.foretold("580.100.09").changed
    try:
        box.done("580.100.09")
        assert box.sh("dpkg-query -W -f '${db:Status-Status}' update-glx") == "installed"
        assert "Components: contrib" in box.sh("cat /etc/apt/sources.list.d/bringup-driver-components.sources")
        assert box.done("580.100.09").changed == 0
    finally:
        box.sh("apt-mark unhold $(apt-mark showhold); apt-get -qy purge update-glx", check=False)
        box.sh("rm -f /etc/apt/sources.list.d/bringup-driver-components.sources; apt-get -q update")


# A host that is no container loads the module at once. Doubles: what says that it is one is hidden, and a tree of PCI
# devices has a GPU. No kernel loads it: `modprobe` goes by the stub's modprobe.d, that writes to /sys/module too.
def test_the_first_run_on_a_host_with_a_gpu_loads_the_module_and_finishes_the_work(box: DriverHost) -> None:
    box.sh(
        "mkdir -p /srv/pci/0000:01:00.0; echo 0x10de >/srv/pci/0000:01:00.0/vendor;"
        "echo 0x030200 >/srv/pci/0000:01:00.0/class; mount --bind /srv/pci /sys/bus/pci/devices;"
        "mount -t tmpfs none /sys/module;"
        "for file in /.dockerenv /run/systemd/container; do [ ! -e $file ] || mv $file /srv/pci/; done;"
        "mv /usr/bin/systemd-detect-virt /srv/pci/"
    )
    try:
        with program(box, "/usr/bin/systemd-detect-virt", "echo none; exit 1"):
            box.done()
            assert box.verdict().endswith("nvidia-smi works")
            assert box.sh("systemctl is-active nvidia-persistenced") == "active"
            assert box.done().changed == 0
    finally:
        box.sh(
            "mv /srv/pci/systemd-detect-virt /usr/bin/; [ ! -e /srv/pci/.dockerenv ] || mv /srv/pci/.dockerenv /;"
            "[ ! -e /srv/pci/container ] || mv /srv/pci/container /run/systemd/;"
            "umount /sys/bus/pci/devices /sys/module"
        )


# What is seen before anything is changed.
def test_secure_boot_without_an_enrolled_key_says_how_to_enrol_it(box: DriverHost) -> None:
    answers = (
        'case "$1" in --sb-state) echo "SecureBoot enabled" ;; --test-key) echo "$2 is not enrolled"; exit 1 ;; esac'
    )
    with program(box, "/usr/sbin/mokutil", answers):
        said = refused_and_untouched(box)
        box.sh("mkdir -p /var/lib/dkms; touch /var/lib/dkms/mok.pub")
        with_key = refused_and_untouched(box)
    assert "Secure Boot is on" in said
    assert "has not been made yet" in said
    assert "(/var/lib/dkms/mok.pub) is not enrolled" in with_key
    assert "mokutil --import /var/lib/dkms/mok.pub" in with_key
    enrolled = 'case "$1" in --sb-state) echo "SecureBoot enabled" ;; --test-key) echo "$2 is already enrolled" ;; esac'
    with program(box, "/usr/sbin/mokutil", enrolled):
        assert box.play(check=True).ok


def test_programs_on_a_gpu_are_named_and_may_be_overruled(box: DriverHost) -> None:
    box.sh("touch /dev/nvidia0")
    box.host.docker("exec", "-d", box.host.name, "sh", "-c", "exec 3</dev/nvidia0; exec sleep 600")
    box.sh("for i in $(seq 50); do pgrep -x sleep >/run/pid && exit 0; sleep 0.1; done; exit 1")
    pid = box.sh("cat /run/pid")
    try:
        said = refused_and_untouched(box)
        assert f"sleep ({pid})" in said
        assert box.play(check=True, nvidia_driver_allow_running_processes=True).ok
        # One that is known to hold nothing of a person's.
        assert box.play(check=True, nvidia_driver_ignored_processes=["sleep"]).ok
    finally:
        box.sh(f"kill {pid}; rm /dev/nvidia0")


def test_a_driver_that_is_as_it_should_be_is_no_matter_of_running_programs(box: DriverHost) -> None:
    box.done()
    box.sh("touch /dev/nvidia0")
    box.host.docker("exec", "-d", box.host.name, "sh", "-c", "exec 3</dev/nvidia0; exec sleep 600")
    try:
        assert box.done().changed == 0
    finally:
        box.sh("pkill -x sleep; rm /dev/nvidia0")


def test_a_run_file_s_driver_says_how_to_remove_it(box: DriverHost) -> None:
    with program(box, "/usr/bin/nvidia-uninstall", "exit 0"):
        assert "sudo nvidia-uninstall" in refused_and_untouched(box)


def test_a_run_file_s_driver_is_known_by_its_log_and_library(box: DriverHost) -> None:
    library = "/usr/lib/x86_64-linux-gnu/libcuda.so"
    box.sh(f"touch /var/log/nvidia-installer.log {library}.575.1.1; ln -s libcuda.so.575.1.1 {library}.1")
    try:
        assert "NVIDIA's .run file" in refused_and_untouched(box)
    finally:
        box.sh(f"rm /var/log/nvidia-installer.log {library}.575.1.1 {library}.1")


def test_a_personal_archive_s_driver_is_named_with_what_to_do(box: DriverHost) -> None:
    planted(box, Package("nvidia-driver-575", "575.64.03-0ubuntu0~gpu1"))
    release = "Origin: LP-PPA-graphics-drivers\nLabel: Proprietary GPU Drivers\n"
    box.host.sh("cat >/srv/planted/Release", stdin=release.encode())
    box.sh("echo 'deb [trusted=yes] file:/srv/planted ./' >/etc/apt/sources.list.d/planted.list; apt-get -q update")
    box.sh("apt-get -qy install nvidia-driver-575")
    try:
        said = refused_and_untouched(box)
    finally:
        box.sh("rm /etc/apt/sources.list.d/planted.list; apt-get -q update")
    assert "nvidia-driver-575 575.64.03-0ubuntu0~gpu1 from LP-PPA-graphics-drivers" in said
    assert "apt-get purge nvidia-driver-575" in said
    assert "nvidia_driver_source=none" in said
    # Its archive is gone now, and the package is from nowhere.
    assert "no archive that apt knows" in refused_and_untouched(box)


def test_a_half_installed_package_is_named(box: DriverHost) -> None:
    planted(box, Package("planted-half", "1", scripts={"postinst": "exit 1\n"}))
    box.sh("dpkg --unpack /srv/planted/planted-half_1_amd64.deb")
    before = box.state()
    said = box.refused()
    assert box.state() == before
    assert "planted-half" in said
    assert "dpkg --configure -a" in said


def test_a_held_package_that_is_broken_is_named(box: DriverHost) -> None:
    planted(box, Package("planted-held", "1", "nobody-has-this"))
    box.sh("dpkg --force-depends -i /srv/planted/planted-held_1_amd64.deb; apt-mark hold planted-held")
    before = box.state()
    said = box.refused()
    assert box.state() == before
    assert "planted-held (held)" in said
    assert "apt-mark unhold planted-held" in said


def test_a_package_that_would_have_to_go_is_kept_and_named(box: DriverHost) -> None:
    planted(box, Package("planted-tool", "1", fields={"Conflicts": "libcuda1"}))
    box.sh("dpkg -i /srv/planted/planted-tool_1_amd64.deb")
    said = refused_and_untouched(box)
    assert "would remove planted-tool" in said


def test_somebody_else_s_hold_is_respected(box: DriverHost) -> None:
    box.done(nvidia_driver_hold=False)
    box.sh("apt-mark hold libcuda1")
    said = refused_and_untouched(box, "580.178.04")
    assert "somebody has held libcuda1" in said
    assert "apt-mark unhold libcuda1" in said


def test_a_kernel_without_headers_stops_it(box: DriverHost) -> None:
    said = refused_and_untouched(box, nvidia_driver_kernel="6.1.0-99-planted")
    assert "there is no package linux-headers-6.1.0-99-planted" in said


def test_a_disk_without_room_is_named(box: DriverHost) -> None:
    said = refused_and_untouched(box, nvidia_driver_free_mib={"/usr": 99999999})
    assert "/usr has" in said
    assert "99999999 MiB are needed" in said


def test_a_version_that_the_source_does_not_have_lists_those_it_has(box: DriverHost) -> None:
    said = refused_and_untouched(box, "580.200.99")
    assert "580.200.99" in said
    assert "580.178.04-1" in said


def test_wsl_is_sent_to_windows(box: DriverHost) -> None:
    box.sh(
        "echo 'Linux version 5.15.153.1-microsoft-standard-WSL2' >/run/version; mount --bind /run/version /proc/version"
    )
    try:
        said = refused_and_untouched(box)
    finally:
        box.sh("umount /proc/version")
    assert "the driver belongs into Windows" in said


def test_a_container_is_sent_to_its_host(box: DriverHost) -> None:
    said = refused_and_untouched(box, nvidia_driver_in_container=False)
    assert "the driver belongs to the container's host" in said
    assert "nvidia_driver_in_container=true" in said


def test_nouveau_leaves_the_initramfs_too(box: DriverHost) -> None:
    with program(box, "/usr/sbin/update-initramfs", 'echo "$@" >>/run/initramfs'):
        box.done()
        assert box.sh("cat /run/initramfs") == "-u"
        assert box.done().changed == 0
        assert box.sh("cat /run/initramfs") == "-u"
    box.sh("rm /run/initramfs")


def test_a_source_of_none_does_nothing(box: DriverHost) -> None:
    before = box.state()
    assert box.done(nvidia_driver_source="none").changed == 0
    assert box.state() == before


def test_a_host_that_does_not_come_back_is_said_with_its_console(box: DriverHost) -> None:
    # A shutdown that does nothing: the host never goes down, and its boot id stays.
    box.sh("mv /usr/sbin/shutdown /usr/sbin/shutdown.real")
    try:
        with program(box, "/usr/sbin/shutdown", "exit 0"):
            said = box.refused(
                roles=["reboot"],
                bringup_reboot=True,
                bringup_reboot_reasons=["a test wants it"],
                bringup_reboot_timeout_s=8,
            )
    finally:
        box.sh("mv /usr/sbin/shutdown.real /usr/sbin/shutdown")
    assert box.host.name in said
    assert "did not come back in 8 s" in said
    assert "sol activate" in said
    assert "get-console-output" in said
