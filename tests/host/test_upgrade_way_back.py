"""The way back's own program, on a host brought into every state that apt and dpkg can be in.

Real dpkg, apt, systemd; the packages are the stub's.
"""

from __future__ import annotations

import getpass
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from provision.upgrade.plays import Plays
from tests.host.upgrade_hosts import plain_install
from tests.hosts.containers import ContainerHost, available, container_hosts
from tests.hosts.nvidia_repository import build
from tests.need import need

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
PROGRAM = Path(__file__).resolve().parents[2] / "playbooks/roles/snapshot/files/way_back"
SNAPSHOTS = "/var/lib/gpu-bringup/snapshots"
DEBS = f"cd {SNAPSHOTS}/first/debs"
INFO = "/var/lib/dpkg/info"

STATES = {
    "the DKMS module is gone and its package is as it was": "dkms remove -m nvidia -v 580.159.04 --all",
    "a library is damaged": "echo x >>/usr/lib/x86_64-linux-gnu/libcuda.so.580.159.04",
    "a library is gone": "rm /usr/lib/x86_64-linux-gnu/libnvidia-ml.so.580.159.04",
    "packages were purged by force": "dpkg --force-all --purge libcuda1 nvidia-kernel-open-dkms",
    "a package is unpacked and not configured": f"{DEBS}; dpkg --unpack nvidia-kernel-support*.deb",
    "a postinst failed": (
        f"{DEBS}; dpkg --unpack libcuda1*.deb; printf '#!/bin/sh\\nexit 1\\n' >{INFO}/libcuda1.postinst;"
        f"chmod +x {INFO}/libcuda1.postinst; dpkg --configure libcuda1"
    ),
    "dpkg was killed while it unpacked, and its script would kill it again": (
        f"printf '#!/bin/sh\\nkill -9 $PPID\\n' >{INFO}/nvidia-driver-cuda.prerm;"
        f"chmod +x {INFO}/nvidia-driver-cuda.prerm; {DEBS}; dpkg -i nvidia-driver-cuda*.deb"
    ),
    "a package's removal fails": (
        f"printf '#!/bin/sh\\nexit 1\\n' >{INFO}/libnvidia-ml1.prerm; chmod +x {INFO}/libnvidia-ml1.prerm;"
        "dpkg --force-all --remove libnvidia-ml1"
    ),
    "holds were changed": "apt-mark unhold nvidia-driver-cuda; apt-mark hold libcuda1",
    "sources, pins and module settings were changed": (
        "rm /etc/apt/sources.list.d/nvidia.list; echo '# nvidia' >/etc/modprobe.d/x.conf;"
        "echo 'deb [trusted=yes] file:/nowhere/cuda ./' >/etc/apt/sources.list.d/other.list"
    ),
    "apt's marks were changed": "apt-mark manual nvidia-modprobe; apt-mark auto nvidia-driver-cuda",
}


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ContainerHost]:
    """A host with a driver and the snapshot `first`; its repository is gone."""
    need(available(), "no Docker engine runs, and root with docker.io, debootstrap and iptables could start one")
    old = build(tmp_path_factory.mktemp("old") / "repository", versions=["580.159.04"], toolkits=[])
    with container_hosts(1) as (started,):
        plain_install(started, old, old.copy_to(started))
        started.sh("mkdir -p /var/lib/gpu-bringup")
        started.docker("cp", str(PROGRAM), f"{started.name}:/var/lib/gpu-bringup/way_back")
        assert way_back(started, "take first")["missing"] == []
        started.sh("rm -rf /srv/nvidia-repository; apt-get clean")
        yield started


def way_back(host: ContainerHost, words: str) -> dict[str, Any]:
    """What the program answers."""
    lines = host.sh(f"python3 /var/lib/gpu-bringup/way_back {words}", check=False).splitlines()
    answer: dict[str, Any] = json.loads(lines[-1])
    return answer


def facts(host: ContainerHost) -> str:
    """What must be as it was."""
    return host.sh(
        "dpkg-query -W -f '${Package} ${Version} ${db:Status-Abbrev}\\n'; apt-mark showhold; apt-mark showauto;"
        "dpkg --audit; dkms status; cat /etc/apt/sources.list.d/*; ls /etc/modprobe.d /etc/apt/keyrings;"
        "nvidia-smi --version; md5sum /usr/lib/x86_64-linux-gnu/*.so.580.159.04"
    )


@pytest.mark.parametrize("script", STATES.values(), ids=STATES.keys())
def test_a_host_comes_back_from_any_state(host: ContainerHost, script: str) -> None:
    before = facts(host)
    host.sh(script, check=False)
    assert facts(host) != before, "nothing was planted"
    foretold = way_back(host, "--check restore first")
    answer = way_back(host, "restore first")
    assert answer["problems"] == [] and answer["changed"], answer
    assert facts(host) == before
    assert not way_back(host, "restore first")["changed"], "the second time there is nothing to do"
    assert not foretold.get("failure")


def test_a_removal_script_that_fails_does_not_keep_a_lost_file_away(host: ContainerHost) -> None:
    """Not even where the package is of the right version, so that it is only installed again."""
    before = facts(host)
    script = f"{INFO}/libnvidia-ml1.prerm"
    host.sh(f"printf '#!/bin/sh\\nexit 1\\n' >{script}; chmod +x {script}")
    host.sh("rm /usr/lib/x86_64-linux-gnu/libnvidia-ml.so.580.159.04")
    assert way_back(host, "--check restore first")["would"] == ["files of libnvidia-ml1 are missing or changed"]
    assert way_back(host, "restore first")["problems"] == []
    assert facts(host) == before


def test_what_an_install_left_running_is_ended_and_nobody_elses_work(host: ContainerHost) -> None:
    lock = "import fcntl,time; f=open('/var/lib/dpkg/lock-frontend','w'); fcntl.lockf(f,fcntl.LOCK_EX); time.sleep(600)"
    host.sh(f'BRINGUP_UPGRADE=run1 setsid python3 -c "{lock}" >/dev/null 2>&1 & sleep 1')
    answer = way_back(host, "restore first --patience 30")
    assert answer["problems"] == [] and "ended what the install had left running" in answer["notes"][0]
    host.sh(f'setsid python3 -c "{lock}" >/dev/null 2>&1 & echo $! >/run/stranger; sleep 1')
    answer = way_back(host, "restore first --patience 2")
    assert "lock is held by python3" in answer["failure"]
    host.sh("kill -0 $(cat /run/stranger); kill $(cat /run/stranger)")


def test_a_snapshot_is_only_taken_where_it_is_worth_something(host: ContainerHost) -> None:
    # Another snapshot takes the .deb files over, though no repository has them.
    assert way_back(host, "take second")["missing"] == []
    inodes = host.sh(f"stat -c %i {SNAPSHOTS}/first/debs/libcuda1*.deb {SNAPSHOTS}/second/debs/libcuda1*.deb").split()
    assert inodes[0] == inodes[1], "they share what they have in common"
    host.sh(f"mv {SNAPSHOTS} {SNAPSHOTS}.aside")
    answer = way_back(host, "take third")
    assert "no way back for" in answer["failure"] and "libcuda1 580.159.04-1" in answer["failure"]
    assert host.sh(f"ls -A {SNAPSHOTS}") == ""
    assert "libcuda1 580.159.04-1" in way_back(host, "take third --without-way-back")["missing"]
    host.sh(f"rm -r {SNAPSHOTS}; mv {SNAPSHOTS}.aside {SNAPSHOTS}; {DEBS}; dpkg --unpack nvidia-modprobe*.deb")
    assert "dpkg has unfinished work: nvidia-modprobe" in way_back(host, "take fourth")["failure"]
    way_back(host, "restore first")


def test_a_snapshot_of_the_host_as_it_is_does_not_hide_the_one_before(host: ContainerHost) -> None:
    host.sh("apt-mark unhold nvidia-driver-cuda")
    try:
        assert "failure" not in way_back(host, "take refused")
        answer = way_back(host, "restore")
        assert answer["changed"] and answer["problems"] == [], answer
        host.sh("apt-mark showhold | grep -x nvidia-driver-cuda")
    finally:
        way_back(host, "restore first")
        host.sh(f"rm -rf {SNAPSHOTS}/refused")


def test_a_drained_host_is_one_that_the_installation_takes(host: ContainerHost, tmp_path: Path) -> None:
    """Files stand in for the devices: what counts is who has such a path open."""

    def idle() -> str:
        results = Plays(tmp_path, [host.host()]).run("upgrade.yml", "idle", [host.name], tags=("idle",), deadline_s=120)
        return results[host.name].detail

    holding = "setsid {} 9<>/dev/{} >/dev/null 2>&1 & echo $! >>/run/holders; sleep 0.5"
    host.sh("touch /dev/nvidia0 /dev/nvidiactl; : >/run/holders")
    host.sh("cp /bin/sleep /run/dcgm-exporter; cp /bin/sleep /run/monitor")
    try:
        host.sh(holding.format("/run/dcgm-exporter 600", "nvidia0"))
        assert idle() == "", "a service that holds a GPU without a job"
        host.sh(holding.format("/run/monitor 600", "nvidiactl"))
        assert "1 processes are on the GPUs: monitor (" in idle()
    finally:
        host.sh("kill $(cat /run/holders); rm -f /dev/nvidia0 /dev/nvidiactl")


def deb(name: str, fields: str = "") -> str:
    """A script that makes and installs an empty package."""
    control = f"Package: {name}\\nVersion: 1\\nArchitecture: all\\nMaintainer: a test\\nDescription: planted\\n{fields}"
    folder = f"/run/planted/{name}"
    return (
        f"mkdir -p {folder}/DEBIAN; printf '{control}' >{folder}/DEBIAN/control; dpkg-deb -b {folder} {folder}.deb;"
        f"apt-get -q -y --allow-change-held-packages install {folder}.deb;"
    )


def test_other_peoples_packages_stay_and_what_they_need_with_them(host: ContainerHost) -> None:
    before = facts(host)
    # As where an upgrade has brought dkms, and somebody's zfs-dkms came later.
    host.sh(deb("nvidia-planted") + deb("zfs-planted", "Depends: nvidia-planted\\n") + deb("nvidia-needless"))
    assert way_back(host, "--check restore first")["would"] == ["nvidia-needless is there and was not"]
    answer = way_back(host, "restore first")
    assert answer["problems"] == [] and "left, since other packages need it: nvidia-planted" in answer["notes"], answer
    assert "removed, since the snapshot does not have them: nvidia-needless" in answer["notes"]
    assert host.sh("dpkg-query -W -f '${Status} ' nvidia-planted zfs-planted").count("ok installed") == 2
    assert not way_back(host, "restore first")["changed"]
    host.sh("apt-get -q -y purge nvidia-planted zfs-planted")
    assert facts(host) == before


def test_a_way_back_that_cannot_spare_other_peoples_packages_is_refused_before_it_begins(host: ContainerHost) -> None:
    before = facts(host)
    host.sh("apt-mark unhold nvidia-driver-cuda; apt-get -q -y remove nvidia-modprobe")
    host.sh(deb("nvidia-instead", "Conflicts: nvidia-modprobe\\n") + deb("zfs-planted", "Depends: nvidia-instead\\n"))
    planted = facts(host)
    assert "nvidia-modprobe 580" not in planted
    for words in ("--check restore first", "restore first"):
        failure = way_back(host, words)["failure"]
        assert (
            "would remove zfs-planted, which is not the driver's" in failure and "apt-get remove zfs-planted" in failure
        )
        assert facts(host) == planted
    host.sh("apt-get -q -y purge zfs-planted")
    assert way_back(host, "restore first")["problems"] == []
    assert facts(host) == before


def test_what_others_have_lost_by_an_upgrade_is_a_problem_and_days_later_only_said(host: ContainerHost) -> None:
    host.sh(deb("planted-tool"))
    assert "failure" not in way_back(host, "take whole")
    host.sh("dpkg --purge planted-tool")
    gone = "gone since the snapshot, and not the driver's: planted-tool"
    at_once = way_back(host, "--run whole restore whole")
    assert at_once["problems"] == [gone] and gone in at_once["failure"]
    later = way_back(host, "--run another restore whole")
    assert later["problems"] == [] and gone in later["notes"] and not later["changed"]
    way_back(host, "release")
    host.sh(f"rm -r {SNAPSHOTS}/whole")


def test_files_that_were_there_stay_and_those_that_were_not_are_put_aside(host: ContainerHost) -> None:
    host.sh("echo 'blacklist floppy' >/etc/modprobe.d/site.conf")
    assert "failure" not in way_back(host, "take files")
    host.sh("echo 'options nvidia x=1' >>/etc/modprobe.d/site.conf; echo '# nvidia, mine' >/etc/modprobe.d/new.conf")
    answer = way_back(host, "restore files")
    assert answer["problems"] == [] and answer["changed"]
    assert "nvidia" in host.sh("cat /etc/modprobe.d/site.conf"), "it was there and was not ours"
    assert host.sh(f"cat {SNAPSHOTS}/files/aside-*/etc/modprobe.d/new.conf") == "# nvidia, mine\n"
    assert "new.conf" not in host.sh("ls /etc/modprobe.d")
    assert not way_back(host, "restore files")["changed"]
    host.sh(f"rm -r /etc/modprobe.d/site.conf {SNAPSHOTS}/files")


HOLD = (
    "import fcntl, time; f = open('/var/lib/gpu-bringup/lock', 'w'); fcntl.flock(f, fcntl.LOCK_EX);"
    "f.write('one of a test'); f.flush(); time.sleep(600)"
)
"""Somebody's way back whose operator is gone."""


def test_two_ways_back_do_not_work_at_once(host: ContainerHost) -> None:
    before = facts(host)
    host.sh("dpkg --force-all --purge libcuda1", check=False)
    planted = facts(host)
    host.sh(f"mkdir {SNAPSHOTS}/.cut.part; touch {SNAPSHOTS}/.cut.part/x")
    host.sh(f'setsid python3 -c "{HOLD}" >/dev/null 2>&1 & echo $! >/run/holder; sleep 1')
    for words in ("restore first", "--run r restore first", "take cut", "--run r mine"):
        assert "at work on this host is still: one of a test" in way_back(host, f"--wait 0.1 {words}")["failure"]
    assert host.sh(f"ls {SNAPSHOTS}/.cut.part") == "x\n", "what the other one writes is left to it"
    assert facts(host) == planted
    # With patience it goes on when the other has ended, and finds whatever that has left.
    program = "python3 /var/lib/gpu-bringup/way_back --wait 60 restore first >/run/waited"
    host.sh(f"{program} & sleep 1; [ ! -s /run/waited ] || exit 9; kill $(cat /run/holder); wait $!")
    assert json.loads(host.sh("cat /run/waited"))["problems"] == [] and facts(host) == before
    host.sh(f"rm -r {SNAPSHOTS}/.cut.part")


def test_a_host_is_one_runs_from_its_snapshot_to_its_end(host: ContainerHost) -> None:
    for run in ("mine", "elsewhere"):
        host.sh(f"BRINGUP_UPGRADE={run} setsid sleep 600 >/dev/null 2>&1 & echo $! >/run/{run}")
    assert "failure" not in way_back(host, "--run mine --who maria@ops1 take mine")
    for words in ("take theirs", "restore first", "mine"):
        failure = way_back(host, f"--run theirs {words}")["failure"]
        assert "the run mine of maria@ops1 has this host since 20" in failure and "way_back release" in failure
    assert "has this host" in way_back(host, "--run= take by-hand")["failure"], "a play by hand"
    host.sh("kill -0 $(cat /run/mine)")
    assert way_back(host, "look")["owner"]["run"] == "mine"
    assert "failure" not in way_back(host, "--run mine mine")
    assert "failure" not in way_back(host, "--run mine take mine"), "resumed"

    # Its own way back ends what it has left running; the reboot after that ends the run.
    assert "ended what the install had left running" in way_back(host, "--run mine restore mine")["notes"][0]
    host.sh("! kill -0 $(cat /run/mine); kill $(cat /run/elsewhere)")
    assert "has this host" in way_back(host, "--run theirs take theirs")["failure"]
    host.sh('sed -i \'s/"restored_in": "[^"]*/&-another-boot/\' /var/lib/gpu-bringup/owner.json')
    assert "failure" not in way_back(host, "--run mine mine"), "a reboot that was cut off"
    assert "failure" not in way_back(host, "--run theirs take theirs")
    assert "the run theirs of somebody has this host" in way_back(host, "--run mine mine")["failure"]

    # A way back by hand needs nobody's leave, and the run does not go on as if nothing had been.
    assert way_back(host, "restore theirs")["problems"] == []
    assert "theirs has this host no more" in way_back(host, "--run theirs mine")["failure"]
    assert "failure" not in way_back(host, "--run mine take mine")
    assert "failure" not in way_back(host, "release") and way_back(host, "look")["owner"] == {}

    # What failed leaves it to the next.
    assert "no whole snapshot" in way_back(host, "--run mine restore nowhere")["failure"]
    assert way_back(host, "look")["owner"] == {}
    host.sh(f"rm -r {SNAPSHOTS}/mine {SNAPSHOTS}/theirs")


def test_another_operators_run_is_refused_with_who_has_it_until_it_is_released(
    host: ContainerHost, tmp_path: Path
) -> None:
    def play(run: str, *tags: str) -> str:
        plays = Plays(tmp_path / run, [host.host()])
        given = {"snapshot_name": run, "snapshot_keep": 9}
        return plays.run("upgrade.yml", tags[0], [host.name], tags=tags, deadline_s=120, **given)[host.name].detail

    assert play("20261121-080000", "snapshot") == ""
    refused = play("20261121-080001", "snapshot")
    assert f"the run 20261121-080000 of {getpass.getuser()}@{os.uname().nodename} has this host since 20" in refused
    for tag in ("install", "reboot"):  # as one that had it once
        host.sh(f"mkdir -p {SNAPSHOTS}/20261121-080001")
        assert "has this host since" in play("20261121-080001", tag)
    assert play("20261121-080001", "release") == "" and "has this host" in play("20261121-080001", "install")
    assert play("20261121-080000", "release") == ""
    host.sh(f"rm -r {SNAPSHOTS}/20261121-*")
    assert play("20261121-080001", "snapshot") == "" == play("20261121-080001", "release")
    host.sh(f"rm -r {SNAPSHOTS}/20261121-*")


def test_old_snapshots_go_and_a_damaged_one_is_not_used(host: ContainerHost) -> None:
    for name in ("a", "b", "c"):
        way_back(host, f"take {name} --keep 2")
    assert len(host.sh(f"ls {SNAPSHOTS}").split()) == 2
    assert host.sh(f"stat -c %a {SNAPSHOTS}").strip() == "700"
    host.sh(
        f"cp {SNAPSHOTS}/c/debs/libcuda1*.deb /run/x; truncate -s -1 /run/x; mv /run/x {SNAPSHOTS}/c/debs/libcuda1*.deb"
    )
    assert "was changed since the snapshot" in way_back(host, "restore c")["failure"]
