"""A GPU that somebody uses, and the image on its host: what the host's load checks refuse, the container leaves alone.

The engine is a stand-in that runs the program here and says so in its environment; in there NVML names no process, as
without the host's PID namespace. Two checks are planted: `matmul`, which asks gpu_load whether it may load, and
`preflight`, which loads nothing. Where a check loaded what, it writes down itself.
"""

from __future__ import annotations

import json
import os
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from provision import commands
from provision.bundle import Bundle, build_bundle
from provision.commands import CheckOptions, Selection, validate
from provision.hosts import Host
from provision.remote import Failure, HostRun, Job
from provision.remote.container import host_of, in_image
from provision.remote.held import against_loads, without_loads
from validators.schema import ERROR, HOST, CheckRequest, Outcome, Plan, Record

IMAGE = "nvcr.io/nvidia/pytorch:25.10-py3"
INSIDE = f"box in {IMAGE}"
DETAIL = (
    "in use by process 4242 (train.py); a load now would disturb it and be disturbed: end it, or insist with --share"
)

CHECK = """
import os
from collections import namedtuple
from validators.check import Metric, check
from validators.probes import gpu_load, nvml
from validators.schema import RAN
INSIDE = "BRINGUP_TEST_INSIDE" in os.environ
Process = namedtuple("Process", "pid")
class Gpu:
    def __init__(self, uuid, used):
        self.uuid, self.used, self.nvml = uuid, used and not INSIDE, self
    def call(self, name, pid):
        return "train.py"
    def get(self, name):
        used = {"GetComputeRunningProcesses": [Process(4242)] if self.used else [], "GetComputeMode": MODE}
        return used.get(name, nvml.Absent("not_applicable", ""))
@check(catches="planted", level=2, timeout_s=20, per_gpu=True, metrics=(Metric("n", "count", "n"),))
def NAME(ctx):
    '''Planted by a test.'''
    for gpu in [Gpu("GPU-used", USED), Gpu("GPU-free", False)]:
        status, why = gpu_load.obstacle(gpu, ctx.plan.share) if "NAME" == "matmul" else ("", "")
        if not status:
            with open("LOADED", "a") as file:
                print("NAME", "inside" if INSIDE else "outside", gpu.uuid, file=file)
            ctx.measure("n", 1, gpu.uuid)
        ctx.outcome(gpu.uuid, status or RAN, why)
"""


def bundle(folder: Path, *, used: bool, mode: int) -> Bundle:
    words = {"USED": f"{used}", "MODE": f"{mode}", "LOADED": f"{folder / 'loaded'}"}
    text = CHECK
    for word, value in words.items():
        text = text.replace(word, value)
    return build_bundle(
        {f"validators/checks/{name}.py": text.replace("NAME", name).encode() for name in ("matmul", "preflight")}
    )


def engine(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`docker run ... IMAGE python3 ...` runs python3 here."""
    program = folder / "docker"
    script = f"""\
        #!/bin/sh
        [ "$1" = image ] && exit 0
        while [ "$1" != "{IMAGE}" ]; do shift; done
        shift; BRINGUP_TEST_INSIDE=1; export BRINGUP_TEST_INSIDE
        exec "$@"
        """
    program.write_text(textwrap.dedent(script))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


class Operator:
    """Runs `validate --in-container` on this machine; `loaded`: which check loaded what where."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._folder, self._monkeypatch, self._capsys = folder, monkeypatch, capsys
        engine(folder, monkeypatch)
        monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        self.code = 0

    def validate(
        self, *checks: str, used: bool = True, share: bool = False, mode: int = 0, line: str = ""
    ) -> dict[str, Any]:
        made = bundle(self._folder, used=used, mode=mode)
        self._monkeypatch.setattr(commands, "build_bundle", lambda: made)
        inventory = self._folder / "inventory.ini"
        inventory.write_text(f"box ansible_connection=local {line}\n")
        options = CheckOptions(only=checks or ("matmul", "preflight"), image=IMAGE, share=share)
        selection = Selection(inventories=(str(inventory),))
        self.code = validate(selection, options, runs=self._folder / "runs", as_json=True)
        return {host["name"]: host for host in json.loads(self._capsys.readouterr().out)["hosts"]}

    @property
    def loaded(self) -> list[str]:
        file = self._folder / "loaded"
        return file.read_text().splitlines() if file.exists() else []


@pytest.fixture
def operator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Operator:
    return Operator(tmp_path, monkeypatch, capsys)


def of(host: dict[str, Any], check: str) -> list[dict[str, Any]]:
    return [one for one in host["verdicts"] if one["check"] == check]


def test_what_the_host_refuses_its_container_does_not_load(operator: Operator) -> None:
    hosts = operator.validate()
    assert [one for one in operator.loaded if one.startswith("matmul")] == ["matmul outside GPU-free"]
    inside = hosts[INSIDE]
    assert operator.code == 3
    assert inside["status"] == "ERROR"
    for words in ("box's own refused GPU-used", DETAIL, "held back", "--share"):
        assert words in inside["headline"], words
    held = of(inside, "matmul")
    assert held, "what is held back is not left out of the report"
    assert {one["status"] for one in held} == {"ERROR"}
    assert all(DETAIL in one["reason"] for one in held)


def test_checks_that_load_nothing_go_on_in_the_container(operator: Operator) -> None:
    hosts = operator.validate()
    assert [one for one in operator.loaded if "preflight inside" in one], operator.loaded
    assert {one["subject"] for one in hosts[INSIDE]["measurements"] if one["check"] == "preflight"} == {
        "GPU-used",
        "GPU-free",
    }
    assert "held back" not in operator.validate("preflight")[INSIDE]["headline"], "no load was asked for"


@pytest.mark.parametrize(("used", "share"), [(False, False), (True, True)], ids=["nobody uses it", "--share"])
def test_a_free_gpu_and_whoever_insists_are_measured_in_the_image(
    operator: Operator, *, used: bool, share: bool
) -> None:
    hosts = operator.validate("matmul", used=used, share=share)
    where = [f"matmul {where} GPU-{gpu}" for where in ("outside", "inside") for gpu in ("used", "free")]
    assert operator.loaded == where
    assert "held back" not in hosts[INSIDE]["headline"]


def test_a_gpu_in_exclusive_use_is_not_offered_to_be_shared(operator: Operator) -> None:
    inside = operator.validate("matmul", mode=3)[INSIDE]
    assert operator.loaded == ["matmul outside GPU-free"]
    assert "compute mode is Exclusive" in inside["headline"]
    assert "--share" not in inside["headline"]


def test_where_the_host_itself_was_not_measured_its_container_loads_nothing(operator: Operator) -> None:
    """Its Python is not there, the image's is: who uses the GPUs was never asked."""
    without = "ansible_python_interpreter=/nowhere/python3"
    hosts = operator.validate(line=without)
    assert hosts["box"]["status"] == "ERROR"
    assert [one for one in operator.loaded if one.startswith("matmul")] == []
    assert "who uses the GPUs of box is not known" in hosts[INSIDE]["headline"]
    assert "--share" in hosts[INSIDE]["headline"]
    operator.validate("matmul", line=without, share=True)
    assert operator.loaded[-2:] == ["matmul inside GPU-used", "matmul inside GPU-free"]


def refusals(count: int) -> tuple[Record, ...]:
    return tuple(Outcome("memory", f"GPU-{number}", ERROR, DETAIL, 0.1) for number in range(count))


def test_of_many_gpus_some_are_quoted_and_the_others_counted() -> None:
    why, _ = against_loads(HostRun("box", "box", refusals(16)))
    assert all(f"GPU-{number}, in use by" in why for number in range(4))
    assert "GPU-4" not in why
    assert why.endswith("12 more GPUs are refused")
    long = Outcome("memory", "GPU-0", ERROR, "in use by " + "x" * 4000, 0.1)
    assert len(against_loads(HostRun("box", "box", (long,)))[0]) < 600


@pytest.mark.parametrize("detail", ["MIG is on", "out of memory: 3 MiB are free", "what is in use by nobody"])
def test_another_error_holds_nothing_back(detail: str) -> None:
    assert against_loads(HostRun("box", "box", (Outcome("memory", "GPU-0", ERROR, detail, 0.1),))) == ("", "")
    assert against_loads(HostRun("box", "box", (Outcome("memory", HOST, "ran", "", 0.1),))) == ("", "")


def test_a_refusal_before_the_connection_was_lost_is_still_the_reason() -> None:
    why, _ = against_loads(HostRun("box", "box", refusals(1), Failure("ConnectionLost", "box: it went silent")))
    assert DETAIL in why


def test_a_run_on_the_cpu_goes_on_and_a_held_one_brings_no_data() -> None:
    box = in_image(Host("box", "192.0.2.1"), IMAGE)
    assert (box.name, host_of(box)) == (INSIDE, "box")
    plan = Plan(tuple(CheckRequest(name, 30.0) for name in ("compute_capability", "preflight", "cifar")), 99.0)
    job = Job(Bundle(b"", "0" * 64), plan, data={"cifar10": ("/cifar.tar",)})
    reason = ("why", "hint")
    held = without_loads(box, job, reason)
    assert [request.name for request in held.plan.checks] == ["compute_capability", "preflight"]
    assert held.data == {}
    assert held.held == Failure("HostError", f"{INSIDE}: its load checks were held back: why", "hint")
    assert without_loads(box, job, ("", "")) == job
    for other in (replace(plan, device="cpu"), replace(plan, share=True)):
        on_cpu_or_shared = replace(job, plan=other)
        assert without_loads(box, on_cpu_or_shared, reason) == on_cpu_or_shared
