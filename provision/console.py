"""What a person sees: errors, progress, tables. Results go to stdout, everything else to stderr.

Text that came from a host passes through `plain` first: no ANSI, no Rich markup, no control characters.
"""

from __future__ import annotations

import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Protocol

from provision.errors import BringupError
from provision.report.text import plain

if TYPE_CHECKING:
    from rich.console import Console

    from validators.schema import Record


def out() -> Console:
    """The console for results."""
    from rich.console import Console

    return Console(highlight=False, emoji=False)


def err() -> Console:
    """The console for everything that is not a result."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, emoji=False)


def _line(text: str) -> None:
    sys.stderr.write(text + "\n")


def show_error(problem: BringupError) -> None:
    """What is wrong, and the next step; never a traceback."""
    _line(f"error: {plain(problem.message, lines=True)}")
    if problem.hint:
        _line(f"  next: {plain(problem.hint, lines=True)}")


def say(text: str) -> None:
    """A line for the person who waits."""
    _line(plain(text))


def echo_on() -> None:
    """Let the terminal show what is typed: Ctrl-C at a passphrase prompt in a thread would leave it mute."""
    with suppress(termios.error, OSError, ValueError):
        state = termios.tcgetattr(sys.stdin.fileno())
        state[3] |= termios.ECHO
        termios.tcsetattr(sys.stdin.fileno(), termios.TCSANOW, state)


class HostProgress(Protocol):
    """What long work over hosts tells whoever watches."""

    def record(self, host: str, record: Record) -> None:
        """A record came from a host."""

    def done(self, host: str, headline: str) -> None:
        """A host is finished."""


class _Lines:
    """Not a terminal: a line when a host is done, nothing in between."""

    def record(self, host: str, record: Record) -> None:
        pass

    def done(self, host: str, headline: str) -> None:
        say(f"{host}: {headline}")


@contextmanager
def host_progress(hosts: int, checks: int) -> Iterator[HostProgress]:
    """A bar per run and the newest message per host on a terminal; plain lines elsewhere."""
    if not sys.stderr.isatty():
        yield _Lines()
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from validators import schema

    with Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[now]}", markup=False),
        console=err(),
        transient=True,
    ) as bar:
        task = bar.add_task(f"{hosts} host{'s' if hosts != 1 else ''}", total=hosts * checks, now="connecting")

        class Bars:
            def record(self, host: str, record: Record) -> None:
                if isinstance(record, schema.Progress):
                    bar.update(task, now=plain(f"{host} {record.check}: {record.message}")[:80])
                elif isinstance(record, schema.Outcome) and record.subject == schema.HOST:
                    bar.update(task, advance=1, now=plain(f"{host} {record.check} {record.status}")[:80])

            def done(self, host: str, headline: str) -> None:
                bar.console.print(plain(f"{host}: {headline}"), markup=False)

        yield Bars()
