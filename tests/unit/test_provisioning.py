"""What `bringup provision` decides and says, without a host; and what a person sees while a play is silent."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from provision.commands import Selection
from provision.compat.model import Blocker
from provision.errors import UsageError
from provision.host_plan.model import HostPlan
from provision.hosts import Host
from provision.plays import HostResult, PlayEvent, PlayResult, TaskFailure
from provision.plays.late import Door, Late
from provision.plays.view import QUIET_S, Watcher
from provision.plays.words import check_tags, parse_extra_vars
from provision.provisioning import PlayOptions, exit_code, left_out, provision, without_python
from provision.remote.start import not_started


def result(*hosts: HostResult, status: str = "successful") -> PlayResult:
    return PlayResult("site.yml", status, {host.host: host for host in hosts})  # type: ignore[arg-type]


HOST = Host("a")
GOOD, FAILED = HostResult("a", ok=3), HostResult("b", ok=1, failed=1)
GONE = HostResult("c", unreachable=1)
READY = HostPlan("a")
BLOCKED = HostPlan("b", blockers=(Blocker("Secure Boot is on", "enrol the key"), Blocker("/boot is full", "free it")))
UNREAD = HostPlan("c", failure="c: 192.0.2.1 did not answer", hint="is it on?")


@pytest.mark.parametrize(
    ("plans", "played", "code"),
    [
        ((READY,), result(GOOD), 0),
        ((READY,), result(FAILED, status="failed"), 1),
        ((READY,), result(GONE, status="failed"), 3),
        ((READY,), result(GOOD, status="failed"), 1),
        ((READY,), result(GOOD, status="timeout"), 3),
        ((READY, BLOCKED), result(GOOD), 1),
        ((BLOCKED,), None, 1),
        ((READY, UNREAD), result(GOOD), 3),
        ((UNREAD,), None, 3),
        ((UNREAD, BLOCKED), None, 1),
    ],
)
def test_what_failed_or_is_blocked_goes_before_what_was_not_reached(
    plans: tuple[HostPlan, ...], played: PlayResult | None, code: int
) -> None:
    assert exit_code(plans, played) == code


def test_a_host_that_is_blocked_is_not_played_on_and_ansible_that_was_started_for_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text('[driver]\nbranch = "999"\n')  # blocked on whatever machine this is
    code = provision(
        Selection(hosts=("localhost",)), PlayOptions(check=True), profile="./mine.toml", runs=tmp_path / "runs"
    )
    assert code == 1
    said = capsys.readouterr()
    assert "999" in said.out
    (run,) = (tmp_path / "runs").iterdir()
    assert json.loads((run / "plan.json").read_text())["hosts"][0]["status"] == "blocked"
    assert json.loads((run / "plays/site.json").read_text())["hosts"] == {}
    assert (run / "plays/site.jsonl").read_text() == ""


def test_each_host_that_is_not_touched_is_said_with_each_reason_and_next_step() -> None:
    assert list(left_out((READY, BLOCKED, UNREAD))) == [
        "b: not touched: Secure Boot is on",
        "  next: enrol the key",
        "b: not touched: /boot is full",
        "  next: free it",
        "c: not touched, since it could not be read: 192.0.2.1 did not answer",
        "  next: is it on?",
    ]


def test_a_host_without_python_is_known_by_what_the_connection_says_of_it() -> None:
    said = not_started(HOST, 127, b"sh: 1: exec: python3: not found")
    assert without_python(HostPlan("a", failure=said.message))
    assert not without_python(HostPlan("a", failure=not_started(HOST, 1, b"Killed").message))
    assert not without_python(READY)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_where_there_is_no_terminal_a_long_silence_is_broken_by_what_each_host_is_at() -> None:
    clock, said = Clock(), list[str]()
    seen = Watcher(2, write=said.append, clock=clock)
    seen.event(PlayEvent("start", "a", "Reboot, and wait for another boot id", "reboot"))
    clock.now = QUIET_S - 1
    seen.tick()
    assert said == []
    clock.now = QUIET_S + 12
    seen.tick()
    seen.tick()
    assert said == ["  42.0 s  still at    a  reboot: Reboot, and wait for another boot id (42 s)"]
    seen.event(PlayEvent("changed", "a", "Reboot, and wait for another boot id", "reboot"))
    clock.now += 10 * QUIET_S
    seen.tick()
    assert [line.split("  ")[2].strip() for line in said] == ["still at", "changed"]


def test_on_a_terminal_the_host_that_is_longest_at_its_task_comes_first() -> None:
    clock, shown = Clock(), list[str]()
    seen = Watcher(6, write=shown.append, status=shown.append, clock=clock)
    for number in range(6):
        clock.now = float(number)
        seen.event(PlayEvent("start", f"h{number}", "Install", "docker"))
    clock.now = 60.0
    seen.event(PlayEvent("ok", "h0", "Install", "docker"))
    assert shown[-1].startswith("h1: docker: Install (59 s)  h2: docker: Install (58 s)")
    assert shown[-1].endswith("and 1 more hosts")


def test_what_a_host_sends_cannot_act_on_the_terminal() -> None:
    said: list[str] = []
    Watcher(1, write=said.append).event(PlayEvent("failed", "a", "x", "y", message="\x1b[31mred\x1b]0;t\x07"))
    assert "\x1b" not in said[0]
    assert "\x07" not in said[0]


def test_the_door_hands_over_hosts_and_variables_to_whoever_reads_and_to_nobody_where_nobody_is(
    tmp_path: Path,
) -> None:
    door = Door(tmp_path)
    pipe = Path(door.words[1].removeprefix("@"))
    got: list[str] = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_text()))
    reader.start()
    big = {"bringup_plan": {"a": {"text": "x" * 300_000}}}
    door.hand_over(Late(["a", "b"], big), lambda: True)
    reader.join(10)
    assert json.loads(got[0]) == big
    assert Path(door.words[3].removeprefix("@")).read_text() == "a\nb\n"
    other = tmp_path / "other"
    other.mkdir()
    Door(other).hand_over(Late(["a"]), lambda: False)
    assert (other / "late_vars.json").stat().st_mode & 0o077 == 0


def test_tags_are_those_of_the_playbook() -> None:
    check_tags(["docker,nvtop", "nvidia_driver", "all"])
    with pytest.raises(UsageError, match=r'no role has the tag "dokcer"; did you mean "docker"\?'):
        check_tags(["dokcer"])
    with pytest.raises(UsageError, match="snapshot"):
        check_tags(["snapshot"])


def test_variables_are_yaml_and_a_file_of_them_is_taken(tmp_path: Path) -> None:
    (tmp_path / "more.yml").write_text("a: [1, 2]\n")
    assert parse_extra_vars(["x=true", f"@{tmp_path / 'more.yml'}", "y="]) == {"x": True, "a": [1, 2], "y": None}
    for wrong in ("nonsense", "a b=1", f"@{tmp_path / 'none.yml'}", "x=[1"):
        with pytest.raises(UsageError):
            parse_extra_vars([wrong])


def test_a_failure_that_no_host_s_task_explains_keeps_ansible_s_own_words() -> None:
    failure = TaskFailure("b", "Install", "docker", "apt", "no such package")
    assert result(HostResult("b", ok=1, failed=1, failure=failure), status="failed").failures == (failure,)
    broken = PlayResult("site.yml", "failed", {"a": GOOD}, message="[ERROR]: YAML parsing failed")
    assert not broken.ok
    assert exit_code((READY,), broken) == 1
