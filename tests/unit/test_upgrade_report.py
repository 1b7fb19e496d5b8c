"""The report of an upgrade, and the site's own commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from provision.compat.model import Blocker
from provision.errors import UsageError
from provision.host_plan.model import Change, HostPlan
from provision.hosts import Host
from provision.upgrade import report
from provision.upgrade.drain import command_of, run_hooks
from provision.upgrade.journal import Event, RunState, state
from provision.upgrade.planner import prepared
from provision.upgrade.view import page

HOSTILE = "<script>alert(1)</script>\x1b[31m|`x`"
MEASURED = {"driver": "580.159.04", "status": "PASS", "headline": HOSTILE, "gpus": ["H200 GPU-1"], "rates": {"m": 700}}


def run() -> RunState:
    plan = {"waves": [{"number": 1, "hosts": ["h1"]}, {"number": 2, "hosts": ["h2", "h3"]}], "options": {"to": "595"}}
    return state(
        [
            Event("plan", data=plan),
            Event("before", "started", "h1", 1, time="2026-11-21T08:00:00Z"),
            Event("before", "ok", "h1", 1, "", MEASURED, time="2026-11-21T08:00:05Z"),
            Event("install", "started", "h1", 1, time="2026-11-21T08:00:05Z"),
            Event("install", "failed", "h1", 1, HOSTILE, time="2026-11-21T08:01:05Z"),
            Event("restore", "started", "h1", 1),
            Event("restore", "ok", "h1", 1),
            Event("validate_back", "started", "h1", 1),
            Event("validate_back", "ok", "h1", 1, "", {**MEASURED, "rates": {"m": 693}}),
            Event("end", "rolled_back", "h1", 1, HOSTILE),
            Event("install", "started", "h2", 2),
            Event("stop", detail="1 failed"),
        ]
    )


def test_it_shows_before_attempt_and_after_for_each_host() -> None:
    made = page("r1", run())
    words = {host.name: host.word for host in made.hosts}
    assert words == {"h1": "rolled_back", "h2": "in flight", "h3": "not begun"}
    assert made.status == "ERROR", "a host in flight is not known to be well"
    host = next(one for one in made.hosts if one.name == "h1")
    assert [(step.phase, step.status, step.seconds) for step in host.steps][:2] == [
        ("before", "PASS", 5.0),
        ("install", "FAIL", 60.0),
    ]
    assert (host.before["driver"], host.now) == ("580.159.04", "580.159.04")
    assert [round(rate.share or 0, 2) for rate in host.rates] == [0.99]


def test_a_host_that_had_the_driver_already_is_not_called_good_by_a_run_that_did_not_measure_it() -> None:
    made = page("r1", state([Event("plan", data={}), Event("end", "done", "h1", 0, "it has 595.91.07 already")]))
    (host,) = made.hosts
    assert (host.word, host.status, host.now) == ("nothing to do", "SKIP", "not measured")
    assert made.status == "SKIP"


def test_nothing_that_a_host_said_is_markup_in_it(tmp_path: Path) -> None:
    report.write(tmp_path, run())
    page_text = (tmp_path / "upgrade.html").read_text()
    assert "<script" not in page_text and "&lt;script&gt;" in page_text and "\x1b" not in page_text
    markdown = (tmp_path / "upgrade.md").read_text()
    assert "<script" not in markdown and "\x1b" not in markdown
    assert json.loads((tmp_path / "upgrade.json").read_text())["stopped"] == "1 failed"
    assert (tmp_path / "upgrade.html").stat().st_mode & 0o077 == 0


def test_a_run_whose_journal_has_nothing_is_reported_all_the_same(tmp_path: Path) -> None:
    report.write(tmp_path, RunState())
    assert page("r", RunState()).status == "ERROR"


def test_a_sites_command_is_run_without_a_shell_and_knows_the_host(tmp_path: Path) -> None:
    host = Host("gpu1", "192.0.2.1", variables={"bringup_drain_command": f"sh -c 'env > {tmp_path}/seen' $(false)"})
    words = command_of(host, "bringup_drain_command", "")
    assert words[3:] == ["$(false)"]
    assert run_hooks({"gpu1": (host, words)}, 10)["gpu1"].ok
    seen = (tmp_path / "seen").read_text()
    assert "BRINGUP_HOST=gpu1\n" in seen and "BRINGUP_ADDRESS=192.0.2.1\n" in seen


def test_a_sites_command_that_fails_or_hangs_is_that_hosts_alone() -> None:
    hosts = {name: Host(name) for name in ("a", "b", "c")}
    commands = {
        "a": (hosts["a"], ["sh", "-c", "echo no such node; exit 3"]),
        "b": (hosts["b"], ["sleep", "60"]),
        "c": (hosts["c"], ["true"]),
    }
    results = run_hooks(commands, 0.5)
    assert results["a"].detail == "sh ended with 3: no such node"
    assert "did not end within" in results["b"].detail
    assert results["c"].ok


@pytest.mark.parametrize("text", ["'unfinished", "no-such-program-here --now"])
def test_a_command_that_cannot_be_run_is_said_before_any_host_is_touched(text: str) -> None:
    with pytest.raises(UsageError, match="host gpu1"):
        command_of(Host("gpu1"), "bringup_drain_command", text)


def test_jobs_on_a_gpu_do_not_refuse_a_host_that_is_drained_first_and_all_else_does() -> None:
    jobs = Blocker("2 processes on the GPU: python3 (1), python3 (2)", "drain the host")
    disk = Blocker("/var has 1 MiB free", "make room")
    variables = {"nvidia_driver_source": "nvidia"}
    plans = [
        HostPlan("busy", blockers=(jobs,), variables=variables),
        HostPlan("full", blockers=(jobs, disk), variables=variables),
        HostPlan("silent", failure="silent: no answer"),
        HostPlan("none", variables={"nvidia_driver_source": "none"}),
    ]
    made = prepared(plans)
    assert set(made.variables) == {"busy"}
    assert made.refused["full"].startswith("/var has") and made.refused["silent"] == "silent: no answer"
    assert "no driver" in made.refused["none"]


@pytest.mark.parametrize(
    ("why", "found", "changes", "version", "already"),
    [
        ("a branch, and any of it is loaded", "595.91.07 595.91.07", (), "", True),
        ("a version", "595.91.07 595.91.07", (), "595.91.07", True),
        ("another version of the branch", "595.91.07 595.91.07", (), "595.92.01", False),
        ("another branch", "580.159.04 580.159.04", (), "", False),
        ("installed, and the old one is still loaded", "595.91.07 580.159.04", (), "", False),
        ("a newer one of the branch waits for a reboot", "595.92.01 595.91.07", (), "", False),
        ("installed, and nothing is loaded", "595.91.07", (), "", False),
        ("the plan holds packages", "595.91.07 595.91.07", ("driver packages",), "", False),
        ("the plan changes what an upgrade leaves alone", "595.91.07 595.91.07", ("docker", "torch", "i@1"), "", True),
    ],
)
def test_a_host_has_it_already_where_the_plan_changes_nothing_and_the_driver_is_loaded(
    why: str, found: str, changes: tuple[str, ...], version: str, already: bool
) -> None:
    there = dict(zip(("driver", "driver_loaded"), found.split(), strict=False))
    variables: dict[str, object] = {
        "nvidia_driver_source": "nvidia",
        "nvidia_driver_branch": "595",
        "nvidia_driver_version": version,
        "ngc_images": ["i@1"],
    }
    plan = HostPlan("h1", found=there, changes=tuple(Change("install", one) for one in changes), variables=variables)
    made = prepared([plan])
    assert ("h1" in made.already) == already, why
    assert "h1" in made.variables and not made.refused
