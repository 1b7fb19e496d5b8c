"""The driver's branch, its kernel module and packages, and the fabric manager."""

from __future__ import annotations

import re
from dataclasses import replace

from provision.compat.case import Case, Driver, card_word, last_reason, misfit, shown, words
from provision.compat.data import Branch, Flavour, Offer, facts
from provision.compat.model import Part, Reason

_BRANCH = re.compile(r"[0-9]{3}(\.[0-9]{1,4}){0,2}", re.ASCII)


def is_branch(text: str) -> bool:
    """Whether this is "auto", a branch ("580") or a version ("580.159.04")."""
    return text == "auto" or _BRANCH.fullmatch(text) is not None


def choose(case: Case) -> Driver | None:
    """The driver for this host, with its parts and notes; None with the reason among the blockers."""
    offers = [one for one in facts().offers if (one.system, one.source) == (case.system.id, case.source)]
    named = case.wish.branch
    offer = _best(case, offers) if named == "auto" else _named(case, offers, int(named.partition(".")[0]))
    if offer is None:
        return None
    value = str(offer.branch) if named == "auto" else named
    found = _with_module(case, offer, value)
    if found is not None:
        _describe(case, found)
    return found


def serving(case: Case, offer: Offer) -> list[str]:
    """The kernel modules by which this offer serves every card and the wish; empty: it does not."""
    branch = facts().branches[offer.branch]
    if any(misfit(one, offer.branch, _version(case, offer, branch)) for one in case.cards):
        return []
    modules = [name for name in offer.modules if all(name in one.modules for one in case.cards)]
    return [name for name in modules if case.wish.module in ("auto", name)]


def _version(case: Case, offer: Offer, branch: Branch) -> str:
    """The version to judge by: the wish's, the archive's, or the newest of the branch."""
    if case.wish.branch.startswith(f"{branch.number}."):
        return case.wish.branch
    return offer.version or branch.newest


def _best(case: Case, offers: list[Offer]) -> Offer | None:
    fit = [one for one in offers if serving(case, one)]
    if not fit:
        _explain(case, offers)
        return None
    branches = facts().branches

    def long_lived(one: Offer) -> bool:
        branch = branches[one.branch]
        known = branch.reason.confidence != "low" and branch.kind in ("LTSB", "PB")
        return known and not branch.is_over(case.today)

    lasting = [one for one in fit if long_lived(one)]
    if lasting:
        return max(lasting, key=lambda one: (branches[one.branch].eol, one.branch))
    alive = [one for one in fit if not branches[one.branch].is_over(case.today)]
    return max(alive or fit, key=lambda one: one.branch)


def _named(case: Case, offers: list[Offer], number: int) -> Offer | None:
    offer = next((one for one in offers if one.branch == number), None)
    if offer is None:
        moved = facts().transitional.get((case.system.id, case.source, number))
        here = words(str(one.branch) for one in offers if serving(_of_any_branch(case), one))
        step = f"name one of {here}" if here else elsewhere(case)
        if moved:
            what = f"{case.where()} installs {moved[0]} where {number} is asked for"
            case.block(what, step, moved[1])
        else:
            case.block(f"branch {number} is not known to be in {case.where()}", step)
        return None
    driver = _version(case, offer, facts().branches[number])
    unfit = [(one, why) for one in case.cards if (why := misfit(one, number, driver))]
    for one, why in unfit:
        case.block(f"driver {case.wish.branch} does not serve the card: {why}", elsewhere(case), last_reason(one))
    return None if unfit else offer


def _of_any_branch(case: Case) -> Case:
    """The same question without the branch that is named."""
    return replace(case, wish=replace(case.wish, branch="auto"))


def _explain(case: Case, offers: list[Offer]) -> None:
    """Why no branch that is offered serves this host."""
    every = facts().branches.values()
    together = [one for one in every if not any(misfit(card, one.number, one.newest) for card in case.cards)]
    ends = words(card_word(card) for card in case.cards)
    reasons = tuple(last_reason(card) for card in case.cards)
    if not together:
        alone = len(case.cards) == 1
        what = f"no driver branch that is known here serves {ends}" + ("" if alone else " together")
        step = "replace the card" if alone else "put the cards into different hosts"
        case.block(what, step, *reasons)
        return
    modules = [one for one in ("open", "proprietary") if all(one in card.modules for card in case.cards)]
    if not modules:
        what = f"no kernel module serves {ends} together"
        case.block(what, "put the cards into different hosts", *_modules(case))
        return
    if case.wish.module not in ("auto", *modules):
        _wrong_module(case)
        return
    has = words(str(one.branch) for one in offers)
    newest = {one.branch: one.version or facts().branches[one.branch].newest for one in offers}
    why = [misfit(card, branch, newest[branch]) for card in case.cards for branch in newest]
    why = [text for text in dict.fromkeys(why) if text] or [f"with the {words(modules)} module none of them serves it"]
    what = f"{case.where()} has no driver for {ends}: it has branch {has or 'none'}, but {words(why)}"
    case.block(what, elsewhere(case), *reasons)


def _modules(case: Case) -> tuple[Reason, ...]:
    return tuple(card.architecture.reason for card in case.cards if card.architecture is not None)


def _wrong_module(case: Case) -> None:
    bad = [card for card in case.cards if case.wish.module not in card.modules]
    what = f"the {case.wish.module} kernel module does not serve {words(card_word(card) for card in bad)}"
    case.block(what, 'set module = "auto"', *_modules(case))


def elsewhere(case: Case) -> str:
    """Where else a driver for these cards is: another source here, or another system."""
    found: dict[tuple[str, str], list[str]] = {}
    for one in facts().offers:
        if serving(_of_any_branch(case), one):
            found.setdefault((one.system, one.source), []).append(str(one.branch))
    here = {key: value for key, value in found.items() if key[0] == case.system.id}
    places: dict[str, list[str]] = {}
    for (system, source), numbers in (here or found).items():
        places.setdefault(f'source = "{source}" (branch {words(numbers, "or")})', []).append(
            facts().systems[system].name
        )
    listed = "; or ".join(f"{what} on {words(names, 'or')}" for what, names in places.items())
    return f"use {listed}" if listed else "replace the card: no system listed here has a driver for it"


def _with_module(case: Case, offer: Offer, value: str) -> Driver | None:
    branch = facts().branches[offer.branch]
    allowed = serving(case, offer)
    if not allowed:
        if case.wish.module != "auto" and any(case.wish.module not in card.modules for card in case.cards):
            _wrong_module(case)
        else:
            has = " and ".join(offer.modules)
            what = f"branch {offer.branch} of {case.where()} has the {has} kernel module only"
            needs = words(card_word(card) for card in case.cards if not set(card.modules) & set(offer.modules))
            what += f", which does not serve {needs}" if needs else f", and the {case.wish.module} one is asked for"
            case.block(what, elsewhere(case), facts().rule("open_only"), *_modules(case))
        return None
    first_open = int(facts().rules["open_default"]["from_branch"])
    prefer = "open" if offer.branch >= first_open else "proprietary"
    module = prefer if prefer in allowed else allowed[0]
    return Driver(branch, value, _version(case, offer, branch), offer, module, offer.modules[module])


def _describe(case: Case, found: Driver) -> None:
    offer, flavour = found.offer, found.flavour
    if offer is None or flavour is None:
        return
    packages = list(flavour.full if case.wish.scope == "full" else flavour.compute)
    because = [found.branch.reason, offer.reason, *(last_reason(card) for card in case.cards)]
    if case.wish.branch == "auto":
        because.insert(1, facts().rule("longest"))
    signed = _kernel_module(case, offer, flavour, packages)
    if signed:
        because.append(facts().rule("signed_modules"))
    pin = offer.pin.format(version=found.value)
    if offer.source == "nvidia":
        case.needs_repository()
    case.add(Part("driver", found.value, tuple(packages), pin, because=tuple(because)))
    case.add(Part("module", found.module, because=_module_reasons(case, found)))
    _notes(case, found, offer, signed)


def _module_reasons(case: Case, found: Driver) -> tuple[Reason, ...]:
    rule = "open_default" if found.module == "open" else "pre_turing"
    if found.offer is not None and tuple(found.offer.modules) == ("open",):
        rule = "open_only" if found.branch.number >= int(facts().rules["open_only"]["from_branch"]) else rule
    old = found.module == "proprietary" and all(len(card.modules) > 1 for card in case.cards)
    rules = () if old else (facts().rule(rule),)
    return (*rules, *_modules(case)) or (facts().rule("open_default"),)


def _kernel_module(case: Case, offer: Offer, flavour: Flavour, packages: list[str]) -> bool:
    """Adds the package of the kernel module where it is one of its own; whether it is prebuilt and signed."""
    if not flavour.dkms:
        return False
    kernel = _kernel_flavour(case)
    if flavour.signed_package and kernel in offer.signed:
        packages.append(flavour.signed_package.format(flavour=kernel))
        newest = f"the signed modules are those of the archive's newest {kernel} kernel, which comes with them"
        if case.machine.kernel:
            case.notes.append(
                f"{newest}, its headers and metapackages too: where an older one runs, the module is there from the"
                " next boot on, or at once where the archive has it for that kernel as well"
            )
        else:
            case.notes.append(f"{newest}; the host's own kernel is not known")
        return True
    packages.append(flavour.dkms)
    if case.machine.kernel:
        case.notes.append(
            f"the archive has no current prebuilt module of branch {offer.branch} for kernel"
            f" {shown(case.machine.kernel)}: it is built by DKMS, which needs that kernel's headers"
        )
    return False


def _kernel_flavour(case: Case) -> str:
    """ "6.8.0-45-generic" -> generic; of another series than the release's own -> generic-hwe-24.04.

    A cloud's flavour moves on to newer series under one name; these three keep theirs.
    """
    match = re.fullmatch(r"(\d+\.\d+)\.\d+-\d+-([a-z][a-z-]*)", case.machine.kernel, re.ASCII)
    if not case.machine.kernel:
        return "generic"
    if match is None:
        return ""
    if match[2] in ("generic", "lowlatency", "nvidia") and match[1] != case.system.kernel:
        return f"{match[2]}-hwe-{case.system.id.partition('-')[2]}"
    return match[2]


def _notes(case: Case, found: Driver, offer: Offer, signed: bool) -> None:
    branch = found.branch
    if branch.is_over(case.today):
        when = f" ({branch.eol})" if branch.eol != "ended" else ""
        case.notes.append(
            f"NVIDIA's support of branch {branch.number} has ended{when}: no more security fixes from there"
        )
    elif branch.reason.confidence == "low" or not branch.kind:
        case.notes.append(f"how long branch {branch.number} is supported is not established")
    elif branch.kind == "NFB":
        case.notes.append(f"branch {branch.number} is a new feature branch, supported until {branch.eol} only")
    if offer.note:
        case.notes.append(offer.note)
    if offer.components and offer.source == "distro":
        case.notes.append(f"the archive's components {words(offer.components)} are needed")
    elif offer.components:
        case.notes.append(f"Debian's components {words(offer.components)} are needed")
    if found.value != str(branch.number) and offer.version and found.value != offer.version:
        case.notes.append(
            f"{case.where()} had {offer.version} of branch {branch.number} on {facts().as_of};"
            f" archives do not keep every version, so {found.value} may not be there"
        )
    if case.machine.secure_boot and not signed and case.source != "distro" and _signed_elsewhere(case):
        case.notes.append('Secure Boot is on: Ubuntu\'s own signed modules (source = "distro") need no key enrolled')


def _signed_elsewhere(case: Case) -> bool:
    """Whether the distribution has a signed module for these cards."""
    return any(
        one.signed and serving(case, one)
        for one in facts().offers
        if (one.system, one.source) == (case.system.id, "distro")
    )


def note_misfits(case: Case, driver: str) -> None:
    """The cards that a driver which is not ours to install does not serve."""
    for one in case.cards:
        if why := misfit(one, int(driver.partition(".")[0]), driver):
            case.notes.append(f"the host's driver {driver} does not serve the card: {why}")


def fabric_manager(case: Case, found: Driver | None) -> None:
    """The fabric manager where NVSwitches are seen."""
    blackwell = any(card.capability.startswith("10.") for card in case.cards)
    if not case.machine.nvswitches:
        if blackwell:
            case.notes.append(
                "no NVSwitch is seen; on an HGX baseboard these cards need the fabric manager and nvlsm all the same"
            )
        return
    if not case.wish.fabric_manager:
        case.notes.append("NVSwitches are seen but no fabric manager is wanted: CUDA does not start without it")
        return
    rules = (facts().rule("fabric_manager"), *((facts().rule("nvlsm"),) if blackwell else ()))
    if found is None or found.offer is None:
        case.notes.append("NVSwitches are seen: the fabric manager has to be of the exact version of the host's driver")
        return
    packages = found.offer.fabric_manager_blackwell if blackwell else found.offer.fabric_manager
    if not packages:
        missing = "nvlsm for HGX Blackwell" if blackwell else "fabric manager"
        what = f"{case.where()} has no {missing}, and {case.machine.nvswitches} NVSwitches are seen"
        case.block(what, 'set source = "nvidia", or a mirror of it', *rules)
        return
    case.add(Part("fabric_manager", found.value, packages, because=rules))
