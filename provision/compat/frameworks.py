"""Framework wheels: the newest build whose machine code, Python and CUDA fit the host."""

from __future__ import annotations

from collections.abc import Sequence

from provision.compat.cards import serves
from provision.compat.case import Case, card_word, shown, words
from provision.compat.data import Build, facts, version
from provision.compat.model import Part
from provision.compat.toolkits import own_cuda


def resolve_frameworks(case: Case, driver: str) -> None:
    """A part for each framework of the wish, or why not. `driver`: what to judge by; empty: not known."""
    for name, asked in case.wish.frameworks.items():
        builds = [one for one in facts().builds if one.framework == name and one.reason.confidence != "low"]
        if not builds:
            known = words(dict.fromkeys(one.framework for one in facts().builds))
            case.block(f'no wheels of "{shown(name)}" are established', f"name one of {known}")
            continue
        if asked != "auto":
            named = [one for one in builds if one.version == asked]
            if not named:
                versions = words(dict.fromkeys(one.version for one in builds))
                case.block(f"{name} {shown(asked)} is not among the established releases", f"name one of {versions}")
                continue
            builds = named
        which = name if asked == "auto" else f"{name} {asked}"
        found = _choose(case, name, which, builds, driver)
        if found is not None:
            _describe(case, found, driver)


def best(builds: Sequence[Build], capabilities: Sequence[str], driver: str) -> Build | None:
    """The newest release; of its builds one that the driver covers in full, with machine code, from the default index.

    `builds` may be of one framework only. An empty `driver` or no capability asks for any.
    """
    fit = [
        one
        for one in builds
        if all(serves(capability, one.code) for capability in capabilities)
        and (not driver or version(driver) >= version(one.minimum_driver))
    ]

    def rank(one: Build) -> tuple[tuple[int, ...], bool, bool, bool, tuple[int, ...]]:
        by_code = all(serves(capability, one.code).startswith("sm_") for capability in capabilities)
        return version(one.version), own_cuda(one.cuda, driver), by_code, not one.index, version(one.cuda)

    return max(fit, key=rank, default=None)


def _choose(case: Case, name: str, which: str, builds: list[Build], driver: str) -> Build | None:
    bare = [card for card in case.cards if not card.capability]
    if case.unlisted or bare:
        them = words([*map(shown, case.unlisted), *map(card_word, bare)])
        case.block(f"which {name} runs on {them} is not established", f"leave {name} out")
        return None
    capabilities = list(dict.fromkeys(card.capability for card in case.cards))
    found = best([one for one in builds if _python(case, one)], capabilities, driver)
    if found is None:
        _explain(case, which, builds, driver)
    return found


def _python(case: Case, build: Build) -> bool:
    first, last = build.python
    return version(first) <= version(case.system.python) <= version(last)


def _explain(case: Case, which: str, builds: list[Build], driver: str) -> None:
    """The first thing that leaves no build."""
    name, capabilities = builds[0].framework, [card.capability for card in case.cards]
    coded = [one for one in builds if all(serves(capability, one.code) for capability in capabilities)]
    if not coded:
        cards = words(f"{card_word(card)}, compute capability {card.capability}," for card in case.cards)
        step = f"leave {name} out" if which == name else f'set {name} = "auto"'
        case.block(f"no build of {which} has machine code for {cards}".rstrip(","), step, facts().rule("machine_code"))
        return
    driven = [one for one in coded if not driver or version(driver) >= version(one.minimum_driver)]
    if not driven:
        oldest = min((one.minimum_driver for one in coded), key=version)
        case.block(
            f"{which} needs driver {oldest} or newer, and driver {driver} is the one here", "take a newer driver"
        )
        return
    newest = max(driven, key=lambda one: version(one.version))
    what = f"{case.system.name} has Python {case.system.python}, and {name} {newest.version}, the newest that fits"
    what += f" otherwise, has wheels for Python {newest.python[0]} to {newest.python[1]}"
    step = f"give the host a Python from {newest.python[0]} to {newest.python[1]}, or take another system"
    case.block(what, step, newest.reason, case.system.reason)


def _jit(capability: str, build: Build) -> bool:
    """Whether the card runs the PTX of an older one. (TensorFlow's "compute_90" is machine code for 9.0 as well.)"""
    by = serves(capability, build.code)
    return by.startswith("compute_") and by != "compute_" + capability.replace(".", "")


def _describe(case: Case, found: Build, driver: str) -> None:
    because = [found.reason, case.system.reason]
    if case.cards:
        because.append(facts().rule("machine_code"))
    else:
        case.notes.append(f"no card is known: {found.framework} was chosen by driver and Python alone")
    ptx = [card for card in case.cards if _jit(card.capability, found)]
    if ptx and found.framework != "jax":
        case.notes.append(
            f"{found.framework} {found.version} has no machine code for {words(map(card_word, ptx))}:"
            " the driver compiles its PTX on first use, which takes minutes"
        )
    if not own_cuda(found.cuda, driver):
        because.append(facts().rule("minor_version"))
    case.add(Part(found.framework, found.version, (found.requirement,), index=found.index, because=tuple(because)))
