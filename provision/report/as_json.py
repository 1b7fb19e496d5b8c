"""JSON: the whole report, nothing rounded, keys as in docs/report.schema.json. from_json() reads it back."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from functools import lru_cache
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from provision.errors import UsageError
from provision.report.model import Report
from provision.report.view import counts, host_counts

SCHEMA_VERSION = 1
"""Goes up when a key changes its meaning or goes away; new keys do not raise it."""

_T = TypeVar("_T")


def render(report: Report) -> str:
    """ASCII JSON, so nothing that a host sent can act on a terminal. NaN raises ValueError: no report holds one."""
    body: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "summary": {
            "hosts": host_counts(report),
            "verdicts": counts(one for host in report.hosts for one in host.verdicts),
        },
        **asdict(report),
    }
    return json.dumps(body, indent=1, ensure_ascii=True, allow_nan=False) + "\n"


def from_json(text: str) -> Report:
    """The report of such a text. Raises UsageError where it is none, or of another schema version."""

    def refuse(constant: str) -> None:
        raise _Misfit(f"{constant} is not a number")

    try:
        body = json.loads(text, parse_constant=refuse)
        if not isinstance(body, dict):
            raise _Misfit("not a JSON object")
        if body.get("schema_version") != SCHEMA_VERSION:
            raise _Misfit(f"schema_version is {body.get('schema_version')!r:.40}, this version reads {SCHEMA_VERSION}")
        return _object(Report, body, "report")
    except (ValueError, RecursionError) as problem:
        raise UsageError(
            f"not a report: {problem!s:.300}", "report.json as written by `bringup validate` or `bringup judge`"
        ) from None


class _Misfit(ValueError):
    """The JSON does not fit the model; the text says where."""


def _object(cls: type[_T], body: object, where: str) -> _T:
    if not isinstance(body, dict):
        raise _Misfit(f"{where} is not an object")
    if not is_dataclass(cls):
        raise TypeError(cls)
    hints = _hints(cls)
    values: dict[str, Any] = {}
    for one in fields(cls):
        if one.name in body:
            values[one.name] = _value(hints[one.name], body[one.name], f"{where}.{one.name}")
        elif one.default is MISSING and one.default_factory is MISSING:
            raise _Misfit(f"{where}.{one.name} is missing")
    return cls(**values)


@lru_cache(maxsize=64)
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def _value(hint: Any, value: object, where: str) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return _first_fit(args, value, where)
    if origin is Literal:
        if value not in args:
            raise _Misfit(f"{where} is none of {', '.join(map(str, args))}")
        return value
    if origin is tuple:
        return _tuple(args, value, where)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, dict):
            raise _Misfit(f"{where} is not an object")
        return {name: _value(args[1], item, f"{where}.{name:.40}") for name, item in value.items()}
    if is_dataclass(hint) and isinstance(hint, type):
        return _object(hint, value, where)
    return _scalar(hint, value, where)


def _scalar(hint: Any, value: object, where: str) -> Any:
    if hint is float and type(value) is int:
        return value
    if type(value) is not hint:
        raise _Misfit(f"{where} is not {'null' if hint is NoneType else hint.__name__}")
    if isinstance(value, float) and not math.isfinite(value):
        raise _Misfit(f"{where} is not a finite number")
    return value


def _tuple(args: tuple[Any, ...], value: object, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise _Misfit(f"{where} is not a list")
    hints = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
    if len(hints) != len(value):
        raise _Misfit(f"{where} does not have {len(hints)} entries")
    return tuple(_value(hint, item, f"{where}[{at}]") for at, (hint, item) in enumerate(zip(hints, value, strict=True)))


def _first_fit(hints: tuple[Any, ...], value: object, where: str) -> Any:
    problem = _Misfit(f"{where} fits nothing")
    for hint in hints:
        try:
            return _value(hint, value, where)
        except _Misfit as misfit:
            if hint is not NoneType:
                problem = misfit
    raise problem
