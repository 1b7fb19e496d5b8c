"""--strict reaches the exit code, of every command that gives a verdict."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from provision import commands
from provision.cli import app
from tests.unit.judging import CRITERIA, GPU0, RATE, good, measured, report_of
from tests.unit.test_store import written


@pytest.mark.parametrize(("flags", "code"), [([], 0), (["--strict"], 1)])
@pytest.mark.parametrize("command", ["validate", "judge"])
def test_a_warning_is_exit_code_0_and_with_strict_1(
    command: str, flags: list[str], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = [one for one in good() if getattr(one, "metric", "") != "throughput_bf16"]
    slow.insert(-3, measured("matmul", "throughput_bf16", 600.0, GPU0))
    report = report_of(slow, [*CRITERIA[:-1], replace(RATE, severity="WARN")])
    assert report.status == "WARN"
    run = written(tmp_path)
    monkeypatch.setattr(commands, "rejudge", lambda *_: report)
    monkeypatch.setattr(commands, "_measure", lambda *_: run)
    what = "localhost" if command == "validate" else str(run.path)
    assert CliRunner().invoke(app, [command, what, *flags]).exit_code == code
