"""CUDA toolkits: which versions fit the cards and the driver, and where their packages are."""

from __future__ import annotations

from provision.compat.cards import CURRENT, Card
from provision.compat.case import Case, Driver, card_word, shown, words
from provision.compat.data import Toolkit, facts, version
from provision.compat.model import Part, Reason


def upper_bound(case: Case, found: Driver | None) -> str:
    """The driver to judge CUDA by: the chosen one; the one named, where it is not ours to install; else the newest
    that may serve the cards; empty: any.
    """
    if found is not None:
        return found.version
    if case.wish.branch != "auto":
        branch = facts().branches.get(version(case.wish.branch)[0])
        return branch.newest if branch and "." not in case.wish.branch else case.wish.branch
    last = [version(card.last_branch)[0] for card in case.cards if card.last_branch != CURRENT]
    if not last:
        return ""
    branch = facts().branches.get(min(last))
    return branch.newest if branch else str(min(last))


def own_cuda(number: str, driver: str) -> bool:
    """Whether the driver has this CUDA in itself; with no driver known, yes."""
    return not driver or version(driver) >= version(facts().cuda[number][0])


def resolve_cuda(case: Case, driver: str) -> None:
    """A part for each toolkit of the wish, or why not."""
    done: list[str] = []
    for asked in case.wish.cuda:
        found = _newest(case, driver) if asked == "auto" else _named(case, asked, driver)
        if found is None or found.version in done:
            continue
        done.append(found.version)
        if found.source == "nvidia":
            case.needs_repository()
            if case.source == "distro":
                case.notes.append(f"CUDA {found.version} comes from NVIDIA's repository, the driver from the archive")
        else:
            case.notes.append(f"CUDA {found.version} is the archive's own package {found.package}")
        because = [found.reason, facts().cuda[found.version][1], _floor(found.version)]
        because += [card.architecture.reason for card in case.cards if card.architecture is not None]
        if found.package.startswith("cuda-toolkit"):
            because.append(facts().rule("toolkit_package"))
        if not own_cuda(found.version, driver):
            because.append(facts().rule("minor_version"))
            case.notes.append(
                f"CUDA {found.version} came with driver {facts().cuda[found.version][0]}; under {driver} its programs"
                " run by minor-version compatibility, without the newer driver's features"
            )
        case.add(Part("cuda_toolkit", found.version, (found.package,), because=tuple(because)))


def unfit(case: Case, number: str, driver: str) -> tuple[str, tuple[Reason, ...]]:
    """Why this CUDA version does not fit the cards and the driver, and by which facts; empty: it does."""
    floor = facts().cuda_majors.get(version(number)[0]) if number in facts().cuda else None
    if floor is None:
        known = words(one for one in facts().cuda if version(one)[0] in facts().cuda_majors)
        return f"CUDA {shown(number)} is not among the established versions ({known})", ()
    for card in case.cards:
        why = _stranger(card, number)
        if why:
            return why, (card.architecture.reason,) if card.architecture is not None else ()
    if driver and version(driver) < version(floor[0]):
        return f"CUDA {number} needs driver {floor[0]} or newer, and driver {driver} is the one here", (floor[1],)
    return "", ()


def _stranger(card: Card, number: str) -> str:
    """Why this CUDA builds nothing for the card; empty: it does."""
    found = card.architecture
    if found is None:
        return f"no CUDA is established for {card_word(card)}"
    if found.last_cuda and version(number) > version(found.last_cuda):
        return f"CUDA {number} does not know {card_word(card)} any more: {found.last_cuda} was the last"
    if version(number) < version(found.first_cuda):
        return f"CUDA {number} does not know {card_word(card)} yet: {found.first_cuda} is the first"
    return ""


def _floor(number: str) -> Reason:
    return facts().cuda_majors[version(number)[0]][1]


def _here(case: Case) -> list[Toolkit]:
    """The toolkits of this system that may be used with the wish's source.

    Debian's archive and NVIDIA's repository have driver packages of the same names: with the archive's driver,
    NVIDIA's repository is not added for a toolkit. On Ubuntu the server driver's names are the archive's alone.
    """
    sources = ["nvidia"]
    if case.source == "distro":
        sources = ["distro"] if case.system.id.startswith("debian") else ["distro", "nvidia"]
    found = [one for one in facts().toolkits if one.system == case.system.id and one.source in sources]
    return sorted(found, key=lambda one: sources.index(one.source))


def _fitting(case: Case, driver: str) -> list[Toolkit]:
    return [one for one in _here(case) if not unfit(case, one.version, driver)[0]]


def _named(case: Case, asked: str, driver: str) -> Toolkit | None:
    why, because = unfit(case, asked, driver)
    fitting = words(sorted({one.version for one in _fitting(case, driver)}, key=version))
    step = f"ask for {fitting}" if fitting else "leave the CUDA toolkit out, or take another source or system"
    if why:
        case.block(why, step, *because)
        return None
    found = next((one for one in _here(case) if one.version == asked), None)
    if found is None:
        case.block(f"no package of CUDA {asked} is established for {case.system.name} with this source", step)
    return found


def _newest(case: Case, driver: str) -> Toolkit | None:
    fitting = _fitting(case, driver)
    if not fitting:
        there = words(sorted({one.version for one in _here(case)}, key=version))
        oldest_first = sorted(_here(case), key=lambda one: version(one.version))
        why = [text for one in oldest_first if (text := unfit(case, one.version, driver)[0])]
        what = f"no CUDA toolkit fits on {case.system.name}, which has {there or 'none'}"
        case.block(
            what + (f": {why[0]}" if why else ""), "leave the CUDA toolkit out, or take another source or system"
        )
        return None

    def rank(one: Toolkit) -> tuple[int, bool, int]:
        """The newest major version; of it the newest that the driver has in itself, else the least step beyond."""
        major, minor = version(one.version)[:2]
        own = own_cuda(one.version, driver)
        return major, own, minor if own else -minor

    return max(fitting, key=rank)
