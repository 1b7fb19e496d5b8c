"""Executors: validate_host is mapped over hosts by any concurrent.futures.Executor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor

from provision.errors import UsageError

DEFAULT_WORKERS = 32
"""Hosts at a time. A thread waits on its host nearly all of the time."""


def _threads(workers: int) -> Executor:
    return ThreadPoolExecutor(max_workers=workers, thread_name_prefix="host")


EXECUTORS: Mapping[str, Callable[[int], Executor]] = {"threads": _threads}
"""Name -> factory that takes the number of workers. What is mapped must be picklable for those to come."""


def make_executor(name: str = "threads", workers: int = DEFAULT_WORKERS) -> Executor:
    """The executor of that name. Raises UsageError."""
    if name not in EXECUTORS:
        raise UsageError(f"no such executor: {name!r}", f"there is: {', '.join(sorted(EXECUTORS))}")
    if workers < 1:
        raise UsageError(f"{workers} workers cannot do anything", "give 1 or more")
    return EXECUTORS[name](workers)
