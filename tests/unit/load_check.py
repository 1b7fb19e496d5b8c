"""A load check run and judged in this process: what the tests of each of them share."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from provision.criteria import load as load_criteria
from provision.hosts import Host
from provision.remote import HostRun
from provision.report.model import Verdict
from provision.verdict import judge
from validators import check
from validators.probes import nvml
from validators.schema import (
    HOST,
    RAN,
    Bye,
    CheckRequest,
    Hello,
    Measurement,
    Outcome,
    Plan,
    Record,
    Scalar,
    encode,
)

CATALOGUE = tuple(check.catalogue())
"""Imported here: a check that a test imports while a workload is patched would keep what was patched in."""


def plan_of(name: str, device: str = "gpu", **params: Scalar) -> Plan:
    """The check with these settings, after the one that names the GPUs; torch is this process's own."""
    requests = (CheckRequest("compute_capability", 30.0), CheckRequest(name, 300.0, params))
    return Plan(requests, 330.0, {"torch": sys.executable}, device)


def run(asked: Plan) -> list[Record]:
    """What the plan's last check sends; all of it can go over the wire."""
    records: list[Record] = []
    request = asked.checks[-1]
    found = check.load(request.name)
    context = check.Context(found.info, request, asked, records.append)
    with context.subject(HOST):
        found.run(context)
    for record in records:
        encode(record)
    return records


def judged(records: list[Record], asked: Plan) -> list[Verdict]:
    """The verdicts of the plan's last check, by the default criteria."""
    names = [request.name for request in asked.checks]
    every = (Hello(1, "x", "3.12", "gpu1", "boot", 0.0), *records)
    report = judge(
        [HostRun("gpu1", "gpu1", (*every, Bye(len(every))))],
        hosts=[Host("gpu1", "gpu1")],
        catalogue=tuple(check.load(name).info for name in names),
        criteria=load_criteria((), CATALOGUE),
        plans={"gpu1": asked},
        run_id="r",
        created="",
        judged="",
        version="0",
    )
    return [verdict for verdict in report.hosts[0].verdicts if verdict.check == names[-1]]


def identity(gpus: Sequence[str]) -> list[Record]:
    """What compute_capability says of a host with these H200s."""
    said: list[Record] = [Measurement("compute_capability", HOST, "gpu_count_nvml", len(gpus), "count")]
    for uuid in gpus:
        said.append(Measurement("compute_capability", uuid, "gpu_name", "NVIDIA H200", "text"))
        said.append(Outcome("compute_capability", uuid, RAN, "", 0.1))
    return [*said, Outcome("compute_capability", HOST, RAN, "", 0.1)]


def outcomes(records: list[Record]) -> dict[str, Outcome]:
    """How it ended, by subject."""
    return {one.subject: one for one in records if isinstance(one, Outcome)}


def measured(records: list[Record], subject: str, **labels: str) -> dict[str, Measurement]:
    """The last measurement of each metric of a subject, with these labels among its own."""
    return {
        one.metric: one
        for one in records
        if isinstance(one, Measurement) and one.subject == subject and labels.items() <= one.labels.items()
    }


def values(records: list[Record], metric: str, **labels: str) -> list[Measurement]:
    """What was said of a metric with these labels."""
    return [
        one
        for one in records
        if isinstance(one, Measurement) and one.metric == metric and labels.items() <= one.labels.items()
    ]


def fake_python(root: Path, **modules: str) -> str:
    """A Python with these frameworks: each a distribution whose one module is the text given."""
    site = root / "site"
    for name, body in modules.items():
        (site / f"{name}-9.9.9.dist-info").mkdir(parents=True)
        (site / f"{name}.py").write_text(body)
    python = root / "python3"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={site} exec {sys.executable} -S "$@"\n')
    python.chmod(0o755)
    return str(python)


def uuids() -> list[str]:
    """The GPUs that NVML, or its double, shows."""
    with nvml.session() as session:
        return [gpu.uuid for gpu in session.gpus()[0]]
