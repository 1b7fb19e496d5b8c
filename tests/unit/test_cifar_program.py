"""The torch program of the check `cifar`: what it trains, alone and in two processes, and what it sends."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.data import cifar10_folder
from tests.unit.load_check import measured
from validators.probes import ranks
from validators.schema import HOST, NOT_APPLICABLE, Progress, Record, Scalar, encode
from validators.workloads import cifar_terms, cifar_torch
from validators.workloads.cifar_data import read, synthetic
from validators.workloads.cifar_optimizer import MUON

SMALL = replace(MUON, widths=(8, 16, 16), batch=100, epochs=2.0)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A narrow network on few real images."""
    torch.set_num_threads(1)
    monkeypatch.setattr(cifar_torch, "MUON", SMALL)

    def few(terms: cifar_terms.Terms, device: torch.device) -> Any:
        if not terms.data:
            return synthetic(300, device), None
        return tuple(one.head(600) for one in read(terms.data, device))

    monkeypatch.setattr(cifar_torch, "_images", few)


def program(**params: Scalar) -> list[Record]:
    records: list[Record] = []
    cifar_torch.main({"subject": HOST, "gpus": 0, "seconds": 0.1, **params}, records.append)
    for record in records:
        encode(record)
    return records


@pytest.mark.usefixtures("small")
def test_the_program_trains_on_real_images_where_epochs_are_asked_for() -> None:
    records = program(data=str(cifar10_folder()), epochs=2, target=0.01)
    found = measured(records, HOST)
    assert 0 < float(str(found["accuracy"].value)) < 1
    assert isinstance(found["accuracy_rises"].value, bool)
    assert found["accuracy_rises"].note.count("0.") == 2
    assert (found["epochs"].value, found["steps"].value) == (2, 12)
    assert 0 < float(str(found["training_time"].value)) < float(str(found["time_to_accuracy"].value))
    assert "s training" in found["time_to_accuracy"].note
    shares = [float(str(found[f"time_in_{part}"].value)) for part in ("loader", "copy", "compute")]
    assert sum(shares) == pytest.approx(1.0)
    assert shares[2] > 0.5
    assert float(str(found["cpu_images_per_second"].value)) > 0
    assert found["images_per_second"].absence == NOT_APPLICABLE
    assert float(found["cpu_images_per_second"].labels["spread"]) >= 0
    common = {"framework": "torch", "gpus": "0", "batch": "100"}
    assert all(one.labels.items() >= common.items() for one in found.values())
    assert isinstance(records[0], Progress)  # the load begins before anything is measured


@pytest.mark.usefixtures("small")
def test_an_accuracy_under_the_target_has_no_time_to_it() -> None:
    found = measured(program(data=str(cifar10_folder()), epochs=1, target=0.99), HOST)
    assert found["accuracy"].value is not None
    assert found["time_to_accuracy"].absence == NOT_APPLICABLE
    assert "is under the target, 0.990" in found["time_to_accuracy"].note
    assert found["accuracy_rises"].absence == NOT_APPLICABLE


@pytest.mark.usefixtures("small")
def test_without_real_images_speed_is_measured_and_accuracy_is_not() -> None:
    found = measured(program(epochs=1, no_data="no cifar10 on this host: no network"), HOST)
    assert float(str(found["cpu_images_per_second"].value)) > 0
    for metric in ("accuracy", "accuracy_rises", "time_to_accuracy"):
        assert (found[metric].absence, found[metric].note) == (NOT_APPLICABLE, "no cifar10 on this host: no network")


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("params", [{"epochs": -1}, {"target": 1.5}, {"batch": -8}])
def test_parameters_that_make_no_sense_are_refused(params: dict[str, Scalar]) -> None:
    with pytest.raises(ValueError, match="not negative"):
        program(**params)


RANK = """
import sys
from dataclasses import replace
import torch
torch.set_num_threads(1)
from validators.schema import Measurement
from validators.workloads import cifar_torch
from validators.workloads.cifar_data import read
cifar_torch.MUON = replace(cifar_torch.MUON, widths=(8, 16, 16), batch=100)
cifar_torch._images = lambda terms, device: tuple(one.head(400) for one in read(terms.data, device))
kept = []
real = cifar_torch.train
def train(trainer, *args, **more):
    kept.append(trainer)
    return real(trainer, *args, **more)
cifar_torch.train = train
params = {"subject": "host", "gpus": 0, "epochs": 1, "seconds": 0.1, "data": sys.argv[1], "target": 0.01}
cifar_torch.main(params, lambda record: isinstance(record, Measurement) and print(record.metric, record.value))
print("weights", float(kept[0].network.filters.double().sum()), float(kept[0].network.statistics.double().sum()))
print("part", kept[0].batch)
"""


def test_two_processes_train_one_network_and_the_first_reports() -> None:
    port = ranks.free_port()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(cifar10_folder())],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "OMP_NUM_THREADS": "1",
            },
        )
        for rank in (0, 1)
    ]
    ended = [one.communicate(timeout=240) for one in processes]
    assert [one.returncode for one in processes] == [0, 0], [errors[-1500:] for _, errors in ended]
    (first, second) = (dict(line.split(" ", 1) for line in out.splitlines()) for out, _ in ended)
    assert first["weights"].split()[0] == second["weights"].split()[0]
    assert first["part"] == second["part"] == "50"
    assert 0 < float(first["accuracy"]) < 1
    assert set(second) == {"weights", "part"}


def test_the_process_s_age_is_that_of_the_process() -> None:
    argv = [sys.executable, "-c", "import time; time.sleep(0.4); from validators.workloads import cifar_terms as t; "
            "print(t.process_age_s())"]  # fmt: skip
    ran = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert 0.4 <= float(ran.stdout) < 30
