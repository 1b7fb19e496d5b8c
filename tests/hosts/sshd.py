"""A throw-away sshd: its own port, host keys and authorized keys, on loopback. As root or as a plain user.

with sshd(tmp_path) as server:
    with connect(server.host("box"), known_hosts=server.known_hosts) as transport: ...
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from provision.hosts import Host
from tests.need import need


def find_sshd() -> str | None:
    """The SSH server's program, which is not on a plain user's PATH."""
    return shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin:/sbin")


@dataclass
class Sshd:
    """A running server. `key` is a private key that it lets in, `known_hosts` has its host keys."""

    directory: Path
    addresses: tuple[str, ...]
    port: int
    user: str
    key: Path
    host_keys: tuple[Path, ...]
    known_hosts: Path
    process: subprocess.Popen[bytes]
    host_names: tuple[str, ...] = field(default=())

    def host(self, name: str = "box", **overrides: object) -> Host:
        """A Host of this server; any field of it can be said otherwise."""
        fields: dict[str, object] = {
            "name": name,
            "address": self.addresses[0],
            "port": self.port,
            "user": self.user,
            "private_key_file": str(self.key),
            "ssh_args": "-F none -o IdentityAgent=none -o IdentitiesOnly=yes",
        }
        return Host(**{**fields, **overrides})  # type: ignore[arg-type]  # the fields are Host's own

    def inventory_line(self, name: str = "box") -> str:
        """This server as a line of an INI inventory."""
        return (
            f"{name} ansible_host={self.addresses[0]} ansible_port={self.port} ansible_user={self.user} "
            f"ansible_ssh_private_key_file={self.key} "
            f"ansible_ssh_common_args='-F none -o UserKnownHostsFile={self.known_hosts}'"
        )

    def log(self) -> str:
        """What the server wrote so far."""
        return (self.directory / "sshd.log").read_text(errors="replace")

    def children(self) -> list[int]:
        """Every process under the server: sessions, and what runs in them (until it is orphaned)."""
        return descendants(self.process.pid)

    def stop(self) -> None:
        """End the server and its sessions."""
        for pid in [self.process.pid, *self.children()]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
                os.kill(pid, signal.SIGKILL)
        self.process.wait(10)


def descendants(pid: int) -> list[int]:
    """Children, their children and so on, from /proc."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text(errors="replace").rpartition(")")[2].split()
            parents.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found = list(parents.get(pid, []))
    for one in found:
        found += parents.get(one, [])
    return found


def make_key(path: Path, kind: str = "ed25519", passphrase: str = "") -> Path:
    """A new key pair at `path` and `path`.pub."""
    command = ["ssh-keygen", "-q", "-t", kind, "-N", passphrase, "-C", path.name, "-f", str(path)]
    subprocess.run([*command, *(["-b", "2048"] if kind == "rsa" else [])], check=True)
    return path


def public_key(path: Path) -> str:
    """`type base64` of a key pair, as known_hosts and authorized_keys have it."""
    return " ".join(Path(f"{path}.pub").read_text().split()[:2])


def free_port(address: str = "127.0.0.1") -> int:
    """A port on which nothing listens (at the moment)."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def sshd(
    directory: Path,
    *,
    addresses: Sequence[str] = ("127.0.0.1",),
    key_kinds: Sequence[str] = ("ed25519",),
    config: Sequence[str] = (),
    key: Path | None = None,
    run_as: str = "",
) -> Iterator[Sshd]:
    """A server until the end of the `with`. `config`: more lines of sshd_config, which win over the usual ones.

    `run_as`: a user whom the server runs as, where the tests are root's; it lets in that user alone, and the
    directory must be within that user's reach.
    """
    program = find_sshd()
    need(program is not None, "openssh-server is not installed", installable=True)
    assert program is not None
    directory.mkdir(parents=True, exist_ok=True)
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd's privilege separation wants it
    host_keys = tuple(make_key(directory / f"host_{kind}", kind) for kind in key_kinds)
    if key is None:
        key = make_key(directory / "user_key")
    (directory / "authorized_keys").write_text(public_key(key) + "\n")
    if run_as:
        for path in (directory, *directory.iterdir()):
            shutil.chown(path, run_as)
    for _ in range(5):
        port = free_port()
        process = _launch(
            program,
            directory,
            addresses=addresses,
            port=port,
            host_keys=host_keys,
            config=config,
            run_as=run_as,
        )
        if process is not None:
            break
    else:
        raise RuntimeError(f"sshd did not start: {(directory / 'sshd.log').read_text()}")
    known_hosts = directory / "known_hosts"
    names = [f"[{address}]:{port}" for address in addresses if address != "0.0.0.0"] or [f"[127.*]:{port}"]
    known_hosts.write_text("".join(f"{','.join(names)} {public_key(one)}\n" for one in host_keys))
    server = Sshd(directory, tuple(addresses), port, run_as or getpass.getuser(), key, host_keys, known_hosts, process)
    try:
        yield server
    finally:
        server.stop()


def _launch(
    program: str,
    directory: Path,
    *,
    addresses: Sequence[str],
    port: int,
    host_keys: Sequence[Path],
    config: Sequence[str],
    run_as: str,
) -> subprocess.Popen[bytes] | None:
    """Start it and wait until it listens; None where it did not (the port was taken meanwhile)."""
    lines = [
        *config,
        f"Port {port}",
        *(f"ListenAddress {address}" for address in addresses),
        *(f"HostKey {path}" for path in host_keys),
        f"AuthorizedKeysFile {directory / 'authorized_keys'}",
        "PidFile none",
        "StrictModes no",
        f"UsePAM {'yes' if run_as else 'no'}",  # without PAM it takes a user without a password for a locked one
        "UseDNS no",
        "PasswordAuthentication no",
        "KbdInteractiveAuthentication no",
        "PermitRootLogin prohibit-password",
        "MaxStartups 200:30:400",
        "MaxSessions 100",
        "PrintMotd no",
        "LogLevel VERBOSE",
    ]
    (directory / "sshd_config").write_text("\n".join(lines) + "\n")
    with (directory / "sshd.log").open("ab") as log:
        process = subprocess.Popen(
            [program, "-D", "-e", "-f", str(directory / "sshd_config")],
            stdin=subprocess.DEVNULL,
            stderr=log,
            user=run_as or None,
        )
    address = "127.0.0.1" if addresses[0] == "0.0.0.0" else addresses[0]
    deadline = time.monotonic() + 20
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection((address, port), 1):
            return process
        time.sleep(0.02)
    if process.poll() is None:
        process.kill()
    process.wait()
    return None
