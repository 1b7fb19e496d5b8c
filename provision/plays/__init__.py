"""Run a playbook through ansible-runner: typed in, typed out, with events on the way.

What is kept (`artifact_dir`) is written here, line by line, from parsed events: ansible-runner's own files hold the
whole environment and every result, so they stay in a private directory that goes when the play ends.
"""

from __future__ import annotations

import importlib
import os
import queue
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from provision.errors import InventoryError, PlayError, UsageError
from provision.hosts import Host
from provision.plays.late import Door, Late
from provision.plays.process import end_process_tree, end_ssh_masters
from provision.plays.progress import HostResult, PlayEvent, Status, TaskFailure, clean, secrets_in
from provision.plays.record import PlayRecord, PlayResult
from provision.plays.settings import arguments, environment

__all__ = ["PLAYBOOKS", "HostResult", "Late", "PlayEvent", "PlayResult", "TaskFailure", "playbook_path", "run_play"]

PLAYBOOKS = Path(__file__).resolve().parent.parent.parent / "playbooks"
"""Beside this package in a checkout and in site-packages alike."""

BECOME_VARIABLE = "BRINGUP_BECOME_PASSWORD"
_DROPPED = (BECOME_VARIABLE,)
_ENVIRONMENT_SECRET = 8
"""Letters from which on a value of the environment counts as a secret; a "true" in every message is none."""
_GRACE_S = 8.0
"""What Ansible gets to end itself after Ctrl-C before it is killed."""


def playbook_path(name: str) -> Path:
    """Return the path of one of our playbooks by name, or of the user's own by path. Raises UsageError."""
    for path in (PLAYBOOKS / name, PLAYBOOKS / f"{name}.yml", Path(name)):
        if path.is_file():
            return path.resolve()
    known = ", ".join(sorted(path.name for path in PLAYBOOKS.glob("*.yml"))) or "none"
    raise UsageError(f"no playbook called {name}", hint=f"there are: {known}")


def run_play(
    playbook: str,
    inventory: Sequence[Host] | Sequence[Path],
    *,
    artifact_dir: Path,
    limit: str = "",
    extra_vars: Mapping[str, object] | None = None,
    tags: Sequence[str] = (),
    skip_tags: Sequence[str] = (),
    check: bool = False,
    diff: bool = False,
    forks: int = 10,
    host_keys: Literal["strict", "accept-new"] = "strict",
    known_hosts: Path | None = None,
    become_password: str | None = None,
    deadline_s: float = 2 * 3600.0,
    on_event: Callable[[PlayEvent], None] | None = None,
    on_tick: Callable[[], None] | None = None,
    late: Callable[[], Late | None] | None = None,
) -> PlayResult:
    """Run a playbook and return how it went on each host; a failed host is a result, not an exception.

    `inventory` is either paths that Ansible reads itself (group_vars, vaults and all) or hosts. `become_password`
    None means the environment's BRINGUP_BECOME_PASSWORD. `on_event` is called in the caller's thread, and `on_tick`
    there as well, twice a second while nothing happens.
    `late` is called while Ansible starts, in this thread, and says in the place of `limit` which hosts it is for, and
    more variables; None: for none, and the result is "cancelled", without hosts. What it raises ends the play.
    Raises PlayError where Ansible could not start, InventoryError where it found no host. Ctrl-C ends every process
    of the play, keeps the events so far with the status "cancelled", and goes on as KeyboardInterrupt.
    """
    book = playbook_path(playbook)
    password = os.environ.get(BECOME_VARIABLE, "") if become_password is None else become_password
    secrets = {password} | secrets_in(extra_vars or {})
    secrets |= {text for text in secrets_in(dict(os.environ)) if len(text) >= _ENVIRONMENT_SECRET}
    secrets |= {found for item in inventory if isinstance(item, Host) for found in secrets_in(item.variables)}
    private = Path(tempfile.mkdtemp(prefix="bringup-play-", dir=_short_temporary()))
    started = time.monotonic()
    try:
        words = arguments(
            private,
            inventory,
            limit=limit,
            extra_vars=extra_vars,
            tags=tags,
            skip_tags=skip_tags,
            check=check,
            diff=diff,
            forks=forks,
            ask_become=bool(password),
        )
        door = Door(private) if late is not None else None
        words += door.words if door is not None else []
        runner = _runner(private, book, words, environment(private, host_keys, known_hosts), password)
        with PlayRecord(artifact_dir, book.stem, secrets) as record:
            status: Status = "cancelled"
            try:
                status = _watch(
                    runner,
                    record,
                    on_event=on_event,
                    on_tick=on_tick,
                    deadline=started + deadline_s,
                    opening=_opening(door, late),
                )
            finally:
                hosts = record.tally.hosts
                unsaid = status == "failed" and all(host.failure is None for host in hosts.values())
                result = PlayResult(
                    book.name,
                    status,
                    hosts,
                    time.monotonic() - started,
                    check,
                    record.events_path,
                    _error(_said(private, secrets)) if unsaid else "",
                )
                record.finish(result)
        if not result.hosts and status != "cancelled":
            raise _not_started(private, book.name, limit, secrets)
        return result
    finally:
        end_ssh_masters(private / "cp")
        shutil.rmtree(private, ignore_errors=True)


def _opening(door: Door | None, late: Callable[[], Late | None] | None) -> Callable[[Callable[[], bool]], bool]:
    """What lets a started Ansible go on; False: it shall not."""

    def go_on(alive: Callable[[], bool]) -> bool:
        if door is None or late is None:
            return True
        found = late()
        if found is not None:
            door.hand_over(found, alive)
        return found is not None

    return go_on


def _short_temporary() -> str | None:
    """Return /tmp where the usual place is too long: a socket's path ends at 104 characters on some systems."""
    return "/tmp" if len(tempfile.gettempdir()) > 48 else None  # noqa: S108  mkdtemp makes its own 0700 directory there


def _runner(private: Path, book: Path, words: Sequence[str], settings: dict[str, str], password: str) -> Any:
    """Return an ansible_runner Runner. It is untyped, slow to import, and knows no way to leave a variable out."""
    try:
        config_module = importlib.import_module("ansible_runner.config.runner")
        runner_module = importlib.import_module("ansible_runner.runner")
    except ImportError as error:
        raise PlayError(f"ansible-runner cannot be imported: {error}", hint="install gpu-bringup again") from error
    config = config_module.RunnerConfig(
        str(private),
        playbook=str(book),
        envvars=settings,
        passwords={r"BECOME password.*:\s*?$": password} if password else None,
        settings={"pexpect_timeout": 1, "suppress_ansible_output": True},
        fact_cache_type="none",
        suppress_env_files=True,
        quiet=True,
    )
    config.prepare()
    for name in _DROPPED:
        config.env.pop(name, None)
    # The module, and not `ansible-playbook`: a virtual environment need not be on PATH.
    config.command = [sys.executable, "-m", "ansible", "playbook", *words, str(book)]
    return runner_module.Runner(config)


def _watch(
    runner: Any,
    record: PlayRecord,
    *,
    on_event: Callable[[PlayEvent], None] | None,
    on_tick: Callable[[], None] | None,
    deadline: float,
    opening: Callable[[Callable[[], bool]], bool],
) -> Status:
    """Run it in a thread and hand on its events in this one, so that Ctrl-C arrives between two of them."""
    events: queue.SimpleQueue[Mapping[str, object] | None] = queue.SimpleQueue()
    failures: list[BaseException] = []
    cancel = threading.Event()

    def hand_over(raw: Mapping[str, object]) -> bool:
        events.put(raw)
        return False  # ansible-runner keeps no copy

    def work() -> None:
        try:
            runner.run()
        except BaseException as error:  # noqa: BLE001  handed to the waiting thread, which raises it
            failures.append(error)
        finally:
            events.put(None)

    runner.event_handler = hand_over
    runner.cancel_callback = cancel.is_set
    thread = threading.Thread(target=work, name="play", daemon=True)
    thread.start()
    pid = 0
    status: Status | None = None
    done = False
    try:
        if not opening(thread.is_alive):
            return "cancelled"
        while not done:
            if time.monotonic() > deadline:
                status = "timeout"
                break
            try:
                raw = events.get(timeout=0.5)
            except queue.Empty:
                if on_tick is not None:
                    on_tick()
                continue
            done = raw is None
            if raw is not None:
                pid = pid or int(str(raw.get("pid") or 0))
                event = record.take(raw)
                if event is not None and on_event is not None:
                    on_event(event)
    finally:
        if not done:
            end_process_tree(pid, thread, cancel, grace_s=_GRACE_S)
            while not events.empty():
                left = events.get()
                if left is not None:
                    record.take(left)
    if failures:
        raise PlayError(f"ansible-runner broke off: {clean(failures[0])}") from failures[0]
    return status or ("successful" if runner.status == "successful" else "failed")


def _said(private: Path, secrets: set[str]) -> str:
    """Return what Ansible wrote, without secrets and empty lines."""
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in private.glob("artifacts/*/stdout")]
    said = "\n".join(texts)
    for secret in filter(None, secrets):
        said = said.replace(secret, "********")
    return "\n".join(line for line in said.splitlines() if line.strip())


def _error(said: str) -> str:
    """Return the last error in Ansible's words, or its last lines."""
    last = max(said.rfind("[ERROR]"), said.rfind("ERROR!"))
    return clean(said[last:] if last >= 0 else "\n".join(said.splitlines()[-8:]))


def _not_started(private: Path, book: str, limit: str, secrets: set[str]) -> PlayError | InventoryError:
    """Say in Ansible's own words why no host saw a task."""
    said = clean(_said(private, secrets))
    if "no hosts" in said.lower() or "inventory" in said.lower():
        limited = f" with --limit {limit}" if limit else ""
        return InventoryError(f"Ansible found no host to run {book} on{limited}: {said}", hint="check -i and --limit")
    return PlayError(f"Ansible could not run {book}: {said or 'it said nothing'}")
