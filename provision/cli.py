"""The command line: parse, call, map the outcome to an exit code. No logic.

Exit codes: 0 all PASS (WARN allowed, unless --strict), 1 at least one FAIL, 2 usage, 3 something could not be
judged (ERROR) and nothing failed, 130 interrupted.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from enum import StrEnum
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, NoReturn, ParamSpec, TextIO

import typer

from provision import __version__
from provision.errors import BringupError, UsageError

P = ParamSpec("P")

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="From a bare server to a signed-off GPU host. Nothing passes without a measurement.\n\n"
    "First contact: `bringup validate localhost`. Why doesn't it see my GPU: `bringup doctor localhost`.\n\n"
    "Exit codes: 0 pass, 1 something failed, 2 usage, 3 something could not be judged, 130 interrupted.",
    rich_markup_mode=None,
)


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


def _guarded(command: Callable[P, None]) -> Callable[P, None]:
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
            sys.stdout = _nowhere()  # else Python fails over it again at its end
            raise typer.Exit(3) from None
        except KeyboardInterrupt:
            sys.stderr.write("interrupted\n")
            raise typer.Exit(130) from None

    return run


def _nowhere() -> TextIO:
    return Path(os.devnull).open("w", encoding="utf-8")


def _quiet_exit(code: int) -> NoReturn:
    """Whoever read our output has gone: nothing more can be said."""
    sys.stderr.close()
    raise typer.Exit(code)


def _show_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"bringup {__version__}\n")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True)] = False,
) -> None:
    """Options that go before the command."""


@app.command()
@_guarded
def provision(
    hosts: Hosts = None,
    inventory: Inventory = None,
    limit: Limit = "",
    tags: Annotated[
        list[str] | None, typer.Option("--tags", "-t", metavar="ROLE", help="Only these roles: docker, nvtop, ...")
    ] = None,
    extra_vars: Annotated[
        list[str] | None,
        typer.Option("--extra-vars", "-e", metavar="KEY=VALUE", help="KEY=VALUE, or @file.yml. No secrets here."),
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Say what would change; change nothing.")] = False,
    diff: Annotated[bool, typer.Option("--diff", help="Show the changes to files.")] = False,
    forks: Annotated[int, typer.Option("--forks", metavar="N", min=1, help="Hosts at once.")] = 10,
    ask_become_pass: AskPassphrase = False,
    host_keys: HostKeyPolicy = HostKeys.strict,
    runs: Runs = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Install what a GPU host needs, through Ansible.

    \b
    Examples:
      bringup provision -i inventory.ini --limit newbox --check --diff
      bringup provision -i inventory.ini --limit newbox
      bringup provision -i inventory.ini --tags docker -e docker_source=distro
    """
    from provision import commands, provisioning

    code = provisioning.provision(
        commands.Selection(tuple(inventory or ()), tuple(hosts or ()), limit),
        provisioning.PlayOptions(
            tags=tuple(tags or ()),
            extra_vars=tuple(extra_vars or ()),
            check=check,
            diff=diff,
            forks=forks,
            ask_become_pass=ask_become_pass,
            host_keys=host_keys.value,
        ),
        runs=runs,
        as_json=as_json,
    )
    raise typer.Exit(code)


@app.command()
@_guarded
def validate(
    hosts: Hosts = None,
    inventory: Inventory = None,
    limit: Limit = "",
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="CHECK", help="Only this check. May be repeated.")
    ] = None,
    skip: Annotated[
        list[str] | None, typer.Option("--skip", metavar="CHECK", help="Leave this check out; the report says so.")
    ] = None,
    level: Annotated[
        int | None,
        typer.Option("--level", metavar="1..4", min=1, max=4, help="1: seconds, no load. 2 (the default): with load."),
    ] = None,
    device: Annotated[
        Device | None, typer.Option("--device", help="cpu: run load checks on the CPU, as a reference. Default: gpu.")
    ] = None,
    param: Annotated[
        list[str] | None,
        typer.Option(
            "--param", "-p", metavar="CHECK.KEY=VALUE", help="A check's setting: matmul.seconds=5. May be repeated."
        ),
    ] = None,
    criteria: CriteriaFiles = None,
    host_keys: HostKeyPolicy = HostKeys.strict,
    workers: Annotated[int, typer.Option("--workers", metavar="N", min=1, help="Hosts at once.")] = 16,
    timeout: Annotated[
        float,
        typer.Option(
            "--timeout", metavar="SECONDS", min=0, help="Seconds for the whole of one host; 0: from the checks."
        ),
    ] = 0,
    strict: Strict = False,
    runs: Runs = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Measure hosts over SSH and judge what was measured; a report in every format is left in the run directory.

    \b
    Examples:
      bringup validate localhost
      bringup validate -i inventory.ini --limit newbox
      bringup validate -i inventory.ini --level 1 --strict
      bringup validate ubuntu@203.0.113.7 --only matmul -p matmul.seconds=5
    """
    from provision import commands

    code = commands.validate(
        commands.Selection(tuple(inventory or ()), tuple(hosts or ()), limit),
        commands.CheckOptions(
            only=tuple(only or ()),
            skip=tuple(skip or ()),
            level=level,
            device=device.value if device else "",
            params=tuple(param or ()),
            timeout_s=timeout,
            workers=workers,
            host_keys=host_keys.value,
        ),
        criteria=tuple(criteria or ()),
        runs=runs,
        strict=strict,
        as_json=as_json,
    )
    raise typer.Exit(code)


@app.command()
@_guarded
def doctor(
    hosts: Hosts = None,
    inventory: Inventory = None,
    limit: Limit = "",
    host_keys: HostKeyPolicy = HostKeys.strict,
    as_json: AsJson = False,
) -> None:
    """Why doesn't it see my GPU? The first broken link from the PCI slot to the framework, and what mends it.

    \b
    Examples:
      bringup doctor localhost
      bringup doctor -i inventory.ini --limit gpu7
    """
    from provision import commands

    code = commands.doctor(
        commands.Selection(tuple(inventory or ()), tuple(hosts or ()), limit),
        commands.CheckOptions(host_keys=host_keys.value),
        as_json=as_json,
    )
    raise typer.Exit(code)


@app.command()
@_guarded
def report(
    run: Annotated[Path, typer.Argument(help="A run directory: runs/<id>.")],
    format: Annotated[Format, typer.Option("--format", "-f", help="What to render.")] = Format.terminal,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="A file; default: stdout.")
    ] = None,
) -> None:
    """Render a run again, in any format, judged as it was. Exit code 0: rendered; `bringup judge` gives the verdict's.

    \b
    Examples:
      bringup report runs/20261121-040000
      bringup report runs/20261121-040000 --format html -o certificate.html
    """
    from provision import commands

    raise typer.Exit(commands.report(run, format.value, output))


@app.command()
@_guarded
def judge(
    run: Annotated[Path, typer.Argument(help="A run directory: runs/<id>.")],
    criteria: CriteriaFiles = None,
    format: Annotated[Format, typer.Option("--format", "-f", help="What to render.")] = Format.terminal,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="A file; default: stdout.")
    ] = None,
    strict: Strict = False,
    as_json: AsJson = False,
) -> None:
    """Hold an old run's measurements against new thresholds. No host is touched.

    \b
    Example:
      bringup judge runs/20261121-040000 --criteria mine.toml
    """
    from provision import commands

    chosen = "json" if as_json else format.value
    raise typer.Exit(commands.judge(run, tuple(criteria or ()), chosen, output, strict=strict))


@app.command()
@_guarded
def checks(
    name: Annotated[str, typer.Argument(help="One check, with all its metrics.")] = "",
    as_json: AsJson = False,
) -> None:
    """Every check: what it measures, which fault it catches, what it needs, how long it takes.

    \b
    Examples:
      bringup checks
      bringup checks matmul
    """
    from provision import commands

    raise typer.Exit(commands.checks(name, as_json=as_json))


def main() -> None:
    """The entry point `bringup`."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by whoever started us
            setattr(sys, name, _nowhere())
        elif isinstance(stream, TextIOWrapper):  # a terminal that cannot show a sign gets its code
            stream.reconfigure(errors="backslashreplace")
    app()
