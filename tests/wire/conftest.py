"""A real sshd whose sessions have a home and a cache of their own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from provision.bundle import Bundle
from provision.hosts import Host
from provision.remote import HostRun, Job, validate_host
from tests.hosts.sshd import Sshd, sshd
from validators.schema import Plan


@dataclass
class Box:
    """A host over SSH. `home` is its sessions' home, `cache` where bundles are kept there."""

    server: Sshd
    home: Path

    @property
    def cache(self) -> Path:
        return self.home / ".cache" / "gpu-bringup"

    def host(self, **overrides: object) -> Host:
        return self.server.host("box", **overrides)

    def job(self, bundle: Bundle, plan: Plan, records_path: Path | None = None) -> Job:
        return Job(bundle, plan, records_path, known_hosts=self.server.known_hosts)

    def validate(self, bundle: Bundle, plan: Plan, **overrides: object) -> HostRun:
        return validate_host(self.host(**overrides), self.job(bundle, plan))


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Sshd, Path]]:
    folder = tmp_path_factory.mktemp("sshd")
    home = folder / "home"
    home.mkdir()
    config = (f"SetEnv HOME={home} XDG_CACHE_HOME=",)
    with sshd(folder / "server", config=config) as running:
        yield running, home


@pytest.fixture
def box(server: tuple[Sshd, Path], tmp_path: Path) -> Box:
    """A host with an empty home: the one home of all sessions is a link that is turned to this test's folder."""
    running, link = server
    home = tmp_path / "home"
    home.mkdir()
    if link.is_symlink():
        link.unlink()
    else:
        link.rmdir()
    link.symlink_to(home)
    return Box(running, home)
