"""validate_host(): one host measured, from connecting to the last record. Mapped over hosts by an executor."""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from provision.bundle import Bundle
from provision.errors import (
    BringupError,
    ConnectionLost,
    RemoteCommandError,
    RunDirectoryError,
    WireError,
)
from provision.hosts import Host
from provision.remote import container
from provision.remote.intake import MAX_BYTES, Answer, Greeting, Intake
from provision.remote.staging import stage
from provision.remote.start import END, LEASE_LOST, how_it_ended, last_line, not_started, python_of, start_argv
from provision.transport import connect
from provision.transport.base import Process, Stream, Transport
from validators.schema import HOST, Hello, Plan, Progress, Record, encode, encode_plan

IDLE_S = 30.0
"""Silence after which a host counts as lost; the wire says something every 5 s."""
ANSWER_S = 60
"""Silence of this side after which the host ends the run by itself: its lease runs out."""
RENEW_S = 2.0
"""How often the lease is renewed at most."""
SPARE_S = 60.0
"""Added to the plan's own deadline, which the host keeps: for connecting's end, the upload and the last records."""
TAIL_BYTES = 8 * 1024
_HINT = "look at the host's load and at dmesg there, then run it again"


@dataclass(frozen=True)
class Failure:
    """Why a host gave no complete answer: `kind` is the exception's name in provision.errors."""

    kind: str
    message: str
    hint: str = ""


@dataclass(frozen=True)
class HostRun:
    """What one host answered. Plain data: it comes back from threads, processes or a cluster.

    `failure` is set where the connection or the wire failed; the records that came before it stay.
    A run without `bye` whose failure is empty cannot exist: validate_host sets one.
    `notes`: what was unusual and did no harm, such as a home that cannot be written.
    """

    host: str
    address: str
    records: tuple[Record, ...] = ()
    failure: Failure | None = None
    started_unix: float = 0.0
    duration_s: float = 0.0
    timings: Mapping[str, float] = field(default_factory=dict)
    stderr_tail: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Job:
    """What to do on one host. Plain data.

    `records_path`: the file that takes each record as it arrives, as JSON Lines; it is appended to.
    `host_keys`, `known_hosts` and `connect_timeout_s` are those of provision.transport.connect.
    """

    bundle: Bundle
    plan: Plan
    records_path: Path | None = None
    host_keys: Literal["strict", "accept-new"] = "strict"
    known_hosts: Path | None = None
    connect_timeout_s: float = 15.0
    data: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Datasets that the plan's checks train on -> the paths of their files on this machine, if there are any."""
    held: Failure | None = None
    """Why the plan is not all that the user asked of this host: the run's failure, unless it has one of its own."""


def validate_host(host: Host, job: Job, on_record: Callable[[Record], None] | None = None) -> HostRun:
    """Measure one host. Never raises but KeyboardInterrupt: what went wrong is in `failure`.

    `on_record` is called with each record as it arrives, in the caller's thread.
    """
    run = _Run(host, job, on_record)
    failure: Failure | None = None
    try:
        run.measure()
        failure = job.held
    except BringupError as problem:
        failure = Failure(type(problem).__name__, _named(host, problem.message), problem.hint or _HINT)
    except Exception as problem:  # noqa: BLE001 - the boundary: one host's trouble is recorded as its ERROR
        text = f"{host.name}: {type(problem).__name__}: {problem}"[:1000]
        failure = Failure("HostError", text, "this is a fault of gpu-bringup itself: please report it")
    if failure and _interrupted.is_set():
        failure = Failure("ConnectionLost", f"{host.name}: interrupted by the user", "run it again")
    return run.result(failure)


_running: set[_Run] = set()
_interrupted = threading.Event()


def interrupt() -> None:
    """End every run of this process, for Ctrl-C: hosts end theirs at once, runs return with the records so far."""
    _interrupted.set()
    for run in list(_running):
        run.end()


def _named(host: Host, message: str) -> str:
    return message if host.name in message else f"{host.name}: {message}"


class _Run:
    """One call of validate_host: the state that must outlive an exception."""

    def __init__(self, host: Host, job: Job, on_record: Callable[[Record], None] | None) -> None:
        self._host = host
        self._job = job
        self._plan = job.plan
        self._on_record = on_record
        self._records: list[Record] = []
        self._notes: list[str] = []
        self._tail = b""
        self._process: Process | None = None
        self._began_unix, self._began = time.time(), time.monotonic()
        self._last_renewal = self._began
        self._timings: dict[str, float] = {
            "deadline_run": job.plan.deadline_s,
            "deadline_silence": IDLE_S,
            "deadline_lease": ANSWER_S,
            "deadline_connect": job.connect_timeout_s,
        }

    def measure(self) -> None:
        """Connect, bring the bundle, take its answer. Raises BringupError."""
        if _interrupted.is_set():
            raise ConnectionLost("not begun")
        with contextlib.ExitStack() as stack:
            sink = stack.enter_context(_sink(self._job.records_path))
            way = connect(
                self._host,
                host_keys=self._job.host_keys,
                known_hosts=self._job.known_hosts,
                timeout_s=self._job.connect_timeout_s,
            )
            transport = stack.enter_context(way)
            self._lap("connect", self._began)
            if self._host.image:
                container.pull(self._host, transport, self._tell, _interrupted.is_set)
                self._lap("pull", self._began)
            self._bring_data(transport)
            mark = f"<bringup {secrets.token_hex(8)}> "
            argv = start_argv(self._host, self._job.bundle, self._plan, mark, ANSWER_S)
            self._process = transport.start(argv)
            stack.callback(self._process.close)
            _running.add(self)
            stack.callback(_running.discard, self)
            self._talk(self._process, mark, sink)

    def _bring_data(self, transport: Transport) -> None:
        """Datasets into the host's cache, where there is one to send; a container is shown what the host has."""
        if not any(self._job.data.values()) and not (self._host.image and self._job.data):
            return
        began = time.monotonic()
        data = self._job.data
        staged = stage(self._host, transport, self._job.bundle, data, tell=self._tell, stopped=_interrupted.is_set)
        self._notes += staged.notes
        self._lap("data", began)
        if self._host.image:
            self._plan = replace(self._plan, data={**self._plan.data, **staged.folders})

    def _talk(self, process: Process, mark: str, sink: Callable[[Record], None]) -> None:
        connected = time.monotonic()
        greeting = Greeting(self._host.name, mark)
        intake = Intake(self._host.name, self._plan, self._job.bundle.sha256)
        started = False
        for data in self._stdout(process):
            if not started:
                started = any(self._greeted(process, answer, connected) for answer in greeting.feed(data))
                data = greeting.rest if started else b""  # noqa: PLW2901 - what is left of it
            for record in intake.feed(data):
                if isinstance(record, Hello):
                    self._lap("start", connected)
                self._keep(record, sink)
            if started:  # before that, an empty line would stand where the host looks for the plan
                self._renew(process)
        self._lap("run", connected)
        if not started:
            raise not_started(self._host, process.returncode, self._tail)
        if not intake.complete:
            if process.returncode == LEASE_LOST:
                raise ConnectionLost(f"{self._host.name}: the host ended the run: {last_line(self._tail)}")
            raise intake.unfinished(how_it_ended(process.returncode, self._tail))

    def _stdout(self, process: Process) -> Iterator[bytes]:
        """Its stdout; stderr is kept as a tail. Raises WireError over MAX_BYTES of both."""
        total = 0
        stream: Stream
        for stream, data in process.chunks(deadline_s=self._plan.deadline_s + SPARE_S, idle_s=IDLE_S):
            total += len(data)
            if total > MAX_BYTES:
                raise WireError(
                    f"{self._host.name}: the host sent more than {MAX_BYTES >> 20} MiB; the connection was closed",
                    "a check or a library prints without end: its last words are in the host's stderr tail",
                )
            if stream == "stderr":
                self._tail = (self._tail + data)[-TAIL_BYTES:]
            else:
                yield data

    def _greeted(self, process: Process, answer: Answer, connected: float) -> bool:
        """Deal with one answer of receive.py; true once the wire is next."""
        name = self._host.name
        if answer.status == "old":
            raise RemoteCommandError(
                f"{name}: {python_of(self._host)} there is Python {answer.python}; the checks need 3.9 or newer",
                "install one (`bringup provision` does) and set ansible_python_interpreter to its path",
            )
        if answer.status == "failed":
            raise RemoteCommandError(f"{name}: {answer.text}", "check the host's disks and memory, then run it again")
        if answer.status == "send":
            self._lap("look", connected)
            _send(process, self._job.bundle.data)
            return False
        if answer.status == "stored":
            self._lap("upload", connected + self._timings.get("look", 0.0))
            if answer.text:
                self._notes.append(answer.text)
        _send(process, encode_plan(self._plan))
        self._last_renewal = time.monotonic()
        return True

    def _renew(self, process: Process) -> None:
        now = time.monotonic()
        if now - self._last_renewal > RENEW_S:
            self._last_renewal = now
            _send(process, b"\n")

    def _keep(self, record: Record, sink: Callable[[Record], None]) -> None:
        self._records.append(record)
        sink(record)
        if self._on_record:
            self._on_record(record)

    def _tell(self, message: str) -> None:
        if self._on_record:
            self._on_record(Progress("", HOST, message))

    def _lap(self, name: str, since: float) -> None:
        self._timings[name] = round(time.monotonic() - since, 4)

    def end(self) -> None:
        """Tell the host to end the run; from any thread. The stream then ends by itself."""
        if self._process:
            _send(self._process, END)

    def result(self, failure: Failure | None) -> HostRun:
        """What came of it."""
        return HostRun(
            host=self._host.name,
            address=self._host.address,
            records=tuple(self._records),
            failure=failure,
            started_unix=self._began_unix,
            duration_s=round(time.monotonic() - self._began, 4),
            timings=dict(self._timings),
            stderr_tail=self._tail.decode("utf-8", "replace"),
            notes=tuple(self._notes),
        )


def _send(process: Process, data: bytes) -> None:
    """Write to the host. Where it has ended already, its stream tells how, better than the failed write does."""
    with contextlib.suppress(ConnectionLost):
        process.send(data)


@contextlib.contextmanager
def _sink(path: Path | None) -> Iterator[Callable[[Record], None]]:
    """A function that appends each record to the file at once: kill -9 loses at most the record in flight."""
    if path is None:
        yield lambda _record: None
        return
    try:
        file = path.open("ab", buffering=0)
    except OSError as problem:
        raise _unwritable(path, problem) from None

    def write(record: Record) -> None:
        try:
            file.write(encode(record))
        except OSError as problem:
            raise _unwritable(path, problem) from None

    with file:
        yield write


def _unwritable(path: Path, problem: OSError) -> RunDirectoryError:
    return RunDirectoryError(
        f"{path} cannot be written: {problem.strerror}", "free space, or choose another folder: --runs DIR"
    )
