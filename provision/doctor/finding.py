"""What a link of the chain turned out to be."""

from __future__ import annotations

from dataclasses import dataclass

from provision.report.model import LinkState


@dataclass(frozen=True)
class Finding:
    """`claim` is the sentence for a broken link, `evidence` what was measured, `mend` the command that mends it."""

    state: LinkState
    claim: str = ""
    evidence: str = ""
    mend: str = ""


def holds(evidence: str) -> Finding:
    """The link holds, by this evidence."""
    return Finding("holds", "", evidence)


def broken(claim: str, evidence: str, mend: str) -> Finding:
    """The link was measured and does not hold."""
    return Finding("broken", claim, evidence, mend)


def unknown(why: str, mend: str = "") -> Finding:
    """The link could not be measured."""
    return Finding("unknown", "", why, mend)
