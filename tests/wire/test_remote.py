"""validate_host over a real sshd: the bad-input list, one row after another."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from provision import remote
from provision.bundle import build_bundle
from provision.hosts import Host
from provision.remote import HostRun, Job, validate_host
from tests.need import need
from tests.wire.conftest import Box
from tests.wire.planting import (
    GOOD,
    HANG,
    SEGV,
    alive,
    bundle_of,
    command_line,
    noted,
    outcomes,
    own_python,
    plan_of,
    spawn_and_note,
    wait_until,
)
from validators.schema import Bye, Hello, Measurement, Record, decode

ROOT = Path(__file__).parents[2]


def complete(run: HostRun) -> bool:
    return run.failure is None and isinstance(run.records[0], Hello) and isinstance(run.records[-1], Bye)


def said(run: HostRun) -> str:
    assert run.failure is not None
    assert "box" in run.failure.message, "a failure names the host"
    assert run.failure.hint, "a failure names the next step"
    return f"{run.failure.kind}: {run.failure.message}"


def program(path: Path, text: str) -> str:
    """An executable Python program of a test's own, which plays the host's python3."""
    path.write_text(f"#!{sys.executable}\n{textwrap.dedent(text)}")
    path.chmod(0o755)
    return str(path)


def test_a_first_run_uploads_the_bundle_and_a_second_finds_it(box: Box) -> None:
    bundle = bundle_of({"x_good": GOOD})
    first = box.validate(bundle, plan_of(["x_good"]))
    assert complete(first)
    assert "upload" in first.timings
    second = box.validate(bundle, plan_of(["x_good"]))
    assert complete(second)
    assert "upload" not in second.timings
    assert (box.cache / f"{bundle.sha256}.pyz").read_bytes() == bundle.data
    assert box.cache.stat().st_mode & 0o777 == 0o700
    assert not list(box.cache.glob("*.part"))


def test_a_host_that_is_slow_to_ask_for_the_bundle_gets_the_plan_as_its_first_line(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "RENEW_S", 0.0)  # as if every answer of the host took longer than a renewal
    run = box.validate(bundle_of({"x_good": GOOD}), plan_of(["x_good"]))
    assert complete(run), run.failure
    assert "upload" in run.timings


def test_records_are_on_disk_as_they_arrive(box: Box, tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    on_disk: list[int] = []

    def look(_record: Record) -> None:
        on_disk.append(len(path.read_bytes().splitlines()))

    run = validate_host(box.host(), box.job(bundle_of({"x_good": GOOD}), plan_of(["x_good"]), path), look)
    assert on_disk == list(range(1, len(run.records) + 1))
    assert tuple(decode(line) for line in path.read_bytes().splitlines(keepends=True)) == run.records


def test_a_segmentation_fault_and_a_hang_are_errors_of_their_own_checks(box: Box) -> None:
    bundle = bundle_of({"x_segv": SEGV, "x_hang": HANG, "x_good": GOOD})
    run = box.validate(bundle, plan_of(["x_segv", "x_hang", "x_good"], timeout_s=4))
    assert complete(run)
    ended = outcomes(run.records)
    assert ended["x_segv"].detail.startswith("crashed: SIGSEGV")
    assert ended["x_hang"].detail.startswith("timed out after 4 s")
    assert ended["x_good"].status == "ran"


def test_no_python3_is_a_clear_error(box: Box) -> None:
    run = box.validate(build_bundle(), plan_of(["system"]), python="/opt/none/bin/python3")
    assert said(run).startswith("RemoteCommandError: box: no /opt/none/bin/python3 on the host")
    assert run.failure and "ansible_python_interpreter" in run.failure.hint


@pytest.mark.parametrize("version", ["2.7", "3.6", "3.8"])
def test_an_old_python_is_named_with_its_version(box: Box, version: str) -> None:
    python = own_python(version)
    need(python is not None, f"Python {version} is not installed", installable=True)
    run = box.validate(build_bundle(), plan_of(["system"]), python=python)
    assert said(run).startswith("RemoteCommandError: ")
    assert f"there is Python {version}." in said(run)
    assert run.failure and "ansible_python_interpreter" in run.failure.hint


def test_a_profile_that_prints_breaks_nothing(box: Box) -> None:
    noise = 'echo "*** Welcome to box ***"; printf "<bringup 0000> {}\\n{"; echo oops >&2\n'
    for name in (".bashrc", ".profile", ".zshenv"):
        (box.home / name).write_text(noise)
    ssh = ["ssh", "-F", "none", "-i", str(box.server.key), "-o", f"UserKnownHostsFile={box.server.known_hosts}"]
    ssh += ["-p", str(box.server.port), f"{box.server.user}@{box.server.addresses[0]}", "true"]
    seen = subprocess.run(ssh, capture_output=True, check=False, stdin=subprocess.DEVNULL).stdout
    need(b"Welcome" in seen, "this user's login shell reads no profile over SSH", installable=False)
    assert complete(box.validate(bundle_of({"x_good": GOOD}), plan_of(["x_good"])))


def test_noise_of_the_interpreter_itself_breaks_nothing(box: Box, tmp_path: Path) -> None:
    python = program(
        tmp_path / "python3",
        f"""
        import os, sys
        os.write(1, b"\\xff\\x00 no newline at the end " * 1000)
        os.execv({sys.executable!r}, [{sys.executable!r}, *sys.argv[1:]])
        """,
    )
    assert complete(box.validate(bundle_of({"x_good": GOOD}), plan_of(["x_good"]), python=python))


def test_modules_in_the_working_directory_do_not_stand_before_pythons_own(box: Box, tmp_path: Path) -> None:
    for name in ("base64", "zlib", "json", "hashlib", "validators", "pynvml"):
        (box.home / f"{name}.py").write_text("import os; os.write(1, b'TRAPPED'); os._exit(9)")
    python = program(
        tmp_path / "python3",
        f"""
        import os, sys
        os.chdir({str(box.home)!r})  # where a login shell begins, for a user whose home is not this test's
        os.execv({sys.executable!r}, [{sys.executable!r}, *sys.argv[1:]])
        """,
    )
    assert complete(box.validate(bundle_of({"x_good": GOOD}), plan_of(["x_good"]), python=python))


def test_a_host_that_goes_silent_is_given_up_and_its_records_stay(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "IDLE_S", 3.0)
    stop = (
        "ctx.measure('n', 1)\nimport os, signal, time\ntime.sleep(0.5)\nos.kill(os.getppid(), signal.SIGSTOP)\n" + HANG
    )
    (box.home / "ppid").write_text("")
    note = f"import os\nopen({str(box.home / 'ppid')!r}, 'w').write(str(os.getppid()))\n"
    run = box.validate(bundle_of({"x_silent": note + stop}), plan_of(["x_silent"]))
    wire = int((box.home / "ppid").read_text())
    os.kill(wire, signal.SIGKILL)  # a stopped process cannot end itself
    assert said(run).startswith("HostTimeout: box: ")
    assert any(isinstance(one, Measurement) for one in run.records)


def test_a_connection_cut_mid_check_leaves_no_process(box: Box, tmp_path: Path) -> None:
    bundle = bundle_of({"x_tree": spawn_and_note(tmp_path)})
    runs: list[HostRun] = []
    thread = threading.Thread(target=lambda: runs.append(box.validate(bundle, plan_of(["x_tree"]))))
    thread.start()
    pids = noted(tmp_path)
    for session in _sessions(box):
        os.kill(session, signal.SIGKILL)
    thread.join(30)
    assert said(runs[0]).startswith(("ConnectionLost: box", "WireError: box"))
    assert isinstance(runs[0].records[0], Hello)
    assert wait_until(lambda: not any(alive(pid) for pid in pids))


def test_a_connection_that_goes_dead_without_a_word_leaves_no_process(
    box: Box, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "ANSWER_S", 7)
    monkeypatch.setattr(remote, "IDLE_S", 12.0)
    bundle = bundle_of({"x_tree": spawn_and_note(tmp_path)})
    runs: list[HostRun] = []
    thread = threading.Thread(target=lambda: runs.append(box.validate(bundle, plan_of(["x_tree"]))))
    thread.start()
    pids = noted(tmp_path)
    stopped = _sessions(box)
    for session in stopped:  # as with a pulled cable: both ends live, and nothing passes between them
        os.kill(session, signal.SIGSTOP)
    try:
        assert wait_until(lambda: not any(alive(pid) for pid in pids))
        assert all(alive(session) for session in stopped)
        thread.join(60)
    finally:
        for session in stopped:
            os.kill(session, signal.SIGKILL)
    assert said(runs[0]).startswith(("HostTimeout: box", "ConnectionLost: box"))


def test_a_long_check_keeps_its_lease_since_this_side_answers(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "ANSWER_S", 9)
    bundle = bundle_of({"x_long": "import time\ntime.sleep(13)\nctx.measure('n', 1)"})
    assert complete(box.validate(bundle, plan_of(["x_long"])))


def _sessions(box: Box) -> list[int]:
    """The server's processes that carry connections."""
    return [pid for pid in box.server.children() if b"sshd" in command_line(str(pid)).split(b"\0")[0]]


def test_an_operator_that_is_killed_leaves_no_process_and_keeps_its_records(box: Box, tmp_path: Path) -> None:
    with _operator(box, tmp_path) as operator:
        pids = noted(tmp_path)
        assert wait_until(lambda: b"measurement" in (tmp_path / "records.jsonl").read_bytes())
        operator.kill()
        operator.wait(10)
    assert wait_until(lambda: not any(alive(pid) for pid in pids))
    lines = (tmp_path / "records.jsonl").read_bytes().splitlines(keepends=True)
    assert {type(decode(line)) for line in lines} >= {Hello, Measurement}


def test_ctrl_c_leaves_no_process_and_keeps_its_records(box: Box, tmp_path: Path) -> None:
    with _operator(box, tmp_path) as operator:
        pids = noted(tmp_path)
        assert wait_until(lambda: b"measurement" in (tmp_path / "records.jsonl").read_bytes())
        operator.send_signal(signal.SIGINT)
        out, _ = operator.communicate(timeout=30)
    assert out.strip() == b"ConnectionLost box: interrupted by the user 2"
    assert wait_until(lambda: not any(alive(pid) for pid in pids))


def _operator(box: Box, folder: Path) -> subprocess.Popen[bytes]:
    """An operator's process that runs a job on a thread, as the command line does, and takes Ctrl-C."""
    body = "ctx.measure('n', 1)\n" + spawn_and_note(folder)
    job = box.job(bundle_of({"x_tree": body}), plan_of(["x_tree"]), folder / "records.jsonl")
    (folder / "call.pickle").write_bytes(pickle.dumps((box.host(), job)))
    code = """
        import pickle, sys
        from provision.executors import make_executor
        from provision.remote import interrupt, validate_host
        host, job = pickle.loads(open(sys.argv[1], "rb").read())
        with make_executor(workers=2) as executor:
            future = executor.submit(validate_host, host, job)
            try:
                run = future.result()
            except KeyboardInterrupt:
                interrupt()
                run = future.result(20)
        print(run.failure.kind, run.failure.message, len(run.records))
    """
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), str(folder / "call.pickle")], cwd=ROOT, stdout=subprocess.PIPE
    )


STARTED = """
import json, os, sys, time
at = sys.argv.index("-c")
sha, mark = sys.argv[at + 4], sys.argv[at + 3]
def line(data):
    os.write(1, data + b"\\n")
line(("\\n" + mark + json.dumps({"status": "cached", "text": "", "python": "3.11.7"})).encode())
hello = {"type": "hello", "schema": 1, "bundle": sha, "python": "3", "hostname": "h", "boot_id": "", "time_unix": 1.0}
"""
LIES = {
    "garbage": ("line(b'\\x00\\xff' * 50)", "WireError", "not JSON"),
    "truncated JSON, then the end": ("line(json.dumps(hello).encode())\nos.write(1, b'{')", "WireError", "without bye"),
    "an unknown schema": ("hello['schema'] = 9; line(json.dumps(hello).encode())", "WireError", "speaks schema 9"),
    "silence, then a good end": ("", "WireError", "ends without bye after 0 records"),
    "a bye that miscounts": (
        'line(json.dumps(hello).encode()); line(b\'{"type":"bye","count":7}\')',
        "WireError",
        "bye counts 7 records where 1 arrived",
    ),
    "its own death": (
        "line(json.dumps(hello).encode()); import signal; os.kill(os.getpid(), signal.SIGKILL)",
        "WireError",
        "SIGKILL",
    ),
    "a gigabyte of records": (
        "line(json.dumps(hello).encode())\n"
        "record = {'type': 'progress', 'check': 'system', 'subject': 'host', 'message': 'x' * 4000}\n"
        "for _ in range(250_000): line(json.dumps(record).encode())",
        "WireError",
        "sent more than 64 MiB",
    ),
    "a gigabyte on stderr": (
        "for _ in range(16_000): os.write(2, b'x' * 65536)",
        "WireError",
        "sent more than 64 MiB",
    ),
    "a gigabyte before the first answer": ("", "WireError", "over 1 MiB of other output"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_host_that_sends(box: Box, tmp_path: Path, lie: str) -> None:
    body, kind, message = LIES[lie]
    start = "import os\nwhile True: os.write(1, b'x' * 65535 + b'\\n')\n" if "before" in lie else STARTED
    python = program(tmp_path / "python3", start + body)
    run = box.validate(build_bundle(), plan_of(["system"]), python=python)
    assert said(run).startswith(f"{kind}: box: ")
    assert message in said(run)
    assert wait_until(lambda: not _running(str(tmp_path / "python3"))), "the liar was left running"


def _running(text: str) -> bool:
    return any(text.encode() in command_line(path.name) for path in Path("/proc").glob("[0-9]*"))


def test_an_unwritable_records_file_is_an_error_and_no_traceback(box: Box, tmp_path: Path) -> None:
    job = box.job(build_bundle(), plan_of(["system"]), tmp_path / "missing" / "records.jsonl")
    run = validate_host(box.host(), job)
    assert said(run).startswith("RunDirectoryError: box: ")


def test_a_disk_that_is_full_on_this_side_is_an_error_of_its_own(box: Box, tmp_path: Path) -> None:
    need(Path("/dev/full").exists(), "/dev/full", installable=False)
    (tmp_path / "records.jsonl").symlink_to("/dev/full")
    run = validate_host(box.host(), box.job(build_bundle(), plan_of(["system"]), tmp_path / "records.jsonl"))
    assert said(run).startswith("RunDirectoryError: box: ")
    assert "No space left on device" in said(run)


def test_a_fault_of_our_own_is_one_hosts_error(box: Box) -> None:
    def broken(_record: Record) -> None:
        raise ZeroDivisionError("planted")

    run = validate_host(box.host(), box.job(bundle_of({"x_good": GOOD}), plan_of(["x_good"])), broken)
    assert said(run) == "HostError: box: ZeroDivisionError: planted"


def test_a_host_that_is_not_there_is_a_connect_error(tmp_path: Path) -> None:
    host = Host("box", address="127.0.0.1", port=9, ssh_args="-F none -o IdentityAgent=none")
    run = validate_host(host, Job(build_bundle(), plan_of(["system"]), known_hosts=tmp_path / "none"))
    assert said(run).startswith("ConnectError: ")
    assert run.records == ()


def test_job_and_answer_travel_between_processes(box: Box) -> None:
    job = box.job(bundle_of({"x_good": GOOD}), plan_of(["x_good"]))
    run = validate_host(*pickle.loads(pickle.dumps((box.host(), job))))  # noqa: S301 - our own bytes
    assert pickle.loads(pickle.dumps(run)) == run  # noqa: S301 - our own bytes
    assert complete(run)


def test_this_machine_is_a_host_without_ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    host = Host("localhost", connection="local", python=sys.executable)
    assert complete(validate_host(host, Job(bundle_of({"x_good": GOOD}), plan_of(["x_good"]))))
    assert complete(validate_host(host, Job(bundle_of({"x_good": GOOD}), plan_of(["x_good"]))))
