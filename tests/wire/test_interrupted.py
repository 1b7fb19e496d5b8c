"""Ctrl-C in each phase: exit code 130, no traceback, no process left, and what was measured stays."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hosts.sshd import descendants
from tests.wire.planting import alive, wait_until
from tests.wire.test_cli import COMMAND, environment

pytestmark = pytest.mark.timeout(120)


def start(cwd: Path, *arguments: str, program: str = "", **more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", program] if program else COMMAND
    return subprocess.Popen(
        [*command, *arguments],
        cwd=cwd,
        env={**environment(), **more},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def interrupted(process: subprocess.Popen[str], *, group: bool = True) -> str:
    """Send SIGINT, to the whole foreground group as a terminal does or to the one process; what it said on stderr."""
    below = descendants(process.pid)
    (os.killpg if group else os.kill)(process.pid, signal.SIGINT)
    try:
        _, said = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert wait_until(lambda: not any(alive(pid) for pid in below)), "a process is left"
    return said


@pytest.fixture
def silent(tmp_path: Path) -> Iterator[socket.socket]:
    """An inventory, silent.ini, of a host that takes connections and never says SSH."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        (tmp_path / "silent.ini").write_text(f"box ansible_host=127.0.0.1 ansible_port={port}\n")
        server.settimeout(60)
        yield server


@pytest.mark.parametrize("group", [True, False], ids=["from the terminal", "to the one process"])
@pytest.mark.parametrize("command", ["validate", "provision"])
def test_while_the_inventory_is_read_its_script_is_ended_too(tmp_path: Path, command: str, group: bool) -> None:
    script = tmp_path / "slow.sh"
    script.write_text("#!/bin/sh\ntouch started\nsleep 60\n")
    script.chmod(0o755)
    process = start(tmp_path, command, "-i", str(script))
    assert wait_until((tmp_path / "started").exists, 60)
    interrupted(process, group=group)
    assert not (tmp_path / "runs").exists()


def test_while_connecting(tmp_path: Path, silent: socket.socket) -> None:
    process = start(tmp_path, "validate", "-i", "silent.ini", "--level", "1")
    connection, _ = silent.accept()
    with connection:
        assert "what was measured is kept: runs/" in interrupted(process)
    report = json.loads(next(tmp_path.glob("runs/*/report.json")).read_text())
    assert report["status"] == "ERROR"
    assert report["hosts"][0]["verdicts"][0]["check"] == "connection"


def test_the_doctor_leaves_no_temporary_folder(tmp_path: Path, silent: socket.socket) -> None:
    (tmp_path / "tmp").mkdir()
    process = start(tmp_path, "doctor", "-i", "silent.ini", TMPDIR=str(tmp_path / "tmp"))
    connection, _ = silent.accept()
    with connection:
        interrupted(process)
    assert not list((tmp_path / "tmp").glob("bringup-*"))


def test_while_provisioning(tmp_path: Path, silent: socket.socket) -> None:
    process = start(tmp_path, "provision", "-i", "silent.ini")
    connection, _ = silent.accept()
    with connection:
        interrupted(process)
    assert list(tmp_path.glob("runs/*/manifest.json"))


SLOW = """
import pathlib, sys, time
from provision import commands
def slow(*_, **__):
    pathlib.Path("begun").touch()
    time.sleep(60)
commands.{name} = slow
from provision.cli import main
main()
"""


@pytest.mark.parametrize("name", ["rejudge", "render"])
def test_while_judging_and_rendering_the_run_is_named_and_can_be_rendered_later(tmp_path: Path, name: str) -> None:
    process = start(tmp_path, "validate", "localhost", "--only", "system", program=SLOW.format(name=name))
    assert wait_until((tmp_path / "begun").exists, 60)
    said = interrupted(process)
    run = next((tmp_path / "runs").iterdir())
    assert f"every host was measured: bringup report runs/{run.name}" in said
    again = subprocess.run(
        [*COMMAND, "report", str(run), "--format", "json"],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(again.stdout)["hosts"][0]["measurements"]
