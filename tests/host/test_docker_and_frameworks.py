"""Docker's own packages on a host that has something in their way, and frameworks from an index with a password.

Stand-ins: Docker's repository (tests/host/docker_repository) and the index, a tiny server that wants a login. Real:
apt, dpkg, systemd, sudo and its log, venv and pip.
"""

from __future__ import annotations

import base64
import contextlib
import json
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from provision.plays import PlayResult, run_play
from tests.host import docker_repository
from tests.host.docker_repository import DockerRepository
from tests.hosts.containers import ContainerHost, available
from tests.hosts.containers import container_hosts as start
from tests.hosts.nvidia_repository import gateway
from tests.need import need

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROLES = Path(__file__).resolve().parents[2] / "playbooks" / "roles"
URL = "file:/srv/docker"
PASSWORD = "planted-in-an-index-s-address"  # noqa: S105  # planted, to be looked for
APT = "find /etc/apt -type f -exec sha256sum {} + | sort -k2; dpkg -l | sha256sum"
GONE = """
names=$(dpkg-query -W -f '${Package}\\n' 'docker-*' 'containerd*' runc 2>/dev/null)
[ -z "$names" ] || dpkg --purge --force-all $names
rm -f /etc/apt/sources.list.d/*docker* /etc/apt/keyrings/docker* /usr/local/bin/kubelet
systemctl daemon-reload
"""
HEALTHY = "apt-get -q check; apt-get -q indextargets"


@dataclass(frozen=True)
class Site:
    """One host, Docker's repository on it, and where plays leave their records."""

    host: ContainerHost
    repository: DockerRepository
    book: Path

    def play(self, role: str, *, check: bool = False, **variables: Any) -> PlayResult:
        given: dict[str, object] = {
            "docker_repository_url": URL,
            "docker_repository_key": self.repository.key,
            "docker_repository_fingerprint": self.repository.fingerprint,
            "docker_repository_suite": docker_repository.SUITE,
        }
        artifacts, extra = self.book.parent / "plays", {**given, **variables}
        return run_play(
            str(self.book), [self.host.host()], artifact_dir=artifacts, extra_vars=extra, tags=[role], check=check
        )

    def done(self, role: str, *, check: bool = False, **variables: Any) -> PlayResult:
        result = self.play(role, check=check, **variables)
        assert result.ok, [failure.sentence() for failure in result.failures]
        return result

    def refused(self, role: str, **variables: Any) -> str:
        """Run it, and return the one sentence that it fails with."""
        (failure,) = self.play(role, **variables).failures
        assert "\n" not in failure.message.strip()
        return failure.message


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    need(available(), "no Docker engine runs, and root with docker.io, debootstrap and iptables could start one")
    base = tmp_path_factory.mktemp("docker")
    (base / "roles").symlink_to(ROLES)
    repository = docker_repository.build(base / "repository")
    roles = [
        {"role": name, "tags": [name, *more]} for name, *more in (["host_python", "always"], ["docker"], ["frameworks"])
    ]
    play = {"hosts": "all", "gather_facts": False, "become": True, "roles": roles}
    (base / "book.yml").write_text(json.dumps([play]))
    with start(1) as (host,):
        host.docker("cp", str(repository.path), f"{host.name}:/srv/docker")
        host.sh("apt-get -q update >/dev/null")
        found = Site(host, repository, base / "book.yml")
        found.done("host_python")
        yield found


@pytest.fixture
def clean(site: Site) -> Iterator[Site]:
    """The site, without a trace of Docker before and after."""
    site.host.sh(GONE)
    yield site
    site.host.sh(GONE)


def test_docker_ce_is_foretold_installed_and_left_alone(clean: Site) -> None:
    assert clean.done("docker", check=True).changed >= 1
    assert "No such file" in clean.host.sh("ls /etc/apt/sources.list.d/docker.sources 2>&1", check=False)
    clean.done("docker")
    assert clean.host.sh("docker info").strip() == "version: 99.0"
    assert clean.done("docker").changed == 0
    assert clean.done("docker", check=True).changed == 0


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        ("docker.list", f"deb [arch=amd64 signed-by=/etc/apt/keyrings/docker.gpg] {URL} bookworm stable"),
        ("archive_uri-docker.list", f"deb [arch=amd64] {URL} bookworm stable"),
        ("docker-ce.sources", f"Types: deb\nURIs: {URL}\nSuites: bookworm\nComponents: stable\nSigned-By: /usr/x.gpg"),
    ],
)
def test_an_entry_of_docker_s_older_guides_is_switched_off_and_apt_works(clean: Site, name: str, entry: str) -> None:
    clean.host.sh(f"cat >/etc/apt/sources.list.d/{name}", stdin=f"{entry}\n".encode())
    clean.done("docker")
    clean.host.sh(HEALTHY)
    assert clean.host.sh("docker info").strip() == "version: 99.0"
    assert clean.done("docker").changed == 0


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"docker_repository_suite": "nosuch"}, "no such suite in it"),
        ({"docker_repository_fingerprint": "A" * 40}, "has the fingerprint"),
        ({"docker_repository_url": "http://127.0.0.1:9/linux/debian"}, "apt on this host cannot use Docker's"),
    ],
)
def test_a_repository_that_does_not_serve_leaves_the_host_as_it_was(
    clean: Site, variables: dict[str, str], told: str
) -> None:
    stub = "/srv/docker/runc_*.deb /srv/docker/containerd_*.deb"
    clean.host.sh(f"dpkg -i {stub}; systemctl stop containerd")
    before = clean.host.sh(APT)
    said = clean.refused("docker", **variables)
    assert told in said
    assert clean.host.sh(APT) == before
    clean.host.sh(HEALTHY)


def test_a_container_runtime_that_somebody_uses_is_not_taken_away(clean: Site) -> None:
    clean.host.sh("dpkg -i /srv/docker/runc_*.deb /srv/docker/containerd_*.deb")
    clean.host.sh("printf '#!/bin/sh\\n' >/usr/local/bin/kubelet; chmod 0755 /usr/local/bin/kubelet")
    states = "dpkg-query -W -f '${db:Status-Abbrev}${Package}\\n' containerd runc docker-ce"
    kubernetes = clean.refused("docker")
    assert "would replace containerd, runc on this host" in kubernetes
    assert "Kubernetes (kubelet) and a containerd that runs without Docker" in kubernetes
    assert "docker_source" in kubernetes
    clean.host.sh("rm /usr/local/bin/kubelet")
    assert "in use by a containerd that runs without Docker" in clean.refused("docker")
    assert clean.host.sh(states, check=False).count("ii ") == 2
    clean.host.sh("systemctl is-active containerd; systemctl stop containerd")
    clean.done("docker")
    assert "ii docker-ce" in clean.host.sh(states, check=False)
    assert "ii runc" not in clean.host.sh(states, check=False)


class Index(BaseHTTPRequestHandler):
    """One wheel for whoever says the password."""

    wheel: bytes = b""
    asked: list[str] = []  # noqa: RUF012  # one server, one test

    def do_GET(self) -> None:
        wanted = base64.b64encode(f"reader:{PASSWORD}".encode()).decode()
        if self.headers.get("Authorization") != f"Basic {wanted}":
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="index"')
            self.end_headers()
            return
        self.asked.append(self.path)
        name = "bringup_stand_in-1.0-py3-none-any.whl"
        body = self.wheel if self.path.endswith(".whl") else f'<a href="/{name}">{name}</a>'.encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def index(host: ContainerHost, folder: Path) -> Iterator[str]:
    """Serve it; the host's own settings of pip let it be asked by http, and have to count still."""
    address = gateway(host)
    info = "bringup_stand_in-1.0.dist-info"
    with zipfile.ZipFile(folder / "wheel", "w") as archive:
        archive.writestr("bringup_stand_in.py", "__version__ = '1.0'\n")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: bringup-stand-in\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    Index.wheel = (folder / "wheel").read_bytes()
    server = ThreadingHTTPServer((address, 0), Index)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    host.sh(f"printf '[global]\\ntrusted-host = {address}\\n' >/etc/pip.conf")
    try:
        yield f"http://reader:{PASSWORD}@{address}:{server.server_port}/simple"
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def command_lines() -> Iterator[set[bytes]]:
    """What stands on this machine's command lines meanwhile; a container host's processes are among them."""
    seen: set[bytes] = set()
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                with contextlib.suppress(OSError):
                    seen.add(path.read_bytes())
            time.sleep(0.05)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def test_a_password_of_the_index_is_on_no_command_line_and_in_no_log(site: Site, tmp_path: Path) -> None:
    with index(site.host, tmp_path) as url, command_lines() as seen:
        frameworks = [{"name": "own", "packages": ["bringup_stand_in==1.0"], "index_url": url}]
        foretold = site.done("frameworks", check=True, frameworks=frameworks)
        first = site.done("frameworks", frameworks=frameworks)
        asked = len(Index.asked)
        second = site.done("frameworks", frameworks=frameworks)
    assert (foretold.changed >= 1, first.changed >= 1, second.changed) == (True, True, 0)
    assert asked == len(Index.asked) >= 2, "what is there is not asked for again"
    assert any(b"/opt/bringup/venvs/own" in line for line in seen), "pip was seen at work"
    assert not [line for line in seen if PASSWORD.encode() in line]
    assert site.host.sh(f"grep -rlsF {PASSWORD} /home /tmp /var /etc /run /opt /root || true") == ""
    assert "sudo" in site.host.sh("journalctl --no-pager -q; cat /var/log/auth.log 2>/dev/null || true")
    assert PASSWORD not in site.host.sh("journalctl --no-pager -q || true")
    kept = [path for path in site.book.parent.joinpath("plays").rglob("*") if path.is_file()]
    assert [path for path in kept if PASSWORD in path.read_text()] == []
    assert "bringup-pip" not in site.host.sh("ls /run")


def test_a_dependency_that_went_missing_comes_back(site: Site, tmp_path: Path) -> None:
    with index(site.host, tmp_path) as url:
        frameworks = [{"name": "mended", "packages": ["bringup_stand_in==1.0"], "index_url": url}]
        site.done("frameworks", frameworks=frameworks)
        site.host.sh("/opt/bringup/venvs/mended/bin/pip uninstall -qy bringup_stand_in")
        assert site.done("frameworks", frameworks=frameworks).changed == 1
        site.host.sh("/opt/bringup/venvs/mended/bin/python -c 'import bringup_stand_in'")
