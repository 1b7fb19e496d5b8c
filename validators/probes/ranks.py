"""Runs a workload as one process for each GPU, as torchrun would start them on one host."""

from __future__ import annotations

import socket
import threading
from typing import Dict, List, Mapping, Optional, Sequence

from validators.check import Context
from validators.probes import workload
from validators.schema import Scalar


def run_ranks(
    ctx: Context,
    python: str,
    name: str,
    params: Mapping[str, Scalar],
    *,
    gpus: Sequence[str],
    timeout_s: float,
    ranks: int = 0,
    master: str = "127.0.0.1",
    port: int = 0,
    first_rank: int = 0,
    world: int = 0,
    environment: Optional[Mapping[str, str]] = None,
) -> None:
    """Run the workload in one process a GPU (UUIDs), all of them visible to each; without GPUs in `ranks` processes.

    Each process finds RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT in its environment,
    as under torchrun; `first_rank` and `world` place this host's processes among those of several hosts. As one fails
    the others are ended. Raises RuntimeError with the first failure, which names its rank and its GPU.
    """
    count = ranks or len(gpus)
    shared = {
        "WORLD_SIZE": str(world or count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": master,
        "MASTER_PORT": str(port or free_port()),
        **(environment or {}),
    }
    stop = threading.Event()
    failures: List[str] = []

    def run(local: int) -> None:
        own: Dict[str, str] = {**shared, "RANK": str(first_rank + local), "LOCAL_RANK": str(local)}
        try:
            workload.run_workload(
                ctx, python, name, params, gpus=gpus, timeout_s=timeout_s, environment=own, stop=stop
            )  # fmt: skip
        except Exception as problem:  # noqa: BLE001 - a thread's boundary: raised again by the caller
            if not stop.is_set():
                where = f" on {gpus[local]}" if local < len(gpus) else ""
                failures.append(f"rank {first_rank + local}{where}: {problem}")
            stop.set()

    threads = [threading.Thread(target=run, args=(local,)) for local in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise RuntimeError(failures[0])


def free_port() -> int:
    """A TCP port of this host that nobody listens on at this moment."""
    with socket.socket() as one:
        one.bind(("", 0))
        return int(one.getsockname()[1])
