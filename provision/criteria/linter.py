"""Refuses a criterion that cannot be meant: a unit that is not the metric's, a value off the card's physics."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from provision.criteria import physics, versions
from provision.criteria.model import Criterion, Fraction
from provision.criteria.rules import RULES, has_unit, rules_for
from provision.criteria.suggest import did_you_mean
from validators.schema import UNITS, CheckInfo, Scalar

LOWEST_SHARE = 0.01
"""An absolute threshold below this share of the card's peak is a unit slip (DCGM: 2333 in a field of MB/s for H200)."""

BOUNDS = {"ratio": (0.0, 1.0), "percent": (0.0, 100.0), "celsius": (-40.0, 150.0), "W": (0.0, 3000.0)}
"""What a value of these units can be at all: a share is 0..1, silicon is dead above 150 degrees, no card draws 3 kW."""

_THROUGHPUT = re.compile(r"^throughput_(fp64|fp32|tf32|fp16|bf16|fp8|int8)$")


def lint(
    criteria: Iterable[Criterion], catalogue: Sequence[CheckInfo], *, ignore_unknown: bool = False
) -> list[tuple[str, str]]:
    """(check.id, what is wrong) for each problem.

    `ignore_unknown`: pass over checks and metrics that this catalogue does not have (it may be an older run's).
    """
    problems: list[tuple[str, str]] = []
    for criterion in criteria:
        texts = [*_names(criterion, catalogue, ignore_unknown), *_shape(criterion)]
        if not texts:
            texts = _plausible(criterion)
        problems.extend((f"{criterion.check}.{criterion.id}", text) for text in texts)
    return problems


def _names(criterion: Criterion, catalogue: Sequence[CheckInfo], ignore_unknown: bool) -> list[str]:
    check = next((one for one in catalogue if one.name == criterion.check), None)
    if check is None:
        hint = did_you_mean(criterion.check, (one.name for one in catalogue))
        return [] if ignore_unknown else [f'no check is named "{criterion.check}"{hint}']
    metric = next((one for one in check.metrics if one.name == criterion.metric), None)
    if metric is None:
        hint = did_you_mean(criterion.metric, (one.name for one in check.metrics))
        return [] if ignore_unknown else [f'check "{check.name}" has no metric "{criterion.metric}"{hint}']
    if metric.unit != criterion.unit:
        return [f'metric "{metric.name}" is in {metric.unit} ({UNITS[metric.unit]}), not in "{criterion.unit}"']
    return []


def _shape(criterion: Criterion) -> list[str]:
    texts = [f'"{name}" is empty' for name in ("id", "because", "source") if not getattr(criterion, name).strip()]
    unit, rule, value = criterion.unit, criterion.rule, criterion.value
    if unit not in UNITS:
        return [*texts, f'there is no unit "{unit}"{did_you_mean(unit, UNITS)}']
    if rule not in rules_for(unit):
        fitting = ", ".join(rules_for(unit))
        return [*texts, f'rule "{rule}" makes no sense for {unit}; {fitting} would']
    if isinstance(value, Fraction):
        texts.extend(_fraction(criterion, value))
    elif rule == "between" and not (isinstance(value, tuple) and len(value) == 2):
        texts.append('"between" takes a list of two values, [low, high]')
    elif rule == "one_of" and not (isinstance(value, tuple) and value):
        texts.append('"one_of" takes a list of choices')
    elif rule not in ("between", "one_of") and isinstance(value, tuple):
        texts.append(f'"{rule}" takes one value, not a list')
    else:
        wrong = [one for one in _values(value) if not _typed(one, unit)]
        texts.extend(f"the value {one!r} is not in {unit} ({UNITS[unit]})" for one in wrong[:1])
    return texts


def _typed(value: Scalar, unit: str) -> bool:
    if unit == "version":
        return isinstance(value, str) and versions.parts(value) is not None
    return has_unit(value, unit)


def _fraction(criterion: Criterion, value: Fraction) -> list[str]:
    if criterion.rule not in ("at_least", "at_most"):
        return [f'a fraction of a figure goes with "at_least" or "at_most", not with "{criterion.rule}"']
    if value.of not in physics.FIGURES:
        return [f'there is no figure "{value.of}"{did_you_mean(value.of, physics.FIGURES)}']
    if physics.FIGURES[value.of] != criterion.unit:
        return [f'the figure "{value.of}" is in {physics.FIGURES[value.of]}, the criterion in {criterion.unit}']
    highest = 1.0 if criterion.rule == "at_least" else 2.0
    if not has_unit(value.fraction, "ratio") or not 0 < value.fraction <= highest:
        return [f"the fraction {value.fraction!r} is outside 0 to {highest:g}"]
    return []


def _plausible(criterion: Criterion) -> list[str]:
    if isinstance(criterion.value, Fraction) or criterion.unit in RULES:
        return []
    texts: list[str] = []
    numbers = [one for one in _values(criterion.value) if not isinstance(one, str)]
    low, high = BOUNDS.get(criterion.unit, (0.0, float("inf")))
    for number in numbers:
        if not low <= number <= high:
            texts.append(
                f"the value {number!r} is outside {low:g} to {high:g}, which is all that {criterion.unit} can be"
            )
        else:
            texts.extend(_against_cards(criterion, number))
    if criterion.rule == "between" and len(numbers) == 2 and numbers[0] > numbers[1]:
        texts.append(f"the range {numbers[0]!r} to {numbers[1]!r} is upside down")
    return texts


def _against_cards(criterion: Criterion, number: float) -> list[str]:
    of = figure_of(criterion)
    if of is None:
        return []
    peaks = [(card.figures[of], card) for card in physics.cards_matching(criterion.gpu) if of in card.figures]
    if not peaks:
        return []
    (lowest, _), (highest, best) = min(peaks, key=lambda one: one[0]), max(peaks, key=lambda one: one[0])
    unit = criterion.unit
    if number > highest:
        return [f"{number:g} {unit} is above what the card can do at most ({best.name}: {highest:g} {unit})"]
    if number < lowest * LOWEST_SHARE:
        slip = f"below 1/100 of what the card can do ({lowest:g} {unit})"
        return [f"{number:g} {unit} is {slip}: is the unit right?"]
    return []


def figure_of(criterion: Criterion) -> str | None:
    """The figure that bounds a metric, by the metric's name and unit; None where there is no such figure."""
    throughput = _THROUGHPUT.match(criterion.metric)
    if throughput:
        dtype = throughput.group(1)
        if dtype == "fp64":  # a plain fp64 product uses the tensor cores where there are any
            cards = physics.cards_matching(criterion.gpu)
            return "peak:fp64_tensor" if any("peak:fp64_tensor" in card.figures for card in cards) else "peak:fp64"
        return "peak:fp32" if dtype == "fp32" else f"peak:{dtype}_tensor"
    if criterion.unit == "GB/s" and re.search(r"memory_bandwidth|device_copy|hbm", criterion.metric):
        return "memory_bandwidth"
    return None


def _values(value: Scalar | tuple[Scalar, ...] | Fraction) -> tuple[Scalar, ...]:
    if isinstance(value, Fraction):
        return ()
    return value if isinstance(value, tuple) else (value,)
