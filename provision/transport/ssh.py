"""A host over SSH, on paramiko: connect (jump hosts, host keys, keys), then programs over one connection."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import paramiko
from paramiko.ssh_exception import IncompatiblePeer

from provision.errors import ConnectError, ConnectionLost
from provision.hosts import Host
from provision.transport import known_hosts
from provision.transport.auth import AskSecret, authenticate
from provision.transport.base import Completed
from provision.transport.collect import collect
from provision.transport.known_hosts import HostKeys
from provision.transport.options import Endpoint, resolve, resolve_jump
from provision.transport.process import Connection, SshProcess
from provision.transport.quoting import command_line
from provision.transport.sockets import open_proxy, open_tcp

logging.getLogger("paramiko").addHandler(logging.NullHandler())  # else its tracebacks go to stderr

_RSA = ("rsa-sha2-512", "rsa-sha2-256")


class SshTransport:
    """An open SSH connection to a host, and those to its jump hosts behind it."""

    def __init__(
        self,
        host: Host,
        *,
        host_keys: HostKeys,
        known_hosts_file: Path | None,
        timeout_s: float,
        ask: AskSecret,
    ) -> None:
        self._name = host.name
        self._host_keys: HostKeys = host_keys
        self._known_hosts_file = known_hosts_file
        self._timeout_s = timeout_s
        self._ask = ask
        self._ends = ExitStack()
        self._processes: list[SshProcess] = []
        with ExitStack() as undo:
            undo.callback(self._ends.close)
            self._connection = self._open(resolve(host))
            undo.pop_all()

    def _open(self, endpoint: Endpoint) -> Connection:
        timeout_s = min(self._timeout_s, endpoint.connect_timeout_s or self._timeout_s)
        deadline = time.monotonic() + timeout_s
        sock = self._socket(endpoint, timeout_s)
        connection = Connection(sock)
        self._ends.callback(connection.close)
        left = max(1.0, deadline - time.monotonic())
        connection.banner_timeout = connection.handshake_timeout = connection.auth_timeout = left
        connection.channel_timeout = left
        files = self._known_hosts_files(endpoint)
        name, entries = _known(endpoint, files)
        options = connection.get_security_options()
        options.key_types = _prefer(known_hosts.known_types(entries), tuple(options.key_types))
        try:
            connection.start_client(timeout=left)
        except IncompatiblePeer as problem:
            raise ConnectError(
                f"{endpoint.who}: no common SSH algorithm: {problem}",
                hint="its SSH server is old, or allows too little (KexAlgorithms, HostKeyAlgorithms, Ciphers there)",
            ) from None
        except (paramiko.SSHException, EOFError, OSError) as problem:
            raise _no_ssh(endpoint, connection, problem, timeout_s) from None
        if not connection.initial_kex_done:
            raise _no_ssh(endpoint, connection, None, timeout_s)
        key = connection.get_remote_server_key()
        known_hosts.verify(
            endpoint.who,
            name,
            entries,
            key.get_name(),
            key.asbytes(),
            policy=self._policy(endpoint),
            files=files,
            note=_loosened(endpoint),
        )
        authenticate(connection, endpoint, self._ask)
        connection.set_keepalive(endpoint.keepalive_s)
        return connection

    def _socket(self, endpoint: Endpoint, timeout_s: float) -> socket.socket | paramiko.Channel:
        if endpoint.jumps:
            jump = self._open(resolve_jump(endpoint))
            try:
                return jump.open_channel(
                    "direct-tcpip", (endpoint.hostname, endpoint.port), ("127.0.0.1", 0), timeout=timeout_s
                )
            except (paramiko.SSHException, EOFError, OSError) as problem:
                raise ConnectError(
                    f"{endpoint.who}: the jump host {endpoint.jumps[-1]} cannot reach {endpoint.hostname} "
                    f"port {endpoint.port}: {problem}",
                    hint="is the address right as the jump host sees it, and AllowTcpForwarding on there?",
                ) from None
        if endpoint.proxy_command:
            return open_proxy(endpoint, self._ends)
        return open_tcp(endpoint, timeout_s, self._ends)

    def _known_hosts_files(self, endpoint: Endpoint) -> tuple[Path, ...]:
        if self._known_hosts_file is not None:
            return (self._known_hosts_file,)
        return endpoint.user_known_hosts + endpoint.system_known_hosts

    def _policy(self, endpoint: Endpoint) -> HostKeys:
        """Strict where the user's options say so, and where there is no file of theirs to add a key to."""
        theirs = self._known_hosts_file is not None or endpoint.user_known_hosts
        return "strict" if endpoint.strict_checking == "yes" or not theirs else self._host_keys

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            process.close()
        self._ends.close()

    def start(self, argv: Sequence[str]) -> SshProcess:
        """Start a program in a channel of its own, without a terminal."""
        return self._start(argv)

    def _start(self, argv: Sequence[str], stdin: bytes | None = None) -> SshProcess:
        line = command_line(argv)
        try:
            process = SshProcess(self._name, self._connection, line, self._timeout_s, stdin)
        except (paramiko.SSHException, EOFError, OSError) as problem:
            raise ConnectionLost(
                f"{self._name}: the host did not start a program over the open connection: "
                f"{problem or type(problem).__name__}"
            ) from None
        self._processes.append(process)
        return process

    def run(
        self, argv: Sequence[str], *, stdin: bytes = b"", timeout_s: float = 30.0, limit_bytes: int = 1 << 20
    ) -> Completed:
        """Run a program to its end."""
        return collect(self._name, argv, self._start(argv, stdin), timeout_s, limit_bytes)


def _known(endpoint: Endpoint, files: Sequence[Path]) -> tuple[str, list[known_hosts.Entry]]:
    """The name in known_hosts and what it says. As ssh: a key under the plain name serves another port too."""
    name = known_hosts.host_label(endpoint.known_as, endpoint.port)
    entries = known_hosts.lookup(files, name)
    if not entries and name != endpoint.known_as:
        entries = known_hosts.lookup(files, endpoint.known_as)
    return name, entries


def _prefer(known: Sequence[str], usual: Sequence[str]) -> tuple[str, ...]:
    """Key types to ask for: those that known_hosts has first, or a host with several keys would look unknown."""
    wanted = [name for kind in known for name in (_RSA if kind == "ssh-rsa" else (kind,)) if name in usual]
    return tuple(dict.fromkeys([*wanted, *usual]))


def _loosened(endpoint: Endpoint) -> str:
    if endpoint.strict_checking in ("no", "off", "accept-new"):
        return f" (StrictHostKeyChecking={endpoint.strict_checking} is for ssh: bringup follows --host-keys only)"
    return ""


def _no_ssh(
    endpoint: Endpoint, connection: paramiko.Transport, problem: BaseException | None, timeout_s: float
) -> ConnectError:
    """Why there was no handshake: nothing was said, not SSH was said, or it broke off."""
    where = f"{endpoint.hostname} port {endpoint.port}"
    hint = f"try: ssh -v -p {endpoint.port} {endpoint.user}@{endpoint.hostname}"
    if connection.remote_version:
        said = f": {problem}" if problem is not None and str(problem) else f" within {timeout_s:g} s"
        return ConnectError(f"{endpoint.who}: the SSH handshake with {where} did not complete{said}", hint)
    if problem is not None and "protocol version" in str(problem):
        text = ascii(str(problem).partition('"')[2].rstrip('"')[:60])
        return ConnectError(
            f"{endpoint.who}: {where} does not speak SSH: it says {text}", "is this the port of the SSH server?"
        )
    silent = problem is None or isinstance(problem, TimeoutError) or isinstance(problem.__context__, TimeoutError)
    if not silent:
        return ConnectError(f"{endpoint.who}: {where} closed the connection before it said SSH", hint)
    return ConnectError(
        f"{endpoint.who}: {where} took the connection and said nothing for {timeout_s:g} s",
        "the host hangs, or something else listens on that port",
    )
