"""The commands for a fleet's driver: upgrade, resume, rollback."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from provision.cli.options import AskPassphrase, HostKeyPolicy, HostKeys, Hosts, Inventory, Limit, Runs, guarded

app = typer.Typer()

RebootTimeout = Annotated[
    int, typer.Option("--reboot-timeout", metavar="SECONDS", min=30, help="What a host gets to come back.")
]
Together = Annotated[
    bool, typer.Option("--together", help="Hosts of one bringup_serial_group may be down at the same time.")
]
Tolerance = Annotated[
    float, typer.Option("--tolerance", metavar="SHARE", min=0.01, max=1, help="Share of its own throughput before.")
]
Drain = Annotated[
    str,
    typer.Option(
        "--drain",
        metavar="CMD",
        help="Run here before a host is touched (BRINGUP_HOST, BRINGUP_ADDRESS). "
        "Without: hosts with processes on a GPU are refused.",
    ),
]
Undrain = Annotated[str, typer.Option("--undrain", metavar="CMD", help="Run here when a host is well again.")]
Again = "The run keeps no copy of it: give it again."


def _policy(chosen: HostKeys) -> Literal["strict", "accept-new"]:
    return "accept-new" if chosen is HostKeys.accept_new else "strict"


@app.command()
@guarded
def upgrade(
    hosts: Hosts = None,
    inventory: Inventory = None,
    limit: Limit = "",
    to: Annotated[
        str,
        typer.Option("--to", metavar="BRANCH|VERSION", help="The driver: 595, or 595.91.07. Default: the profile's."),
    ] = "",
    profile: Annotated[str, typer.Option("--profile", metavar="NAME|FILE", help="Software that goes with it.")] = "",
    canary: Annotated[int, typer.Option("--canary", metavar="N", min=0, help="Hosts that go first, alone.")] = 1,
    wave: Annotated[str, typer.Option("--wave", metavar="N|N%", help="Hosts at once after that.")] = "10%",
    max_fail: Annotated[int, typer.Option("--max-fail", metavar="N", min=0, help="Failed hosts put up with.")] = 0,
    together: Together = False,
    drain: Drain = "",
    undrain: Undrain = "",
    install_timeout: Annotated[
        int, typer.Option("--install-timeout", metavar="SECONDS", min=10, help="After this an installation hangs.")
    ] = 1800,
    reboot_timeout: RebootTimeout = 900,
    tolerance: Tolerance = 0.95,
    even_if_failing: Annotated[
        bool, typer.Option("--even-if-failing", help="Also hosts whose own measurements fail already.")
    ] = False,
    without_way_back: Annotated[
        bool, typer.Option("--without-way-back", help="Also hosts with packages that no .deb is to be had of.")
    ] = False,
    check: Annotated[bool, typer.Option("--check", help="Say who would go when; change nothing.")] = False,
    ask_become_pass: AskPassphrase = False,
    host_keys: HostKeyPolicy = HostKeys.strict,
    runs: Runs = Path("runs"),
) -> None:
    """Another driver on a fleet, in waves, each host measured before and after, with a way back.

    \b
    Exit codes: 0 all upgraded, 1 a host failed and has its old driver back, 2 usage, 3 a host is broken or lost,
    130 interrupted: `bringup resume runs/<id>` goes on.

    \b
    Examples:
      bringup upgrade -i inventory.ini --to 595 --check
      bringup upgrade -i inventory.ini --to 595 --canary 1 --wave 10% --drain 'scontrol-drain.sh'
    """
    from provision.commands import Selection
    from provision.errors import UsageError
    from provision.upgrade import command, model
    from provision.upgrade.planner import planner_for
    from provision.upgrade.waves import Rules

    if not to and not profile:
        raise UsageError("upgrade to what?", "--to 595, or --profile NAME")
    options = model.Options(
        to=to,
        rules=Rules(canary=canary, wave=wave, max_fail=max_fail, together=together),
        install_timeout_s=install_timeout,
        reboot_timeout_s=reboot_timeout,
        tolerance=tolerance,
        even_if_failing=even_if_failing,
        without_way_back=without_way_back,
        host_keys=_policy(host_keys),
    )
    code = command.upgrade(
        Selection(tuple(inventory or ()), tuple(hosts or ()), limit),
        options,
        runs=runs,
        planner=planner_for(to, profile, host_keys=_policy(host_keys)),
        hooks=model.Hooks(drain, undrain),
        means=command.default_means(ask=ask_become_pass),
        check=check,
    )
    raise typer.Exit(code)


@app.command()
@guarded
def resume(
    run: Annotated[Path, typer.Argument(help="A run directory of `bringup upgrade`: runs/<id>.")],
    inventory: Inventory = None,
    max_fail: Annotated[
        int | None, typer.Option("--max-fail", metavar="N", min=0, help="Another number than the run began with.")
    ] = None,
    drain: Annotated[str, typer.Option("--drain", metavar="CMD", help=Again)] = "",
    undrain: Annotated[str, typer.Option("--undrain", metavar="CMD", help=Again)] = "",
    other_hooks: Annotated[
        bool, typer.Option("--other-hooks", help="Other drain commands than the run began with are meant.")
    ] = False,
    ask_become_pass: AskPassphrase = False,
) -> None:
    """Go on with an upgrade that broke off: hosts in flight are finished or brought back, then the other waves.

    \b
    Example:
      bringup resume runs/20261121-080000
    """
    from provision.upgrade import command, model

    code = command.resume(
        run,
        max_fail=max_fail,
        means=command.default_means(ask=ask_become_pass),
        inventories=tuple(inventory or ()),
        hooks=model.Hooks(drain, undrain),
        other_hooks=other_hooks,
    )
    raise typer.Exit(code)


@app.command()
@guarded
def rollback(
    hosts: Hosts = None,
    inventory: Inventory = None,
    limit: Limit = "",
    snapshot: Annotated[
        str, typer.Option("--snapshot", metavar="ID", help="Which snapshot: a run's id. Default: the newest.")
    ] = "",
    together: Together = False,
    drain: Drain = "",
    undrain: Undrain = "",
    without_drain: Annotated[
        bool, typer.Option("--without-drain", help="Neither drain nor look for jobs: the reboot ends them.")
    ] = False,
    reboot_timeout: RebootTimeout = 900,
    ask_become_pass: AskPassphrase = False,
    host_keys: HostKeyPolicy = HostKeys.strict,
    runs: Runs = Path("runs"),
) -> None:
    """Bring hosts back to what they had before an upgrade, from the snapshot on them; needs no network there.

    \b
    Example:
      bringup rollback gpu7 -i inventory.ini
    """
    from provision.commands import Selection
    from provision.upgrade import command, model
    from provision.upgrade.waves import Rules

    options = model.Options(
        to="",
        rules=Rules(canary=0, wave="100%", together=together),
        reboot_timeout_s=reboot_timeout,
        host_keys=_policy(host_keys),
    )
    code = command.rollback(
        Selection(tuple(inventory or ()), tuple(hosts or ()), limit),
        options,
        runs=runs,
        snapshot=snapshot,
        hooks=model.Hooks(drain, undrain),
        without_drain=without_drain,
        means=command.default_means(ask=ask_become_pass),
    )
    raise typer.Exit(code)
