"""The cached bundle unpacked beside itself, so that Python need not compile it anew for every child.

What is unpacked is used only if each file still has the hash that the bundle's own manifest states.
"""

from __future__ import annotations

import os
import stat
from typing import Dict

import validators

MANIFEST = "validators/MANIFEST"
"""Lines of "sha256  name", written by provision.bundle."""


def load_unpacked(sha256: str = "") -> None:
    """Take the modules that are still to be imported from the unpacked bundle, where there is one."""
    folder = unpacked(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), sha256)
    validators.__path__ = [os.path.join(folder, "validators")]


def unpacked(root: str, sha256: str) -> str:
    """The folder to load the bundle from: `root` without its ".pyz" where that is possible, else `root` itself."""
    folder = root[: -len(".pyz")]
    if os.path.basename(root) != f"{sha256}.pyz" or not _only_ours(os.path.dirname(root)):
        return root
    try:
        if _whole(root, folder):
            return folder
        _unpack(root, folder)
    except OSError:  # full, read-only: the zipapp itself works too, a little slower
        return root
    return folder if _whole(root, folder) else root


def _only_ours(path: str) -> bool:
    found = os.lstat(path)
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o022


def _whole(root: str, folder: str) -> bool:
    if not os.path.isdir(folder) or not _only_ours(folder):
        return False
    import hashlib  # noqa: PLC0415 - late: only a cached bundle needs it

    for name, sha256 in _manifest(root).items():
        try:
            with open(os.path.join(folder, name), "rb") as file:
                if hashlib.sha256(file.read()).hexdigest() != sha256:
                    return False
        except FileNotFoundError:
            return False
    return True


def _manifest(root: str) -> Dict[str, str]:
    import zipimport  # noqa: PLC0415 - as above

    text = bytes(zipimport.zipimporter(root).get_data(os.path.join(root, MANIFEST))).decode()
    return {name: sha256 for sha256, name in (line.split("  ", 1) for line in text.splitlines())}


def _unpack(root: str, folder: str) -> None:
    import shutil  # noqa: PLC0415 - as above
    import tempfile  # noqa: PLC0415 - as above
    import zipfile  # noqa: PLC0415 - late: once per bundle and host

    part = tempfile.mkdtemp(prefix=os.path.basename(folder) + ".", suffix=".part", dir=os.path.dirname(folder))
    try:
        with zipfile.ZipFile(root) as bundle:
            bundle.extractall(part)
        try:
            os.rename(part, folder)
        except OSError:
            # There is one: another run's, which may be reading it this moment, or one that is not whole.
            if not _whole(root, folder):
                shutil.rmtree(folder)
                os.rename(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
