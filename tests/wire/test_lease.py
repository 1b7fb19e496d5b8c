"""The lease: when the operator's end is gone, nothing of the run is left on the host."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.wire.planting import alive, bundle_of, noted, plan_of, records_of, spawn_and_note, wait_until, wire
from validators.schema import Hello


def _gone(pids: list[int]) -> bool:
    return wait_until(lambda: not any(alive(pid) for pid in pids))


def _close_stdin(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin
    process.stdin.close()


def _say_end(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin
    process.stdin.write(b"end\n")
    process.stdin.flush()


WAYS_TO_GO = {
    "stdin closes": _close_stdin,
    "the operator says end": _say_end,
    "SIGTERM": lambda process: os.kill(process.pid, signal.SIGTERM),
    "SIGINT": lambda process: os.kill(process.pid, signal.SIGINT),
    "SIGHUP": lambda process: os.kill(process.pid, signal.SIGHUP),
}


@pytest.mark.parametrize("way", WAYS_TO_GO)
def test_nothing_is_left_after(tmp_path: Path, way: str) -> None:
    with wire(tmp_path, bundle_of({"x_tree": spawn_and_note(tmp_path)}), plan_of(["x_tree"])) as process:
        pids = noted(tmp_path)
        assert len(pids) == 4
        assert all(alive(pid) for pid in pids)
        WAYS_TO_GO[way](process)
        assert _gone(pids), f"still there: {[pid for pid in pids if alive(pid)]}"
        assert process.wait(10) != 0
        assert [type(one) for one in records_of(process)] == [Hello], "an ended run has no result and no bye"


def test_the_check_ends_itself_when_the_runner_is_killed(tmp_path: Path) -> None:
    body = spawn_and_note(tmp_path)
    with wire(tmp_path, bundle_of({"x_tree": body}), plan_of(["x_tree"])) as process:
        check, in_group, *_ = noted(tmp_path)
        process.kill()
        assert _gone([check, in_group])
        for pid in noted(tmp_path):  # those that left the group: no one is there any more to find them
            if alive(pid):
                os.kill(pid, signal.SIGKILL)


def test_what_a_check_leaves_behind_is_gone_when_the_run_is_over(tmp_path: Path) -> None:
    body = spawn_and_note(tmp_path).replace("time.sleep(600)", "ctx.measure('n', 1)")
    with wire(tmp_path, bundle_of({"x_tree": body}), plan_of(["x_tree"])) as process:
        pids = noted(tmp_path)
        assert process.wait(20) == 0
        assert _gone(pids)


def test_a_timed_out_check_takes_its_children_with_it(tmp_path: Path) -> None:
    bundle = bundle_of({"x_tree": spawn_and_note(tmp_path), "x_long": "import time\ntime.sleep(8)"})
    with wire(tmp_path, bundle, plan_of(["x_tree"], timeout_s=3)) as process:
        check, in_group, *_ = noted(tmp_path)
        assert _gone([check, in_group])
        assert process.wait(20) == 0


def test_an_operator_who_is_silent_too_long_has_lost_the_lease(tmp_path: Path) -> None:
    bundle = bundle_of({"x_tree": spawn_and_note(tmp_path)})
    with wire(tmp_path, bundle, plan_of(["x_tree"]), words=("3",)) as process:
        pids = noted(tmp_path)
        assert _gone(pids)
        assert process.wait(10) == 75
        assert process.stderr
        assert b"the operator has not answered for 3 s" in process.stderr.read()


def test_an_operator_who_answers_keeps_the_lease(tmp_path: Path) -> None:
    bundle = bundle_of({"x_long": "import time\ntime.sleep(5)\nctx.measure('n', 1)"})
    with wire(tmp_path, bundle, plan_of(["x_long"]), words=("2",)) as process:
        assert process.stdin
        while process.poll() is None:
            process.stdin.write(b"\n")
            process.stdin.flush()
            time.sleep(0.5)
        assert process.returncode == 0
