"""JAX's adapter."""

from __future__ import annotations

import importlib
import os
from typing import Any, List, Optional

from validators.frameworks import cuda
from validators.frameworks.base import LEFT, RIGHT, Device, Missing, Product


class Jax:
    """JAX under the interpreter that runs this. Making it imports it: ImportError and OSError come through."""

    def __init__(self) -> None:
        # By default JAX takes three quarters of every card that it sees.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        self._jax: Any = importlib.import_module("jax")

    def version(self) -> str:
        """Such as "0.7.2"."""
        return str(self._jax.__version__)

    def cuda_build(self) -> str:
        """The CUDA version of its plugin. Raises Missing without one."""
        for name in ("jax_cuda13_plugin", "jax_cuda12_plugin"):
            try:
                versions = importlib.import_module(f"{name}._versions")
                number = int(versions.cuda_runtime_build_version())
            except (ImportError, AttributeError):
                continue
            return f"{number // 1000}.{number % 1000 // 10}"
        raise Missing("no CUDA plugin of JAX is installed (jax[cuda13])")

    def architectures(self) -> List[str]:
        """JAX compiles on the spot: there is no list."""
        raise Missing("JAX compiles for the card that it finds")

    def devices(self) -> List[Device]:
        """The GPUs that it can use; RuntimeError with JAX's reason where there are none."""
        found = []
        library, _ = cuda.initialise()
        for index, _one in enumerate(self._jax.devices("gpu")):
            uuid, capability = cuda.describe(library, index) if library else ("", None)
            found.append(Device(index, uuid, capability))
        return found

    def create_context(self, device: Device) -> None:
        """A first array on the GPU, waited for."""
        gpu = self._jax.devices("gpu")[device.index]
        self._jax.device_put([1.0], gpu)[0].block_until_ready()

    def multiply(self, device: Optional[Device]) -> Product:
        """In float32 at the highest precision; where it ran is the product's own device."""
        place = self._jax.devices("cpu")[0] if device is None else self._jax.devices("gpu")[device.index]
        numpy = self._jax.numpy
        with self._jax.default_device(place):
            product = numpy.matmul(numpy.array(LEFT), numpy.array(RIGHT), precision="highest")
        return Product([[float(one) for one in row] for row in product], str(next(iter(product.devices()))))
