"""The bundle inside an image on a host: a real Docker engine, a real sshd, and an image made here.

The image is the test hosts' own, a Debian with Python; torch comes into it as a mount of the tests' environment. No
GPU is here to be given to it: what --gpus says then is Docker's own word.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.hosts.containers import available
from tests.hosts.engine import Engine, engine
from tests.hosts.image import build, can_pull
from tests.hosts.sshd import Sshd, sshd
from tests.need import need
from tests.wire.planting import wait_until

ROOT = Path(__file__).resolve().parents[2]
MARK = "gpu-bringup-tests-inside"
"""On our containers alone: hosts of other tests may run the same image on the same engine."""
FOLDERS = dict.fromkeys((sys.prefix, sys.base_prefix, str(ROOT)))
"""The tests' Python, its standard library, and this project, at the same places inside."""
INSIDE = {
    "bringup_container_args": f"--network=host --hostname=inside --label={MARK} "
    + " ".join(f"-v {one}:{one}:ro" for one in FOLDERS),
    "bringup_container_ulimits": "''",  # an engine inside a container may not raise them
    "bringup_container_torch_python": sys.executable,
    "bringup_torch_python": sys.executable,
    "bringup_device": "cpu",
}
QUICK = ("--only", "matmul", "-p", "matmul.seconds=0.2", "-p", "matmul.size=256")


@dataclass(frozen=True)
class Operator:
    """A host with a Docker engine, and the command line to validate it."""

    server: Sshd
    docker: Engine
    image: str
    folder: Path

    def argv(self, image: str, *words: str, **variables: str) -> list[str]:
        given = {**INSIDE, **variables}
        line = self.server.inventory_line("box") + "".join(f' {name}="{value}"' for name, value in given.items())
        (self.folder / "inventory.ini").write_text(line + "\n")
        code = "from provision.cli import main; main()"
        return [sys.executable, "-c", code, "validate", "-i", "inventory.ini", "--in-container", image, *words]

    def validate(self, image: str, **variables: str) -> dict[str, Any]:
        """The report's hosts by name."""
        done = subprocess.run(
            self.argv(image, *QUICK, "--json", **variables),
            cwd=self.folder, env=self.environment(), capture_output=True, text=True, timeout=200, check=False,
        )  # fmt: skip
        assert done.returncode in (0, 1, 3), done.stderr
        return {host["name"]: host for host in json.loads(done.stdout)["hosts"]}

    def environment(self) -> dict[str, str]:
        known = self.folder / "home"
        (known / ".ssh").mkdir(parents=True, exist_ok=True)
        (known / ".ssh" / "known_hosts").write_bytes(self.server.known_hosts.read_bytes())
        return {**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(known)}

    def running(self) -> list[str]:
        return self.docker("ps", "-q", "--filter", f"label={MARK}").split()


@pytest.fixture(scope="module")
def operator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    need(available(), "no Docker engine runs, and root with docker.io, debootstrap and iptables could start one")
    same = sys.base_prefix != "/usr"
    need(same, "the tests' Python is the system's: it cannot be shown to an image", installable=False)
    folder = tmp_path_factory.mktemp("in-container")
    with engine() as docker:
        image = build(docker, pull=can_pull(docker))
        at = f"unix://{docker.socket}" if docker.socket else os.environ.get("DOCKER_HOST", "")
        config = (f"SetEnv HOME={folder} XDG_CACHE_HOME={folder}" + (f" DOCKER_HOST={at}" if at else ""),)
        with sshd(folder / "server", config=config) as server:
            yield Operator(server, docker, image, folder)


def test_the_containers_report_stands_beside_its_hosts(operator: Operator) -> None:
    hosts = operator.validate(operator.image)
    own, inside = hosts["box"], hosts[f"box in {operator.image}"]
    for one in (own, inside):
        passed = {verdict["metric"] for verdict in one["verdicts"] if verdict["status"] == "PASS"}
        assert {"known_answer", "exact_integer", "products_wrong", "products_verified"} <= passed
    files = operator.folder.glob("runs/*/hosts/*/records.jsonl")
    hostnames = [json.loads(path.read_text().splitlines()[0])["hostname"] for path in files]
    assert sorted(name == "inside" for name in hostnames) == [False, True]
    assert operator.running() == []


def test_a_host_that_gives_containers_no_gpus_says_what_is_missing(operator: Operator) -> None:
    inside = operator.validate(operator.image, bringup_device="gpu")[f"box in {operator.image}"]
    assert inside["status"] == "ERROR"
    assert "Docker gives containers no GPUs: the container toolkit is missing" in inside["headline"]


def test_an_image_without_python_is_told(operator: Operator) -> None:
    name = "gpu-bringup-test-empty:latest"
    with subprocess.Popen(["tar", "c", "-C", str(ROOT), "LICENSE"], stdout=subprocess.PIPE) as tar:
        assert tar.stdout
        operator.docker("import", "-", name, stdin=tar.stdout.read())
    inside = operator.validate(name)[f"box in {name}"]
    assert inside["status"] == "ERROR"
    assert f"the image {name} has no python3" in inside["headline"]


def test_an_image_that_cannot_be_pulled_is_told(operator: Operator) -> None:
    inside = operator.validate("127.0.0.1:9/none:1")["box in 127.0.0.1:9/none:1"]
    assert inside["status"] == "ERROR"
    assert "was not pulled" in inside["headline"]
    assert "refused" in inside["headline"]


def test_a_host_without_an_engine_is_told(operator: Operator) -> None:
    inside = operator.validate(operator.image, bringup_container_engine="podman")[f"box in {operator.image}"]
    assert inside["status"] == "ERROR"
    assert "no docker and no podman" in inside["headline"]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_operator_that_ends_leaves_no_container(operator: Operator, how: signal.Signals) -> None:
    """Ctrl-C, and a connection that is cut."""
    slow = ("--only", "matmul", "-p", "matmul.seconds=8")
    argv = operator.argv(operator.image, *slow)
    with subprocess.Popen(argv, cwd=operator.folder, env=operator.environment(), stderr=subprocess.DEVNULL) as process:
        try:
            assert wait_until(operator.running, 150)
            time.sleep(1)
        finally:
            process.send_signal(how)
            status = process.wait(30)
    assert status == (130 if how == signal.SIGINT else -how)
    assert wait_until(lambda: not operator.running(), 30)
