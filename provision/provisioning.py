"""`bringup provision`: survey, plan, then the playbook on the hosts that nothing stands in the way of."""

from __future__ import annotations

import getpass
import json
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from provision import __version__
from provision.commands import Selection, end_now, select_hosts
from provision.console import out, say
from provision.criteria.suggest import did_you_mean
from provision.errors import RunDirectoryError, UsageError
from provision.host_plan import as_json as plan_json
from provision.host_plan.model import HostPlan
from provision.hosts import Host
from provision.manifest import Manifest, public_host, without_secrets
from provision.planning import plan_hosts
from provision.plays import PlayResult, playbook_path, run_play
from provision.plays.view import as_data, show_result, watching
from provision.profile import Profile, load_profile
from provision.store import RunDirectory, now

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


@dataclass(frozen=True)
class _Work:
    """What every play of one command has in common."""

    selection: Selection
    options: PlayOptions
    hosts: tuple[Host, ...]
    variables: Mapping[str, object]
    password: str | None
    run: RunDirectory

    def play(self, names: Sequence[str], variables: Mapping[str, object], tags: Sequence[str]) -> PlayResult:
        """site.yml on these hosts. Where inventories are given, Ansible reads them itself, vaults and all."""
        chosen = [host for host in self.hosts if host.name in set(names)]
        inventory: Sequence[Host] | Sequence[Path] = [Path(one) for one in self.selection.inventories] or chosen
        with watching(len(chosen), show_diff=self.options.diff) as seen:
            return run_play(
                "site.yml",
                inventory,
                artifact_dir=self.run.path / "plays",
                limit=",".join(host.name for host in chosen) if self.selection.inventories else "",
                extra_vars={**self.variables, **variables},
                tags=tags,
                check=self.options.check,
                diff=self.options.diff,
                forks=self.options.forks,
                host_keys=self.host_keys,
                become_password=self.password,
                on_event=seen.event,
                on_tick=seen.tick,
            )

    @property
    def host_keys(self) -> Literal["strict", "accept-new"]:
        return cast(Literal["strict", "accept-new"], self.options.host_keys)


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
    hosts = select_hosts(selection)
    password = getpass.getpass("sudo password: ") if options.ask_become_pass else None
    run = RunDirectory.create(runs, _manifest(selection, options, hosts, wanted))
    work = _Work(selection, options, hosts, variables, password, run)
    plans = _plans(work, wanted)
    _keep(run, plan_json.render(plans, wanted))
    if not as_json:
        _tell(plans, wanted, check=options.check)
    ready = [plan for plan in plans if not plan.failure and not plan.blockers]
    result = None
    if ready:
        given: dict[str, object] = {"bringup_plan": {plan.host: dict(plan.variables) for plan in ready}}
        if options.reboot:
            given["bringup_reboot"] = True
        result = work.play([plan.host for plan in ready], given, options.tags)
    if as_json:
        body = {**(as_data(result) if result else {}), "plans": [plan_json.as_data(plan) for plan in plans]}
        sys.stdout.write(json.dumps(body, indent=1) + "\n")
    elif result is not None:
        show_result(result)
        for text in left_out(plans):  # again: what was said before the play is far above by now
            say(text)
    say(f"plan and events: {run.path}")
    return exit_code(plans, result)


def _plans(work: _Work, wanted: Profile) -> tuple[HostPlan, ...]:
    """Plan every host; one that has no Python gets it first, since nothing can look at it without."""
    try:
        plans = plan_hosts(work.hosts, wanted, host_keys=work.host_keys)
    except KeyboardInterrupt:
        say("interrupted: nothing was changed on any host")
        end_now()
    bare = [plan.host for plan in plans if without_python(plan)]
    if not bare:
        return plans
    say(f"{', '.join(bare)}: no python3 there; it is installed before the survey")
    result = work.play(bare, {}, BOOTSTRAP)
    good = {name for name, host in result.hosts.items() if host.good}
    again = [host for host in work.hosts if host.name in good and host.name in bare]
    if work.options.check or not again:
        show_result(result)
        return tuple(plans)
    later = {plan.host: plan for plan in plan_hosts(again, wanted, host_keys=work.host_keys)}
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


def check_tags(tags: Sequence[str]) -> None:
    """Refuse a tag that no role has: Ansible would run preflight alone and call it a success. Raises UsageError."""
    known = _tags() if tags else set()
    for tag in (one for text in tags for one in text.split(",")):
        if tag not in known:
            raise UsageError(
                f'no role has the tag "{tag:.80}"{did_you_mean(tag, known)}', f"tags: {', '.join(sorted(known))}"
            )


def _tags() -> set[str]:
    """The tags that site.yml has, of roles and tasks."""
    import yaml  # noqa: PLC0415 - comes with ansible-core; only some options need it

    found = {"all"}
    for play in yaml.safe_load(playbook_path("site.yml").read_text(encoding="utf-8")):
        for entry in (*play.get("roles", ()), *play.get("tasks", ())):
            tags = entry.get("tags", ())
            found |= {tags} if isinstance(tags, str) else set(tags)
    return found - {"always", "never"}


def parse_extra_vars(texts: Sequence[str]) -> dict[str, object]:
    """KEY=VALUE (the value as YAML reads it), or @file.yml. Raises UsageError."""
    import yaml  # noqa: PLC0415 - comes with ansible-core; only some options need it

    found: dict[str, object] = {}
    for text in texts:
        try:
            if text.startswith("@"):
                body = yaml.safe_load(Path(text[1:]).read_text(encoding="utf-8")) or {}
                if not isinstance(body, dict):
                    raise UsageError(f"{text[1:]} does not hold variables", "a YAML mapping: name: value")
                found.update({str(name): value for name, value in body.items()})
                continue
            name, equals, value = text.partition("=")
            if not equals or not name.isidentifier():
                raise UsageError(f'"{text}" is not KEY=VALUE', "-e docker_source=distro, or -e @vars.yml")
            found[name] = yaml.safe_load(value)
        except (OSError, UnicodeDecodeError) as problem:
            raise UsageError(f"{text[1:]} cannot be read: {problem}", "name a YAML file: -e @vars.yml") from None
        except yaml.YAMLError as problem:
            raise UsageError(f"{text[:60]} is not YAML: {str(problem)[:300]}") from None
    return found


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
