"""Datasets from the operator's machine: asked for, received and kept on a host; looked at on the operator's own.

`data` speaks with provision.remote.staging: a request on stdin, answers as JSON Lines on stdout, then the files that
the host asked for in pieces (four bytes of length, then so many bytes; a length of 0 ends the file).
"""

from __future__ import annotations

import json
import os
import select
import struct
import sys
import time
import zlib
from typing import Any, Callable, Dict, List

from validators import lease
from validators.probes import datasets

REQUEST_WITHIN_S = 60.0
SILENT_S = 60.0
"""Seconds without a byte after which the operator counts as gone."""
MAX_PIECE = 4 << 20
OLD_PART_S = 3600.0
"""Age in seconds at which what is left of a broken upload is removed."""


class Gone(Exception):
    """The operator went away, or sends what is not this protocol."""


def serve() -> int:
    """`data`: say which files of the datasets are lacking here, take those, keep each once its MD5 is right."""
    out = os.dup(1)
    os.dup2(2, 1)

    def say(**answer: Any) -> None:
        lease.write_all(out, json.dumps(answer).encode() + b"\n")

    try:
        request = json.loads(lease.read_line(0, 1 << 16, REQUEST_WITHIN_S))
        for name in request["names"]:
            if name in datasets.KNOWN:
                _one(name, name in request["offered"], say)
    except (Gone, ValueError, KeyError, TypeError) as problem:
        sys.stderr.write(f"data: {problem}\n")
        return 74
    say(done=True)
    return 0


def _one(name: str, offered: bool, say: Callable[..., None]) -> None:
    try:
        folder = datasets.cache(name)
        _clear(folder)
        lacking = datasets.lacking(folder, name)
        found = [file.name for file in lacking if os.path.lexists(os.path.join(folder, file.name))]
    except OSError as problem:
        say(name=name, folder="", wants=[], trouble=f"the cache cannot be used ({problem})", damaged=[])
        return
    whole = "" if lacking else folder
    wanted = [file.name for file in lacking] if offered else []
    say(name=name, folder=whole, wants=wanted, trouble="", damaged=found)
    for file in lacking if offered else []:
        stream = _Stream(lambda count: say(got=count))
        try:
            datasets.store(stream, file, folder)
        except (OSError, ValueError) as problem:
            say(name=name, trouble=f"{file.name} was not kept ({problem})")
            raise Gone(str(problem)) from None
        say(kept=file.name)
    if offered and lacking:
        say(name=name, folder=folder)


def _clear(folder: str) -> None:
    for entry in os.scandir(folder):
        if entry.name.endswith(".part") and time.time() - entry.stat(follow_symlinks=False).st_mtime > OLD_PART_S:
            os.unlink(entry.path)


class _Stream:
    """The next file on stdin: a byte that says whether it is packed, then its pieces. `read` gives its content."""

    def __init__(self, tell: Callable[[int], None]) -> None:
        self._tell, self._told, self._got = tell, time.monotonic(), 0
        packed = self._exactly(1)
        self._unpack = zlib.decompressobj() if packed == b"z" else None
        self._ready = b""
        self._ended = False

    def read(self, size: int = -1) -> bytes:
        """The next bytes of the file, none at its end. Raises Gone."""
        while not self._ready and not self._ended:
            (length,) = struct.unpack(">I", self._exactly(4))
            if length > MAX_PIECE:
                raise Gone(f"a piece of {length} bytes")
            self._ended = length == 0
            piece = self._exactly(length)
            self._got += length
            # A piece of a MiB holds at most a GiB: what comes of it is bounded, and store() stops at the file's size.
            self._ready = self._unpack.decompress(piece) if self._unpack else piece
            if time.monotonic() - self._told > 1:
                self._told = time.monotonic()
                self._tell(self._got)
        given, self._ready = self._ready[:size], self._ready[size:]
        return given

    def _exactly(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            if not select.select([0], [], [], SILENT_S)[0]:
                raise Gone(f"nothing came for {SILENT_S:g} s")
            more = os.read(0, size - len(data))
            if not more:
                raise Gone("the operator went away in the middle of a file")
            data += more
        return bytes(data)


def look(words: List[str]) -> int:
    """`dataset look NAME [FOLDER]`, `dataset fetch NAME [ADDRESS]`: on the operator's machine, through the bundle.

    Prints a JSON object: `folder` of the whole dataset or "", `trouble` in words, `files` with their sizes.
    """
    what, name, *more = words
    files = {file.name: file.size for file in datasets.KNOWN[name].files}
    answer: Dict[str, Any] = {"folder": "", "trouble": "", "files": files}
    try:
        answer["folder"] = _fetch(name, *more) if what == "fetch" else _look(name, *more)
    except (OSError, ValueError, datasets.DamagedData) as problem:
        answer["trouble"] = str(problem)
    sys.stdout.write(json.dumps(answer) + "\n")
    return 0


def _look(name: str, named: str = "") -> str:
    if named:
        return datasets.taken(named, name)
    folder = datasets.cache(name)
    wrong = datasets.damage(folder, name)
    if wrong and os.listdir(folder):
        raise ValueError(f"{folder} is damaged: {'; '.join(wrong)}")
    return "" if wrong else folder


def _fetch(name: str, address: str = "") -> str:
    folder = datasets.cache(name)
    source = address or datasets.KNOWN[name].address

    def tell(words: str, _fraction: float) -> None:
        sys.stderr.write(f"{words}\n")

    datasets.download(name, source, folder, tell)
    return folder
