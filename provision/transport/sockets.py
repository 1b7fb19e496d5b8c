"""Sockets to the next machine: TCP, or the standard streams of a ProxyCommand."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import subprocess
from contextlib import ExitStack

from provision.errors import ConnectError
from provision.transport.options import Endpoint

_UNREACHABLE = {errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTDOWN}


class _PromptSocket(socket.socket):
    """Acknowledges what it reads at once.

    After authentication sshd sends its other host keys, and Nagle's algorithm there holds back the answer to the
    first channel until they are acknowledged: with the kernel's delayed ACK 40 ms on each connection (measured).
    """

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        data = super().recv(size, flags)
        with contextlib.suppress(OSError, AttributeError):  # Linux has the option, and forgets it after some packets
            self.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        return data


def open_tcp(endpoint: Endpoint, timeout_s: float, ends: ExitStack) -> socket.socket:
    """A connected socket; each address of the name is tried. Raises ConnectError."""
    where = f"{endpoint.hostname} port {endpoint.port}"
    try:
        addresses = socket.getaddrinfo(endpoint.hostname, endpoint.port, endpoint.family, socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as problem:
        said = problem.strerror if isinstance(problem, socket.gaierror) else "not a host name"
        raise ConnectError(
            f"{endpoint.who}: the name {endpoint.hostname!a} is not found ({said})",
            hint="set ansible_host in the inventory, or HostName in ~/.ssh/config",
        ) from None
    last: OSError = OSError(errno.EHOSTUNREACH, "no address")
    for family, kind, protocol, _, address in addresses:
        sock = _PromptSocket(family, kind, protocol)
        try:
            sock.settimeout(timeout_s)
            sock.connect(address)
        except OSError as problem:
            last = problem
            sock.close()
            continue
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(OSError, AttributeError):
            # Keep-alive messages that nobody acknowledges break the connection after so many milliseconds
            # (Linux; the default is about 15 minutes).
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 3000 * endpoint.keepalive_s)
        ends.callback(sock.close)
        return sock
    if isinstance(last, ConnectionRefusedError):
        raise ConnectError(
            f"{endpoint.who}: {where} refused the connection: the machine is there, no SSH server on that port",
            hint="is sshd running there, and ansible_port right?",
        )
    if isinstance(last, TimeoutError):
        raise ConnectError(
            f"{endpoint.who}: {where} did not answer within {timeout_s:g} s",
            hint="is the host up, the address right, the port open in the firewall or security group?",
        )
    kind_of = "is unreachable" if last.errno in _UNREACHABLE else "cannot be connected to"
    raise ConnectError(
        f"{endpoint.who}: {where} {kind_of}: {last.strerror or last}", hint="is the address right? try: ping, ip route"
    )


def open_proxy(endpoint: Endpoint, ends: ExitStack) -> socket.socket:
    """A socket whose other end is a ProxyCommand's standard input and output."""
    ours, theirs = socket.socketpair()
    try:
        child = subprocess.Popen(
            # A shell, because ProxyCommand is a line for one (ssh_config(5)); it is the operator's own text, and
            # the names filled into it were checked.
            ["/bin/sh", "-c", f"exec {endpoint.proxy_command}"],
            stdin=theirs.fileno(),
            stdout=theirs.fileno(),
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    finally:
        theirs.close()
    ends.callback(_end, child)
    ends.callback(ours.close)
    return ours


def _end(child: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGTERM)
    try:
        child.wait(1.0)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
