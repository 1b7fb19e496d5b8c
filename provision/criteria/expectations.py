"""`expect_*` variables of the inventory as criteria of that host: expectations.toml says what each is about."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from provision.criteria.model import Criterion, Expectation
from provision.criteria.rules import has_unit
from provision.criteria.suggest import did_you_mean
from provision.errors import CriteriaError
from provision.hosts import Host
from validators.schema import UNITS, Scalar

PREFIX = "expect_"
INVENTORY = "inventory: "
"""How the source of every criterion begins that an inventory states."""


def parse_expectations(body: Mapping[str, Any]) -> tuple[Expectation, ...]:
    """The expectations of such a TOML body: one table for each variable. Raises CriteriaError."""
    found = []
    for variable, entry in body.items():
        try:
            found.append(Expectation(variable=variable, **entry))
        except TypeError as problem:
            raise CriteriaError(f"expectations.toml: [{variable}]: {problem}") from None
    return tuple(found)


def from_hosts(expectations: Sequence[Expectation], hosts: Iterable[Host]) -> tuple[Criterion, ...]:
    """One criterion for each `expect_*` variable of each host. Raises CriteriaError naming host and variable."""
    known = {one.variable: one for one in expectations}
    found: list[Criterion] = []
    for host in hosts:
        for variable, value in sorted(host.variables.items()):
            if not variable.startswith(PREFIX):
                continue
            if variable not in known:
                hint = did_you_mean(variable, known)
                raise CriteriaError(f'host {host.name}: no expectation is named "{variable}"{hint}')
            found.append(_criterion(known[variable], host, value))
    return tuple(found)


def _criterion(expectation: Expectation, host: Host, value: object) -> Criterion:
    required: Scalar | tuple[Scalar, ...]
    rule = expectation.rule
    if isinstance(value, (list, tuple)):
        required = tuple(_scalar(one, expectation, host) for one in value)
        if rule == "equals":
            rule = "one_of"
    elif rule == "one_of":
        required = (_scalar(value, expectation, host),)
    else:
        required = _scalar(value, expectation, host)
    return Criterion(
        id=expectation.variable,
        check=expectation.check,
        metric=expectation.metric,
        unit=expectation.unit,
        rule=rule,
        value=required,
        because=expectation.because,
        source=f"{INVENTORY}{expectation.variable}",
        severity=expectation.severity,
        host=glob.escape(host.name),
        advice=expectation.advice,
        unknown=expectation.unknown,
        not_applicable=expectation.not_applicable,
        labels=dict(expectation.labels),
    )


def _scalar(value: object, expectation: Expectation, host: Host) -> Scalar:
    """The value in the expectation's unit. INI inventories give numbers as numbers: 13.0 is a version here."""
    unit = expectation.unit
    if unit in ("version", "text") and isinstance(value, (int, float)) and not isinstance(value, bool):
        value = str(value)
    if isinstance(value, str) and unit not in ("version", "text"):
        value = _read(value.strip(), unit)
    if isinstance(value, (bool, int, float, str)) and has_unit(value, unit):
        return str(value) if isinstance(value, str) else value
    meaning = UNITS.get(unit, "no such unit")
    raise CriteriaError(
        f"host {host.name}: {expectation.variable} = {value!r:.80} is not in {unit} ({meaning})",
        "mend the variable in the inventory",
    )


def _read(text: str, unit: str) -> object:
    """A number or a boolean that an inventory gave as text."""
    if unit == "bool":
        return {"true": True, "yes": True, "false": False, "no": False}.get(text.lower(), text)
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
