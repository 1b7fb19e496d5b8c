"""`bringup upgrade`, `resume` and `rollback`, from the user's words to an exit code."""

from __future__ import annotations

import getpass
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path

from provision import __version__
from provision.bundle import build_bundle
from provision.commands import Selection, end_now, select_hosts
from provision.console import say
from provision.errors import BringupError, PlayError, UsageError
from provision.hosts import Host
from provision.manifest import Manifest, public_host, without_secrets
from provision.plays import BECOME_VARIABLE
from provision.plays.view import Watcher, watching
from provision.store import RunDirectory, now
from provision.upgrade import report
from provision.upgrade.actions import Actions
from provision.upgrade.conductor import Conductor
from provision.upgrade.drain import check_seals, command_of, seals
from provision.upgrade.journal import Event, Journal, read
from provision.upgrade.measure import Measuring
from provision.upgrade.model import DRAIN_VARIABLE, UNDRAIN_VARIABLE, Hooks, Means, Options, Planner, Prepared
from provision.upgrade.notes import Notes
from provision.upgrade.order import Order, absolute, exit_code, members_of, order_of
from provision.upgrade.phases import BACK
from provision.upgrade.plays import Plays
from provision.upgrade.waves import Wave, plan_waves

_TARGET = re.compile(r"\d{3}(\.\d{1,4}){0,2}")
_NO_HOOKS = Hooks()


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
    hooks: Hooks = _NO_HOOKS,
    means: Means | None = None,
    check: bool = False,
) -> int:
    """Upgrade the hosts in waves. 0: all of them. 1: some failed. 3: one is broken or lost, or could not be judged."""
    means = means or default_means()
    if options.to and not _TARGET.fullmatch(options.to):
        raise UsageError(f"--to {options.to[:40]} is no driver", "a branch (595) or a version (595.91.07)")
    hosts = _chosen(selection, hooks)
    plan_waves((), options.rules)  # says what is wrong with the rules before hosts are asked
    prepared = planner(hosts)
    waves = plan_waves(members_of([host for host in hosts if host.name not in prepared.already]), options.rules)
    show_waves(waves, prepared, hosts)
    if check:
        return 1 if prepared.refused else 0
    if prepared.refused:
        name, why = next(iter(prepared.refused.items()))
        more = f" ({len(prepared.refused) - 1} more hosts)" if len(prepared.refused) > 1 else ""
        raise UsageError(f"{name} cannot have {options.to}: {why}{more}", "leave it out: --limit 'all:!NAME'")
    order = replace(
        _order(selection, options, hosts, hooks, means),
        waves=waves,
        variables={name: _public(one) for name, one in prepared.variables.items()},
        already=prepared.already,
    )
    run = RunDirectory.create(runs, _manifest(selection, hosts))
    return _begin(run, replace(order, snapshot=run.path.name), hosts, hooks, means)


def rollback(
    selection: Selection,
    options: Options,
    *,
    runs: Path,
    snapshot: str = "",
    hooks: Hooks = _NO_HOOKS,
    without_drain: bool = False,
    means: Means | None = None,
) -> int:
    """Bring hosts back to a snapshot (the newest), reboot them and measure them. Codes as upgrade()."""
    means = means or default_means()
    if selection.inventories and not selection.hosts and not selection.limit:
        raise UsageError("roll back which hosts?", "bringup rollback gpu7 -i inventory.ini, or --limit all")
    hosts = _chosen(selection, hooks)
    order = replace(
        _order(selection, options, hosts, hooks, means),
        snapshot=snapshot,
        path=BACK if without_drain else ("drain", *BACK),
    )
    run = RunDirectory.create(runs, _manifest(selection, hosts))
    return _begin(run, order, hosts, hooks, means)


def resume(
    folder: Path,
    *,
    max_fail: int | None = None,
    means: Means | None = None,
    inventories: Sequence[str] = (),
    hooks: Hooks = _NO_HOOKS,
    other_hooks: bool = False,
) -> int:
    """Go on with an upgrade whose operator's process ended: hosts in flight are finished or brought back first.

    `inventories`: in the place of those that the run began with. `other_hooks`: other commands than it began with will
    do. Codes as upgrade().
    """
    means = means or default_means()
    folder = folder.absolute()  # its name is the run's, also where it is "."
    read(folder)  # before a journal is made where there is none
    with Journal(folder) as journal:
        order = order_of(journal.state(), folder)
        if order.asks and not _password(means):
            raise UsageError(
                "the run began with a password for sudo, and without it hosts in flight can be neither finished nor "
                "brought back",
                f"bringup resume {folder} -K, or set {BECOME_VARIABLE}",
            )
        if max_fail is not None:
            order = replace(
                order, options=replace(order.options, rules=replace(order.options.rules, max_fail=max_fail))
            )
        if inventories:
            order = replace(order, inventories=absolute(inventories))
        hosts = select_hosts(Selection(order.inventories, order.names, order.limit))
        missing = [member.name for member in order.members if member.name not in {host.name for host in hosts}]
        if missing:
            raise UsageError(
                f"the inventory no longer has {', '.join(missing[:5])}, which this run is about",
                "name the inventory that it began with: bringup resume RUN -i inventory.ini",
            )
        members = {member.name for member in order.members}
        hosts = tuple(host for host in hosts if host.name in members)
        _check_commands(hosts, hooks)
        if other_hooks:
            order = replace(order, hooks=seals(hosts, hooks))
        check_seals(order.hooks, hosts, hooks)
        kept = asdict(order)
        journal.write(Event("resume", data={name: kept[name] for name in ("options", "inventories", "hooks")}))
        return _go(journal, order, hosts, hooks, means)


def _order(selection: Selection, options: Options, hosts: Sequence[Host], hooks: Hooks, means: Means) -> Order:
    """What an upgrade and a rollback have in common: all hosts in waves."""
    return Order(
        options=options,
        waves=plan_waves(members_of(hosts), options.rules),
        members=members_of(hosts),
        inventories=absolute(selection.inventories),
        names=selection.hosts,
        limit=selection.limit,
        roles=tuple(means.roles),
        asks=bool(_password(means)),
        hooks=seals(hosts, hooks),
    )


def _begin(run: RunDirectory, order: Order, hosts: Sequence[Host], hooks: Hooks, means: Means) -> int:
    with Journal(run.path) as journal:
        journal.write(Event("plan", data=asdict(order)))
        return _go(journal, order, hosts, hooks, means)


def _password(means: Means) -> str:
    return means.become_password or os.environ.get(BECOME_VARIABLE, "")


def _chosen(selection: Selection, hooks: Hooks) -> tuple[Host, ...]:
    """The hosts, and nothing is wrong with them or their commands before one is touched. Raises UsageError."""
    hosts = select_hosts(selection)
    here = next((host for host in hosts if host.connection == "local"), None)
    if here is not None:  # it would reboot under its own operator
        raise UsageError(f"{here.name} is this machine, which a reboot would end", "run it from another machine")
    _check_commands(hosts, hooks)
    return hosts


def _check_commands(hosts: Sequence[Host], hooks: Hooks) -> None:
    for host in hosts:
        command_of(host, DRAIN_VARIABLE, hooks.drain)
        command_of(host, UNDRAIN_VARIABLE, hooks.undrain)


def show_waves(waves: Sequence[Wave], prepared: Prepared, hosts: Sequence[Host]) -> None:
    """Say who goes when, who cannot, and who need not."""
    for wave in waves:
        say(f"wave {wave.number}{' (canary)' if wave.canary else ''}: {', '.join(wave.hosts)}")
    for host in hosts:
        if said := prepared.refused.get(host.name) or prepared.already.get(host.name):
            say(f"{host.name}: {said}")


def _go(journal: Journal, order: Order, hosts: Sequence[Host], hooks: Hooks, means: Means) -> int:
    options = order.options
    # sudo -n is all that measuring has; where sudo wants a password, it measures as the user.
    measuring = Measuring(journal.folder, tuple(hosts), means.bundle, options.host_keys, become=not order.asks)
    again = _again(journal.folder, order, hooks)
    with _watched(means, len(hosts)) as seen, _reported(journal, again):
        plays = Plays(
            folder=journal.folder,
            inventory=[Path(one) for one in order.inventories] or tuple(hosts),
            host_keys=options.host_keys,
            become_password=means.become_password,
            on_event=seen.event if seen else None,
            on_tick=seen.tick if seen else None,
        )
        actions = Actions(
            hosts={host.name: host for host in hosts},
            options=options,
            plays=plays,
            measuring=measuring,
            variables=order.variables,
            roles=order.roles,
            snapshot=order.snapshot,
            notes=Notes((journal.folder / "snapshots").absolute()),  # Ansible's `fetch` would put it beside the play
            hooks=hooks,
            settle_s=means.settle_s,
            rollback=order.rollback,
        )
        conductor = Conductor(
            journal, order.waves, order.members, options.rules, actions, means, order.path, order.already
        )
        try:
            state = conductor.run()
        except KeyboardInterrupt:
            report.write(journal.folder, journal.state())
            say(f"interrupted; nothing new is begun. Go on with: {again}")
            end_now()
    say(f"report: {journal.folder / report.NAMES['html']}")
    return exit_code(state, order)


def _watched(means: Means, hosts: int) -> AbstractContextManager[Watcher | None]:
    """Where each host is, on a terminal; elsewhere the phases' own lines are enough."""
    return watching(hosts) if means.live and sys.stderr.isatty() else nullcontext()


def _again(folder: Path, order: Order, hooks: Hooks) -> str:
    """How to go on with a run: the command, with what it has to be told again."""
    given = (" --drain CMD" if hooks.drain else "") + (" --undrain CMD" if hooks.undrain else "")
    return f"bringup resume {folder}{' -K' if order.asks else ''}{given}"


@contextmanager
def _reported(journal: Journal, again: str) -> Iterator[None]:
    """However it ends, the report says how far it came. What is wrong once hosts were touched is no UsageError."""
    try:
        try:
            yield
        finally:
            report.write(journal.folder, journal.state())
    except (UsageError, PlayError) as problem:
        if not any(host.steps for host in journal.state().hosts.values()):
            raise
        hint = f"{problem.hint}; then go on" if problem.hint else "mend it, then go on"
        raise BringupError(f"broken off: {problem.message}", f"{hint} with: {again}") from None


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
