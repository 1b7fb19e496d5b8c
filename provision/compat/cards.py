"""A card by its PCI id: its name, the drivers and CUDA versions that serve it. Pure look-ups in the package's data."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files

from provision.compat.data import Architecture, facts, version

__all__ = ["CURRENT", "Card", "card", "minimum_driver", "names", "serves", "version"]

CURRENT = "current"
"""The last branch of a card that the newest listed driver (595) still serves."""


@dataclass(frozen=True)
class Card:
    """A card by its PCI id. Fields are empty where the list does not know it: never a reason to call it served.

    `last_branch`: "current", or the number of the last driver branch that serves it, "470".
    `first_driver`: the driver of the first CUDA toolkit that knows its generation; nothing older serves it.
    """

    pci_id: str
    name: str = ""
    last_branch: str = ""
    generation: str = ""
    capability: str = ""
    first_driver: str = ""
    modules: tuple[str, ...] = ()
    architecture: Architecture | None = None


def card(pci_id: str, subsystem: str = "") -> Card:
    """The card with this vendor and device ("10de:2335") and subsystem ("10de:18bf")."""
    found = _card(pci_id.lower(), subsystem.lower().replace(":", " "))
    return replace(found, pci_id=pci_id)


@cache
def _card(pci_id: str, subsystem: str) -> Card:
    vendor, _, device = pci_id.partition(":")
    if vendor != "10de":
        return Card(pci_id)
    rows = _rows()
    # A device id has one branch whatever the subsystem; only the marketing names differ (a test holds that).
    of_device = rows.get(device, {})
    name, branch = of_device.get(subsystem) or of_device.get("") or _any(of_device)
    found = facts().architecture(device)
    if found is None:
        return Card(pci_id, name, branch, modules=("proprietary",) if branch not in ("", CURRENT) else ())
    first, _ = facts().cuda.get(found.first_cuda, ("", None))
    return Card(pci_id, name, branch, found.name, found.capability, first, found.modules, found)


def _any(of_device: Mapping[str, tuple[str, str]]) -> tuple[str, str]:
    """Of an unread subsystem: every name that the device id has, and its branch."""
    listed = dict.fromkeys(name for name, _ in of_device.values())
    return " or ".join(listed), next((branch for _, branch in of_device.values()), "")


def minimum_driver(cuda: str) -> str:
    """The oldest driver for programs built with this CUDA ("13.0"), or empty where the table has no such major."""
    major = cuda.partition(".")[0]
    return facts().cuda_majors[int(major)][0] if major.isdecimal() and int(major) in facts().cuda_majors else ""


def serves(capability: str, code: Sequence[str]) -> str:
    """The entry ("sm_80", "compute_90") of a build's machine code by which it runs on a card; empty: it does not.

    sm_XY runs on the same major version and the same or a higher minor one; compute_XY on the same or a higher
    capability, compiled on first use. Source: CUDA C++ Programming Guide, binary and PTX compatibility.
    """
    wanted = version(capability)
    by_ptx = ""
    for entry in code:
        kind, _, number = entry.partition("_")
        has = (int(number[:-1]), int(number[-1]))
        if kind == "sm" and has[0] == wanted[0] and has <= wanted:
            return entry
        if kind == "compute" and has <= wanted:
            by_ptx = entry
    return by_ptx


def names() -> Mapping[str, tuple[str, ...]]:
    """Every name of NVIDIA's list -> the PCI ids that bear it ("10de:1e30 1028:129e" with a subsystem)."""
    found: dict[str, list[str]] = {}
    for device, of_device in _rows().items():
        for subsystem, (name, _) in of_device.items():
            suffix = " " + subsystem.replace(" ", ":") if subsystem else ""
            found.setdefault(name, []).append(f"10de:{device}{suffix}")
    return {name: tuple(ids) for name, ids in found.items()}


@cache
def _rows() -> Mapping[str, Mapping[str, tuple[str, str]]]:
    """Device id -> subsystem ("10de 18be", or empty) -> (name, last branch)."""
    text = (files("provision.compat") / "pci_ids.csv").read_text(encoding="utf-8")
    found: dict[str, dict[str, tuple[str, str]]] = {}
    for row in csv.DictReader(text.splitlines()):
        branch = CURRENT if row["branch"].startswith(CURRENT) else row["branch"].removesuffix(".xx")
        device, _, subsystem = row["pci_device_id"].lower().partition(" ")
        found.setdefault(device, {})[subsystem] = (row["name"], branch)
    return found
