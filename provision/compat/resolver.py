"""Which driver, module, CUDA toolkit and framework wheels fit together on a host. Pure: data in, data out."""

from __future__ import annotations

from provision.compat import drivers
from provision.compat.case import Case, cards_of, shown, words
from provision.compat.data import facts
from provision.compat.frameworks import resolve_frameworks
from provision.compat.model import Blocker, Machine, Part, Resolution, Wish
from provision.compat.toolkits import resolve_cuda, upper_bound


def resolve(machine: Machine, wish: Wish, today: str = "") -> Resolution:
    """The parts that fit together on this machine, or what stands in the way; each with its rule and source.

    `today` ("2026-11-21") decides which driver branches are past their support; empty: the day of the facts.
    Nothing is guessed: what the facts do not have is a blocker with its next step.
    """
    outside = _outside(machine)
    if outside is not None:
        return Resolution(blockers=(outside,))
    cards, unlisted = cards_of(machine.gpus)
    case = Case(machine, wish, facts().systems[machine.os], today or facts().as_of, cards, unlisted)
    found = None
    if not drivers.is_branch(wish.branch):
        step = 'name a branch ("580"), a version ("580.159.04") or "auto"'
        case.block(f'"{shown(wish.branch)}" is no driver branch', step)
        return case.resolution()
    if wish.source != "none":
        if not _may_choose(case):
            return case.resolution()
        found = drivers.choose(case)
        if found is None:
            return case.resolution()
    drivers.fabric_manager(case, found)
    driver = upper_bound(case, found)
    if wish.source == "none" and wish.branch != "auto":
        drivers.note_misfits(case, driver)
    resolve_cuda(case, driver)
    if wish.container_toolkit:
        rule = facts().rules["container_toolkit"]
        case.add(Part("container_toolkit", "", tuple(rule["packages"]), because=(facts().rule("container_toolkit"),)))
    resolve_frameworks(case, driver)
    return case.resolution()


def known_systems() -> tuple[str, ...]:
    """The systems that the facts cover, as ID-VERSION_ID."""
    return tuple(facts().systems)


def _outside(machine: Machine) -> Blocker | None:
    """What the facts do not cover at all."""
    if machine.os not in facts().systems:
        names = words(one.name for one in facts().systems.values())
        return Blocker(f'"{shown(machine.os)}" is not a supported system', f"use one of {names}")
    if machine.architecture not in ("x86_64", "amd64"):
        what = f"what packages and wheels a host of {shown(machine.architecture)} takes is not established"
        return Blocker(what, "install the driver by hand after NVIDIA's guide; the checks run there all the same")
    return None


def _may_choose(case: Case) -> bool:
    """Whether there is a card, or a branch is named."""
    if case.wish.branch != "auto":
        if case.unlisted:
            case.notes.append(
                f"NVIDIA's list for driver 595 does not have {words(map(shown, case.unlisted))}:"
                " nothing says that the branch named serves it"
            )
        return True
    if case.unlisted:
        case.block(
            f"the card {words(map(shown, case.unlisted))} is not in NVIDIA's list for driver 595",
            'look its driver up at nvidia.com and name the branch (branch = "595")',
        )
        return False
    if not case.cards:
        case.block(
            "no NVIDIA GPU is seen",
            'name a driver branch to install one without a card (branch = "580"), or leave it out',
        )
        return False
    return True
