"""plain(): what a host sent, made inert. Every renderer passes hosts' text through here (JSON is ASCII by itself)."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

_COLOUR = re.compile(r"\x1b\[[0-9;:]{0,40}m")
_SAFE = re.compile(r"[ -~]*")
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Unicode categories that draw nothing of their own: controls, bidi and zero-width, surrogates, unassigned."""
_MARKS = frozenset({"Mn", "Me"})
_MAX_MARKS = 3
"""Combining marks on one letter; more would climb over the lines above."""
_ODD_BLANKS = frozenset("\u115f\u1160\u3164\uffa0\u2800")
"""Letters that look like nothing."""


def plain(text: str, limit: int = 0, lines: bool = False) -> str:
    """`text` with nothing in it that a terminal, a browser or a reader could be misled by.

    Colour codes are dropped; every other control, bidi override or invisible character is spelled out
    ("\\x1b", "\\u202e"). Tabs and line breaks become blanks; line breaks stay where `lines` is set.
    `limit` > 0 clips to so many characters and says how many there were.
    Markup ("<b>", "[red]") stays: escaping it is the renderer's job.
    """
    full = len(text)
    clipped = 0 < limit < full
    if clipped:
        text = text[:limit]
    if not _SAFE.fullmatch(text):
        text = _spelled(_COLOUR.sub("", text), lines)
        if 0 < limit < len(text):  # spelled out, it may be longer than it was
            text, clipped = text[:limit], True
    return f"{text}… ({full:,} characters)" if clipped else text


def _spelled(text: str, lines: bool) -> str:
    out: list[str] = []
    marks = 0
    for char in text.replace("\r\n", "\n").replace("\t", " "):
        if char == "\n":
            out.append("\n" if lines else " ")
            continue
        kind = _category(char)
        marks = marks + 1 if kind in _MARKS else 0
        if kind in _HIDDEN or char in _ODD_BLANKS or marks > _MAX_MARKS:
            out.append(_escape(char))
        else:
            out.append(char)
    return "".join(out)


@lru_cache(maxsize=4096)
def _category(char: str) -> str:
    return unicodedata.category(char)


def _escape(char: str) -> str:
    code = ord(char)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
