"""The terminal as it is left behind."""

from __future__ import annotations

import os
import sys
import termios

import pytest

from provision.console import echo_on


def test_a_terminal_that_a_passphrase_prompt_left_mute_shows_again_what_is_typed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    controller, terminal = os.openpty()
    state = termios.tcgetattr(terminal)
    state[3] &= ~termios.ECHO
    termios.tcsetattr(terminal, termios.TCSANOW, state)
    with os.fdopen(terminal) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        echo_on()
        assert termios.tcgetattr(stdin.fileno())[3] & termios.ECHO
    os.close(controller)
