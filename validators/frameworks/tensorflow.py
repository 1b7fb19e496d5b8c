"""TensorFlow's adapter."""

from __future__ import annotations

import importlib
import os
from contextlib import contextmanager
from typing import Any, Iterator, List, Optional

from validators.frameworks import cuda
from validators.frameworks.base import LEFT, RIGHT, Device, Missing, Product


class TensorFlow:
    """TensorFlow under the interpreter that runs this. Making it imports it: ImportError and OSError come through."""

    def __init__(self) -> None:
        # Memory as it is needed: by default TensorFlow takes all of every card that it sees.
        os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
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
        info = self._tf.sysconfig.get_build_info()
        if not info.get("is_cuda_build"):
            raise Missing("this TensorFlow is a CPU-only build")
        if not info.get(name):
            raise Missing(f"this TensorFlow's build information has no {name}")
        return info[name]

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
            raise RuntimeError(
                f"TensorFlow registers no GPU (cuInit says {said}); where that is CUDA_SUCCESS, its CUDA libraries are "
                "not found: install tensorflow[and-cuda], or set LD_LIBRARY_PATH"
            )
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
