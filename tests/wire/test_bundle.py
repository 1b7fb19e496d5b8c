"""The bundle: the same bytes for the same sources, on every Python from 3.9, alone with itself."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import validators
from provision.bundle import build_bundle
from tests.need import need
from tests.wire.planting import GOOD, bundle_of, outcomes, own_python, plan_of, records_of, wire, write_bundle
from validators import unpack
from validators.schema import Bye, Hello, decode_catalogue

ROOT = Path(__file__).parents[2]
BUILD = "from provision.bundle import build_bundle; print(build_bundle().sha256)"


def _built_elsewhere(root: Path, **environment: str) -> str:
    built = subprocess.run(
        [sys.executable, "-c", BUILD],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return built.stdout.strip()


def test_it_is_byte_for_byte_the_same_whoever_builds_it(tmp_path: Path) -> None:
    for name in ("provision", "validators"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for number, path in enumerate(sorted((tmp_path / "validators").rglob("*.py"))):
        os.utime(path, (number, number))
        path.chmod(0o600)
    cache = tmp_path / "validators" / "__pycache__"
    cache.mkdir(exist_ok=True)
    (cache / "schema.cpython-311.pyc").write_bytes(b"old")
    theirs = _built_elsewhere(tmp_path, TZ="Asia/Tokyo", PYTHONHASHSEED="7", LC_ALL="C")
    assert theirs == _built_elsewhere(ROOT, TZ="UTC", PYTHONHASHSEED="1")


def test_it_carries_pynvml_and_no_compiled_files() -> None:
    names = zipfile.ZipFile(io.BytesIO(build_bundle().data)).namelist()
    assert "pynvml.py" in names
    assert "validators/schema.py" in names
    assert not [name for name in names if name.endswith(".pyc") or "__pycache__" in name or "provision" in name]


def test_an_overlay_changes_the_hash_and_not_the_plain_bundle() -> None:
    plain = build_bundle()
    assert build_bundle({"pynvml.py": b"# another"}).sha256 != plain.sha256
    assert build_bundle() == plain


@pytest.mark.parametrize("version", ["3.9", "3.10", "3.11", "3.12", "3.13"])
def test_it_runs_on_python(version: str, tmp_path: Path) -> None:
    python = own_python(version)
    need(python is not None, f"Python {version} is not installed", installable=True)
    assert python
    bundle = bundle_of({"x_good": GOOD})
    with wire(tmp_path, bundle, plan_of(["x_good", "system", "software"]), python=python) as process:
        records = records_of(process)
    assert isinstance(records[0], Hello)
    assert records[0].python.startswith(version)
    assert {one.status for one in outcomes(records).values()} == {"ran"}, outcomes(records)
    assert isinstance(records[-1], Bye)
    told = subprocess.run(
        [python, "-I", str(write_bundle(tmp_path, bundle)), "describe"], capture_output=True, text=True, check=True
    )
    assert {"x_good", "system"} <= {info.name for info in decode_catalogue(told.stdout)}


@pytest.mark.parametrize("version", ["2.7", "3.6", "3.8"])
def test_an_older_python_gets_one_plain_line(version: str, tmp_path: Path) -> None:
    python = own_python(version)
    need(python is not None, f"Python {version} is not installed", installable=True)
    assert python
    said = subprocess.run(
        [python, str(write_bundle(tmp_path, build_bundle())), "wire"], capture_output=True, text=True, check=False
    )
    assert said.returncode == 78
    assert said.stdout == ""
    assert said.stderr.startswith(f"this is Python {version}.")
    assert len(said.stderr.splitlines()) == 1


def test_nothing_around_it_can_stand_before_its_own_modules(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    (trap / "validators").mkdir(parents=True)
    for name in ("json.py", "subprocess.py", "pynvml.py", "sitecustomize.py", "validators/__init__.py"):
        (trap / name).write_text("import os; os.write(2, b'TRAPPED'); os._exit(9)")
    path = write_bundle(tmp_path / "cache", build_bundle())
    told = subprocess.run(
        [sys.executable, "-I", str(path), "describe"],
        cwd=trap,
        env={**os.environ, "PYTHONPATH": str(trap)},
        capture_output=True,
        check=False,
    )
    assert b"TRAPPED" not in told.stderr
    assert told.returncode == 0


def test_the_package_validators_is_ours() -> None:
    assert validators.__file__ is not None
    assert Path(validators.__file__) == ROOT / "validators" / "__init__.py"


def test_the_folder_it_unpacks_to_is_made_anew_when_a_byte_of_it_changed(tmp_path: Path) -> None:
    bundle = bundle_of({"x_good": GOOD})
    for _ in range(2):
        with wire(tmp_path, bundle, plan_of(["x_good"])) as process:
            assert outcomes(records_of(process))["x_good"].status == "ran"
        unpacked = tmp_path / bundle.sha256 / "validators" / "checks" / "x_good.py"
        assert b"raise" not in unpacked.read_bytes()
        unpacked.write_text("raise SystemExit('tampered with')")


def test_a_run_that_unpacks_later_leaves_the_folder_that_another_run_reads_from(tmp_path: Path) -> None:
    bundle = build_bundle()
    root = tmp_path / f"{bundle.sha256}.pyz"
    root.write_bytes(bundle.data)
    tmp_path.chmod(0o700)
    folder = Path(unpack.unpacked(str(root), bundle.sha256))
    before = folder.stat().st_ino
    unpack._unpack(str(root), str(folder))
    assert folder.stat().st_ino == before
    assert [one.name for one in tmp_path.iterdir() if one.name.endswith(".part")] == []
