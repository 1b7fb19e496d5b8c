"""A small Keras network under MirroredStrategy on 1, 2, 4, ... GPUs: one process, as TensorFlow works.

Images lie on each GPU, and a loop inside tf.function runs many steps between two words of the host, so that neither
input nor Python is measured. A step's parts come from two kinds of step: whole ones, and those that compute gradients
and neither exchange nor apply them. What applying costs is known from one GPU, where nothing is exchanged; the rest of
the difference is the exchange. Waiting is not told apart from it: one process sees its replicas end together.

float32 as TensorFlow computes it by default: TF32 on the tensor cores of cards that have it.
"""

from __future__ import annotations

import importlib
import os
import statistics
import time
from typing import Any, Callable, Dict, List, Mapping, Tuple

from validators.schema import HOST, Record, Scalar
from validators.workloads.results import Results

CHECK, MODEL = "scaling", "keras_cnn"
BLOCKS = 5
WARM = 3
SEED = 20260
CLASSES = 10


def main(params: Mapping[str, Scalar], emit: Callable[[Record], None]) -> None:
    """Measure every number of GPUs in `counts`. Raises RuntimeError with TensorFlow's words.

    params: device "gpu" or "cpu"; counts "1,2,4"; keras_cnn, batches a GPU with commas; global_batch of strong scaling,
    which the first batch stands in for; seconds a configuration.
    """
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    tf: Any = importlib.import_module("tensorflow")
    counts = [int(word) for word in str(params["counts"]).split(",")]
    device = str(params.get("device", "gpu"))
    results = Results(CHECK, HOST, emit, framework="tensorflow", model=MODEL, dtype="float32")
    if device != "cpu" and not tf.test.is_built_with_cuda():
        results.not_applicable("images_per_second", f"TensorFlow {tf.__version__} is a build without CUDA")
        return
    devices = _devices(tf, device, max(counts))
    results.progress("load: MirroredStrategy")
    batches = [int(word) for word in str(params.get(MODEL, "1024")).split(",")]
    applying: Dict[int, float] = {}
    try:
        for count in counts:
            results.progress(f"MirroredStrategy on {count}")
            replicas = Replicas(tf, devices[:count])
            for batch, stands_for in _modes(batches, count).items():
                step, gradients = replicas.measure(batch, float(params.get("seconds", 0.6)))
                if count == 1:
                    applying[batch] = max(0.0, statistics.median(step) - gradients)
                for mode, label in stands_for:
                    labels = {"mode": mode, "batch": str(label), "gpus": str(count)}
                    _report(results, batch * count, step, (gradients, applying.get(batch)), labels)
            agree = replicas.agree()
            if count > 1:
                results.value("ranks_agree", agree, "" if agree else "the replicas' parameters differ", gpus=str(count))
    except tf.errors.OpError as problem:  # a plain Exception, without a base that the caller could name
        raise RuntimeError(f"{type(problem).__name__}: {str(problem)[:2000]}") from problem


def _devices(tf: Any, device: str, count: int) -> List[str]:
    """The names of so many devices; on the CPU logical ones are made. Raises RuntimeError where there are fewer."""
    if device == "cpu":
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * count)
        return [f"/cpu:{number}" for number in range(count)]
    found = tf.config.list_physical_devices("GPU")
    if len(found) < count:
        raise RuntimeError(
            f"TensorFlow {tf.__version__} registers {len(found)} of {count} GPUs: CUDA libraries that it does not find "
            "are the usual reason (install tensorflow[and-cuda]); the check preflight says more"
        )
    return [f"/gpu:{number}" for number in range(count)]


def _modes(batches: List[int], count: int) -> Dict[int, List[Tuple[str, int]]]:
    """Batch a GPU -> the (mode, batch) that it stands for. The largest batch is the whole one of strong scaling."""
    found: Dict[int, List[Tuple[str, int]]] = {batch: [("weak", batch)] for batch in batches}
    whole = max(batches)
    if whole % count == 0:
        found.setdefault(whole // count, []).append(("strong", whole))
    return found


class Replicas:
    """The network on some devices, and its two kinds of step."""

    def __init__(self, tf: Any, devices: List[str]) -> None:
        self._tf = tf
        self._devices, self._count = devices, len(devices)
        self._strategy = tf.distribute.MirroredStrategy(devices)
        tf.keras.utils.set_random_seed(SEED)
        with self._strategy.scope():
            self._model = self._network()
            self._optimizer = tf.keras.optimizers.SGD(1e-3, momentum=0.9)
            self._optimizer.build(self._model.trainable_variables)

    def _network(self) -> Any:
        """The tutorial's CNN for 32 x 32 images: three convolutions, two dense layers, 122,570 parameters."""
        layers = self._tf.keras.layers
        return self._tf.keras.Sequential([
            layers.Input((32, 32, 3)),
            layers.Conv2D(32, 3, activation="relu"), layers.MaxPooling2D(),
            layers.Conv2D(64, 3, activation="relu"), layers.MaxPooling2D(),
            layers.Conv2D(64, 3, activation="relu"), layers.Flatten(),
            layers.Dense(64, activation="relu"), layers.Dense(CLASSES),
        ])  # fmt: skip

    def _data(self, batch: int) -> Tuple[Any, Any]:
        """Images and labels on each device, other ones for each."""
        tf = self._tf

        def images(context: Any) -> Any:
            replica = context.replica_id_in_sync_group
            with tf.device(self._devices[replica]):  # else all of it lies on the first one
                return tf.random.stateless_normal((batch, 32, 32, 3), (SEED, replica))

        def labels(context: Any) -> Any:
            replica = context.replica_id_in_sync_group
            with tf.device(self._devices[replica]):
                return tf.random.stateless_uniform((batch,), (SEED, replica), 0, CLASSES, tf.int32)

        spread = self._strategy.experimental_distribute_values_from_function
        return spread(images), spread(labels)

    def measure(self, batch: int, seconds: float) -> Tuple[List[float], float]:
        """Seconds of a whole step, by block, and of one that only computes gradients."""
        images, labels = self._data(batch)
        whole = self._loop(batch * self._count, images, labels, apply=True)
        part = self._loop(batch * self._count, images, labels, apply=False)
        return self._timed(whole, seconds, BLOCKS), statistics.median(self._timed(part, seconds / 3, 3))

    def _loop(self, whole: int, images: Any, labels: Any, *, apply: bool) -> Callable[[int], None]:
        """A function that runs so many steps and returns when they are done."""
        tf, model, optimizer = self._tf, self._model, self._optimizer

        def step(x: Any, y: Any) -> Any:
            with tf.GradientTape() as tape:
                losses = tf.nn.sparse_softmax_cross_entropy_with_logits(y, model(x, training=True))
                loss = tf.reduce_sum(losses) / whole  # replicas' gradients are added up
            gradients = tape.gradient(loss, model.trainable_variables)
            if apply:
                optimizer.apply_gradients(zip(gradients, model.trainable_variables))  # noqa: B905 - strict is 3.10+
                return loss
            return tf.add_n([tf.reduce_sum(one) for one in gradients])  # so that none is left out

        def run(count: Any) -> Any:
            last = tf.constant(0.0)
            for _ in tf.range(count):
                # Steps that overlap give their all-reduces in another order on each GPU.
                tf.autograph.experimental.set_loop_options(parallel_iterations=1)
                each = self._strategy.run(step, args=(images, labels))
                # All of them: what nobody asks for is not computed.
                last += tf.add_n(list(self._strategy.experimental_local_results(each)))
            return last

        compiled = tf.function(run, reduce_retracing=True)
        return lambda count: compiled(tf.constant(count)).numpy()

    def _timed(self, run: Callable[[int], None], seconds: float, blocks: int) -> List[float]:
        """Seconds a step in each block."""
        run(WARM)
        began = time.perf_counter()
        run(WARM)
        each = (time.perf_counter() - began) / WARM
        steps = max(2, round(seconds / blocks / each))
        times = []
        for _ in range(blocks):
            began = time.perf_counter()
            run(steps)
            times.append((time.perf_counter() - began) / steps)
        return times

    def agree(self) -> bool:
        """Whether every replica holds the same parameters to the last bit."""
        for variable in self._model.trainable_variables:
            held = getattr(variable, "value", variable)  # Keras 3 wraps TensorFlow's variable
            held = held() if callable(held) and not hasattr(held, "values") else held
            first, *others = [one.numpy().tobytes() for one in self._strategy.experimental_local_results(held)]
            if any(one != first for one in others):
                return False
        return True


def _report(results: Results, images: int, step: List[float], parts: Tuple[float, Any], labels: Dict[str, str]) -> None:
    whole, (gradients, applying) = statistics.median(step), parts
    results.value("images_per_second", images / whole, "random numbers", **labels)
    results.value("images_per_second_spread", (max(step) - min(step)) / whole, **labels)
    if labels["gpus"] == "1":
        return
    note = "with applying the gradients" if applying is None else ""  # this batch a GPU did not run on one
    computing = gradients + (applying or 0.0)
    results.value("time_computing", min(1.0, computing / whole), **labels)
    results.value("time_communicating", max(0.0, 1 - computing / whole), note, **labels)
