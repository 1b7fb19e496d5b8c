"""The commands that change hosts, or say what would be changed: plan, provision."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from provision.cli.options import (
    AsJson,
    AskPassphrase,
    HostKeyPolicy,
    HostKeys,
    Hosts,
    Inventory,
    Limit,
    Runs,
    guarded,
)

app = typer.Typer()


@app.command()
@guarded
def plan(
    hosts: Hosts = None,
    inventory: Inventory = None,
    limit: Limit = "",
    profile: Annotated[
        str, typer.Option("--profile", metavar="NAME|FILE", help="What the hosts should have: a name, or ./mine.toml.")
    ] = "standard",
    gpu: Annotated[
        str, typer.Option("--gpu", metavar="CARD", help="Without a host: a card's name or PCI id. Needs --os.")
    ] = "",
    os: Annotated[
        str, typer.Option("--os", metavar="ID-VERSION", help="With --gpu: ubuntu-24.04, debian-12, ...")
    ] = "",
    workers: Annotated[int, typer.Option("--workers", metavar="N", min=1, help="Hosts at once.")] = 16,
    host_keys: HostKeyPolicy = HostKeys.strict,
    as_json: AsJson = False,
) -> None:
    """Say what provisioning would do to each host, why, and what blocks it. Changes nothing; needs no root there.

    \b
    Exit code: 0 nothing blocks, 1 something blocks, 2 usage, 3 a host could not be read.
    \b
    Examples:
      bringup plan -i inventory.ini --limit newbox --profile training
      bringup plan localhost
      bringup plan --gpu "GTX 1080 Ti" --os ubuntu-24.04
    """
    from provision import commands, planning

    code = planning.plan(
        commands.Selection(tuple(inventory or ()), tuple(hosts or ()), limit),
        profile=profile,
        gpu=gpu,
        os=os,
        host_keys=host_keys.value,
        workers=workers,
        as_json=as_json,
    )
    raise typer.Exit(code)


@app.command()
@guarded
def provision(
    hosts: Hosts = None,
    inventory: Inventory = None,
    limit: Limit = "",
    profile: Annotated[
        str, typer.Option("--profile", metavar="NAME|FILE", help="What the hosts should have: a name, or ./mine.toml.")
    ] = "standard",
    tags: Annotated[
        list[str] | None, typer.Option("--tags", "-t", metavar="ROLE", help="Only these roles: docker, nvtop, ...")
    ] = None,
    extra_vars: Annotated[
        list[str] | None,
        typer.Option("--extra-vars", "-e", metavar="KEY=VALUE", help="KEY=VALUE, or @file.yml. No secrets here."),
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Say what would change; change nothing.")] = False,
    reboot: Annotated[
        bool, typer.Option("--reboot", help="Reboot hosts that need it, one after the other; else it is announced.")
    ] = False,
    diff: Annotated[bool, typer.Option("--diff", help="Show the changes to files.")] = False,
    forks: Annotated[int, typer.Option("--forks", metavar="N", min=1, help="Hosts at once.")] = 10,
    ask_become_pass: AskPassphrase = False,
    host_keys: HostKeyPolicy = HostKeys.strict,
    runs: Runs = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Plan each host by a profile, then install through Ansible. A host that something blocks is not touched.

    \b
    Exit code: 0 done, 1 a task failed or a host is blocked, 2 usage, 3 a host could not be reached.
    \b
    Examples:
      bringup provision -i inventory.ini --limit newbox --check --diff
      bringup provision -i inventory.ini --limit newbox --profile training --reboot
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
            reboot=reboot,
        ),
        profile=profile,
        runs=runs,
        as_json=as_json,
    )
    raise typer.Exit(code)
