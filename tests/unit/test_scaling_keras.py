"""Scaling's Keras program, with real TensorFlow on the CPU: replicas that agree, that differ, and a Keras 2."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.need import need
from validators.schema import Measurement, Record
from validators.workloads import cifar_keras, keras_start, mnist_keras, scaling_keras

ROOT = Path(__file__).resolve().parents[2]

REPLICAS = """
import tensorflow as tf
from validators.workloads import cifar_keras, keras_resident
from validators.workloads.scaling_keras import _processors
images = (cifar_keras.synthetic(64), cifar_keras.synthetic(64))
how = keras_resident.Settings(4, mode="graph", steps=2)
training = keras_resident.Training(tf, _processors(tf, 2), lambda kind: cifar_keras.network(tf, kind), images, how)
orders = [one.numpy().ravel().tolist() for one in training.strategy.experimental_local_results(training._order)]
training.epoch(1)
before = training.replicas_agree()
training.replicas = 3
missing = training.replicas_agree()
training.replicas = 2
second = training.strategy.experimental_local_results(training._mean)[1]
second.assign_add(tf.ones(second.shape) * 1e-9)
print(len(set(orders[0] + orders[1])), before, missing, training.replicas_agree())
"""


def test_replicas_that_differ_are_found_and_each_has_its_own_images() -> None:
    need(importlib.util.find_spec("tensorflow") is not None, "no tensorflow in this Python")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        [sys.executable, "-c", REPLICAS], env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert ran.stdout.strip() == "16 True False False", ran.stderr[-1000:]


def test_four_replicas_of_the_cpu_agree() -> None:
    need(importlib.util.find_spec("tensorflow") is not None, "no tensorflow in this Python")
    words = "from validators.workloads import scaling_keras as s; import sys; seen = []; "
    words += "s.main({'device': 'cpu', 'replicas': 4, 'keras_cnn': '4', 'seconds': 0.05}, seen.append); "
    words += "print([one.value for one in seen if getattr(one, 'metric', '') == 'ranks_agree'])"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        [sys.executable, "-c", words], env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert ran.stdout.strip() == "[True]", ran.stderr[-1000:]


def test_a_keras_2_is_told_and_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    need(importlib.util.find_spec("tensorflow") is not None, "no tensorflow in this Python")
    monkeypatch.setattr(keras_start, "too_old", lambda _tf: "TensorFlow 2.14.1 has no Keras 3")
    for program, params in (
        (scaling_keras, {"device": "cpu", "replicas": 1}), (cifar_keras, {"gpus": 1}), (mnist_keras, {"gpus": 1}),
    ):  # fmt: skip
        records: list[Record] = []
        program.main(params, records.append)
        told = [one for one in records if isinstance(one, Measurement)]
        assert {one.metric for one in told} >= {"images_per_second"}
        assert {(one.absence, one.note) for one in told} == {("not_applicable", "TensorFlow 2.14.1 has no Keras 3")}
