"""Ending a play's processes. Ansible's workers leave its process group, so the group alone is not enough."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path


def end_process_tree(pid: int, thread: threading.Thread, cancel: threading.Event, *, grace_s: float) -> None:
    """Ask Ansible (`pid`, or 0 where it has not said) to stop, give it `grace_s` seconds, then kill what is left.

    `thread` is the one that runs it and ends with it; `cancel` makes ansible-runner kill its own child.
    Ctrl-C is not heard meanwhile, or a second one would leave processes behind.
    """
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN) if main else None
    try:
        tree = descendants(pid) if pid else []
        if pid:
            _send(pid, signal.SIGINT)
            thread.join(grace_s)
        cancel.set()
        tree += descendants(pid) if pid else []
        for left in [pid, *tree] if pid else []:
            _send(left, signal.SIGKILL)
        thread.join(grace_s)
    finally:
        if main:
            signal.signal(signal.SIGINT, before)


def descendants(pid: int) -> list[int]:
    """Return the processes below `pid`, by /proc or else by ps."""
    children: dict[int, list[int]] = {}
    for child, parent in _pairs():
        children.setdefault(parent, []).append(child)
    found: list[int] = []
    todo = [pid]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


def _pairs() -> list[tuple[int, int]]:
    if Path("/proc/self/stat").exists():
        pairs = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                # The name in parentheses may hold spaces and parentheses of its own.
                after = path.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            except OSError:
                continue
            pairs.append((int(path.parent.name), int(after[1])))
        return pairs
    text = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=False, timeout=10)
    return [(int(one), int(two)) for one, two in (line.split() for line in text.stdout.splitlines())]


def _send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return


def end_ssh_masters(directory: Path) -> None:
    """End the SSH connections that Ansible keeps open for a minute after its end."""
    ssh = shutil.which("ssh")
    if ssh is None or not directory.is_dir():
        return
    deadline = time.monotonic() + 10
    for socket in directory.iterdir():
        if time.monotonic() > deadline:
            return
        try:
            subprocess.run(
                [ssh, "-o", f"ControlPath={socket}", "-O", "exit", "bringup"],
                capture_output=True,
                check=False,
                timeout=5,
            )
        except (subprocess.TimeoutExpired, OSError):
            continue
