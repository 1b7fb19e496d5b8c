"""Waves: every host once, groups never together, and a stop that is a stop."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provision.errors import UsageError
from provision.upgrade.waves import Member, Rules, held_back, plan_waves, stop_reason, wave_size

groups = st.sampled_from(["", "", "a", "b", "c"])
members = st.lists(groups, max_size=40).map(lambda found: [Member(f"h{at}", group) for at, group in enumerate(found)])
sizes = st.one_of(st.integers(1, 50).map(str), st.integers(1, 100).map(lambda number: f"{number}%"))
rules = st.builds(Rules, st.integers(0, 5), sizes, st.integers(0, 3), st.booleans())


@given(members, rules)
def test_every_host_is_in_exactly_one_wave(found: list[Member], chosen: Rules) -> None:
    waves = plan_waves(found, chosen)
    assert sorted(name for wave in waves for name in wave.hosts) == sorted(member.name for member in found)
    assert [wave.number for wave in waves] == list(range(1, len(waves) + 1))
    assert all(wave.hosts for wave in waves)


@given(members, rules)
def test_no_wave_is_larger_than_asked_for(found: list[Member], chosen: Rules) -> None:
    size = wave_size(chosen.wave, len(found))
    for wave in plan_waves(found, chosen):
        assert len(wave.hosts) <= (chosen.canary if wave.canary else size)


@given(members, rules)
def test_two_hosts_of_a_serial_group_are_never_in_one_wave_unless_asked_for(found: list[Member], chosen: Rules) -> None:
    of = {member.name: member.group for member in found}
    for wave in plan_waves(found, chosen):
        named = [of[name] for name in wave.hosts if of[name]]
        assert chosen.together or len(named) == len(set(named))


@given(members, rules)
def test_canaries_come_first_and_only_first(found: list[Member], chosen: Rules) -> None:
    waves = plan_waves(found, chosen)
    assert [wave.canary for wave in waves] == [number == 0 and chosen.canary > 0 for number in range(len(waves))]


@given(members, rules, st.data())
def test_nobody_begins_while_another_of_its_group_is_down(
    found: list[Member], chosen: Rules, data: st.DataObject
) -> None:
    names = [member.name for member in found]
    down = data.draw(st.sets(st.sampled_from(names))) if names else set()
    of = {member.name: member.group for member in found}
    for wave in plan_waves(found, chosen):
        back = held_back(wave.hosts, found, down, chosen)
        for name in wave.hosts:
            sick = any(of[other] == of[name] and of[name] for other in down if other != name)
            assert (name in back) == (sick and name not in down and not chosen.together)


@given(st.sets(st.sampled_from("abcdef")), st.sets(st.sampled_from("xyz")), rules)
def test_it_stops_for_one_failure_too_many_and_for_every_lost_host(
    failed: set[str], lost: set[str], chosen: Rules
) -> None:
    assert bool(stop_reason(failed, lost, chosen)) == (bool(lost) or len(failed) > chosen.max_fail)


def test_a_tenth_of_fifteen_hosts_is_one_and_of_five_as_well() -> None:
    assert [wave_size("10%", number) for number in (5, 15, 20, 39)] == [1, 1, 2, 3]


@pytest.mark.parametrize("text", ["0", "0%", "101%", "ten", "-1", "1.5", "10 %x", ""])
def test_a_size_that_cannot_be_meant_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is no size of a wave"):
        wave_size(text, 10)
