"""The journal of an upgrade: JSON Lines in the run directory, each flushed to the disk before the next step.

What it holds is all that `bringup resume` knows: the operator's process may be killed at any line. A last line
that was cut is dropped. One process works on a run at a time: the lock goes with the process, however it ends.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import TracebackType

from provision.errors import RunDirectoryError, UsageError
from provision.store import now
from provision.typed import Misfit, fitted
from provision.upgrade.phases import OUTCOMES, PHASES, Outcome, Phase, Status, Step

NAME = "upgrade.jsonl"
RUN = ""
"""The host of an event that is about the run as a whole."""


@dataclass(frozen=True)
class Event:
    """One step. `host` empty: the run itself, whose phases are plan, stop, interrupt, resume and end.

    `status`: started, ok or failed for a phase; for the phase "end" of a host its outcome. `time`: ISO 8601, UTC.
    """

    phase: str
    status: str = ""
    host: str = RUN
    wave: int = 0
    detail: str = ""
    data: Mapping[str, object] = field(default_factory=dict)
    time: str = ""


@dataclass(frozen=True)
class HostState:
    """Where a host is. `steps` in order; a phase that was done again stands there again."""

    name: str
    wave: int = 0
    steps: tuple[Step, ...] = ()
    outcome: Outcome | None = None
    detail: str = ""

    @property
    def last(self) -> Step | None:
        """The newest step."""
        return self.steps[-1] if self.steps else None

    def data(self, phase: Phase) -> Mapping[str, object]:
        """What the newest finished step of this phase found, or nothing."""
        ended = (step for step in reversed(self.steps) if step.phase == phase and step.status != "started")
        return next((step.data for step in ended), {})

    @property
    def still_drained(self) -> bool:
        """Whether the site's command that puts it back into service failed: it serves nobody, however well it is."""
        return self.last is not None and self.last.phase == "undrain" and self.last.status == "failed"

    def failure(self) -> Step | None:
        """The step that sent the host back, or that ended it."""
        return next((step for step in self.steps if step.status == "failed"), None)


@dataclass(frozen=True)
class RunState:
    """The run as its journal tells it. `plan`: what the first event holds. `stopped`: why no more waves began."""

    plan: Mapping[str, object] = field(default_factory=dict)
    hosts: Mapping[str, HostState] = field(default_factory=dict)
    stopped: str = ""
    ended: bool = False


def state(events: Iterable[Event]) -> RunState:
    """Where every host is. Pure."""
    return _with(RunState(), events)


def _with(run: RunState, events: Iterable[Event]) -> RunState:
    hosts = dict(run.hosts)
    for event in events:
        if event.host == RUN:
            run = _of_run(run, event)
        else:
            hosts[event.host] = _of_host(hosts.get(event.host, HostState(event.host)), event)
    return replace(run, hosts=hosts)


def _of_run(run: RunState, event: Event) -> RunState:
    if event.phase == "plan":
        return replace(run, plan=event.data)
    if event.phase == "stop":
        return replace(run, stopped=event.detail)
    if event.phase == "resume":
        return replace(run, stopped="", ended=False, plan={**run.plan, **event.data})
    return replace(run, ended=run.ended or event.phase == "end")


def _of_host(before: HostState, event: Event) -> HostState:
    wave = event.wave or before.wave
    if event.phase == "end":
        outcome: Outcome = next((one for one in OUTCOMES if one == event.status), "broken")
        return replace(before, wave=wave, outcome=outcome, detail=event.detail)
    phase = next((one for one in PHASES if one == event.phase), None)
    if phase is None:  # of a newer version: nothing that this one can go on from
        return before
    last = before.last
    if event.status == "started" or last is None or last.phase != phase or last.status != "started":
        step = Step(phase, event.time)
        before = replace(before, steps=(*before.steps, step))
    else:
        step = last
    if event.status != "started":
        status: Status = "ok" if event.status == "ok" else "failed"
        step = replace(step, ended=event.time, status=status, detail=event.detail, data=event.data)
    return replace(before, wave=wave, steps=(*before.steps[:-1], step), outcome=None)


def was_cut_off(state: HostState) -> bool:
    """Whether the newest step is done again, since whoever began it was gone before its end."""
    return len(state.steps) > 1 and state.steps[-2].phase == state.steps[-1].phase


def read(folder: Path) -> tuple[Event, ...]:
    """The events of a run; a last line that was cut is left out. Raises RunDirectoryError."""
    path = folder / NAME
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as problem:
        raise RunDirectoryError(
            f"{path} cannot be read: {problem.strerror}", "a run of `bringup upgrade` is runs/<id>"
        ) from None
    found = []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            found.append(fitted(Event, json.loads(line), f"line {number}"))
        except (ValueError, Misfit, TypeError, AttributeError, RecursionError):
            raise RunDirectoryError(f"line {number} of {path} is not an event", "was the file changed?") from None
    return tuple(found)


class Journal:
    """The journal, open for writing. Nobody else has it. Raises UsageError where somebody does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / NAME
        try:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as problem:
            raise RunDirectoryError(f"{self.path} cannot be written: {problem.strerror}") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._file)
            raise UsageError(
                f"somebody is at work on {folder} already",
                "wait for that `bringup` to end, or end it; a process that is gone holds nothing",
            ) from None
        self._drop_torn_line()
        self._state = state(read(folder))

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Let go of it."""
        os.close(self._file)

    def write(self, event: Event) -> Event:
        """Add an event; it is on the disk when this returns. Raises RunDirectoryError."""
        event = replace(event, time=event.time or now())
        line = json.dumps({key: value for key, value in asdict(event).items() if value}, ensure_ascii=True) + "\n"
        data = line.encode()
        try:
            while data:
                data = data[os.write(self._file, data) :]
            os.fsync(self._file)
        except OSError as problem:
            raise RunDirectoryError(f"{self.path} cannot be written: {problem.strerror}", "is the disk full?") from None
        self._state = _with(self._state, (event,))
        return event

    def state(self) -> RunState:
        """Where every host is now."""
        return self._state

    def _drop_torn_line(self) -> None:
        size = os.fstat(self._file).st_size
        kept = self.path.read_bytes()[:size].rfind(b"\n") + 1
        if kept != size:
            os.ftruncate(self._file, kept)
