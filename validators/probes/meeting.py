"""Hosts that measure together come together first: who is here, with how many ranks, and which ranks are whose.

The first host listens; the others say hello to it and wait. Once all are here it tells each its first rank, how many
there are in all, and the port of the framework's own rendezvous. Who does not come in time is named to all the others.
One JSON line each way. As with torchrun, nothing is secret or encrypted: for a network of one's own hosts.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import socket
import struct
import time
from dataclasses import dataclass
from typing import Any, Dict, List, Sequence, Tuple

from validators.probes.ranks import free_port

MAX_LINE = 4096
MOST_RANKS = 4096
RETRY_S = 0.2
ANSWER_S = 10.0
"""Seconds that the answer may take once the first host's own patience is over."""
SIOCGIFADDR = 0x8915
"""From linux/sockios.h: an interface's IPv4 address."""


@dataclass(frozen=True)
class Place:
    """This host's place among the others. `interface`: that which leads to them, empty where it was not found."""

    first_rank: int
    world: int
    port: int
    interface: str


@dataclass(frozen=True)
class Meeting:
    """Of these hosts; `index` is this one's, `address` and `port` are the first's, `run` tells it from another one."""

    hosts: Sequence[str]
    index: int
    address: str
    port: int
    run: str
    patience_s: float

    def join(self, ranks: int) -> Place:
        """Wait for all. Raises RuntimeError, which names who did not come within `patience_s`."""
        end = time.monotonic() + self.patience_s
        return self._visit(ranks, end) if self.index else self._receive(ranks, end)

    def _receive(self, ranks: int, end: float) -> Place:
        try:
            server = socket.create_server(("", self.port), backlog=len(self.hosts))
        except OSError as problem:
            raise RuntimeError(
                f"port {self.port} of {self.hosts[0]}, where the hosts meet, cannot be used: {problem.strerror}; "
                "the inventory's bringup_fabric_port names another"
            ) from None
        here: Dict[int, Tuple[int, socket.socket]] = {}
        with server, contextlib.ExitStack() as stack:
            while len(here) + 1 < len(self.hosts) and time.monotonic() < end:
                server.settimeout(max(0.05, end - time.monotonic()))
                with contextlib.suppress(OSError, ValueError):  # who did not come, or left again, is missing below
                    caller = stack.enter_context(server.accept()[0])
                    index, count = self._greeting(_line(caller, time.monotonic() + 2.0))
                    caller.settimeout(2.0)  # for the answer
                    here[index] = count, caller
            return self._answer(ranks, here)

    def _greeting(self, said: Dict[str, Any]) -> Tuple[int, int]:
        """Who says hello, and with how many ranks. Raises ValueError for anybody else."""
        index, ranks = said.get("host"), said.get("ranks")
        if said.get("run") != self.run or not isinstance(index, int) or not isinstance(ranks, int):
            raise ValueError("another meeting")
        if not (0 < index < len(self.hosts) and 0 < ranks < MOST_RANKS):
            raise ValueError("nobody who is expected")
        return index, ranks

    def _answer(self, ranks: int, here: Dict[int, Tuple[int, socket.socket]]) -> Place:
        missing = [name for index, name in enumerate(self.hosts) if index and index not in here]
        port, first = free_port(), ranks
        world = ranks + sum(count for count, _ in here.values())
        for index in sorted(here):
            count, caller = here[index]
            with contextlib.suppress(OSError):
                _send(caller, {"missing": missing, "first": first, "world": world, "port": port})
            first += count
        if missing:
            raise _absent(missing, self.patience_s)
        own = next(caller.getsockname()[0] for _, caller in here.values()) if here else ""
        return Place(0, world, port, interface_of(own))

    def _visit(self, ranks: int, end: float) -> Place:
        words = "no time was left"
        while (left := end - time.monotonic()) > 0:
            try:
                with socket.create_connection((self.address, self.port), timeout=min(5.0, left)) as caller:
                    _send(caller, {"run": self.run, "host": self.index, "ranks": ranks})
                    said, own = _line(caller, end + ANSWER_S), str(caller.getsockname()[0])
            except (OSError, ValueError) as problem:
                words = str(problem)
                time.sleep(RETRY_S)
                continue
            if said.get("missing"):
                raise _absent([str(name) for name in said["missing"]], self.patience_s)
            return Place(int(said["first"]), int(said["world"]), int(said["port"]), interface_of(own))
        raise RuntimeError(
            f"{self.hosts[0]} did not come to {self.address}:{self.port} within {self.patience_s:g} s: {words}"
        )


def _absent(missing: List[str], patience_s: float) -> RuntimeError:
    return RuntimeError(f"did not come within {patience_s:g} s: {', '.join(missing)[:500]}")


def _send(to: socket.socket, what: Dict[str, Any]) -> None:
    to.sendall(json.dumps(what).encode() + b"\n")


def _line(caller: socket.socket, end: float) -> Dict[str, Any]:
    """One JSON object, whole by `end`. Raises OSError, ValueError for anything else."""
    data = b""
    while not data.endswith(b"\n"):
        caller.settimeout(max(0.001, end - time.monotonic()))
        more = caller.recv(MAX_LINE)
        data += more
        if not more or len(data) > 16 * MAX_LINE or time.monotonic() > end:
            raise OSError("the other end said nothing that is known here")
    try:
        said = json.loads(data)
    except RecursionError:
        raise ValueError("nested too deep") from None
    if not isinstance(said, dict):
        raise ValueError("not an object")
    return said


def interface_of(address: str) -> str:
    """The network interface that has this IPv4 address; empty where none is found."""
    if address.startswith("127."):
        return "lo"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):
                answer = fcntl.ioctl(asking.fileno(), SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                if socket.inet_ntoa(answer[20:24]) == address:
                    return name
    return ""
