"""Numbers as people read them: three or four significant digits, thousands apart, with the unit."""

from __future__ import annotations

from validators.schema import NOT_APPLICABLE, Measurement, Scalar

_SHOWN = {
    "bool": "",
    "text": "",
    "version": "",
    "count": "",
    "ratio": "",
    "percent": "%",
    "celsius": "°C",
    "bits": "bit",
}
"""How a unit is written where that is not its own name."""


def unit_name(unit: str) -> str:
    """The unit as printed after a number: "celsius" is "°C", a count has none."""
    return _SHOWN.get(unit, unit)


def number(value: float) -> str:
    """Three to four significant digits; whole numbers in full. 1234.56 -> "1,235", 0.98765 -> "0.988"."""
    if isinstance(value, int) or (value == int(value) and abs(value) < 10**9):
        return f"{int(value):,}"
    size = abs(value)
    if size >= 10**9 or size < 10**-4:
        return f"{value:.3g}"
    decimals = 0 if size >= 1000 else 1 if size >= 100 else 2 if size >= 10 else 3
    if size < 1:
        return f"{float(f'{value:.3g}'):f}".rstrip("0").rstrip(".")
    text = f"{value:,.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def quantity(value: Scalar, unit: str) -> str:
    """A value with its unit. Text comes back as it is: escaping it is the renderer's job."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return value
    return f"{number(value)} {unit_name(unit)}".rstrip()


def exact(value: Scalar, unit: str) -> str:
    """The same in full precision, for the places that show it on demand."""
    if isinstance(value, (bool, str)):
        return quantity(value, unit)
    return f"{value!r} {unit}"


def measured(measurement: Measurement | None) -> str:
    """What was measured, or in words why there is no value."""
    if measurement is None:
        return "not measured"
    if measurement.value is None:
        return "not applicable" if measurement.absence == NOT_APPLICABLE else "unknown"
    return quantity(measurement.value, measurement.unit)


def duration(seconds: float) -> str:
    """0.34 s, 12.5 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 60:
        return f"{number(round(seconds, 2))} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"
