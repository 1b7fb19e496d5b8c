"""Ten hosts in waves: a failure in the canary, one in wave 2, the operator killed in wave 3 and resumed.

Real hosts with systemd over SSH; the doubles are those of test_upgrade_matrix.py, and say so there.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from provision.upgrade.journal import RunState, read, state
from tests.host.upgrade_hosts import NEW, NEW_DIRECTORY, NEW_URL, OLD, plain_install, plain_variables
from tests.hosts.containers import ContainerHost, available, container_hosts
from tests.hosts.nvidia_repository import build
from tests.need import need

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]
ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ContainerHost, ...]]:
    """Ten hosts with the OLD driver."""
    need(available(), "no Docker engine runs, and root with docker.io, debootstrap and iptables could start one")
    old = build(tmp_path_factory.mktemp("old") / "repository", versions=[OLD], toolkits=[])
    with container_hosts(10) as started:
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(lambda host: plain_install(host, old, old.copy_to(host)), started))
        yield started


def test_ten_hosts_in_waves_with_failures_and_an_operator_that_dies(
    hosts: tuple[ContainerHost, ...], tmp_path: Path
) -> None:
    good = build(tmp_path / "good", versions=[OLD, NEW], toolkits=[])
    first, bad = hosts[0], hosts[2]
    for host in hosts:
        good.copy_to(host, NEW_DIRECTORY)
    inventory = tmp_path / "inventory.ini"
    lines = [host.inventory_line(bringup_serial_group=f"pair{at // 2}") for at, host in enumerate(hosts)]
    inventory.write_text("\n".join(lines) + "\n")
    words: dict[str, object] = {"inventory": str(inventory), "variables": plain_variables(NEW, good, NEW_URL)}
    options = {"to": NEW, "rules": {"canary": 1, "wave": "4"}, "install_timeout_s": 300, "reboot_timeout_s": 300}

    # The card of the first host does not bear the new driver: nothing else is touched.
    _lose_with(first, NEW)
    assert _operate(tmp_path, "upgrade", {**words, "options": options, "runs": "canary"}) == 1
    (run,) = (tmp_path / "canary").iterdir()
    found = state(read(run))
    assert {name: host.outcome for name, host in found.hosts.items()} == {first.name: "rolled_back"}
    assert "1 failed" in found.stopped
    assert [_driver(host) for host in hosts] == [OLD] * 10

    # It does now, and another of wave 2 does not: its wave ends, no other begins.
    _lose_with(first, "")
    _lose_with(bad, NEW)
    assert _operate(tmp_path, "upgrade", {**words, "options": options, "runs": "fleet"}) == 1
    (run,) = (tmp_path / "fleet").iterdir()
    found = state(read(run))
    waves = [tuple(wave["hosts"]) for wave in found.plan["waves"]]  # type: ignore[attr-defined]  # JSON
    assert waves[0] == (first.name,) and len(waves) == 4 and bad.name in waves[1]
    for wave in waves:
        assert len({_pair(hosts, name) for name in wave}) == len(wave), "two of a serial group in one wave"
    assert {name: host.outcome for name, host in found.hosts.items()} == {
        **dict.fromkeys((*waves[0], *waves[1]), "done"),
        bad.name: "rolled_back",
    }
    upgraded = {*waves[0], *waves[1]} - {bad.name}
    assert {host.name for host in hosts if _driver(host) == NEW} == upgraded

    # Killed in the middle of wave 3, with packages half there.
    process = _start(tmp_path, "resume", {"run": f"fleet/{run.name}", "max_fail": 1})
    _until(lambda: _phase(run, waves[2], "install"), process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = (run / "upgrade.jsonl").read_bytes()
    assert _operate(tmp_path, "resume", {"run": f"fleet/{run.name}"}) == 1  # what --max-fail was told before is kept
    found = state(read(run))
    assert all(sum(step.phase == "install" for step in found.hosts[name].steps) == 2 for name in waves[2])
    assert (run / "upgrade.jsonl").read_bytes().startswith(before)
    assert {name: host.outcome for name, host in found.hosts.items()} == {
        host.name: "rolled_back" if host is bad else "done" for host in hosts
    }
    for host in hosts:
        assert _driver(host) == (OLD if host is bad else NEW)
        assert host.sh("dpkg --audit") == ""
    report = json.loads((run / "upgrade.json").read_text())
    assert len(report["hosts"]) == 10 and report["status"] == "FAIL"


def _operate(folder: Path, action: str, words: dict[str, object]) -> int:
    process = _start(folder, action, words)
    return process.wait(1200)


def _start(folder: Path, action: str, words: dict[str, object]) -> subprocess.Popen[bytes]:
    """In `folder`: the run directories are named by relative paths, as they are by default."""
    command = [sys.executable, "-m", "tests.host.upgrade_operator", action, json.dumps(words)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=folder, env=environment, stdin=subprocess.DEVNULL)


def _until(good: Callable[[], bool], process: subprocess.Popen[bytes], seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not good():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.2)


def _phase(run: Path, wave: tuple[str, ...], phase: str) -> bool:
    """Whether the wave is in this phase."""
    hosts: RunState = state(read(run))
    lasts = [hosts.hosts[name].last for name in wave if name in hosts.hosts]
    return any(last is not None and last.phase == phase and last.status == "started" for last in lasts)


def _lose_with(host: ContainerHost, version: str) -> None:
    host.sh(f"mkdir -p /etc/stub-nvidia; echo '{version}' >/etc/stub-nvidia/lost-with")


def _driver(host: ContainerHost) -> str:
    said = host.sh("nvidia-smi --version | sed -n 's/^DRIVER version *: //p'").strip()
    assert host.sh("cat /run/stub-nvidia/loaded").strip() == said
    return said


def _pair(hosts: tuple[ContainerHost, ...], name: str) -> int:
    return [host.name for host in hosts].index(name) // 2
