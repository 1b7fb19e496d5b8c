"""Run a tool of the host: an argument list, a deadline, a bound on its output, never a shell."""

from __future__ import annotations

import os
import selectors
import subprocess
import time
from dataclasses import dataclass
from typing import Dict, List, Optional, Sequence

LIMIT_BYTES = 256 * 1024
"""Bytes kept of each stream; a tool that writes more is ended."""


@dataclass(frozen=True)
class Ran:
    """How a tool ended. `problem` is empty exactly when it ran to its end and returned 0.

    `returncode` is negative for a signal and None where the tool never ran or was ended by us.
    """

    argv: Sequence[str]
    returncode: Optional[int]
    stdout: str
    stderr: str
    problem: str

    @property
    def ok(self) -> bool:
        """It ran to its end and returned 0."""
        return not self.problem


def run(argv: Sequence[str], timeout_s: float = 5.0, limit_bytes: int = LIMIT_BYTES) -> Ran:
    """Run a tool to its end, in the C locale, with no stdin.

    Never raises for what the tool does: a missing tool, a timeout and too much output are the `problem`.
    It stays in our process group, so that the end of the lease ends it too.
    """
    return run_all([argv], timeout_s, limit_bytes)[0]


def run_all(argvs: Sequence[Sequence[str]], timeout_s: float = 5.0, limit_bytes: int = LIMIT_BYTES) -> List[Ran]:
    """Run several tools at once; `timeout_s` seconds hold for all of them together."""
    began = time.monotonic()
    running = [_Running(argv, limit_bytes) for argv in argvs]
    with selectors.DefaultSelector() as selector:
        for one in running:
            one.register(selector)
        while selector.get_map():
            left = began + timeout_s - time.monotonic()
            if left <= 0:
                break
            for key, _ in selector.select(left):
                one = key.data
                if not one.take(key.fd):
                    selector.unregister(key.fd)
                elif one.problem:
                    one.unregister(selector)
    return [one.finish(began + timeout_s, timeout_s) for one in running]


class _Running:
    """One tool while it runs; both of its streams are drained together."""

    def __init__(self, argv: Sequence[str], limit_bytes: int) -> None:
        self.argv = tuple(argv)
        self.problem = ""
        self._limit = limit_bytes
        self._process: Optional[subprocess.Popen[bytes]] = None
        self._streams: Dict[int, bytearray] = {}
        try:
            self._process = subprocess.Popen(
                list(argv),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**os.environ, "LC_ALL": "C"},
            )
        except FileNotFoundError:
            self.problem = f"{argv[0]} is not there"
        except OSError as failure:
            self.problem = f"{argv[0]} cannot be run: {failure.strerror}"

    def register(self, selector: selectors.BaseSelector) -> None:
        if self._process is None or self._process.stdout is None or self._process.stderr is None:
            return
        for stream in (self._process.stdout, self._process.stderr):
            self._streams[stream.fileno()] = bytearray()
            selector.register(stream.fileno(), selectors.EVENT_READ, self)

    def unregister(self, selector: selectors.BaseSelector) -> None:
        for fd in self._streams:
            if fd in selector.get_map():
                selector.unregister(fd)

    def take(self, fd: int) -> bool:
        data = os.read(fd, 65536)
        self._streams[fd] += data
        if len(self._streams[fd]) > self._limit:
            self.problem = f"{self.argv[0]} wrote more than {self._limit} bytes"
        return bool(data)

    def finish(self, deadline: float, timeout_s: float) -> Ran:
        if self._process is None:
            return Ran(self.argv, None, "", "", self.problem)
        returncode: Optional[int] = None
        try:
            if not self.problem:
                returncode = self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.problem = f"{self.argv[0]} did not end within {timeout_s:g} s"
        if returncode is None:
            self._process.kill()
            self._process.wait()
        texts = [bytes(data[: self._limit]).decode("utf-8", "replace") for data in self._streams.values()]
        for stream in (self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()
        if returncode:
            last = (texts[1].strip() or texts[0].strip()).splitlines()[-1:]
            how = f"signal {-returncode}" if returncode < 0 else f"exit status {returncode}"
            self.problem = f"{self.argv[0]} ended with {how}" + (f": {last[0][:300]}" if last else "")
        return Ran(self.argv, returncode, texts[0], texts[1], self.problem)
