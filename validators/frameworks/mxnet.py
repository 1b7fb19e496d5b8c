"""MXNet's adapter. Its last release, 1.9.1, is of 2022; it installs on Python up to 3.9."""

from __future__ import annotations

import importlib
import os
from typing import Any, List, Optional

from validators.frameworks import cuda
from validators.frameworks.base import (
    FILTERS,
    FILTERS_COUNT,
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

ARCHITECTURES = ("sm_50", "sm_60", "sm_70", "sm_80", "sm_86")
"""MXNET_CUDA_ARCH of the builds for CUDA 11.2 and 11.7, machine code without PTX: config/distribution/linux_cu112.cmake
and linux_cu117.cmake of apache/mxnet. MXNet itself does not tell; earlier CUDA builds carry no more than these."""


class MXNet:
    """MXNet under the interpreter that runs this. Making it imports it: ImportError and OSError come through."""

    def __init__(self) -> None:
        # Trying every convolution algorithm takes seconds for a step that takes none.
        os.environ.setdefault("MXNET_CUDNN_AUTOTUNE_DEFAULT", "0")
        self._mx: Any = importlib.import_module("mxnet")

    def version(self) -> str:
        """Such as "1.9.1"."""
        return str(self._mx.__version__)

    def _built(self, feature: str) -> None:
        if not self._mx.runtime.Features().is_enabled(feature):
            raise Missing(f"this MXNet is built without {feature}")

    def cuda_build(self) -> str:
        """The CUDA version of its build, by the name of its distribution. Raises Missing for a build without CUDA."""
        self._built("CUDA")
        metadata = importlib.import_module("importlib.metadata")
        for one in metadata.distributions():
            name = str(one.metadata["Name"] or "").lower()
            digits = name.replace("_", "-").partition("mxnet-cu")[2].partition("-")[0]
            if digits.isdecimal() and len(digits) > 1:
                return f"{digits[:-1]}.{digits[-1]}"
        raise Missing("this MXNet has CUDA, and does not tell which")

    def architectures(self) -> List[str]:
        """What its last CUDA builds were compiled for. Raises Missing for a build without CUDA."""
        self._built("CUDA")
        return list(ARCHITECTURES)

    def devices(self) -> List[Device]:
        """The GPUs that it can use; RuntimeError (MXNetError is one) with MXNet's reason where there are none."""
        self._built("CUDA")
        library, said = cuda.initialise()
        count = int(self._mx.context.num_gpus())
        if not count:
            raise RuntimeError(f"MXNet counts no GPU (cuInit says {said})")
        return [Device(index, *(cuda.describe(library, index) if library else ("", None))) for index in range(count)]

    def _place(self, device: Optional[Device]) -> Any:
        return self._mx.cpu() if device is None else self._mx.gpu(device.index)

    def create_context(self, device: Device) -> None:
        """A first array on the GPU, read back."""
        self._mx.nd.zeros((1,), ctx=self._place(device)).asnumpy()

    def multiply(self, device: Optional[Device]) -> Product:
        """In float32; where it ran is the product's own context."""
        place = self._place(device)
        product = self._mx.nd.dot(*(self._mx.nd.array(one, ctx=place) for one in (LEFT, RIGHT)))
        return Product(product.asnumpy().tolist(), str(product.context))

    def train(self, device: Optional[Device]) -> List[float]:
        """By autograd."""
        place, mx = self._place(device), self._mx
        images, targets, filters, weights = (mx.nd.array(one, ctx=place) for one in (IMAGES, TARGETS, FILTERS, WEIGHTS))
        losses = []
        for one in (filters, weights):
            one.attach_grad()
        for _ in range(STEPS):
            with mx.autograd.record():
                convolved = mx.nd.Convolution(images, filters, kernel=(3, 3), num_filter=FILTERS_COUNT, no_bias=True)
                loss = ((mx.nd.dot(mx.nd.relu(convolved).flatten(), weights) - targets) ** 2).mean()
            loss.backward()
            for one in (filters, weights):
                one[:] = one - RATE * one.grad
            losses.append(float(loss.asscalar()))
        return losses

    def cudnn(self) -> str:
        """Of the library that it loaded. Raises Missing, LookupError."""
        self._built("CUDNN")
        return cuda.loaded_cudnn()

    def nccl(self) -> str:
        """Of the library that it loaded. Raises Missing, LookupError."""
        self._built("NCCL")
        return cuda.loaded_nccl()
