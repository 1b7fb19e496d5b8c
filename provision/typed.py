"""JSON read back as dataclasses, each field checked: files on disk may have been edited, or be another version's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import lru_cache
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

_T = TypeVar("_T")


class Misfit(ValueError):
    """The JSON does not fit the model; the text says where."""


def fitted(cls: type[_T], body: object, where: str) -> _T:
    """The dataclass of a JSON object. Keys that it does not have are ignored. Raises Misfit, which names the place."""
    if not isinstance(body, dict):
        raise Misfit(f"{where} is not an object")
    if not is_dataclass(cls):
        raise TypeError(cls)
    hints = _hints(cls)
    values: dict[str, Any] = {}
    for one in fields(cls):
        if one.name in body:
            values[one.name] = _value(hints[one.name], body[one.name], f"{where}.{one.name}")
        elif one.default is MISSING and one.default_factory is MISSING:
            raise Misfit(f"{where}.{one.name} is missing")
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
            raise Misfit(f"{where} is none of {', '.join(map(str, args))}")
        return value
    if origin is tuple:
        return _tuple(args, value, where)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, dict):
            raise Misfit(f"{where} is not an object")
        return {name: _value(args[1], item, f"{where}.{name:.40}") for name, item in value.items()}
    if is_dataclass(hint) and isinstance(hint, type):
        return fitted(hint, value, where)
    return _scalar(hint, value, where)


def _scalar(hint: Any, value: object, where: str) -> Any:
    if hint is object or (hint is float and type(value) is int):
        return value
    if type(value) is not hint:
        raise Misfit(f"{where} is not {'null' if hint is NoneType else hint.__name__}")
    if isinstance(value, float) and not math.isfinite(value):
        raise Misfit(f"{where} is not a finite number")
    return value


def _tuple(args: tuple[Any, ...], value: object, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise Misfit(f"{where} is not a list")
    hints = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
    if len(hints) != len(value):
        raise Misfit(f"{where} does not have {len(hints)} entries")
    return tuple(_value(hint, item, f"{where}[{at}]") for at, (hint, item) in enumerate(zip(hints, value, strict=True)))


def _first_fit(hints: tuple[Any, ...], value: object, where: str) -> Any:
    problem = Misfit(f"{where} fits nothing")
    for hint in hints:
        try:
            return _value(hint, value, where)
        except Misfit as misfit:
            if hint is not NoneType:
                problem = misfit
    raise problem
