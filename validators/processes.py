"""What runner and workload both need to know of a process: where its code is, and how it ended."""

from __future__ import annotations

import os
import re
import signal
from typing import List, Tuple

MOST_WORDS = 500
_RANK = re.compile(r"^\[rank\d+\]: ?")
"""torch writes it before each line of a traceback in a process group."""
_TRACEBACK = "Traceback (most recent call last):"
_FRAME = re.compile(rb'File "([^"]*)", line (\d+) in (\S+)')


def bundle_root() -> str:
    """Where `validators` was loaded from: the zipapp, the folder that it was unpacked to, or a checkout."""
    return os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def root_fds(root: str) -> Tuple[int, ...]:
    """The descriptor that a child must inherit where the bundle lives in memory (/proc/self/fd/N), else none."""
    head, _, fd = root.rpartition("/")
    return (int(fd),) if head == "/proc/self/fd" else ()


def ending(status: int, rest: bytes) -> str:
    """How a process ended, in words; nothing where it ended well. `rest`: an unfinished line that it sent."""
    if status < 0:
        try:
            name = signal.Signals(-status).name
        except ValueError:
            name = f"signal {-status}"
        return f"crashed: {name}"
    if rest:
        return "ended in the middle of a record"
    return f"exited with status {status}" if status else ""


def last_words(tail: bytes) -> str:
    """Where it was, by the traceback that faulthandler wrote; else the exception that ended it; else its last line."""
    _, said, trace = tail.rpartition(b"Current thread")
    frames = _FRAME.findall(trace) if said else []
    if frames:
        ours = [frame for frame in frames if b"/validators/" in frame[0]]
        path, line, function = (part.decode("utf-8", "replace") for part in (ours or frames)[0])
        return f" in {function} ({os.path.basename(path)}, line {line})"
    lines = [line.strip() for line in _exception(tail.decode("utf-8", "replace").strip().splitlines())]
    words = " ".join(lines)
    if len(words) > MOST_WORDS:  # a message's cause may stand at either end
        words = f"{words[: MOST_WORDS // 2]} ... {words[-MOST_WORDS // 2 :]}"
    return f"; its last words: {words}" if words else ""


def _exception(lines: List[str]) -> List[str]:
    """Of stderr's lines those of an exception's message, which may be several; the last line where none ended it."""
    lines = [_RANK.sub("", line) for line in lines]
    ignored = [number for number, line in enumerate(lines) if line.startswith("Exception ignored")]  # as it ended
    heads = [number for number, line in enumerate(lines) if line.startswith(_TRACEBACK) and number - 1 not in ignored]
    end = next((number for number in ignored if heads and number > heads[-1]), len(lines))
    told = lines[heads[-1] + 1 : end] if heads else []
    while told and told[0].startswith(" "):
        told.pop(0)
    return told or lines[-1:]
