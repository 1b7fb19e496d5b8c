"""The catalogue of checks for people: `bringup checks`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from provision.criteria.suggest import did_you_mean
from provision.errors import UsageError
from validators.schema import UNITS, CheckInfo

if TYPE_CHECKING:
    from rich.table import Table


def find(catalogue: Sequence[CheckInfo], name: str) -> CheckInfo:
    """The check of that name. Raises UsageError with a guess."""
    for info in catalogue:
        if info.name == name:
            return info
    known = [info.name for info in catalogue]
    raise UsageError(f'no check is named "{name}"{did_you_mean(name, known)}', "`bringup checks` lists them")


def as_table(catalogue: Sequence[CheckInfo]) -> Table:
    """A row a check, by level: what it measures, below it what it catches and needs."""
    from rich.table import Table  # noqa: PLC0415 - 0.1 s that --help need not pay

    table = Table(show_lines=True)
    table.add_column("check", no_wrap=True)
    table.add_column("level", justify="right")
    table.add_column("about", no_wrap=True, justify="right")
    table.add_column("measures; catches; needs")
    for info in sorted(catalogue, key=lambda one: (one.level, one.name)):
        about = f"{info.seconds:g} s"
        needs = f"\nneeds {', '.join(info.needs)}" if info.needs else ""
        table.add_row(info.name, str(info.level), about, f"{info.measures}\ncatches {info.catches}{needs}")
    return table


def as_text(info: CheckInfo) -> str:
    """Everything about one check."""
    width = max((len(metric.name) for metric in info.metrics), default=0)
    metrics = [f"  {metric.name:<{width}}  {metric.unit:<9} {metric.help}" for metric in info.metrics]
    units = sorted({metric.unit for metric in info.metrics})
    return "\n".join(
        [
            f"{info.name} (level {info.level}, about {info.seconds:g} s, ended after {info.timeout_s:g} s)",
            f"measures: {info.measures}",
            f"catches:  {info.catches}",
            f"needs:    {', '.join(info.needs) or 'nothing'}",
            f"judged:   {'each GPU' if info.per_gpu else 'the host'}",
            f"settings: {', '.join(info.params) or 'none'}",
            "metrics:",
            *metrics,
            "units: " + "; ".join(f"{unit} = {UNITS[unit]}" for unit in units),
        ]
    )
