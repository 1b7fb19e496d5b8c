"""A small Keras network under MirroredStrategy on some GPUs: one process, as TensorFlow works.

The training is that of validators/workloads/keras_resident.py, run as TensorFlow's graph: images lie on each GPU and
many steps run between two words of the host, so that neither input nor Python is measured; XLA would compile each
number of GPUs and each batch for most of a minute. A step's time apart from the exchange of gradients is that of the
same training without it. Waiting is not told apart from the exchange: one process sees its replicas end together.

float32 as TensorFlow computes it by default: TF32 on the tensor cores of cards that have it.
"""

from __future__ import annotations

import gc
import statistics
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple

from validators.schema import HOST, Record, Scalar
from validators.workloads import cifar_keras, keras_start
from validators.workloads.keras_resident import Settings, Training
from validators.workloads.results import Results

CHECK, MODEL = "scaling", "keras_cnn"
STEPS = 16
"""In one call."""
IMAGES = 2048


def main(params: Mapping[str, Scalar], emit: Callable[[Record], None]) -> None:
    """Measure so many replicas, each number of them in a process of its own: TensorFlow refuses a second one.

    params: device "gpu" or "cpu"; replicas; keras_cnn, batches a GPU with commas, of which the largest is the whole one
    of strong scaling; seconds a configuration. Raises RuntimeError with TensorFlow's words, MemoryError.
    """
    tf = keras_start.start()
    replicas = int(params["replicas"])
    device = str(params.get("device", "gpu"))
    results = Results(CHECK, HOST, emit, framework="tensorflow", model=MODEL, dtype="float32", gpus=str(replicas))
    unfit = keras_start.too_old(tf)
    if device != "cpu" and not tf.test.is_built_with_cuda():
        unfit = f"TensorFlow {tf.__version__} is a build without CUDA"
    if unfit:
        results.not_applicable("images_per_second", unfit)
        return
    places = _processors(tf, replicas) if device == "cpu" else keras_start.devices(tf, replicas)
    batches = [int(word) for word in str(params.get(MODEL, "1024")).split(",")]
    seconds = float(params.get("seconds", 0.6))
    agree = True
    for batch, stands_for in _modes(batches, replicas).items():
        results.progress(f"load: MirroredStrategy on {replicas}, {batch} images each")
        whole, equal = measure(tf, places, batch, seconds)
        apart = measure(tf, places, batch, seconds / 3, exchange=False)[0] if replicas > 1 else None
        agree = agree and equal
        for mode, label in stands_for:
            _report(results, batch * replicas, whole, apart, {"mode": mode, "batch": str(label)})
    if replicas > 1:
        results.value("ranks_agree", agree, "" if agree else "the replicas' parameters differ")


def measure(
    tf: Any, places: List[str], batch: int, seconds: float, *, exchange: bool = True
) -> Tuple[List[float], bool]:
    """Seconds of a step in each window, and whether the replicas hold the same numbers after them."""
    gc.collect()  # the last one's model and images
    images = (cifar_keras.synthetic(IMAGES), cifar_keras.synthetic(IMAGES))
    how = Settings(batch, cifar_keras.rate_of(batch * len(places)), mode="graph", steps=STEPS, exchange=exchange)
    training = Training(tf, places, lambda policy: cifar_keras.network(tf, policy), images, how)
    training.epoch(1)
    rates = training.speed(seconds, redraw=False).windows
    return [batch * len(places) / rate for rate in rates], training.replicas_agree()


def _processors(tf: Any, count: int) -> List[str]:
    """So many logical devices of the CPU, no GPU beside them."""
    tf.config.set_visible_devices([], "GPU")
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * count)
    return [f"/cpu:{number}" for number in range(count)]


def _modes(batches: List[int], count: int) -> Dict[int, List[Tuple[str, int]]]:
    """Batch a GPU -> the (mode, batch) that it stands for. The largest batch is the whole one of strong scaling."""
    found: Dict[int, List[Tuple[str, int]]] = {batch: [("weak", batch)] for batch in batches}
    whole = max(batches)
    if whole % count == 0:
        found.setdefault(whole // count, []).append(("strong", whole))
    return found


def _report(
    results: Results, images: int, steps: List[float], apart: Optional[List[float]], labels: Dict[str, str]
) -> None:
    """The rate of so many images a step; on several GPUs the parts of a step, by one `apart` from the exchange."""
    whole = statistics.median(steps)
    results.value("images_per_second", images / whole, "random numbers", **labels)
    results.value("images_per_second_spread", (max(steps) - min(steps)) / whole, **labels)
    if apart is not None:
        computing = min(1.0, statistics.median(apart) / whole)
        results.value("time_computing", computing, **labels)
        results.value("time_communicating", 1 - computing, **labels)
