"""Runs a program of validators/workloads/ under a framework's own Python, as its user's programs run there."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import threading
import time
from typing import Dict, Mapping, Optional, Sequence

from validators import lease
from validators.check import Context
from validators.processes import bundle_root, ending, last_words, root_fds
from validators.schema import MAX_RECORD_BYTES, Bye, Measurement, Outcome, Progress, Sample, Scalar, SchemaError, decode

BOOT = (
    "import sys; v = sys.version_info; "
    "v < (3, 9) and sys.exit('Python %d.%d.%d is too old: the workloads need 3.9 or newer' % v[:3]); "
    "sys.path[0] = sys.argv.pop(1); from validators.__main__ import main; sys.exit(main(sys.argv[1:]))"
)
"""sys.path[0] is the working directory under -c: what lies there must not stand before the framework."""
TAIL_BYTES = 16 * 1024
KILL_S = 10.0
"""Seconds that SIGKILL gets: a process that is stuck inside the driver does not die, and must not hold up the rest."""


HOST_THREADS = 8
"""Threads that a GPU's workload computes with on the host, at most. Else each takes all cores: on a host with four GPUs
and 64 cores matmul's GPUs were idle for the first 5 s, on one with one GPU and 16 cores for 1.3 s."""


def run_workload(
    ctx: Context,
    python: str,
    name: str,
    params: Mapping[str, Scalar],
    *,
    gpus: Optional[Sequence[str]],
    timeout_s: float,
    environment: Optional[Mapping[str, str]] = None,
    stop: Optional[threading.Event] = None,
) -> None:
    """Run `validators/workloads/<name>.py` under `python`, these GPUs (UUIDs) visible, and pass its records on.

    `gpus` None leaves the visible GPUs as they are. `environment` is added to this process's own. Once `stop` is set,
    it is ended. Raises RuntimeError, which says how it ended (signal, exit status, deadline, garbage) and its last
    words, in every case but a complete run.
    """
    root = bundle_root()
    records_in, records_out = os.pipe()
    argv = [python, "-c", BOOT, root, "workload", name, str(records_out)]
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            bufsize=0,
            pass_fds=(records_out, *root_fds(root)),
            env=_environment(gpus, environment or {}),
        )
    except OSError as problem:
        os.close(records_in)
        raise RuntimeError(f"{python} cannot be run: {problem.strerror}") from None
    finally:
        os.close(records_out)
    assert process.stdin and process.stderr  # noqa: S101 - for mypy: they are pipes
    with process.stdin, process.stderr, os.fdopen(records_in, "rb", buffering=0) as records:
        with contextlib.suppress(BrokenPipeError):  # it is gone already; why is said below
            lease.write_all(process.stdin.fileno(), json.dumps(dict(params)).encode() + b"\n")
        watch = _Watch(ctx, name, process, stop or threading.Event())
        try:
            problem_text = watch.until_end(records.fileno(), process.stderr.fileno(), timeout_s)
        finally:
            lease.kill_descendants(process.pid)
            process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(KILL_S)
    if process.returncode is None:
        stuck = f"process {process.pid} cannot be killed, it is stuck in the kernel"
        problem_text = f"{problem_text}; {stuck}" if problem_text else stuck
    problem_text = problem_text or ending(process.returncode, watch.rest)
    if not problem_text and not watch.complete:
        problem_text = "exited with status 0 before its end: what was left was not measured"
    if problem_text:
        raise RuntimeError(f"workload {name} {problem_text}{last_words(watch.tail)}")


class _Watch:
    def __init__(self, ctx: Context, name: str, process: subprocess.Popen[bytes], stop: threading.Event) -> None:
        self._ctx = ctx
        self._stop = stop
        self._name = name
        self._process = process
        self.rest = b""
        self.tail = b""
        self.complete = False
        """Whether the workload said that it came to its end."""

    def until_end(self, records: int, words: int, timeout_s: float) -> str:
        """Read both streams until the process ends; returns what went wrong, or nothing."""
        end = time.monotonic() + timeout_s
        with selectors.DefaultSelector() as selector:
            selector.register(records, selectors.EVENT_READ)
            selector.register(words, selectors.EVENT_READ)
            while selector.get_map():
                over = _is_over(self._process)  # before the pipes: what it sent last is in them then
                ready = selector.select(0.0 if over else max(0.0, min(0.2, end - time.monotonic())))
                for key, _ in ready:
                    data = os.read(key.fd, 262144)
                    if not data:
                        selector.unregister(key.fd)
                    elif key.fd == words:
                        self.tail = (self.tail + data)[-TAIL_BYTES:]
                        lease.write_all(2, data)
                    else:
                        try:
                            self._take(data)
                        except SchemaError as problem:
                            return f"sent what cannot be used: {problem}"
                if not ready and over:  # a process that it left behind holds the pipes
                    break
                if time.monotonic() > end:
                    return f"timed out after {timeout_s:g} s"
                if self._stop.is_set():
                    return "was stopped"
        while not _is_over(self._process):  # it has closed its streams and lives on
            if time.monotonic() > end:
                return f"timed out after {timeout_s:g} s"
            if self._stop.wait(0.01):
                return "was stopped"
        return ""

    def _take(self, data: bytes) -> None:
        *lines, self.rest = (self.rest + data).split(b"\n")
        for line in lines:
            record = decode(line)
            if self.complete:
                raise SchemaError("a record after the last one")
            if isinstance(record, Bye):
                self.complete = True
                continue
            if not isinstance(record, (Measurement, Sample, Progress, Outcome)):
                raise SchemaError("a record that only the runner may send")
            self._ctx.forward(record)
        if len(self.rest) > MAX_RECORD_BYTES:
            raise SchemaError(f"a line of more than {MAX_RECORD_BYTES} bytes")


def _is_over(process: subprocess.Popen[bytes]) -> bool:
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _environment(gpus: Optional[Sequence[str]], added: Mapping[str, str]) -> Dict[str, str]:
    environment = {**os.environ, "CUDA_DEVICE_ORDER": "PCI_BUS_ID", **added}
    environment.pop("NVIDIA_TF32_OVERRIDE", None)  # it makes float32 TF32, or TF32 float32, whatever is asked for
    if gpus is not None:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    if gpus:
        environment.setdefault("OMP_NUM_THREADS", str(min(HOST_THREADS, len(os.sched_getaffinity(0)))))
    return environment
