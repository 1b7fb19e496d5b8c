"""`bringup plan` as a user types it: over SSH on loopback, on this machine, and without any host."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from provision.compat.model import Blocker, Machine, Part, Reason
from provision.errors import ConnectError
from provision.host_plan.model import Change, HostPlan
from provision.hosts import Host
from provision.planning import SURVEY, clock_skew, plan_of_run, survey
from provision.profile import load_profile
from provision.remote import Failure, HostRun
from tests.hosts.sshd import sshd
from tests.wire.conftest import Box
from validators.schema import ERROR, HOST, Hello, Outcome

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-c", "from provision.cli import main; main()"]
NOTHING = '[driver]\nsource = "none"\n[containers]\ndocker = "none"\ntoolkit = false\n[nvtop]\nfrom = "none"\n'


def bringup(*arguments: str, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "160", **more},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def nothing(tmp_path: Path) -> str:
    """A profile that wants nothing: whatever this machine has, nothing of it can block."""
    (tmp_path / "nothing.toml").write_text(f"gpu_required = false\n{NOTHING}")
    return "./nothing.toml"


def test_this_machine_is_planned_without_ssh_and_root(tmp_path: Path):
    done = bringup("plan", "localhost", "--json", cwd=tmp_path)

    assert done.returncode in (0, 1), done.stderr
    (host,) = json.loads(done.stdout)["hosts"]
    assert host["host"] == "localhost"
    assert host["status"] == ("blocked" if done.returncode else "ready")
    assert host["machine"]["os"]
    assert set(host["variables"]) >= {"nvidia_driver_source", "docker_source"}
    assert list(tmp_path.iterdir()) == [], "a plan leaves no run directory"


def test_every_field_of_the_json_is_documented(tmp_path: Path):
    done = bringup("plan", "--gpu", "H200", "--os", "ubuntu-24.04", "--profile", "training", "--json", cwd=tmp_path)
    body = json.loads(done.stdout)
    told = set(re.findall(r"`([a-z_]+)`", (ROOT / "docs/planning.md").read_text()))

    names = {*body, *body["profile"], *body["hosts"][0]}
    for kind in (Machine, Part, Reason, Blocker, Change):
        names |= {one.name for one in fields(kind)}
    names |= set(body["hosts"][0]["variables"])
    assert names - told == set()
    missing = {one.name for one in fields(HostPlan)} - {"resolution"} - set(body["hosts"][0])
    assert not missing, "every field of a plan is in its JSON"


def test_a_pascal_card_gets_the_last_branch_that_serves_it_without_any_host(tmp_path: Path):
    done = bringup("plan", "--gpu", "GTX 1080 Ti", "--os", "ubuntu-24.04", "--json", cwd=tmp_path, PATH="/nowhere")

    assert done.returncode == 0, done.stderr
    (host,) = json.loads(done.stdout)["hosts"]
    parts = {part["name"]: part for part in host["parts"]}
    assert (parts["driver"]["value"], parts["module"]["value"]) == ("580", "proprietary")
    assert all(reason["rule"] and reason["source"] for part in host["parts"] for reason in part["because"])
    assert all(part["because"] for part in host["parts"])


def test_a_card_without_a_driver_there_is_exit_code_1_and_says_where_one_is(tmp_path: Path):
    done = bringup("plan", "--gpu", "GRID K520", "--os", "ubuntu-26.04", cwd=tmp_path)

    assert done.returncode == 1
    assert "blocked: NVIDIA's repository for Ubuntu 26.04 has no driver for GRID K520" in done.stdout
    assert "next: " in done.stdout.partition("blocked:")[2]
    assert done.stdout.index("blocked:") < done.stdout.index("would"), "what blocks comes first"


MISTAKES = {
    "no host": ([], "no hosts"),
    "gpu without os": (["--gpu", "H200"], "--gpu and --os go together"),
    "gpu and a host": (["localhost", "--gpu", "H200", "--os", "ubuntu-24.04"], "ask without a host"),
    "gpu and a limit": (["--gpu", "H200", "--os", "ubuntu-24.04", "--limit", "x"], "ask without a host"),
    "a card with a typo": (["--gpu", "GTX 1080 Tu", "--os", "ubuntu-24.04"], "GTX 1080 Ti"),
    "a system with a typo": (["--gpu", "H200", "--os", "ubuntu-24.4"], "ubuntu-24.04"),
    "no such profile": (["localhost", "--profile", "standrad"], 'did you mean "standard"'),
    "no such file": (["localhost", "--profile", "./none.toml"], "none.toml"),
    "no such inventory": (["-i", "none.ini"], "none.ini"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_users_mistake_is_a_sentence_and_exit_code_2(case: str, tmp_path: Path):
    arguments, word = MISTAKES[case]
    done = bringup("plan", *arguments, cwd=tmp_path)

    assert done.returncode == 2, done.stdout
    assert word in done.stderr
    assert "Traceback" not in done.stderr


def test_a_host_that_cannot_be_read_is_exit_code_3_and_the_others_are_planned(tmp_path: Path, nothing: str):
    (tmp_path / "two.ini").write_text("here ansible_connection=local\ngone ansible_host=127.0.0.1 ansible_port=9\n")

    done = bringup("plan", "-i", "two.ini", "--profile", nothing, "--json", cwd=tmp_path)

    assert done.returncode == 3, done.stderr
    here, gone = json.loads(done.stdout)["hosts"]
    assert (here["status"], gone["status"]) == ("ready", "unread")
    assert gone["failure"]
    assert gone["hint"]
    assert gone["variables"] == {}
    assert here["changes"] == []


def test_what_blocks_goes_before_what_could_not_be_read():
    from provision.planning import exit_code

    blocked, unread, ready = HostPlan("a", blockers=(Blocker("x", "y"),)), HostPlan("b", failure="z"), HostPlan("c")
    assert [exit_code(one) for one in ((ready,), (ready, blocked, unread), (ready, unread))] == [0, 1, 3]


def test_a_host_over_ssh_is_asked_these_three_checks_and_nothing_else(box: Box):
    (run,) = survey(
        [box.host(variables={"bringup_only": ["matmul"], "bringup_skip": "software"})],
        known_hosts=box.server.known_hosts,
    )

    assert run.failure is None
    ended = {one.check: one.status for one in run.records if isinstance(one, Outcome)}
    assert set(ended) == set(SURVEY)
    assert set(ended.values()) == {"ran"}
    skew = clock_skew(run)
    assert skew is not None
    assert abs(skew) < 30, "this machine's own clock"


def test_a_clock_that_is_off_is_seen_from_the_first_record():
    hello = Hello(1, "", "3.11", "h", "b", time_unix=1000.0 + 0.5 - 7200)
    run = HostRun("box", "box", (hello,), started_unix=1000.0, timings={"connect": 0.2, "start": 0.3})

    assert clock_skew(run) == pytest.approx(-7200)
    assert clock_skew(HostRun("box", "box")) is None


def test_a_check_that_crashed_is_no_plan():
    run = HostRun("box", "box", (Outcome("system", HOST, ERROR, "ValueError: x", 0.1),))

    made = plan_of_run(run, load_profile("standard"))

    assert "the check system did not end" in made.failure
    assert made.variables == {}


def test_a_failure_to_connect_is_passed_on_with_its_hint():
    failed = HostRun("box", "box", failure=Failure(ConnectError.__name__, "box: refused", "start sshd"))
    made = plan_of_run(failed, load_profile("standard"))
    assert (made.failure, made.hint) == ("box: refused", "start sshd")


def test_nothing_that_a_host_sends_acts_on_the_terminal(tmp_path: Path):
    import io

    from rich.console import Console

    from provision.host_plan.as_json import render
    from provision.host_plan.as_table import show

    evil = "\x1b[2J[red]x[/red]\u202e\r\n"
    made = HostPlan(
        f"h{evil}",
        Machine(gpus=(f"10de:2335 {evil}",), os=evil, kernel=evil),
        {"os": evil, "driver": evil},
        changes=(Change("install", evil, evil, evil, evil),),
        blockers=(Blocker(evil, evil, (Reason(evil, evil),)),),
        warnings=(evil,),
    )
    profile = load_profile("standard")
    out = io.StringIO()
    show([made], profile, Console(file=out, width=100, force_terminal=True, highlight=False))

    assert "\x1b[2J" not in out.getvalue()
    assert "\u202e" not in out.getvalue()
    assert "[red]x[/red]" in out.getvalue(), "markup is shown, and not obeyed"
    assert "\x1b" not in render([made], profile)


def test_many_hosts_are_planned_in_the_inventorys_order(tmp_path: Path):
    with sshd(tmp_path / "sshd", addresses=tuple(f"127.0.0.{n}" for n in range(2, 6))) as server:
        hosts: list[Host] = [server.host(f"h{n}", address=f"127.0.0.{n}") for n in (4, 2, 5, 3)]
        runs = survey(hosts, known_hosts=server.known_hosts, workers=2)

    assert [run.host for run in runs] == ["h4", "h2", "h5", "h3"]
    assert [run.failure for run in runs] == [None] * 4
