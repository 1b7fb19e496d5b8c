"""The check `cifar`: what is sent, for which framework and GPU, and what is judged."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.doubles import h200
from tests.unit.load_check import judged, outcomes, run, uuids
from validators import check
from validators.checks import cifar
from validators.probes import datasets, pci, pythons, ranks, workload
from validators.schema import (
    ERROR,
    HOST,
    NOT_APPLICABLE,
    RAN,
    UNKNOWN,
    CheckRequest,
    Measurement,
    Outcome,
    Plan,
    Progress,
    Record,
    Sample,
    Scalar,
)
from validators.workloads import cifar_keras, cifar_terms, keras_start
from validators.workloads.cifar_optimizer import MUON

INFO = check.load("cifar").info
CPU = torch.device("cpu")
SMALL = replace(MUON, widths=(8, 16, 16), batch=100, epochs=2.0)
BUSY = {"nvmlDeviceGetUtilizationRates(*)": {"result": {"struct": {"gpu": 97, "memory": 50}}}}


def plan(device: str = "gpu", data: Mapping[str, str] | None = None, torch_only: bool = True, **params: Scalar) -> Plan:
    if torch_only:
        params["frameworks"] = "torch"
    requests = (CheckRequest("compute_capability", 30.0), CheckRequest("cifar", 600.0, params))
    return Plan(requests, 660.0, {"torch": sys.executable}, device, data=data or {})


def measured(records: list[Record], subject: str, framework: str = "torch", gpus: str = "") -> dict[str, Measurement]:
    return {
        one.metric: one
        for one in records
        if isinstance(one, Measurement)
        and one.subject == subject
        and one.labels.get("framework", framework) == framework
        and (not gpus or one.labels.get("gpus") == gpus)
    }


def test_the_check_measures_the_cpu_through_the_host_s_torch() -> None:
    asked = plan("cpu", batch=4, seconds=0.1)
    records = run(asked)
    assert outcomes(records)[HOST].status == RAN, outcomes(records)[HOST].detail
    found = measured(records, HOST)
    assert float(str(found["cpu_images_per_second"].value)) > 0
    assert "cifar.epochs=N" in found["accuracy"].note
    absent = measured(records, HOST, "tensorflow")
    assert absent["accuracy"].note == "left out by the parameter frameworks"
    verdicts = {one.metric: one.status for one in judged(records, asked)}
    assert verdicts.pop("cpu_images_per_second") == "PASS"
    assert set(verdicts.values()) == {"SKIP"}


@pytest.fixture
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> Callable[[Mapping[str, Any]], None]:
    """A host with the four recorded H200s, no dataset, and torch alone."""

    def lay(faults: Mapping[str, Any]) -> None:
        monkeypatch.setitem(sys.modules, "pynvml", h200(4, {**BUSY, **dict(faults)}))

    def none(_ctx: object, _name: str) -> None:
        raise datasets.NoData("no cifar10 on this host")

    monkeypatch.setattr(pci, "nvidia_devices", lambda _files: None)
    monkeypatch.setattr(datasets, "find", none)
    monkeypatch.setattr(pythons, "find_python", lambda _plan, name: sys.executable if name == "torch" else None)
    monkeypatch.setattr(pythons, "explain", lambda _plan, name: f"no Python with {name} on this host")
    lay({})
    return lay


class Stand:
    """In place of the programs: notes what they are asked, sends a speed, fails where it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, bad: str = "") -> None:
        self.alone: list[tuple[str, Mapping[str, Scalar]]] = []
        self.together: list[tuple[list[str], Mapping[str, Scalar]]] = []
        self.bad = bad
        self.slow: dict[str, float] = {}
        monkeypatch.setattr(workload, "run_workload", self.run)
        monkeypatch.setattr(ranks, "run_ranks", self.run_ranks)

    def run(self, ctx: Any, _python: str, name: str, params: Mapping[str, Scalar], **_: object) -> None:
        self.alone.append((name, params))
        subject, gpus = str(params["subject"]), int(params["gpus"])
        if subject == self.bad:
            raise RuntimeError("workload cifar_torch was ended by SIGSEGV")
        ctx.forward(Progress("cifar", subject, "load", 0.0))
        labels = {"framework": "torch" if name == "cifar_torch" else "tensorflow", "gpus": str(gpus), "batch": "2000"}
        metric, speed = (
            ("images_per_second", self.slow.get(subject, 200_000.0)) if gpus else ("cpu_images_per_second", 400.0)
        )
        time.sleep(0.4 if gpus else 0.0)  # a reading or two
        ctx.forward(Measurement("cifar", subject, metric, speed, "images/s", labels))

    def run_ranks(
        self, _ctx: Any, _python: str, _name: str, params: Mapping[str, Scalar], *, gpus: Any, **_: object
    ) -> None:
        self.together.append((list(gpus), params))


@pytest.mark.usefixtures("four_gpus")
def test_each_gpu_alone_then_all_in_one_job(monkeypatch: pytest.MonkeyPatch) -> None:
    stand = Stand(monkeypatch)
    records = run(plan(epochs=3))
    assert {subject: one.status for subject, one in outcomes(records).items()} == dict.fromkeys((HOST, *uuids()), RAN)
    assert sorted(str(params["subject"]) for _, params in stand.alone) == sorted(uuids())
    assert all((params["gpus"], params["epochs"], params["data"]) == (1, 3, "") for _, params in stand.alone)
    ((gpus, params),) = stand.together
    assert gpus == uuids()
    assert (params["subject"], params["gpus"], params["no_data"]) == (HOST, 4, "no cifar10 on this host")
    for uuid in uuids():
        found = measured(records, uuid)
        assert found["utilisation"].value == 97
        assert found["gpu_over_cpu"].absence == NOT_APPLICABLE
        assert found["sm_clock_under_load"].value
        assert [one for one in records if isinstance(one, Sample) and one.subject == uuid]


def test_a_gpu_that_waits_for_a_compiler_is_not_read_as_one_that_trains() -> None:
    asked = plan()
    seen = cifar._Seen(check.Context(INFO, asked.checks[-1], asked, lambda _record: None))
    with seen.of("tensorflow"):
        for fraction, utilisation in ((-1.0, 0.0), (0.9, 97.0)):
            seen.progress("compiling or measuring", fraction)
            seen.sample(1.0, {"utilisation": utilisation}, "GPU-1")
    assert seen.utilisation == {"tensorflow": [97.0]}


@pytest.mark.usefixtures("four_gpus")
def test_a_gpu_that_fails_is_its_own_error_and_the_job_goes_on_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    bad = uuids()[2]
    stand = Stand(monkeypatch, bad)
    records = run(plan())
    ends = outcomes(records)
    assert {subject for subject, one in ends.items() if one.status == ERROR} == {bad}
    assert "torch: workload cifar_torch was ended by SIGSEGV" in ends[bad].detail
    ((gpus, params),) = stand.together
    assert gpus == [uuid for uuid in uuids() if uuid != bad]
    assert params["gpus"] == 3
    assert measured(records, bad)["utilisation"].absence == UNKNOWN


@pytest.mark.usefixtures("four_gpus")
def test_the_cpu_baseline_gives_the_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    stand = Stand(monkeypatch)
    records = run(plan(cpu_baseline=True, together=False))
    assert stand.alone[0][1]["gpus"] == 0
    assert not stand.together
    for uuid in uuids():
        assert measured(records, uuid)["gpu_over_cpu"].value == pytest.approx(500.0)


@pytest.mark.usefixtures("four_gpus")
def test_a_slow_gpu_among_like_ones_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    stand = Stand(monkeypatch)
    slow = uuids()[1]
    stand.slow = {slow: 150_000.0}
    asked = plan()
    records = run(asked)
    found = measured(records, HOST)["slowest_of_fastest"]
    assert found.value == pytest.approx(0.75)
    assert slow in found.note
    verdicts = [one for one in judged(records, asked) if one.metric == "slowest_of_fastest"]
    assert {one.status for one in verdicts} == {"WARN", "SKIP"}  # SKIP: tensorflow, left out
    stand.bad = slow
    assert measured(run(asked), HOST)["slowest_of_fastest"].value == pytest.approx(1.0)


@pytest.mark.usefixtures("four_gpus")
def test_a_cpu_that_fails_is_told_and_the_gpus_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    Stand(monkeypatch, bad=HOST)
    records = run(plan(cpu_baseline=True, together=False))
    for uuid in uuids():
        assert measured(records, uuid)["images_per_second"].value == 200_000.0
        assert "torch on the CPU: workload cifar_torch was ended" in outcomes(records)[uuid].detail


@pytest.mark.usefixtures("four_gpus")
def test_tensorflow_that_nobody_named_is_not_applicable(monkeypatch: pytest.MonkeyPatch) -> None:
    Stand(monkeypatch)
    records = run(plan(torch_only=False))
    assert outcomes(records)[HOST].status == RAN
    for uuid in uuids():
        found = measured(records, uuid, "tensorflow")
        assert found["accuracy"].absence == NOT_APPLICABLE
        assert found["accuracy"].note == "no Python with tensorflow on this host"


@pytest.mark.usefixtures("four_gpus")
def test_a_tensorflow_that_is_too_old_is_told_and_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pythons, "find_python", lambda _plan, _name: sys.executable)
    monkeypatch.setattr(keras_start, "too_old", lambda _tf: "TensorFlow 2.14.1 has no Keras 3")
    stand = Stand(monkeypatch)

    def either(ctx: Any, python: str, name: str, params: Mapping[str, Scalar], **more: object) -> None:
        if name == "cifar_keras":
            cifar_keras.main(dict(params), ctx.forward)
        else:
            stand.run(ctx, python, name, params, **more)

    monkeypatch.setattr(workload, "run_workload", either)
    asked = plan(torch_only=False)
    records = run(asked)
    assert {one.status for one in outcomes(records).values()} == {RAN}
    for found in (measured(records, uuids()[0], "tensorflow"), measured(records, HOST, "tensorflow")):
        assert {one.absence for one in found.values() if one.labels} == {NOT_APPLICABLE}
    of_tensorflow = [
        one
        for one in judged(records, asked)
        if one.measurement and one.measurement.labels.get("framework") == "tensorflow"
    ]
    assert {one.status for one in of_tensorflow} == {"SKIP"}


@pytest.mark.usefixtures("four_gpus")
def test_tensorflow_that_the_inventory_named_and_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    Stand(monkeypatch)
    asked = replace(plan(torch_only=False), pythons={"torch": sys.executable, "tensorflow": "/nowhere/python3"})
    ends = outcomes(run(asked))
    for uuid in uuids():
        assert ends[uuid].status == ERROR
        assert "no Python with tensorflow" in ends[uuid].detail


@pytest.mark.usefixtures("four_gpus")
def test_both_frameworks_run_one_after_the_other_on_each_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    stand = Stand(monkeypatch)
    monkeypatch.setattr(pythons, "find_python", lambda _plan, _name: sys.executable)
    records = run(plan(torch_only=False))
    for uuid in uuids():
        assert [name for name, params in stand.alone if params["subject"] == uuid] == ["cifar_torch", "cifar_keras"]
        for framework in ("torch", "tensorflow"):
            assert measured(records, uuid, framework, "1")["utilisation"].value == 97
    assert [params["gpus"] for name, params in stand.alone if params["subject"] == HOST] == [4]  # MirroredStrategy
    assert len(stand.together) == 1


@pytest.mark.usefixtures("four_gpus")
def test_a_damaged_dataset_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(_ctx: object, _name: str) -> None:
        raise datasets.DamagedData("data_batch_1.bin: MD5 is not the published one")

    monkeypatch.setattr(datasets, "find", damaged)
    stand = Stand(monkeypatch)
    end = outcomes(run(plan()))[HOST]
    assert (end.status, stand.alone) == (ERROR, [])
    assert "data_batch_1.bin" in end.detail


@pytest.mark.usefixtures("four_gpus")
def test_a_framework_that_does_not_exist_is_refused() -> None:
    end = outcomes(run(plan(torch_only=False, frameworks="caffe")))[HOST]
    assert "no such framework: caffe; there are torch, tensorflow" in end.detail


def h200_records(**values: tuple[Scalar, str, dict[str, str]]) -> list[Record]:
    uuid = "GPU-1"
    identity: list[Record] = [
        Measurement("compute_capability", HOST, "gpu_count_nvml", 1, "count"),
        Measurement("compute_capability", uuid, "gpu_name", "NVIDIA H200", "text"),
        Outcome("compute_capability", uuid, RAN, "", 0.1),
        Outcome("compute_capability", HOST, RAN, "", 0.1),
    ]
    found = [Measurement("cifar", uuid, name, value, unit, labels) for name, (value, unit, labels) in values.items()]
    return [*identity, *found, Outcome("cifar", uuid, RAN, "", 20.0), Outcome("cifar", HOST, RAN, "", 20.0)]


TORCH, TENSORFLOW = ({"framework": name, "gpus": "1", "batch": "2000"} for name in ("torch", "tensorflow"))


@pytest.mark.parametrize(
    ("metric", "value", "unit", "labels", "expected"),
    [
        ("accuracy", 0.941, "ratio", TORCH, "PASS"),
        ("accuracy", 0.92, "ratio", TORCH, "FAIL"),
        ("accuracy", 0.70, "ratio", TENSORFLOW, "PASS"),
        ("accuracy", 0.10, "ratio", TENSORFLOW, "FAIL"),
        ("accuracy_rises", False, "bool", TORCH, "FAIL"),
        ("accuracy_rises", True, "bool", TENSORFLOW, "PASS"),
        ("images_per_second", 300_000.0, "images/s", TORCH, "PASS"),
        ("images_per_second", 200_000.0, "images/s", TORCH, "WARN"),
        ("images_per_second", 30_000.0, "images/s", TENSORFLOW, "PASS"),
        ("images_per_second", 50.0, "images/s", TORCH, "FAIL"),
        ("images_per_second_spread", 0.3, "ratio", TORCH, "WARN"),
        ("utilisation", 20.0, "percent", TORCH, "WARN"),
        ("gpu_over_cpu", 0.7, "ratio", TORCH, "FAIL"),
        ("throttled_by_heat", True, "bool", {}, "FAIL"),
        ("clock_held_low", True, "bool", {}, "WARN"),
    ],
)
def test_the_default_criteria_judge(
    metric: str, value: Scalar, unit: str, labels: dict[str, str], expected: str
) -> None:
    verdicts = judged(h200_records(**{metric: (value, unit, labels)}), plan())
    assert expected in {one.status for one in verdicts if one.measurement is not None and one.metric == metric}


def test_every_term_is_a_metric_of_the_check() -> None:
    declared = {metric.name for metric in INFO.metrics}
    assert {*cifar_terms.LEARNT, *cifar_terms.SPEED, *cifar_terms.WHERE_TIME_WENT} < declared
