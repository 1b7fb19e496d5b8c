"""A home of its own for every test here, no agent, and one server that most of them share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from provision.transport.auth import key_ring
from tests.hosts.sshd import Sshd, sshd


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's own keys, configuration and agent must not decide a test."""
    directory = tmp_path / "home"
    (directory / ".ssh").mkdir(parents=True, mode=0o700)
    monkeypatch.setenv("HOME", str(directory))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    key_ring.forget()
    return directory


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with sshd(tmp_path_factory.mktemp("sshd"), addresses=("127.0.0.1", "127.0.0.2")) as running:
        yield running
