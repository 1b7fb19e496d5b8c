"""The real MXNet 1.9.1 and Horovod 0.28.1, their last releases, through the real bundle: Python 3.9, on the CPU."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from provision.bundle import build_bundle
from tests.hosts.image import cache_directory
from tests.need import need
from tests.unit.host_tree import Measured
from validators.schema import (
    HOST,
    NOT_APPLICABLE,
    RAN,
    CheckRequest,
    Measurement,
    Outcome,
    Plan,
    Record,
    decode,
    encode_plan,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

PACKAGES = (
    ("setuptools<70", "wheel", "cmake<4", "numpy<1.24", "mxnet==1.9.1", "cloudpickle", "psutil", "pyyaml", "packaging",
     "cffi"),
    ("--no-build-isolation", "horovod==0.28.1"),
)  # fmt: skip
"""What is installed, in this order. Horovod has no wheels: it is built, in three minutes on two cores."""
BUILD = {
    "HOROVOD_WITHOUT_TENSORFLOW": "1",
    "HOROVOD_WITHOUT_PYTORCH": "1",
    "HOROVOD_WITH_MXNET": "1",
    "HOROVOD_WITHOUT_MPI": "1",
    "HOROVOD_WITH_GLOO": "1",
    "MAKEFLAGS": "-j2",
}


def python39() -> str:
    """A Python 3.9 that runs: the name on PATH may be a shim without one behind it."""
    versions = sorted(Path.home().glob(".pyenv/versions/3.9*/bin/python3.9"))
    for one in [shutil.which("python3.9"), *map(str, versions)]:
        if one and subprocess.run([one, "-c", ""], capture_output=True, check=False).returncode == 0:
            return one
    return ""


@pytest.fixture(scope="module")
def python() -> str:
    """The interpreter of an environment with both, built once and kept."""
    base = python39()
    need(bool(base), "Python 3.9: MXNet 1.9.1 and Horovod 0.28.1 install on none that is newer", installable=False)
    need(bool(shutil.which("g++")), "g++, to build Horovod")
    home = cache_directory() / "mxnet-horovod"
    home.mkdir(exist_ok=True)
    recipe = hashlib.sha256(json.dumps([base, PACKAGES, BUILD]).encode()).hexdigest()
    with (home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = home / "made"
        if not made.exists() or made.read_text() != recipe:
            made.unlink(missing_ok=True)
            build(base, home / "env", home / "log")
            made.write_text(recipe)
    return str(home / "env" / "bin" / "python3")


def build(base: str, env: Path, log: Path) -> None:
    shutil.rmtree(env, ignore_errors=True)
    subprocess.run([base, "-m", "venv", str(env)], check=True)
    environ = {**os.environ, **BUILD, "PATH": f"{env}/bin:{os.environ['PATH']}"}
    with log.open("w") as words:
        for wanted in PACKAGES:
            argv = [f"{env}/bin/pip", "install", *wanted]
            ran = subprocess.run(argv, env=environ, stdout=words, stderr=subprocess.STDOUT, check=False, timeout=1200)
            need(ran.returncode == 0, f"pip install {' '.join(wanted)}; see {log}")


@pytest.fixture(scope="module")
def answers(python: str, tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    """The bundle's own run under the machine's Python 3.9, which has neither; a plan names the one that has both."""
    path = tmp_path_factory.mktemp("bundle") / "validators.pyz"
    path.write_bytes(build_bundle().data)
    named = {"torch": python, "mxnet": python, "horovod": python}
    plan = Plan((CheckRequest("preflight", 300.0),), 330.0, named, "cpu")
    host = subprocess.Popen(
        [python39(), "-I", "-S", str(path), "wire"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with host:
        assert host.stdin and host.stdout
        host.stdin.write(encode_plan(plan))
        host.stdin.flush()  # and stays open: its end would be the operator's
        lines = []
        for line in host.stdout:
            lines.append(line)
            if b'"type":"bye"' in line:
                break
        host.stdin.close()
    return [decode(line) for line in lines]


def of(answers: list[Record], framework: str) -> Measured:
    return Measured(
        [one for one in answers if isinstance(one, Measurement) and one.labels.get("framework") == framework]
    )


def test_mxnet_computes_and_learns(answers: list[Record]) -> None:
    found = of(answers, "mxnet")

    assert found.value("framework_version") == "1.9.1"
    assert (found.value("known_answer"), found.value("device_ran_on")) == (True, "cpu(0)")
    assert found.one("loss_falls").note.startswith("0.05669 to 0.0261")  # as in torch, TensorFlow and JAX
    assert found.one("cuda_build").absence == NOT_APPLICABLE
    assert "without CUDA" in found.one("cuda_build").note


def test_horovod_sums_over_two_processes(answers: list[Record]) -> None:
    found = of(answers, "horovod")

    assert found.value("framework_version") == "0.28.1"
    answer = found.one("known_answer")
    assert (answer.value, answer.labels["processes"]) == (True, "2")
    assert answer.note == "the sum over 2 processes (gloo, mxnet)"
    assert "without NCCL" in found.one("nccl_version").note


def test_a_framework_that_is_not_there_does_not_keep_them_back(answers: list[Record]) -> None:
    (end,) = [one for one in answers if isinstance(one, Outcome) and one.subject == HOST]

    assert end.status != RAN
    assert "no Python with torch" in end.detail
    assert "mxnet under" not in end.detail


def test_their_own_environment_leaves_nothing_running(answers: list[Record]) -> None:
    assert answers
    left = [
        one
        for one in Path("/proc").glob("[0-9]*/cmdline")
        if b"horovod.runner" in (one.read_bytes() if one.exists() else b"") and b"pytest" not in one.read_bytes()
    ]
    assert left == []
