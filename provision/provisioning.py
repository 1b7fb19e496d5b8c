"""`bringup provision`: survey, plan, then the playbook on the hosts that nothing stands in the way of."""

from __future__ import annotations

import getpass
import json
import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Literal, cast

from provision import __version__
from provision.bundle import Bundle
from provision.commands import Selection, end_now, select_hosts
from provision.console import out, say
from provision.errors import RunDirectoryError
from provision.host_plan import as_json as plan_json
from provision.host_plan.model import HostPlan
from provision.hosts import Host
from provision.manifest import Manifest, public_host, without_secrets
from provision.planning import plan_of_run, prepare, survey
from provision.plays import Late, PlayEvent, PlayResult, run_play
from provision.plays.view import Watcher, as_data, show_result, watching
from provision.plays.words import check_tags, parse_extra_vars
from provision.profile import Profile, load_profile
from provision.store import RunDirectory, now
from validators.schema import CheckInfo

BOOTSTRAP = ("preflight", "host_python")
"""What a host without Python gets before it can be surveyed."""


@dataclass(frozen=True)
class PlayOptions:
    """How to run the playbook; Ansible's own words. `reboot`: hosts that need it, one after the other."""

    tags: tuple[str, ...] = ()
    extra_vars: tuple[str, ...] = ()
    check: bool = False
    diff: bool = False
    forks: int = 10
    ask_become_pass: bool = False
    host_keys: str = "strict"
    reboot: bool = False


@dataclass
class _Work:
    """One command: what all its plays have in common, and the plans once they are made."""

    selection: Selection
    options: PlayOptions
    wanted: Profile
    hosts: tuple[Host, ...]
    variables: Mapping[str, object]
    password: str | None
    run: RunDirectory
    plans: tuple[HostPlan, ...] = ()

    def play(self, decide: Callable[[], Late | None], tags: Sequence[str]) -> PlayResult:
        """site.yml on the hosts that `decide` says while Ansible starts. Ansible reads inventories itself."""
        inventory: Sequence[Host] | Sequence[Path] = [Path(one) for one in self.selection.inventories] or self.hosts
        with ExitStack() as stack:
            seen: list[Watcher] = []

            def late() -> Late | None:
                found = decide()
                shown = len(found.hosts) if found else 0
                seen.append(stack.enter_context(watching(shown, show_diff=self.options.diff)))
                return found

            def event(one: PlayEvent) -> None:
                seen[0].event(one)

            def tick() -> None:
                seen[0].tick()

            return run_play(
                "site.yml",
                inventory,
                artifact_dir=self.run.path / "plays",
                extra_vars=self.variables,
                tags=tags,
                check=self.options.check,
                diff=self.options.diff,
                forks=self.options.forks,
                host_keys=self.host_keys,
                become_password=self.password,
                on_event=event,
                on_tick=tick,
                late=late,
            )

    @property
    def host_keys(self) -> Literal["strict", "accept-new"]:
        """Whether unknown host keys are taken."""
        return cast(Literal["strict", "accept-new"], self.options.host_keys)

    def ready(self) -> list[HostPlan]:
        """The plans that nothing is in the way of."""
        return [plan for plan in self.plans if not plan.failure and not plan.blockers]


def provision(
    selection: Selection,
    options: PlayOptions,
    *,
    profile: str = "standard",
    runs: Path,
    as_json: bool = False,
) -> int:
    """Plan each host by the profile and run site.yml where nothing is in the way.

    0: it went through everywhere. 1: a task failed, or a host was blocked. 3: a host could not be reached or read.
    """
    check_tags(options.tags)
    wanted = load_profile(profile)
    variables = parse_extra_vars(options.extra_vars)
    with ThreadPoolExecutor(1) as helper:  # Ansible reads inventories in a child: time to use meanwhile
        preparing = helper.submit(_prepare)
        hosts = select_hosts(selection)
        prepared = preparing.result()
    password = getpass.getpass("sudo password: ") if options.ask_become_pass else None
    run = RunDirectory.create(runs, _manifest(selection, options, hosts, wanted))
    work = _Work(selection, options, wanted, hosts, variables, password, run)

    def decide() -> Late | None:
        work.plans = _plans(work, prepared)
        _keep(run, plan_json.render(work.plans, wanted))
        if not as_json:
            _tell(work.plans, wanted, check=options.check)
        given: dict[str, object] = {"bringup_plan": {plan.host: dict(plan.variables) for plan in work.ready()}}
        if options.reboot:
            given["bringup_reboot"] = True
        return Late([plan.host for plan in work.ready()], given) if work.ready() else None

    try:
        result = work.play(decide, options.tags)
    except KeyboardInterrupt:
        if work.plans:
            raise
        say("interrupted before the first host was provisioned")
        end_now()
    if as_json:
        body = {**(as_data(result) if work.ready() else {}), "plans": [plan_json.as_data(plan) for plan in work.plans]}
        sys.stdout.write(json.dumps(body, indent=1) + "\n")
    elif work.ready():
        show_result(result)
        for text in left_out(work.plans):  # again: what was said before the play is far above by now
            say(text)
    say(f"plan and events: {run.path}")
    return exit_code(work.plans, result if work.ready() else None)


def _prepare() -> tuple[Bundle, tuple[CheckInfo, ...]]:
    import_module("ansible_runner.config.runner")
    return prepare()


def _plans(work: _Work, prepared: tuple[Bundle, tuple[CheckInfo, ...]]) -> tuple[HostPlan, ...]:
    """Plan every host; one that has no Python gets it first, since nothing can look at it without."""

    def look(hosts: Sequence[Host]) -> tuple[HostPlan, ...]:
        runs = survey(hosts, host_keys=work.host_keys, prepared=prepared)
        return tuple(plan_of_run(one, work.wanted, today=now()[:10]) for one in runs)

    plans = look(work.hosts)
    bare = [plan.host for plan in plans if without_python(plan)]
    if not bare:
        return plans
    say(f"{', '.join(bare)}: no python3 there; it is installed before the survey")
    result = work.play(lambda: Late(bare), BOOTSTRAP)
    good = {name for name, host in result.hosts.items() if host.good}
    again = [host for host in work.hosts if host.name in good and host.name in bare]
    for failure in result.failures:
        say(failure.sentence())
    if work.options.check or not again:
        return plans
    later = {plan.host: plan for plan in look(again)}
    return tuple(later.get(plan.host, plan) for plan in plans)


def without_python(plan: HostPlan) -> bool:
    """Whether a host could not be read because it has no python3 (provision.remote.start says it so)."""
    return ": no python3 on the host" in plan.failure


def left_out(plans: Sequence[HostPlan]) -> Iterator[str]:
    """A sentence for each host that is not touched, and the next step."""
    for plan in plans:
        if plan.failure:
            yield f"{plan.host}: not touched, since it could not be read: {plan.failure.removeprefix(f'{plan.host}: ')}"
            if plan.hint:
                yield f"  next: {plan.hint}"
        for blocker in plan.blockers:
            yield f"{plan.host}: not touched: {blocker.what}"
            yield f"  next: {blocker.next_step}"


def _tell(plans: Sequence[HostPlan], wanted: Profile, *, check: bool) -> None:
    """Under --check the whole plan; else a line or two a host."""
    if check:
        from provision.host_plan.as_table import show  # noqa: PLC0415 - Rich is loaded where it is used

        show(plans, wanted, out())
        return
    for text in left_out(plans):
        say(text)
    for plan in plans:
        if plan.failure or plan.blockers:
            continue
        for warning in plan.warnings:
            say(f"{plan.host}: {warning}")
        if plan.changes:
            words = [
                f"{one.kind} {one.what.replace('_', ' ')}{f' {one.then}' if one.then else ''}" for one in plan.changes
            ]
            more = f" and {len(words) - 8} more" if len(words) > 8 else ""
            say(f"{plan.host}: {', '.join(words[:8])}{more}{'; needs a reboot' if plan.reboot else ''}")


def _keep(run: RunDirectory, text: str) -> None:
    path = run.path / "plan.json"
    try:
        path.touch(mode=0o600)
        path.write_text(text, encoding="utf-8")
    except OSError as problem:
        raise RunDirectoryError(f"{path} cannot be written: {problem.strerror}", "is the disk full?") from None


def _manifest(selection: Selection, options: PlayOptions, hosts: Sequence[Host], wanted: Profile) -> Manifest:
    return Manifest(
        version=__version__,
        created=now(),
        python=platform.python_version(),
        command=without_secrets(["bringup", *sys.argv[1:]]),
        hosts=tuple(public_host(host) for host in hosts),
        catalogue=(),
        plans={},
        criteria=(),
        selection=(*selection.inventories, *selection.hosts, *((selection.limit,) if selection.limit else ())),
        settings={
            "profile": wanted.name,
            "host_keys": options.host_keys,
            "check": str(options.check),
            "reboot": str(options.reboot),
            "forks": str(options.forks),
        },
    )


def exit_code(plans: Sequence[HostPlan], result: PlayResult | None) -> int:
    """What failed or is blocked goes before what could not be reached, as everywhere."""
    hosts = result.hosts.values() if result else ()
    unreachable = any(host.unreachable for host in hosts) or any(plan.failure for plan in plans)
    if any(host.failed for host in hosts) or any(plan.blockers for plan in plans):
        return 1
    if unreachable:
        return 3
    if result is None or result.ok:
        return 0
    return 1 if result.status == "failed" else 3
