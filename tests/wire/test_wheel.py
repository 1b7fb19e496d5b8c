"""A wheel built from the tree, installed into an empty venv, works outside the checkout."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(*argv: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, cwd=cwd, capture_output=True, text=True, timeout=280, check=False)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of a venv that has the wheel and what it needs, and nothing else."""
    folder = tmp_path_factory.mktemp("wheel")
    built = run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder), str(ROOT), cwd=folder)
    assert built.returncode == 0, built.stderr
    wheel = next(folder.glob("gpu_bringup-*.whl"))
    assert run(sys.executable, "-m", "venv", "venv", cwd=folder).returncode == 0
    pip = [str(folder / "venv/bin/pip"), "install", "-q", "--constraint", str(ROOT / "constraints.txt")]
    done = run(*pip, str(wheel), cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "venv/bin"


def test_the_installed_command_measures_this_machine(installed: Path, tmp_path: Path):
    done = run(str(installed / "bringup"), "validate", "localhost", "--level", "1", "--json", cwd=tmp_path)
    assert done.returncode in (0, 1, 3), done.stderr
    assert json.loads(done.stdout)["hosts"][0]["measurements"]


def test_the_wheel_carries_the_playbooks_and_the_thresholds(installed: Path, tmp_path: Path):
    code = (
        "from provision.plays import playbook_path; book = playbook_path('site.yml');"
        "print(book, sorted(p.name for p in (book.parent / 'roles').iterdir()))"
    )
    done = run(str(installed / "python"), "-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert str(installed.parent) in done.stdout
    for role in (ROOT / "playbooks/roles").iterdir():
        assert role.name in done.stdout


def test_the_operators_install_is_light(installed: Path, tmp_path: Path):
    done = run(str(installed / "pip"), "list", "--format", "json", cwd=tmp_path)
    names = {package["name"].lower() for package in json.loads(done.stdout)}
    assert not names & {"torch", "tensorflow", "jax", "numpy"}
    assert "validators" not in names, "another package of that import name would shadow ours"
