"""From a bare host to a judged one by `bringup provision` alone, as a person would call it: a subprocess.

The host is a Debian 12 container that says it is Ubuntu 24.04, so that the plan picks Ubuntu's names; NVIDIA's
repositories are the signed stub of tests/hosts/nvidia_repository; JAX is a wheel of its name and version with nothing
in it. Real: apt, dpkg, systemd, the reboot, Docker, nvtop, venv and pip, SSH, Ansible. There is no GPU, and the report
must say so.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from tests.hosts.containers import ContainerHost, available, container_hosts
from tests.hosts.nvidia_repository import build
from tests.need import need

pytestmark = pytest.mark.timeout(1500)

ROOT = Path(__file__).resolve().parents[2]
JAX = "0.10.2"
SECRETS = {
    "NGC_API_KEY": "nvapi-planted-in-the-environment",
    "BRINGUP_TEST_TOKEN": "planted-token-of-the-operator",
}
IN_A_FILE = "planted-in-a-file-of-variables"
IN_THE_INVENTORY = "planted-in-the-inventory"
PROFILE = """
name = "from-bare"
gpu_required = false
[driver]
branch = "580"
module = "open"
[cuda]
toolkits = ["13.0"]
[containers]
docker = "distro"
[frameworks.jax]
version = "{jax}"
extras = ["bringup-stand-in==1.0"]
"""
OS_RELEASE = """PRETTY_NAME="Ubuntu 24.04.2 LTS"
NAME="Ubuntu"
VERSION_ID="24.04"
VERSION="24.04.2 LTS (Noble Numbat)"
VERSION_CODENAME=noble
ID=ubuntu
ID_LIKE=debian
UBUNTU_CODENAME=noble
"""


@dataclass(frozen=True)
class Done:
    """What a command of ours said, and the JSON on its standard output."""

    code: int
    said: str
    body: dict[str, object]

    def hosts(self) -> dict[str, dict[str, int]]:
        found = self.body["hosts"]
        assert isinstance(found, dict)
        return found


@dataclass(frozen=True)
class Place:
    """An operator's folder with an inventory of one host."""

    folder: Path
    host: ContainerHost

    def bringup(self, *words: str) -> Done:
        done = subprocess.run(
            [sys.executable, "-c", "from provision.cli import main; main()", *words],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), **SECRETS},
            capture_output=True,
            text=True,
            check=False,
        )
        assert "Traceback" not in done.stderr
        return Done(done.returncode, done.stderr, json.loads(done.stdout) if done.stdout else {})

    def provision(self, *words: str) -> Done:
        return self.bringup("provision", "-i", "inventory", "--profile", "./mine.toml", "--json", *words)


@dataclass(frozen=True)
class Story:
    """The commands in their order."""

    foretold: Done
    first: Done
    second: Done
    validated: Done


def wheel(folder: Path, name: str, version: str, metadata: str = "") -> None:
    """A wheel with nothing in it but its name."""
    stem = f"{name.replace('-', '_')}-{version}"
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as file:
        file.writestr(f"{name.replace('-', '_')}.py", f"__version__ = '{version}'\n")
        file.writestr(
            f"{stem}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{metadata}"
        )
        file.writestr(f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{stem}.dist-info/RECORD", "")


@pytest.fixture(scope="module")
def host() -> Iterator[ContainerHost]:
    need(available(), "no Docker engine runs, and root with docker.io, debootstrap and iptables could start one")
    with container_hosts(1) as (one,):
        one.sh("rm -f /etc/os-release; cat >/etc/os-release", stdin=OS_RELEASE.encode())
        one.sh("printf 'DISTRIB_ID=Ubuntu\\nDISTRIB_RELEASE=24.04\\nDISTRIB_CODENAME=noble\\n' >/etc/lsb-release")
        one.sh("sed -i 's/ main$/ main contrib/' /etc/apt/sources.list")  # nvtop; Ubuntu's own has it in universe
        yield one


@pytest.fixture(scope="module")
def place(host: ContainerHost, tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("operator")
    repository = build(folder / "repository", family="ubuntu", versions=("580.159.04",), toolkits=("13.0.2",))
    url = repository.copy_to(host)
    wheels = folder / "wheels"
    wheels.mkdir()
    wheel(wheels, "jax", JAX, "Provides-Extra: cuda13\n")
    wheel(wheels, "bringup-stand-in", "1.0")
    host.docker("cp", str(wheels), f"{host.name}:/srv/wheels")
    host.sh("mkdir /srv/no-index")
    variables = {
        **repository.variables(url),
        "container_toolkit_repository_url": url,
        "container_toolkit_repository_key": repository.key,
        "container_toolkit_repository_fingerprint": repository.fingerprint,
        "nvidia_driver_in_container": True,
        "frameworks_find_links": "/srv/wheels",
        "frameworks_index_url": "file:///srv/no-index",
        "frameworks_extra_index_url": f"https://reader:{IN_THE_INVENTORY}@127.0.0.1:9/simple",
        "ngc_api_key_of_the_inventory": IN_THE_INVENTORY,
    }
    del variables["nvidia_repository_wanted"]  # the plan's to say
    inventory = folder / "inventory"
    (inventory / "host_vars").mkdir(parents=True)
    (inventory / "hosts.ini").write_text(f"[gpu]\n{host.inventory_line()}\n")
    (inventory / "host_vars" / f"{host.name}.yml").write_text(json.dumps(variables))
    (folder / "mine.toml").write_text(PROFILE.format(jax=JAX))
    (folder / "more.yml").write_text(json.dumps({"site_api_key": IN_A_FILE}))
    return Place(folder, host)


@pytest.fixture(scope="module")
def story(place: Place) -> Story:
    foretold = place.provision("--check", "--diff")
    first = place.provision("--reboot", "-e", "@more.yml")
    second = place.provision("--reboot", "-e", "@more.yml")
    return Story(foretold, first, second, place.bringup("validate", "-i", "inventory", "--json"))


def test_a_check_of_the_bare_host_foretells_and_changes_nothing(story: Story) -> None:
    assert story.foretold.code == 0, story.foretold.said
    (counts,) = story.foretold.hosts().values()
    assert counts["changed"] >= 4


def test_one_command_takes_the_bare_host_through_everything_the_reboot_included(story: Story, place: Place) -> None:
    assert story.first.code == 0, story.first.said
    assert "reboot: Reboot, and wait for another boot id" in story.first.said
    host = place.host
    states = "dpkg-query -W -f '${db:Status-Abbrev} ${Package} ${Version}\\n'"
    installed = host.sh(f"{states} nvidia-utils-580 cuda-toolkit-13-0 nvidia-container-toolkit nvtop docker.io")
    assert [line[1] for line in installed.splitlines()] == ["i"] * 5
    assert "nvidia-utils-580" in host.sh("apt-mark showhold")
    assert host.sh("readlink -f /usr/local/cuda").strip() == "/usr/local/cuda-13.0"
    assert "nvidia" in host.sh("docker info --format '{{json .Runtimes}}'")
    assert "nvidia.com/gpu" in host.sh("cat /etc/cdi/nvidia.yaml")
    assert host.sh("/opt/bringup/venvs/jax/bin/python3 -c 'import jax; print(jax.__version__)'").strip() == JAX
    assert "1.0" in host.sh(
        "/opt/bringup/venvs/jax/bin/python3 -c 'import bringup_stand_in as b; print(b.__version__)'"
    )


def test_after_the_reboot_the_driver_that_runs_is_the_one_installed(story: Story, place: Place) -> None:
    assert "580.159.04" in place.host.sh("cat /run/stub-nvidia/loaded")
    assert "580.159.04" in place.host.sh("nvidia-smi --query-gpu=driver_version --format=csv,noheader")


def test_the_second_run_changes_nothing_and_does_not_reboot(story: Story) -> None:
    assert story.second.code == 0, story.second.said
    assert story.second.body["changed"] == 0
    assert "Reboot" not in story.second.said


def test_the_plan_is_kept_with_the_run(story: Story, place: Place) -> None:
    runs = sorted(place.folder.glob("runs/*/plan.json"))
    assert len(runs) == 3
    (plan,) = json.loads(runs[1].read_text())["hosts"]
    assert plan["variables"]["nvidia_driver_packages"] == [
        "libnvidia-compute-580",
        "nvidia-dkms-580-open",
        "nvidia-utils-580",
    ]
    assert {one["what"] for one in plan["changes"]} >= {"driver", "cuda_toolkit", "docker", "nvtop", "jax"}
    assert runs[1].stat().st_mode & 0o077 == 0


def test_validation_then_tells_the_truth_that_there_is_no_gpu(story: Story) -> None:
    assert story.validated.code == 1, story.validated.said
    (host,) = cast("list[dict[str, Any]]", story.validated.body["hosts"])
    assert host["status"] == "FAIL"
    verdicts = {(one["check"], one["metric"]): one for one in host["verdicts"]}
    assert verdicts["system", "gpu_count"]["measurement"]["value"] == 0
    assert verdicts["system", "gpu_count"]["status"] == "FAIL"
    of_the_gpu = [one for one in host["verdicts"] if one["check"] in ("matmul", "gpu_health", "compute_capability")]
    assert {one["check"] for one in of_the_gpu} == {"matmul", "gpu_health", "compute_capability"}
    for one in of_the_gpu:
        assert one["status"] in ("FAIL", "SKIP"), one
        assert one["reason"], one


def test_a_planted_secret_is_nowhere_in_the_run_directories_nor_in_what_was_said(story: Story, place: Place) -> None:
    planted = (*SECRETS.values(), IN_A_FILE, IN_THE_INVENTORY)
    kept = [path for path in place.folder.glob("runs/**/*") if path.is_file()]
    assert len(kept) > 10
    texts = {str(path): path.read_bytes() for path in kept}
    for name, done in (("foretold", story.foretold), ("first", story.first), ("second", story.second)):
        texts[name] = (done.said + json.dumps(done.body)).encode()
    for name, text in texts.items():
        for secret in planted:
            assert secret.encode() not in text, f"{secret} in {name}"


def test_an_index_s_password_is_not_in_the_host_s_log_of_commands(story: Story, place: Place) -> None:
    log = place.host.sh("journalctl --no-pager -q")
    assert "BECOME-SUCCESS" in log
    assert IN_THE_INVENTORY not in log
    assert place.host.sh("ls /run/bringup-pip* 2>/dev/null || true") == ""
