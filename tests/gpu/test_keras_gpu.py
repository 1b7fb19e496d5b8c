"""Keras's training on real GPUs: it is on them, XLA compiles it, replicas stay equal, and MNIST is learnt there.

Each test is a process of its own under this Python's TensorFlow: TensorFlow keeps a GPU for as long as it lives.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.need import need
from validators.workloads import mnist_data, mnist_torch

ROOT = Path(__file__).resolve().parents[2]

HEAD = """
import json, os, sys
import numpy as np
from validators.workloads import cifar_keras, keras_resident, keras_start, mnist_keras
tf = keras_start.start()
def train(gpus, mode, epochs=2, batch=256, policy=None):
    places = keras_start.devices(tf, gpus)
    images = (cifar_keras.synthetic(8192), cifar_keras.synthetic(1000))
    how = keras_resident.Settings(batch, 1e-3, policy or keras_start.precision(tf, gpus), mode)
    training = keras_resident.Training(tf, places, lambda kind: cifar_keras.network(tf, kind), images, how)
    for _ in range(epochs):
        training.epoch(epochs)
    return training
def weights(training):
    return [one.numpy() for one in training.strategy.experimental_local_results(training._weights)]
"""


@cache
def tensorflow_gpus() -> int:
    if importlib.util.find_spec("tensorflow") is None:
        return 0
    ask = "import tensorflow as tf; print('@', len(tf.config.list_physical_devices('GPU')))"
    ran = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, timeout=120, check=False)
    return int((ran.stdout.rpartition("@")[2] or "0").strip() or 0)


def run(gpus: int, body: str) -> dict[str, Any]:
    need(tensorflow_gpus() >= gpus, f"no TensorFlow with {gpus} GPU(s) on this machine", installable=False)
    ran = subprocess.run(
        [sys.executable, "-c", HEAD + body + "\nprint('@' + json.dumps(out))"],
        capture_output=True,
        text=True,
        timeout=400,  # XLA compiles for 50 s a program
        check=False,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"},
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    found: dict[str, Any] = json.loads(ran.stdout.rpartition("@")[2])
    return found


def test_one_gpu_holds_all_and_xla_computes_what_the_graph_computes() -> None:
    found = run(1, """
chosen, graph, compiled = train(1, ""), train(1, "graph", policy="float32"), train(1, "loop", policy="float32")
out = {"on_gpu": chosen.on_gpu, "mode": chosen.mode, "passed_over": chosen.passed_over,
       "loss": [float(one._loss.numpy()) for one in (chosen, graph, compiled)],
       "far": float(np.abs(weights(graph)[0] - weights(compiled)[0]).max()), "accuracy": chosen.accuracy()}
""")  # fmt: skip
    assert found["on_gpu"] is True
    assert (found["mode"], found["passed_over"]) == ("loop", "")
    assert all(2.0 < one < 2.5 for one in found["loss"])  # random labels: ln 10
    assert found["far"] < 0.05


def test_two_gpus_stay_equal_in_each_mode() -> None:
    found = run(2, """
out = {}
for mode in ("", "graph"):
    training = train(2, mode)
    first, second = weights(training)
    out[mode or "chosen"] = [training.on_gpu, bool((first == second).all()), float(training._loss.numpy())]
    out["mode"], out["passed_over"] = (training.mode, training.passed_over) if not mode else (out["mode"], "")
""")  # fmt: skip
    for mode in ("chosen", "graph"):
        on_gpu, equal, loss = found[mode]
        assert on_gpu is True
        assert equal is True
        assert 2.0 < loss < 2.5
    assert (found["mode"], found["passed_over"]) == ("loop", "")


def test_keras_learns_on_a_gpu_what_it_can_see() -> None:
    found = run(1, """
places = keras_start.devices(tf, 1)
random = np.random.default_rng(0)
labels = random.integers(0, 10, 4096, dtype=np.uint8)
pixels = random.integers(0, 60, (4096, 784), dtype=np.uint8)
for i, label in enumerate(labels):
    pixels[i, 28 * (2 * label + 4):28 * (2 * label + 6)] = 250
images = keras_resident.Images(pixels, labels)
how = keras_resident.Settings(256, 2e-3, "float32", "graph", vary=lambda some, step: mnist_keras.moved(tf, some, step))
training = keras_resident.Training(tf, places, lambda _: mnist_keras.mlp(tf), (images, images), how)
for _ in range(6):
    training.epoch(6)
out = {"accuracy": training.accuracy(), "on_gpu": training.on_gpu}
""")  # fmt: skip
    assert found["on_gpu"] is True
    assert found["accuracy"] > 0.9


@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_torch_trains_as_one_cuda_graph_and_as_without(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    need(torch.cuda.is_available(), "no GPU on this machine", installable=False)
    device = torch.device("cuda", 0)
    labels = (torch.arange(2048) % 10).to(device)
    images = torch.rand(2048, 28, 28, device=device) * 0.2
    images[torch.arange(2048), labels * 2 + 4, :] = 1.0
    data = (images, labels)
    graphed = mnist_torch.Machine(model, device, data, data, 256)
    assert graphed.mode == "cuda graph"
    assert graphed.on_gpu
    monkeypatch.setattr(mnist_torch.Machine, "_record", lambda _self: None)
    plain = mnist_torch.Machine(model, device, data, data, 256)
    for machine in (graphed, plain):
        for _ in range(8):
            machine.epoch(8)
        assert machine.accuracy() > 0.95
    for machine in (graphed, plain):
        before = [one.clone() for one in machine.net.parameters()]
        assert len(machine.speeds(0.2)) >= 3
        assert all(torch.equal(*pair) for pair in zip(before, machine.net.parameters(), strict=True))
    assert mnist_data.PARAMETERS == 669_706
