"""The driver's roles on a container host, from a signed stub of NVIDIA's repository, over real SSH, apt and dpkg.

Stand-ins: NVIDIA's packages, DKMS's compiler and the loading of the module (tests/hosts/nvidia_repository). The second
half says it is Ubuntu 24.04 by /etc/os-release, for Ubuntu's package names; it is a Debian 12 underneath.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from provision.compat.model import Machine, Wish
from provision.compat.resolver import resolve
from provision.plays import PlayResult
from tests.host.driver_play import NEW, NEXT, OLD, DriverHost, driver_host
from tests.hosts.containers import available
from tests.hosts.containers import container_hosts as start
from tests.need import need

pytestmark = pytest.mark.timeout(1200)

PIN = {"nvidia_driver_pin_package": "nvidia-driver-pinning-580"}
B200 = "10de:2901"
REBOOT = ("reboot", "nvidia_driver/verify")


@dataclass(frozen=True)
class Site:
    debian: DriverHost
    ubuntu: DriverHost


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    need(available(), "no Docker engine runs, and root with docker.io, debootstrap and iptables could start one")
    with (
        start(2) as (one, two),
        driver_host(one, tmp_path_factory.mktemp("debian")) as debian,
        driver_host(two, tmp_path_factory.mktemp("ubuntu"), family="ubuntu") as ubuntu,
    ):
        yield Site(debian, ubuntu)


@dataclass(frozen=True)
class Story:
    """The plays on the Debian host, in their order."""

    bare_check: PlayResult
    untouched: bool
    check: PlayResult
    first: PlayResult
    second: PlayResult
    check_after: PlayResult
    verdict: str


@pytest.fixture(scope="module")
def story(site: Site) -> Story:
    host = site.debian
    before = host.state()
    bare = host.play(check=True, roles=["nvidia_repository", "nvidia_driver"], **PIN)
    untouched = host.state() == before
    host.done(roles=["nvidia_repository"])
    before = host.state()
    check = host.play(check=True, **PIN)
    untouched = untouched and host.state() == before
    first = host.done(**PIN)
    verdict = host.verdict()
    return Story(bare, untouched, check, first, host.done(**PIN), host.play(check=True, **PIN), verdict)


def versions(host: DriverHost, *names: str) -> set[str]:
    return set(host.sh(f"dpkg-query -W -f '${{Version}}\\n' {' '.join(names)}").split())


def installed(host: DriverHost, pattern: str) -> str:
    """The installed packages of a pattern, in one line."""
    listed = "dpkg-query -W -f '${Package} ${db:Status-Status}\\n' '" + pattern + "'"
    return " ".join(host.sh(f"{listed} | sed -n 's/ installed$//p'").split())


def blackwell(branch: str) -> dict[str, object]:
    """The fabric manager as the resolver plans it for an HGX B200 on Ubuntu 24.04."""
    found = resolve(Machine((B200,), "ubuntu-24.04", nvswitches=2), Wish(branch=branch)).part("fabric_manager")
    assert found is not None
    return {"fabric_manager_wanted": True, "fabric_manager_packages": list(found.packages)}


def nvidia_packages_of_an_upgrade(host: DriverHost) -> list[str]:
    said = host.sh("apt-get -s dist-upgrade")
    return [
        line for line in said.splitlines() if line.startswith(("Inst", "Remv")) and ("nvidia" in line or "cuda" in line)
    ]


def test_a_check_on_a_bare_host_and_one_with_the_repository_foretell_and_change_nothing(story: Story) -> None:
    assert story.bare_check.ok
    assert story.check.ok
    assert story.bare_check.changed
    assert story.check.changed
    assert story.untouched


def test_the_second_run_and_a_check_after_it_change_nothing(story: Story) -> None:
    assert story.first.changed > 4
    assert story.second.changed == 0
    assert story.check_after.ok
    assert story.check_after.changed == 0


def test_packages_module_and_libraries_are_of_the_version_that_was_asked_for(site: Site, story: Story) -> None:
    host = site.debian
    assert versions(host, "nvidia-driver-cuda", "nvidia-kernel-open-dkms", "libcuda1") == {f"{OLD}-1"}
    assert host.sh("modinfo -F version nvidia") == OLD
    assert host.sh("modinfo -F license nvidia") == "Dual MIT/GPL"
    assert host.sh("readlink /usr/lib/x86_64-linux-gnu/libcuda.so.1") == f"libcuda.so.{OLD}"
    assert "blacklist nouveau" in host.sh("cat /etc/modprobe.d/bringup-nouveau.conf")
    assert host.sh("systemctl is-enabled nvidia-persistenced") == "enabled"


def test_headers_of_the_running_kernel_and_the_pin_came_before_the_driver(site: Site, story: Story) -> None:
    rows = [line.split() for line in site.debian.sh("grep ' install ' /var/log/dpkg.log").splitlines()]
    names = [row[3].partition(":")[0] for row in rows]
    headers = next(name for name in names if name.startswith("linux-headers-"))
    wanted = [headers, "nvidia-driver-pinning-580", "nvidia-kernel-open-dkms"]
    assert [name for name in names if name in wanted][:3] in (wanted, [wanted[1], wanted[0], wanted[2]])


def test_an_upgrade_of_the_distribution_proposes_no_package_of_nvidia_s(site: Site, story: Story) -> None:
    host = site.debian
    held = host.sh("apt-mark showhold").split()
    assert "nvidia-driver-cuda" in held
    assert nvidia_packages_of_an_upgrade(host) == []
    # And it is the holds that do it: without them there would be some.
    host.sh(f"apt-mark unhold {' '.join(held)}")
    proposed = nvidia_packages_of_an_upgrade(host)
    host.sh(f"apt-mark hold {' '.join(held)}")
    assert proposed


def test_what_came_for_others_sake_is_not_marked_as_asked_for(site: Site, story: Story) -> None:
    by_hand = site.debian.sh("apt-mark showmanual").split()
    assert "nvidia-driver-cuda" in by_hand
    assert "libcuda1" not in by_hand


def test_a_reboot_is_announced_then_done_and_the_driver_is_live(site: Site, story: Story) -> None:
    host = site.debian
    assert f"Reboot needed: the module {OLD} was installed and is not loaded" in story.verdict
    boot = host.sh("cat /proc/sys/kernel/random/boot_id")
    announced = host.done(roles=["reboot"])
    assert announced.changed == 0
    assert host.sh("cat /proc/sys/kernel/random/boot_id") == boot
    assert host.done(roles=REBOOT, bringup_reboot=True).changed == 1
    assert host.sh("cat /proc/sys/kernel/random/boot_id") != boot
    assert host.sh("nvidia-smi --query-gpu=driver_version --format=csv,noheader") == OLD
    assert host.verdict().endswith("nvidia-smi works")
    # It is over: nothing asks for a second one.
    assert host.done(roles=REBOOT, bringup_reboot=True).changed == 0


def test_a_newer_version_is_installed_in_spite_of_our_holds_and_needs_a_reboot(site: Site, story: Story) -> None:
    host = site.debian
    result = host.done(NEW, roles=["nvidia_driver", "reboot"], bringup_reboot=False, **PIN)
    assert result.changed
    assert "Reboot needed" in host.verdict()
    assert versions(host, "nvidia-driver-cuda", "nvidia-kernel-open-dkms", "libcuda1", "nvidia-modprobe") == {
        f"{NEW}-1"
    }
    assert "version mismatch" in host.sh("nvidia-smi", check=False)
    assert nvidia_packages_of_an_upgrade(host) == []
    assert host.done(NEW, roles=REBOOT, bringup_reboot=True).ok
    assert host.sh("nvidia-smi --query-gpu=driver_version --format=csv,noheader") == NEW
    assert host.done(NEW, **PIN).changed == 0


def test_a_branch_that_is_there_already_is_left_at_its_version(site: Site, story: Story) -> None:
    host = site.debian
    there = versions(host, "nvidia-driver-cuda")
    assert host.done("580", **PIN).changed == 0
    assert versions(host, "nvidia-driver-cuda") == there


def test_after_a_reboot_that_did_not_help_the_mismatch_is_a_failure(site: Site, story: Story) -> None:
    host = site.debian
    host.sh("echo 570.1.1 >/run/stub-nvidia/loaded")
    said = host.refused(NEW, roles=["nvidia_driver/verify"], bringup_rebooted=True)
    loaded = host.sh("modinfo -F version nvidia")
    host.sh(f"echo {loaded} >/run/stub-nvidia/loaded")
    assert "Driver/library version mismatch" in said
    assert "after the reboot as before" in said


def test_a_module_file_of_another_version_is_a_failure_of_verify(site: Site, story: Story) -> None:
    host = site.debian
    version = host.sh("modinfo -F version nvidia")
    path = host.sh("modinfo -F filename nvidia")
    host.sh(f"cp {path} /root/kept.ko; sed -i 's/version={version}/version=580.159.99/' {path}")
    said = host.refused(version, roles=["nvidia_driver/verify"])
    host.sh(f"rm {path}")
    gone = host.refused(version, roles=["nvidia_driver/verify"])
    host.sh(f"mv /root/kept.ko {path}")
    assert f"is of version 580.159.99 and the packages are {version}" in said
    assert "there is no module for the kernel" in gone
    assert host.done(version, roles=["nvidia_driver/verify"]).ok


def test_another_branch_replaces_the_driver_and_its_pin(site: Site, story: Story) -> None:
    host = site.debian
    pin = {"nvidia_driver_pin_package": "nvidia-driver-pinning-595"}
    assert host.done(NEXT, **pin).changed
    assert versions(host, "nvidia-driver-cuda", "nvidia-kernel-open-dkms", "libcuda1") == {f"{NEXT}-1"}
    assert "595" in host.sh(
        "dpkg-query -W -f '${Package} ${db:Status-Status}\\n' 'nvidia-driver-pinning-*' | grep ' installed'"
    )
    assert host.done(NEXT, **pin).changed == 0
    assert nvidia_packages_of_an_upgrade(host) == []


def test_module_parameters_are_written_and_wait_for_a_reboot(site: Site, story: Story) -> None:
    host = site.debian
    given = {"nvidia_driver_module_parameters": {"nvidia": {"NVreg_EnableStreamMemOPs": 1}}}
    pin = {"nvidia_driver_pin_package": "nvidia-driver-pinning-595"}
    assert host.done(NEXT, **pin, **given).changed
    assert "options nvidia NVreg_EnableStreamMemOPs=1" in host.sh("cat /etc/modprobe.d/bringup-nvidia.conf")
    assert "the parameters of the module were changed" in host.verdict()
    assert host.done(NEXT, **pin, **given).changed == 0
    assert host.done(NEXT, **pin).changed
    assert "missing" in host.sh("test -e /etc/modprobe.d/bringup-nvidia.conf || echo missing")


def test_the_fabric_manager_has_the_driver_s_own_version(site: Site, story: Story) -> None:
    host = site.debian
    version = host.sh("modinfo -F version nvidia")
    given = {"roles": ["fabric_manager"], "fabric_manager_wanted": True}
    assert host.done(version, **given).changed
    assert versions(host, "nvidia-fabricmanager") == {f"{version}-1"}
    assert "nvidia-fabricmanager" in host.sh("apt-mark showhold").split()
    assert host.sh("systemctl is-enabled nvidia-fabricmanager") == "enabled"
    assert host.done(version, **given).changed == 0


def test_names_with_the_branch_on_ubuntu(site: Site) -> None:
    host = site.ubuntu
    host.done(roles=["nvidia_repository", "nvidia_driver"], **PIN)
    assert versions(host, "nvidia-dkms-580-open", "nvidia-utils-580", "libnvidia-compute-580") == {f"{OLD}-1ubuntu1"}
    assert host.done(**PIN).changed == 0


def test_the_fabric_manager_of_hgx_blackwell_is_of_the_driver_s_version_and_infiniband_s_tools_of_their_own(
    site: Site,
) -> None:
    host = site.ubuntu
    given = {"roles": ["fabric_manager"], **blackwell("580")}
    assert host.foretold(OLD, **given).changed == 1
    assert host.done(OLD, **given).changed
    assert versions(host, "nvlink5-580", "nvidia-fabricmanager", "libnvsdm", "nvidia-imex") == {f"{OLD}-1"}
    held = host.sh("apt-mark showhold").split()
    assert {"nvlink5-580", "libnvsdm"} <= set(held)
    assert not {"libibumad3", "infiniband-diags"} & set(held)
    assert host.done(OLD, **given).changed == 0


def test_a_plan_for_another_branch_goes_past_the_held_pin_the_held_fabric_manager_and_brings_nvidia_smi(
    site: Site,
) -> None:
    host = site.ubuntu
    assert "nvidia-driver-pinning-580" in host.sh("apt-mark showhold").split()
    planned = resolve(Machine((B200,), "ubuntu-24.04"), Wish(branch="595")).part("driver")
    assert planned is not None
    given = {"nvidia_driver_packages": list(planned.packages), "nvidia_driver_pin_package": planned.pin}
    host.done(NEXT, **given)
    assert versions(host, "nvidia-dkms-open", "nvidia-utils", "libnvidia-compute") == {f"{NEXT}-1ubuntu1"}
    assert host.sh("test -x /usr/bin/nvidia-smi && dpkg -S /usr/bin/nvidia-smi") == "nvidia-utils: /usr/bin/nvidia-smi"
    assert installed(host, "*-580*") == ""
    assert installed(host, "nvidia-driver-pinning-*") == "nvidia-driver-pinning-595"
    assert host.sh("modinfo -F version nvidia") == NEXT
    assert host.done(NEXT, **given).changed == 0
    assert nvidia_packages_of_an_upgrade(host) == []


def test_the_fabric_manager_follows_and_is_asked_after_the_reboot(site: Site) -> None:
    host = site.ubuntu
    given = blackwell("595")
    assert host.done(NEXT, roles=["fabric_manager"], **given).changed
    assert versions(host, "nvlink5", "nvidia-fabricmanager", "libnvsdm") == {f"{NEXT}-1"}
    after = ["reboot", "nvidia_driver/verify", "fabric_manager/verify"]
    assert host.done(NEXT, roles=after, bringup_reboot=True, **given).ok
    assert host.done(NEXT, roles=["fabric_manager"], **given).changed == 0
    host.sh("systemctl stop nvidia-fabricmanager")
    said = host.refused(NEXT, roles=["fabric_manager/verify"], **given)
    assert "does not run after the reboot (inactive)" in said
    assert "journalctl -u nvidia-fabricmanager" in said


def test_a_fabric_manager_that_no_repository_has_is_said_in_one_sentence(site: Site) -> None:
    said = site.ubuntu.refused(
        NEXT, roles=["fabric_manager"], fabric_manager_wanted=True, fabric_manager_packages=["nvidia-fabricmanager-1"]
    )
    assert f"of the driver's version, {NEXT}, could not be installed" in said
    assert "Unable to locate package nvidia-fabricmanager-1" in said


def test_the_proprietary_module_takes_the_open_one_s_place(site: Site) -> None:
    host = site.ubuntu
    version = NEXT
    host.done(version, nvidia_driver_module="proprietary")
    assert host.sh("modinfo -F license nvidia") == "NVIDIA"
    assert host.done(version, nvidia_driver_module="proprietary").changed == 0
