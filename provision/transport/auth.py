"""Which keys are offered, in which order; passphrases asked once a run and kept in memory alone."""

from __future__ import annotations

import base64
import getpass
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import paramiko
from paramiko.pkey import UnknownKeyType

from provision.errors import AuthenticationError, ConnectError
from provision.transport.known_hosts import fingerprint
from provision.transport.options import Endpoint

AskSecret = Callable[[str], str | None]
"""Shows the prompt and returns what was typed; None where there is nobody to ask."""

_USUAL_NAMES = ("id_ed25519", "id_ecdsa", "id_rsa")
_ATTEMPTS = 3


def ask_on_terminal(prompt: str) -> str | None:
    """Ask without echo, on the terminal only: never where input or prompt would go to a file or a pipe."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return None
    try:
        return getpass.getpass(prompt)
    except EOFError:
        return None


@dataclass
class _Loaded:
    key: paramiko.PKey | None
    problem: str = ""


@dataclass
class KeyRing:
    """Private keys of this process, each parsed and unlocked once (bcrypt costs 0.1 s and more a key)."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    loaded: dict[Path, _Loaded] = field(default_factory=dict)

    def load(self, path: Path, ask: AskSecret | None) -> _Loaded:
        """The key of a file, or why there is none. `ask` None: do not ask for a passphrase now."""
        with self.lock:  # held while asking: thirty threads must not ask thirty times
            found = self.loaded.get(path)
            if found is None or (found.key is None and found.problem == _LOCKED and ask is not None):
                found = self.loaded[path] = _read(path, ask)
            return found

    def forget(self) -> None:
        """Drop every key (tests, and the end of a run)."""
        with self.lock:
            self.loaded.clear()


_LOCKED = "locked by a passphrase, and there is no terminal to ask for it"
key_ring = KeyRing()


def _read(path: Path, ask: AskSecret | None) -> _Loaded:
    try:
        return _Loaded(paramiko.PKey.from_path(path))
    except FileNotFoundError:
        return _Loaded(None, "not there")
    except OSError as problem:
        return _Loaded(None, f"cannot be read: {problem.strerror}")
    except TypeError:  # cryptography's way to say: encrypted, and no passphrase given
        return _unlock(path, ask)
    except paramiko.PasswordRequiredException:
        return _unlock(path, ask)
    except (ValueError, paramiko.SSHException, UnknownKeyType) as problem:
        return _Loaded(None, f"not a private key that can be used ({str(problem)[:80] or type(problem).__name__})")


def _unlock(path: Path, ask: AskSecret | None) -> _Loaded:
    if ask is None:
        return _Loaded(None, _LOCKED)
    for _ in range(_ATTEMPTS):
        passphrase = ask(f"Passphrase for {path}: ")
        if passphrase is None:
            return _Loaded(None, _LOCKED)
        try:
            return _Loaded(_with_passphrase(path, passphrase))
        except (ValueError, paramiko.SSHException):
            continue
    return _Loaded(None, "the passphrase was wrong")


def _with_passphrase(path: Path, passphrase: str) -> paramiko.PKey:
    """Not PKey.from_path: it hands one passphrase to a library that wants bytes and to one that wants str."""
    problem: Exception = paramiko.SSHException("not a key")
    for kind in (paramiko.Ed25519Key, paramiko.ECDSAKey, paramiko.RSAKey):
        try:
            key = kind.from_private_key_file(str(path), password=passphrase)
            certificate = path.with_name(path.name + "-cert.pub")
            if certificate.is_file():
                key.load_certificate(str(certificate))
            return key
        except (ValueError, paramiko.SSHException) as error:
            problem = error
    raise problem


def authenticate(connection: paramiko.Transport, endpoint: Endpoint, ask: AskSecret) -> None:
    """Offer keys until the host takes one. Raises AuthenticationError saying what was offered, and to whom."""
    offered: list[str] = []
    unusable: list[str] = []
    with ExitStack() as stack:
        try:
            for label, key in _candidates(endpoint, ask, unusable, stack):
                offered.append(label)
                try:
                    if not connection.auth_publickey(endpoint.user, key):
                        return
                    raise AuthenticationError(
                        f"{endpoint.who}: it takes {label} and wants a second proof, which bringup cannot give",
                        hint="allow the key alone for this user (AuthenticationMethods publickey)",
                    )
                except paramiko.BadAuthenticationType:
                    raise
                except paramiko.AuthenticationException:
                    if not connection.is_active():
                        raise
            if not offered:
                connection.auth_none(endpoint.user)
                return
        except paramiko.BadAuthenticationType as refusal:
            if "publickey" not in refusal.allowed_types:
                raise AuthenticationError(
                    f"{endpoint.who}: it lets {endpoint.user} in by {' or '.join(refusal.allowed_types) or 'nothing'} "
                    "only, and bringup uses keys only",
                    hint=f"put your key there: ssh-copy-id -p {endpoint.port} {endpoint.user}@{endpoint.hostname} "
                    "(and PubkeyAuthentication yes in its sshd_config)",
                ) from None
        except paramiko.SSHException as problem:
            if connection.is_active() or not offered:
                raise ConnectError(f"{endpoint.who}: authentication broke off: {problem}") from None
            unusable.append("the host then hung up (too many keys offered? IdentitiesOnly yes limits them)")
        except EOFError:
            raise ConnectError(f"{endpoint.who}: the host closed the connection during authentication") from None
    raise _refused(endpoint, offered, unusable)


def _refused(endpoint: Endpoint, offered: list[str], unusable: list[str]) -> AuthenticationError:
    where = f"{endpoint.hostname} port {endpoint.port}"
    said = (
        f"{where} refused every key for user {endpoint.user}: {'; '.join(offered)}"
        if offered
        else f"no key could be offered to {where} for user {endpoint.user}"
    )
    hint = (
        "name user and key in the inventory (ansible_user, ansible_ssh_private_key_file), or put the key there: "
        f"ssh-copy-id -p {endpoint.port} {endpoint.user}@{endpoint.hostname}"
    )
    if any(_LOCKED in one for one in unusable):
        hint = "unlock the key first (ssh-agent, then ssh-add), or run it on a terminal; or " + hint
    return AuthenticationError(
        f"{endpoint.who}: {said}" + (f" (not offered: {'; '.join(unusable)})" if unusable else ""), hint
    )


def _candidates(
    endpoint: Endpoint, ask: AskSecret, unusable: list[str], stack: ExitStack
) -> Iterator[tuple[str, paramiko.PKey]]:
    """Named keys that are at hand, then the agent's, then named keys that need a passphrase."""
    named = endpoint.identity_files or tuple(Path.home() / ".ssh" / name for name in _USUAL_NAMES)
    agent = {key.asbytes(): key for key in _agent_keys(endpoint, unusable, stack)}
    locked: list[Path] = []
    for path in named:
        public = _public_blob(path)
        if public in agent:
            yield f"{path} (from the agent)", agent.pop(public)
            continue
        found = key_ring.load(path, None)
        if found.key is not None:
            yield _label(str(path), found.key), found.key
        elif found.problem == _LOCKED:
            locked.append(path)
        elif endpoint.identity_files:
            unusable.append(f"{path}: {found.problem}")
    if not endpoint.identities_only:
        for key in agent.values():
            yield _label("agent", key), key
    for path in locked:
        found = key_ring.load(path, ask)
        if found.key is not None:
            yield _label(str(path), found.key), found.key
        else:
            unusable.append(f"{path}: {found.problem}")


def _label(origin: str, key: paramiko.PKey) -> str:
    return f"{origin} ({key.get_name()} {fingerprint(key.asbytes())})"


def _public_blob(path: Path) -> bytes | None:
    """The public half beside a private key: enough to find it in the agent without a passphrase."""
    try:
        return base64.b64decode(Path(f"{path}.pub").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return None


def _agent_keys(endpoint: Endpoint, unusable: list[str], stack: ExitStack) -> tuple[paramiko.PKey, ...]:
    where = endpoint.identity_agent
    if where.lower() == "none":
        return ()
    agent: Any
    try:
        named = where and where != "SSH_AUTH_SOCK"
        agent = _AgentAt(Path(where).expanduser()) if named else paramiko.Agent()
    except (OSError, paramiko.SSHException) as problem:
        unusable.append(f"the agent: {problem}")
        return ()
    stack.callback(agent._close)
    return tuple(agent.get_keys())


class _AgentAt(paramiko.agent.AgentSSH):
    """An agent at a socket of its own (IdentityAgent)."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(path))
        self._connect(connection)  # type: ignore[attr-defined]  # the stubs leave it out
