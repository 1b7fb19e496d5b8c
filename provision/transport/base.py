"""What a way to reach a host must do. `ssh.py` and `local.py` do it alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Protocol, Self

Stream = Literal["stdout", "stderr"]


@dataclass(frozen=True)
class Completed:
    """A program that ended. `returncode` is negative for a signal; output is bytes, since a host may send anything."""

    returncode: int
    stdout: bytes
    stderr: bytes


class Process(Protocol):
    """A program that runs on a host, its stdin open: for the bundle, the open stdin is the lease."""

    def send(self, data: bytes) -> None:
        """Write to its stdin and leave that open. Raises ConnectionLost."""

    def chunks(self, *, deadline_s: float, idle_s: float) -> Iterator[tuple[Stream, bytes]]:
        """Yield what it writes, both streams drained together, until it ends.

        Raises HostTimeout after `deadline_s` seconds in all or `idle_s` seconds of silence,
        ConnectionLost where the connection breaks.
        """

    @property
    def returncode(self) -> int:
        """Its exit status, once `chunks` has ended; negative for a signal."""

    def close(self) -> None:
        """Close its stdin (the end of the lease) and forget it. Never raises; ends a local process group."""


class Transport(Protocol):
    """An open way to a host. A context manager; `open` is where connecting fails, with a ConnectError."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def start(self, argv: Sequence[str]) -> Process:
        """Start a program. Arguments are quoted by construction. Raises ConnectionLost."""

    def run(
        self, argv: Sequence[str], *, stdin: bytes = b"", timeout_s: float = 30.0, limit_bytes: int = 1 << 20
    ) -> Completed:
        """Run a program to its end: stdin sent whole and closed, both streams collected.

        Raises HostTimeout, ConnectionLost, and RemoteCommandError where it writes more than `limit_bytes`.
        """
