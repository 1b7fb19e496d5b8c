"""The wire: a plan in on stdin, records out on descriptor 1, and an open stdin as the lease."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import sys
import threading
import time
from typing import List

from validators import lease
from validators.processes import bundle_root
from validators.runner import Runner
from validators.schema import SCHEMA, Bye, Hello, Record, SchemaError, decode_plan, encode

MAX_PLAN_BYTES = 1 << 20
PLAN_WITHIN_S = 60.0
LEASE_LOST = 75
"""Exit status where the operator went away (EX_TEMPFAIL)."""
BAD_PLAN = 65
"""Exit status where the plan is not one (EX_DATAERR)."""


def serve(argv: List[str]) -> int:
    """`wire [SHA256 [ANSWER_S]]`: run the plan on stdin. Returns the exit status.

    With ANSWER_S the operator must send something at least so often (an empty line will do), so that a
    connection that is cut without a word ends the run too.
    """
    out = os.dup(1)
    os.dup2(2, 1)  # prints, C libraries and programs write to stderr from here on
    family = lease.Family()
    end_on_signals(family)
    root = bundle_root()
    sha256 = argv[0] if argv else _sha256(root)
    count = 0

    def emit(record: Record) -> None:
        nonlocal count
        count += 1
        write(record)

    def write(record: Record) -> None:
        # Children that are killed because the lease is lost have not crashed: nothing more is said of them.
        if family.doomed.is_set():
            threading.Event().wait()  # until the thread that dooms has ended this process
        lease.write_all(out, encode(record))

    def lost(why: str) -> None:
        end_everything(family, LEASE_LOST, f"ended: {why}")

    try:
        plan = decode_plan(lease.read_line(0, MAX_PLAN_BYTES, PLAN_WITHIN_S))
    except (SchemaError, ValueError) as problem:
        sys.stderr.write(f"no plan: {problem}\n")
        return BAD_PLAN
    lease.hold(0, lost, float(argv[1]) if len(argv) > 1 else 0.0)
    family.adopt_orphans()
    try:
        emit(
            Hello(
                SCHEMA,
                sha256,
                ".".join(str(part) for part in sys.version_info[:3]),
                os.uname().nodename,
                _boot_id(),
                time.time(),
            )
        )
        Runner(plan, emit, family, root).run()
        family.end_all()
        write(Bye(count))
    except BrokenPipeError:
        lost("nobody reads the records any more")
    return 0


def end_on_signals(family: lease.Family) -> None:
    """SIGTERM, SIGINT and SIGHUP end this process and everything below it."""

    def handle(number: int, _frame: object) -> None:
        end_everything(family, 128 + number, f"ended by {signal.Signals(number).name}")

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, handle)


def end_everything(family: lease.Family, status: int, why: str) -> None:
    """End every child and this process, now; from any thread."""
    family.doomed.set()
    family.end_all()
    with contextlib.suppress(OSError):  # nobody is left to read it
        os.write(2, why.encode() + b"\n")
    os._exit(status)


def _boot_id() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def _sha256(root: str) -> str:
    if not os.path.isfile(root):
        return "not a bundle"
    with open(root, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()
