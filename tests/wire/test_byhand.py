"""The bundle by hand on a host: readable lines, JSON Lines, and a plain word for wrong usage."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.wire.planting import GOOD, alive, bundle_of, noted, spawn_and_note, wait_until, write_bundle
from validators import byhand
from validators.schema import Measurement, Outcome, decode, decode_catalogue

BODIES = {
    "x_good": GOOD,
    "x_skip": "raise Skip('no GPU here')",
    "x_bad": "raise RuntimeError('card on fire')",
    "x_evil": "ctx.measure('n', 1, labels={'name': '\\x1b[31mred\\x1b[0m\\n<b>[bold]'})",
}


@pytest.fixture(scope="module")
def pyz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("pyz"), bundle_of(BODIES))


def said(pyz: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(pyz), *words], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )


def test_lines_for_a_person(pyz: Path) -> None:
    told = said(pyz, "run", "x_good", "x_skip")
    assert told.returncode == 0
    assert "  x_good.n = 1\n" in told.stdout
    assert "x_good: ran (" in told.stdout
    assert "x_skip: SKIPPED: no GPU here (" in told.stdout
    assert "\x1b" not in told.stdout


def test_a_check_that_cannot_measure_is_exit_status_3(pyz: Path) -> None:
    told = said(pyz, "run", "x_good", "x_bad")
    assert told.returncode == 3
    assert "x_bad: ERROR: RuntimeError: card on fire" in told.stdout


def test_json_lines_for_a_program(pyz: Path) -> None:
    told = said(pyz, "run", "x_good", "--json")
    records = [decode(line.encode()) for line in told.stdout.splitlines()]
    assert [type(one) for one in records] == [Measurement, Outcome]


def test_control_characters_of_the_host_are_not_printed(pyz: Path) -> None:
    told = said(pyz, "run", "x_evil")
    assert "name=?[31mred?[0m?<b>[bold]" in told.stdout


@pytest.mark.parametrize("words", [("run",), ("run", "x_godo"), ("run", "--device", "tpu", "x_good"), ("walk",)])
def test_wrong_usage_is_exit_status_2_with_a_way_out(pyz: Path, words: tuple[str, ...]) -> None:
    told = said(pyz, *words)
    assert told.returncode == 2
    assert "--help" in told.stderr
    assert told.stdout == ""
    assert "Traceback" not in told.stderr


def test_a_typo_is_answered_with_the_nearest_name(pyz: Path) -> None:
    assert "did you mean x_good?" in said(pyz, "run", "x_godo").stderr


def test_the_help_has_an_example_and_the_checks(pyz: Path) -> None:
    for words in ((), ("--help",), ("run", "--help")):
        told = said(pyz, *words)
        assert told.returncode == 0
        assert "Examples:" in told.stdout
        assert "x_good" in told.stdout


def test_the_catalogue_has_every_check(pyz: Path) -> None:
    infos = {info.name: info for info in decode_catalogue(said(pyz, "describe").stdout)}
    assert set(BODIES) <= set(infos)
    assert infos["x_good"].measures == "Planted by a test."


def test_device_cpu_reaches_the_check(tmp_path: Path) -> None:
    body = "ctx.measure('n', 1, labels={'device': ctx.plan.device})"
    path = write_bundle(tmp_path, bundle_of({"x_where": body}))
    assert "device=cpu" in said(path, "run", "x_where", "--device", "cpu").stdout


def test_sharing_and_data_reach_the_check(tmp_path: Path) -> None:
    body = "ctx.measure('n', 1, labels={'share': str(ctx.plan.share), **ctx.plan.data})"
    told = said(
        write_bundle(tmp_path, bundle_of({"x_where": body})), "run", "x_where", "--share", "--data", "cifar10=/srv/c"
    )
    assert "share=True" in told.stdout
    assert "cifar10=/srv/c" in told.stdout


def test_a_setting_reaches_the_check_and_an_unknown_one_is_refused(tmp_path: Path) -> None:
    path = write_bundle(tmp_path, bundle_of({}))
    quick = ("--device", "cpu", "--param", "matmul.size=256", "--param", "matmul.seconds=0.1")
    assert " n=256 " in said(path, "run", "matmul", *quick).stdout
    for wrong in ("matmul.sizes=1", "matmul", "x_nothing.n=1"):
        refused = said(path, "run", "matmul", "--param", wrong)
        assert refused.returncode == 2
        assert f"not CHECK.KEY=VALUE of a check's settings: '{wrong}'" in refused.stderr


@pytest.mark.parametrize("wrong", ["matmul.seconds=NaN", "matmul.seconds=-Infinity", "soak.duration_s=yes"])
def test_what_is_no_number_is_refused_before_anything_runs(pyz: Path, wrong: str) -> None:
    refused = said(pyz, "run", wrong.split(".", maxsplit=1)[0], "--param", wrong)
    assert refused.returncode == 2
    assert "not a number" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_soaks_time_is_added_to_its_timeout() -> None:
    plan, _ = byhand._plan(["soak", "--param", "soak.duration_s=3600"])
    assert plan.checks[0].timeout_s > 3600


def test_ctrl_c_is_exit_status_130_and_nothing_is_left(tmp_path: Path) -> None:
    path = write_bundle(tmp_path / "pyz", bundle_of({"x_tree": spawn_and_note(tmp_path)}))
    with subprocess.Popen([sys.executable, str(path), "run", "x_tree"], stdout=subprocess.PIPE) as process:
        pids = noted(tmp_path)
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(20) == 130
        assert wait_until(lambda: not any(alive(pid) for pid in pids))
