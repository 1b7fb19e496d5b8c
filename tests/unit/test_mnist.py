"""The check `mnist`: trained for real on the CPU in both frameworks, and what it says where something is missing."""

from __future__ import annotations

import struct
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from provision.report.model import Verdict
from tests.data import mnist_folder
from tests.doubles import h200
from tests.unit import load_check
from validators import check
from validators.probes import datasets, nvml, pci, pythons, workload
from validators.schema import (
    ERROR,
    HOST,
    NOT_APPLICABLE,
    RAN,
    CheckRequest,
    Measurement,
    Outcome,
    Plan,
    Progress,
    Record,
    Scalar,
    encode,
)
from validators.workloads import keras_start, mnist_data, mnist_torch

INFO = check.load("mnist").info
NAMES = {metric.name for metric in INFO.metrics}


def run(device: str, named: Mapping[str, str], data: str, **params: Scalar) -> list[Record]:
    request = CheckRequest("mnist", 300.0, params)
    plan = Plan((request,), 330.0, dict(named), device, data={"mnist": data} if data else {})
    records: list[Record] = []
    context = check.Context(INFO, request, plan, records.append)
    with context.subject(HOST):
        check.load("mnist").run(context)
    for record in records:
        encode(record)
    return records


def outcomes(records: list[Record]) -> dict[str, Outcome]:
    return {one.subject: one for one in records if isinstance(one, Outcome)}


def measured(records: list[Record], framework: str, model: str = "mlp") -> dict[str, Measurement]:
    return {
        one.metric: one
        for one in records
        if isinstance(one, Measurement) and one.labels.get("framework") == framework
        if one.labels.get("model", model) == model
    }


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
        monkeypatch.setenv(name, "1")


@pytest.fixture
def broken_tensorflow(tmp_path: Path) -> str:
    """A Python whose TensorFlow is installed and cannot be imported, as with a library that is missing."""
    package = tmp_path / "site" / "tensorflow"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('libcudart.so.12: cannot open shared object file')\n")
    (tmp_path / "site" / "tensorflow-2.21.0.dist-info").mkdir()
    python = tmp_path / "bin" / "python3"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path}/site exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return str(python)


def test_both_frameworks_learn_real_mnist_on_the_cpu() -> None:
    both = {"torch": sys.executable, "tensorflow": sys.executable}
    records = run(
        "cpu", both, str(mnist_folder()),
        models="mlp", subset=14000, batch=64, epochs=6, target=0.97, seconds=0.3,
    )  # fmt: skip
    assert outcomes(records)[HOST].status == RAN, outcomes(records)[HOST].detail
    for framework in both:
        found = measured(records, framework)
        assert set(found) == NAMES
        assert float(str(found["accuracy"].value)) >= 0.97
        assert found["parameters"].value == 669_706
        assert 1 <= int(str(found["epochs"].value)) <= 6
        assert float(str(found["images_per_second"].value)) > 100
        assert 1 < float(str(found["time_to_accuracy"].value)) < 300
        assert found["accuracy"].labels["gpus"] == "0"


def test_an_accuracy_that_is_not_reached_is_measured_and_has_no_time_and_fails() -> None:
    records = run(
        "cpu", {"torch": sys.executable}, str(mnist_folder()),
        frameworks="torch", subset=1000, epochs=1, seconds=0.1, models="mlp",
    )  # fmt: skip
    assert outcomes(records)[HOST].status == RAN
    found = measured(records, "torch")
    assert float(str(found["accuracy"].value)) < 0.985
    assert found["time_to_accuracy"].absence == NOT_APPLICABLE
    assert [one.status for one in judged(records) if one.metric == "accuracy" and one.measurement] == [
        "FAIL",
        "SKIP",
        "SKIP",
    ]


def test_a_model_that_was_left_out_is_skipped_and_nothing_to_train_is_refused() -> None:
    wanted = {"frameworks": "torch", "models": "cnn", "subset": 100, "batch": 50, "epochs": 1, "seconds": 0.05}
    records = run("cpu", {"torch": sys.executable}, str(mnist_folder()), **wanted)
    verdicts = [one for one in judged(records) if one.metric == "parameters"]
    assert {one.status for one in verdicts} == {"SKIP"}
    assert {one.reason for one in verdicts} >= {"not applicable: left out by the parameter models"}
    refused = run("cpu", {"tensorflow": sys.executable}, "", frameworks="tensorflow", models="cnn")
    assert "tensorflow has no cnn: nothing is left to train" in outcomes(refused)[HOST].detail


def test_a_framework_whose_import_crashes_is_an_error_and_the_others_results_stand(broken_tensorflow: str) -> None:
    named = {"torch": sys.executable, "tensorflow": broken_tensorflow}
    records = run("cpu", named, str(mnist_folder()), models="mlp", subset=500, epochs=1, seconds=0.1)
    end = outcomes(records)[HOST]
    assert end.status == ERROR
    assert "tensorflow, mlp" in end.detail
    assert "libcudart.so.12" in end.detail
    assert measured(records, "torch")["accuracy"].value is not None
    assert not measured(records, "tensorflow")


def test_a_host_without_tensorflow_says_so_and_measures_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        pythons, "find_python", lambda _plan, framework: sys.executable if framework == "torch" else None
    )
    records = run("cpu", {}, str(mnist_folder()), models="mlp", subset=500, epochs=1, seconds=0.1)
    assert outcomes(records)[HOST].status == RAN
    found = measured(records, "tensorflow")
    assert {one.absence for one in found.values()} == {NOT_APPLICABLE}
    assert "bringup_tensorflow_python" in found["accuracy"].note
    assert measured(records, "torch")["accuracy"].value is not None


def test_a_host_without_the_data_measures_the_speed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(_ctx: object, _name: str) -> None:
        raise datasets.NoData("no mnist on this host: no way out")

    monkeypatch.setattr(datasets, "find", none)
    records = run("cpu", {"torch": sys.executable}, "", frameworks="torch", models="mlp", subset=500, seconds=0.1)
    found = measured(records, "torch")
    assert found["images_per_second"].value is not None
    assert (found["accuracy"].absence, found["accuracy"].note) == (NOT_APPLICABLE, "no mnist on this host: no way out")


def test_a_half_copied_folder_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    for name in (*mnist_data.TRAIN, *mnist_data.TEST):
        (tmp_path / name).write_bytes((mnist_folder() / name).read_bytes())
    with (tmp_path / mnist_data.TRAIN[0]).open("r+b") as file:
        file.truncate(20_000_000)
    end = outcomes(run("cpu", {"torch": sys.executable}, str(tmp_path), frameworks="torch"))[HOST]
    assert end.status == ERROR
    assert f"{mnist_data.TRAIN[0]} has 20000000 bytes" in end.detail


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda data: data[:-1], "has 60007 bytes, not 60008"),
        (lambda data: b"\x1f\x8b" + data[2:], "is packed by gzip"),
        (lambda data: struct.pack(">II", 0x803, 60000) + data[8:], "not the official idx file"),
        (lambda data: data[:-1] + b"\x0a", "has the label 10"),
    ],
)
def test_a_file_that_is_not_as_published_is_told(tmp_path: Path, spoil: Callable[[bytes], bytes], text: str) -> None:
    for name in (*mnist_data.TRAIN, *mnist_data.TEST):
        (tmp_path / name).symlink_to(mnist_folder() / name)
    labels = tmp_path / mnist_data.TRAIN[1]
    good = labels.read_bytes()
    labels.unlink()
    labels.write_bytes(spoil(good))
    with pytest.raises(RuntimeError, match=f"{labels.name} .*{text}"):
        mnist_data.read(str(tmp_path))


def test_an_unknown_model_or_framework_is_refused() -> None:
    assert "there is no rnn" in outcomes(run("cpu", {}, "", models="rnn"))[HOST].detail
    assert "there is no mxnet" in outcomes(run("cpu", {}, "", frameworks="mxnet"))[HOST].detail


@pytest.fixture
def uuids(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> list[str]:
    monkeypatch.setitem(sys.modules, "pynvml", h200(request.param, {}))
    monkeypatch.setattr(pci, "nvidia_devices", lambda _files: None)
    with nvml.session() as session:
        return [gpu.uuid for gpu in session.gpus()[0]]


@pytest.mark.parametrize("uuids", [1], indirect=True)
def test_frameworks_that_fall_back_to_the_cpu_are_each_gpus_error(uuids: list[str]) -> None:
    """The real frameworks, builds for the CPU, on a host with GPUs: no figure of the CPU may come as a GPU's."""
    both = {"torch": sys.executable, "tensorflow": sys.executable}
    records = run("gpu", both, str(mnist_folder()), models="mlp", parallel=False)
    for uuid in uuids:
        end = outcomes(records)[uuid]
        assert end.status == ERROR
        assert "torch, mlp" in end.detail
        assert "is a build without CUDA" in end.detail
        assert "tensorflow, mlp" in end.detail
        assert "CPU-only build" in end.detail
    assert not [one for one in records if isinstance(one, Measurement) and one.value is not None]


@pytest.mark.parametrize("uuids", [4], indirect=True)
def test_each_gpu_gets_each_training_of_each_framework(monkeypatch: pytest.MonkeyPatch, uuids: list[str]) -> None:
    calls: list[tuple[str, str, str, tuple[str, ...]]] = []

    def stand_in(
        ctx: check.Context, python: str, name: str, params: Mapping[str, Scalar], *, gpus: Any, **_: object
    ) -> None:
        ctx.forward(Progress("mnist", str(params["subject"]), "load", 0.0))
        calls.append((name, str(params["model"]), str(params["subject"]), tuple(gpus)))
        if params["subject"] == uuids[0] and params["model"] == "cnn":
            raise RuntimeError("crashed: SIGSEGV")

    monkeypatch.setattr(workload, "run_workload", stand_in)
    both = {"torch": sys.executable, "tensorflow": sys.executable}
    records = run("gpu", both, str(mnist_folder()), parallel=False)
    programs = [("mnist_torch", "mlp"), ("mnist_torch", "cnn"), ("mnist_keras", "mlp")]
    assert calls == [(*one, uuid, (uuid,)) for uuid in uuids for one in programs]
    assert outcomes(records)[uuids[0]].status == ERROR
    assert outcomes(records)[uuids[1]].status == RAN


def test_tensorflow_that_sees_fewer_gpus_gives_the_reason_of_its_log() -> None:
    """Its C++ log goes to descriptor 2: what it says while it looks for GPUs is the reason."""

    class Config:
        @staticmethod
        def list_physical_devices(_kind: str) -> list[str]:
            subprocess.run(
                ["sh", "-c", "echo 'W0000 12:00 gpu_device.cc:2342] Cannot dlopen some GPU libraries.' >&2"], check=True
            )
            return []

    class Built:
        @staticmethod
        def get_build_info() -> dict[str, bool]:
            return {"is_cuda_build": True}

    tf = type("tf", (), {"__version__": "2.21.0", "config": Config, "sysconfig": Built})
    with pytest.raises(RuntimeError, match=r"sees 0 of 2 GPUs: Cannot dlopen some GPU libraries\.$"):
        keras_start.devices(tf, 2)


def test_an_image_is_seen_at_all_nine_places() -> None:
    assert len({mnist_data.moved(step) for step in range(9)}) == 9
    assert {way for step in range(9) for way in mnist_data.moved(step)} == {-1, 0, 1}


def test_measuring_the_speed_leaves_what_was_trained() -> None:
    import torch

    images, labels = torch.rand(64, 28, 28), torch.arange(64) % 10
    machine = mnist_torch.Machine("mlp", torch.device("cpu"), (images, labels), (images, labels), 32)
    machine.epoch(2)
    before = [one.clone() for one in machine.net.parameters()]
    assert len(machine.speeds(0.01)) >= 3
    assert all(torch.equal(*pair) for pair in zip(before, machine.net.parameters(), strict=True))


def judged(records: list[Record]) -> list[Verdict]:
    return load_check.judged(records, Plan((CheckRequest("mnist", 300.0),), 330.0, {}, "cpu"))


@pytest.mark.parametrize(
    ("metric", "value", "unit", "model", "expected"),
    [
        ("accuracy", 0.9851, "ratio", "mlp", "PASS"),
        ("accuracy", 0.9849, "ratio", "mlp", "FAIL"),
        ("parameters", 669_706, "count", "mlp", "PASS"),
        ("parameters", 669_707, "count", "mlp", "FAIL"),
        ("seconds_per_epoch", 0.2, "s", "mlp", "PASS"),
        ("seconds_per_epoch", 9.0, "s", "mlp", "WARN"),
        ("time_to_accuracy", 12.0, "s", "mlp", "PASS"),
        ("time_to_accuracy", 200.0, "s", "cnn", "WARN"),
    ],
)
def test_the_default_criteria(metric: str, value: Scalar, unit: str, model: str, expected: str) -> None:
    labels = {"framework": "torch", "model": model, "gpus": "1"}
    records: list[Record] = [
        Measurement("mnist", HOST, metric, value, unit, labels),
        Outcome("mnist", HOST, RAN, "", 1),
    ]
    assert expected in {one.status for one in judged(records) if one.metric == metric and one.measurement is not None}


def test_the_small_cnn_trains_too() -> None:
    import torch

    labels = torch.arange(64) % 10
    images = torch.zeros(64, 28, 28)
    images[torch.arange(64), labels * 2 + 4, :] = 1.0
    machine = mnist_torch.Machine("cnn", torch.device("cpu"), (images, labels), (images, labels), 16)
    for _ in range(12):
        machine.epoch(12)
    assert machine.parameters == 1_199_882
    assert machine.accuracy() > 0.5


class Slow:
    """A training that gets nowhere near in time."""

    def epoch(self, _epochs: int) -> float:
        return 100.0

    def accuracy(self) -> float:
        return 0.96

    def speeds(self, _seconds: float) -> list[float]:
        return [600.0, 610.0, 620.0]


@pytest.mark.parametrize("in_time", [True, False])
def test_a_training_that_ran_out_of_time_is_not_judged_as_one_that_does_not_learn(
    in_time: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mnist_data, "MOST_S", 1e9 if in_time else -1.0)
    records: list[Record] = []
    asked = mnist_data.Asked.of({"subject": HOST, "data": "/somewhere", "epochs": 3})
    mnist_data.train(mnist_data.results(asked, "torch", records.append), Slow(), asked)
    found = measured(records, "torch")["accuracy"]
    assert found.value == (0.96 if in_time else None)
    assert in_time or found.note.startswith("too slow: 1 of 3 epochs")
