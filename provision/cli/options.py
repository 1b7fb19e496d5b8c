"""What several commands take, and what each of them is wrapped in."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NoReturn, ParamSpec, TextIO

import typer

from provision.errors import BringupError, UsageError

P = ParamSpec("P")


class Format(StrEnum):
    """Renderings of a report."""

    terminal = "terminal"
    html = "html"
    md = "md"
    json = "json"
    junit = "junit"


class HostKeys(StrEnum):
    """What to do with a host key that known_hosts does not have."""

    strict = "strict"
    accept_new = "accept-new"


class Device(StrEnum):
    """Where load checks run."""

    gpu = "gpu"
    cpu = "cpu"


Inventory = Annotated[
    list[str] | None,
    typer.Option(
        "--inventory", "-i", metavar="PATH", help="Ansible inventory: file, directory or script. May be repeated."
    ),
]
Hosts = Annotated[
    list[str] | None,
    typer.Argument(metavar="[HOST]...", help="Hosts without an inventory: localhost, or a name as for ssh."),
]
Limit = Annotated[
    str, typer.Option("--limit", "-l", metavar="PATTERN", help="Ansible host pattern: 'gpu*', 'ec2:!broken', ...")
]
CriteriaFiles = Annotated[
    list[Path] | None,
    typer.Option(
        "--criteria",
        "-c",
        metavar="FILE",
        help="TOML of thresholds that replace or join the defaults. May be repeated.",
    ),
]
HostKeyPolicy = Annotated[
    HostKeys, typer.Option("--host-keys", help="strict: the key must be in known_hosts; accept-new: add new ones.")
]
AsJson = Annotated[bool, typer.Option("--json", help="The result as JSON on stdout.")]
Strict = Annotated[bool, typer.Option("--strict", help="WARN fails, too.")]
Runs = Annotated[Path, typer.Option("--runs", metavar="DIR", help="Where run directories are made.")]
AskPassphrase = Annotated[
    bool, typer.Option("--ask-become-pass", "-K", help="Ask for the sudo password (or set BRINGUP_BECOME_PASSWORD).")
]


def guarded(command: Callable[P, None]) -> Callable[P, None]:
    """A user's mistake is a sentence and exit code 2; Ctrl-C is 130; neither is a traceback."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        from provision.console import show_error

        try:
            try:
                command(*args, **kwargs)
            finally:
                sys.stdout.flush()  # while a full disk behind it can still be told
        except UsageError as problem:
            show_error(problem)
            raise typer.Exit(2) from None
        except BringupError as problem:
            show_error(problem)
            raise typer.Exit(3) from None
        except BrokenPipeError:
            _quiet_exit(141)
        except OSError as problem:
            show_error(
                BringupError(f"the system refused: {problem}", "is a disk full, or a limit reached (ulimit -a)?")
            )
            sys.stdout = nowhere()  # else Python fails over it again at its end
            raise typer.Exit(3) from None
        except KeyboardInterrupt:
            sys.stderr.write("interrupted\n")
            raise typer.Exit(130) from None

    return run


def nowhere() -> TextIO:
    """A stream that swallows what is written to it."""
    return Path(os.devnull).open("w", encoding="utf-8")


def _quiet_exit(code: int) -> NoReturn:
    """Whoever read our output has gone: nothing more can be said."""
    sys.stderr.close()
    raise typer.Exit(code)
