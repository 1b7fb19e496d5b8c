"""The command line as a user types it: a process, its two streams and its exit code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.hosts.sshd import descendants
from tests.need import need

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-c", "from provision.cli import main; main()"]
COMMANDS = ("plan", "provision", "validate", "doctor", "report", "judge", "checks", "data")


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120"}


def bringup(*arguments: str, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=cwd,
        env={**environment(), **more},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A level-1 run of this machine."""
    folder = tmp_path_factory.mktemp("measured")
    done = bringup("validate", "localhost", "--level", "1", "--json", cwd=folder)
    assert done.returncode in (0, 1, 3), done.stderr
    (folder / "stdout.json").write_text(done.stdout)
    return folder


def the_run(folder: Path) -> Path:
    return next((folder / "runs").iterdir())


def test_importing_the_command_line_loads_nothing_heavy():
    heavy = ("rich", "jinja2", "paramiko", "ansible", "yaml", "torch")
    code = f"import sys, provision.cli; print([one for one in {heavy} if one in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str, tmp_path: Path):
    done = bringup(command, "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert f"bringup {command}" in done.stdout.partition("Example")[2]


def test_with_json_stdout_is_one_document_and_the_rest_is_on_stderr(measured: Path):
    report = json.loads((measured / "stdout.json").read_text())
    assert [host["name"] for host in report["hosts"]] == ["localhost"]


def test_a_report_says_which_checks_are_of_a_higher_level(measured: Path):
    (note,) = json.loads((measured / "stdout.json").read_text())["notes"]
    assert note.startswith("Not run at level 1: cifar, ")
    assert " matmul," in note
    assert "system" not in note


def test_a_report_says_on_which_hosts_the_inventory_left_a_check_out(tmp_path: Path):
    (tmp_path / "two.ini").write_text("a ansible_connection=local\nb ansible_connection=local bringup_only=system\n")
    done = bringup("validate", "-i", "two.ini", "--level", "1", "--json", cwd=tmp_path)
    notes = json.loads(done.stdout)["notes"]
    (asked,) = (note for note in notes if note.startswith("Left out on request on b: "))
    assert {"gpu_health,", "installation,", "matmul,", "software."} <= set(asked.split())
    assert any(note.startswith("Not run at level 1 on a: cifar, ") for note in notes)


def test_a_run_leaves_every_rendering_and_the_raw_records(measured: Path):
    run = the_run(measured)
    assert {path.name for path in run.glob("report.*")} == {
        "report.html",
        "report.md",
        "report.json",
        "report.junit.xml",
    }
    assert (run / "hosts" / "localhost" / "records.jsonl").read_text().count("\n") > 20


def test_a_report_is_rendered_again_in_any_format(measured: Path, tmp_path: Path):
    for format, sign in (
        ("html", "<!doctype html>"),
        ("md", "# "),
        ("json", "{"),
        ("junit", "<?xml"),
        ("terminal", "localhost"),
    ):
        done = bringup("report", str(the_run(measured)), "--format", format, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert sign in done.stdout.lower()[:2000]


@pytest.mark.parametrize("format", ["terminal", "html", "md", "json", "junit"])
def test_a_terminal_of_another_encoding_gets_a_report_and_no_traceback(measured: Path, format: str):
    done = subprocess.run(
        [*COMMAND, "report", str(the_run(measured)), "--format", format],
        env={**environment(), "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert b"localhost" in done.stdout
    if format in ("html", "md"):
        assert not done.stdout.isascii(), "a file's encoding is its own"


@pytest.mark.parametrize("format", ["terminal", "json"])
def test_a_full_disk_behind_stdout_is_said_and_is_no_success(measured: Path, format: str):
    need(Path("/dev/full").exists(), "/dev/full", installable=False)
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*COMMAND, "report", str(the_run(measured)), "--format", format],
            env=environment(),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 3
    assert "the system refused" in done.stderr
    assert "No space left" in done.stderr
    assert "Traceback" not in done.stderr


def test_judge_holds_old_numbers_against_new_thresholds_and_touches_no_host(measured: Path, tmp_path: Path):
    stricter = tmp_path / "stricter.toml"
    stricter.write_text(
        '[[criterion]]\nid = "huge_memory"\ncheck = "system"\nmetric = "memory_total"\nunit = "MiB"\n'
        'rule = "at_least"\n'
        'value = 999999999\nbecause = "a test"\nsource = "this test"\n'
    )
    done = bringup(
        "judge", str(the_run(measured)), "--criteria", str(stricter), "--json", cwd=tmp_path, PATH="/nowhere"
    )
    assert done.returncode == 1, done.stderr
    verdicts = json.loads(done.stdout)["hosts"][0]["verdicts"]
    assert [one["status"] for one in verdicts if one["metric"] == "memory_total"] == ["FAIL"]


def test_an_expectation_of_the_inventory_that_does_not_hold_is_a_fail(tmp_path: Path):
    (tmp_path / "hosts.ini").write_text("box ansible_connection=local expect_gpu_count=64\n")
    done = bringup("validate", "-i", "hosts.ini", "--level", "1", "--json", cwd=tmp_path)
    assert done.returncode == 1
    verdicts = json.loads(done.stdout)["hosts"][0]["verdicts"]
    assert any(
        one["status"] == "FAIL" and (one["criterion"] or {}).get("source", "").endswith("expect_gpu_count")
        for one in verdicts
    )


BAD_WORDS = {
    "no hosts": (["validate"], "no hosts"),
    "unknown check": (["validate", "localhost", "--only", "matmull"], "matmul"),
    "unknown parameter": (["validate", "localhost", "--param", "nonsense"], "nonsense"),
    "misspelt setting": (["validate", "localhost", "-p", "matmul.secnods=1"], 'did you mean "seconds"'),
    "limit without inventory": (["validate", "--limit", "x"], "inventory"),
    "missing inventory": (["validate", "-i", "nowhere.ini"], "nowhere.ini"),
    "no such run": (["report", "runs/none"], "runs/none"),
    "criteria with a typo": (["validate", "localhost", "-c", "typo.toml"], "did you mean"),
    "not a host": (["validate", "-i", "hosts.ini", "--limit", "boxx"], "boxx"),
    "an unknown expectation": (["validate", "-i", "expect.ini"], "expect_gpu_count"),
    "a tag of no role": (["provision", "-i", "hosts.ini", "--tags", "dokcer"], 'did you mean "docker"'),
    "an endless timeout": (["validate", "localhost", "--timeout", "inf"], "cannot be meant"),
    "extra vars": (["provision", "-i", "hosts.ini", "-e", "nonsense"], "KEY=VALUE"),
}


@pytest.mark.parametrize("case", BAD_WORDS)
def test_a_users_mistake_is_a_sentence_and_exit_code_2(case: str, tmp_path: Path):
    (tmp_path / "hosts.ini").write_text("box ansible_connection=local\n")
    (tmp_path / "expect.ini").write_text("box ansible_connection=local expect_gpu_cuont=1\n")
    (tmp_path / "typo.toml").write_text(
        '[[criterion]]\nid = "x"\ncheck = "system"\nmetric = "gpu_cuont"\nunit = "count"\nrule = "at_least"\n'
        'value = 1\nbecause = "b"\nsource = "s"\n'
    )
    arguments, said = BAD_WORDS[case]
    done = bringup(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "runs").exists(), "a mistake comes to light before anything is made"


def test_a_run_directory_that_cannot_be_made_is_said_before_any_host_is_touched(tmp_path: Path):
    (tmp_path / "occupied").write_text("a file")
    done = bringup("validate", "localhost", "--runs", "occupied/runs", cwd=tmp_path)
    assert done.returncode == 2
    assert "occupied" in done.stderr
    assert "--runs" in done.stderr


def interrupted(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Send what Ctrl-C sends, to the whole foreground group; its exit code and stderr."""
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    return process.returncode, said


def start(cwd: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, *arguments],
        cwd=cwd,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(what: object, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if callable(what) and what():
            return
        time.sleep(0.05)
    raise AssertionError("it did not come about")


def test_ctrl_c_while_the_inventory_is_read(tmp_path: Path):
    script = tmp_path / "slow.sh"
    script.write_text("#!/bin/sh\ntouch started\nsleep 60\n")
    script.chmod(0o755)
    process = start(tmp_path, "validate", "-i", str(script))
    wait_for((tmp_path / "started").exists)
    code, said = interrupted(process)
    assert code == 130
    assert "Traceback" not in said


def test_ctrl_c_while_checks_run_keeps_what_was_measured_and_leaves_no_process(tmp_path: Path):
    process = start(tmp_path, "validate", "localhost", "--device", "cpu", "--only", "matmul", "-p", "matmul.seconds=60")
    records = lambda: [path for path in tmp_path.glob("runs/*/hosts/localhost/records.jsonl") if path.stat().st_size]  # noqa: E731 - a name for the wait
    wait_for(lambda: records() and len(descendants(process.pid)) >= 2)
    children = descendants(process.pid)
    code, said = interrupted(process)
    assert code == 130
    assert "Traceback" not in said
    assert "kept" in said
    report = json.loads(next(tmp_path.glob("runs/*/report.json")).read_text())
    assert report["status"] != "PASS"
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children), 20)


def test_a_host_that_was_not_reached_is_told_once(tmp_path: Path):
    (tmp_path / "hosts.ini").write_text("gone ansible_host=127.0.0.1 ansible_port=1\n")
    done = bringup("validate", "-i", "hosts.ini", "--level", "1", cwd=tmp_path)
    assert done.returncode == 3
    assert "5 planned checks have no outcome for this reason" in done.stdout
    assert "gone: gone" not in done.stdout + done.stderr
    assert done.stdout.count("no SSH server on that port") == 2, "the headline and the verdict"
