"""A phase that is a play: done is who reached its last task, and nobody else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from provision.errors import BringupError, InventoryError, PlayError
from provision.hosts import Host
from provision.plays import HostResult, PlayEvent, PlayResult, TaskFailure
from provision.upgrade import plays
from provision.upgrade.plays import DONE, Plays

HOSTS = [Host("a"), Host("b"), Host("c")]


def play(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, status: str, **hosts: tuple[bool, HostResult]) -> Any:
    """Run a phase whose play went so: name -> (it reached the last task, its counts)."""

    def run_play(*_args: object, **options: Any) -> PlayResult:
        for name, (reached, _) in hosts.items():
            if reached:
                options["on_event"](PlayEvent("ok", name, DONE))
        counts = {name: counts for name, (_, counts) in hosts.items()}
        return PlayResult("upgrade.yml", status, counts, 1.0, False, tmp_path)  # type: ignore[arg-type]  # a word of it

    monkeypatch.setattr(plays, "run_play", run_play)
    told: list[str] = []
    results = Plays(tmp_path, HOSTS).run("upgrade.yml", "p", list(hosts), deadline_s=60, done=told.append)
    assert told == [name for name, (reached, _) in hosts.items() if reached]
    return results


def test_a_host_whose_play_was_cut_off_is_not_done_though_nothing_failed_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    half = HostResult("b", ok=3)
    results = play(monkeypatch, tmp_path, "timeout", a=(True, HostResult("a", ok=5)), b=(False, half))
    assert results["a"].ok and not results["b"].ok
    assert "did not end within 60 s" in results["b"].detail


def test_a_host_that_the_play_never_saw_is_not_done(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    results = play(monkeypatch, tmp_path, "successful", a=(False, HostResult("a")))
    assert not results["a"].ok


def test_a_lost_connection_is_told_from_a_failed_task(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lost = TaskFailure("a", "Install", "nvidia_driver", "apt", "timed out", unreachable=True)
    bad = TaskFailure("b", "Install", "nvidia_driver", "apt", "Task failed: Timed out after 1800 second(s).")
    results = play(
        monkeypatch,
        tmp_path,
        "failed",
        a=(False, HostResult("a", unreachable=1, failure=lost)),
        b=(False, HostResult("b", failed=1, failure=bad)),
    )
    assert results["a"].data == {"unreachable": True} and "not reached over SSH" in results["a"].detail
    assert results["b"].data == {}
    assert results["b"].detail == (
        "nvidia_driver: Install: it did not end within 1800 s: something hangs there, or a mirror is very slow"
    )


@pytest.mark.parametrize("error", [PlayError("Ansible could not run upgrade.yml"), InventoryError("no host")])
def test_a_play_that_could_not_start_says_nothing_of_its_hosts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: BringupError
) -> None:
    def run_play(*_args: object, **_options: object) -> PlayResult:
        raise error

    monkeypatch.setattr(plays, "run_play", run_play)
    with pytest.raises(type(error)):
        Plays(tmp_path, HOSTS).run("upgrade.yml", "p", ["a", "b"], deadline_s=60)
