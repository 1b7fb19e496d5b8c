"""The command line that a login shell gets: sh, bash, zsh, fish and csh must all read the same argv from it.

A login shell may print before it runs anything (a profile, .bashrc, .cshrc), and no two families of shells
quote alike (fish reads a backslash inside single quotes, csh a `!` and no newline). So every character that
any of them could read differently travels as an octal escape, sh decodes it, and both streams begin with a
mark: what came before the mark was the shell's own.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence

from provision.transport.base import Stream

MARK = b"\x1ebringup\x1e"
_LIMIT = 64 * 1024
"""Bytes of a profile's chatter that are held back before giving up on the mark."""

_PRINT_MARK = r'printf %b "\0036bringup\0036"; printf %b "\0036bringup\0036" >&2; '
"""The mark itself is not in the command line, so that a shell that echoes its commands (`set -x`) does not print it."""

_PLAIN = re.compile(rb"[A-Za-z0-9_./:=@,+ -]")


def command_line(argv: Sequence[str]) -> str:
    """One line for the login shell, which replaces itself by the program.

    Raises ValueError for an empty argv or a NUL.
    """
    if not argv or any("\0" in part for part in argv):
        raise ValueError("a command is a list of at least one string, without NUL")
    words = os.fsencode(shlex.join(argv))
    if all(_PLAIN.fullmatch(words, at, at + 1) for at in range(len(words))):
        return f"exec /bin/sh -c '{_PRINT_MARK}exec {words.decode()}'"
    escaped = "".join(chr(byte) if _PLAIN.fullmatch(bytes([byte])) else rf"\0{byte:03o}" for byte in words)
    return f"""exec /bin/sh -c '{_PRINT_MARK}eval "exec $(printf %b "{escaped}")"'"""


class Unmark:
    """Takes the login shell's chatter off the front of both streams.

    Where no mark comes (a forced command, a shell that ran something else) everything is handed on as it came:
    then it is the answer, and whoever reads it says what is wrong with it.
    """

    def __init__(self) -> None:
        self._held: dict[Stream, bytes | None] = {"stdout": b"", "stderr": b""}

    def feed(self, stream: Stream, data: bytes) -> bytes:
        """What of `data`, and of what was held back before it, belongs to the program."""
        held = self._held[stream]
        if held is None:
            return data
        held += data
        _, mark, after = held.partition(MARK)
        if mark:
            self._held[stream] = None
            return after
        if len(held) > _LIMIT:
            self._held[stream] = None
            return held
        self._held[stream] = held
        return b""

    def rest(self, stream: Stream) -> bytes:
        """At the end of the stream: what was held back in vain."""
        held, self._held[stream] = self._held[stream], None
        return held or b""
