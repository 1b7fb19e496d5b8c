"""Datasets for a host, before its run: ask what it has in its cache, send what it lacks, learn where they are.

The other end is validators/staging.py, which checks every MD5 and keeps no file that is not right.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import struct
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from provision.bundle import Bundle
from provision.errors import ConnectionLost, HostTimeout, WireError
from provision.hosts import Host
from provision.remote.intake import Greeting
from provision.remote.start import bundle_argv, not_started
from provision.remote.sudo import as_asked
from provision.transport.base import Process, Transport

STAGE_S = 1800.0
"""Seconds for all datasets of a host: 240 MB at 1 Mbit/s."""
IDLE_S = 60.0
"""Silence after which the host counts as lost; while it takes a file it says something every second."""
_PIECE = 256 * 1024
_WORTH_IT = 0.7
"""A file is packed for the way where its first MiB shrinks below this: MNIST does, CIFAR-10 does not."""
_MAX_SAID = 1 << 20
"""Bytes that the host may answer in all."""


@dataclass
class Staged:
    """What came of it: `folders` of whole datasets on the host, and what a report should say of it."""

    folders: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def stage(
    host: Host,
    transport: Transport,
    bundle: Bundle,
    wanted: Mapping[str, tuple[str, ...]],
    *,
    tell: Callable[[str], None],
    stopped: Callable[[], bool],
) -> Staged:
    """Bring the datasets to the host's cache where they are not there. `wanted`: name -> the paths of its files on
    this machine, none where it has none to give. `stopped` is asked between pieces: the user's Ctrl-C.

    What the host cannot keep is in the notes. Raises HostError where the host does not answer.
    """
    mark = f"<bringup {secrets.token_hex(8)}> "
    process = transport.start(as_asked(host, bundle_argv(host, bundle, mark, int(IDLE_S), "data")))
    talk = _Talk(host, process, bundle, wanted, tell, stopped)
    try:
        talk.all(Greeting(host.name, mark))
    except HostTimeout as problem:
        talk.staged.notes.append(f"the datasets did not come to the host: {problem.message}")
    finally:
        process.close()
    return talk.staged


@dataclass
class _Talk:
    """One session with the other end."""

    _host: Host
    _process: Process
    _bundle: Bundle
    _wanted: Mapping[str, tuple[str, ...]]
    _tell: Callable[[str], None]
    _stopped: Callable[[], bool]
    _buffer: bytes = b""
    _tail: bytes = b""
    _said: int = 0
    _done: bool = False
    _brought: set[str] = field(default_factory=set)
    _end: float = field(default_factory=lambda: time.monotonic() + STAGE_S)
    staged: Staged = field(default_factory=Staged)

    def all(self, greeting: Greeting) -> None:
        """From the greeting to the last answer."""
        started = False
        for stream, data in self._process.chunks(deadline_s=STAGE_S, idle_s=IDLE_S):
            if stream == "stderr":
                self._tail = (self._tail + data)[-8192:]
            elif started:
                self._take(data)
            else:
                started = any(self._greeted(answer.status) for answer in greeting.feed(data))
                self._take(greeting.rest if started else b"")
        if not started:
            raise not_started(self._host, self._process.returncode, self._tail)
        if not self._done and not self.staged.notes:
            said = self._tail.decode("utf-8", "replace").strip()[-300:]
            self.staged.notes.append(f"the datasets did not come to the host: {said or 'it broke off'}")

    def _greeted(self, status: str) -> bool:
        """Deal with one answer of receive.py; true once ours are next."""
        if status == "send":
            self._send(self._bundle.data)
        if status not in ("cached", "stored"):
            return False
        offered = [name for name, paths in self._wanted.items() if paths]
        self._send(json.dumps({"names": list(self._wanted), "offered": offered}).encode() + b"\n")
        return True

    def _take(self, data: bytes) -> None:
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        self._said += len(data)
        if self._said > _MAX_SAID:
            raise self._strange()
        for line in lines:
            try:
                answer = json.loads(line)
            except (ValueError, RecursionError):
                raise self._strange() from None
            if not isinstance(answer, dict):
                raise self._strange()
            self._answered(answer)

    def _answered(self, answer: dict[str, object]) -> None:
        self._done = self._done or answer.get("done") is True
        name, folder, trouble = (str(answer.get(key, ""))[:1000] for key in ("name", "folder", "trouble"))
        if name not in self._wanted:
            return
        if trouble:
            self.staged.notes.append(f"{name} was not brought to the host: {trouble}")
        if folder.startswith("/"):
            self.staged.folders[name] = folder
        wants = _names(answer.get("wants"))
        if damaged := _names(answer.get("damaged")):
            again = "; it is sent again" if wants else ""
            self.staged.notes.append(f"{name} in the host's cache was not whole: {', '.join(damaged)}{again}")
        if wants and name not in self._brought:  # once, and no file but those of the dataset, whatever it asks for
            self._brought.add(name)
            mine = {Path(path).name: Path(path) for path in self._wanted[name]}
            self._bring(name, [mine[file] for file in dict.fromkeys(wants) if file in mine])

    def _bring(self, name: str, paths: list[Path]) -> None:
        """Send the files, in the order in which the host asked for them."""
        try:
            total, sent = sum(path.stat().st_size for path in paths), 0
            for path in paths:
                for piece in _on_the_wire(path):
                    if self._stopped():
                        raise ConnectionLost(f"{self._host.name}: interrupted")
                    if time.monotonic() > self._end:
                        raise HostTimeout(f"{self._host.name}: they were not there after {STAGE_S:g} s")
                    self._process.send(piece)
                sent += path.stat().st_size
                self._tell(f"sending {name}: {sent / 1e6:.0f} of {total / 1e6:.0f} MB")
        except OSError as problem:
            raise WireError(f"{self._host.name}: {name} cannot be read on this machine: {problem}") from None
        except ConnectionLost:
            if self._stopped():
                raise
            return  # the host has ended it: its last answer says why

    def _send(self, data: bytes) -> None:
        with contextlib.suppress(ConnectionLost):  # how it ended is told better by its stream
            self._process.send(data)

    def _strange(self) -> WireError:
        return WireError(f"{self._host.name}: the answer about datasets is not what this program speaks", "try again")


def _names(value: object) -> list[str]:
    return [str(one)[:200] for one in value[:20]] if isinstance(value, list) else []


def _on_the_wire(path: Path) -> Iterator[bytes]:
    """A file as validators/staging.py reads it: a byte, z where what follows is packed; pieces with their lengths."""
    with path.open("rb") as file:
        sample = file.read(1 << 20)
        packer = zlib.compressobj(1) if len(zlib.compress(sample, 1)) < _WORTH_IT * len(sample) else None
        file.seek(0)
        yield b"z" if packer else b"-"
        while plain := file.read(_PIECE):
            piece = packer.compress(plain) if packer else plain
            if piece:
                yield struct.pack(">I", len(piece)) + piece
        rest = packer.flush() if packer else b""
        yield (struct.pack(">I", len(rest)) + rest if rest else b"") + struct.pack(">I", 0)
