"""What an XID means: NVIDIA's text, how bad it is for a machine that is to be signed off, and what to do."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from validators.schema import Measurement


@dataclass(frozen=True)
class Meaning:
    """`text` is NVIDIA's description with the name, `action` its resolution bucket, `advice` the next step."""

    text: str
    action: str
    severity: Literal["FAIL", "WARN"]
    advice: str


def meaning(number: int) -> Meaning:
    """The meaning of an XID; a number that the catalogue does not have is as bad as the worst."""
    table = _table()
    entry = table["xid"].get(str(number))
    if entry is None:
        of_class = table["class"]["unlisted"]
        return Meaning("not in NVIDIA's catalogue", "", of_class["severity"], of_class["advice"])
    of_class = table["class"][entry["class"]]
    return Meaning(
        f"{entry['text']} ({entry['name']})",
        entry.get("action", ""),
        of_class["severity"],
        entry.get("advice", of_class["advice"]),
    )


def meaning_of(measurement: Measurement) -> Meaning | None:
    """The meaning of a measurement of gpu_health.xid; None for any other, and for "none"."""
    if (measurement.check, measurement.metric) != ("gpu_health", "xid") or not isinstance(measurement.value, str):
        return None
    text = measurement.value
    return meaning(int(text)) if text.isascii() and text.isdigit() and len(text) <= 5 else None


@cache
def _table() -> dict[str, Any]:
    return tomllib.loads((files("provision.criteria") / "xid.toml").read_text(encoding="utf-8"))
