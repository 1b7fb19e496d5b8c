"""This machine, through the same interface as a host over SSH: a subprocess in a session of its own."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from provision.errors import ConnectionLost, HostTimeout
from provision.transport.base import Completed, Stream
from provision.transport.collect import collect

_CHUNK = 64 * 1024
_GRACE_S = 1.0
"""How long a process group has to end by itself once its stdin is closed and it was asked to."""


class LocalProcess:
    """A program on this machine. Its process group is its own, so that `close` ends its children with it."""

    def __init__(self, name: str, argv: Sequence[str], stdin: bytes | None = None) -> None:
        self._name = name
        home = Path.home()
        # Through sh, as a host over SSH does it: a missing program is status 127 and a line on stderr in both.
        self._child = subprocess.Popen(
            ["/bin/sh", "-c", 'exec "$@"', "sh", *argv],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            cwd=home if home.is_dir() else "/",
        )
        self._unsent = memoryview(stdin or b"")
        if stdin is not None and not stdin:
            self._close_stdin()

    def send(self, data: bytes) -> None:
        """Write to its stdin and leave that open."""
        stdin = self._child.stdin
        if stdin is None or stdin.closed:
            raise ConnectionLost(f"{self._name}: the program's input is closed")
        try:
            stdin.write(data)
            stdin.flush()
        except BrokenPipeError:
            raise ConnectionLost(f"{self._name}: the program ended before it had read its input") from None

    def chunks(self, *, deadline_s: float, idle_s: float) -> Iterator[tuple[Stream, bytes]]:
        """Yield what it writes until both streams end and it has exited."""
        started = heard = time.monotonic()
        assert self._child.stdout is not None and self._child.stderr is not None  # noqa: S101  (Popen made the pipes)
        with selectors.DefaultSelector() as selector:
            selector.register(self._child.stdout, selectors.EVENT_READ, "stdout")
            selector.register(self._child.stderr, selectors.EVENT_READ, "stderr")
            if self._unsent:
                self._register_stdin(selector)
            open_streams = 2
            while open_streams:
                now = time.monotonic()
                left = min(started + deadline_s, heard + idle_s) - now
                if left <= 0:
                    raise timed_out(self._name, deadline_s, idle_s, deadline=now >= started + deadline_s)
                for key, _ in selector.select(left):
                    if key.data == "stdin":
                        self._feed(selector)
                        continue
                    data = os.read(key.fd, _CHUNK)
                    heard = time.monotonic()
                    if data:
                        yield key.data, data
                    else:
                        selector.unregister(key.fileobj)
                        open_streams -= 1
        try:
            self._child.wait(max(0.0, started + deadline_s - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise timed_out(self._name, deadline_s, idle_s, deadline=True) from None

    def _register_stdin(self, selector: selectors.BaseSelector) -> None:
        assert self._child.stdin is not None  # noqa: S101  (Popen made the pipe)
        os.set_blocking(self._child.stdin.fileno(), False)
        selector.register(self._child.stdin, selectors.EVENT_WRITE, "stdin")

    def _feed(self, selector: selectors.BaseSelector) -> None:
        stdin: IO[bytes] | None = self._child.stdin
        assert stdin is not None  # noqa: S101  (Popen made the pipe)
        try:
            self._unsent = self._unsent[os.write(stdin.fileno(), self._unsent[:_CHUNK]) :]
        except BlockingIOError:
            return
        except BrokenPipeError:  # it does not want the rest; how it ended is in its status
            self._unsent = self._unsent[:0]
        if not self._unsent:
            selector.unregister(stdin)
            self._close_stdin()

    def _close_stdin(self) -> None:
        if self._child.stdin is not None:
            with contextlib.suppress(OSError):  # a broken pipe at close: the program is gone
                self._child.stdin.close()

    @property
    def returncode(self) -> int:
        """Its exit status; negative for a signal."""
        if self._child.returncode is None:
            raise RuntimeError("the program has not ended: read chunks() to its end first")
        return self._child.returncode

    def close(self) -> None:
        """Close its stdin; where it still runs, end its process group."""
        self._close_stdin()
        if self._child.returncode is None:
            for ending in (signal.SIGTERM, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError, PermissionError):  # sudo's: the closed stdin ends it
                    os.killpg(self._child.pid, ending)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._child.wait(_GRACE_S)
                    break
            with contextlib.suppress(ProcessLookupError, PermissionError):  # children that outlived their leader
                os.killpg(self._child.pid, signal.SIGKILL)
        for stream in (self._child.stdout, self._child.stderr):
            if stream is not None:
                stream.close()


class LocalTransport:
    """This machine as a host; `name` is the inventory's, for messages."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._processes: list[LocalProcess] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            process.close()

    def start(self, argv: Sequence[str]) -> LocalProcess:
        """Start a program."""
        return self._start(argv)

    def _start(self, argv: Sequence[str], stdin: bytes | None = None) -> LocalProcess:
        if not argv or any("\0" in part for part in argv):
            raise ValueError("a command is a list of at least one string, without NUL")
        process = LocalProcess(self._name, argv, stdin)
        self._processes.append(process)
        return process

    def run(
        self, argv: Sequence[str], *, stdin: bytes = b"", timeout_s: float = 30.0, limit_bytes: int = 1 << 20
    ) -> Completed:
        """Run a program to its end."""
        return collect(self._name, argv, self._start(argv, stdin), timeout_s, limit_bytes)


def timed_out(name: str, deadline_s: float, idle_s: float, *, deadline: bool) -> HostTimeout:
    """The error of a deadline or of silence; says which, and how long it was."""
    if deadline:
        return HostTimeout(f"{name}: the program was still running at its deadline of {deadline_s:g} s")
    return HostTimeout(
        f"{name}: the host wrote nothing for {idle_s:g} s",
        hint="the host or the program hangs; look at its load and at dmesg there",
    )
