"""The bundle: validators/ and pynvml as one zipapp, byte for byte the same for the same sources."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from provision.errors import BringupError

FIXED_DATE = (2020, 1, 1, 0, 0, 0)
"""The date of every file inside; zip cannot hold one before 1980."""

MANIFEST = "validators/MANIFEST"

_MAIN = """\
import sys
if sys.version_info < (3, 9):
    sys.stderr.write("this is Python %d.%d.%d; the validators need Python 3.9 or newer\\n" % sys.version_info[:3])
    sys.exit(78)
from validators.__main__ import main
sys.exit(main(sys.argv[1:]))
"""
"""Parses on Python 2.7 too, where it says what is wrong."""


@dataclass(frozen=True)
class Bundle:
    """A zipapp for hosts, and the SHA-256 (hex) that names it in their caches."""

    data: bytes
    sha256: str


def build_bundle(overlay: Mapping[str, bytes] | None = None) -> Bundle:
    """The bundle of the sources at hand. `overlay` adds or replaces files by their path inside (for tests)."""
    if not overlay:
        return _plain_bundle()
    return _pack({**_files(), **overlay})


@functools.cache
def _plain_bundle() -> Bundle:
    return _pack(_files())


def _files() -> dict[str, bytes]:
    root = _validators()
    files = {
        f"validators/{path.relative_to(root).as_posix()}": path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"
    }
    return {**files, "pynvml.py": _pynvml().read_bytes(), "__main__.py": _MAIN.encode()}


def _validators() -> Path:
    spec = importlib.util.find_spec("validators")
    if spec is None or not spec.origin:
        raise BringupError("the package `validators` is not installed", "reinstall gpu-bringup")
    root = Path(spec.origin).parent
    if not (root / "schema.py").is_file():
        raise BringupError(
            f"{root} is another package that is called `validators`",
            "uninstall the PyPI package `validators` from this environment, then reinstall gpu-bringup",
        )
    return root


def _pynvml() -> Path:
    """pynvml's file, found without running it."""
    spec = importlib.util.find_spec("pynvml")
    if spec is None or not spec.origin:
        raise BringupError("pynvml is not installed", "pip install nvidia-ml-py")
    return Path(spec.origin)


def _pack(files: Mapping[str, bytes]) -> Bundle:
    manifest = "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in sorted(files.items()))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in sorted({**files, MANIFEST: manifest.encode()}.items()):
            entry = zipfile.ZipInfo(name, FIXED_DATE)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.create_system = 3  # as on Linux, wherever it is built
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, data, compresslevel=9)
    return Bundle(buffer.getvalue(), hashlib.sha256(buffer.getvalue()).hexdigest())
