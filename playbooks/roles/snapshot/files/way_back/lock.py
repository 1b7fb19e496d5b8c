"""Getting the package manager's lock: ending what our own install phase left behind, waiting for everybody else."""

from __future__ import annotations

import fcntl
import os
import signal
import time
from pathlib import Path

import host

_LOCKS = ("/var/lib/dpkg/lock-frontend", "/var/lib/dpkg/lock", "/var/cache/apt/archives/lock")


def free(patience_s: float) -> tuple[list[str], str]:
    """Make the lock free: what was ended ("name (pid)"), and who still holds it after `patience_s` (empty: nobody)."""
    ended: dict[int, str] = {}
    deadline = time.monotonic() + patience_s
    began = time.monotonic()
    while True:
        left = _left_behind()
        number = signal.SIGTERM if time.monotonic() - began < 5 else signal.SIGKILL
        for pid, name in left.items():
            ended[pid] = name
            _send(pid, number)
        if not left and not locked():
            return [f"{name} ({pid})" for pid, name in sorted(ended.items())], ""
        if time.monotonic() > deadline:
            holders = ", ".join(_holders()) or "a program that /proc does not show"
            return [f"{name} ({pid})" for pid, name in sorted(ended.items())], holders
        time.sleep(0.5)


def settle(patience_s: float) -> str:
    """Wait for what an install phase still runs, since its operator is gone; who is left after that (empty: nobody)."""
    deadline = time.monotonic() + patience_s
    while True:
        left = [f"{name} ({pid})" for pid, name in _left_behind().items()]
        if not left and not locked():
            return ""
        if time.monotonic() > deadline:
            return ", ".join(left or _holders()) or "a program that /proc does not show"
        time.sleep(0.5)


def locked() -> bool:
    """Whether somebody has one of the package manager's locks."""
    for name in _LOCKS:
        try:
            with Path(name).open("ab") as file:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileNotFoundError:
            continue
        except OSError:
            return True
    return False


def _left_behind() -> dict[int, str]:
    """Processes that an install phase started and that are still there, by pid."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        pid = int(folder.name)
        if pid == os.getpid():
            continue
        try:
            entries = (folder / "environ").read_bytes().split(b"\0")
            marked = any(entry.startswith(host.MARK) and entry != host.MARK for entry in entries)
            if marked and (folder / "stat").read_bytes().rpartition(b")")[2].split()[0] != b"Z":
                found[pid] = _name(folder)
        except OSError:
            continue
    return found


def _name(folder: Path) -> str:
    """The program of a process, with the script that an interpreter runs."""
    words = [word.decode("utf-8", "replace") for word in (folder / "cmdline").read_bytes().split(b"\0") if word]
    shown = [os.path.basename(word) for word in words[:2]]  # noqa: PTH119 - an argument, not a path
    return " ".join(shown)[:80] or (folder / "comm").read_text(errors="replace").strip()


def _holders() -> list[str]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if any(str(entry.readlink()) in _LOCKS for entry in (folder / "fd").iterdir()):
                found.append(f"{_name(folder)} ({folder.name})")
        except OSError:
            continue
    return found


def _send(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except OSError:
        return
