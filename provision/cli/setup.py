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
