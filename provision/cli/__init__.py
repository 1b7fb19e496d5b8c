"""The command line: parse, call, map the outcome to an exit code. No logic.

Exit codes: 0 all PASS (WARN allowed, unless --strict), 1 at least one FAIL, 2 usage, 3 something could not be
judged (ERROR) and nothing failed, 130 interrupted.
"""

from __future__ import annotations

import sys
from io import TextIOWrapper
from typing import Annotated

import typer

from provision import __version__
from provision.cli import audit, setup, upgrade
from provision.cli.options import nowhere

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="From a bare server to a signed-off GPU host. Nothing passes without a measurement.\n\n"
    "First contact: `bringup validate localhost`. Why doesn't it see my GPU: `bringup doctor localhost`.\n\n"
    "Exit codes: 0 pass, 1 something failed, 2 usage, 3 something could not be judged, 130 interrupted.",
    rich_markup_mode=None,
)
for part in (setup, audit, upgrade):
    app.add_typer(part.app)


def _show_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"bringup {__version__}\n")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True)] = False,
) -> None:
    """Options that go before the command."""


def main() -> None:
    """The entry point `bringup`."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by whoever started us
            setattr(sys, name, nowhere())
        elif isinstance(stream, TextIOWrapper):  # a terminal that cannot show a sign gets its code
            stream.reconfigure(errors="backslashreplace")
    app()
