"""TensorFlow for a workload: imported, its GPUs found or the reason why not, the number format by the card."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import tempfile
from typing import Any, Iterator, List

TELLING = ("dlopen", "cuinit", "could not find", "could not load", "cuda drivers", "skipping registering", "no kernel")
"""Words in the lines of TensorFlow's log that say why it has no GPU."""


def start() -> Any:
    """TensorFlow, imported; ImportError and what else an import raises come through. Takes memory as it needs it."""
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "1"  # warnings say why there is no GPU
    os.environ["KERAS_BACKEND"] = "tensorflow"
    os.environ.pop("TF_USE_LEGACY_KERAS", None)
    return importlib.import_module("tensorflow")


def devices(tf: Any, gpus: int) -> List[str]:
    """The names of `gpus` GPUs, or of the CPU for 0. Raises RuntimeError, with TensorFlow's reason, where it has fewer.

    TensorFlow goes on on the CPU where it finds no GPU; a training there would be reported as the GPU's.
    """
    if not gpus:
        with contextlib.suppress(RuntimeError):  # it has begun already (a test's process): then there is none to hide
            tf.config.set_visible_devices([], "GPU")
        return ["/CPU:0"]
    with _words() as said:
        found = tf.config.list_physical_devices("GPU")
    if len(found) < gpus:
        raise RuntimeError(f"TensorFlow {tf.__version__} sees {len(found)} of {gpus} GPUs: {_why(tf, said)}")
    return [f"/GPU:{index}" for index in range(gpus)]


def _why(tf: Any, said: List[str]) -> str:
    if not tf.sysconfig.get_build_info().get("is_cuda_build"):
        return "this TensorFlow is a CPU-only build; install tensorflow[and-cuda]"
    lines = [line.strip() for line in said if any(word in line.lower() for word in TELLING)]
    text = " ".join(line.partition("] ")[2] or line for line in lines[-3:])
    return text or "its log gives no reason; preflight shows what cuInit says and which libraries are missing"


@contextlib.contextmanager
def _words() -> Iterator[List[str]]:
    """What is written to descriptor 2 meanwhile (TensorFlow's C++ log); it is passed on afterwards."""
    lines: List[str] = []
    sys.stderr.flush()
    own = os.dup(2)
    with tempfile.TemporaryFile() as kept:
        os.dup2(kept.fileno(), 2)
        try:
            yield lines
        finally:
            os.dup2(own, 2)
            os.close(own)
            kept.seek(0)
            text = kept.read()
            lines += text.decode("utf-8", "replace").splitlines()
            os.write(2, text[-8192:])


def too_old(tf: Any) -> str:
    """Why this TensorFlow cannot run the trainings of validators/workloads/keras_resident.py; empty where it can."""
    if hasattr(tf.keras.Model, "stateless_call"):
        return ""
    return f"TensorFlow {tf.__version__} has no Keras 3: 2.16 or later is needed"


STACK = ('File "', "Graph execution error:", "Detected at node", "Stack trace for op definition:", "[[{{")
"""How the lines begin that say where in a program the graph was made, which a reader of a report has not."""


def cause(problem: BaseException) -> str:
    """What an error of TensorFlow's says, in one line, without the stack that stands before and after its cause."""
    lines = [line.strip() for line in str(problem).splitlines()]
    return " ".join(line for line in lines if line and not line.startswith(STACK)) or type(problem).__name__


def precision(tf: Any, gpus: int) -> str:
    """Keras's policy by the card: bfloat16 from Ampere on, float16 with tensor cores (Volta, Turing), else float32."""
    if not gpus:
        return "float32"
    found = [
        tf.config.experimental.get_device_details(one).get("compute_capability") or (0, 0)
        for one in tf.config.list_physical_devices("GPU")[:gpus]
    ]
    least = min(tuple(one) for one in found)
    if least >= (8, 0):
        return "mixed_bfloat16"
    return "mixed_float16" if least >= (7, 0) else "float32"
