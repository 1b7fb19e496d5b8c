"""MNIST with Keras: the MLP 784-512-512-10 with dropout 0.2, trained to 98.5 % with everything on the GPU.

Run by the host's TensorFlow Python with one GPU visible; the loop is in validators/workloads/keras_resident.py.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, List

import numpy as np

from validators.schema import Record
from validators.workloads import keras_start, mnist_data
from validators.workloads.keras_resident import Images, Settings, Training
from validators.workloads.mnist_data import PARAMETERS, RATE, SIDE, Asked, Idx


def main(params: Dict[str, Any], emit: Callable[[Record], None]) -> None:
    """Train and measure; `params` are those of mnist_data.Asked. Raises RuntimeError for a TensorFlow without a GPU."""
    asked = Asked.of(params)
    if asked.model != "mlp":
        raise ValueError("with Keras there is the MLP only")
    tf = keras_start.start()
    unfit = keras_start.too_old(tf)
    if unfit:
        for metric in mnist_data.METRICS:
            mnist_data.results(asked, "tensorflow", emit).not_applicable(metric, unfit)
        return
    places = keras_start.devices(tf, asked.gpus)
    train, test = (_images(one) for one in asked.images())
    mnist_data.results(asked, "tensorflow", emit).progress("building the Keras network")
    # Not compiled by XLA unless asked for: it takes longer than the fifteen epochs.
    how = Settings(
        asked.batch, RATE["mlp"], "float32", asked.mode or "graph", vary=lambda some, step: moved(tf, some, step)
    )
    training = Training(tf, places, lambda _policy: mlp(tf), (train, test), how)
    if training.parameters != PARAMETERS:
        raise RuntimeError(f"the network has {training.parameters} parameters, not {PARAMETERS}")
    found = mnist_data.results(asked, "tensorflow", emit, mode=training.mode)
    found.value("parameters", training.parameters)
    mnist_data.train(found, _Machine(training), asked)


class _Machine:
    """A training as mnist_data.Machine."""

    def __init__(self, training: Training) -> None:
        self._training = training
        self.epoch, self.accuracy = training.epoch, training.accuracy

    def speeds(self, seconds: float) -> List[float]:
        return self._training.speed(seconds).windows


def mlp(tf: Any) -> Any:
    """The network that Keras's example mnist_mlp has had since 2015; logits instead of a softmax."""
    layers = tf.keras.layers
    return tf.keras.Sequential(
        [
            tf.keras.Input((SIDE * SIDE,)),
            layers.Dense(512, activation="relu"),
            layers.Dropout(0.2),
            layers.Dense(512, activation="relu"),
            layers.Dropout(0.2),
            layers.Dense(10),
        ]
    )


def moved(tf: Any, images: Any, step: Any) -> Any:
    """mnist_data.moved in TensorFlow: (n, 784) images; what leaves on one side is margin, and comes in on the other."""
    down, right = step % 3 - 1, step // 3 % 3 - 1
    square = tf.reshape(images, (-1, SIDE, SIDE))
    return tf.reshape(tf.roll(square, tf.stack([down, right]), (1, 2)), (-1, SIDE * SIDE))


def _images(idx: Idx) -> Images:
    pixels = np.frombuffer(idx.images, np.uint8).reshape(-1, SIDE * SIDE)
    return Images(pixels, np.frombuffer(idx.labels, np.uint8))
