"""The lease: while the operator holds stdin open, the run may go on; after that nothing of it is left.

Each process of the bundle holds one on its own stdin, so that the end of any of them ends what is below it.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import threading
import time
from typing import Callable, Dict, List, Optional, Sequence, Set

END = b"end\n"
"""What the operator writes to end a run at once; any other line renews the lease."""

PR_SET_CHILD_SUBREAPER = 36
"""From linux/prctl.h: orphans below us become our children, so that they can be found and ended."""


def hold(fd: int, lost: Callable[[str], None], answer_within_s: float = 0.0) -> None:
    """Watch `fd` in a thread; call `lost(why)` at its end, or when nothing came for `answer_within_s` (0: wait on).

    os.read on the descriptor: a daemon thread inside sys.stdin's buffer would hold its lock at shutdown.
    """

    def watch() -> None:
        heard = time.monotonic()
        while True:
            wait = None if not answer_within_s else max(0.0, heard + answer_within_s - time.monotonic())
            if not select.select([fd], [], [], wait)[0]:
                return lost(f"the operator has not answered for {answer_within_s:.0f} s")
            try:
                data = os.read(fd, 65536)
            except OSError:
                data = b""
            if not data:
                return lost("the operator's end of the connection is closed")
            if END in data:
                return lost("the operator ended it")
            heard = time.monotonic()

    threading.Thread(target=watch, name="lease", daemon=True).start()


def end_own_group(_why: str) -> None:
    """What a child does when its lease is gone: end its process group, itself included."""
    os.killpg(os.getpgrp(), signal.SIGKILL)


def read_line(fd: int, limit: int, timeout_s: float) -> bytes:
    """One line from `fd`, newline included, byte by byte so that nothing behind it is eaten.

    Raises ValueError at the end of input, at `limit` bytes or after `timeout_s` seconds.
    """
    line = bytearray()
    end = time.monotonic() + timeout_s
    while not line.endswith(b"\n"):
        if not select.select([fd], [], [], max(0.0, end - time.monotonic()))[0]:
            raise ValueError(f"no line on stdin within {timeout_s:.0f} s")
        byte = os.read(fd, 1)
        if not byte:
            raise ValueError("stdin ended before a whole line")
        line += byte
        if len(line) > limit:
            raise ValueError(f"a line of more than {limit} bytes on stdin")
    return bytes(line)


def write_all(fd: int, data: bytes) -> None:
    """os.write until all is written."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


class Family:
    """The processes that this one started, each check in a session of its own, so that all can be ended at once."""

    def __init__(self) -> None:
        # Re-entrant: a signal handler may need it while the main thread is inside start().
        self._lock = threading.RLock()
        self._ended = False
        self.doomed = threading.Event()
        """Set before everything is ended early: what is seen of children from then on is that end, no result."""
        self._pids: Set[int] = set()

    def adopt_orphans(self) -> None:
        """Become the parent of orphans below us, where this kernel and this Python can."""
        try:
            import ctypes  # noqa: PLC0415 - some Pythons are built without it

            ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        except (ImportError, OSError, AttributeError):
            return

    def start(self, argv: Sequence[str], pass_fds: Sequence[int] = ()) -> subprocess.Popen[bytes]:
        """A child with pipes for all three streams, leader of its own session and process group."""
        with self._lock:
            if self._ended:
                raise ProcessLookupError("the run is over")
            child = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                pass_fds=pass_fds,
                start_new_session=True,
            )
            self._pids.add(child.pid)
            return child

    def end(self, pid: int) -> None:
        """End a child's whole process group. Call it before the child is waited for, while its id is still its own."""
        with self._lock:
            self._pids.discard(pid)
            _kill_group(pid)

    def end_all(self) -> None:
        """End every process below this one, those that left their group included; refuse to start more."""
        with self._lock:
            self._ended = True
            for pid in self._pids:
                _kill_group(pid)
            kill_descendants(os.getpid())


def kill_descendants(pid: int) -> None:
    """SIGKILL everything below `pid`, again until nothing is left that could start another."""
    for _ in range(50):
        below = descendants(pid)
        if not below:
            return
        for one in below:
            try:
                os.kill(one, signal.SIGKILL)
            except ProcessLookupError:
                continue
            except PermissionError:  # a set-uid program: its group got the signal, more cannot be done
                continue
        time.sleep(0.01)


def descendants(pid: int) -> List[int]:
    """The living processes below `pid`, from /proc; zombies are over and are left out."""
    parents: Dict[int, Optional[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            parents[int(entry)] = _parent(entry)
    found: List[int] = []
    level = {pid}
    while level:
        level = {child for child, parent in parents.items() if parent in level}
        found += level
    return found


def _parent(pid: str) -> Optional[int]:
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            # The name may hold spaces and brackets: what follows the last one is state, parent, ...
            state, parent = stat.read().rpartition(b")")[2].split()[:2]
    except (OSError, ValueError):
        return None
    return None if state in (b"Z", b"X") else int(parent)


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return
