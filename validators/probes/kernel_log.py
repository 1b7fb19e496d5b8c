"""The kernel's log since boot, read without waiting: /dev/kmsg, else `journalctl -k -b`, else `dmesg`.

A log that may not be read is never an empty one: `read` raises `LogUnreadable`. A ring buffer whose beginning
was overwritten is complete only if the journal kept the rest; `KernelLog.complete` says so.
"""

from __future__ import annotations

import errno
import os
import re
import subprocess
from dataclasses import dataclass
from typing import List, Optional, Tuple

MAX_BYTES = 32 * 1024 * 1024
"""No more than this is read from any source."""

COMMAND_TIMEOUT_S = 10.0


class LogUnreadable(Exception):
    """No source of the kernel's log could be read; the text says what was tried, and why it failed."""


@dataclass(frozen=True)
class Line:
    """A message of the kernel: seconds since boot (-1: not known), and the text."""

    t_s: float
    text: str


@dataclass(frozen=True)
class KernelLog:
    """The messages in order; `complete`: they go back to the boot; `source`: where they come from."""

    lines: Tuple[Line, ...]
    complete: bool
    source: str


def read(kmsg: str = "/dev/kmsg") -> KernelLog:
    """The kernel's log. Raises LogUnreadable."""
    tried: List[str] = []
    ring: Optional[KernelLog] = None
    try:
        ring = parse_kmsg(_kmsg(kmsg))
        if ring.complete:
            return ring
    except OSError as problem:
        tried.append(f"{kmsg}: {problem.strerror or problem}")
    for argv in (
        ["journalctl", "--dmesg", "--boot=0", "--output=short-monotonic", "--no-pager", "--quiet"],
        ["dmesg"],
    ):
        if ring is not None and argv[0] == "dmesg":
            break  # it reads the same ring
        try:
            log = parse_text(_command(argv), argv[0])
        except OSError as problem:
            tried.append(f"{argv[0]}: {problem.strerror or problem}")
            continue
        if log.lines:
            return log
        tried.append(f"{argv[0]}: gave no line")
    if ring is not None and ring.lines:
        return ring
    raise LogUnreadable("; ".join(tried) or "the kernel's log is empty")


def parse_kmsg(records: List[str]) -> KernelLog:
    """Records as /dev/kmsg gives them: "level,sequence,microseconds,flags;text"."""
    lines: List[Line] = []
    first: Optional[int] = None
    for record in records:
        match = re.match(r"\d+,(\d+),(\d+),[^;]*;([^\n]*)", record)
        if match is None:
            continue
        if first is None:
            first = int(match[1])
        lines.append(Line(int(match[2]) / 1e6, match[3]))
    return KernelLog(tuple(lines), first == 0, "kmsg")


_DMESG = re.compile(r"\[\s*(\d+\.\d+)\](?:\s*\[\s*[TC]\d+\])?\s?(.*)")
_JOURNAL = re.compile(r"\[\s*(\d+\.\d+)\] \S+ kernel: (.*)")


def parse_text(text: str, source: str) -> KernelLog:
    """The output of `dmesg`, or of `journalctl -o short-monotonic`.

    Complete where it begins with the kernel's own banner, which is the first message of every boot.
    """
    pattern = _JOURNAL if source == "journalctl" else _DMESG
    lines: List[Line] = []
    for raw in text.splitlines():
        match = pattern.match(raw)
        if match is not None:
            lines.append(Line(float(match[1]), match[2]))
    complete = any("Linux version " in line.text for line in lines[:20])
    return KernelLog(tuple(lines), complete, source)


def _kmsg(path: str) -> List[str]:
    """Every record that is there now. Raises OSError, PermissionError among them."""
    records: List[str] = []
    size = 0
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        while size < MAX_BYTES:
            try:
                record = os.read(descriptor, 8192)
            except BlockingIOError:
                break  # the end: a blocking read would wait for the next message
            except OSError as problem:
                if problem.errno == errno.EPIPE:
                    continue  # the record was overwritten meanwhile; the next read goes on after it
                raise
            if not record:
                break
            size += len(record)
            records.append(record.decode("utf-8", "replace"))
    finally:
        os.close(descriptor)
    return records


def _command(argv: List[str]) -> str:
    """The command's output. Raises OSError where it cannot run, fails or takes too long."""
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        )
    except subprocess.TimeoutExpired:
        raise OSError(errno.ETIMEDOUT, f"no answer in {COMMAND_TIMEOUT_S:g} s") from None
    if done.returncode:
        reason = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:] or [f"exit {done.returncode}"]
        raise OSError(errno.EIO, reason[0][:200])
    return done.stdout[-MAX_BYTES:].decode("utf-8", "replace")
