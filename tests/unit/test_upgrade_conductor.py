"""Hosts through their phases, with a double of the phases: what is done next, who may begin, what is said of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from provision.bundle import Bundle
from provision.errors import PlayError
from provision.upgrade import report
from provision.upgrade.conductor import Conductor
from provision.upgrade.journal import NAME, HostState, Journal, RunState
from provision.upgrade.model import Means, Options, Result
from provision.upgrade.order import Order, exit_code
from provision.upgrade.phases import BACK, FORWARD, Phase
from provision.upgrade.view import page
from provision.upgrade.waves import Member, Rules, plan_waves


@dataclass
class Phases:
    """Does nothing, and says of `fails` (host, phase) that it failed."""

    fails: set[tuple[str, str]] = field(default_factory=set)
    raises: str = ""
    began: list[tuple[str, str]] = field(default_factory=list)

    def run(
        self, phase: Phase, states: Mapping[str, HostState], _name: str, _done: Callable[[str], None]
    ) -> dict[str, Result]:
        self.began += [(name, state.last.phase) for name, state in states.items() if state.last]
        if phase == self.raises:
            raise PlayError("Ansible could not run upgrade.yml")
        return {name: Result((name, phase) not in self.fails, f"{phase} of {name}") for name in states}

    def answers(self, _name: str) -> bool:
        return True


@dataclass
class Fleet:
    """A run over these hosts; as often as is asked, each time as a new process would."""

    folder: Path
    hosts: str = "abcd"
    rules: Rules = Rules(canary=1, wave="2")  # noqa: RUF009  frozen
    path: Sequence[Phase] = FORWARD
    already: Mapping[str, str] = field(default_factory=dict)
    groups: Mapping[str, str] = field(default_factory=dict)

    def go(self, phases: Phases) -> RunState:
        members = tuple(Member(name, self.groups.get(name, "")) for name in self.hosts)
        waves = plan_waves([one for one in members if one.name not in self.already], self.rules)
        self.order = Order(Options("595", self.rules), waves, members, path=tuple(self.path))
        doubles: Any = phases
        with Journal(self.folder) as journal:
            means = Means(Bundle(b"", ""))
            return Conductor(journal, waves, members, self.rules, doubles, means, self.path, self.already).run()


def outcomes(state: RunState) -> dict[str, str | None]:
    return {name: host.outcome for name, host in sorted(state.hosts.items())}


@pytest.mark.parametrize("count", range(1, 60))
def test_a_run_that_is_cut_off_after_any_line_goes_on_and_ends_the_same(tmp_path: Path, count: int) -> None:
    """Also between a host's last step and the line that says how it ended."""
    fails = {("b", "install"), ("d", "drain")}
    fleet = Fleet(tmp_path, rules=Rules(canary=1, wave="2", max_fail=9))
    whole = outcomes(fleet.go(Phases(fails)))
    lines = (tmp_path / NAME).read_text().splitlines(keepends=True)
    (tmp_path / NAME).write_text("".join(lines[:count]))
    assert outcomes(fleet.go(Phases(fails))) == whole == {"a": "done", "b": "rolled_back", "c": "done", "d": "refused"}


def test_an_operators_own_mistake_leaves_hosts_where_they_are_and_is_done_again(tmp_path: Path) -> None:
    """A play that could not start is no failed installation: nothing is rolled back for it."""
    fleet = Fleet(tmp_path, hosts="a")
    with pytest.raises(PlayError):
        fleet.go(Phases(raises="install"))
    phases = Phases()
    assert outcomes(fleet.go(phases)) == {"a": "done"}
    assert phases.began[0] == ("a", "install")


def test_a_host_that_could_not_be_put_back_counts_as_a_failure_and_the_report_says_so(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path)
    state = fleet.go(Phases({("a", "undrain")}))
    assert outcomes(state) == {"a": "done"} and "1 failed (a)" in state.stopped
    assert exit_code(state, fleet.order) == 1
    row = page("r", state).hosts[0]
    assert row.status == "FAIL" and "still drained" in row.detail and "undrain of a" in row.detail
    assert "still drained" in report.as_html(page("r", state))


def test_a_whole_fleet_that_is_left_drained_is_no_success(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, hosts="ab", rules=Rules(canary=0, wave="100%", max_fail=9))
    state = fleet.go(Phases({("a", "undrain"), ("b", "undrain")}))
    assert set(outcomes(state).values()) == {"done"} and exit_code(state, fleet.order) == 1


def test_nobody_of_a_serial_group_begins_while_another_is_still_drained(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, rules=Rules(canary=1, wave="3", max_fail=9), groups={"a": "pair", "b": "pair"})
    state = fleet.go(Phases({("a", "undrain")}))
    assert outcomes(state) == {"a": "done", "b": "refused", "c": "done", "d": "done"}
    assert "a of its serial group is down" in state.hosts["b"].detail


def test_going_on_puts_back_first_what_is_still_drained(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path)
    fleet.go(Phases({("a", "undrain")}))
    phases = Phases()
    state = fleet.go(phases)
    assert phases.began[0] == ("a", "undrain")
    assert outcomes(state) == dict.fromkeys("abcd", "done") and exit_code(state, fleet.order) == 0
    assert all(not host.detail for host in state.hosts.values())


def test_hosts_that_have_it_already_are_no_canaries_and_nothing_is_done_to_them(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, already={"a": "it has 595.91.07 already"})
    phases = Phases({("b", "validate")})
    state = fleet.go(phases)
    assert outcomes(state) == {"a": "done", "b": "rolled_back"} and state.stopped
    assert state.hosts["a"].detail == "it has 595.91.07 already" and state.hosts["a"].steps == ()
    assert {row.name for row in page("r", state).hosts} == {"a", "b"}


def test_while_no_canary_was_upgraded_the_next_hosts_go_alone(tmp_path: Path) -> None:
    """A canary that was refused has shown nothing of the driver."""
    fleet = Fleet(tmp_path, hosts="abcdef", rules=Rules(canary=1, wave="5", max_fail=9))
    phases = Phases({("a", "drain"), ("b", "drain")})
    fleet.go(phases)
    upgraded = [name for name, phase in phases.began if phase in ("install", "hold")]
    assert upgraded == ["c", "c", *"def", *"def"]


def test_a_host_that_had_it_already_has_shown_nothing_either(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, "abcde", Rules(canary=1, wave="3", max_fail=9), already={"a": "it has it already"})
    phases = Phases({("b", "validate")})
    fleet.go(phases)
    assert [name for name, phase in phases.began if phase == "install"] == ["b", "c", "d", "e"]
    assert phases.began.index(("c", "hold")) < phases.began.index(("d", "snapshot"))


def test_a_rollback_begins_with_the_drain_and_a_host_that_is_busy_is_left_alone(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, hosts="ab", rules=Rules(canary=0, wave="100%"), path=("drain", *BACK))
    phases = Phases({("a", "drain")})
    state = fleet.go(phases)
    assert outcomes(state) == {"a": "refused", "b": "rolled_back"}
    assert [phase for name, phase in phases.began if name == "b"] == ["drain", *BACK, "undrain"]
    assert exit_code(state, fleet.order) == 1
