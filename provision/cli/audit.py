"""The commands that measure, judge and show: validate, doctor, report, judge, checks."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from provision.cli.options import (
    AsJson,
    CriteriaFiles,
    Device,
    Format,
    HostKeyPolicy,
    HostKeys,
    Hosts,
    Inventory,
    Limit,
    Runs,
    Strict,
    guarded,
)

app = typer.Typer()

LEVELS = (
    "1: seconds, no load (the audit). 2 (the default): about a minute. 3: minutes (training, scaling, links). 4: soak."
)


class DataAction(StrEnum):
    """What to do with this machine's datasets."""

    show = "show"
    fetch = "fetch"


@app.command()
@guarded
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
        typer.Option("--level", metavar="1..4", min=1, max=4, help=LEVELS),
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
    in_container: Annotated[
        str,
        typer.Option(
            "--in-container", metavar="IMAGE", help="Run the load checks in this image, too (docker or podman)."
        ),
    ] = "",
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="DIR", help="CIFAR-10 and MNIST, files or archives, for hosts that lack them."),
    ] = None,
    share: Annotated[
        bool, typer.Option("--share", help="Load GPUs that somebody else uses, too; rates then say little.")
    ] = False,
    duration: Annotated[
        str, typer.Option("--duration", metavar="TIME", help="How long the soak of level 4 lasts: 24h, 90m, 3600.")
    ] = "",
    between_hosts: Annotated[
        bool, typer.Option("--between-hosts", help="Measure the network between the hosts, too: all-reduce over all.")
    ] = False,
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
      bringup validate -i inventory.ini --level 3 --data ~/data
      bringup validate -i inventory.ini --level 4 --duration 24h
      bringup validate -i inventory.ini --only links --between-hosts
      bringup validate -i inventory.ini --in-container nvcr.io/nvidia/pytorch:25.10-py3
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
            image=in_container,
            share=share,
            duration=duration,
            data=data,
            between_hosts=between_hosts,
        ),
        criteria=tuple(criteria or ()),
        runs=runs,
        strict=strict,
        as_json=as_json,
    )
    raise typer.Exit(code)


@app.command()
@guarded
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
@guarded
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
@guarded
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
@guarded
def checks(
    name: Annotated[str, typer.Argument(help="One check, with all its metrics.")] = "",
    as_json: AsJson = False,
) -> None:
    """Every check, by level: what it measures, which fault it catches, what it needs, how long it takes.

    \b
    Examples:
      bringup checks
      bringup checks matmul
    """
    from provision import commands

    raise typer.Exit(commands.checks(name, as_json=as_json))


@app.command()
@guarded
def data(
    what: Annotated[DataAction, typer.Argument(help="Say what is in this machine's cache, or download into it.")],
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="cifar10, mnist; default: all.")
    ] = None,
) -> None:
    """The datasets on this machine, which `validate` sends to hosts that lack them. Exit code 1: one is not here.

    \b
    Examples:
      bringup data show
      bringup data fetch mnist
    """
    from provision import commands

    raise typer.Exit(commands.data(what.value, tuple(names or ())))
