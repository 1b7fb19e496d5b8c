"""Versions compared part by part, as far as the required one is given: "580" equals 580.159.04; 13.0 is not 13.1."""

from __future__ import annotations

import re

_EPOCH = re.compile(r"^\d+:")
_NUMBERS = re.compile(r"^[vV]?(\d+(?:\.\d+)*)")
_PRE_RELEASE = re.compile(r"^[.\-_~]?(?:rc|a|b|alpha|beta|dev|pre)", re.IGNORECASE)


def parts(version: str) -> tuple[int, ...] | None:
    """The numeric parts at the start ("2.13.0+cu130" -> 2, 13, 0), or None where there are none."""
    text = _EPOCH.sub("", version.strip())
    match = _NUMBERS.match(text)
    if not match:
        return None
    numbers = match.group(1).split(".")
    if len(numbers) > 16 or any(len(number) > 18 for number in numbers):
        return None  # not a version, and integers that long are slow to read
    return tuple(int(number) for number in numbers)


def is_pre_release(version: str) -> bool:
    """Whether a release candidate, beta or the like follows the numbers."""
    text = _EPOCH.sub("", version.strip())
    match = _NUMBERS.match(text)
    return bool(match and _PRE_RELEASE.match(text[match.end() :]))


def _compare(measured: str, required: str) -> int | None:
    have, want = parts(measured), parts(required)
    if have is None or want is None:
        return None
    length = len(want)
    have_cut = (have + (0,) * length)[:length]
    if have_cut != want:
        return 1 if have_cut > want else -1
    if is_pre_release(measured) and len(have) <= length and not is_pre_release(required):
        return -1  # 2.13.0rc1 comes before 2.13.0
    return 0


def equals(measured: str, required: str) -> bool | None:
    """Whether the measured version is the required one, in the parts that are given. None: not a version."""
    order = _compare(measured, required)
    return None if order is None else order == 0


def at_least(measured: str, required: str) -> bool | None:
    """Whether the measured version is the required one or later. None: not a version."""
    order = _compare(measured, required)
    return None if order is None else order >= 0


def at_most(measured: str, required: str) -> bool | None:
    """Whether the measured version is the required one or earlier ("at most 13" holds for 13.1). None: no version."""
    order = _compare(measured, required)
    return None if order is None else order <= 0
