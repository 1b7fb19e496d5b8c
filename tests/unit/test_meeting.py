"""Hosts that come together: each is told its ranks, and who does not come is named to all the others."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable

import pytest

from provision.between import plan_between
from provision.errors import UsageError
from provision.hosts import Host
from validators import check
from validators.probes.meeting import Meeting, Place, interface_of
from validators.probes.ranks import free_port
from validators.schema import CheckRequest, Plan

NAMES = ("alpha", "beta", "gamma")


def meet(
    ranks: dict[int, int], *, patience_s: float = 5.0, names: tuple[str, ...] = NAMES, late: float = 0.0
) -> dict[int, Place | str]:
    """Every host of `ranks` in a thread: what it was told, or what it raised."""
    port, found = free_port(), {}

    def one(index: int, count: int) -> None:
        if index == 0:
            time.sleep(late)
        try:
            found[index] = Meeting(names, index, "127.0.0.1", port, "run", patience_s).join(count)
        except RuntimeError as problem:
            found[index] = str(problem)

    threads = [threading.Thread(target=one, args=item) for item in ranks.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return found


def test_ranks_are_given_out_in_the_hosts_order() -> None:
    found = meet({2: 1, 0: 4, 1: 8}, late=0.4)
    places = [found[index] for index in range(3)]
    assert all(isinstance(one, Place) for one in places)
    assert [(one.first_rank, one.world) for one in places] == [(0, 13), (4, 13), (12, 13)]  # type: ignore[union-attr]
    assert len({one.port for one in places}) == 1  # type: ignore[union-attr]
    assert {one.interface for one in places} == {"lo"}  # type: ignore[union-attr]


def test_a_host_that_does_not_come_is_named_to_all() -> None:
    began = time.monotonic()
    found = meet({0: 1, 2: 1}, patience_s=1.5)
    assert found == {0: "did not come within 1.5 s: beta", 2: "did not come within 1.5 s: beta"}
    assert time.monotonic() - began < 6


def test_a_first_host_that_does_not_come_is_named() -> None:
    found = meet({1: 1}, patience_s=1.0)
    assert str(found[1]).startswith("alpha did not come to 127.0.0.1:")


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"GET / HTTP/1.0\r\n\r\n",
        b"[1]\n",
        b'{"run": "another", "host": 1, "ranks": 1}\n',
        b'{"run": "run", "host": 7, "ranks": 1}\n',
        b'{"run": "run", "host": 1, "ranks": 1000000000}\n',
        b"x" * 200_000,
        b"[" * 60_000 + b"\n",
    ],
)
def test_a_stranger_at_the_port_changes_nothing(said: bytes) -> None:
    port, found = free_port(), {}

    def host(index: int) -> None:
        found[index] = Meeting(("a", "b"), index, "127.0.0.1", port, "run", 8.0).join(1)

    first = threading.Thread(target=host, args=(0,))
    first.start()
    stranger = _connected(port)
    with contextlib.suppress(OSError):
        stranger.sendall(said)
    stranger.close()
    second = threading.Thread(target=host, args=(1,))
    second.start()
    first.join(20)
    second.join(20)
    assert {index: (one.first_rank, one.world) for index, one in found.items()} == {0: (0, 2), 1: (1, 2)}


def test_a_stranger_who_never_ends_holds_nobody_up() -> None:
    port, ended = free_port(), []

    def host() -> None:
        with pytest.raises(RuntimeError, match="did not come within 1 s: b"):
            Meeting(("a", "b"), 0, "127.0.0.1", port, "run", 1.0).join(1)
        ended.append(time.monotonic())

    first = threading.Thread(target=host)
    began = time.monotonic()
    first.start()
    with _connected(port) as stranger, contextlib.suppress(OSError):
        for _ in range(40):
            stranger.sendall(b" ")
            time.sleep(0.25)
            if ended:
                break
    first.join(20)
    assert ended[0] - began < 6


def _connected(port: int) -> socket.socket:
    for _ in range(100):
        try:
            return socket.create_connection(("127.0.0.1", port), 2)
        except OSError:
            time.sleep(0.02)
    raise AssertionError("nobody listens")


def test_a_port_that_is_taken_is_an_error_that_says_what_to_set() -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        meeting = Meeting(("a", "b"), 0, "127.0.0.1", taken.getsockname()[1], "run", 2.0)
        with pytest.raises(RuntimeError, match="bringup_fabric_port"):
            meeting.join(1)


def test_interfaces_are_found_by_address() -> None:
    assert interface_of("127.0.0.7") == "lo"
    assert interface_of("203.0.113.99") == ""


CATALOGUE = tuple(check.load(name).info for name in ("compute_capability", "matmul", "links"))


def plans(hosts: list[Host], checks: tuple[str, ...] = ("compute_capability", "links")) -> dict[str, Plan]:
    return {host.name: Plan(tuple(CheckRequest(name, 60.0, {"x": 1}) for name in checks), 200.0) for host in hosts}


def told(made: dict[str, Plan], host: str) -> dict[str, object]:
    return dict(next(one.params for one in made[host].checks if one.name == "links"))


def test_each_hosts_plan_has_the_place_to_meet_and_its_own_number() -> None:
    hosts = [Host("a", "192.0.2.1"), Host("b", "192.0.2.2")]
    made = plan_between(hosts, plans(hosts), CATALOGUE)
    first, second = told(made, "a"), told(made, "b")
    assert (first["between_address"], first["between_port"], first["between_hosts"]) == ("192.0.2.1", 29400, "a b")
    assert (first.pop("between_index"), second.pop("between_index")) == (0, 1)
    assert first == second
    assert first["x"] == 1, "settings of the user's stay"
    assert first["between_wait_s"] == 60.0
    assert set(first) - {"x"} <= set(CATALOGUE[2].params)
    assert made["a"].checks[0].params == {"x": 1}, "other checks are not told"
    assert json.dumps(first)


def test_other_load_checks_before_it_make_hosts_wait_longer() -> None:
    hosts = [Host("a", "192.0.2.1"), Host("b", "192.0.2.2")]
    made = plan_between(hosts, plans(hosts, ("matmul", "links")), CATALOGUE)
    assert told(made, "b")["between_wait_s"] == 60.0 + CATALOGUE[1].seconds


def test_the_fabrics_own_address_and_port_go_before_those_of_ssh() -> None:
    hosts = [
        Host("a", "192.0.2.1", variables={"bringup_fabric_address": "10.9.0.1", "bringup_fabric_port": "4000"}),
        Host("b", "192.0.2.2"),
    ]
    found = told(plan_between(hosts, plans(hosts), CATALOGUE), "b")
    assert (found["between_address"], found["between_port"]) == ("10.9.0.1", 4000)


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "one host": (lambda: plan_between([Host("a")], plans([Host("a")]), CATALOGUE), "two hosts or more"),
    "no links": (
        lambda: plan_between([Host("a"), Host("b")], plans([Host("a"), Host("b")], ("matmul",)), CATALOGUE),
        "which a is not asked for",
    ),
    "this machine first": (
        lambda: plan_between(
            [Host("localhost", "localhost", connection="local"), Host("b")],
            plans([Host("localhost"), Host("b")]),
            CATALOGUE,
        ),
        "do not know it by that name",
    ),
    "a port that is none": (
        lambda: plan_between(
            [Host("a", "x", variables={"bringup_fabric_port": "http"}), Host("b")],
            plans([Host("a"), Host("b")]),
            CATALOGUE,
        ),
        "is not a port",
    ),
    "CPU and GPU": (
        lambda: plan_between(
            [Host("a", "x"), Host("b")],
            {**plans([Host("a")]), "b": Plan((CheckRequest("links", 60.0),), 60.0, device="cpu")},
            CATALOGUE,
        ),
        "cannot reduce together",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_meant_is_refused(what: str) -> None:
    ask, text = REFUSED[what]
    with pytest.raises(UsageError, match=text):
        ask()
