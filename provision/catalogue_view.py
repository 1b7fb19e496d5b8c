"""The catalogue of checks for people: `bringup checks`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from provision.criteria.suggest import did_you_mean
from provision.errors import UsageError
from validators.schema import UNITS, CheckInfo

if TYPE_CHECKING:
    from rich.table import Table


LEVELS = {
    1: "seconds, no load: the audit",
    2: "about a minute: each GPU under load",
    3: "minutes: training, scaling, links",
    4: "soak: everything under load, for as long as --duration says",
}
"""What `--level` means; a level has those below it in it."""


def find(catalogue: Sequence[CheckInfo], name: str) -> CheckInfo:
    """The check of that name. Raises UsageError with a guess."""
    for info in catalogue:
        if info.name == name:
            return info
    known = [info.name for info in catalogue]
    raise UsageError(f'no check is named "{name}"{did_you_mean(name, known)}', "`bringup checks` lists them")


def as_table(catalogue: Sequence[CheckInfo]) -> Table:
    """A row a check and one a level: what it measures, what it catches and needs, about how long it takes."""
    from rich.table import Table  # noqa: PLC0415 - 0.1 s that --help need not pay

    table = Table(show_lines=True)
    table.add_column("check", no_wrap=True)
    table.add_column("level", justify="right")
    table.add_column("about", no_wrap=True, justify="right")
    table.add_column("measures; catches; needs")
    so_far = 0.0
    for level, what in LEVELS.items():
        of_level = sorted((info for info in catalogue if info.level == level), key=lambda one: one.name)
        takes = sum(info.seconds for info in of_level)
        so_far += takes
        for info in of_level:
            table.add_row(info.name, str(level), in_time(info.seconds), _about(info))
        below = f"; with the levels below it {in_time(so_far)}" if level > 1 else ""
        table.add_row(f"--level {level}", str(level), in_time(takes), f"{what}{below}", style="bold")
    return table


def _about(info: CheckInfo) -> str:
    needs = f"\nneeds {', '.join(info.needs)}" if info.needs else ""
    data = f"\ntrains on {', '.join(info.data)} (--data DIR)" if info.data else ""
    return f"{info.measures}\ncatches {info.catches}{needs}{data}"


def in_time(seconds: float) -> str:
    """Seconds as a person says them, two digits of them: 0.1 s, 45 s, 12 min, 24 h."""
    if seconds < 100:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


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
            f"data:     {', '.join(info.data) or 'none'}",
            f"judged:   {'each GPU' if info.per_gpu else 'the host'}",
            f"settings: {', '.join(info.params) or 'none'}",
            "metrics:",
            *metrics,
            "units: " + "; ".join(f"{unit} = {UNITS[unit]}" for unit in units),
        ]
    )
