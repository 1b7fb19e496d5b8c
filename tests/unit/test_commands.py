"""What commands make of hosts and chains, without touching one."""

from __future__ import annotations

import pytest

from provision import commands
from provision.commands import Selection, select_hosts
from provision.errors import UsageError
from provision.report.model import HostReport


@pytest.mark.parametrize("hosts", [("box:2201", "box:2202"), ("root@box", "box"), ("localhost", "me@localhost")])
def test_two_hosts_of_one_name_are_refused_because_their_records_would_mix(hosts: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="two of the hosts are called"):
        select_hosts(Selection(hosts=hosts))


def test_a_host_named_twice_in_the_same_words_is_one_host() -> None:
    assert len(select_hosts(Selection(hosts=("box", "box")))) == 1


@pytest.mark.parametrize(("codes", "expected"), [((0, 0), 0), ((0, 3), 3), ((1, 0), 1), ((1, 3), 1), ((3, 1, 0), 1)])
def test_a_broken_link_on_one_host_is_exit_code_1_whatever_could_not_be_asked_elsewhere(
    codes: tuple[int, ...], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = iter(codes)
    monkeypatch.setattr(commands, "_chain_code", lambda host: next(left))
    assert commands._exit_code_of_chains([HostReport] * len(codes)) == expected  # type: ignore[list-item]  # not read
