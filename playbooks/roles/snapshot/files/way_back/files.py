"""apt's and the module loader's files: kept in a snapshot, and brought back."""

from __future__ import annotations

import contextlib
import re
import shutil
from pathlib import Path
from typing import Any

_FOLDERS = (
    "/etc/apt/sources.list.d",
    "/etc/apt/preferences.d",
    "/etc/apt/keyrings",
    "/etc/apt/trusted.gpg.d",
    "/usr/share/keyrings",
    "/etc/modprobe.d",
    "/etc/modules-load.d",
    "/etc/cdi",
)
_FILES = ("/etc/apt/sources.list", "/etc/apt/preferences", "/var/lib/gpu-bringup/nvidia_driver_holds")
_OURS = re.compile(rb"nvidia|cuda|nouveau|bringup", re.IGNORECASE)
_FILE_LIMIT = 1 << 20


def listed() -> list[Path]:
    """All files in apt's and the module loader's folders."""
    found = [Path(name) for name in _FILES]
    for folder in _FOLDERS:
        if Path(folder).is_dir():
            found += sorted(Path(folder).iterdir())
    return [path for path in found if path.is_symlink() or path.is_file()]


def ours() -> list[Path]:
    """Those of them that speak of NVIDIA, by name or by content."""
    return [path for path in listed() if _speaks_of_it(path)]


def _speaks_of_it(path: Path) -> bool:
    if path.is_symlink():
        return _OURS.search(path.name.encode()) is not None
    if not path.is_file() or path.stat().st_size > _FILE_LIMIT:
        return False
    return _OURS.search(path.name.encode()) is not None or _OURS.search(path.read_bytes()) is not None


def keep(folder: Path) -> dict[str, dict[str, Any]]:
    """Copy ours into `folder`. Returns what each of them is, by its path."""
    kept: dict[str, dict[str, Any]] = {}
    for number, path in enumerate(ours()):
        with contextlib.suppress(OSError):
            if path.is_symlink():
                kept[str(path)] = {"link": str(path.readlink())}
            else:
                shutil.copyfile(path, folder / str(number))
                kept[str(path)] = {"copy": str(number), "mode": path.stat().st_mode & 0o7777}
    return kept


def bring_back(folder: Path, body: dict[str, Any], aside: Path) -> None:
    """Make ours what they were. What is overwritten or taken away goes to `aside`: it may be somebody's own."""
    for name, one in body["files"].items():
        path = Path(name)
        if "link" in one:
            if not path.is_symlink() or str(path.readlink()) != one["link"]:
                _put_aside(path, aside)
                path.symlink_to(one["link"])
            continue
        copy = folder / "files" / one["copy"]
        if path.is_symlink() or not path.is_file() or path.read_bytes() != copy.read_bytes():
            _put_aside(path, aside)
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f".{path.name}.bringup")
            shutil.copyfile(copy, part)
            part.chmod(one["mode"])
            part.replace(path)
    for path in ours():
        if str(path) not in body["names"]:
            _put_aside(path, aside)


def _put_aside(path: Path, aside: Path) -> None:
    if path.is_symlink() or path.exists():
        target = aside / path.relative_to("/")
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        shutil.move(path, target)
