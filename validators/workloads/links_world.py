"""The ranks of a job, come together: a store that they agree through, and torch.distributed over it."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from typing import List, Mapping

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from validators.schema import Scalar

LEAVE_S = 10.0
"""Seconds that the first rank, which holds the store, waits for the others to have finished with it."""


class World:
    """One rank among `size`. `names`: the GPU (UUID) of each, or "rank0" and so on. `patience`: for one operation."""

    def __init__(self, store: Store, device: torch.device, names: List[str], backend: str, patience: timedelta) -> None:
        self.store, self.device, self.names, self.backend, self.patience = store, device, names, backend, patience
        self.rank, self.size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self.label = f"all {self.size} ranks"

    @property
    def name(self) -> str:
        """This rank's own."""
        return self.names[self.rank]

    def say(self, key: str, text: str, speaks: bool) -> str:
        """What the one who speaks says under this key, to all who ask; waits for it."""
        if speaks:
            self.store.set(key, text)
            return text
        return str(self.store.get(key).decode())

    def least(self, key: str, value: int) -> int:
        """The smallest of every rank's value."""
        self.store.set(f"{key}/{self.rank}", str(value))
        return min(int(self.store.get(f"{key}/{rank}").decode()) for rank in range(self.size))

    def meet(self, key: str) -> None:
        """Wait until every rank is here. No GPU takes part, so a lost one is not waited for inside of NCCL."""
        if self.store.add(f"meet/{key}", 1) == self.size:
            self.store.set(f"met/{key}", "yes")
        self.store.get(f"met/{key}")

    def leave(self) -> None:
        """The first rank holds the store, so it goes last."""
        if self.rank:
            self.store.add("left", 1)
            return
        end = time.monotonic() + LEAVE_S
        while self.store.add("left", 0) < self.size - 1 and time.monotonic() < end:
            time.sleep(0.005)


def join(params: Mapping[str, Scalar]) -> World:
    """Open this rank's device and come together with the others. Raises RuntimeError, which says who did not come."""
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    local, here = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    names = [name for name in str(params.get("names", "")).split(",") if name] or [f"rank{i}" for i in range(size)]
    device = torch.device("cpu") if params.get("cpu") else _gpu(local, here, names[rank])
    if device.type == "cpu":
        torch.set_num_threads(1)
    backend = "gloo" if device.type == "cpu" else "nccl"
    if not (dist.is_available() and (dist.is_gloo_available() if backend == "gloo" else dist.is_nccl_available())):
        raise RuntimeError(f"torch {torch.__version__} is a build without {backend}")
    store = _store(rank, size, float(params.get("join_s", 60.0)))
    shared = PrefixStore("torch", store)
    patience = timedelta(seconds=float(params.get("hang_s", 30.0)))
    dist.init_process_group(backend, store=shared, rank=rank, world_size=size, timeout=patience)
    return World(store, device, names, backend, patience)


def _gpu(local: int, here: int, name: str) -> torch.device:
    if torch.version.cuda is None:
        raise RuntimeError(f"torch {torch.__version__} is a build without CUDA; install a CUDA build of torch")
    torch.cuda.init()  # type: ignore[no-untyped-call]  # torch leaves it untyped; raises with CUDA's own text
    if torch.cuda.device_count() != here:
        raise RuntimeError(f"torch sees {torch.cuda.device_count()} GPUs where {here} were made visible")
    device = torch.device("cuda", local)
    torch.cuda.set_device(device)
    same_gpu(device, name)
    return device


def same_gpu(device: torch.device, name: str) -> None:
    """Raises RuntimeError where torch's device is not the GPU of that UUID (older torch does not tell)."""
    found = str(getattr(torch.cuda.get_device_properties(device), "uuid", ""))
    if found and name.startswith("GPU-") and found.removeprefix("GPU-") != name.removeprefix("GPU-"):
        raise RuntimeError(f"torch ran on GPU {found}, not on {name}")


def _store(rank: int, size: int, patience_s: float) -> Store:
    """The store that all ranks agree through, once each of them has said that it is there."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    patience = timedelta(seconds=patience_s)
    try:
        store = TCPStore(address, port, size, rank == 0, patience, wait_for_workers=False)
    except RuntimeError as problem:
        words = (str(problem).splitlines() or [""])[0]
        raise RuntimeError(f"rank {rank} cannot reach rank 0 at {address}:{port}: {words}") from None
    store.set(f"here/{rank}", "yes")
    end = time.monotonic() + patience_s
    while missing := [one for one in range(size) if not store.check([f"here/{one}"])]:
        if time.monotonic() > end:
            raise RuntimeError(f"rank {', '.join(map(str, missing))} did not come within {patience_s:g} s")
        time.sleep(0.02)
    return store
