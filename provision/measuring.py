"""Jobs over many hosts: what `validate`, `doctor` and `plan` share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, as_completed
from contextlib import suppress

from provision.console import HostProgress
from provision.executors import make_executor
from provision.hosts import Host
from provision.remote import HostRun, Job, interrupt, validate_host
from validators.schema import Record

INTERRUPT_S = 5.0
"""Seconds that hosts get after Ctrl-C to end what they run and say so."""


def run_jobs(
    jobs: Sequence[tuple[Host, Job]], *, workers: int, progress: HostProgress, keep: Callable[[HostRun], None]
) -> None:
    """Map validate_host over the hosts; `keep` is given each answer as it comes, in the caller's thread.

    Raises KeyboardInterrupt on Ctrl-C, after what the hosts had answered by then was kept: their connections end, and
    with them the leases. A thread that still waits on its host is left behind; the caller ends the process.
    """
    executor = make_executor("threads", max(1, min(workers, len(jobs))))
    interrupted = False
    try:
        futures: dict[Future[HostRun], Host] = {}
        for host, job in jobs:
            futures[executor.submit(validate_host, host, job, _teller(host, progress))] = host
        for future in as_completed(futures):
            done = future.result()
            keep(done)
            progress.done(futures[future].name, _headline(done))
    except KeyboardInterrupt:
        interrupted = True
        executor.shutdown(wait=False, cancel_futures=True)
        interrupt()
        with suppress(TimeoutError, KeyboardInterrupt):
            for future in as_completed([one for one in futures if not one.cancelled()], timeout=INTERRUPT_S):
                keep(future.result())
        raise
    finally:
        executor.shutdown(wait=not interrupted, cancel_futures=True)


def _headline(done: HostRun) -> str:
    if done.failure:
        return f"not measured: {done.failure.message.removeprefix(f'{done.host}: ')} ({done.duration_s:.1f} s)"
    return f"measured ({done.duration_s:.1f} s)"


def _teller(host: Host, progress: HostProgress) -> Callable[[Record], None]:
    return lambda record: progress.record(host.name, record)
