"""Interpreters are real ones: this test's own, and small scripts that stand for venvs."""

from __future__ import annotations

import json
import stat
import sys
from pathlib import Path

import pytest

from validators.checks import software
from validators.probes import pythons
from validators.schema import NOT_APPLICABLE, Plan

from tests.unit.host_tree import Measured, context  # isort: skip


def plan(**named: str) -> Plan:
    return Plan((), 60.0, named)


def venv(root: Path, *distributions: str) -> str:
    """A Python that sees these distributions, by metadata alone: importing them would fail."""
    site = root / "site"
    for one in distributions:
        (site / f"{one}.dist-info").mkdir(parents=True)
    (root / "bin").mkdir(parents=True)
    python = root / "bin" / "python3"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={site} exec {sys.executable} -S "$@"\n')
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    return str(python)


def test_a_named_interpreter_is_the_only_one_looked_at(tmp_path: Path):
    named = venv(tmp_path, "torch-2.11.0+cu130")

    assert [one.path for one in pythons.candidates(plan(torch=named), "torch")] == [named]
    assert pythons.find_python(plan(torch=named), "torch") == named


def test_a_named_interpreter_without_the_framework_is_not_replaced_by_another(tmp_path: Path):
    named = venv(tmp_path, "numpy-2.0.0")

    assert pythons.find_python(plan(torch=named), "torch") is None
    told = pythons.explain(plan(torch=named), "torch")
    assert f"{named} (named by bringup_torch_python): Python" in told
    assert "bringup_torch_python=/path/to/python3" in told


def test_a_named_interpreter_that_is_not_there_says_so():
    told = pythons.explain(plan(torch="/no/such/python3"), "torch")

    assert "/no/such/python3 is not there" in told


def test_the_active_environment_comes_before_the_path(tmp_path: Path):
    active, on_path = venv(tmp_path / "a", "torch-2.11.0"), venv(tmp_path / "b", "torch-2.9.0")
    environ = {"VIRTUAL_ENV": str(tmp_path / "a"), "PATH": f"relative:{tmp_path / 'b' / 'bin'}:/nowhere"}

    found = pythons.candidates(plan(), "torch", environ)

    paths = [one.path for one in found]
    assert paths.index(active) < paths.index(on_path)
    assert not any(one.path.startswith("relative") for one in found)


def test_a_folder_that_is_a_link_to_another_is_looked_at_once(tmp_path: Path):
    venv(tmp_path / "usr")
    (tmp_path / "bin").symlink_to(tmp_path / "usr" / "bin")
    environ = {"PATH": f"{tmp_path / 'usr' / 'bin'}:{tmp_path / 'bin'}"}

    found = [one.path for one in pythons.candidates(plan(), "torch", environ) if str(tmp_path) in one.path]

    assert len(found) == 1


def test_versions_come_from_metadata_without_an_import(tmp_path: Path):
    python = venv(tmp_path, "torch-2.11.0+cu130", "keras-3.11.3", "opencv_python_headless-4.12.0.88", "jax-0.7.2")

    (found,) = pythons.inspect([pythons.Candidate(python, "test")])

    assert not found.problem
    assert found.version_of("torch") == "2.11.0+cu130"
    assert found.version_of("keras") == "3.11.3"
    assert found.version_of("opencv") == "4.12.0.88"
    assert found.version_of("tensorflow") == ""


def test_a_cuda_build_of_mxnet_is_found_by_its_own_name(tmp_path: Path):
    python = venv(tmp_path, "mxnet_cu112-1.9.1", "horovod-0.28.1")

    (found,) = pythons.inspect([pythons.Candidate(python, "test")])

    assert (found.version_of("mxnet"), found.version_of("horovod")) == ("1.9.1", "0.28.1")


def test_a_missing_mxnet_is_told_with_the_python_that_it_takes(tmp_path: Path):
    told = pythons.explain(plan(mxnet=venv(tmp_path, "numpy-2.0.0")), "mxnet")

    assert "Set bringup_mxnet_python=/path/to/python3" in told
    assert "Python 3.9" in told
    assert "--tags frameworks" not in told


def test_a_json_module_in_the_working_directory_is_not_taken_for_pythons(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    python = venv(tmp_path / "env", "torch-2.11.0")
    (tmp_path / "json.py").write_text("raise SystemExit('the json.py of a home')")
    monkeypatch.chdir(tmp_path)

    (found,) = pythons.inspect([pythons.Candidate(python, "test")])

    assert (found.problem, found.version_of("torch")) == ("", "2.11.0")


def test_an_interpreter_that_prints_garbage_is_a_problem(tmp_path: Path):
    python = tmp_path / "python3"
    python.write_text("#!/bin/sh\necho Welcome; echo '[1, 2'\n")
    python.chmod(0o755)

    (found,) = pythons.inspect([pythons.Candidate(str(python), "test")])

    assert "something else" in found.problem


def test_an_interpreter_that_hangs_is_ended(tmp_path: Path):
    python = tmp_path / "python3"
    python.write_text("#!/bin/sh\nexec sleep 600\n")
    python.chmod(0o755)

    (found,) = pythons.inspect([pythons.Candidate(str(python), "test")], timeout_s=0.5)

    assert "did not end" in found.problem


def test_the_check_reports_each_framework_or_its_absence(tmp_path: Path):
    torch, other = venv(tmp_path / "t", "torch-2.11.0"), venv(tmp_path / "o", "numpy-2.0.0")
    ctx, records = context("software", plan(torch=torch, tensorflow=other, jax=other))

    software._frameworks(ctx)

    found = Measured(records)
    assert found.value("framework_version", framework="torch") == "2.11.0"
    assert found.one("framework_version", framework="torch").labels["python"] == torch
    assert found.one("framework_version", framework="tensorflow").absence == NOT_APPLICABLE
    assert other in found.one("framework_version", framework="tensorflow").note


def test_a_python_too_old_for_the_checks_is_passed_over_unless_it_was_named(tmp_path: Path):
    def python(name: str, version: str) -> str:
        made = tmp_path / name / "python3"
        made.parent.mkdir()
        answer = json.dumps({"version": version, "prefix": "/", "packages": {"jax": "0.4"}})
        made.write_text(f"#!/bin/sh\necho '{answer}'\n")
        made.chmod(0o755)
        return str(made)

    old, new = python("old", "3.8.10"), python("new", "3.11.2")
    plan = Plan((), 60.0, {"tensorflow": old, "torch": new})
    assert pythons.candidates(plan, "jax")[0].path == old
    assert pythons.find_python(plan, "jax") == new
    assert f"{old} (named by bringup_tensorflow_python): Python 3.8.10 with jax, too old for the checks: 3.9" in (
        pythons.explain(plan, "jax")
    )
    assert pythons.find_python(Plan((), 60.0, {"jax": old}), "jax") == old
