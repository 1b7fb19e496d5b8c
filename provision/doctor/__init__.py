"""The first broken link between a PCI device and a framework's known answer.

The walk goes over measurements in order and stops at the first link that does not hold: that one is named, what lies
behind it is "not reached", neither PASS nor FAIL. Three rules decide a link:

1. Its own measurement, where there is one.
2. A later link proves an earlier one. NVML reaching every card of the PCI bus proves the driver, the module, the
   device nodes and the libraries, whatever could not be read of them (no /lib/modules on the host) or looked
   broken (the nodes were made when NVML started). The known answer on every GPU proves what is *unknown* of the
   fabric, the CUDA build, the architectures and the context; a measured fault there stays a fault.
3. Without either it is unknown, and the walk stops there too: what is behind an unknown link explains nothing.

A framework that nobody asked (an audit of level 1) is not unknown: the chain says so and ends before it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from provision.doctor import driver, framework
from provision.doctor.facts import Facts
from provision.doctor.finding import Finding
from provision.report.model import Chain, Link, LinkState
from validators.schema import Measurement, Outcome

__all__ = ["LINKS", "walk"]

Step = Callable[[Facts], Finding]

_MACHINE: tuple[tuple[str, Step], ...] = (
    ("PCI device", driver.pci_device),
    ("driver for this card", driver.supports_card),
    ("module for this kernel", driver.module_built),
    ("module loaded", driver.module_loaded),
    ("device nodes", driver.device_nodes),
    ("libraries of the same version", driver.userspace),
    ("NVML answers", driver.nvml_answers),
    ("NVLink fabric", driver.fabric),
)
_FRAMEWORK: tuple[tuple[str, Callable[[Facts, str], Finding]], ...] = (
    ("CUDA build against the driver", framework.cuda_build),
    ("wheel's architectures", framework.architectures),
    ("CUDA context", framework.context),
    ("known answer", framework.known_answer),
)
LINKS = tuple(name for name, _ in (*_MACHINE, *_FRAMEWORK))
"""The names of the links, in order."""


def walk(measurements: Sequence[Measurement], outcomes: Sequence[Outcome], name: str = "torch") -> Chain:
    """The chain of one host for one framework. Pure; needs system, software, compute_capability, gpu_health, preflight.

    Never raises for what a host measured; nothing measured gives a chain whose first link is unknown.
    """
    facts = Facts(measurements, outcomes)
    findings = [step(facts) for _, step in _MACHINE]
    asked = framework.was_asked(facts, name)
    findings += [step(facts, name) if asked else Finding("not_reached", "", "preflight was not asked for")
                 for _, step in _FRAMEWORK]  # fmt: skip
    _prove_by_nvml(findings, facts)
    _prove_by_answer(findings)
    stop = next((number for number, one in enumerate(findings) if one.state in ("broken", "unknown")), len(findings))
    links = []
    for number, (link, one) in enumerate(zip(LINKS, findings, strict=True)):
        if number <= stop:
            links.append(Link(link, one.state, one.evidence, one.mend))
        else:
            links.append(Link(link, "not_reached", one.evidence if one.state == "not_reached" else ""))
    if stop < len(findings):
        return Chain(tuple(links), _sentence(LINKS[stop], findings[stop]))
    if not asked:
        return Chain(
            tuple(links), f"Every link up to the NVLink fabric holds; {name} was not asked (preflight, level 2)."
        )
    return Chain(tuple(links), f"Every link holds: {findings[-1].evidence}.")


def _sentence(link: str, one: Finding) -> str:
    evidence = f" ({one.evidence})" if one.evidence else ""
    mend = f"; to mend it: {one.mend}" if one.mend else ""
    if one.state == "unknown":
        return f"{link}: not known, so the walk ends here{evidence}{mend}"
    return f"{one.claim}{evidence}{mend}"


def _prove_by_nvml(findings: list[Finding], facts: Facts) -> None:
    answered = LINKS.index("NVML answers")
    reached = facts.number("compute_capability.gpu_count_nvml")
    if findings[answered].state != "holds" or not reached:
        return
    for number in range(answered):
        if findings[number].state in ("unknown", "broken"):
            _prove(findings, number, f"NVML reaches {reached:g} GPU(s) through it")


def _prove_by_answer(findings: list[Finding]) -> None:
    if findings[-1].state != "holds":
        return
    for number in range(LINKS.index("NVLink fabric"), len(findings) - 1):
        if findings[number].state == "unknown":
            _prove(findings, number, "the known answer came through it")


def _prove(findings: list[Finding], number: int, how: str) -> None:
    state: LinkState = "holds"
    said = findings[number].evidence or findings[number].claim
    findings[number] = replace(findings[number], state=state, evidence=f"{how}; {said}" if said else how, mend="")
