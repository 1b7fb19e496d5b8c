"""`bringup upgrade`, `resume` and `rollback` before any host is touched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from provision.bundle import Bundle
from provision.cli import app
from provision.commands import Selection
from provision.errors import UsageError
from provision.hosts import Host
from provision.upgrade import command, plays
from provision.upgrade.journal import Event, Journal
from provision.upgrade.model import Means, Options, Prepared
from provision.upgrade.waves import Rules

MEANS = Means(Bundle(b"", ""))


class Stop(Exception):
    """Ends a command in its middle."""


def planner(hosts: Sequence[Host]) -> Prepared:
    return Prepared({host.name: {"nvidia_driver_version": "595.91.07"} for host in hosts})


def inventory(tmp_path: Path, *lines: str) -> Selection:
    path = tmp_path / "inventory.ini"
    path.write_text("\n".join(lines) + "\n")
    return Selection((str(path),))


def test_check_says_who_would_go_when_and_makes_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = inventory(tmp_path, *(f"h{at} bringup_serial_group=g{at % 2}" for at in range(4)))
    options = Options("595", Rules(wave="50%"))
    assert command.upgrade(chosen, options, runs=tmp_path / "r", planner=planner, means=MEANS, check=True) == 0
    said = capsys.readouterr().err
    assert "wave 1 (canary): h0" in said and "wave 2: h1, h2" in said and "wave 3: h3" in said
    assert not (tmp_path / "r").exists()


def test_a_host_that_cannot_have_it_ends_the_run_before_it_begins(tmp_path: Path) -> None:
    def refusing(hosts: Sequence[Host]) -> Prepared:
        return Prepared({}, {host.name: "GRID K520 ends at branch 470" for host in hosts})

    chosen = inventory(tmp_path, "old1", "old2")
    with pytest.raises(UsageError, match=r"old1 cannot have 595: GRID K520 .* \(1 more hosts\)"):
        command.upgrade(chosen, Options("595"), runs=tmp_path / "r", planner=refusing, means=MEANS)
    assert not (tmp_path / "r").exists()


def test_this_machine_is_not_upgraded_under_its_own_operator(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is this machine"):
        command.upgrade(
            Selection(hosts=("localhost",)), Options("595"), runs=tmp_path / "r", planner=planner, means=MEANS
        )


def test_a_run_that_is_none_is_not_made_one_by_resuming_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        command.resume(tmp_path, means=MEANS)
    assert list(tmp_path.iterdir()) == []


def test_a_run_whose_host_has_left_the_inventory_says_so(tmp_path: Path) -> None:
    chosen = inventory(tmp_path, "h1")
    body = {
        "options": {"to": "595"},
        "waves": [{"number": 1, "hosts": ["h1", "gone"]}],
        "members": [{"name": "h1"}, {"name": "gone"}],
        "inventories": list(chosen.inventories),
    }
    with Journal(tmp_path) as journal:
        journal.write(Event("plan", data=body))
    with pytest.raises(UsageError, match="no longer has gone"):
        command.resume(tmp_path, means=MEANS)


def test_what_the_plays_fetch_lies_where_it_is_read_wherever_the_run_directory_was_named_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ansible's `fetch` takes a relative place for one beside the playbook."""
    given: list[Mapping[str, object]] = []

    def run_play(_book: str, _inventory: object, *, extra_vars: Mapping[str, object], **_more: object) -> None:
        given.append(extra_vars)
        raise Stop

    monkeypatch.setattr(plays, "run_play", run_play)
    monkeypatch.chdir(tmp_path)
    chosen = replace(inventory(tmp_path, "h1"), hosts=("h1",))
    with pytest.raises(Stop):
        command.rollback(chosen, Options(""), runs=Path("r"), without_drain=True, means=MEANS)
    (run,) = (tmp_path / "r").iterdir()
    folder = str(given[0]["bringup_upgrade_folder"])
    assert folder == str(run / "snapshots")


@pytest.mark.parametrize(
    "words",
    [
        ["upgrade", "-i", "x,"],
        ["upgrade", "-i", "x,", "--to", "latest"],
        ["upgrade", "-i", "x,", "--to", "595", "--wave", "0"],
        ["upgrade", "--to", "595"],
        ["resume", "no-such-run"],
        ["rollback"],
    ],
)
def test_a_users_mistake_is_a_sentence_and_exit_code_2(words: list[str]) -> None:
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2, done.output
    assert "Traceback" not in done.output
