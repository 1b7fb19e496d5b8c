"""Hosts that are not there, do not speak SSH, fall silent or are cut off, and shells that print."""

from __future__ import annotations

import os
import pwd
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import paramiko
import pytest

from provision.errors import ConnectError, ConnectionLost, HostTimeout
from provision.hosts import Host
from provision.transport import connect
from tests.hosts.sshd import Sshd, descendants, free_port, make_key, public_key, sshd
from tests.need import need
from tests.ssh.waiting import eventually, gone, running

LEASE = """
import os, subprocess, sys, threading
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
def watch():
    while os.read(0, 4096): pass
    os.killpg(0, 9)
threading.Thread(target=watch, daemon=True).start()
print(os.getpid(), child.pid, flush=True)
child.wait()
"""
"""The bundle's lease in small: at the end of its input it ends its process group."""


@contextmanager
def listener(answer: bytes | None) -> Iterator[int]:
    """A port that takes connections and says `answer`, or nothing at all; None: hangs up at once."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        kept: list[socket.socket] = []

        def serve() -> None:
            while True:
                try:
                    connection, _ = sock.accept()
                except OSError:
                    return
                kept.append(connection)
                if answer is None:
                    connection.close()
                else:
                    connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        yield sock.getsockname()[1]
        sock.shutdown(socket.SHUT_RDWR)
        for connection in kept:
            connection.close()


def failure(host: Host, known: Path, timeout_s: float = 10.0) -> ConnectError:
    with pytest.raises(ConnectError) as caught, connect(host, known_hosts=known, timeout_s=timeout_s):
        pass
    assert caught.value.message.startswith("box: ")
    assert caught.value.hint
    return caught.value


def test_a_closed_port_is_refused_and_says_what_that_means(server: Sshd) -> None:
    port = free_port()
    error = failure(server.host(port=port), server.known_hosts)
    assert f"127.0.0.1 port {port} refused the connection" in error.message


def test_a_name_that_nobody_knows_is_an_error_about_the_name(server: Sshd) -> None:
    error = failure(server.host(address="no-such-host.invalid"), server.known_hosts)
    assert "'no-such-host.invalid' is not found" in error.message


@pytest.mark.parametrize("name", ["x" * 300, "a..b", "\u2603" * 70, "a b"])
def test_a_name_that_is_none_is_an_error_too(server: Sshd, name: str) -> None:
    assert "is not found" in failure(server.host(address=name), server.known_hosts).message


@pytest.mark.parametrize(
    ("problem", "text"),
    [
        (OSError(113, "No route to host"), "is unreachable: No route to host"),
        (OSError(101, "Network is unreachable"), "is unreachable: Network is unreachable"),
        (TimeoutError("timed out"), "did not answer within 10 s"),
        (PermissionError(1, "Operation not permitted"), "cannot be connected to: Operation not permitted"),
    ],
)
def test_an_address_without_an_answer_says_how_it_failed(
    server: Sshd, monkeypatch: pytest.MonkeyPatch, problem: OSError, text: str
) -> None:
    """The errors are the kernel's; no packet leaves the machine for them."""

    def no_way(self: socket.socket, address: object) -> None:
        raise problem

    monkeypatch.setattr(socket.socket, "connect", no_way)
    assert text in failure(server.host(), server.known_hosts).message


def test_an_address_that_this_machine_cannot_route_is_unreachable(server: Sshd) -> None:
    """A broadcast address of loopback: the kernel refuses it for TCP by itself."""
    assert re.search(
        "unreachable|cannot be connected", failure(server.host(address="127.255.255.255"), server.known_hosts).message
    )


def test_a_port_that_says_nothing_is_given_up_after_the_timeout(server: Sshd) -> None:
    with listener(b"") as port:
        error = failure(server.host(port=port), server.known_hosts, timeout_s=1.0)
    assert "took the connection and said nothing for 1 s" in error.message


def test_a_port_that_speaks_something_else_is_quoted(server: Sshd) -> None:
    with listener(b"HTTP/1.1 400 Bad Request\x1b[31m\r\n" * 200) as port:
        error = failure(server.host(port=port), server.known_hosts, timeout_s=5.0)
    assert "does not speak SSH" in error.message
    assert "HTTP/1.1 400" in error.message
    assert "\x1b" not in error.message


def test_a_port_that_sends_bytes_without_an_end_is_given_up(server: Sshd) -> None:
    with listener(b"\xff\x00" * 100_000) as port:
        failure(server.host(port=port), server.known_hosts, timeout_s=2.0)


def test_a_port_that_hangs_up_says_so(server: Sshd) -> None:
    with listener(None) as port:
        error = failure(server.host(port=port), server.known_hosts)
    assert "closed the connection before it said SSH" in error.message


def test_a_server_that_stops_after_its_banner_is_given_up(server: Sshd) -> None:
    with listener(b"SSH-2.0-Silent\r\n") as port:
        error = failure(server.host(port=port), server.known_hosts, timeout_s=1.0)
    assert "handshake" in error.message


def test_garbage_after_the_banner_is_an_error(server: Sshd) -> None:
    with listener(b"SSH-2.0-Garbage\r\n" + b"\x00\x00\x00\x08" + bytes(range(256)) * 40) as port:
        assert "handshake" in failure(server.host(port=port), server.known_hosts, timeout_s=5.0).message


def test_a_server_without_a_common_algorithm_says_so(server: Sshd, tmp_path: Path) -> None:
    with sshd(tmp_path / "old", config=["KexAlgorithms diffie-hellman-group14-sha1"]) as old:
        error = failure(old.host(), old.known_hosts)
    assert "no common SSH algorithm" in error.message or "handshake" in error.message


def test_a_failed_connection_leaves_no_thread_and_no_socket(server: Sshd, tmp_path: Path) -> None:
    def sockets() -> int:
        links = (os.path.realpath(fd) for fd in Path("/proc/self/fd").iterdir())
        return sum(1 for link in links if "socket:" in link)

    threads, before = threading.active_count(), sockets()
    failure(server.host(), tmp_path / "unknown")
    failure(server.host(private_key_file="/nowhere"), server.known_hosts)
    assert eventually(lambda: threading.active_count() <= threads and sockets() <= before)


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Sshd]:
    """A server that a test may hurt."""
    with sshd(tmp_path / "own") as running:
        yield running


def sessions(server: Sshd) -> list[int]:
    """The server's processes that carry connections (not what runs in them)."""
    return [pid for pid in server.children() if Path(f"/proc/{pid}/comm").read_text().startswith("sshd")]


def test_a_connection_cut_while_a_program_runs_is_lost_and_the_lease_ends_it(own: Sshd) -> None:
    with connect(own.host(), known_hosts=own.known_hosts) as transport:
        process = transport.start([sys.executable, "-c", LEASE])
        chunks = process.chunks(deadline_s=60, idle_s=60)
        pids = [int(word) for word in next(chunks)[1].split()]
        assert all(running(pid) for pid in pids)
        for pid in sessions(own):
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(ConnectionLost, match="box: the connection was lost"):
            list(chunks)
        assert all(gone(pid) for pid in pids)
        with pytest.raises(ConnectionLost, match="box"):
            transport.run(["true"])


def test_a_host_that_falls_silent_is_a_timeout_and_closing_does_not_hang(own: Sshd) -> None:
    with connect(own.host(), known_hosts=own.known_hosts, timeout_s=2) as transport:
        process = transport.start(["sh", "-c", "while :; do echo x; sleep 0.1; done"])
        assert next(process.chunks(deadline_s=60, idle_s=60)) == ("stdout", b"x\n")
        stopped = sessions(own)
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        with pytest.raises(HostTimeout, match=r"box: the host wrote nothing for 1 s"):
            list(process.chunks(deadline_s=60, idle_s=1.0))
        with pytest.raises(ConnectionLost, match="did not start a program"):
            transport.start(["true"])


class _NeverAnswersExec(paramiko.ServerInterface):
    """A double, because OpenSSH always answers: it opens the channel, takes the command and says nothing."""

    def get_allowed_auths(self, username: str) -> str:
        return "publickey"

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        return paramiko.common.AUTH_SUCCESSFUL

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return paramiko.common.OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        threading.Event().wait(120)
        return False


@pytest.mark.timeout(45)
def test_a_host_that_never_answers_a_command_is_given_up(tmp_path: Path) -> None:
    key = make_key(tmp_path / "key")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]

        def serve() -> None:
            transport = paramiko.Transport(listening.accept()[0])
            transport.add_server_key(paramiko.Ed25519Key.from_private_key_file(str(key)))
            transport.start_server(server=_NeverAnswersExec())

        threading.Thread(target=serve, daemon=True).start()
        known = tmp_path / "known_hosts"
        known.write_text(f"[127.0.0.1]:{port} {public_key(key)}\n")
        host = Host("box", "127.0.0.1", port, "me", private_key_file=str(key), ssh_args="-F none")
        with (
            connect(host, known_hosts=known, timeout_s=1.5) as transport,
            pytest.raises(ConnectionLost, match="did not start a program"),
        ):
            transport.start(["true"])


def test_nothing_is_left_on_the_host_when_the_operator_is_killed(own: Sshd, tmp_path: Path) -> None:
    operator = tmp_path / "killed_operator.py"
    operator.write_text(
        "import sys\n"
        "from pathlib import Path\n"
        "from provision.hosts import Host\n"
        "from provision.transport import connect\n"
        f"host = {own.host()!r}\n"
        f"with connect(host, known_hosts=Path({str(own.known_hosts)!r})) as transport:\n"
        f"    process = transport.start([sys.executable, '-c', {LEASE!r}])\n"
        "    for _, data in process.chunks(deadline_s=600, idle_s=600): print(data.decode(), flush=True)\n"
    )
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, str(operator)], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(root)}
    ) as child:
        assert child.stdout is not None
        pids = [int(word) for word in child.stdout.readline().split()]
        assert len(pids) == 2
        assert all(running(pid) for pid in pids)
        child.kill()
    assert all(gone(pid) for pid in pids)
    assert eventually(lambda: not own.children())


def test_a_shell_profile_and_a_message_of_the_day_that_print_do_not_reach_the_answer(
    tmp_path: Path, home: Path
) -> None:
    (home / ".bashrc").write_text('echo "WELCOME to $HOSTNAME"; echo careful >&2; set -x\n')
    (home / ".profile").write_text("echo profile\n")
    wrapper = tmp_path / "login"
    wrapper.write_text('#!/bin/sh\necho "motd"; exec bash --rcfile "$HOME/.bashrc" -ic "$SSH_ORIGINAL_COMMAND"\n')
    wrapper.chmod(0o755)
    banner = tmp_path / "banner"
    banner.write_text("AUTHORIZED USE ONLY\n")
    config = [f"ForceCommand {wrapper}", f"Banner {banner}", f"SetEnv HOME={home}"]
    with (
        sshd(tmp_path / "noisy", config=config) as server,
        connect(server.host(), known_hosts=server.known_hosts) as transport,
    ):
        assert transport.run(["printf", "%s\\n", "answer"]).stdout == b"answer\n"


def test_a_forced_command_that_ignores_ours_is_handed_on_as_it_is(tmp_path: Path) -> None:
    config = ["ForceCommand echo This account is not available.; exit 1"]
    with (
        sshd(tmp_path / "nologin", config=config) as server,
        connect(server.host(), known_hosts=server.known_hosts) as transport,
    ):
        done = transport.run(["true"])
    assert (done.returncode, done.stdout) == (1, b"This account is not available.\n")


def test_a_plain_users_server_serves_and_an_account_without_a_shell_says_so() -> None:
    """The test server as a plain user; on most systems `nobody` has a shell that refuses."""
    need(os.geteuid() == 0, "only root can start a server as somebody else", installable=False)
    shell = pwd.getpwnam("nobody").pw_shell
    need("nologin" in shell, "nobody may log in here", installable=False)
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        with (
            sshd(Path(directory) / "plain", run_as="nobody") as server,
            connect(server.host(), known_hosts=server.known_hosts) as transport,
        ):
            assert Path(f"/proc/{server.process.pid}").stat().st_uid == pwd.getpwnam("nobody").pw_uid
            done = transport.run(["true"])
    assert done.returncode != 0
    assert b"not available" in done.stdout + done.stderr


@pytest.mark.parametrize("shell", ["bash", "dash", "zsh", "fish", "tcsh"])
def test_every_login_shell_hands_the_same_arguments_on(tmp_path: Path, shell: str) -> None:
    found = subprocess.run(
        ["sh", "-c", f"command -v {shell}"], capture_output=True, text=True, check=False
    ).stdout.strip()
    need(bool(found), f"{shell} is not installed")
    words = [
        "a b",
        "it's",
        '"',
        "$HOME",
        "\\",
        "\\n",
        "!x",
        "a\nb\n",
        "%s",
        "\u00fc",
        "",
        "~",
        "*",
        "`id`",
        "{a,b}",
        "^",
    ]
    program = "import os,sys;os.write(1, b'|'.join(map(os.fsencode, sys.argv[1:])));os.write(2, b'e');sys.exit(7)"
    config = [f'ForceCommand exec {found} -c "$SSH_ORIGINAL_COMMAND"']
    with (
        sshd(tmp_path / "shell", config=config) as server,
        connect(server.host(), known_hosts=server.known_hosts) as transport,
    ):
        done = transport.run([sys.executable, "-c", program, *words])
        assert (done.returncode, done.stdout, done.stderr) == (7, "|".join(words).encode(), b"e")
        assert transport.run(["sh", "-c", "kill -9 $$"]).returncode == -9


def test_the_server_of_these_tests_leaves_nothing_behind(tmp_path: Path) -> None:
    with sshd(tmp_path / "short") as server, connect(server.host(), known_hosts=server.known_hosts) as transport:
        transport.start(["sleep", "600"])
        pids = [server.process.pid, *descendants(server.process.pid)]
    assert len(pids) > 1
    assert all(gone(pid) for pid in pids)
