"""Where the bundle is put on a host: a cache that only we can write, else memory."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from provision.bundle import Bundle, build_bundle
from provision.remote import HostRun
from tests.need import need
from tests.wire.conftest import Box
from tests.wire.planting import GOOD, bundle_of, outcomes, plan_of, planted
from validators import receive

FROM_MEMORY = "it runs from memory"


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return bundle_of({"x_good": GOOD})


def validated(box: Box, bundle: Bundle) -> HostRun:
    run = box.validate(bundle, plan_of(["x_good"]))
    assert run.failure is None
    assert outcomes(run.records)["x_good"].status == "ran"
    return run


def uploaded(run: HostRun) -> bool:
    return "upload" in run.timings


def test_a_cached_bundle_with_another_content_is_replaced(box: Box, bundle: Bundle) -> None:
    validated(box, bundle)
    path = box.cache / f"{bundle.sha256}.pyz"
    path.write_bytes(b"#" + bundle.data[1:])
    assert uploaded(validated(box, bundle))
    assert path.read_bytes() == bundle.data


def test_a_cached_bundle_that_others_may_write_is_replaced(box: Box, bundle: Bundle) -> None:
    validated(box, bundle)
    path = box.cache / f"{bundle.sha256}.pyz"
    path.chmod(0o666)
    assert uploaded(validated(box, bundle))
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_link_in_the_cache_is_not_followed(box: Box, bundle: Bundle) -> None:
    elsewhere = box.home / "elsewhere.pyz"
    elsewhere.write_bytes(bundle.data)
    box.cache.mkdir(parents=True, mode=0o700)
    path = box.cache / f"{bundle.sha256}.pyz"
    path.symlink_to(elsewhere)
    assert uploaded(validated(box, bundle))
    assert not path.is_symlink()


def test_a_cache_folder_that_others_may_write_is_not_used(box: Box, bundle: Bundle) -> None:
    box.cache.mkdir(parents=True)
    box.cache.chmod(0o777)
    run = validated(box, bundle)
    assert FROM_MEMORY in run.notes[0]
    assert "is not only ours to write" in run.notes[0]
    assert not list(box.cache.iterdir())


def test_a_cache_folder_of_another_user_is_not_used(box: Box, bundle: Bundle) -> None:
    need(os.geteuid() == 0, "only root can give a folder away", installable=False)
    box.cache.mkdir(parents=True, mode=0o700)
    os.chown(box.cache, 65534, 65534)
    assert FROM_MEMORY in validated(box, bundle).notes[0]


def test_a_home_that_cannot_be_written_is_no_hindrance(box: Box, bundle: Bundle) -> None:
    (box.home / ".cache").write_text("a file where a folder should be")
    run = validated(box, bundle)
    assert FROM_MEMORY in run.notes[0]
    assert uploaded(run)


@pytest.fixture
def small_disk(box: Box) -> Iterator[Path]:
    """A file system of 64 KiB where the cache would be."""
    cache = box.home / ".cache"
    cache.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k,mode=0700", "none", str(cache)], capture_output=True, check=False
    )
    need(mounted.returncode == 0, "mounting a small file system needs root", installable=False)
    yield cache
    subprocess.run(["umount", "-l", str(cache)], check=True)


def test_a_full_disk_is_no_hindrance_and_is_noted(box: Box, bundle: Bundle, small_disk: Path) -> None:
    run = validated(box, bundle)
    assert "No space left on device" in run.notes[0]
    assert FROM_MEMORY in run.notes[0]
    assert not [path for path in small_disk.rglob("*") if path.is_file()], "half a bundle is left on a full disk"


def test_a_read_only_file_system_is_no_hindrance(box: Box, bundle: Bundle, small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    run = validated(box, bundle)
    assert "Read-only file system" in run.notes[0]
    assert FROM_MEMORY in run.notes[0]


def test_a_workload_runs_from_memory_too(box: Box) -> None:
    (box.home / ".cache").write_text("a file where a folder should be")
    body = (
        "import sys\nfrom validators.probes.workload import run_workload\n"
        "run_workload(ctx, sys.executable, 'x_small', {'n': 7}, gpus=None, timeout_s=15)"
    )
    overlay = {
        "validators/workloads/x_small.py": b"from validators.schema import Measurement\n"
        b"def main(params, emit):\n    emit(Measurement('x_load', 'host', 'n', params['n'], 'count'))\n"
    }
    run = box.validate(build_bundle({**planted({"x_load": body}), **overlay}), plan_of(["x_load"]))
    assert FROM_MEMORY in run.notes[0]
    assert outcomes(run.records)["x_load"].status == "ran", outcomes(run.records)


def test_a_host_with_no_room_at_all_is_a_clear_error(box: Box, bundle: Bundle, tmp_path: Path) -> None:
    (box.home / ".cache").write_text("a file where a folder should be")
    python = tmp_path / "python3"
    python.write_text(
        f"#!{sys.executable}\nimport os, resource, sys\nresource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        f"os.execv({sys.executable!r}, [{sys.executable!r}, *sys.argv[1:]])\n"
    )
    python.chmod(0o755)
    run = box.validate(bundle, plan_of(["x_good"]), python=str(python))
    assert run.failure
    assert run.failure.kind == "RemoteCommandError"
    assert "it does not fit into memory either ([Errno 27] File too large)" in run.failure.message


def test_a_python_that_knows_no_memory_files_uses_a_file_without_a_name(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "memfd_create")
    path = receive.in_memory(bundle.data)
    fd = int(path.rpartition("/")[2])
    told = subprocess.run([sys.executable, "-I", path, "describe"], pass_fds=(fd,), capture_output=True, check=False)
    assert "(deleted)" in str(Path(path).readlink())
    os.close(fd)
    assert b"x_good" in told.stdout


def test_what_is_broken_or_old_in_the_cache_is_cleared(box: Box, bundle: Bundle) -> None:
    box.cache.mkdir(parents=True, mode=0o700)
    young, broken, old = (box.cache / name for name in ("0.pyz", "1.pyz.77.part", "2.pyz"))
    for path in (young, broken, old):
        path.write_bytes(b"")
    folder = box.cache / "3"
    folder.mkdir()
    for path in (old, folder):
        os.utime(path, (0, 0))
    os.utime(broken, (0, 0))
    validated(box, bundle)
    left = {path.name for path in box.cache.iterdir()}
    assert left == {"0.pyz", bundle.sha256, f"{bundle.sha256}.pyz"}


def test_a_bundle_that_arrives_damaged_is_refused(box: Box, bundle: Bundle) -> None:
    damaged = Bundle(b"#" + bundle.data[1:], bundle.sha256)
    run = box.validate(damaged, plan_of(["x_good"]))
    assert run.failure
    assert run.failure.kind == "RemoteCommandError"
    assert "box: the bundle arrived damaged" in run.failure.message
    assert not list(box.cache.glob("*.pyz"))
