"""'did you mean ...': the nearest known word to one that is not known."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean "nearest"?`, or the known words where none is near and they are few, or nothing."""
    choices = sorted(set(known))
    near = difflib.get_close_matches(word[:80], choices, n=1, cutoff=0.6)
    if near:
        return f'; did you mean "{near[0]}"?'
    if 0 < len(choices) <= 12:
        return "; known: " + ", ".join(choices)
    return ""
