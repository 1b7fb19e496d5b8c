"""CIFAR-10 with Keras: the network of TensorFlow's image tutorial under MirroredStrategy, all data on the GPU.

Run by the host's TensorFlow Python, with all the GPUs of the job visible to this one process. The training's loop is
in validators/workloads/keras_resident.py. The network: https://www.tensorflow.org/tutorials/images/cnn, which ends near
70 % after ten epochs; the images are only scaled to 0 .. 1, as there.
"""

from __future__ import annotations

import gc
import math
import time
from dataclasses import replace
from typing import Any, Callable, Dict, List, Tuple

import numpy as np

from validators.schema import Record
from validators.workloads import keras_start
from validators.workloads.cifar_terms import (
    LEARNT,
    SPEED,
    WHERE_TIME_WENT,
    Terms,
    on_the_cpu,
    process_age_s,
    results,
    send_learnt,
    send_speed,
    send_time,
    without,
)
from validators.workloads.keras_resident import Images, Settings, Training
from validators.workloads.results import Results

TRAIN_FILES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
TEST_FILE = "test_batch.bin"
FILE_IMAGES, RECORD_BYTES, CLASSES = 10_000, 3073, 10
PARAMETERS = 122_570
TARGET = 0.60
"""The tutorial's network is past it after five to seven epochs."""
EPOCHS = 10
BATCH, CPU_BATCH, LEAST_BATCH = 256, 64, 16
MOST_IMAGES = 1024
"""In a step of all GPUs: ten epochs of larger ones are too few steps (0.687 at 256, 0.629 at 1,024, four H200s)."""
BASE_RATE, BASE_BATCH, HIGHEST_RATE = 1e-3, 32, 4e-3
"""Adam's rate grows with the root of the images in a step (Malladi et al., arXiv:2205.10287), up to a limit."""


def main(params: Dict[str, Any], emit: Callable[[Record], None]) -> None:
    """Train and measure; see validators/workloads/cifar_terms.py for the parameters and what is sent.

    Further parameters: mode (keras_resident.MODES; "" chooses), subset (so many training images only, 0: all).
    """
    terms = Terms.of(params)
    tf = keras_start.start()
    unfit = keras_start.too_old(tf)
    if unfit:
        without(results(terms, "tensorflow", terms.batch, emit), (*LEARNT, *WHERE_TIME_WENT, *SPEED), unfit)
        return
    places = keras_start.devices(tf, terms.gpus)
    images = data(terms, int(params.get("subset", 0)))
    policy = keras_start.precision(tf, terms.gpus)
    own = max(LEAST_BATCH, min(BATCH, MOST_IMAGES // max(1, terms.gpus)))
    batch = terms.batch or (own if terms.gpus else CPU_BATCH)
    results(terms, "tensorflow", batch, emit).progress("compiling the Keras network")
    training, batch = fitting(tf, places, images, Settings(batch, policy=policy, mode=str(params.get("mode", ""))))
    found = results(terms, "tensorflow", batch, emit)
    found.labels.update(mode=training.mode, dtype=policy)
    if training.parameters != PARAMETERS:
        raise RuntimeError(f"the network has {training.parameters} parameters, not {PARAMETERS}")
    trained = bool(terms.data) and (terms.gpus > 0 or terms.epochs > 0)
    if trained:
        _learn(found, training, terms)
    elif terms.gpus:
        without(found, LEARNT, terms.no_data)
    _measure(found, training, terms, trained)


def _learn(found: Results, training: Training, terms: Terms) -> None:
    """The epochs, the test set after each, until they are over; then what came of it."""
    epochs, target = max(1, round(terms.epochs or EPOCHS)), terms.target or TARGET
    began = time.perf_counter()
    spent, reached_s = 0.0, 0.0
    each: List[float] = []
    setup_s = process_age_s()
    for epoch in range(epochs):
        spent += training.epoch(epochs)
        each.append(training.accuracy())
        found.progress(f"epoch {epoch + 1} of {epochs}: {each[-1]:.3f} of the test images")
        if not reached_s and each[-1] >= target:
            reached_s = process_age_s()
    whole = time.perf_counter() - began
    note = f"{setup_s:.1f} s until the first step (import, compile), then {spent:.2f} s of steps in {whole:.2f} s"
    send_learnt(found, each[-1], each, target, reached_s or process_age_s(), note)
    found.value("training_time", spent, f"mode {training.mode}{_passed_over(training)}")
    found.value("epochs", epochs)
    found.value("steps", epochs * training.steps)


def _measure(found: Results, training: Training, terms: Terms, trained: bool) -> None:
    """The speed in steady state, and where the time went."""
    found.progress("measuring images a second", 0.9)  # from here on nothing is compiled: the GPU's load counts
    speeds = training.speed(terms.seconds)
    if terms.gpus:
        send_speed(found, speeds.windows, f"mode {training.mode}{_passed_over(training)}")
    else:
        on_the_cpu(found, speeds.windows, trained)
    if terms.gpus or trained:
        send_time(found, speeds.loader, speeds.copy)


def _passed_over(training: Training) -> str:
    return f"; did not work: {training.passed_over}" if training.passed_over else ""


def network(tf: Any, policy: str) -> Any:
    """The tutorial's network, logits in float32."""
    layers = tf.keras.layers
    conv: Dict[str, Any] = {"activation": "relu", "dtype": policy}
    return tf.keras.Sequential(
        [
            tf.keras.Input((32, 32, 3)),
            layers.Conv2D(32, 3, **conv),
            layers.MaxPooling2D(2, dtype=policy),
            layers.Conv2D(64, 3, **conv),
            layers.MaxPooling2D(2, dtype=policy),
            layers.Conv2D(64, 3, **conv),
            layers.Flatten(dtype=policy),
            layers.Dense(64, **conv),
            layers.Dense(10, dtype="float32"),
        ]
    )


def rate_of(images: int) -> float:
    """Adam's rate for so many images in a step of all GPUs together."""
    return min(HIGHEST_RATE, BASE_RATE * math.sqrt(images / BASE_BATCH))


def fitting(tf: Any, places: List[str], images: Tuple[Images, Images], how: Settings) -> Tuple[Training, int]:
    """The training with these settings, or where memory runs out at a smaller batch. Raises MemoryError."""
    batch = how.batch
    while True:
        gc.collect()  # a training is a cycle: the one that did not fit would keep its images
        now = replace(how, batch=batch, rate=rate_of(batch * len(places)))
        try:
            return Training(tf, places, lambda policy: network(tf, policy), images, now), batch
        except MemoryError:
            if batch // 2 < LEAST_BATCH:
                raise
            batch //= 2


def data(terms: Terms, subset: int = 0) -> Tuple[Images, Images]:
    """The training and the test images, or random ones where there is no folder.

    Raises RuntimeError for a file that is not what it must be.
    """
    if not terms.data:
        return synthetic(subset or 50_000), synthetic(1000)
    parts = [_file(terms.data, name) for name in TRAIN_FILES]
    images, labels = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
    return Images(images[: subset or None], labels[: subset or None]), _file(terms.data, TEST_FILE)


def synthetic(count: int) -> Images:
    """Random images with random labels: as fast to train on as real ones."""
    random = np.random.default_rng(0)
    some = random.integers(0, 256, (64, 32, 32, 3), dtype=np.uint8)
    return Images(np.resize(some, (count, 32, 32, 3)), random.integers(0, CLASSES, count, dtype=np.uint8))


def _file(folder: str, name: str) -> Images:
    try:
        data = np.fromfile(f"{folder}/{name}", np.uint8)
    except OSError as problem:
        raise RuntimeError(f"CIFAR-10: {name} cannot be read: {problem.strerror}") from None
    if len(data) != FILE_IMAGES * RECORD_BYTES:
        expected = FILE_IMAGES * RECORD_BYTES
        raise RuntimeError(f"CIFAR-10: {name} has {len(data)} bytes, not {expected}: half copied or another form")
    records = data.reshape(FILE_IMAGES, RECORD_BYTES)
    if int(records[:, 0].max()) >= CLASSES:
        raise RuntimeError(f"CIFAR-10: {name} has the label {int(records[:, 0].max())}; labels are 0 to 9")
    planes = records[:, 1:].reshape(-1, 3, 32, 32)
    return Images(np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), records[:, 0].copy())
