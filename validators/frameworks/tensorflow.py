"""TensorFlow's adapter."""

from __future__ import annotations

import importlib
import os
from contextlib import contextmanager
from typing import Any, Iterator, List, Optional

from validators.frameworks import cuda
from validators.frameworks.base import (
    FILTERS,
    IMAGES,
    LEFT,
    RATE,
    RIGHT,
    STEPS,
    TARGETS,
    WEIGHTS,
    Device,
    Missing,
    Product,
)


class TensorFlow:
    """TensorFlow under the interpreter that runs this. Making it imports it: ImportError and OSError come through."""

    def __init__(self) -> None:
        # Memory as it is needed: by default TensorFlow takes all of every card that it sees.
        os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
        # A CUDA library that is missing is named in the log only at this level; TensorFlow then goes on without a GPU.
        os.environ.setdefault("TF_CPP_VMODULE", "dso_loader=1")
        os.environ.pop("TF_CPP_MIN_LOG_LEVEL", None)
        self._tf: Any = importlib.import_module("tensorflow")

    def version(self) -> str:
        """Such as "2.21.0"."""
        return str(self._tf.__version__)

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """TensorFlow's errors are plain Exceptions; give them a base that the caller can name."""
        try:
            yield
        except self._tf.errors.OpError as problem:
            raise RuntimeError(f"{type(problem).__name__}: {problem}") from problem

    def _built(self, name: str) -> Any:
        info = self._for_cuda()
        if not info.get(name):
            raise Missing(f"this TensorFlow's build information has no {name}")
        return info[name]

    def _for_cuda(self) -> Any:
        info = self._tf.sysconfig.get_build_info()
        if not info.get("is_cuda_build"):
            raise Missing("this TensorFlow is a CPU-only build")
        return info

    def cuda_build(self) -> str:
        """The CUDA version it was built for. Raises Missing."""
        return str(self._built("cuda_version"))

    def architectures(self) -> List[str]:
        """What it was compiled for. Raises Missing."""
        return [str(one) for one in self._built("cuda_compute_capabilities")]

    def devices(self) -> List[Device]:
        """The GPUs that it can use; it does not raise where libraries are missing, so the reason is made up here."""
        found = []
        library, said = cuda.initialise()
        for index, one in enumerate(self._tf.config.list_physical_devices("GPU")):
            capability = self._tf.config.experimental.get_device_details(one).get("compute_capability")
            found.append(Device(index, cuda.describe(library, index)[0] if library else "", capability))
        if not found:
            self._for_cuda()
            hint = "" if library is None else ": install tensorflow[and-cuda], or set LD_LIBRARY_PATH"
            raise RuntimeError(f"TensorFlow registers no GPU and goes on without one (cuInit says {said}){hint}")
        return found

    def create_context(self, device: Device) -> None:
        """A first tensor on the GPU, read back."""
        with self._failures(), self._tf.device(f"/GPU:{device.index}"):
            self._tf.zeros(1).numpy()

    def multiply(self, device: Optional[Device]) -> Product:
        """In float32; where it ran is the product's own device."""
        place = "/CPU:0" if device is None else f"/GPU:{device.index}"
        with self._failures(), self._tf.device(place):
            product = self._tf.matmul(self._tf.constant(LEFT), self._tf.constant(RIGHT))
        return Product(product.numpy().tolist(), str(product.device))

    def train(self, device: Optional[Device]) -> List[float]:
        """In eager mode, channels last: TensorFlow has no other convolution on the CPU."""
        tf = self._tf
        losses = []
        with self._failures(), tf.device("/CPU:0" if device is None else f"/GPU:{device.index}"):
            images = tf.transpose(tf.constant(IMAGES), (0, 2, 3, 1))
            targets = tf.constant(TARGETS)
            filters = tf.Variable(tf.transpose(tf.constant(FILTERS), (2, 3, 1, 0)))
            weights = tf.Variable(tf.constant(WEIGHTS))
            for _ in range(STEPS):
                with tf.GradientTape() as tape:
                    hidden = tf.nn.relu(tf.nn.conv2d(images, filters, 1, "VALID"))
                    flat = tf.reshape(tf.transpose(hidden, (0, 3, 1, 2)), (len(IMAGES), -1))
                    loss = tf.reduce_mean((flat @ weights - targets) ** 2)
                learnt = (filters, weights)
                for one, slope in zip(learnt, tape.gradient(loss, learnt)):  # noqa: B905 - strict is 3.10+
                    one.assign_sub(RATE * slope)
                losses.append(loss)
            return [float(one) for one in losses]

    def cudnn(self) -> str:
        """Of the library that it loaded; which one it was built for is in the build information. Raises Missing."""
        self._for_cuda()
        return cuda.loaded_cudnn()

    def nccl(self) -> str:
        """Of the library that it would load for its first collective. Raises Missing, LookupError."""
        self._for_cuda()
        return cuda.loaded_nccl()
