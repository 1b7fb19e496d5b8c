"""The committed runs of real H200 hosts: what they say, and what stricter criteria make of them, without a host."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from provision.criteria import load
from provision.report import render
from provision.store import RunDirectory, rejudge

DOCS = Path(__file__).resolve().parents[2] / "docs"
EXAMPLES = DOCS / "examples"


@pytest.mark.parametrize(("name", "gpus"), [("h200x1", 1), ("h200x4", 4)])
def test_a_real_host_passes_on_what_was_measured(name: str, gpus: int) -> None:
    report = rejudge(RunDirectory.open(EXAMPLES / name))
    (host,) = report.hosts
    assert report.status == "PASS"
    assert len(host.gpus) == gpus
    assert all(one.measurement is not None for one in host.verdicts if one.status == "PASS")
    assert host.chain is not None
    assert host.chain.broken is None


@pytest.mark.parametrize("name", ["h200x1", "h200x4"])
def test_the_committed_report_is_what_the_run_gives_and_keeps_to_the_schema(name: str) -> None:
    committed = json.loads((EXAMPLES / f"{name}.json").read_text())
    jsonschema.validate(committed, json.loads((DOCS / "report.schema.json").read_text()))
    again = json.loads(render(rejudge(RunDirectory.open(EXAMPLES / name)), "json"))
    assert verdicts(again) == verdicts(committed)


def verdicts(report: dict[str, Any]) -> list[tuple[str, ...]]:
    rows = report["hosts"][0]["verdicts"]
    return [(one["check"], one["metric"], one["subject"], one["status"], one["required"]) for one in rows]


def test_stricter_criteria_turn_the_named_checks_to_fail() -> None:
    run = RunDirectory.open(EXAMPLES / "h200x4")
    report = rejudge(run, load([EXAMPLES / "stricter.toml"], run.manifest.catalogue))
    failed = [one for one in report.hosts[0].verdicts if one.status == "FAIL"]
    assert report.status == "FAIL"
    assert {(one.check, one.metric) for one in failed} == {("matmul", "throughput_bf16"), ("gpu_health", "temperature")}
    assert len(failed) == 8
    assert all(one.next_step and one.measurement for one in failed)
