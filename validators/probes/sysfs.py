"""Read files of a host (sysfs, procfs, /etc) under a root, so that a recorded tree reads like a live one."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import List, Optional

LIMIT_BYTES = 1 << 20
"""Bytes read of one file; /proc and /sys files say nothing about their size."""

_MAX_LINKS = 40


class Files:
    """A host's files below `root` ("/" on a live host). Absolute links stay below the root too."""

    def __init__(self, root: str = "/") -> None:
        self.root = root.rstrip("/")

    def data(self, path: str, limit_bytes: int = LIMIT_BYTES) -> Optional[bytes]:
        """The file's first `limit_bytes` bytes; None where it is absent or cannot be read (see `why`)."""
        try:
            with self._place(path).open("rb", buffering=0) as file:
                chunks = []
                while limit_bytes > 0:
                    chunk = file.read(min(65536, limit_bytes))
                    if not chunk:
                        break
                    chunks.append(chunk)
                    limit_bytes -= len(chunk)
                return b"".join(chunks)
        except OSError:
            return None

    def text(self, path: str, limit_bytes: int = LIMIT_BYTES) -> Optional[str]:
        """The same as text, without white space around it; None where absent, unreadable or empty."""
        data = self.data(path, limit_bytes)
        if data is None:
            return None
        return data.decode("utf-8", "replace").strip("\0 \t\r\n") or None

    def number(self, path: str, base: int = 10) -> Optional[int]:
        """The file's whole number; None where there is none."""
        try:
            return int(self.text(path, 64) or "", base)
        except ValueError:
            return None

    def why(self, path: str) -> str:
        """Why `data` or `text` gave nothing: for the note of an unknown."""
        try:
            with self._place(path).open("rb"):
                return f"{path} is empty or garbled"
        except OSError as problem:
            return f"{path}: {problem.strerror}"

    def names(self, path: str) -> List[str]:
        """What the folder holds, sorted; nothing where there is no such folder."""
        try:
            return sorted(entry.name for entry in self._place(path).iterdir())
        except OSError:
            return []

    def exists(self, path: str) -> bool:
        """Whether there is such a file, folder or device (links followed)."""
        try:
            self._place(path).stat()
        except OSError:
            return False
        return True

    def is_device(self, path: str) -> bool:
        """Whether it is a character device. In a recorded tree an ordinary file stands for one."""
        try:
            mode = self._place(path).stat().st_mode
        except OSError:
            return False
        return stat.S_ISCHR(mode) or (bool(self.root) and stat.S_ISREG(mode))

    def link_name(self, path: str) -> str:
        """The last part of what a link points to ("nvidia" of .../driver), or empty."""
        try:
            return (self._place(str(Path(path).parent)) / Path(path).name).readlink().name
        except OSError:
            return ""

    def real(self, path: str) -> str:
        """The path with all links followed, still seen from the root."""
        parts = [part for part in path.split("/") if part]
        done: List[str] = []
        links = 0
        while parts:
            part = parts.pop(0)
            if part == ".":
                continue
            if part == "..":
                done = done[:-1]
                continue
            try:
                target = str(Path(self.root + "/" + "/".join([*done, part])).readlink())
            except OSError:
                done.append(part)
                continue
            links += 1
            if links > _MAX_LINKS:
                return path
            if target.startswith("/"):
                done = []
            parts = [piece for piece in target.split("/") if piece] + parts
        return "/" + "/".join(done)

    def _place(self, path: str) -> Path:
        return Path(self.root + self.real(path) if self.root else path)
