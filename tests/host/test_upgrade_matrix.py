"""Everything that can go wrong in an upgrade, planted; each time the old driver works afterwards.

Real: dpkg, apt, systemd, SSH, Ansible, the reboots, the snapshot and the way back. Doubles, and they say so: NVIDIA's
repository, the GPU (tests/host/upgrade_hosts.py), and the roles that install (tests/host/roles/plain_driver), which
undo nothing of what they have done, so that the way back has everything to do.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from provision.commands import Selection
from provision.upgrade import command
from provision.upgrade.journal import RunState, read, state
from provision.upgrade.model import Hooks, Means, Options, Prepared
from provision.upgrade.waves import Rules
from tests.host.upgrade_hosts import (
    NEW,
    NEW_DIRECTORY,
    OLD,
    PACKAGES,
    PLAIN,
    URL,
    bundle_with_double,
    plain_install,
    plain_variables,
)
from tests.hosts.containers import ContainerHost, available, container_hosts
from tests.hosts.nvidia_repository import Repository, build, gateway, serve
from tests.need import need

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
INSTALL_TIMEOUT_S = 45


@dataclass(frozen=True)
class Planted:
    """A failure: `breakage` as tests.hosts.nvidia_repository has it, `on_host` a script. `says`: in the report."""

    name: str
    says: str
    phase: str
    breakage: str = ""
    release: str = ""
    dies_in: str = ""
    on_host: str = ""


PLANTED = (
    Planted("preinst-fails", "pre-installation script", "install", breakage="preinst-fails"),
    Planted("postinst-fails", "post-installation script", "install", breakage="postinst-fails"),
    Planted("postinst-hangs", "did not end within 45 s", "install", breakage="postinst-hangs"),
    Planted("dkms-fails", "post-installation script", "install", breakage="dkms-fails"),
    Planted("missing-dependency", "nobody-has", "install", breakage="missing-dependency"),
    Planted("file-conflict", "returned an error code", "install", breakage="file-conflict"),
    Planted("truncated", "", "install", breakage="truncated"),
    Planted("unsigned", "signed", "install", release="unsigned"),
    Planted("mirror-dies", "", "install", dies_in="libcuda1"),
    Planted("smi-fails-after-reboot", "no driver answers", "validate", breakage="smi-fails-after-reboot"),
    Planted("wrong-module-version", "version mismatch", "validate", breakage="wrong-module-version"),
    Planted("gpu-lost", "0 of 1 GPUs", "validate", on_host=f"echo {NEW} >/etc/stub-nvidia/lost-with"),
    Planted("too-hot", "temperature", "validate", on_host=f"echo {NEW} >/etc/stub-nvidia/hot-with"),
)
ROUNDS = [PLANTED[at : at + 4] for at in range(0, len(PLANTED), 4)]


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ContainerHost, ...]]:
    """Four hosts with the OLD driver. Each failure leaves them as they were: that is what is tested."""
    need(available(), "no Docker engine runs, and root with docker.io, debootstrap and iptables could start one")
    old = build(tmp_path_factory.mktemp("old") / "repository", versions=[OLD], toolkits=[])
    with container_hosts(4) as started:
        for host in started:
            plain_install(host, old, old.copy_to(host))
            assert URL in host.sh("cat /etc/apt/sources.list.d/nvidia.list")
        yield started


def upgrade(
    hosts: Sequence[ContainerHost],
    variables: Mapping[str, Mapping[str, object]],
    folder: Path,
    hooks: Hooks | None = None,
    **options: object,
) -> tuple[int, RunState, Path]:
    """Run it on all of them at once. Returns the exit code, the journal's state, and the run directory."""
    inventory = folder / "inventory.ini"
    inventory.write_text("\n".join(host.inventory_line() for host in hosts) + "\n")
    chosen = {"rules": Rules(canary=0, wave="100%", max_fail=99), "install_timeout_s": INSTALL_TIMEOUT_S, **options}
    means = Means(bundle_with_double(), roles=(PLAIN,), tell=lambda line: print(line, flush=True), settle_s=0)
    code = command.upgrade(
        Selection((str(inventory),)),
        Options(to=NEW, reboot_timeout_s=240, **chosen),  # type: ignore[arg-type]  # its own fields
        runs=folder / "runs",
        planner=lambda _hosts: Prepared(variables),
        hooks=hooks or Hooks(),
        means=means,
    )
    (run,) = (folder / "runs").iterdir()
    return code, state(read(run)), run


def facts(host: ContainerHost) -> dict[str, str]:
    """What must be the same after a way back as before."""
    return {
        "smi": host.sh("nvidia-smi --version"),
        "packages": host.sh("dpkg-query -W -f '${Package} ${Version} ${db:Status-Abbrev}\\n'"),
        "holds": host.sh("apt-mark showhold"),
        "automatic": host.sh("apt-mark showauto | grep -E 'nvidia|cuda' || true"),
        "audit": host.sh("dpkg --audit"),
        "apt": host.sh("cd /etc/apt && cat sources.list.d/* preferences.d/*; ls keyrings", check=False),
        "dkms": host.sh("dkms status"),
        "module": host.sh("modinfo -F version /lib/modules/$(uname -r)/updates/dkms/nvidia.ko"),
        "upgrade": host.sh("apt-get -s dist-upgrade | grep -E '^(Inst|Remv) .*nvidia' || true"),
    }


@contextlib.contextmanager
def planted(host: ContainerHost, plant: Planted, folder: Path) -> Iterator[tuple[Repository, str]]:
    """A repository with this failure, and where the host finds it."""
    broken = {NEW: plant.breakage} if plant.breakage else {}
    if plant.release:
        broken["Release"] = plant.release
    repository = build(folder / plant.name, versions=[OLD, NEW], toolkits=[], broken=broken)
    if plant.on_host:
        host.sh(f"mkdir -p /etc/stub-nvidia; {plant.on_host}")
    if plant.dies_in:
        with serve(repository, gateway(host), dies_in=f"{plant.dies_in}_{NEW}") as url:
            yield repository, url
    else:
        # A place of its own: apt keeps what it has read of a place that it cannot read again.
        yield repository, repository.copy_to(host, f"{NEW_DIRECTORY}-{plant.name}")
    host.sh("rm -f /etc/stub-nvidia/lost-with /etc/stub-nvidia/hot-with")


@pytest.mark.parametrize("plants", ROUNDS, ids=lambda plants: "+".join(plant.name for plant in plants))
def test_each_planted_failure_ends_with_the_old_driver_working_and_a_report_of_it(
    hosts: tuple[ContainerHost, ...], tmp_path: Path, plants: tuple[Planted, ...]
) -> None:
    chosen = dict(zip(plants, hosts, strict=False))
    before = {plant: facts(host) for plant, host in chosen.items()}
    with contextlib.ExitStack() as stack:
        variables = {}
        for plant, host in chosen.items():
            repository, url = stack.enter_context(planted(host, plant, tmp_path))
            variables[host.name] = plain_variables(NEW, repository, url)
        code, run, folder = upgrade(list(chosen.values()), variables, tmp_path)
    report = json.loads((folder / "upgrade.json").read_text())
    rows = {row["name"]: row for row in report["hosts"]}
    assert code == 1
    for plant, host in chosen.items():
        ended = run.hosts[host.name]
        failed = ended.failure()
        assert failed is not None and failed.phase == plant.phase, (plant.name, ended)
        assert ended.outcome == "rolled_back", (plant.name, ended.detail)
        assert plant.says in failed.detail, (plant.name, failed.detail)
        assert facts(host) == before[plant], plant.name
        assert f"DRIVER version      : {OLD}" in before[plant]["smi"] and before[plant]["audit"] == ""
        row = rows[host.name]
        assert row["before"]["driver"] == row["back"]["driver"] == OLD
        assert [step["phase"] for step in row["steps"]][-4:] == ["restore", "reboot_back", "validate_back", "undrain"]
        for name in ("upgrade.md", "upgrade.html"):
            assert host.name in (folder / name).read_text()


def test_a_good_version_is_installed_held_and_measured_and_the_way_back_is_there_by_hand(
    hosts: tuple[ContainerHost, ...], tmp_path: Path
) -> None:
    host = hosts[0]
    before = facts(host)
    repository = build(tmp_path / "good", versions=[OLD, NEW], toolkits=[])
    variables = {host.name: plain_variables(NEW, repository, repository.copy_to(host, NEW_DIRECTORY))}
    code, run, _ = upgrade([host], variables, tmp_path)
    assert (code, run.hosts[host.name].outcome) == (0, "done")
    assert f"DRIVER version      : {NEW}" in host.sh("nvidia-smi --version")
    assert set(PACKAGES) <= set(host.sh("apt-mark showhold").split())
    # No network and no repository: what the snapshot has must do.
    host.sh(f"rm -rf {NEW_DIRECTORY} /srv/nvidia-repository; apt-get clean")
    answer = json.loads(host.sh("python3 /var/lib/gpu-bringup/way_back restore"))
    assert answer["problems"] == [] and answer["changed"]
    host.docker("restart", host.name)
    _wait(lambda: f"DRIVER version      : {OLD}" in host.sh("nvidia-smi --version", check=False))
    assert {**facts(host), "upgrade": ""} == {**before, "upgrade": ""}
    again = json.loads(host.sh("python3 /var/lib/gpu-bringup/way_back restore"))
    assert not again["changed"], "a second way back changes nothing"


def test_hosts_that_cannot_go_well_are_refused_untouched_and_put_back_into_service(
    hosts: tuple[ContainerHost, ...], tmp_path: Path
) -> None:
    busy, unwilling, sick = hosts[:3]
    repository = build(tmp_path / "good", versions=[OLD, NEW], toolkits=[])
    chosen = {host: facts(host) | {"boot": host.sh("cat /proc/sys/kernel/random/boot_id")} for host in hosts[:3]}
    variables = {
        host.name: plain_variables(NEW, repository, repository.copy_to(host, NEW_DIRECTORY)) for host in hosts[:3]
    }
    # A file in the device's place: what counts is who has that path open.
    busy.sh("touch /dev/nvidia0; setsid sh -c 'exec 3</dev/nvidia0; exec sleep 1000' >/dev/null 2>&1 & sleep 1")
    sick.sh(f"mkdir -p /etc/stub-nvidia; echo {OLD} >/etc/stub-nvidia/lost-with")
    site = tmp_path / "site.sh"
    site.write_text(
        f'echo "$1 $BRINGUP_HOST" >>{tmp_path}/calls\n'
        f'[ "$1" != drain ] || [ "$BRINGUP_HOST" != {unwilling.name} ] || {{ echo node is not known; exit 4; }}\n'
    )
    code, run, _ = upgrade(hosts[:3], variables, tmp_path, Hooks(f"sh {site} drain", f"sh {site} undrain"))
    assert code == 1 and {ended.outcome for ended in run.hosts.values()} == {"refused"}
    assert "1 processes are on the GPUs: sleep" in run.hosts[busy.name].detail
    assert "sh ended with 4: node is not known" in run.hosts[unwilling.name].detail
    assert "it fails already, before anything was changed" in run.hosts[sick.name].detail
    for host, before in chosen.items():
        assert facts(host) | {"boot": host.sh("cat /proc/sys/kernel/random/boot_id")} == before
    calls = (tmp_path / "calls").read_text().split("\n")
    for host in (
        busy,
        unwilling,
        sick,
    ):  # measured once it is drained: a product of matrices beside jobs would hurt both
        assert [call for call in calls if host.name in call] == [f"drain {host.name}", f"undrain {host.name}"]
    busy.sh(
        "rm /dev/nvidia0; for f in /proc/[0-9]*/comm; do grep -qx sleep $f && kill $(echo $f | cut -d/ -f3); done; true"
    )
    sick.sh("rm /etc/stub-nvidia/lost-with")


def test_days_later_a_host_goes_back_by_a_command_of_its_own(
    hosts: tuple[ContainerHost, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run directory is named by a relative path, as it is by default. A job on its GPU is not ended for it."""
    monkeypatch.chdir(tmp_path)
    host = hosts[3]
    before = facts(host)
    repository = build(tmp_path / "good", versions=[OLD, NEW], toolkits=[])
    variables = {host.name: plain_variables(NEW, repository, repository.copy_to(host, NEW_DIRECTORY))}
    code, _, _ = upgrade([host], variables, tmp_path)
    assert code == 0 and f"DRIVER version      : {NEW}" in host.sh("nvidia-smi --version")
    means = Means(bundle_with_double(), tell=lambda line: print(line, flush=True), settle_s=0)
    selection = Selection(("inventory.ini",), (host.name,))
    options = Options(to="", rules=Rules(canary=0, wave="100%"), reboot_timeout_s=240)
    host.sh("touch /dev/nvidia0; setsid sleep 1000 3</dev/nvidia0 >/dev/null 2>&1 & echo $! >/run/job; sleep 1")
    assert command.rollback(selection, options, runs=Path("busy"), means=means) == 1
    assert f"DRIVER version      : {NEW}" in host.sh("nvidia-smi --version")
    host.sh("kill $(cat /run/job); rm /dev/nvidia0")
    assert command.rollback(selection, options, runs=Path("back"), means=means) == 0
    assert facts(host) == before
    (run,) = Path("back").iterdir()
    assert state(read(run)).hosts[host.name].outcome == "rolled_back"
    assert (run / "snapshots" / f"{host.name}.restored.json").is_file()


def _wait(good: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not good():
        assert time.monotonic() < deadline
        time.sleep(0.5)
