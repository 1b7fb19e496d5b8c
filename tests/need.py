"""A skip is for what a machine cannot have. Under BRINGUP_CI=1 a missing tool that it can install is a failure."""

from __future__ import annotations

import os

import pytest


def need(condition: bool, reason: str, *, installable: bool = True) -> None:
    """Skip the test where `condition` does not hold; fail it in CI where the machine could have installed it."""
    if condition:
        return
    if installable and os.environ.get("BRINGUP_CI") == "1":
        pytest.fail(f"missing in CI, though this machine can install it: {reason}")
    pytest.skip(reason)
