"""Runs the checks of a plan, each in a child, and gives every one exactly one outcome for the host.

Checks without load (level 1) run side by side; those with load run after them, one at a time.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from typing import Callable, Dict, List, Optional

from validators import lease
from validators.processes import ending, last_words, root_fds
from validators.schema import (
    ERROR,
    HOST,
    MAX_RECORD_BYTES,
    MAX_TEXT,
    CheckRequest,
    Measurement,
    Outcome,
    Plan,
    Progress,
    Record,
    Sample,
    SchemaError,
    decode,
    encode_plan,
)

MAX_RECORDS = 50_000
MAX_BYTES = 16 << 20
"""What one check may send in all; a check that sends more is ended."""
MAX_STDERR = 64 * 1024
"""What is passed on of one check's stderr."""
TAIL_BYTES = 16 * 1024
START_S = 30.0
"""Seconds for a child to come up and say its level."""
TRACE_S = 0.3
"""Seconds for a hung child to say where it hangs, before it is killed."""
KILL_S = 2.0
"""Seconds that SIGKILL gets. A process that is stuck inside the driver does not die; the others go on without it."""
HEARTBEAT_S = 5.0
BOOT = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); "
    "from validators.__main__ import main; sys.exit(main(sys.argv[1:]))"
)


@dataclass
class _Child:
    request: CheckRequest
    process: subprocess.Popen[bytes]
    began: float
    deadline: float
    state: str = "starting"  # then parked (a load check that waits for its turn) or running
    level: int = 0
    units: Dict[str, str] = field(default_factory=dict)
    buffer: bytearray = field(default_factory=bytearray)
    tail: bytes = b""
    records: int = 0
    received: int = 0
    warned: int = 0
    open: int = 2
    outcome: Optional[Outcome] = None
    problem: str = ""
    stopped: bool = False

    @property
    def name(self) -> str:
        return self.request.name


class Runner:
    """One plan, run once.

    `emit` takes every record but hello and bye; `root` is where children load the bundle from.
    """

    def __init__(self, plan: Plan, emit: Callable[[Record], None], family: lease.Family, root: str) -> None:
        self._plan = plan
        self._send = emit
        self._family = family
        self._root = root
        self._waiting: List[CheckRequest] = list(plan.checks)
        self._live: List[_Child] = []
        self._selector = selectors.DefaultSelector()
        self._side_by_side = min(8, 2 + (os.cpu_count() or 1))
        self._sent_at = time.monotonic()

    def run(self) -> None:
        """Run every check; returns when each has its outcome."""
        end = time.monotonic() + self._plan.deadline_s
        while self._waiting or self._live:
            self._start_and_go()
            for key, _ in self._selector.select(self._patience(end)):
                child, stream = key.data
                self._read(child, stream, key.fd)
            for child in list(self._live):
                self._look_after(child)
            if time.monotonic() > end:
                self._give_up()
            self._heartbeat()

    def _emit(self, record: Record) -> None:
        self._sent_at = time.monotonic()
        self._send(record)

    def _start_and_go(self) -> None:
        while self._waiting and sum(child.state != "parked" for child in self._live) < self._side_by_side:
            self._start(self._waiting.pop(0))
        if not self._waiting and all(child.state == "parked" for child in self._live):
            order = [request.name for request in self._plan.checks]
            for child in sorted(self._live, key=lambda child: (child.level, order.index(child.name)))[:1]:
                self._go(child)

    def _start(self, request: CheckRequest) -> None:
        argv = [sys.executable, "-I", "-S", "-c", BOOT, self._root, "child", request.name]
        began = time.monotonic()
        try:
            process = self._family.start(argv, root_fds(self._root))
        except OSError as problem:  # no memory, too many processes
            self._emit(Outcome(request.name, HOST, ERROR, f"could not be started: {problem}", 0.0))
            return
        child = _Child(request, process, began, began + START_S)
        self._live.append(child)
        assert process.stdout and process.stderr  # noqa: S101 - for mypy: start() makes them
        for pipe, stream in ((process.stdout, "records"), (process.stderr, "words")):
            os.set_blocking(pipe.fileno(), False)
            self._selector.register(pipe, selectors.EVENT_READ, (child, stream))
        self._tell(child, encode_plan(replace(self._plan, checks=(request,))))

    def _go(self, child: _Child) -> None:
        child.state = "running"
        child.began = time.monotonic()
        child.deadline = child.began + child.request.timeout_s
        self._tell(child, b"go\n")

    def _tell(self, child: _Child, line: bytes) -> None:
        assert child.process.stdin  # noqa: S101 - for mypy: start() makes it
        try:
            child.process.stdin.write(line)
        except OSError:  # it is gone; its end is dealt with where ends are
            return

    def _read(self, child: _Child, stream: str, fd: int) -> None:
        try:
            data = os.read(fd, 262144)
        except OSError:
            data = b""
        if not data:
            self._selector.unregister(fd)
            child.open -= 1
        elif stream == "words":
            self._words(child, data)
        elif not child.problem:
            self._records(child, data)

    def _words(self, child: _Child, data: bytes) -> None:
        child.tail = (child.tail + data)[-TAIL_BYTES:]
        passed = data[: max(0, MAX_STDERR - child.warned)]
        child.warned += len(passed)
        lease.write_all(2, passed)

    def _records(self, child: _Child, data: bytes) -> None:
        child.received += len(data)
        child.buffer += data
        *lines, rest = child.buffer.split(b"\n")
        child.buffer = rest
        try:
            for line in lines:
                self._line(child, bytes(line))
            if len(rest) > MAX_RECORD_BYTES:
                raise SchemaError(f"a line of more than {MAX_RECORD_BYTES} bytes")
            if child.records > MAX_RECORDS or child.received > MAX_BYTES:
                raise SchemaError(f"more than {MAX_RECORDS} records or {MAX_BYTES >> 20} MiB; the rest is not taken")
        except SchemaError as problem:
            self._stop(child, f"sent what cannot be used: {problem}")

    def _line(self, child: _Child, line: bytes) -> None:
        if child.state == "starting":
            self._header(child, line)
            return
        record = decode(line)
        child.records += 1
        if child.records > MAX_RECORDS:
            return
        if not isinstance(record, (Measurement, Progress, Sample, Outcome)):
            raise SchemaError("a record that only the runner may send")
        if record.check != child.name:
            raise SchemaError(f"a record of another check, {record.check!r:.80}")
        if isinstance(record, Measurement) and child.units.get(record.metric) != record.unit:
            declared = child.units.get(record.metric, "not declared")
            raise SchemaError(f"{record.metric!r:.80} in {record.unit}; the catalogue says: {declared}")
        if isinstance(record, Outcome) and record.subject == HOST:
            child.outcome = record  # kept back until the process has ended well
        else:
            self._emit(record)

    def _header(self, child: _Child, line: bytes) -> None:
        try:
            header = json.loads(line)
            child.level, child.units = int(header["level"]), dict(header["units"])
        except (ValueError, KeyError, TypeError):
            raise SchemaError("a first line that says no level and units") from None
        child.state = "parked"
        child.deadline = float("inf")
        if child.level <= 1:
            self._go(child)

    def _look_after(self, child: _Child) -> None:
        now = time.monotonic()
        ended = self._has_ended(child, 0.05 if not child.open else 0.0)
        if not ended and now > child.deadline:
            if child.stopped:
                self._abandon(child)
            elif child.problem:  # it had its moment to say where it hangs
                self._stop(child, child.problem)
            elif child.state == "starting":
                self._stop(child, f"did not start within {START_S:.0f} s")
            else:
                child.problem = f"timed out after {child.request.timeout_s:g} s"
                child.deadline = now + TRACE_S
                os.kill(child.process.pid, signal.SIGUSR1)
        if ended:
            self._finish(child)

    @staticmethod
    def _has_ended(child: _Child, wait_s: float) -> bool:
        """Whether its process has ended; it is not reaped, so that its id, its group's too, stays its own."""
        end = time.monotonic() + wait_s
        while os.waitid(os.P_PID, child.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            if time.monotonic() >= end:
                return False
            time.sleep(0.002)
        return True

    def _stop(self, child: _Child, problem: str) -> None:
        child.problem = child.problem or problem
        child.stopped = True
        child.deadline = time.monotonic() + KILL_S
        self._family.end(child.process.pid)

    def _abandon(self, child: _Child) -> None:
        self._drain(child)
        self._live.remove(child)
        stuck = f"; process {child.process.pid} cannot be killed, it is stuck in the kernel"
        self._close(child, child.problem + stuck + last_words(child.tail))

    def _finish(self, child: _Child) -> None:
        self._drain(child)
        self._family.end(child.process.pid)  # what it left behind in its group
        status = child.process.wait()
        for pipe in (child.process.stdin, child.process.stdout, child.process.stderr):
            if pipe:
                pipe.close()
        self._live.remove(child)
        problem = child.problem or ending(status, bytes(child.buffer))
        if problem or child.outcome is None:
            self._close(child, (problem or "ended without an outcome") + last_words(child.tail))
        else:
            self._emit(child.outcome)

    def _close(self, child: _Child, detail: str) -> None:
        spent = time.monotonic() - child.began
        self._emit(Outcome(child.name, HOST, ERROR, detail[:MAX_TEXT], spent))

    def _drain(self, child: _Child) -> None:
        """Read what lies in the pipes of a child that has ended; a process it left behind may hold them open."""
        for key in [key for key in self._selector.get_map().values() if key.data[0] is child]:
            stream = key.data[1]
            while key.fd in self._selector.get_map() and self._ready(key.fd):
                self._read(child, stream, key.fd)
            if key.fd in self._selector.get_map():
                self._selector.unregister(key.fd)

    def _ready(self, fd: int) -> bool:
        with selectors.SelectSelector() as one:
            one.register(fd, selectors.EVENT_READ)
            return bool(one.select(0))

    def _give_up(self) -> None:
        detail = f"the plan's deadline of {self._plan.deadline_s:g} s passed"
        for child in self._live:
            if not child.stopped:
                self._stop(child, detail)
        for request in self._waiting:
            self._emit(Outcome(request.name, HOST, ERROR, f"not started: {detail}", 0.0))
        self._waiting = []

    def _heartbeat(self) -> None:
        """Something to hear at least every few seconds: silence then means a lost host, not a long check."""
        running = [child for child in self._live if child.state != "parked"]
        if running and time.monotonic() - self._sent_at >= HEARTBEAT_S:
            spent = time.monotonic() - running[0].began
            self._emit(Progress(running[0].name, HOST, f"running for {spent:.0f} s"))

    def _patience(self, end: float) -> float:
        """Seconds to wait for output: until the next deadline, and short enough to see an end without output."""
        return max(0.0, min([0.2, end - time.monotonic()] + [c.deadline - time.monotonic() for c in self._live]))
