"""One check, or one workload, in a process of its own."""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import signal
import sys
import threading
from typing import Callable

from validators import check as checks
from validators import lease
from validators.schema import HOST, Bye, Record, SchemaError, decode_plan, encode

MAX_PLAN_BYTES = 1 << 20
GO_WITHIN_S = 24 * 3600.0
"""A load check waits for its turn behind others; its parent's end wakes it earlier."""


def run_check(name: str) -> int:
    """Load the check, say its level and units, wait for "go" on stdin, run it, write its records to stdout.

    Ends the process by itself: a crash or a hang in a library's clean-up must not undo a finished check.
    """
    emit = _take_stdout()
    faulthandler.enable()  # a crash says where
    faulthandler.register(signal.SIGUSR1)  # so does a hang, when the runner asks
    plan = decode_plan(lease.read_line(0, MAX_PLAN_BYTES, timeout_s=30.0))
    try:
        found = checks.load(name)
    except KeyError:
        sys.exit(f"this bundle has no check {name!r}")
    units = {metric.name: metric.unit for metric in found.info.metrics}
    lease.write_all(_RECORDS[0], json.dumps({"level": found.info.level, "units": units}).encode() + b"\n")
    lease.read_line(0, 16, timeout_s=GO_WITHIN_S)
    lease.hold(0, lease.end_own_group)
    context = checks.Context(found.info, plan.checks[0], plan, emit)
    with context.subject(HOST):
        found.run(context)
    os._exit(0)


def run_workload(name: str, fd: int) -> int:
    """Run `workloads/<name>.py` with the parameters on stdin; its records go to descriptor `fd`."""
    params = json.loads(lease.read_line(0, MAX_PLAN_BYTES, timeout_s=30.0))
    lease.hold(0, lease.end_own_group)
    faulthandler.enable()
    module = importlib.import_module(f"validators.workloads.{name}")
    # The bundle's own pynvml must not stand before the framework's: submodules are found without this entry.
    sys.path.remove(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    emit = writer(fd)
    module.main(params, emit)
    emit(Bye(0))  # its end: an exit status can get lost, as in a script that calls Python and then something else
    sys.stderr.flush()
    os._exit(0)


def writer(fd: int) -> Callable[[Record], None]:
    """A function that writes records to `fd`, whole lines even from several threads. Raises SchemaError."""
    lock = threading.Lock()

    def emit(record: Record) -> None:
        line = encode(record)
        with lock:
            lease.write_all(fd, line)

    return emit


_RECORDS = [-1]
"""The descriptor for records, once stdout was taken."""


def _take_stdout() -> Callable[[Record], None]:
    """Keep descriptor 1 for records alone; prints, C libraries and programs write to stderr from here on."""
    _RECORDS[0] = os.dup(1)
    os.dup2(2, 1)
    return writer(_RECORDS[0])


__all__ = ["SchemaError", "run_check", "run_workload", "writer"]
