"""Which driver serves a card, by its PCI id: pure look-ups in this package's data files."""

from __future__ import annotations

import csv
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from importlib.resources import files
from typing import Any

CURRENT = "current"
"""The last branch of a card that the newest listed driver (595) still serves."""


@dataclass(frozen=True)
class Card:
    """A card by its PCI id. Fields are empty where the list does not know it: never a reason to call it served.

    `last_branch`: "current", or the number of the last driver branch that serves it, "470".
    """

    pci_id: str
    name: str = ""
    last_branch: str = ""
    generation: str = ""
    first_driver: str = ""
    modules: tuple[str, ...] = ()


def card(pci_id: str, subsystem: str = "") -> Card:
    """The card with this vendor and device ("10de:2335") and subsystem ("10de:18bf")."""
    vendor, _, device = pci_id.lower().partition(":")
    if vendor != "10de":
        return Card(pci_id)
    rows = _rows()
    exact = rows.get(f"{device} {subsystem.lower().replace(':', ' ')}") or rows.get(device)
    # A device id has one branch whatever the subsystem; only the marketing names differ (a test holds that).
    name, branch = exact or ("", next((row[1] for key, row in rows.items() if key.startswith(device + " ")), ""))
    generation = next((one for one in _data()["generation"] if device[:2].upper() in one["device_ids"]), None)
    if generation is not None and branch in (CURRENT, ""):
        return Card(pci_id, name, branch, generation["name"], generation["first_driver"], tuple(generation["modules"]))
    return Card(pci_id, name, branch, modules=("proprietary",) if branch not in ("", CURRENT) else ())


def minimum_driver(cuda: str) -> str:
    """The oldest driver for programs built with this CUDA ("13.0"), or empty where the table has no such major."""
    major = cuda.partition(".")[0]
    return next((str(one["minimum_driver"]) for one in _data()["cuda"] if str(one["major"]) == major), "")


def install_command(os_id: str, os_version: str, wanted: Card) -> str:
    """How this distribution installs a driver for the card."""
    asked = {"os": os_id, "os_version": os_version, "branch": wanted.last_branch, "generation": wanted.generation}
    for entry in _data()["install"]:
        if all(fnmatchcase(value, entry.get(key, "*")) for key, value in asked.items()):
            return str(entry["command"])
    if wanted.last_branch not in ("", CURRENT):
        return (
            f"install a driver of branch {wanted.last_branch} from nvidia.com: {os_id or 'this system'} packages none"
        )
    return "follow docs.nvidia.com/datacenter/tesla/driver-installation-guide for this system"


def torch_build(capability: str, driver: str) -> str:
    """The CUDA index ("cu130") of a torch that serves this capability under this driver; empty where none is known.

    An empty capability asks for any card.
    """
    for entry in _data()["torch_build"]:
        oldest = minimum_driver(str(entry["index"]).removeprefix("cu")[:2])
        if (not capability or capability in entry["capabilities"]) and version(driver) >= version(oldest):
            return str(entry["index"])
    return ""


def version(text: str) -> tuple[int, ...]:
    """A driver's version as numbers; a part that is none ends it."""
    numbers = []
    for part in text.split("."):
        if not part.isdecimal():
            break
        numbers.append(int(part))
    return tuple(numbers)


@cache
def _rows() -> Mapping[str, tuple[str, str]]:
    """ "2335 10de 18be" or "1e02" -> (name, last branch)."""
    text = (files("provision.compat") / "pci_ids.csv").read_text(encoding="utf-8")
    found = {}
    for row in csv.DictReader(text.splitlines()):
        branch = CURRENT if row["branch"].startswith(CURRENT) else row["branch"].removesuffix(".xx")
        found[row["pci_device_id"].lower()] = (row["name"], branch)
    return found


@cache
def _data() -> Mapping[str, Any]:
    return tomllib.loads((files("provision.compat") / "cards.toml").read_text(encoding="utf-8"))
