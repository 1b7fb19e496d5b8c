"""The five rules: whether a value satisfies what is required, and the requirement in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from provision.criteria import versions
from provision.criteria.model import Rule
from validators.schema import Scalar

RULES: Mapping[str, tuple[Rule, ...]] = {
    "bool": ("equals",),
    "text": ("equals", "one_of"),
    "version": ("equals", "at_least", "at_most", "between", "one_of"),
}
"""The rules that fit a unit. Every other unit is a number, and takes all of them."""

NUMBER_RULES: tuple[Rule, ...] = ("equals", "at_least", "at_most", "between", "one_of")

Required = Scalar | tuple[Scalar, ...]


def rules_for(unit: str) -> tuple[Rule, ...]:
    """The rules that make sense for a unit."""
    return RULES.get(unit, NUMBER_RULES)


def has_unit(value: object, unit: str) -> bool:
    """Whether a value is of the type that the unit asks for (a bool is no number; NaN and infinities are nothing)."""
    if unit == "bool":
        return isinstance(value, bool)
    if unit in ("text", "version"):
        return isinstance(value, str)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    if unit in ("count", "bits") and not isinstance(value, int):
        return False
    return abs(value) < 2**64  # false for NaN and infinities, too


def holds(rule: Rule, required: Required, value: Scalar, unit: str) -> bool | None:
    """Whether `value` satisfies the rule. None: it cannot be compared (not a version, or of the wrong type)."""
    wanted: Sequence[Scalar] = required if isinstance(required, tuple) else (required,)
    if not wanted or not has_unit(value, unit) or not all(has_unit(one, unit) for one in wanted):
        return None
    if rule not in rules_for(unit) or (rule == "between") != (isinstance(required, tuple) and rule != "one_of"):
        return None
    if rule == "between":
        if len(wanted) != 2:
            return None
        above, below = _one("at_least", wanted[0], value, unit), _one("at_most", wanted[1], value, unit)
        return None if above is None or below is None else above and below
    if rule == "one_of":
        answers = [_one("equals", one, value, unit) for one in wanted]
        return None if None in answers else any(answers)
    return _one(rule, wanted[0], value, unit)


def _one(rule: str, wanted: Scalar, value: Scalar, unit: str) -> bool | None:
    if unit == "version" and isinstance(value, str) and isinstance(wanted, str):
        compare = {"equals": versions.equals, "at_least": versions.at_least, "at_most": versions.at_most}[rule]
        return compare(value, wanted)
    if rule == "equals":
        return value == wanted
    if isinstance(value, str) or isinstance(wanted, str):
        return None
    return value >= wanted if rule == "at_least" else value <= wanted


def in_words(rule: Rule, required: Required, unit: str) -> str:
    """ "at least 692 TFLOP/s", "between 1 and 4", "one of Ubuntu, Debian"."""
    words = [_word(one) for one in (required if isinstance(required, tuple) else (required,))]
    shown = "" if unit in ("text", "bool", "count", "version", "ratio") else f" {unit}"
    if rule == "between" and len(words) == 2:
        return f"between {words[0]} and {words[1]}{shown}"
    if rule == "one_of":
        return f"one of {', '.join(words)}{shown}"
    return f"{rule.replace('_', ' ')} {words[0] if words else '?'}{shown}"


def _word(value: Scalar) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 10000 else f"{value:.0f}"
    return str(value)
