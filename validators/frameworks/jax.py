"""JAX's adapter."""

from __future__ import annotations

import importlib
import os
from typing import Any, List, Optional

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
        number = int(self._plugin().cuda_runtime_build_version())
        return f"{number // 1000}.{number % 1000 // 10}"

    @staticmethod
    def _plugin() -> Any:
        for name in ("jax_cuda13_plugin", "jax_cuda12_plugin", "jaxlib.cuda"):
            try:
                versions = importlib.import_module(f"{name}._versions")
            except (ImportError, OSError):
                continue
            if hasattr(versions, "cuda_runtime_build_version"):
                return versions
        raise Missing("no CUDA plugin of JAX is installed (jax[cuda13])")

    def architectures(self) -> List[str]:
        """JAX compiles on the spot: there is no list."""
        raise Missing("JAX compiles for the card that it finds")

    def devices(self) -> List[Device]:
        """The GPUs that it can use; RuntimeError with JAX's reason where there are none."""
        found = []
        if self._jax.default_backend() == "cpu":  # says why in its log; asked for a GPU it only says that there is none
            self._plugin()
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

    def train(self, device: Optional[Device]) -> List[float]:
        """One compiled step, called STEPS times."""
        jax, numpy = self._jax, self._jax.numpy
        place = jax.devices("cpu")[0] if device is None else jax.devices("gpu")[device.index]
        images, targets, *learnt = (
            jax.device_put(numpy.array(one), place) for one in (IMAGES, TARGETS, FILTERS, WEIGHTS)
        )

        def loss_of(both: Any, images: Any, targets: Any) -> Any:
            hidden = jax.nn.relu(jax.lax.conv(images, both[0], (1, 1), "VALID"))
            return ((hidden.reshape(len(IMAGES), -1) @ both[1] - targets) ** 2).mean()

        @jax.jit  # type: ignore[untyped-decorator,unused-ignore]  # of a framework that the tools need not have
        def step(both: Any, images: Any, targets: Any) -> Any:
            loss, slopes = jax.value_and_grad(loss_of)(both, images, targets)
            return loss, [one - RATE * slope for one, slope in zip(both, slopes)]  # noqa: B905 - strict is 3.10+

        losses = []
        for _ in range(STEPS):
            loss, learnt = step(learnt, images, targets)
            losses.append(loss)
        return [float(one) for one in losses]

    def cudnn(self) -> str:
        """As the plugin is told by the library. Raises Missing, LookupError."""
        try:
            return cuda.cudnn_version(int(self._plugin().cudnn_get_version()))
        except (AttributeError, RuntimeError) as problem:
            raise LookupError(str(problem)) from None

    def nccl(self) -> str:
        """Of the library that the plugin loaded. Raises Missing, LookupError."""
        self._plugin()
        return cuda.loaded_nccl()
