"""The driver from Ubuntu's own archive: prebuilt signed modules, the kernels they bring, and our own holds on them.

A Debian 12 that says by /etc/os-release that it is Ubuntu 24.04, with a stub of Ubuntu's archive
(tests/hosts/nvidia_repository/ubuntu_archive.py). apt and dpkg are real, kernels and drivers are not: the running
kernel is given by nvidia_driver_kernel, and no host boots the newer one.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from provision.compat.model import Machine, Wish
from provision.compat.resolver import resolve
from tests.host.driver_play import NEW, NEXT, OLD, DriverHost, driver_host
from tests.hosts.containers import available
from tests.hosts.containers import container_hosts as start
from tests.hosts.nvidia_repository import ubuntu_archive
from tests.need import need

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

H200 = "10de:2335"
RUNNING, NEWEST = "6.8.0-45-generic", "6.8.0-149-generic"
META, HELD_KERNEL = "linux-modules-nvidia-580-server-open-generic", {"linux-image-generic", "linux-headers-generic"}
BEFORE = ("linux-generic", "linux-image-generic", "linux-headers-generic")


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DriverHost]:
    """One on which an older kernel runs than the archive has, without a driver."""
    need(available(), "no Docker engine runs, and root with docker.io, debootstrap and iptables could start one")
    with start(1) as (one,), driver_host(one, tmp_path_factory.mktemp("distro"), family="ubuntu") as made:
        archive(made, {OLD: [NEWEST]})
        made.sh(f"apt-get -qy install {' '.join(f'{name}=6.8.0-45.45' for name in BEFORE)}")
        made.sh("apt-mark auto linux-image-generic linux-headers-generic")
        yield made


def archive(host: DriverHost, drivers: Mapping[str, Sequence[str]]) -> None:
    """Give the host the archive as it is now."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "ubuntu"
        ubuntu_archive.write(folder, drivers, [RUNNING, NEWEST])
        host.sh("rm -rf /srv/ubuntu")
        host.host.docker("cp", str(folder), f"{host.host.name}:/srv/ubuntu")
    host.sh("echo 'deb [trusted=yes] file:/srv/ubuntu ./' >/etc/apt/sources.list.d/ubuntu.list; apt-get -q update")


def planned(branch: str, *, switches: int = 0) -> dict[str, object]:
    """What the resolver plans for it."""
    found = resolve(Machine((H200,), "ubuntu-24.04", RUNNING, nvswitches=switches), Wish("distro", branch))
    driver, manager = found.part("driver"), found.part("fabric_manager")
    assert driver is not None
    return {
        "nvidia_driver_source": "distro",
        "nvidia_driver_packages": list(driver.packages),
        "nvidia_driver_kernel": RUNNING,
        "fabric_manager_wanted": manager is not None,
        "fabric_manager_packages": list(manager.packages) if manager is not None else [],
    }


def there(host: DriverHost, pattern: str) -> dict[str, str]:
    """The installed packages of a pattern, with their versions."""
    said = host.sh(
        f"dpkg-query -W -f '${{db:Status-Status}} ${{Package}} ${{Version}}\\n' '{pattern}' 2>/dev/null || true"
    )
    rows = [line.split() for line in said.splitlines() if line.startswith("installed ")]
    return {name: version for _, name, version in rows}


def proposed(host: DriverHost) -> list[str]:
    said = host.sh("apt-get -s dist-upgrade; apt-get -s autoremove")
    return [
        line
        for line in said.splitlines()
        if line.startswith(("Inst", "Remv")) and ("nvidia" in line or "linux-" in line)
    ]


def test_the_newest_kernel_comes_whole_where_the_running_one_has_no_module(host: DriverHost) -> None:
    given = planned("580")
    assert host.foretold("580", **given).changed
    host.done("580", **given)
    assert there(host, "linux-modules-nvidia-*") == {
        META: "6.8.0-149.149",
        f"linux-modules-nvidia-580-server-open-{NEWEST}": "6.8.0-149.149",
    }
    for part in ("image", "headers", "modules-extra"):
        assert f"linux-{part}-{NEWEST}" in there(host, f"linux-{part}-6*"), part
    assert set(there(host, "linux-*generic").values()) >= {"6.8.0-149.149"}
    assert {there(host, name)[name] for name in BEFORE} == {"6.8.0-149.149"}
    assert {*HELD_KERNEL, META} <= set(host.sh("apt-mark showhold").split())
    assert f"the module is for the kernel of the next boot, {NEWEST}" in host.verdict()
    assert host.done("580", **given).changed == 0
    assert proposed(host) == []


def test_a_newer_version_of_the_branch_goes_past_our_own_holds_with_its_modules(host: DriverHost) -> None:
    archive(host, {OLD: [NEWEST], NEW: [RUNNING, NEWEST]})
    given = planned("580")
    # What is there is kept, until another version is asked for.
    assert host.done("580", **given).changed == 0
    host.done(NEW, **given)
    assert there(host, "linux-modules-nvidia-*") == {
        META: "6.8.0-149.149+1",
        f"linux-modules-nvidia-580-server-open-{NEWEST}": "6.8.0-149.149+1",
        f"linux-modules-nvidia-580-server-open-{RUNNING}": "6.8.0-45.45+1",
    }
    assert host.sh(f"modinfo -k {RUNNING} -F version nvidia") == NEW
    assert host.sh(f"modinfo -k {NEWEST} -F version nvidia") == NEW
    assert host.done(NEW, **given).changed == 0
    assert proposed(host) == []


def test_another_branch_takes_the_place_of_the_held_one_and_of_its_fabric_manager(host: DriverHost) -> None:
    both = ["nvidia_driver", "fabric_manager"]
    host.done(NEW, roles=both, **planned("580", switches=4))
    assert there(host, "nvidia-fabricmanager-*") == {"nvidia-fabricmanager-580": f"{NEW}-0ubuntu0.24.04.1"}
    archive(host, {NEW: [RUNNING, NEWEST], NEXT: [NEWEST]})
    given = planned("595", switches=4)
    host.done("595", roles=both, **given)
    assert there(host, "linux-modules-nvidia-*") == {
        META.replace("580", "595"): "6.8.0-149.149+1",
        f"linux-modules-nvidia-595-server-open-{NEWEST}": "6.8.0-149.149+1",
    }
    assert there(host, "*nvidia*-580*") == {}
    assert there(host, "nvidia-fabricmanager-*") == {"nvidia-fabricmanager-595": f"{NEXT}-0ubuntu0.24.04.1"}
    assert host.sh(f"modinfo -k {NEWEST} -F version nvidia") == NEXT
    assert host.done("595", roles=both, **given).changed == 0
    assert proposed(host) == []
