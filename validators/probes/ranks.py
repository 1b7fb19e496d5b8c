"""Runs a workload as one process for each GPU, as torchrun would start them on one host."""

from __future__ import annotations

import socket
import threading
from typing import Dict, List, Mapping, Optional, Sequence, Tuple

from validators.check import Context
from validators.probes import workload
from validators.schema import Scalar

GRACE_S = 2.0
"""Seconds after the first failure in which the others tell theirs: a rank whose peer died often ends before it."""
OF_A_PEER = (
    "closed by peer", "reset by peer", "Broken pipe", "Socket Timeout", "remote process exited", "ncclRemoteError",
    "timed out after", "Watchdog caught collective operation timeout", "Timed out waiting",
    "Did the remote server shutdown",
)  # fmt: skip
"""Words of gloo, NCCL and our own deadline by which a rank says that another one failed it."""
PORT_TAKEN = ("EADDRINUSE", "ddress already in use")


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
    the others are ended. Raises RuntimeError with the first failure that is not about another rank; it names its rank
    and its GPU. Where somebody else took a port that was found here, it is tried once more with another one.
    """
    count = ranks or len(gpus)
    shared = {
        "WORLD_SIZE": str(world or count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": master,
        **(environment or {}),
    }
    for attempt in (1, 2):
        own = {"MASTER_PORT": str(port or free_port()), **shared}
        failures = _once(ctx, python, name, params, gpus=gpus, timeout_s=timeout_s, count=count,
                         first_rank=first_rank, shared=own)  # fmt: skip
        taken = any(words in one for one in failures for words in PORT_TAKEN)
        if not taken or port or attempt == 2:
            break
    if failures:
        raise RuntimeError(_cause(failures))


def _once(
    ctx: Context,
    python: str,
    name: str,
    params: Mapping[str, Scalar],
    *,
    gpus: Sequence[str],
    timeout_s: float,
    count: int,
    first_rank: int,
    shared: Mapping[str, str],
) -> List[str]:
    """The failures, in the order in which they came."""
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
                if len(failures) < count:
                    stop.wait(GRACE_S)
            stop.set()

    threads = [threading.Thread(target=run, args=(local,)) for local in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return failures


def _cause(failures: Sequence[str]) -> str:
    own = [one for one in failures if not any(words in one for words in OF_A_PEER)]
    others = len(failures) - 1
    said = f"; {others} more of its ranks failed; which one held them up is not known" if others and not own else ""
    return (own or failures)[0] + said


def free_port() -> int:
    """A TCP port of this host that nobody listens on at this moment."""
    return free_ports(1)[0]


def free_ports(count: int) -> List[int]:
    """As many ports, each another: jobs that run at once must not share one."""
    held = [socket.socket() for _ in range(count)]
    try:
        for one in held:
            one.bind(("", 0))
        return [int(one.getsockname()[1]) for one in held]
    finally:
        for one in held:
            one.close()


def rounds(count: int) -> List[List[Tuple[int, int]]]:
    """Every pair of `count` players once, in rounds in which nobody plays twice: 4 give 3 rounds of 2 pairs.

    The circle method of round-robin tournaments: the first stays, the others move on by one place a round.
    """
    players = list(range(count)) + ([-1] if count % 2 else [])  # -1: its opponent has a break
    found: List[List[Tuple[int, int]]] = []
    for _ in range(len(players) - 1):
        half = len(players) // 2
        pairs = zip(players[:half], reversed(players[half:]))  # noqa: B905 - strict is 3.10+, the host may have 3.9
        found.append(sorted((min(one), max(one)) for one in pairs if -1 not in one))
        players.insert(1, players.pop())
    return found
