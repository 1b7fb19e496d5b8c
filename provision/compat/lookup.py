"""A machine from a card's name: `bringup plan --gpu "GTX 1080 Ti" --os ubuntu-24.04` asks about no host."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable
from functools import cache
from importlib.resources import files

from provision.compat.cards import Card, card, names
from provision.compat.case import shown
from provision.compat.model import Machine
from provision.compat.resolver import known_systems
from provision.criteria.suggest import did_you_mean
from provision.errors import UsageError

_MAKERS = re.compile(r"\b(nvidia|geforce|tesla|quadro|grid)\b")
_PCI_ID = re.compile(r"(?:10de:)?([0-9a-f]{4})", re.ASCII)


def machine_for(gpu_name: str, os: str) -> Machine:
    """A machine with one such card. The name as NVIDIA writes it, without "NVIDIA GeForce" too, or a PCI id.

    It is x86_64, but for a card that comes on one board with an Arm processor.

    Raises UsageError where the card or the system is not known, or the name stands for cards that differ.
    """
    system = os.strip().lower().replace(" ", "-")
    if system not in known_systems():
        raise UsageError(f'--os "{shown(os)}" is not known{did_you_mean(system, known_systems())}')
    pci_id = _pci_id(gpu_name)
    found = card(*pci_id.split(" ")).architecture
    return Machine((pci_id,), system, architecture="aarch64" if found is not None and found.on_arm else "x86_64")


@cache
def known_gpus() -> tuple[str, ...]:
    """Every name of a card in NVIDIA's list and in the criteria's, sorted."""
    return tuple(sorted({*names(), *_aliases()}, key=str.casefold))


def criteria_cards() -> tuple[str, ...]:
    """The names of the cards that have figures in the criteria."""
    return tuple(_aliases())


def _pci_id(gpu_name: str) -> str:
    found = _named(gpu_name)
    if not found:
        return _by_id(gpu_name)
    kinds = {_kind(card(*pci_id.split(" "))): pci_id for pci_id in reversed(found)}
    if len(kinds) > 1:
        raise UsageError(
            f'"{shown(gpu_name)}" stands for cards that differ: {_which(kinds.values())}',
            "give the PCI id instead, as lspci -n shows it",
        )
    # An id without a subsystem stands for the card best.
    return min(found, key=lambda pci_id: (" " in pci_id, found.index(pci_id)))


def _by_id(text: str) -> str:
    """What is no name: a PCI id, unless it is a part of a name. ("1080" is not meant for the GTX 580's device 1080.)"""
    short, wanted = {_normal(name): name for name in known_gpus()}, _normal(text)[:80]
    alike = [one for one in short if wanted in one.split()]
    match = _PCI_ID.fullmatch(text.strip().lower())
    if match and (":" in text or not alike):
        pci_id = f"10de:{match[1]}"
        if card(pci_id).last_branch:
            return pci_id
        raise UsageError(
            f"the PCI id {pci_id} is not in NVIDIA's list for driver 595",
            "look its driver up at nvidia.com, and name the branch in a profile for the host that has the card",
        )
    near = alike or difflib.get_close_matches(wanted, short, n=1)
    raise UsageError(
        f'no card is called "{shown(text)}"' + (f'; did you mean "{short[near[0]]}"?' if near else ""),
        'a PCI id serves as well, as lspci -n shows it: "10de:2335"',
    )


def _named(gpu_name: str) -> list[str]:
    """The PCI ids of this name; else of every name that begins with it, word by word ("A100")."""
    table, wanted = _table(), _normal(gpu_name)
    if not wanted:
        return []
    return table.get(wanted) or [one for name, ids in table.items() if name.startswith(wanted + " ") for one in ids]


def _kind(one: Card) -> tuple[str, str, tuple[str, ...]]:
    """What the resolver looks at."""
    return one.last_branch, one.capability, one.modules


def _which(ids: Iterable[str]) -> str:
    each = []
    for pci_id in sorted(ids):
        one = card(*pci_id.split(" "))
        each.append(f"{pci_id} ({one.generation or 'older'}, last branch {one.last_branch})")
    return "; ".join(each)


def _normal(name: str) -> str:
    """ "NVIDIA GeForce GTX 1080 Ti", "gtx1080ti" -> "gtx 1080 ti"; "V100-SXM2-16GB" -> "v100 sxm2 16gb"."""
    plain = re.sub(r"[^a-z0-9.]+", " ", name.lower()[:200])
    apart = re.sub(r"(?<=\d)(?=(ti|super)\b)|(?<=\brtx|\bgtx)(?=\d)", " ", plain)
    return " ".join(_MAKERS.sub(" ", apart).split() or apart.split())


@cache
def _table() -> dict[str, list[str]]:
    """Normal name -> PCI ids."""
    found: dict[str, list[str]] = {}
    for name, ids in names().items():
        found.setdefault(_normal(name), []).extend(ids)
    for alias, listed in _aliases().items():
        of_names = [pci_id for one in listed for pci_id in found.get(_normal(one), ())]
        if of_names:
            found.setdefault(_normal(alias), []).extend(of_names)
    return found


@cache
def _aliases() -> dict[str, tuple[str, ...]]:
    """The names of the criteria's cards -> the names that NVML gives them."""
    data = tomllib.loads((files("provision.criteria") / "gpus.toml").read_text(encoding="utf-8"))
    return {one["name"]: tuple(one["nvml_names"]) for one in data["gpu"]}
