"""Container hosts: whole Debian hosts with systemd and sshd, on a network of their own.

with container_hosts(2) as hosts:
    hosts[0].sh("systemctl is-active docker")
    run_play("site.yml", [host.host() for host in hosts], known_hosts=hosts[0].known_hosts, ...)

By hand: `python -m tests.hosts.containers 2` starts two, prints an inventory and waits for Ctrl-C.
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import itertools
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from provision.hosts import Host
from tests.hosts.engine import LABEL, Engine, can_start_engine, engine, running_engine
from tests.hosts.image import USER, build, cache_directory, can_pull

CAPABILITIES = ("SYS_ADMIN", "NET_ADMIN", "SYS_PTRACE", "SYS_BOOT", "NET_RAW", "SYS_NICE", "DAC_READ_SEARCH")
SUBNETS = (*(f"172.{second}.{third}" for second in (30, 29) for third in range(0, 80, 11)), "10.213.77")
SESSION = f"{LABEL}-session"
WATCHES_PER_HOST = 8
"""inotify instances that a host's systemd, dbus and logind hold, rounded up."""
_sessions = itertools.count(1)


@dataclass(frozen=True)
class ContainerHost:
    """One host. `docker` is its engine, for what SSH cannot do to it."""

    name: str
    address: str
    key: Path
    known_hosts: Path
    docker: Engine

    def host(self, **overrides: object) -> Host:
        """Return it as a Host; any field of it can be said otherwise."""
        fields: dict[str, object] = {
            "name": self.name,
            "address": self.address,
            "user": USER,
            "private_key_file": str(self.key),
            "ssh_args": f"-F none -o IdentitiesOnly=yes -o UserKnownHostsFile={self.known_hosts}",
        }
        return Host(**{**fields, **overrides})  # type: ignore[arg-type]  # the fields are Host's own

    def inventory_line(self, **variables: object) -> str:
        """Return it as a line of an INI inventory."""
        words = {
            "ansible_host": self.address,
            "ansible_user": USER,
            "ansible_ssh_private_key_file": self.key,
            "ansible_ssh_common_args": f"'-F none -o IdentitiesOnly=yes -o UserKnownHostsFile={self.known_hosts}'",
            **variables,
        }
        return " ".join([self.name, *(f"{key}={value}" for key, value in words.items())])

    def sh(self, script: str, *, check: bool = True, stdin: bytes | None = None) -> str:
        """Run a shell script in it as root, beside SSH, and return what it prints."""
        flags = ["-i"] if stdin is not None else []
        try:
            return self.docker("exec", *flags, self.name, "sh", "-c", script, stdin=stdin)
        except subprocess.CalledProcessError as error:
            if not check:
                return (error.stdout + error.stderr).decode(errors="replace")
            error.add_note((error.stdout + error.stderr).decode(errors="replace"))
            raise


def available() -> bool:
    """Whether container hosts can be had on this machine."""
    return running_engine() is not None or can_start_engine()


@contextlib.contextmanager
def container_hosts(count: int) -> Iterator[tuple[ContainerHost, ...]]:
    """Start hosts and wait until each answers over SSH. All of it is gone at the end."""
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bringup-hosts-")))
        stack.enter_context(_room(count))
        docker = stack.enter_context(engine())
        key = directory / "key"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
        image = build(docker, pull=can_pull(docker) if not docker.socket else False)
        session = f"{os.getpid()}-{next(_sessions)}"
        stack.callback(docker.remove, f"{SESSION}={session}")
        prefix = _network(docker, session)
        names = [f"host{number}-{session}" for number in range(1, count + 1)]
        known_hosts = directory / "known_hosts"
        hosts = tuple(
            ContainerHost(name, f"{prefix}.{10 + number}", key, known_hosts, docker)
            for number, name in enumerate(names)
        )
        for host in hosts:
            _start(docker, host, image, session=session, public_key=(directory / "key.pub").read_text().strip())
        for host in hosts:
            _wait(host)
        yield hosts


@contextlib.contextmanager
def _room(count: int) -> Iterator[None]:
    """Wait until there is room for so many more: a systemd that gets no inotify instance does not boot."""
    limit = int(Path("/proc/sys/fs/inotify/max_user_instances").read_text())
    places = max(10, limit // WATCHES_PER_HOST - 2)
    directory = cache_directory() / "room"
    directory.mkdir(exist_ok=True)
    with contextlib.ExitStack() as held:
        # One at a time, or two who each hold half of the room wait for one another.
        with (directory / "queue").open("w") as queue:
            fcntl.flock(queue, fcntl.LOCK_EX)
            free = [directory / str(number) for number in range(places)]
            while count:
                for path in tuple(free):
                    place = path.open("w")
                    try:
                        fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    except BlockingIOError:
                        place.close()
                        continue
                    held.enter_context(place)
                    free.remove(path)
                    count -= 1
                    if not count:
                        break
                else:
                    time.sleep(0.5)
        yield


def _network(docker: Engine, session: str) -> str:
    """Make a network on the first range that this machine does not use. An engine knows its own networks alone."""
    last = "all ranges are in use"
    for prefix in SUBNETS:
        if _is_routed(prefix):
            continue
        try:
            docker("network", "create", *_labels(session), "--subnet", f"{prefix}.0/24", f"{SESSION}-{session}")
        except subprocess.CalledProcessError as error:
            last = error.stderr.decode(errors="replace")
        else:
            return prefix
    raise RuntimeError(f"no network for the hosts: {last}")


def _is_routed(prefix: str) -> bool:
    """Whether a route of this machine leads there already: another engine's network, say."""
    # The kernel writes an address as a hexadecimal number of the machine's own byte order.
    number = int.from_bytes(ipaddress.IPv4Address(f"{prefix}.0").packed, sys.byteorder)
    routes = Path("/proc/net/route").read_text().splitlines()[1:]
    return any(line.split()[1] == f"{number:08X}" for line in routes)


def _labels(session: str) -> tuple[str, ...]:
    """By the process for what a killed run leaves behind, by the session for its own end."""
    return ("--label", f"{LABEL}={os.getpid()}", "--label", f"{SESSION}={session}")


def _start(docker: Engine, host: ContainerHost, image: str, *, session: str, public_key: str) -> None:
    options = ["--name", host.name, "--hostname", host.name, *_labels(session), "--detach"]
    options += ["--network", f"{SESSION}-{session}", "--ip", host.address, "--cgroupns=private"]
    options += [word for name in CAPABILITIES for word in ("--cap-add", name)]
    for option in ("seccomp", "apparmor", "systempaths"):
        options += ["--security-opt", f"{option}=unconfined"]
    # `always`, so that a reboot from within brings it back.
    options += ["--stop-signal", "SIGRTMIN+3", "--restart=always", "--env", f"AUTHORIZED_KEY={public_key}"]
    options += ["--env", f"HOSTNAME={host.name}", "--volume", "/var/lib/docker"]
    docker("run", *options, image, "/bin/sh", "/entry.sh")


def _wait(host: ContainerHost, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        scan = subprocess.run(
            ["ssh-keyscan", "-T", "3", "-t", "ed25519", host.address], capture_output=True, text=True, check=False
        )
        if scan.stdout.strip():
            with host.known_hosts.open("a") as file:
                file.write(scan.stdout)
            # sshd answers a little before logins are let in (pam_nologin).
            host.sh("for i in $(seq 100); do [ -e /run/nologin ] || exit 0; sleep 0.2; done; exit 1")
            return
        time.sleep(0.5)
    raise RuntimeError(f"{host.name} does not answer over SSH: {host.docker('logs', '--tail', '30', host.name)}")


def main() -> None:
    """Start hosts for a person, until Ctrl-C or SIGTERM."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    with container_hosts(int(sys.argv[1]) if len(sys.argv) > 1 else 1) as hosts:
        print("\n".join(host.inventory_line() for host in hosts), flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                time.sleep(3600)


if __name__ == "__main__":
    main()
