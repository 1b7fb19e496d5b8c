"""Our own lock, that one of us works at a time; and the package manager's: what our install phase left behind is ended,
everybody else is waited for."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import host
from host import Refused

_OURS = Path("/var/lib/gpu-bringup/lock")
_LOCKS = ("/var/lib/dpkg/lock-frontend", "/var/lib/dpkg/lock", "/var/cache/apt/archives/lock")


@contextlib.contextmanager
def alone(what: str, patience_s: float) -> Iterator[None]:
    """Be the only one of us on this host; one whose operator is gone still works. Raises Refused after `patience_s`.

    Children do not inherit it, or a daemon that a package starts would keep it.
    """
    _OURS.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    deadline = time.monotonic() + patience_s
    with _OURS.open("a+") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    other = _OURS.read_text(errors="replace")[:200] or "another of us"
                    raise Refused(f"at work on this host is still: {other}. Wait for it, then run this again") from None
                time.sleep(0.5)
        file.truncate(0)
        file.write(f"{what}, since {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} (process {os.getpid()})")
        file.flush()
        yield


def free(patience_s: float, runs: set[str]) -> tuple[list[str], str]:
    """Make the lock free: what was ended ("name (pid)"), and who still holds it after `patience_s` (empty: nobody).

    Ended is what an install phase of these `runs` has started; empty: of any.
    """
    ended: dict[int, str] = {}
    deadline = time.monotonic() + patience_s
    began = time.monotonic()
    while True:
        left = _left_behind(runs)
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
        left = [f"{name} ({pid})" for pid, name in _left_behind(set()).items()]
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


def _left_behind(runs: set[str]) -> dict[int, str]:
    """Processes that an install phase of these runs (empty: of any) started and that are still there, by pid."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        pid = int(folder.name)
        if pid == os.getpid():
            continue
        try:
            entries = (folder / "environ").read_bytes().split(b"\0")
            marks = {
                entry[len(host.MARK) :].decode("utf-8", "replace") for entry in entries if entry.startswith(host.MARK)
            }
            marked = marks & runs if runs else marks - {""}
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
