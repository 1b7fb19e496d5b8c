"""`bringup plan`: what provisioning would do to each host, read-only and without root."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Literal

from provision.bundle import Bundle, build_bundle
from provision.catalogue import load_catalogue
from provision.commands import Selection, end_now, select_hosts
from provision.compat.lookup import machine_for
from provision.console import HostProgress, host_progress, out, say
from provision.errors import UsageError
from provision.host_plan.as_json import render
from provision.host_plan.machine import facts_of
from provision.host_plan.make import plan_of_facts, plan_of_machine
from provision.host_plan.model import HostPlan
from provision.hosts import Host
from provision.measuring import run_jobs
from provision.profile import Profile, load_profile
from provision.remote import HostRun, Job
from provision.request import Choice, make_plan
from validators.schema import ERROR, HOST, CheckInfo, Hello, Outcome, Plan, Record

SURVEY = ("system", "software", "installation")
"""The checks that a plan is made from: no root, no driver, nothing changed."""
QUIET_S = 2.0
"""Shorter than this, nothing is said about progress."""


def survey(
    hosts: Sequence[Host],
    *,
    host_keys: Literal["strict", "accept-new"] = "strict",
    known_hosts: Path | None = None,
    workers: int = 16,
    prepared: tuple[Bundle, tuple[CheckInfo, ...]] | None = None,
) -> tuple[HostRun, ...]:
    """Run the checks of SURVEY on each host, in the order given. What went wrong is in a run's `failure`."""
    bundle, catalogue = prepared or prepare()
    found: dict[str, HostRun] = {}

    def keep(run: HostRun) -> None:
        found[run.host] = run

    jobs = [
        (host, Job(bundle, _questions(host, catalogue), host_keys=host_keys, known_hosts=known_hosts)) for host in hosts
    ]
    with _progress(len(hosts)) as progress:
        run_jobs(jobs, workers=workers, progress=progress, keep=keep)
    return tuple(found[host.name] for host in hosts)


def prepare() -> tuple[Bundle, tuple[CheckInfo, ...]]:
    """The bundle and what it can check; SSH is loaded on the way, once for all hosts."""
    import_module("provision.transport.ssh")
    bundle = build_bundle()
    return bundle, load_catalogue(bundle)


def _questions(host: Host, catalogue: Sequence[CheckInfo]) -> Plan:
    """What is asked of a host: these checks alone, whatever its inventory says of validation."""
    variables = {name: value for name, value in host.variables.items() if name not in ("bringup_only", "bringup_skip")}
    made = make_plan(replace(host, variables=variables), catalogue, Choice(only=SURVEY))
    return replace(made, checks=tuple(request for request in made.checks if request.name in SURVEY))


def plan_hosts(
    hosts: Selection | Sequence[Host],
    profile: Profile,
    *,
    host_keys: Literal["strict", "accept-new"] = "strict",
    known_hosts: Path | None = None,
    workers: int = 16,
    today: str = "",
) -> tuple[HostPlan, ...]:
    """Survey the hosts and plan each, in their order. A host that could not be read has `failure` and no variables.

    `today`: "2026-11-21"; empty: this machine's date (UTC). Raises InventoryError and UsageError for a Selection.
    """
    with ThreadPoolExecutor(1) as helper:  # Ansible reads inventories in a child: time to use meanwhile
        preparing = helper.submit(prepare)
        chosen = select_hosts(hosts) if isinstance(hosts, Selection) else hosts
        prepared = preparing.result()
    runs = survey(chosen, host_keys=host_keys, known_hosts=known_hosts, workers=workers, prepared=prepared)
    day = today or datetime.now(UTC).date().isoformat()
    return tuple(plan_of_run(run, profile, today=day) for run in runs)


def plan_of_run(run: HostRun, profile: Profile, *, today: str = "") -> HostPlan:
    """The plan from what one host answered."""
    if run.failure:
        return HostPlan(host=run.host, failure=run.failure.message, hint=run.failure.hint)
    crashed = next((one for one in _outcomes(run.records) if one.status == ERROR), None)
    if crashed:
        return HostPlan(
            host=run.host,
            failure=f"{run.host}: the check {crashed.check} did not end: {crashed.detail}",
            hint=f"bringup validate {run.host} --only {crashed.check} says more",
        )
    return plan_of_facts(run.host, facts_of(run.records), profile, today=today, skew_s=clock_skew(run))


def _outcomes(records: Sequence[Record]) -> Iterator[Outcome]:
    return (one for one in records if isinstance(one, Outcome) and one.subject == HOST)


def clock_skew(run: HostRun) -> float | None:
    """The host's clock minus this machine's, in seconds, within the time that `hello` took; None: no hello."""
    hello = next((one for one in run.records if isinstance(one, Hello)), None)
    if hello is None or "start" not in run.timings:
        return None
    return hello.time_unix - (run.started_unix + run.timings.get("connect", 0.0) + run.timings["start"])


def plan(
    selection: Selection,
    *,
    profile: str = "standard",
    gpu: str = "",
    os: str = "",
    host_keys: Literal["strict", "accept-new"] = "strict",
    workers: int = 16,
    as_json: bool = False,
) -> int:
    """`bringup plan`. 0: nothing blocks. 1: something blocks. 3: a host could not be read, and none is blocked."""
    wanted = load_profile(profile)
    if gpu or os:
        if not (gpu and os):
            raise UsageError("--gpu and --os go together", 'bringup plan --gpu "GTX 1080 Ti" --os ubuntu-24.04')
        if selection.hosts or selection.inventories or selection.limit:
            raise UsageError("--gpu and --os ask without a host", "leave the hosts, -i and --limit out")
        plans: tuple[HostPlan, ...] = (plan_of_machine(f"{gpu} on {os}", machine_for(gpu, os), wanted, today=_today()),)
    else:
        try:
            plans = plan_hosts(selection, wanted, host_keys=host_keys, workers=workers)
        except KeyboardInterrupt:
            say("interrupted: nothing was changed on any host")
            end_now()
    if as_json:
        sys.stdout.write(render(plans, wanted))
    else:
        from provision.host_plan.as_table import show  # noqa: PLC0415 - Rich is loaded where it is used

        show(plans, wanted, out())
    return exit_code(plans)


def exit_code(plans: Sequence[HostPlan]) -> int:
    """What is known to block goes before what could not be read, as everywhere."""
    if any(one.blockers for one in plans):
        return 1
    return 3 if any(one.failure for one in plans) else 0


def _today() -> str:
    return datetime.now(UTC).date().isoformat()


class _Late:
    """Not a terminal: a line for each host that is done, once it takes long enough to be asked about."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def record(self, host: str, record: Record) -> None:
        pass

    def done(self, host: str, headline: str) -> None:
        if time.monotonic() - self._began > QUIET_S:
            say(f"{host}: {headline}")


@contextmanager
def _progress(hosts: int) -> Iterator[HostProgress]:
    if sys.stderr.isatty():
        with host_progress(hosts, len(SURVEY)) as shown:
            yield shown
    else:
        yield _Late()
