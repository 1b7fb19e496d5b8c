"""site.yml over real SSH on two bare container hosts, from real packages: foretold, done, done again, foretold again.

The first host gets the packages; the second gets nvtop from a source tree and a framework's environment. The stand-in
for a framework is `six`, since torch is 200 MB and the role does the same with it. Docker is the distribution's: the
vendor's repository is not within reach of every machine that runs these tests.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from provision.plays import PlayEvent, PlayResult, run_play
from tests.hosts.containers import ContainerHost, available
from tests.hosts.containers import container_hosts as start
from tests.need import need

pytestmark = pytest.mark.timeout(1200)

ROOT = Path(__file__).resolve().parents[2]
NVTOP_SOURCE = "3.2.0"
NVTOP_SHA256 = "d26df685455023cedc4dda033862dcddb67402fbdb685da70da78492f73c41d0"


@dataclass(frozen=True)
class Story:
    """The four plays, in their order."""

    foretold: PlayResult
    first: PlayResult
    second: PlayResult
    foretold_after: PlayResult
    artifacts: Path
    events: list[PlayEvent]


@pytest.fixture(scope="module")
def container_hosts() -> Iterator[tuple[ContainerHost, ...]]:
    need(available(), "no Docker engine runs, and root with docker.io, debootstrap and iptables could start one")
    with start(2) as hosts:
        yield hosts


@pytest.fixture(scope="module")
def nvtop_tree(container_hosts: tuple[ContainerHost, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """nvtop's upstream source, which Debian 13's source package consists of, fetched by a host from its mirror."""
    host = container_hosts[1]
    directory = tmp_path_factory.mktemp("nvtop")
    host.sh(
        "uri=$(apt-get indextargets --format '$(REPO_URI)' 'Identifier: Packages' | head -1)\n"
        f"curl -fsSo /var/tmp/nvtop.orig ${{uri}}pool/main/n/nvtop/nvtop_{NVTOP_SOURCE}.orig.tar.gz"
    )
    host.docker("cp", f"{host.name}:/var/tmp/nvtop.orig", str(directory / "orig.tar"))
    assert hashlib.sha256((directory / "orig.tar").read_bytes()).hexdigest() == NVTOP_SHA256
    tree = directory / "tree"
    tree.mkdir()
    subprocess.run(["tar", "-C", str(tree), "--strip-components=1", "-xf", str(directory / "orig.tar")], check=True)
    return tree


@pytest.fixture(scope="module")
def story(
    container_hosts: tuple[ContainerHost, ...], nvtop_tree: Path, tmp_path_factory: pytest.TempPathFactory
) -> Story:
    base = tmp_path_factory.mktemp("site")
    inventory = base / "inventory"
    (inventory / "host_vars").mkdir(parents=True)
    lines = [host.inventory_line() for host in container_hosts]
    (inventory / "hosts.ini").write_text("\n".join(["[gpu]", *lines, "[gpu:vars]", "docker_source=distro"]) + "\n")
    second = {
        "nvtop_from": "source",
        "nvtop_source_tree": str(nvtop_tree),
        "nvtop_source_tag": NVTOP_SOURCE,
        "docker_users": ["op"],
        "docker_daemon_options": {"log-driver": "local"},
        "frameworks": [{"name": "torch", "packages": ["six==1.16.0"]}],
    }
    (inventory / "host_vars" / f"{container_hosts[1].name}.yml").write_text(json.dumps(second))
    events: list[PlayEvent] = []

    def play(*, check: bool = False) -> PlayResult:
        result = run_play(
            "site.yml", [inventory], artifact_dir=base / "plays", check=check, diff=check, on_event=events.append
        )
        assert result.ok, [failure.sentence() for failure in result.failures]
        return result

    return Story(play(check=True), play(), play(), play(check=True), base / "plays", events)


def test_a_check_on_a_bare_host_foretells_changes_and_makes_none(story: Story) -> None:
    assert all(host.changed >= 2 for host in story.foretold.hosts.values())
    assert all(story.first.hosts[name].changed >= host.changed for name, host in story.foretold.hosts.items())


def test_the_second_run_changes_nothing(story: Story) -> None:
    assert len(story.second.hosts) == 2
    assert story.first.changed > 4
    assert story.second.changed == 0


def test_a_check_after_it_finds_nothing_to_change(story: Story) -> None:
    assert story.foretold_after.changed == 0


def test_nvtop_is_there_from_the_package_and_from_the_source(
    story: Story, container_hosts: tuple[ContainerHost, ...]
) -> None:
    first, second = container_hosts
    assert "nvtop version" in first.sh("/usr/bin/nvtop --version")
    assert first.sh("dpkg-query -W -f '${Status}' nvtop") == "install ok installed"
    assert NVTOP_SOURCE in second.sh("/usr/local/bin/nvtop --version")
    assert "no packages found" in second.sh("dpkg-query -W nvtop", check=False)


def test_the_docker_daemon_runs_and_survives_a_reboot(story: Story, container_hosts: tuple[ContainerHost, ...]) -> None:
    for host in container_hosts:
        assert host.sh("docker info --format '{{.ServerVersion}}'").strip()[0].isdigit()
        assert host.sh("systemctl is-enabled docker").strip() == "enabled"


def test_the_daemon_s_options_and_users_are_live(story: Story, container_hosts: tuple[ContainerHost, ...]) -> None:
    first, second = container_hosts
    assert second.sh("docker info --format '{{.LoggingDriver}}'").strip() == "local"
    assert first.sh("docker info --format '{{.LoggingDriver}}'").strip() == "json-file"
    assert "docker" in second.sh("id -nG op").split()
    assert "docker" not in first.sh("id -nG op").split()


def test_a_framework_s_environment_has_the_pinned_version(
    story: Story, container_hosts: tuple[ContainerHost, ...]
) -> None:
    python = "/opt/bringup/venvs/torch/bin/python3"
    assert container_hosts[1].sh(f"{python} -c 'import six; print(six.__version__)'").strip() == "1.16.0"
    assert "no such file" in container_hosts[0].sh(f"ls {python}", check=False).lower()


def test_events_name_host_role_task_and_module(story: Story) -> None:
    installed = [event for event in story.events if event.changed and event.role == "docker"]
    assert {event.host for event in installed} == set(story.first.hosts)
    assert "ansible.builtin.apt" in {event.module for event in installed}
    assert any("docker" in event.diff for event in installed)


def test_what_is_kept_is_one_line_an_event_and_a_summary(story: Story) -> None:
    names = sorted(path.name for path in story.artifacts.iterdir())
    assert names == sorted(f"site{number}.{kind}" for number in ("", "-2", "-3", "-4") for kind in ("json", "jsonl"))
    lines = [json.loads(line) for line in (story.artifacts / "site-2.jsonl").read_text().splitlines()]
    assert lines[-1]["kind"] == "stats"
    assert json.loads((story.artifacts / "site-3.json").read_text())["status"] == "successful"


def test_the_hosts_are_then_validated_over_ssh_and_told_the_truth(
    story: Story, container_hosts: tuple[ContainerHost, ...], tmp_path: Path
) -> None:
    lines = [host.inventory_line(expect_nvtop="3", expect_docker="'20.10'") for host in container_hosts]
    (tmp_path / "hosts.ini").write_text("\n".join(lines) + "\n")
    command = [sys.executable, "-c", "from provision.cli import main; main()", "validate", "-i", "hosts.ini", "--json"]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    for host in json.loads(done.stdout)["hosts"]:
        by_metric = {(one["check"], one["metric"]): one for one in host["verdicts"]}
        assert host["status"] == "FAIL"
        assert by_metric["system", "gpu_count"]["measurement"]["value"] == 0
        assert by_metric["software", "docker"]["status"] == "PASS"
        assert by_metric["software", "nvtop"]["status"] == "PASS"
        assert by_metric["software", "nvtop"]["measurement"]["value"].startswith("3.")
        assert {one["status"] for one in host["verdicts"] if one["check"] == "matmul"} == {"SKIP"}
        assert "No NVIDIA GPU" in host["chain"]["sentence"]
    assert next(tmp_path.glob("runs/*/report.html")).stat().st_size > 10_000
