"""What the parts of the resolver share: the host in the facts' terms, and the resolution as it grows."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from provision.compat.cards import CURRENT, Card, card
from provision.compat.data import Branch, Flavour, Offer, System, facts, version
from provision.compat.model import Blocker, Machine, Part, Reason, Resolution, Wish


@dataclass(frozen=True)
class Driver:
    """The driver that was chosen, or the one that a host has (`offer` None). `value`: as the wish names it."""

    branch: Branch
    value: str
    version: str
    offer: Offer | None = None
    module: str = ""
    flavour: Flavour | None = None


@dataclass
class Case:
    """One question. `cards`: without repetition; `unlisted`: PCI ids that NVIDIA's list does not have."""

    machine: Machine
    wish: Wish
    system: System
    today: str
    cards: tuple[Card, ...] = ()
    unlisted: tuple[str, ...] = ()
    parts: list[Part] = field(default_factory=list)
    blockers: list[Blocker] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def source(self) -> str:
        """The offers' word for the wish's source: a mirror has what NVIDIA's repository has."""
        return "nvidia" if self.wish.source == "mirror" else self.wish.source

    def where(self) -> str:
        """The source in words: "NVIDIA's repository for Debian 13"."""
        places = {"nvidia": "NVIDIA's repository for", "mirror": "a mirror of NVIDIA's repository for"}
        return f"{places.get(self.wish.source, 'the archive of')} {self.system.name}"

    def block(self, what: str, next_step: str, *because: Reason) -> None:
        """Something stands in the way."""
        self.blockers.append(Blocker(what, next_step, because))

    def add(self, part: Part) -> None:
        """A decision."""
        self.parts.append(part)

    def needs_repository(self) -> None:
        """NVIDIA's repository is needed; said once."""
        if all(part.name != "repository" for part in self.parts):
            rule = Reason(
                f"NVIDIA's repository for {self.system.name} is the directory {self.system.repository}",
                "developer.download.nvidia.com/compute/cuda/repos",
            )
            self.parts.insert(0, Part("repository", self.system.repository, because=(rule,)))

    def resolution(self) -> Resolution:
        """What was found out."""
        return Resolution(tuple(self.parts), tuple(self.blockers), tuple(dict.fromkeys(self.notes)))


def card_word(one: Card) -> str:
    """A card for a sentence: "GRID K520 (10de:118a)"."""
    return f"{one.name or 'a card'} ({shown(one.pci_id)})"


def shown(text: str) -> str:
    """What came from outside, short and on one line."""
    return re.sub(r"[^\x20-\x7e]", "?", text[:40])


def words(items: Iterable[str], link: str = "and") -> str:
    """ "a", "a and b", "a, b and c"."""
    found = list(dict.fromkeys(items))
    return found[0] if len(found) == 1 else f"{', '.join(found[:-1])} {link} {found[-1]}" if found else ""


def cards_of(gpus: Iterable[str]) -> tuple[tuple[Card, ...], tuple[str, ...]]:
    """The listed cards of these PCI ids, one a device id, and the ids that the list does not have."""
    found: dict[str, Card] = {}
    unlisted: dict[str, None] = {}
    for gpu in gpus:
        pci_id, _, subsystem = gpu.strip().partition(" ")
        one = card(pci_id, subsystem)
        if one.last_branch:
            found.setdefault(one.pci_id.lower(), one)
        else:
            unlisted[pci_id] = None
    return tuple(found.values()), tuple(unlisted)


def misfit(one: Card, branch: int, driver: str) -> str:
    """Why a driver of this branch and version does not serve the card, whatever its module; empty: it does."""
    if one.last_branch != CURRENT and branch > version(one.last_branch)[0]:
        return f"{card_word(one)} is served up to branch {one.last_branch}"
    if one.first_driver and version(driver) < version(one.first_driver):
        return f"{card_word(one)} needs driver {one.first_driver} or newer"
    return ""


def last_reason(one: Card) -> Reason:
    """Where a card's last branch stands."""
    if one.last_branch == CURRENT:
        return Reason(f"driver 595 serves {card_word(one)}, and no last branch is named", facts().pci_list)
    return Reason(f"{card_word(one)} is served up to branch {one.last_branch}", facts().pci_list)
