"""The journal: on the disk before the next step, read after any kill, held by one process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provision.errors import RunDirectoryError, UsageError
from provision.upgrade.journal import NAME, Event, Journal, read, state
from provision.upgrade.phases import BACK, CHANGING, DOWN, FORWARD, ORDER, PHASES, Phase, Step, following, is_outcome

FORWARDS = [Event(phase, status, "h1", 1) for phase in FORWARD for status in ("started", "ok")]


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.write(Event("plan", data={"options": {"to": "595"}}))
        journal.write(Event("install", "started", "h1", 2))
        journal.write(Event("install", "failed", "h1", 2, "no space", {"driver": "580.1"}))
    found = state(read(tmp_path))
    assert found.plan == {"options": {"to": "595"}}
    (step,) = found.hosts["h1"].steps
    assert (step.phase, step.status, step.detail, step.data) == ("install", "failed", "no space", {"driver": "580.1"})
    assert found.hosts["h1"].wave == 2
    assert step.started and step.ended


@pytest.mark.parametrize("cut", [1, 5, 30])
def test_a_last_line_that_was_cut_is_dropped_and_written_over(tmp_path: Path, cut: int) -> None:
    with Journal(tmp_path) as journal:
        journal.write(Event("install", "started", "h1", 1))
        journal.write(Event("install", "ok", "h1", 1))
    path = tmp_path / NAME
    path.write_bytes(path.read_bytes()[:-cut])
    assert [event.status for event in read(tmp_path)] == ["started"]
    with Journal(tmp_path) as journal:
        journal.write(Event("install", "failed", "h1", 1))
    assert [event.status for event in read(tmp_path)] == ["started", "failed"]


def test_a_line_that_is_no_event_is_not_guessed_at(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text('{"phase": "plan"}\n[]\n{"phase": "end"}\n')
    with pytest.raises(RunDirectoryError, match="line 2"):
        read(tmp_path)


def test_two_operators_cannot_work_on_one_run(tmp_path: Path) -> None:
    with Journal(tmp_path), pytest.raises(UsageError, match="somebody is at work"):
        Journal(tmp_path)
    Journal(tmp_path).close()


def test_an_operator_that_was_killed_leaves_no_lock_and_no_half_line(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path; from provision.upgrade.journal import Event, Journal\n"
        "journal = Journal(Path(sys.argv[1])); journal.write(Event('install', 'started', 'h1', 1))\n"
        'os.write(journal._file, b\'{"phase": "ins\'); os.kill(os.getpid(), signal.SIGKILL)\n'
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    assert done.returncode == -9
    with Journal(tmp_path) as journal:
        assert following(journal.state().hosts["h1"].steps) == "install"


@given(st.integers(0, len(FORWARDS)))
def test_wherever_it_was_killed_the_next_phase_is_the_one_cut_off_or_the_one_after(count: int) -> None:
    events = FORWARDS[:count]
    steps = state(events).hosts["h1"].steps if events else ()
    expected = FORWARD[count // 2] if count < len(FORWARDS) else "undrain"
    assert following(steps) == expected


step = st.builds(
    Step,
    phase=st.sampled_from(PHASES),
    status=st.sampled_from(["started", "ok", "failed"]),
    data=st.sampled_from([{}, {"unreachable": True}]),
)
PATHS: list[tuple[Phase, ...]] = [FORWARD, ("drain", *BACK), BACK]


@given(
    st.lists(st.sampled_from(["ok", "failed", "cut off"]), max_size=30),
    st.sampled_from([{}, {"unreachable": True}]),
    st.sampled_from(PATHS),
)
def test_every_host_ends_and_none_is_done_that_failed(
    went: list[str], data: dict[str, object], path: tuple[Phase, ...]
) -> None:
    """Whatever fails, and wherever the operator is killed: a step that was cut off is done again."""
    steps: list[Step] = []
    good = iter(went)
    for _ in range(80):
        after = following(steps, path)
        if is_outcome(after):
            break
        how = next(good, "ok")
        ended = Step(after, status="failed" if how == "failed" else "ok", data=data if how == "failed" else {})
        steps += [Step(after, status="started")] if how == "cut off" else []
        steps = [*steps, ended]
    assert is_outcome(after)
    ran = {one.phase for one in steps}
    well = {one.phase for one in steps if one.status == "ok"}
    failed = {one.phase for one in steps if one.status == "failed"} - {"undrain"}
    assert (after == "done") == (not failed and path == FORWARD)
    if after in ("rolled_back", "broken"):
        assert ran & set(BACK)
    if ran & {*CHANGING, *BACK}:
        assert after != "refused", "a host that was changed cannot be said to be untouched"
    if after == "rolled_back":
        assert steps[-1].phase == "undrain" and well >= set(BACK)
    if "drain" in ran and after not in DOWN:
        assert steps[-1].phase == "undrain", "what was drained is put back"


def test_a_drain_that_failed_is_no_success_because_the_way_out_of_it_was_cut_off() -> None:
    cut = [Step("snapshot", status="ok"), Step("drain", status="failed"), Step("undrain", status="started")]
    assert following([*cut, Step("undrain", status="ok")]) == "refused"


@given(st.lists(step, min_size=1, max_size=6))
def test_no_history_however_odd_is_without_a_next_step(steps: list[Step]) -> None:
    following(steps)


def test_each_phase_stands_once_in_the_order() -> None:
    assert sorted(phase for group in ORDER for phase in group) == sorted(PHASES)
