"""What each command does, from the user's words to an exit code. cli/ parses, this calls, the rest works."""

from __future__ import annotations

import os
import platform
import shutil
import signal
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib import import_module
from io import TextIOWrapper
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, NoReturn, cast

from provision import __version__
from provision.between import plan_between
from provision.bundle import Bundle, build_bundle
from provision.catalogue import load_catalogue
from provision.console import echo_on, host_progress, out, say
from provision.criteria import Criteria, load
from provision.criteria.suggest import did_you_mean
from provision.data import Offers, datasets, fetch, look, offers
from provision.errors import UsageError
from provision.hosts import Host, local_host, named_host, read_inventory
from provision.manifest import Manifest, public_host, without_secrets
from provision.measuring import run_jobs
from provision.remote import HostRun, Job
from provision.remote.container import host_of, in_image
from provision.remote.held import against_loads, without_loads
from provision.report import FORMATS, render
from provision.report.model import HostReport, Report
from provision.report.terminal import render_chain, render_terminal
from provision.report.text import plain
from provision.request import Choice, in_container, left_out, make_plan, narrowed, parse_duration, parse_params
from provision.store import RunDirectory, now, rejudge
from provision.verdict import exit_code
from validators.schema import CheckInfo

HostKeys = Literal["strict", "accept-new"]
DOCTOR_CHECKS = ("system", "software", "compute_capability", "gpu_health", "preflight")
"""What the chain of `bringup doctor` is walked from."""


@dataclass(frozen=True)
class Selection:
    """The hosts that the user means: inventories with a pattern, or names without an inventory."""

    inventories: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    limit: str = ""


@dataclass(frozen=True)
class CheckOptions:
    """How to measure; see Choice for the first five."""

    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    level: int | None = None
    device: str = ""
    params: tuple[str, ...] = ()
    timeout_s: float = 0.0
    workers: int = 16
    host_keys: str = "strict"
    image: str = ""
    """Measure in a container of this image, too, after the host itself."""
    share: bool = False
    duration: str = ""
    data: Path | None = None
    """The folder on this machine that holds what checks train on; None: what is in the cache."""
    between_hosts: bool = False
    """Measure the network between the hosts, too; all of them run at once."""


def select_hosts(selection: Selection) -> tuple[Host, ...]:
    """The hosts. Raises InventoryError, UsageError."""
    if selection.inventories:
        pattern = selection.limit or ",".join(selection.hosts)
        if selection.limit and selection.hosts:
            raise UsageError("hosts are named twice", "give HOST, or --limit PATTERN")
        return read_inventory(selection.inventories, pattern)
    if selection.limit:
        raise UsageError("--limit needs an inventory", "add -i inventory.ini")
    if not selection.hosts:
        raise UsageError("no hosts", "bringup COMMAND localhost, or bringup COMMAND -i inventory.ini")
    hosts = [local_host() if text == "localhost" else named_host(text) for text in dict.fromkeys(selection.hosts)]
    names = [host.name for host in hosts]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UsageError(
            f'two of the hosts are called "{twice[0]}": their answers could not be told apart',
            "name them in an inventory: box-a ansible_host=... ansible_port=...",
        )
    return tuple(hosts)


def validate(
    selection: Selection,
    options: CheckOptions,
    *,
    criteria: Sequence[Path] = (),
    runs: Path = Path("runs"),
    strict: bool = False,
    as_json: bool = False,
) -> int:
    """Measure, judge, report. The run directory keeps everything, also where it is interrupted."""
    run = _measure(selection, options, criteria, runs)
    try:
        report = rejudge(run)
        for format, name in FORMATS.items():
            run.write_report(name.removeprefix("report."), render(report, format))
    except KeyboardInterrupt:
        say(f"interrupted; every host was measured: bringup report {run.path}")
        raise
    if as_json:
        sys.stdout.write(render(report, "json"))
    else:
        render_terminal(report, out())
    say(f"report: {run.path / FORMATS['html']}")
    return exit_code(report, strict=strict)


def doctor(selection: Selection, options: CheckOptions, *, as_json: bool = False) -> int:
    """Measure what the chain needs, and say which link is the first that does not hold."""
    with TemporaryDirectory(prefix="bringup-") as folder:
        report = rejudge(_measure(selection, replace(options, only=DOCTOR_CHECKS), (), Path(folder), keep=False))
    if as_json:
        sys.stdout.write(render(report, "json"))
    else:
        console = out()
        for host in report.hosts:
            if len(report.hosts) > 1:
                console.print(f"\n{plain(host.name)}", style="bold", markup=False)
            console.print(render_chain(host))
    return _exit_code_of_chains(report.hosts)


def _exit_code_of_chains(hosts: Iterable[HostReport]) -> int:
    """As everywhere: what is known to be broken goes before what could not be asked."""
    codes = {_chain_code(host) for host in hosts}
    return 1 if 1 in codes else max(codes)


def _chain_code(host: HostReport) -> int:
    """1: a link is broken. 3: nobody could look. 0: the chain holds."""
    broken = host.chain.broken if host.chain else None
    if host.chain is None or (broken and broken.state == "unknown"):
        return 3
    return 1 if broken else 0


def report(run: Path, format: str, output: Path | None) -> int:
    """Render a run again, by the criteria kept with it."""
    made = rejudge(RunDirectory.open(run))
    _deliver(made, format, output)
    return 0


def judge(run: Path, criteria: Sequence[Path], format: str, output: Path | None, *, strict: bool = False) -> int:
    """Judge a run by today's defaults and these files. No host is touched."""
    opened = RunDirectory.open(run)
    made = rejudge(opened, load(criteria, opened.manifest.catalogue))
    _deliver(made, format, output)
    return exit_code(made, strict=strict)


def checks(name: str, *, as_json: bool = False) -> int:
    """The catalogue, as the bundle tells it."""
    from provision.catalogue_view import as_table, as_text, find  # noqa: PLC0415 - the tables are this command's alone

    catalogue = load_catalogue(build_bundle())
    if as_json:
        from validators.schema import encode_catalogue  # noqa: PLC0415 - see above

        sys.stdout.write(encode_catalogue((find(catalogue, name),) if name else catalogue) + "\n")
    elif name:
        out().print(as_text(find(catalogue, name)), markup=False)
    else:
        out().print(as_table(catalogue))
    return 0


def data(what: str, names: Sequence[str]) -> int:
    """Say which datasets are in this machine's cache, or download them into it."""
    bundle = build_bundle()
    known = datasets(load_catalogue(bundle))
    for name in names:
        if name not in known:
            raise UsageError(
                f'no dataset is named "{name}"{did_you_mean(name, known)}', f"there are {', '.join(known)}"
            )
    complete = True
    for name in names or known:
        found = fetch(bundle, name) if what == "fetch" else look(bundle, name)
        place = plain(found.folder or found.trouble or "not here; `bringup data fetch` downloads it")
        out().print(f"{name} ({sum(found.files.values()) / 1e6:.0f} MB): {place}", markup=False, soft_wrap=True)
        complete = complete and bool(found.folder)
    return 0 if complete else 1


def _deliver(made: Report, format: str, output: Path | None) -> None:
    if format == "terminal":
        if output is not None:
            raise UsageError("the terminal format is for the terminal", "--format md -o FILE, or html, json, junit")
        render_terminal(made, out())
        return
    text = render(made, format)
    if output is None:
        if isinstance(sys.stdout, TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8")  # as the file would be, whatever the terminal can show
        sys.stdout.write(text)
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as problem:
        raise UsageError(f"{output} cannot be written: {problem.strerror}", "name another file: -o FILE") from None
    say(f"written: {output}")


def _measure(
    selection: Selection, options: CheckOptions, criteria: Sequence[Path], runs: Path, *, keep: bool = True
) -> RunDirectory:
    """A run below `runs`. Every mistake of the user's comes to light before the first host is touched."""
    with ThreadPoolExecutor(1) as helper:  # Ansible reads inventories in a child: half a second to use meanwhile
        preparing = helper.submit(_prepare, criteria)
        hosts = select_hosts(selection)  # in this thread, which Ctrl-C reaches
        bundle, catalogue, thresholds = preparing.result()
    thresholds.for_hosts(hosts, catalogue)
    choice = Choice(
        only=options.only,
        skip=options.skip,
        level=options.level,
        device=options.device,
        timeout_s=options.timeout_s,
        params=parse_params(options.params),
        share=options.share,
        duration_s=parse_duration(options.duration) if options.duration else 0.0,
    )
    plans = {host.name: make_plan(host, catalogue, choice) for host in hosts}
    if options.between_hosts:
        plans = plan_between(hosts, plans, catalogue)
        options = replace(options, workers=max(options.workers, len(hosts)))  # they wait for each other
    if options.image:
        containers = tuple(in_image(host, options.image) for host in hosts)
        plans |= {one.name: in_container(make_plan(one, catalogue, choice), catalogue) for one in containers}
        hosts = (*hosts, *containers)
    data = offers(bundle, plans.values(), catalogue, options.data)
    plans = {name: data.plan(plan) for name, plan in plans.items()}
    manifest = Manifest(
        version=__version__,
        created=now(),
        python=platform.python_version(),
        command=without_secrets(["bringup", *sys.argv[1:]]),
        hosts=tuple(public_host(host) for host in hosts),
        catalogue=catalogue,
        plans=plans,
        criteria=thresholds.files,
        bundle=bundle.sha256,
        selection=(*selection.inventories, *selection.hosts, *((selection.limit,) if selection.limit else ())),
        notes=(
            *left_out(hosts, plans, catalogue, choice),
            *(note for host in hosts for note in narrowed(host, choice)),
            *data.notes,
        ),
        settings={"host_keys": options.host_keys, "workers": str(options.workers)},
    )
    run = RunDirectory.create(runs, manifest)
    _run_hosts(hosts, run, options, data, keep=keep)
    return run


def _prepare(criteria: Sequence[Path]) -> tuple[Bundle, tuple[CheckInfo, ...], Criteria]:
    import_module("provision.transport.ssh")
    import_module("provision.report.as_html")
    bundle = build_bundle()
    catalogue = load_catalogue(bundle)
    return bundle, catalogue, load(criteria, catalogue)


def _run_hosts(hosts: Sequence[Host], run: RunDirectory, options: CheckOptions, data: Offers, *, keep: bool) -> None:
    """Map validate_host over the hosts. On Ctrl-C, what has come stays; connections end, and with them the leases."""
    bundle = build_bundle()
    checks_planned = max(len(plan.checks) for plan in run.manifest.plans.values())
    with host_progress(len(hosts), checks_planned) as progress:
        jobs = [
            (
                host,
                Job(
                    bundle=bundle,
                    plan=run.manifest.plans[host.name],
                    records_path=run.records_path(host.name),
                    host_keys=cast(HostKeys, options.host_keys),
                    data=data.job(run.manifest.plans[host.name], run.manifest.catalogue),
                ),
            )
            for host in hosts
        ]
        held: dict[str, tuple[str, str]] = {}

        def keep_answer(answer: HostRun) -> None:
            run.finish_host(answer)
            held[answer.host] = against_loads(answer)

        try:
            # A container after its host: both at once would load the same GPUs, and only the host sees who uses them.
            outside = [(host, job) for host, job in jobs if not host.image]
            run_jobs(outside, workers=options.workers, progress=progress, keep=keep_answer)
            inside = [(host, without_loads(host, job, held[host_of(host)])) for host, job in jobs if host.image]
            run_jobs(inside, workers=options.workers, progress=progress, keep=run.finish_host)
        except KeyboardInterrupt:
            _leave(run, keep=keep)


def _leave(run: RunDirectory, *, keep: bool) -> None:
    """Report what was measured and go. A thread that still waits on a host cannot be joined: the process ends, and
    with it its connection; the host's lease then ends what runs there.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not leave half a report
    if keep:
        made = rejudge(run)
        for format, name in FORMATS.items():
            run.write_report(name.removeprefix("report."), render(made, format))
        say(f"interrupted; what was measured is kept: {run.path}")
    else:
        shutil.rmtree(run.path.parent, ignore_errors=True)
        say("interrupted")
    end_now()


def end_now() -> NoReturn:
    """End the process after Ctrl-C, with what was said so far: threads that wait on their hosts are not joined."""
    echo_on()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(130)
