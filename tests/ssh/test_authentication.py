"""Keys, passphrases, the agent, and what is said when none of it is let in."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from provision.errors import AuthenticationError
from provision.hosts import Host
from provision.transport import connect
from provision.transport.auth import key_ring
from tests.hosts.sshd import Sshd, make_key, public_key, sshd


def connects(server: Sshd, host: Host, secrets: object = None) -> bool:
    with connect(host, known_hosts=server.known_hosts, secrets=secrets) as transport:  # type: ignore[arg-type]  # None or callable
        return transport.run(["true"]).returncode == 0


def refused(server: Sshd, host: Host, secrets: object = None) -> AuthenticationError:
    with pytest.raises(AuthenticationError) as caught:
        connects(server, host, secrets)
    return caught.value


def authorize(server: Sshd, key: Path) -> None:
    with (server.directory / "authorized_keys").open("a") as handle:
        handle.write(public_key(key) + "\n")


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A real ssh-agent, empty."""
    path = tmp_path / "agent"
    output = subprocess.run(["ssh-agent", "-s", "-a", str(path)], capture_output=True, text=True, check=True).stdout
    pid = int(output.partition("SSH_AGENT_PID=")[2].partition(";")[0])
    monkeypatch.setenv("SSH_AUTH_SOCK", str(path))
    yield path
    os.kill(pid, signal.SIGTERM)


def add_to_agent(key: Path) -> None:
    subprocess.run(["ssh-add", "-q", str(key)], check=True, capture_output=True)


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
def test_each_kind_of_key_is_let_in(server: Sshd, tmp_path: Path, kind: str) -> None:
    key = make_key(tmp_path / "key", kind)
    authorize(server, key)
    assert connects(server, server.host(private_key_file=str(key)))


def test_the_usual_keys_in_the_home_are_tried_when_none_is_named(server: Sshd, home: Path) -> None:
    authorize(server, make_key(home / ".ssh/id_ecdsa", "ecdsa"))
    assert connects(server, server.host(private_key_file="", ssh_args="-F none"))


def test_a_wrong_key_says_which_key_was_offered_by_which_user(server: Sshd, tmp_path: Path) -> None:
    key = make_key(tmp_path / "stranger")
    error = refused(server, server.host(private_key_file=str(key)))
    listing = subprocess.run(["ssh-keygen", "-lf", str(key)], capture_output=True, text=True, check=True).stdout
    assert f"for user {server.user}" in error.message
    assert str(key) in error.message
    assert listing.split()[1] in error.message
    assert "ansible_ssh_private_key_file" in error.hint


def test_without_any_key_it_says_that_there_was_none(server: Sshd) -> None:
    error = refused(server, server.host(private_key_file="", ssh_args="-F none"))
    assert "no key could be offered" in error.message


def test_a_named_key_that_is_not_there_is_named(server: Sshd, tmp_path: Path) -> None:
    assert f"{tmp_path}/nokey: not there" in refused(server, server.host(private_key_file=f"{tmp_path}/nokey")).message


def test_a_file_that_is_no_key_is_named(server: Sshd, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello\n")
    error = refused(server, server.host(private_key_file=str(tmp_path / "text")))
    assert f"{tmp_path}/text: not a private key" in error.message


def test_a_host_that_wants_passwords_is_named_with_ssh_copy_id(tmp_path: Path) -> None:
    only = ["PubkeyAuthentication no", "PasswordAuthentication yes"]
    with sshd(tmp_path / "sshd", config=only) as server:
        error = refused(server, server.host())
        assert "password only" in error.message
        assert "ssh-copy-id" in error.hint
        without_key = refused(server, server.host(private_key_file="", ssh_args="-F none"))
        assert "password only" in without_key.message


def test_a_second_factor_is_an_error_that_says_so(tmp_path: Path) -> None:
    both = ["AuthenticationMethods publickey,password", "PasswordAuthentication yes"]
    with sshd(tmp_path / "sshd", config=both) as server:
        assert "second proof" in refused(server, server.host()).message


def test_too_many_keys_say_that_the_host_hung_up(tmp_path: Path) -> None:
    with sshd(tmp_path / "sshd", config=["MaxAuthTries 2"]) as server:
        keys = [make_key(tmp_path / f"key{n}") for n in range(4)]
        args = server.host().ssh_args + "".join(f" -i {key}" for key in keys[1:])
        error = refused(server, server.host(private_key_file=str(keys[0]), ssh_args=args))
        assert "too many" in error.message.lower()


@pytest.mark.parametrize("kind", ["ed25519", "rsa"])
def test_an_encrypted_key_asks_once_for_many_hosts(server: Sshd, tmp_path: Path, kind: str) -> None:
    key = make_key(tmp_path / "locked", kind, "open sesame")
    authorize(server, key)
    asked: list[str] = []

    def answer(prompt: str) -> str:
        asked.append(prompt)
        return "open sesame"

    with ThreadPoolExecutor(8) as pool:
        host = server.host(private_key_file=str(key))
        assert all(pool.map(lambda n: connects(server, replace(host, name=f"box{n}"), answer), range(8)))
    assert asked == [f"Passphrase for {key}: "]


def test_an_old_pem_key_with_a_passphrase_opens_too(server: Sshd, tmp_path: Path) -> None:
    key = tmp_path / "pem"
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "rsa", "-b", "2048", "-m", "PEM", "-N", "secret", "-f", str(key)], check=True
    )
    authorize(server, key)
    assert connects(server, server.host(private_key_file=str(key)), lambda _prompt: "secret")


def test_a_wrong_passphrase_is_asked_again_and_then_named(server: Sshd, tmp_path: Path) -> None:
    key = make_key(tmp_path / "locked", "ed25519", "right")
    authorize(server, key)
    answers = iter(["wrong", "right"])
    assert connects(server, server.host(private_key_file=str(key)), lambda _prompt: next(answers))
    key_ring.forget()
    asked: list[str] = []

    def always_wrong(prompt: str) -> str:
        asked.append(prompt)
        return "wrong answer"

    for _ in range(2):
        error = refused(server, server.host(private_key_file=str(key)), always_wrong)
        assert f"{key}: the passphrase was wrong" in error.message
        assert "wrong answer" not in error.message
    assert len(asked) == 3


def test_nobody_is_asked_where_there_is_no_terminal(server: Sshd, tmp_path: Path) -> None:
    key = make_key(tmp_path / "locked", "ed25519", "right")
    error = refused(server, server.host(private_key_file=str(key)))
    assert "locked by a passphrase, and there is no terminal" in error.message
    assert "ssh-add" in error.hint


def test_the_agents_key_is_let_in(server: Sshd, agent: Path, tmp_path: Path) -> None:
    key = make_key(tmp_path / "in-agent")
    authorize(server, key)
    add_to_agent(key)
    key.unlink()
    assert connects(server, server.host(private_key_file="", ssh_args="-F none"))


def test_an_encrypted_key_that_the_agent_holds_needs_no_passphrase(server: Sshd, agent: Path, tmp_path: Path) -> None:
    key = make_key(tmp_path / "locked", "ed25519", "right")
    authorize(server, key)
    clear = tmp_path / "clear"
    clear.write_bytes(key.read_bytes())
    clear.chmod(0o600)
    subprocess.run(["ssh-keygen", "-q", "-p", "-P", "right", "-N", "", "-f", str(clear)], check=True)
    add_to_agent(clear)
    clear.unlink()
    host = server.host(private_key_file=str(key), ssh_args="-F none -o IdentitiesOnly=yes")
    assert connects(server, host, lambda _prompt: pytest.fail("asked"))


def test_identities_only_keeps_the_agents_other_keys_out(server: Sshd, agent: Path, tmp_path: Path) -> None:
    key = make_key(tmp_path / "in-agent")
    authorize(server, key)
    add_to_agent(key)
    stranger = make_key(tmp_path / "stranger")
    host = server.host(private_key_file=str(stranger), ssh_args="-F none -o IdentitiesOnly=yes")
    assert "in-agent" not in refused(server, host).message
    assert connects(server, replace(host, ssh_args="-F none"))


def test_another_agent_can_be_named_and_a_dead_one_is_said(
    server: Sshd, agent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = make_key(tmp_path / "in-agent")
    authorize(server, key)
    add_to_agent(key)
    monkeypatch.delenv("SSH_AUTH_SOCK")
    assert connects(server, server.host(private_key_file="", ssh_args=f"-F none -o IdentityAgent={agent}"))
    dead = server.host(private_key_file="", ssh_args=f"-F none -o IdentityAgent={tmp_path}/dead")
    assert "the agent: " in refused(server, dead).message


def test_no_secret_is_in_an_error(server: Sshd, tmp_path: Path) -> None:
    key = make_key(tmp_path / "locked", "ed25519", "correct horse")
    error = refused(server, server.host(private_key_file=str(key)), lambda _prompt: "correct horse")
    assert "horse" not in f"{error.message} {error.hint} {error!r}"
