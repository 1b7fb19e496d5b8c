"""`bringup plan` on a container host over real SSH: nothing changes, and what really is in the way is told.

The host is a Debian 12; where a test plays Ubuntu 24.04 its os-release says so and all else is Debian underneath.
/dev/nvidia0 is an ordinary file there: a stand-in for a card that no container host has.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from provision.host_plan.model import HostPlan
from provision.planning import plan_hosts
from provision.profile import Profile, load_profile
from tests.hosts.containers import ContainerHost, available
from tests.hosts.containers import container_hosts as start
from tests.need import need

pytestmark = pytest.mark.timeout(600)

ROOT = Path(__file__).resolve().parents[2]
# Names, modes, sizes and dates of everything but what any login writes, and our own cache of the bundle.
SNAPSHOT = r"""
find / -xdev \( -path /proc -o -path /sys -o -path /run -o -path /dev -o -path /tmp -o -path /var/log \
  -o -path '/var/lib/systemd' -o -path '*/.cache' \) -prune -o -printf '%p %m %s %T@ %l\n' | sort
"""
UBUNTU = 'ID=ubuntu\nVERSION_ID="24.04"\nPRETTY_NAME="Ubuntu 24.04.3 LTS"\nVERSION_CODENAME=noble\n'


@pytest.fixture(scope="module")
def host() -> Iterator[ContainerHost]:
    need(available(), "no Docker engine runs, and root with docker.io, debootstrap and iptables could start one")
    with start(1) as (only,):
        yield only


def plan(host: ContainerHost, profile: Profile | None = None, **overrides: object) -> HostPlan:
    (made,) = plan_hosts(
        [host.host(**overrides)], profile or load_profile("image"), known_hosts=host.known_hosts, today="2026-11-21"
    )
    assert made.failure == ""
    return made


def blocked(made: HostPlan) -> str:
    return "\n".join(f"{one.what} -> {one.next_step}" for one in made.blockers)


@pytest.mark.parametrize("become", [False, True])
def test_a_plan_changes_nothing_on_the_host(host: ContainerHost, become: bool):
    host.sh("mkdir -p ~root/.cache; runuser -u op -- mkdir -p /home/op/.cache")  # the bundle's cache, left out below
    before = host.sh(SNAPSHOT)
    made = plan(host, become=become)
    after = host.sh(SNAPSHOT)

    assert made.found["os"].startswith("Debian GNU/Linux 12")
    assert after.splitlines() == before.splitlines()
    host.sh("touch /etc/bringup-was-here")
    assert host.sh(SNAPSHOT) != before, "such a change would have been seen"
    host.sh("rm /etc/bringup-was-here")


def test_a_bare_host_gets_all_parts_of_an_image(host: ContainerHost):
    made = plan(host)

    assert made.blockers == ()
    assert made.machine.os == "debian-12"
    assert made.variables["nvidia_driver_packages"] == ["nvidia-driver-cuda", "nvidia-kernel-open-dkms"]
    assert {one.what for one in made.changes} >= {"driver", "docker", "nvtop", "container_toolkit"}
    assert any("in a container (docker)" in one for one in made.warnings)


@contextmanager
def playing_ubuntu(host: ContainerHost) -> Iterator[None]:
    host.sh("cp -L /etc/os-release /var/tmp/os-release.kept; cat > /usr/lib/os-release", stdin=UBUNTU.encode())
    try:
        yield
    finally:
        host.sh("cp /var/tmp/os-release.kept /usr/lib/os-release; rm /var/tmp/os-release.kept")


def test_a_host_that_says_ubuntu_24_04_gets_ubuntus_names(host: ContainerHost):
    with playing_ubuntu(host):
        made = plan(host)

    assert made.machine.os == "ubuntu-24.04"
    assert made.variables["nvidia_driver_packages"] == [
        "libnvidia-compute-580",
        "nvidia-dkms-580-open",
        "nvidia-utils-580",
    ]
    assert plan(host).machine.os == "debian-12"


def test_a_package_that_did_not_configure_blocks_with_its_name(host: ContainerHost):
    """A real package, really left half-way by dpkg."""
    host.sh(
        "set -e; rm -rf /tmp/p; mkdir -p /tmp/p/DEBIAN\n"
        "printf '%s: %s\\n' Package stuck Version 1 Architecture all Maintainer x Description x>/tmp/p/DEBIAN/control\n"
        "printf '#!/bin/sh\\nexit 1\\n' > /tmp/p/DEBIAN/postinst; chmod 755 /tmp/p/DEBIAN/postinst\n"
        "dpkg-deb --root-owner-group -b /tmp/p /tmp/stuck.deb; dpkg -i /tmp/stuck.deb || true"
    )
    try:
        assert "stuck (half-configured)" in blocked(plan(host))
        assert "sudo dpkg --configure -a" in blocked(plan(host))
    finally:
        host.sh("dpkg -r --force-remove-reinstreq stuck")
    assert plan(host).blockers == ()


@contextmanager
def running(host: ContainerHost, code: str) -> Iterator[None]:
    """A Python program of root's on the host, until the end of the block."""
    host.sh(f"nohup python3 -c '{code}' > /tmp/out 2>&1 & echo $! > /tmp/pid; sleep 1; cat /tmp/out")
    try:
        yield
    finally:
        host.sh("kill $(cat /tmp/pid)")


def test_a_held_apt_lock_is_told_with_its_holder_to_an_ordinary_user(host: ContainerHost):
    code = (
        'import fcntl,time; f = open("/var/lib/dpkg/lock-frontend", "w"); fcntl.lockf(f, fcntl.LOCK_EX); time.sleep(99)'
    )
    with running(host, code):
        made = plan(host)
    assert any("apt's lock is held by python3 (pid " in one for one in made.warnings), made.warnings
    assert not any("lock" in one for one in plan(host).warnings)


def test_another_users_job_is_unknown_without_root_and_named_with_it(host: ContainerHost):
    host.sh("touch /dev/nvidia0")
    try:
        with running(host, 'import time; f = open("/dev/nvidia0"); time.sleep(99)'):
            ordinary, root = plan(host), plan(host, become=True)
        assert any("whether jobs use the GPU is not known" in one for one in ordinary.warnings), ordinary.warnings
        assert "1 process on the GPU: python3 (pid " in blocked(root)
    finally:
        host.sh("rm -f /dev/nvidia0")


def test_a_package_on_hold_is_counted(host: ContainerHost):
    host.sh("apt-mark hold tar")
    try:
        (made,) = plan_hosts([host.host()], load_profile("image"), known_hosts=host.known_hosts)
    finally:
        host.sh("apt-mark unhold tar")
    assert made.failure == ""
    hold = next(one for one in made.changes if one.kind == "hold")
    assert hold.now == "0 of 2 held", "tar is no part of the driver"


def test_the_command_gives_json_over_ssh(host: ContainerHost, tmp_path: Path):
    (tmp_path / "inventory.ini").write_text(host.inventory_line() + "\n")
    done = subprocess.run(
        [sys.executable, "-c", "from provision.cli import main; main()", "plan", "-i", "inventory.ini", "--json"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (told,) = json.loads(done.stdout)["hosts"]
    assert told["status"] == "ready"
    assert told["warnings"][0].startswith("no NVIDIA GPU is on the PCI bus")


def test_a_profile_that_requires_a_gpu_is_refused_there(host: ContainerHost):
    made = plan(host, replace(load_profile("image"), gpu_required=True))
    assert "no NVIDIA GPU is on the PCI bus, and the profile requires one" in blocked(made)
