"""The Keras training with everything on the device: right arithmetic, the same in each mode and on each replica."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data import cifar10_folder
from validators.schema import Measurement, Record, encode
from validators.workloads import cifar_keras, keras_resident, keras_start
from validators.workloads.cifar_terms import Terms

ROOT = Path(__file__).resolve().parents[2]

SCRIPT = """
import json, sys
import numpy as np
from validators.workloads import keras_resident, keras_start

tf = keras_start.start()
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
random = np.random.default_rng(0)
pixels, labels = random.integers(0, 256, (600, 12), dtype=np.uint8), random.integers(0, 4, 600, dtype=np.uint8)
pixels[:, 0] = labels * 60
data = (keras_resident.Images(pixels, labels),) * 2

def build(policy):
    layers = tf.keras.layers
    dense = [layers.Dense(16, "relu", dtype=policy), layers.Dense(4, dtype="float32")]
    return tf.keras.Sequential([tf.keras.Input((12,)), *dense])

def train(replicas, mode, **more):
    how = keras_resident.Settings(**{"batch": 40 // replicas, "rate": 0.01, "mode": mode, **more})
    training = keras_resident.Training(tf, [f"/CPU:{i}" for i in range(replicas)], build, data, how)
    for _ in range(3):
        training.epoch(3)
    return training

def weights(training):
    return [one.numpy().tolist() for one in training.strategy.experimental_local_results(training._weights)]

def by_keras(training, replicas=1):
    # The same images in the same order, through Keras's own model and optimizer.
    tf.keras.utils.set_random_seed(1)
    model, order = build("float32"), np.random.default_rng(1)
    order.permutation(600)  # compiling took one
    adam = tf.keras.optimizers.Adam(0.01)
    loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    step, total = 0, 3 * training.steps
    for _ in range(3):
        which = order.permutation(600).reshape(replicas, training.steps, 40 // replicas)
        for some in which.transpose(1, 0, 2).reshape(training.steps, 40):
            adam.learning_rate = 0.01 * (1 - step / total)
            with tf.GradientTape() as tape:
                value = loss(labels[some], model(pixels[some].astype("float32") / 255, training=True))
            adam.apply(tape.gradient(value, model.trainable_variables), model.trainable_variables)
            step += 1
    return np.concatenate([one.numpy().ravel() for one in model.trainable_variables]).tolist()

out = {}
graph = train(1, "graph")
out["graph"], out["keras"], out["steps"] = weights(graph), by_keras(graph), [graph.steps, graph.chunk]
out["accuracy"], out["mode"], out["on_gpu"] = graph.accuracy(), train(1, "").mode, graph.on_gpu
before = weights(graph)
found = graph.speed(0.3)
out["speed"], out["kept"] = found.windows, before == weights(graph)
model, flat = graph.model, graph.strategy.experimental_local_results(graph._weights)[0].numpy()
parts = np.split(flat, np.cumsum(graph._sizes)[:-1])
for variable, part, shape in zip(model.trainable_variables, parts, graph._shapes):
    variable.assign(part.reshape(shape))
with graph.strategy.scope():
    named = model(pixels.astype("float32") / 255).numpy().argmax(1)
out["by_the_model"] = float((named == labels).mean())
out["two_keras"] = by_keras(graph, 2)
out["two_graph"], out["alone"] = weights(train(2, "graph")), weights(train(2, "graph", exchange=False))
out["half"] = weights(train(1, "graph", policy="mixed_float16"))

def breaks(images, step):
    with tf.control_dependencies([tf.debugging.assert_less(step, 20, "so far and no further")]):
        return tf.identity(images)

for name, mode, more in (
    ("nan", "graph", {"rate": 1e38}), ("unknown", "fast", {}), ("broken", "graph", {"vary": breaks})
):
    try:
        train(1, mode, **more)
    except (RuntimeError, ValueError) as problem:
        out[name] = str(problem)
# As on GPUs: there MirroredStrategy hands a compiled function to XLA whole.
import tensorflow.python.distribute.mirrored_run as run, tensorflow.python.distribute.mirrored_strategy as strategy
run._is_gpu_device = strategy._is_gpu_device = lambda device: True
out["loop"] = weights(train(1, "loop"))
print("@" + json.dumps(out))
"""


@pytest.fixture(scope="module")
def trained() -> dict[str, Any]:
    """Small trainings on two logical CPU devices, in a process of its own: TensorFlow is configured once."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS"), "1")
    environment = {**os.environ, **threads, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=240, check=False, env=environment
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    found: dict[str, Any] = json.loads(ran.stdout.rpartition("@")[2])
    return found


def test_it_is_keras_own_training_with_adam(trained: dict[str, Any]) -> None:
    np.testing.assert_allclose(trained["graph"][0], trained["keras"], rtol=2e-4, atol=2e-5)
    assert trained["steps"] == [15, 15]


def test_each_mode_computes_the_same(trained: dict[str, Any]) -> None:
    """On one device: XLA has no all-reduce between CPUs; tests/gpu has it on two GPUs."""
    np.testing.assert_allclose(trained["graph"], trained["loop"], rtol=2e-4, atol=2e-5)


def test_replicas_stay_equal_and_use_all_gradients(trained: dict[str, Any]) -> None:
    """Keras with both replicas' images in one step comes to the same weights."""
    first, second = trained["two_graph"]
    assert first == second
    np.testing.assert_allclose(first, trained["two_keras"], rtol=2e-4, atol=2e-5)


def test_without_the_exchange_each_replica_learns_from_its_own_images(trained: dict[str, Any]) -> None:
    first, second = trained["alone"]
    assert np.abs(np.subtract(first, second)).max() > 1e-3


def test_half_precision_learns_the_same(trained: dict[str, Any]) -> None:
    np.testing.assert_allclose(trained["half"][0], trained["graph"][0], atol=0.05)


def test_accuracy_is_that_of_the_keras_model(trained: dict[str, Any]) -> None:
    assert trained["accuracy"] == pytest.approx(trained["by_the_model"], abs=1e-6)
    assert trained["accuracy"] > 0.4  # a quarter by chance


def test_measuring_the_speed_leaves_the_weights(trained: dict[str, Any]) -> None:
    assert len(trained["speed"]) >= 3
    assert trained["kept"] is True


def test_on_the_cpu_nothing_claims_to_be_on_a_gpu(trained: dict[str, Any]) -> None:
    assert trained["on_gpu"] is False
    assert trained["mode"] == "graph"


def test_a_loss_that_is_no_number_and_an_unknown_mode_are_told(trained: dict[str, Any]) -> None:
    assert "the loss is nan after" in trained["nan"]
    assert "fast" in trained["unknown"]


def test_an_error_in_the_midst_is_told_by_its_cause(trained: dict[str, Any]) -> None:
    assert trained["broken"].startswith("graph: InvalidArgumentError: ")
    assert "so far and no further" in trained["broken"]
    assert "File" not in trained["broken"]


@pytest.mark.parametrize("images", [1, 63, 600, 50_000])
@pytest.mark.parametrize("batch", [1, 32, 256, 4096])
def test_an_epoch_sees_every_image_in_calls_of_equal_length(images: int, batch: int) -> None:
    steps, chunk = keras_resident._shares(images, batch)
    assert steps * batch >= images
    assert steps % chunk == 0
    assert 1 <= chunk <= keras_resident.MOST_STEPS
    assert steps <= -(-images // batch) * 1.05 + 1


def run(params: dict[str, Any]) -> list[Record]:
    records: list[Record] = []
    cifar_keras.main(params, records.append)
    for record in records:
        encode(record)
    return records


def values(records: list[Record]) -> dict[str, Measurement]:
    return {one.metric: one for one in records if isinstance(one, Measurement)}


def test_real_cifar_is_learnt_on_the_cpu_and_the_accuracy_rises(monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = cifar_keras.data(Terms(data=str(cifar10_folder())), 1000)
    some = keras_resident.Images(test.images[:1000], test.labels[:1000])
    monkeypatch.setattr(cifar_keras, "data", lambda _terms, _subset: (train, some))
    params = {"data": str(cifar10_folder()), "gpus": 0, "epochs": 3, "batch": 25, "seconds": 0.1}
    found = values(run(params))
    assert float(str(found["accuracy"].value)) > 0.2
    assert found["accuracy_rises"].value is True
    assert found["steps"].value == 3 * 40
    assert found["time_to_accuracy"].absence == "not_applicable"
    assert float(str(found["cpu_images_per_second"].value)) > 0
    assert {one.labels["framework"] for one in found.values()} == {"tensorflow"}
    assert {one.labels["gpus"] for one in found.values()} == {"0"}


def test_a_tensorflow_without_gpus_is_no_gpus_training() -> None:
    with pytest.raises(RuntimeError, match=r"sees 0 of 1 GPUs: this TensorFlow is a CPU-only build"):
        cifar_keras.main({"gpus": 1, "data": ""}, lambda _record: None)


def test_where_memory_runs_out_a_smaller_batch_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []

    def training(_tf: Any, _places: Any, _build: Any, _data: Any, how: keras_resident.Settings) -> str:
        tried.append(how.batch)
        if how.batch > 100:
            raise MemoryError("no room")
        return "training"

    monkeypatch.setattr(cifar_keras, "Training", training)
    images = (cifar_keras.synthetic(10),) * 2
    assert cifar_keras.fitting(None, ["/GPU:0"], images, keras_resident.Settings(256)) == ("training", 64)  # type: ignore[comparison-overlap]
    assert tried == [256, 128, 64]
    monkeypatch.setattr(cifar_keras, "LEAST_BATCH", 256)
    with pytest.raises(MemoryError):
        cifar_keras.fitting(None, ["/GPU:0"], images, keras_resident.Settings(256))


@pytest.mark.parametrize(
    ("capability", "policy"),
    [((6, 1), "float32"), ((7, 5), "mixed_float16"), ((8, 0), "mixed_bfloat16"), ((10, 0), "mixed_bfloat16")],
)
def test_the_number_format_is_the_cards(capability: tuple[int, int], policy: str) -> None:
    class Experimental:
        @staticmethod
        def get_device_details(one: tuple[int, int]) -> dict[str, tuple[int, int]]:
            return {"compute_capability": one}

    class Config:
        experimental = Experimental

        @staticmethod
        def list_physical_devices(_kind: str) -> list[tuple[int, int]]:
            return [(9, 0), capability]

    assert keras_start.precision(type("tf", (), {"config": Config}), 2) == policy


def test_the_official_files_are_read_as_published() -> None:
    train, test = cifar_keras.data(Terms(data=str(cifar10_folder())))
    assert train.images.shape == (50_000, 32, 32, 3)
    assert [int(one) for one in np.bincount(test.labels)] == [1000] * 10
    record = (cifar10_folder() / "data_batch_1.bin").read_bytes()[:3073]
    assert train.labels[0] == record[0]
    assert train.images[0, 1, 2].tolist() == [record[1 + 1024 * plane + 34] for plane in range(3)]


def test_a_half_copied_file_is_named(tmp_path: Path) -> None:
    for name in (*cifar_keras.TRAIN_FILES, cifar_keras.TEST_FILE):
        (tmp_path / name).symlink_to(cifar10_folder() / name)
    short = tmp_path / cifar_keras.TEST_FILE
    data = short.read_bytes()[:-5000]
    short.unlink()
    short.write_bytes(data)
    with pytest.raises(RuntimeError, match=r"test_batch\.bin has 30725000 bytes, not 30730000: half copied"):
        cifar_keras.data(Terms(data=str(tmp_path)))
