"""The run directory: written as results arrive, read back whatever happened to it."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import pytest

from provision.criteria import load_files
from provision.errors import RunDirectoryError
from provision.hosts import Host
from provision.manifest import HIDDEN, Manifest, decode_manifest, encode_manifest, without_secrets
from provision.remote import Failure, HostRun
from provision.report import render
from provision.store import RunDirectory, rejudge, safe_name
from tests.need import need
from tests.unit.judging import CATALOGUE, GPU0, PLAN, answered, good
from tests.unit.test_criteria import ENTRY, file_of
from validators.schema import encode

SYSTEM_RULES = """
[[criterion]]
id = "gpu_count"
check = "system"
metric = "gpu_count"
unit = "count"
rule = "at_least"
value = 1
because = "a GPU host has a GPU"
source = "definition"
[[criterion]]
id = "capability"
check = "compute_capability"
metric = "compute_capability"
unit = "version"
rule = "at_least"
value = "5.2"
because = "the containers' floor"
source = "test"
"""

HOSTILE = (
    "../../etc/passwd",
    "..",
    ".",
    "a/b",
    "x" * 300,
    "größe",
    "GPU1",
    "gpu1\n",
    "<script>",
    "-rf",
    "",
    "nul\0byte",
    "\ud800",
    "gpu1-0123456789ab",
)


def manifest(*hosts: Host, text: str = SYSTEM_RULES + ENTRY) -> Manifest:
    hosts = hosts or (Host("gpu1", "192.0.2.1"),)
    return Manifest(
        version="0.1",
        created="2026-11-21T04:00:00Z",
        python="3.11.7",
        command="bringup validate",
        hosts=hosts,
        catalogue=CATALOGUE,
        plans={host.name: PLAN for host in hosts},
        criteria=(file_of(text),),
    )


def written(base: Path, run: HostRun | None = None) -> RunDirectory:
    run = run or answered(good())
    made = RunDirectory.create(base, manifest(Host(run.host, run.address)))
    made.records_path(run.host).write_bytes(b"".join(encode(record) for record in run.records))
    made.finish_host(run)
    return made


def test_a_run_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    run = replace(answered(good()), timings={"connect": 0.1}, stderr_tail="\x1b[31mred", notes=("home full",))
    made = written(tmp_path, run)
    again = RunDirectory.open(made.path)
    assert again.runs() == (run,)
    assert again.manifest == made.manifest
    assert rejudge(again, judged="now").status == "PASS"
    assert rejudge(again, judged="now") == rejudge(made, judged="now")


def test_a_failure_of_a_host_is_read_back(tmp_path: Path) -> None:
    failure = Failure("ConnectError", "gpu1: refused", "start sshd")
    made = written(tmp_path, HostRun("gpu1", "192.0.2.1", failure=failure))
    assert made.runs()[0].failure == failure
    assert rejudge(made).hosts[0].headline == "gpu1: refused. start sshd."


def test_new_thresholds_over_old_measurements_turn_the_named_check_to_fail(tmp_path: Path) -> None:
    made = written(tmp_path)
    stricter = load_files([file_of((SYSTEM_RULES + ENTRY).replace("0.7", "0.9"))], CATALOGUE)
    report = rejudge(made, stricter)
    assert report.status == "FAIL"
    assert {verdict.metric for verdict in report.hosts[0].verdicts if verdict.status == "FAIL"} == {"throughput_bf16"}
    assert report.criteria_files == ((stricter.files[0].name, stricter.files[0].sha256),)


def test_a_truncated_last_record_is_lost_alone_and_makes_the_host_an_error(tmp_path: Path) -> None:
    made = written(tmp_path)
    path = made.records_path("gpu1")
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    (run,) = made.runs()
    assert len(run.records) == len(answered(good()).records) - 1
    assert run.failure is not None
    assert run.failure.kind == "Interrupted"
    assert rejudge(made).status == "ERROR"


def test_a_host_without_its_end_was_interrupted_and_keeps_what_it_sent(tmp_path: Path) -> None:
    made = written(tmp_path)
    (made.path / "hosts" / "gpu1" / "host.json").unlink()
    (run,) = made.runs()
    assert len(run.records) == len(answered(good()).records)
    assert run.failure is not None
    assert run.failure.kind == "Interrupted"
    report = rejudge(made)
    assert report.status == "ERROR"
    assert any(verdict.status == "PASS" for verdict in report.hosts[0].verdicts)


def test_a_host_that_was_never_begun_is_an_error(tmp_path: Path) -> None:
    made = RunDirectory.create(tmp_path, manifest())
    assert made.runs()[0].failure is not None
    assert rejudge(made).status == "ERROR"


@pytest.mark.parametrize("junk", [b"not json\n", b'{"type":"bye","count":NaN}\n', b"\xff\xfe\n", b"[" * 40000 + b"\n"])
def test_a_line_that_is_no_record_is_a_failure_that_names_the_line(tmp_path: Path, junk: bytes) -> None:
    made = written(tmp_path)
    path = made.records_path("gpu1")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:4], junk, *lines[4:]]))
    (run,) = made.runs()
    assert len(run.records) == 4
    assert run.failure is not None
    assert "line 5 of records.jsonl is not a record" in run.failure.message


def test_a_line_without_end_is_read_in_bounded_pieces(tmp_path: Path) -> None:
    made = written(tmp_path)
    with made.records_path("gpu1").open("ab") as stream:
        stream.truncate(1 << 30)  # a sparse gigabyte of NUL: no line in it ends
    assert made.runs()[0].failure is not None


@pytest.mark.parametrize("body", ["", "{}", "[]", '{"host": 3, "evil": 1}', '{"failure": {"x": 1}}', "\x00"])
def test_a_host_file_that_cannot_be_read_is_a_failure(tmp_path: Path, body: str) -> None:
    made = written(tmp_path)
    (made.path / "hosts" / "gpu1" / "host.json").write_text(body, encoding="utf-8")
    assert made.runs()[0].failure is not None
    assert rejudge(made).status == "ERROR"


def test_two_runs_of_the_same_second_have_two_directories(tmp_path: Path) -> None:
    names = {RunDirectory.create(tmp_path, replace(manifest(), run_id="20261121-040000")).path.name for _ in range(3)}
    assert names == {"20261121-040000", "20261121-040000-2", "20261121-040000-3"}


def test_a_run_is_named_by_its_time_and_its_manifest_knows_the_name(tmp_path: Path) -> None:
    made = RunDirectory.create(tmp_path, manifest())
    assert made.manifest.run_id == made.path.name == RunDirectory.open(made.path).manifest.run_id
    time.strptime(made.path.name[:15], "%Y%m%d-%H%M%S")


def test_hostile_host_names_have_folders_of_their_own_inside_the_run(tmp_path: Path) -> None:
    names = [*HOSTILE, "gpu1", "gpu1.example.org"]
    folders = {safe_name(name) for name in names}
    assert len(folders) == len(names)
    assert len({folder.casefold() for folder in folders}) == len(names)
    assert all(len(folder) <= 80 and "/" not in folder and folder not in {".", ".."} for folder in folders)
    assert safe_name("gpu1.example.org") == "gpu1.example.org"
    assert safe_name(safe_name("größe")) != safe_name("größe")  # a host that is named like another's folder
    made = RunDirectory.create(tmp_path, manifest(*(Host(name) for name in names)))
    for name in names:
        assert made.records_path(name).resolve().parent.parent == (made.path / "hosts").resolve()
    assert len(list((made.path / "hosts").iterdir())) == len(names)


def test_nobody_else_may_read_a_run(tmp_path: Path) -> None:
    made = written(tmp_path)
    made.write_report("html", "<html>")
    for path in [made.path, *made.path.rglob("*")]:
        allowed = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == allowed, path


def test_a_directory_that_cannot_be_made_is_an_error_with_a_hint(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(RunDirectoryError, match="no run directory can be made in") as caught:
        RunDirectory.create(tmp_path / "file", manifest())
    assert "--runs" in caught.value.hint


def test_a_directory_without_write_permission_is_an_error_with_a_hint(tmp_path: Path) -> None:
    """As an ordinary user, since root may write everywhere: in a process of its own."""
    need(os.geteuid() == 0 or os.access(tmp_path, os.W_OK), "a user to become", installable=False)
    tmp_path.chmod(0o755)
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    if os.geteuid() != 0:
        with pytest.raises(RunDirectoryError, match="Permission denied"):
            RunDirectory.create(locked, manifest())
        return
    code = textwrap.dedent(
        """
        import os, sys
        from provision.errors import RunDirectoryError
        from provision.store import RunDirectory
        from tests.unit.test_store import manifest
        os.seteuid(65534)
        try:
            RunDirectory.create(sys.argv[1], manifest())
        except RunDirectoryError as problem:
            print(problem.message)
        """
    )
    done = subprocess.run([sys.executable, "-c", code, str(locked)], capture_output=True, text=True, check=True)
    assert "locked: Permission denied" in done.stdout


def test_a_full_disk_is_an_error_with_a_hint(tmp_path: Path) -> None:
    need(Path("/dev/full").exists(), "/dev/full", installable=False)
    made = RunDirectory.create(tmp_path, manifest())
    (made.path / "report.html.part").symlink_to("/dev/full")
    with pytest.raises(RunDirectoryError, match="cannot be written"):
        made.write_report("html", "x" * 100000)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (None, "is not a run directory"),
        ("", "not JSON"),
        ('{"format": 1', "not JSON"),
        ("[]", "not a manifest of format 1"),
        ('{"format": 2}', "another version"),
        ('{"format": 1}', "not a manifest"),
        ('{"format": 1, "hosts": [{"name": "a"}]}', "not a manifest"),
    ],
)
def test_what_is_not_a_run_directory_is_an_error_that_says_why(tmp_path: Path, body: str | None, said: str) -> None:
    if body is not None:
        (tmp_path / "manifest.json").write_text(body, encoding="utf-8")
    with pytest.raises(RunDirectoryError, match=said):
        RunDirectory.open(tmp_path)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("hosts.0.name", 5),
        ("hosts", 5),
        ("run_id", ["x"]),
        ("created", None),
        ("notes", [5]),
        ("catalogue.0.name", [1]),
        ("plans.gpu1.deadline_s", "long"),
        ("plans.gpu1.checks", [{"name": 5, "timeout_s": 1}]),
        ("criteria.0.text", 5),
    ],
)
def test_a_manifest_of_which_a_field_was_edited_is_an_error_that_names_the_field(
    tmp_path: Path, place: str, value: object
) -> None:
    made = written(tmp_path)
    body = json.loads((made.path / "manifest.json").read_text())
    at = body
    *way, last = [int(word) if word.isdigit() else word for word in place.split(".")]
    for word in way:
        at = at[word]
    at[last] = value
    (made.path / "manifest.json").write_text(json.dumps(body))
    with pytest.raises(RunDirectoryError, match=f"not a manifest: manifest.{way[0] if way else last}"):
        RunDirectory.open(made.path)


@pytest.mark.parametrize(
    "field", [{"address": 5}, {"timings": {"run": "x"}}, {"notes": 7}, {"failure": 5}, {"started_unix": None}]
)
def test_a_host_file_of_which_a_field_was_edited_is_that_hosts_error(tmp_path: Path, field: dict[str, object]) -> None:
    made = written(tmp_path)
    path = made.path / "hosts" / "gpu1" / "host.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **field}))
    report = rejudge(made)
    assert report.status == "ERROR"
    assert "host.json cannot be read" in report.hosts[0].headline
    assert render(report, "html")


def test_criteria_that_were_changed_in_the_manifest_are_refused_by_their_hash(tmp_path: Path) -> None:
    made = written(tmp_path)
    path = made.path / "manifest.json"
    path.write_text(path.read_text().replace("fraction = 0.7", "fraction = 0.1"))
    with pytest.raises(RunDirectoryError, match=r"criteria file mine.toml was changed"):
        rejudge(RunDirectory.open(made.path))


def test_a_check_taken_out_of_the_manifests_plan_does_not_turn_a_failure_into_a_pass(tmp_path: Path) -> None:
    made = written(tmp_path)
    plans = {"gpu1": replace(PLAN, checks=tuple(one for one in PLAN.checks if one.name != "matmul"))}
    report = rejudge(RunDirectory(made.path, replace(made.manifest, plans=plans)))
    assert report.status == "ERROR"
    assert "records of the check 'matmul', which the plan does not have" in report.hosts[0].headline


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", ["manifest.json", "hosts/gpu1/records.jsonl"])
def test_a_pipe_in_a_files_place_is_not_waited_for(tmp_path: Path, name: str) -> None:
    made = written(tmp_path)
    (made.path / name).unlink()
    os.mkfifo(made.path / name)
    if name == "manifest.json":
        with pytest.raises(RunDirectoryError, match="not a file"):
            RunDirectory.open(made.path)
    else:
        assert "cannot be read: not a file" in rejudge(made).hosts[0].headline


def test_a_manifest_keeps_nothing_secret() -> None:
    host = Host(
        "a",
        private_key_file="/home/me/.ssh/id",
        ssh_args="-o ProxyCommand='sshpass -p hunter2 ssh jump'",
        variables={
            "expect_gpu_count": 8,
            "bringup_api_token": "hunter2",
            "ansible_password": "hunter2",
            "x": "hunter2",
        },
    )
    text = encode_manifest(manifest(host))
    assert "hunter2" not in text
    assert "id" not in json.loads(text)["hosts"][0]["private_key_file"]
    assert decode_manifest(text).hosts[0].variables == {"expect_gpu_count": 8}


@pytest.mark.parametrize(
    "argv",
    [
        ["bringup", "provision", "-e", "docker_password=hunter2"],
        ["bringup", "--token", "hunter2", "validate"],
        ["bringup", "--api-key=hunter2"],
        ["bringup", "-e", '{"password": "hunter2"}'],
        ["bringup", "-e", "index=https://me:hunter2@example.org/simple"],
        ["bringup", "-e", "become_pass=hunter2"],
        ["bringup", "upgrade", "--drain", "sh -c 'hunter2'"],
        ["bringup", "upgrade", "--undrain=put-back hunter2"],
    ],
)
def test_a_command_line_is_kept_without_its_secrets(argv: list[str]) -> None:
    kept = without_secrets(argv)
    assert "hunter2" not in kept
    assert HIDDEN in kept


def test_a_command_line_without_secrets_is_kept_whole() -> None:
    argv = ["bringup", "validate", "-i", "inventory.ini", "--limit", "newbox", "--ask-become-pass", "--only", "mat mul"]
    assert (
        without_secrets(argv) == "bringup validate -i inventory.ini --limit newbox --ask-become-pass --only 'mat mul'"
    )


def test_kill_9_in_the_middle_loses_the_record_in_flight_and_nothing_else(tmp_path: Path) -> None:
    """A real process that writes records as validate_host does, killed while it writes."""
    made = RunDirectory.create(tmp_path, manifest())
    code = textwrap.dedent(
        """
        import sys
        from tests.unit.judging import measured, GPU0
        from validators.schema import encode
        line = encode(measured("matmul", "throughput_bf16", 1.0, GPU0))
        with open(sys.argv[1], "ab", buffering=0) as stream:
            for number in range(20):
                stream.write(line)
            stream.write(line[:17])
            print("written", flush=True)
            sys.stdin.read()
        """
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(made.records_path("gpu1"))], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"written\n"
    child.kill()
    child.communicate()
    (run,) = made.runs()
    assert len(run.records) == 20
    assert run.failure is not None
    assert run.failure.kind == "Interrupted"
    assert rejudge(made).hosts[0].gpus[0].uuid == GPU0
