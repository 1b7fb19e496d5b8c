"""This machine as a host: what the contract in tests/ssh does not cover."""

from __future__ import annotations

import os
import sys

import pytest

from provision.transport.local import LocalTransport


def test_a_program_that_may_not_be_signalled_ends_with_its_stdin_and_close_does_not_raise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As sudo's: it runs as root, and the user may not end it by a signal."""

    def refuse(pid: int, number: int) -> None:
        raise PermissionError(pid, number)

    monkeypatch.setattr(os, "killpg", refuse)
    with LocalTransport("here") as transport:
        process = transport.start([sys.executable, "-c", "import sys; sys.stdin.read()"])
        process.close()
    assert process.returncode == 0
