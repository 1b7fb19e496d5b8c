"""`bringup provision`: the playbooks on the user's hosts, with live progress and failures in plain words."""

from __future__ import annotations

import getpass
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, cast

from provision import __version__
from provision.commands import Selection, select_hosts
from provision.console import err, out, say
from provision.criteria.suggest import did_you_mean
from provision.errors import UsageError
from provision.hosts import Host
from provision.manifest import Manifest, public_host, without_secrets
from provision.plays import PLAYBOOKS, PlayEvent, PlayResult, run_play
from provision.report.text import plain
from provision.store import RunDirectory, now


@dataclass(frozen=True)
class PlayOptions:
    """How to run the playbook; Ansible's own words."""

    tags: tuple[str, ...] = ()
    extra_vars: tuple[str, ...] = ()
    check: bool = False
    diff: bool = False
    forks: int = 10
    ask_become_pass: bool = False
    host_keys: str = "strict"


def provision(selection: Selection, options: PlayOptions, *, runs: Path, as_json: bool = False) -> int:
    """Run site.yml. 0: it went through everywhere. 1: a task failed. 3: a host could not be reached."""
    check_tags(options.tags)
    hosts = select_hosts(selection)
    variables = parse_extra_vars(options.extra_vars)
    password = getpass.getpass("sudo password: ") if options.ask_become_pass else None
    run = RunDirectory.create(runs, _manifest(selection, options, hosts))
    inventory: Sequence[Host] | Sequence[Path] = [Path(one) for one in selection.inventories] or hosts
    with _progress(len(hosts), show_diff=options.diff) as tell:
        result = run_play(
            "site.yml",
            inventory,
            artifact_dir=run.path / "plays",
            limit=",".join(host.name for host in hosts) if selection.inventories else "",
            extra_vars=variables,
            tags=options.tags,
            check=options.check,
            diff=options.diff,
            forks=options.forks,
            host_keys=cast(Literal["strict", "accept-new"], options.host_keys),
            become_password=password,
            on_event=tell,
        )
    if as_json:
        sys.stdout.write(json.dumps(_as_data(result), indent=1) + "\n")
    else:
        _show(result)
    say(f"events: {result.events_path}")
    return _exit_code(result)


def check_tags(tags: Sequence[str]) -> None:
    """Refuse a tag that no role has: Ansible would run preflight alone and call it a success. Raises UsageError."""
    known = {path.name for path in (PLAYBOOKS / "roles").iterdir() if path.is_dir()} | {"all"}
    for tag in (one for text in tags for one in text.split(",")):
        if tag not in known:
            raise UsageError(
                f'no role has the tag "{tag:.80}"{did_you_mean(tag, known)}', f"tags: {', '.join(sorted(known))}"
            )


def parse_extra_vars(texts: Sequence[str]) -> dict[str, object]:
    """KEY=VALUE (the value as YAML reads it), or @file.yml. Raises UsageError."""
    import yaml  # noqa: PLC0415 - comes with ansible-core; only this option needs it

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


def _manifest(selection: Selection, options: PlayOptions, hosts: Sequence[Host]) -> Manifest:
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
        settings={"host_keys": options.host_keys, "check": str(options.check), "forks": str(options.forks)},
    )


@contextmanager
def _progress(hosts: int, *, show_diff: bool) -> Iterator[Callable[[PlayEvent], None]]:
    """On a terminal the task that each host is at; elsewhere a line for what changed or failed."""
    console = err()
    began = time.monotonic()

    def line(event: PlayEvent) -> None:
        if event.kind in ("changed", "failed", "unreachable", "ignored", "warning"):
            where = f"{event.role}: {event.task}" if event.role else event.task
            what = f" {event.message}" if event.kind != "changed" and event.message else ""
            text = f"{time.monotonic() - began:6.1f} s  {event.kind:<11} {event.host}  {where}{what}"
            console.print(plain(text), markup=False, soft_wrap=True)
        if show_diff and event.diff:
            console.print(plain(event.diff, lines=True), markup=False, soft_wrap=True)

    if not sys.stderr.isatty():
        yield line
        return
    with console.status(f"{hosts} host{'s' if hosts != 1 else ''}: starting Ansible") as status:
        at: dict[str, str] = {}

        def both(event: PlayEvent) -> None:
            line(event)
            if event.kind == "start":
                at[event.host] = f"{event.role}: {event.task}" if event.role else event.task
            shown = list(at.items())[-4:]
            status.update(
                _escaped("  ".join(f"{host}: {task}" for host, task in shown))[: os.get_terminal_size().columns - 4]
            )

        yield both


def _escaped(text: str) -> str:
    from rich.markup import escape  # noqa: PLC0415 - only on a terminal

    return escape(plain(text))


def _show(result: PlayResult) -> None:
    from rich.table import Table  # noqa: PLC0415 - only where there is something to show

    table = Table(title=f"{result.playbook}{' (check mode: nothing was changed)' if result.check else ''}")
    table.add_column("host")
    for name in ("ok", "changed", "skipped", "failed", "unreachable"):
        table.add_column(name, justify="right")
    for host in result.hosts.values():
        counts = (host.ok, host.changed, host.skipped, host.failed, host.unreachable)
        table.add_row(_escaped(host.host), *(str(count) for count in counts))
    out().print(table)
    for failure in result.failures:
        say(failure.sentence())
        if failure.hint:
            say(f"  next: {failure.hint}")


def _as_data(result: PlayResult) -> Mapping[str, object]:
    return {
        "playbook": result.playbook,
        "status": result.status,
        "check": result.check,
        "changed": result.changed,
        "duration_s": round(result.duration_s, 3),
        "hosts": {name: asdict(host) for name, host in result.hosts.items()},
    }


def _exit_code(result: PlayResult) -> int:
    if result.ok:
        return 0
    unreachable = any(host.unreachable for host in result.hosts.values())
    failed = any(host.failed for host in result.hosts.values())
    return 1 if failed or (result.status == "failed" and not unreachable) else 3
