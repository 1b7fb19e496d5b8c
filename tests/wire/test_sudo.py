"""Root's rights through the real sudo, from a user who has none: asked for, refused, and given back.

sudoers is the test's own, laid over the machine's in a mount namespace that ends with the test.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import shutil
import subprocess
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from provision.bundle import Bundle
from provision.hosts import Host
from provision.remote import Job
from tests.need import need
from tests.wire.planting import GOOD, alive, bundle_of, noted, plan_of, spawn_and_note, wait_until

ROOT = Path(__file__).parents[2]
USER = "nobody"
OPERATOR = """
import json, pickle, sys
from provision.remote import validate_host
host, job = pickle.loads(open(sys.argv[1], "rb").read())
run = validate_host(host, job)
failure = run.failure and [run.failure.kind, run.failure.message, run.failure.hint]
print(json.dumps([failure, [repr(record) for record in run.records]]))
"""
ENTER = """
set -e
mount --bind "$1/sudoers" /etc/sudoers
mkdir -p ~/.cache
mount -t tmpfs none ~/.cache  # root's own cache stays as it is
shift
exec setpriv --reuid=nobody --regid=nogroup --clear-groups "$@"
"""


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that an unprivileged user can read: pytest's own is for this user alone."""
    with tempfile.TemporaryDirectory(prefix="bringup-sudo-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        for package in ("provision", "validators"):
            shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
        yield folder


@contextlib.contextmanager
def operator(place: Path, sudoers: str, bundle: Bundle, names: list[str]) -> Iterator[subprocess.Popen[str]]:
    """An unprivileged operator who measures this machine with become; `sudoers` are the rules in force."""
    python = "/usr/bin/python3"
    need(os.geteuid() == 0, "only root can set up sudo rules", installable=False)
    need(shutil.which("sudo") is not None, "sudo is not installed", installable=True)
    need(shutil.which("setpriv") is not None, "setpriv is not installed", installable=True)
    probe = subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False)
    need(probe.returncode == 0, "no mount namespace can be had here", installable=False)
    version = subprocess.run([python, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"], check=False)
    need(version.returncode == 0, "the system's own Python is older than 3.11", installable=False)
    rules = place / "sudoers"
    rules.write_text(f"root ALL=(ALL) ALL\nDefaults !lecture\n{sudoers}\n")
    rules.chmod(0o440)
    host = Host("box", connection="local", become=True, python=python)
    call = place / "call.pickle"
    call.write_bytes(pickle.dumps((host, Job(bundle, plan_of(names)))))
    call.chmod(0o644)
    argv = ["env", f"PYTHONPATH={place}", "HOME=/nonexistent", python, "-c", OPERATOR, str(call)]
    process = subprocess.Popen(
        ["unshare", "-m", "sh", "-c", textwrap.dedent(ENTER), "sh", str(place), *argv],
        stdout=subprocess.PIPE,
        text=True,
        cwd="/",
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def answer(process: subprocess.Popen[str]) -> tuple[list[str] | None, list[str]]:
    out, _ = process.communicate(timeout=60)
    failure, records = json.loads(out)
    return failure, records


def test_sudo_that_needs_a_password_is_a_clear_error(place: Path) -> None:
    with operator(place, f"{USER} ALL=(ALL) ALL", bundle_of({"x_good": GOOD}), ["x_good"]) as process:
        failure, records = answer(process)
    assert failure is not None
    kind, message, hint = failure
    assert (kind, message) == ("RemoteCommandError", "box: sudo on the host asks for a password")
    assert "NOPASSWD" in hint
    assert records == []


ALLOWED = {
    "plain": f"{USER} ALL=(ALL) NOPASSWD: ALL",
    "with a terminal of its own": f"Defaults use_pty\n{USER} ALL=(ALL) NOPASSWD: ALL",
}


@pytest.mark.parametrize("rules", ALLOWED)
def test_checks_run_as_root_through_sudo(place: Path, rules: str) -> None:
    who = "import os\nctx.measure('n', os.geteuid())"
    with operator(place, ALLOWED[rules], bundle_of({"x_who": who}), ["x_who"]) as process:
        failure, records = answer(process)
    assert failure is None
    assert any("metric='n', value=0" in record for record in records)


@pytest.mark.parametrize("rules", ALLOWED)
def test_the_lease_holds_through_sudo(place: Path, tmp_path: Path, rules: str) -> None:
    bundle = bundle_of({"x_tree": spawn_and_note(tmp_path)})
    with operator(place, ALLOWED[rules], bundle, ["x_tree"]) as process:
        pids = noted(tmp_path)
        assert {Path(f"/proc/{pid}").stat().st_uid for pid in pids} == {0}
        process.kill()
        process.wait()
        assert wait_until(lambda: not any(alive(pid) for pid in pids))
