"""What every transport must do, for each of them: a real sshd, and this machine."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from provision.errors import ConnectionLost, HostTimeout, RemoteCommandError
from provision.hosts import local_host
from provision.transport import Transport, connect
from tests.hosts.sshd import Sshd
from tests.ssh.waiting import eventually, gone

PY = sys.executable


@pytest.fixture(params=["ssh", "local"])
def transport(request: pytest.FixtureRequest, server: Sshd) -> Iterator[Transport]:
    if request.param == "local":
        opened = connect(local_host("here"))
    else:
        opened = connect(server.host("box"), known_hosts=server.known_hosts)
    with opened:
        yield opened


def test_a_program_gives_both_streams_and_its_status(transport: Transport) -> None:
    done = transport.run(["sh", "-c", "echo out; echo err >&2; exit 3"])
    assert (done.returncode, done.stdout, done.stderr) == (3, b"out\n", b"err\n")


@pytest.mark.parametrize(
    "words",
    [
        ["plain"],
        [
            "a b",
            "",
            "'",
            '"',
            "$HOME",
            "`id`",
            "$(id)",
            "\\",
            "\\\\n",
            "%s %d",
            "!x",
            "#",
            "~",
            "*",
            "a\nb\n",
            ";id",
            "&",
        ],
        ["\u00fc\u4e2d", "\udcff", "-n", "-", "\x1b[31m", "{a,b}", "[x]", "(y)", "<z>", "|", "^", "a=b"],
    ],
)
def test_arguments_arrive_as_they_were_given(transport: Transport, words: list[str]) -> None:
    done = transport.run([PY, "-c", "import os,sys;os.write(1, b'\\0'.join(map(os.fsencode, sys.argv[1:])))", *words])
    assert done.stdout == b"\0".join(map(os.fsencode, words))


def test_a_missing_program_is_status_127_with_a_line_that_names_it(transport: Transport) -> None:
    done = transport.run(["no-such-program-here"])
    assert done.returncode == 127
    assert b"no-such-program-here" in done.stderr


def test_a_program_ended_by_a_signal_has_a_negative_status(transport: Transport) -> None:
    assert transport.run(["sh", "-c", "kill -9 $$"]).returncode == -9
    assert transport.run(["sh", "-c", "kill -TERM $$"]).returncode == -15


def test_ten_megabytes_on_both_streams_at_once_do_not_deadlock(transport: Transport) -> None:
    program = (
        "import os,threading\n"
        "def w(fd, c):\n"
        "  n = 10*1024*1024\n"
        "  while n: n -= os.write(fd, c*min(n, 65536))\n"
        "t = threading.Thread(target=w, args=(2, b'e')); t.start(); w(1, b'o'); t.join()"
    )
    done = transport.run([PY, "-c", program], limit_bytes=1 << 25, timeout_s=120)
    assert done.stdout == b"o" * (10 << 20)
    assert done.stderr == b"e" * (10 << 20)


def test_ten_megabytes_of_stderr_before_any_stdout_do_not_deadlock(transport: Transport) -> None:
    program = "import os\nn=10<<20\nwhile n: n -= os.write(2, b'e'*min(n, 65536))\nos.write(1, b'done')"
    done = transport.run([PY, "-c", program], limit_bytes=1 << 25, timeout_s=120)
    assert done.stdout == b"done"
    assert len(done.stderr) == 10 << 20


def test_input_larger_than_any_window_is_sent_while_output_is_read(transport: Transport) -> None:
    data = os.urandom(1 << 20) * 8
    assert transport.run(["cat"], stdin=data, limit_bytes=1 << 24, timeout_s=120).stdout == data


def test_a_program_that_does_not_read_its_input_still_ends(transport: Transport) -> None:
    done = transport.run(["sh", "-c", "exec 0<&-; echo bye"], stdin=b"x" * (8 << 20), timeout_s=60)
    assert (done.returncode, done.stdout) == (0, b"bye\n")


def test_run_closes_the_input_even_when_there_is_none(transport: Transport) -> None:
    assert transport.run(["wc", "-c"]).stdout.strip() == b"0"


def test_output_over_the_limit_is_an_error_that_names_host_command_and_limit(transport: Transport) -> None:
    with pytest.raises(RemoteCommandError, match=r"(box|here): `head -c 5000 /dev/zero` wrote more than 1000 bytes"):
        transport.run(["head", "-c", "5000", "/dev/zero"], limit_bytes=1000)


def test_endless_output_is_stopped_at_the_limit(transport: Transport) -> None:
    with pytest.raises(RemoteCommandError, match="more than 1048576 bytes"):
        transport.run(["cat", "/dev/zero"], timeout_s=120)


def test_a_deadline_that_passes_is_a_timeout_though_the_program_keeps_writing(transport: Transport) -> None:
    with pytest.raises(HostTimeout, match=r"deadline of 0\.5 s"):
        transport.run(["sh", "-c", "while :; do echo x; sleep 0.05; done"], timeout_s=0.5)


def test_silence_is_a_timeout_of_its_own(transport: Transport) -> None:
    process = transport.start(["sh", "-c", "echo started; sleep 600"])
    assert next(process.chunks(deadline_s=60, idle_s=60)) == ("stdout", b"started\n")
    with pytest.raises(HostTimeout, match=r"wrote nothing for 0\.5 s"):
        list(process.chunks(deadline_s=60, idle_s=0.5))
    process.close()


def test_started_programs_keep_their_input_open_and_answer_in_turn(transport: Transport) -> None:
    process = transport.start(["cat"])
    chunks = process.chunks(deadline_s=30, idle_s=30)
    for line in (b"one\n", b"two\n"):
        process.send(line)
        assert next(chunks) == ("stdout", line)
    process.close()


def test_closing_ends_the_lease(transport: Transport, tmp_path: Path) -> None:
    """The program sees the end of its input: the bundle ends itself on that."""
    marker = tmp_path / "lease ended"
    process = transport.start(["sh", "-c", "trap '' TERM; echo up; cat >/dev/null; : > \"$1\"", "sh", str(marker)])
    assert next(process.chunks(deadline_s=30, idle_s=30)) == ("stdout", b"up\n")
    assert not marker.exists()
    process.close()
    assert eventually(marker.exists)


def test_closing_twice_or_after_the_end_is_harmless(transport: Transport) -> None:
    process = transport.start(["true"])
    assert list(process.chunks(deadline_s=30, idle_s=30)) == []
    assert process.returncode == 0
    process.close()
    process.close()


def test_two_programs_run_at_once(transport: Transport) -> None:
    first, second = transport.start(["cat"]), transport.start(["cat"])
    second.send(b"2")
    assert next(second.chunks(deadline_s=30, idle_s=30)) == ("stdout", b"2")
    first.send(b"1")
    assert next(first.chunks(deadline_s=30, idle_s=30)) == ("stdout", b"1")
    first.close()
    second.close()


def test_sending_to_a_program_that_ended_is_a_lost_connection(transport: Transport) -> None:
    process = transport.start(["true"])
    assert list(process.chunks(deadline_s=30, idle_s=30)) == []
    with pytest.raises(ConnectionLost, match=r"box|here"):
        for _ in range(100):
            process.send(b"x" * 100_000)
    process.close()


def test_there_is_no_terminal(transport: Transport) -> None:
    assert transport.run(["sh", "-c", "test -t 0 || test -t 1 || test -t 2"]).returncode == 1


def test_programs_start_in_the_home_directory(transport: Transport) -> None:
    done = transport.run(["sh", "-c", 'test "$(pwd -P)" = "$(cd && pwd -P)"'])
    assert done.returncode == 0


def test_an_exit_status_is_not_known_before_the_end(transport: Transport) -> None:
    process = transport.start(["cat"])
    with pytest.raises(RuntimeError, match="has not ended"):
        _ = process.returncode
    process.close()


def test_a_command_with_a_nul_or_without_words_is_refused(transport: Transport) -> None:
    for argv in ([], ["a\0b"]):
        with pytest.raises(ValueError, match="without NUL"):
            transport.start(argv)


def test_leaving_the_transport_ends_what_still_runs(server: Sshd, tmp_path: Path) -> None:
    for number, host in enumerate((local_host(), server.host("box"))):
        marker = tmp_path / f"ended-{number}"
        with connect(host, known_hosts=server.known_hosts) as transport:
            process = transport.start(
                ["sh", "-c", "trap '' TERM; echo up; cat >/dev/null; : > \"$1\"", "sh", str(marker)]
            )
            next(process.chunks(deadline_s=30, idle_s=30))
        assert eventually(marker.exists)


def test_closing_a_local_program_ends_its_whole_process_group() -> None:
    with connect(local_host()) as transport:
        process = transport.start(["sh", "-c", "trap '' TERM HUP; sleep 600 & echo $!; wait; wait"])
        _, data = next(process.chunks(deadline_s=30, idle_s=30))
        child = int(data)
        process.close()
    assert gone(child)
