"""Ways to run a program on a host: over SSH, or here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from provision.hosts import Host
from provision.transport.base import Completed, Process, Stream, Transport

__all__ = ["Completed", "Process", "Stream", "Transport", "connect"]


def connect(
    host: Host,
    *,
    host_keys: Literal["strict", "accept-new"] = "strict",
    known_hosts: Path | None = None,
    timeout_s: float = 15.0,
    secrets: Callable[[str], str | None] | None = None,
) -> Transport:
    """Open a way to a host; use it in a `with`. `timeout_s` bounds connecting, for each hop.

    `host_keys`: "strict" wants the host's key in known_hosts, "accept-new" adds it where nothing is known;
    a changed key is refused by both. `known_hosts` replaces the user's and the system's files.
    `secrets` shows a prompt and returns a passphrase or None; by default it asks on the terminal, once a
    run and key, and never where there is no terminal.
    Raises ConnectError, HostKeyError, AuthenticationError.
    """
    if host.connection == "local":
        from provision.transport.local import LocalTransport  # noqa: PLC0415  (keeps `import provision.cli` quick)

        return LocalTransport(host.name)
    from provision.transport.auth import ask_on_terminal  # noqa: PLC0415  (paramiko costs 0.3 s)
    from provision.transport.ssh import SshTransport  # noqa: PLC0415  (as above)

    return SshTransport(
        host,
        host_keys=host_keys,
        known_hosts_file=known_hosts,
        timeout_s=timeout_s,
        ask=secrets or ask_on_terminal,
    )
