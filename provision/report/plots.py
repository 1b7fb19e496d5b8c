"""Plots as SVG text: pure functions from numbers to a figure with axes, units, a title and a description.

Colours are the page's CSS classes, so the figures follow light, dark and paper. Sizes are in SVG units.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from provision.report.numbers import number, unit_name
from provision.report.text import plain

WIDTH = 360
_LEFT, _RIGHT, _ROW = 62, 58, 20
_LABEL = 60
"""The room that the label of a line takes."""
_MAX_POINTS = 120
"""Points of a trace that are drawn: the lowest and the highest of each of half as many slices of time."""


@dataclass(frozen=True)
class Dot:
    """One GPU's measured value in a bullet chart; `good` is whether it meets the requirement."""

    label: str
    value: float
    good: bool


def bullet(
    title: str, unit: str, dots: Sequence[Dot], *, sign: str, bounds: Sequence[float], peak: float | None
) -> Markup:
    """Measured against required: a row per GPU, a line at each bound (`sign` "≥", "≤", "="), a mark at the peak."""
    shown = unit_name(unit)
    top, height = 36, 36 + _ROW * len(dots) + 26
    most = max([dot.value for dot in dots] + list(bounds) + ([peak] if peak else [])) or 1.0
    ticks = [tick for tick in _ticks(0.0, most) if tick <= most]
    scale = (WIDTH - _LEFT - _RIGHT) / most

    def x(value: float) -> float:
        return round(_LEFT + min(max(value, 0.0), most) * scale, 1)

    foot = height - 22
    parts = [_axis(x(tick), top - 4, foot, number(tick)) for tick in ticks]
    if peak:
        parts.append(f'<line class="peak" x1="{x(peak)}" x2="{x(peak)}" y1="{top - 4}" y2="{foot}"/>')
        if all(abs(x(peak) - x(bound)) > _LABEL for bound in bounds):
            parts.append(
                f'<text class="tick" x="{x(peak)}" y="{top - 9}" text-anchor="middle">peak {number(peak)}</text>'
            )
    for at, dot in enumerate(dots):
        y = top + _ROW * at + _ROW / 2
        kind = "good" if dot.good else "bad"
        parts.append(
            f'<text class="label" x="{_LEFT - 8}" y="{y + 3.5}" text-anchor="end">{_clip(dot.label, 9)}</text>'
            f'<line class="bar {kind}" x1="{_LEFT}" x2="{x(dot.value)}" y1="{y}" y2="{y}"/>'
            f"{_mark(x(dot.value), y, dot.good)}"
            f'<text class="value {kind}" x="{WIDTH}" y="{y + 3.5}" text-anchor="end">{number(dot.value)}</text>'
        )
    strictest = min(bounds, default=0.0) if sign == "≤" else max(bounds, default=0.0)
    for bound in bounds:
        parts.append(f'<line class="bound" x1="{x(bound)}" x2="{x(bound)}" y1="{top - 5}" y2="{foot}"/>')
        if bound == strictest or abs(x(bound) - x(strictest)) > _LABEL:
            parts.append(
                f'<text class="need" x="{x(bound)}" y="{top - 9}" text-anchor="middle">{sign} {number(bound)}</text>'
            )
    needs = " and ".join(f"{sign} {number(bound)} {shown}" for bound in bounds)
    said = "; ".join(
        f"{plain(dot.label, 40)} {number(dot.value)}{'' if dot.good else ', not good enough'}" for dot in dots
    )
    return _figure(
        f"{title}, {shown}" if shown else title, f"Required {needs}. Measured: {said}.", (WIDTH, height), parts
    )


def trace(
    title: str, unit: str, points: Sequence[tuple[float, float]], *, low: float, high: float, end: float, about: str
) -> Markup:
    """A value over the load: `points` are (seconds, value), drawn between `low` and `high`, 0 and `end` seconds."""
    height, top, left, right, width = 118, 26, 42, 12, 260
    foot = height - 24
    rows = _ticks(low, high, 3)
    columns = [tick for tick in _ticks(0.0, end, 3) if tick <= end * 1.001]
    span, tall = end or 1.0, (rows[-1] - rows[0]) or 1.0

    def x(t: float) -> float:
        return round(left + (width - left - right) * min(max(t / span, 0.0), 1.0), 1)

    def y(value: float) -> float:
        return round(foot - (foot - top) * min(max((value - rows[0]) / tall, 0.0), 1.0), 1)

    parts = [
        f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y(row)}" y2="{y(row)}"/>'
        f'<text class="tick" x="{left - 6}" y="{y(row) + 3.5}" text-anchor="end">{number(row)}</text>'
        for row in rows
    ]
    parts += [
        f'<text class="tick" x="{x(tick)}" y="{height - 8}" text-anchor="middle">{number(tick)}'
        f"{' s' if tick == columns[-1] else ''}</text>"
        for tick in columns
    ]
    line = " ".join(f"{x(t)},{y(value)}" for t, value in thin(points))
    parts.append(f'<polyline class="trace" points="{line}"/>')
    values = [value for _, value in points]
    shown = unit_name(unit)
    reach = f"{number(min(values))} to {number(max(values))} {shown}"
    said = f"{plain(about, 40)}: {reach} over {number(end)} s, {len(points)} samples."
    return _figure(f"{title}, {shown}" if shown else title, said, (width, height), parts)


def thin(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most _MAX_POINTS points that keep every slice's lowest and highest value."""
    if len(points) <= _MAX_POINTS:
        return list(points)
    size = math.ceil(len(points) / (_MAX_POINTS // 2))
    found: list[tuple[float, float]] = []
    for at in range(0, len(points), size):
        part = points[at : at + size]
        ends = {min(part, key=lambda point: point[1]), max(part, key=lambda point: point[1])}
        found += sorted(ends)
    return found


def _ticks(low: float, high: float, wanted: int = 4) -> list[float]:
    """Round numbers from at or below `low` to at or above `high`."""
    span = high - low
    if not math.isfinite(span) or span <= 0:
        low, span = min(low, 0.0), max(abs(low), abs(high), 1.0)
    rough = span / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next((factor * power for factor in (1, 2, 2.5, 5) if factor * power >= rough), 10 * power)
    first = math.floor(low / step + 1e-9)
    last = math.ceil((low + span) / step - 1e-9)
    return [round(at * step, 10) for at in range(first, last + 1)]


def _axis(x: float, top: float, foot: float, text: str) -> str:
    return (
        f'<line class="grid" x1="{x}" x2="{x}" y1="{top}" y2="{foot}"/>'
        f'<text class="tick" x="{x}" y="{foot + 14}" text-anchor="middle">{text}</text>'
    )


def _mark(x: float, y: float, good: bool) -> str:
    """A dot, or a cross where it is not good enough: shape as well as colour."""
    if good:
        return f'<circle class="dot good" cx="{x}" cy="{y}" r="4"/>'
    return f'<path class="dot bad" d="M{x - 4} {y - 4}l8 8m0 -8l-8 8"/>'


def _figure(title: str, description: str, size: tuple[float, float], parts: Sequence[str]) -> Markup:
    name = escape(plain(title, 80))
    return Markup(  # noqa: S704 - every text in `parts` is a number or has been escaped
        f'<svg class="plot" viewBox="0 0 {size[0]:g} {size[1]:g}" role="img"><title>{name}</title>'
        f"<desc>{escape(description)}</desc>"
        f'<text class="name" x="0" y="11">{_clip(title, 52)}</text>{"".join(parts)}</svg>'
    )


def _clip(text: str, limit: int) -> Markup:
    text = plain(text)
    return escape(text if len(text) <= limit else text[: limit - 1] + "…")
