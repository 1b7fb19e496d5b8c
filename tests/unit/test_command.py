from __future__ import annotations

import time
from pathlib import Path

from validators.probes.command import run, run_all


def test_a_tool_gives_its_output_and_status():
    ran = run(["sh", "-c", "echo out; echo err >&2"])

    assert (ran.ok, ran.returncode, ran.stdout, ran.stderr) == (True, 0, "out\n", "err\n")


def test_a_missing_tool_is_a_problem_and_not_an_exception():
    ran = run(["no-such-tool-here"])

    assert not ran.ok
    assert ran.returncode is None
    assert ran.problem == "no-such-tool-here is not there"


def test_a_failing_tool_names_its_status_and_its_last_word():
    assert run(["sh", "-c", "echo first >&2; echo last >&2; exit 9"]).problem == "sh ended with exit status 9: last"
    assert run(["sh", "-c", "kill -9 $$"]).problem == "sh ended with signal 9"


def test_a_hung_tool_is_ended_at_its_deadline():
    ran = run(["sh", "-c", "echo $$; exec sleep 600"], timeout_s=0.5)

    assert "did not end within 0.5 s" in ran.problem
    gone = int(ran.stdout)
    for _ in range(100):
        if not Path(f"/proc/{gone}").exists():
            break
        time.sleep(0.05)
    assert not Path(f"/proc/{gone}").exists()


def test_a_tool_that_floods_is_ended_and_its_output_bounded():
    ran = run(["sh", "-c", "yes"], timeout_s=30, limit_bytes=1000)

    assert "more than 1000 bytes" in ran.problem
    assert len(ran.stdout) <= 1000


def test_both_streams_are_drained_together():
    ran = run(["sh", "-c", "head -c 200000 /dev/zero >&2; head -c 200000 /dev/zero"])

    assert ran.ok
    assert (len(ran.stdout), len(ran.stderr)) == (200000, 200000)


def test_several_tools_run_at_once_and_keep_their_order():
    argvs = [["sh", "-c", "sleep 0.5; echo slow"], ["no-such-tool-here"], ["echo", "quick"]]

    ran = run_all(argvs, timeout_s=20)

    assert [one.stdout for one in ran] == ["slow\n", "", "quick\n"]


def test_garbled_output_is_text_all_the_same():
    assert run(["printf", r"a\377b"]).stdout == "a�b"
