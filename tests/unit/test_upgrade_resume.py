"""What a run keeps, and what going on with it needs. Ansible is a double; commands and inventories are real."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from provision.bundle import Bundle, build_bundle
from provision.commands import Selection
from provision.errors import BringupError, PlayError, RunDirectoryError, UsageError
from provision.hosts import Host, read_inventory
from provision.plays import HostResult, PlayEvent, PlayResult
from provision.upgrade import command, plays
from provision.upgrade.actions import Actions
from provision.upgrade.journal import HostState, read, state
from provision.upgrade.measure import Measuring
from provision.upgrade.model import Hooks, Means, Options, Prepared
from provision.upgrade.notes import Notes
from provision.upgrade.plays import DONE, Plays

MEANS = Means(Bundle(b"", ""))
KEY = "sesame-0pen-now"
"""A secret that is planted in commands."""


class Stop(Exception):
    """Ends a command in its middle."""


def planner(hosts: Sequence[Host]) -> Prepared:
    return Prepared({host.name: {"nvidia_driver_version": "595.91.07"} for host in hosts})


def broken_off(folder: Path, **options: Any) -> Path:
    """The directory of a run that broke off in its first phase."""

    def broken(*_args: object, **_options: object) -> PlayResult:
        raise PlayError("Ansible could not run upgrade.yml")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plays, "run_play", broken)
        with pytest.raises(BringupError, match="broken off: Ansible could not run"):
            upgrade(folder, **options)
    (run,) = (folder / "runs").iterdir()
    return run


def upgrade(folder: Path, text: str = "h1\n", **options: Any) -> int:
    inventory = folder / "inventory.ini"
    inventory.write_text(text)
    return command.upgrade(
        Selection((str(inventory),)),
        Options("595"),
        runs=folder / "runs",
        planner=planner,
        **{"means": MEANS, **options},
    )


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The inventory of the play that a command would have begun with, and no play."""
    inventories: list[object] = []

    def run_play(_book: str, inventory: object, **_options: object) -> PlayResult:
        inventories.append(inventory)
        raise Stop

    monkeypatch.setattr(plays, "run_play", run_play)
    return inventories


def test_another_inventory_is_another_one_for_ansible_too_and_is_kept(tmp_path: Path, played: list[object]) -> None:
    run = broken_off(tmp_path)
    moved = tmp_path / "moved.ini"
    (tmp_path / "inventory.ini").rename(moved)
    with pytest.raises(Stop):
        command.resume(run, means=MEANS, inventories=(str(moved),))
    with pytest.raises(Stop):
        command.resume(run, means=MEANS)
    assert played == [[moved], [moved]]


def test_names_with_a_comma_are_an_inventory_from_any_folder(
    tmp_path: Path, played: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Stop):
        command.upgrade(Selection(("box1,",)), Options("595"), runs=tmp_path / "runs", planner=planner, means=MEANS)
    assert played == [[Path("box1,")]]


def test_a_run_that_had_a_password_for_sudo_does_not_go_on_without_one(
    tmp_path: Path, played: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BRINGUP_BECOME_PASSWORD", raising=False)
    run = broken_off(tmp_path, means=replace(MEANS, become_password=KEY))
    before = (run / "upgrade.jsonl").read_bytes()
    assert KEY.encode() not in before
    with pytest.raises(UsageError, match="password for sudo") as problem:
        command.resume(run, means=MEANS)
    assert "-K" in problem.value.hint
    assert (run / "upgrade.jsonl").read_bytes() == before and not played
    with pytest.raises(Stop):
        command.resume(run, means=replace(MEANS, become_password=KEY))


@pytest.mark.parametrize("error", [RunDirectoryError("the disk is full"), PlayError("no ansible")])
def test_what_breaks_off_once_hosts_were_touched_is_no_users_mistake_and_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BringupError
) -> None:
    def run_play(*_args: object, **_options: object) -> PlayResult:
        raise error

    monkeypatch.setattr(plays, "run_play", run_play)
    with pytest.raises(BringupError, match=f"broken off: {error.message}") as problem:
        upgrade(tmp_path, hooks=Hooks(undrain="true"), means=replace(MEANS, become_password="x"))  # noqa: S106  a test's
    assert not isinstance(problem.value, UsageError)
    (run,) = (tmp_path / "runs").iterdir()
    assert f"bringup resume {run} -K --undrain CMD" in problem.value.hint
    (step,) = state(read(run)).hosts["h1"].steps
    assert step.status == "started"


HOOKS = Hooks(f"sh -c 'exit 0' {KEY}", "true")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (Hooks(), "its drain command is missing"),
        (Hooks("true", "true"), "its drain command is another"),
        (Hooks(HOOKS.drain), "its undrain command is missing"),
    ],
)
def test_a_run_does_not_go_on_without_the_commands_that_it_began_with(
    tmp_path: Path, played: list[object], given: Hooks, said: str
) -> None:
    run = broken_off(tmp_path, hooks=HOOKS)
    with pytest.raises(UsageError, match=f"host h1: {said}"):
        command.resume(run, means=MEANS, hooks=given)
    assert not played
    for hooks, other in ((HOOKS, False), (given, True), (given, False)):  # what was meant once is kept
        with pytest.raises(Stop):
            command.resume(run, means=MEANS, hooks=hooks, other_hooks=other)


def test_a_secret_in_a_sites_command_is_nowhere_in_the_run_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not in the journal, the manifests and the reports, and not where the command itself says it."""

    def run_play(*_args: object, **options: Any) -> PlayResult:
        options["on_event"](PlayEvent("ok", "h1", DONE))
        return PlayResult("upgrade.yml", "successful", {"h1": HostResult("h1", ok=1)})

    monkeypatch.setattr(plays, "run_play", run_play)
    drain = f"sh -c 'echo Authorization: {KEY} was not taken; exit 3' --token={KEY}"
    monkeypatch.setattr(sys, "argv", ["bringup", "upgrade", "--to", "595", "--drain", drain, f"--undrain=x {KEY}"])
    text = f"""h1 bringup_undrain_command="sh -c 'echo {KEY}; exit 4'"\n"""
    assert upgrade(tmp_path, text, hooks=Hooks(drain)) == 1
    (run,) = (tmp_path / "runs").iterdir()
    files = [path for path in run.rglob("*") if path.is_file()]
    assert len(files) > 4
    assert [path for path in files if KEY in path.read_text()] == []
    host = state(read(run)).hosts["h1"]
    assert host.outcome == "refused" and "sh ended with 3: " in host.detail and "was not taken" in host.detail
    assert json.loads((run / "manifest.json").read_text())["command"].startswith("bringup upgrade --to 595 --drain ***")


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"slurm_token": KEY, "bringup_drain_command": "drain {{ slurm_token }}"}, "bringup_drain_command holds a sec"),
        ({"slurm_token": KEY, "bringup_undrain_command": f"x {KEY}"}, "bringup_undrain_command holds a secret"),
        ({"bringup_drain_command": ["sh", "drain.sh"]}, "bringup_drain_command is not a text"),
        ({"bringup_undrain_command": None}, "bringup_undrain_command is not a text"),
    ],
)
def test_a_command_that_cannot_be_had_from_the_inventory_ends_the_run_before_it_begins(
    tmp_path: Path, variables: dict[str, object], said: str
) -> None:
    path = tmp_path / "inventory.yml"
    path.write_text(yaml.safe_dump({"all": {"hosts": {"h1": variables}}}))
    for run in (
        lambda: command.upgrade(
            Selection((str(path),)), Options("595"), runs=tmp_path / "r", planner=planner, means=MEANS
        ),
        lambda: command.rollback(Selection((str(path),), ("h1",)), Options(""), runs=tmp_path / "r", means=MEANS),
    ):
        _refuses(run, said)
    assert not (tmp_path / "r").exists()


def test_a_vaults_value_is_named_as_withheld_and_other_commands_do_not_mind(tmp_path: Path) -> None:
    path = tmp_path / "inventory.yml"
    path.write_text(
        "all:\n  hosts:\n    h1:\n      bringup_drain_command: !vault |\n"
        "        $ANSIBLE_VAULT;1.1;AES256\n        61\n"
    )
    (host,) = read_inventory(path)
    assert host.withheld == ("bringup_drain_command",) and "bringup_drain_command" not in host.variables
    _refuses(
        lambda: command.upgrade(
            Selection((str(path),)), Options("595"), runs=tmp_path / "r", planner=planner, means=MEANS
        ),
        "bringup_drain_command holds a secret",
    )


def _refuses(run: Callable[[], int], said: str) -> None:
    with pytest.raises(UsageError, match=f"host h1: {said}"):
        run()


def test_a_rollback_names_its_hosts(tmp_path: Path, played: list[object]) -> None:
    path = tmp_path / "inventory.ini"
    path.write_text("h1\nh2\n")
    with pytest.raises(UsageError, match="roll back which hosts"):
        command.rollback(Selection((str(path),)), Options(""), runs=tmp_path / "runs", means=MEANS)
    assert not (tmp_path / "runs").exists()
    with pytest.raises(Stop):
        command.rollback(Selection((str(path),), ("h2",)), Options(""), runs=tmp_path / "runs", means=MEANS)
    (run,) = (tmp_path / "runs").iterdir()
    assert [host.last.phase for host in state(read(run)).hosts.values() if host.last] == ["drain"]
    assert played


def test_a_folder_of_measurements_whose_making_was_cut_off_is_made_whole_and_not_another_beside_it(
    tmp_path: Path,
) -> None:
    measuring = Measuring(tmp_path, (Host("h1"),), build_bundle())
    (tmp_path / "before").mkdir()
    assert measuring.run("before", []) == {}
    assert [path.name for path in tmp_path.iterdir()] == ["before"]
    assert (tmp_path / "before" / "manifest.json").is_file()


def test_without_what_was_measured_before_nobody_is_rolled_back_and_nobody_passes(tmp_path: Path) -> None:
    measuring = Measuring(tmp_path, (Host("h1"),), build_bundle())
    actions = Actions(
        hosts={"h1": Host("h1")},
        options=Options("595"),
        plays=Plays(tmp_path, [Host("h1")]),
        measuring=measuring,
        variables={},
        roles=(),
        snapshot="",
        notes=Notes(tmp_path),
    )
    for there in (False, True):  # no folder; and one with nothing in it
        with pytest.raises(RunDirectoryError):
            actions.run("validate", {"h1": HostState("h1")}, "p", lambda _host: None)
        assert (tmp_path / "before").exists() == there
        assert not (tmp_path / "after").exists(), "nothing is measured for it"
        measuring.run("before", [])
