"""`bringup upgrade`, `resume` and `rollback`, from the user's words to an exit code."""

from __future__ import annotations

import getpass
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from provision import __version__
from provision.bundle import build_bundle
from provision.commands import Selection, end_now, select_hosts
from provision.console import say
from provision.errors import UsageError
from provision.hosts import Host
from provision.manifest import Manifest, public_host, without_secrets
from provision.plays import BECOME_VARIABLE
from provision.plays.view import Watcher, watching
from provision.store import RunDirectory, now
from provision.typed import Misfit, fitted
from provision.upgrade import report
from provision.upgrade.actions import Actions
from provision.upgrade.conductor import Conductor
from provision.upgrade.drain import command_of
from provision.upgrade.journal import Event, Journal, RunState, read
from provision.upgrade.measure import Measuring
from provision.upgrade.model import DRAIN_VARIABLE, UNDRAIN_VARIABLE, Means, Options, Planner, Prepared
from provision.upgrade.notes import Notes
from provision.upgrade.phases import DOWN, Phase
from provision.upgrade.plays import Plays
from provision.upgrade.waves import GROUP_VARIABLE, Member, Wave, plan_waves

_TARGET = re.compile(r"\d{3}(\.\d{1,4}){0,2}")


@dataclass(frozen=True)
class Order:
    """What the journal's first event holds: all that going on later needs, and nothing secret."""

    options: Options
    waves: tuple[Wave, ...]
    members: tuple[Member, ...]
    inventories: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    limit: str = ""
    variables: Mapping[str, Mapping[str, object]] | None = None
    snapshot: str = ""
    first: str = "before"
    roles: tuple[str, ...] = ()


def default_means(*, ask: bool = False) -> Means:
    """What the command line works with. `ask`: for the password of sudo."""
    password = getpass.getpass("sudo password: ") if ask else None
    return Means(bundle=build_bundle(), become_password=password, tell=say)


def upgrade(
    selection: Selection,
    options: Options,
    *,
    runs: Path,
    planner: Planner,
    means: Means | None = None,
    check: bool = False,
) -> int:
    """Upgrade the hosts in waves. 0: all of them. 1: some failed. 3: one is broken or lost, or could not be judged."""
    means = means or default_means()
    if options.to and not _TARGET.fullmatch(options.to):
        raise UsageError(f"--to {options.to[:40]} is no driver", "a branch (595) or a version (595.91.07)")
    hosts = _others(select_hosts(selection))
    members = members_of(hosts)
    waves = plan_waves(members, options.rules)
    for host in hosts:
        command_of(host, DRAIN_VARIABLE, options.drain)
        command_of(host, UNDRAIN_VARIABLE, options.undrain)
    prepared = planner(hosts)
    show_waves(waves, prepared, hosts)
    if check:
        return 1 if prepared.refused else 0
    if prepared.refused:
        name, why = next(iter(prepared.refused.items()))
        more = f" ({len(prepared.refused) - 1} more hosts)" if len(prepared.refused) > 1 else ""
        raise UsageError(f"{name} cannot have {options.to}: {why}{more}", "leave it out: --limit 'all:!NAME'")
    run = RunDirectory.create(runs, _manifest(selection, hosts))
    order = Order(
        options=options,
        waves=waves,
        members=members,
        inventories=tuple(str(Path(one).absolute()) if "," not in one else one for one in selection.inventories),
        names=selection.hosts,
        limit=selection.limit,
        variables={name: _public(one) for name, one in prepared.variables.items()},
        snapshot=run.path.name,
        roles=tuple(means.roles),
    )
    with Journal(run.path) as journal:
        journal.write(Event("plan", data=asdict(order)))
        return _go(journal, order, hosts, means)


def resume(
    folder: Path, *, max_fail: int | None = None, means: Means | None = None, inventories: Sequence[str] = ()
) -> int:
    """Go on with an upgrade whose operator's process ended: hosts in flight are finished or brought back first."""
    means = means or default_means()
    read(folder)  # before a journal is made where there is none
    with Journal(folder) as journal:
        state = journal.state()
        order = order_of(state, folder)
        if max_fail is not None:
            order = replace(
                order, options=replace(order.options, rules=replace(order.options.rules, max_fail=max_fail))
            )
        hosts = select_hosts(Selection(tuple(inventories) or order.inventories, order.names, order.limit))
        missing = [member.name for member in order.members if member.name not in {host.name for host in hosts}]
        if missing:
            raise UsageError(
                f"the inventory no longer has {', '.join(missing[:5])}, which this run is about",
                "name the inventory that it began with: bringup resume RUN -i inventory.ini",
            )
        journal.write(Event("resume", data={"options": asdict(order.options)}))
        return _go(journal, order, hosts, means)


def rollback(
    selection: Selection, options: Options, *, runs: Path, snapshot: str = "", means: Means | None = None
) -> int:
    """Bring hosts back to a snapshot (the newest), reboot them and measure them."""
    means = means or default_means()
    hosts = _others(select_hosts(selection))
    members = members_of(hosts)
    run = RunDirectory.create(runs, _manifest(selection, hosts))
    order = Order(
        options=options,
        waves=plan_waves(members, options.rules),
        members=members,
        inventories=tuple(str(Path(one).absolute()) if "," not in one else one for one in selection.inventories),
        names=selection.hosts,
        limit=selection.limit,
        snapshot=snapshot,
        first="restore",
        roles=tuple(means.roles),
    )
    with Journal(run.path) as journal:
        journal.write(Event("plan", data=asdict(order)))
        return _go(journal, order, hosts, means)


def _others(hosts: Sequence[Host]) -> Sequence[Host]:
    """The hosts, none of which may be this machine: it would reboot under its own operator. Raises UsageError."""
    here = next((host for host in hosts if host.connection == "local"), None)
    if here is not None:
        raise UsageError(f"{here.name} is this machine, which a reboot would end", "run it from another machine")
    return hosts


def order_of(state: RunState, folder: Path) -> Order:
    """The order of a run. Raises UsageError where the folder is not that of an upgrade."""
    try:
        return fitted(Order, dict(state.plan), "the plan")
    except Misfit as problem:
        raise UsageError(f"{folder} is no run of `bringup upgrade`: {problem}", "name its folder: runs/<id>") from None


def members_of(hosts: Sequence[Host]) -> tuple[Member, ...]:
    """The hosts as far as waves go."""
    return tuple(Member(host.name, str(host.variables.get(GROUP_VARIABLE) or "")) for host in hosts)


def show_waves(waves: Sequence[Wave], prepared: Prepared, hosts: Sequence[Host]) -> None:
    """Say who goes when, and who cannot."""
    for wave in waves:
        say(f"wave {wave.number}{' (canary)' if wave.canary else ''}: {', '.join(wave.hosts)}")
    for host in hosts:
        if host.name in prepared.refused:
            say(f"{host.name}: {prepared.refused[host.name]}")


def _go(journal: Journal, order: Order, hosts: Sequence[Host], means: Means) -> int:
    chosen = {host.name: host for host in hosts if host.name in {member.name for member in order.members}}
    options = order.options
    inventory: Sequence[Host] | Sequence[Path] = [Path(one) for one in order.inventories] or list(chosen.values())
    if any("," in one for one in order.inventories):
        inventory = list(chosen.values())
    # sudo -n is all that measuring has; where sudo wants a password, it measures as the user.
    asks = bool(means.become_password or os.environ.get(BECOME_VARIABLE))
    measuring = Measuring(journal.folder, tuple(chosen.values()), means.bundle, options.host_keys, become=not asks)
    with _watched(means, len(chosen)) as seen, _reported(journal):
        plays = Plays(
            folder=journal.folder,
            inventory=inventory,
            host_keys=options.host_keys,
            become_password=means.become_password,
            on_event=seen.event if seen else None,
            on_tick=seen.tick if seen else None,
        )
        actions = Actions(
            hosts=chosen,
            options=options,
            plays=plays,
            measuring=measuring,
            variables=order.variables or {},
            roles=order.roles,
            snapshot=order.snapshot,
            notes=Notes((journal.folder / "snapshots").absolute()),  # Ansible's `fetch` would put it beside the play
            settle_s=means.settle_s,
        )
        first: Phase = "restore" if order.first == "restore" else "before"
        conductor = Conductor(journal, order.waves, order.members, options.rules, actions, means, first)
        try:
            conductor.retry_lost()
            state = conductor.run()
        except KeyboardInterrupt:
            report.write(journal.folder, journal.state())
            say(f"interrupted; nothing new is begun. Go on with: bringup resume {journal.folder}")
            end_now()
    say(f"report: {journal.folder / report.NAMES['html']}")
    return exit_code(state, order)


def _watched(means: Means, hosts: int) -> AbstractContextManager[Watcher | None]:
    """Where each host is, on a terminal; elsewhere the phases' own lines are enough."""
    return watching(hosts) if means.live and sys.stderr.isatty() else nullcontext()


@contextmanager
def _reported(journal: Journal) -> Iterator[None]:
    """However it ends, the report says how far it came."""
    try:
        yield
    finally:
        report.write(journal.folder, journal.state())


def exit_code(state: RunState, order: Order) -> int:
    """0: all done. 3: a host is broken or lost. 1: something failed, or was not begun because something had."""
    outcomes = [state.hosts[member.name].outcome if member.name in state.hosts else None for member in order.members]
    if any(outcome in DOWN for outcome in outcomes):
        return 3
    good = "done" if order.first == "before" else "rolled_back"
    return 0 if all(outcome == good for outcome in outcomes) else 1


def _public(variables: Mapping[str, object]) -> dict[str, object]:
    """What may be kept of a host's variables: no addresses that hold a password."""
    return {name: value for name, value in variables.items() if "@" not in str(value) or "://" not in str(value)}


def _manifest(selection: Selection, hosts: Sequence[Host]) -> Manifest:
    return Manifest(
        version=__version__,
        created=now(),
        python=sys.version.split()[0],
        command=without_secrets(["bringup", *sys.argv[1:]]),
        hosts=tuple(public_host(host) for host in hosts),
        catalogue=(),
        plans={},
        criteria=(),
        selection=(*selection.inventories, *selection.hosts, *((selection.limit,) if selection.limit else ())),
    )
