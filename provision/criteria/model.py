"""A criterion, as a TOML file states it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from validators.schema import Scalar

Rule = Literal["equals", "at_least", "at_most", "between", "one_of"]
Severity = Literal["FAIL", "WARN"]


@dataclass(frozen=True)
class Fraction:
    """A threshold derived from the card: `fraction` of a figure such as "peak:bf16_tensor" or "memory_bandwidth"."""

    fraction: float
    of: str


@dataclass(frozen=True)
class Criterion:
    """What a metric must be, where that holds, why, and who says so.

    `value`: a scalar for equals / at_least / at_most, (low, high) for between, the choices for one_of,
    or a `Fraction` for at_least / at_most. `gpu`, `host`: shell patterns of the GPU's name and the host's.
    `advice`: the next step where it does not hold. `unknown`: what an absence of kind "unknown" becomes.
    `not_applicable`: what an absence of that kind becomes; FAIL where the inventory asks for the thing.
    `labels`: label -> shell pattern; only measurements whose labels match are judged by it.
    """

    id: str
    check: str
    metric: str
    unit: str
    rule: Rule
    value: Scalar | tuple[Scalar, ...] | Fraction
    because: str
    source: str
    severity: Severity = "FAIL"
    gpu: str = "*"
    host: str = "*"
    advice: str = ""
    unknown: Literal["ERROR", "SKIP"] = "ERROR"
    not_applicable: Literal["SKIP", "FAIL", "ERROR"] = "SKIP"
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Expectation:
    """An inventory variable `expect_*` and the criterion that it states; the value comes from the host's variables."""

    variable: str
    check: str
    metric: str
    unit: str
    rule: Rule
    because: str
    advice: str = ""
    severity: Severity = "FAIL"
    unknown: Literal["ERROR", "SKIP"] = "ERROR"
    not_applicable: Literal["SKIP", "FAIL", "ERROR"] = "FAIL"
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class CriteriaFile:
    """A criteria file in force: its name, the SHA-256 of its bytes, and its text (kept in the run directory)."""

    name: str
    sha256: str
    text: str
    kind: Literal["defaults", "user", "expectations"] = "user"
