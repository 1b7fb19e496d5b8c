"""PyTorch's adapter."""

from __future__ import annotations

import importlib
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


class Torch:
    """PyTorch under the interpreter that runs this. Making it imports torch: ImportError and OSError come through."""

    def __init__(self) -> None:
        self._torch: Any = importlib.import_module("torch")

    def version(self) -> str:
        """Such as "2.11.0+cu130"."""
        return str(self._torch.__version__)

    def cuda_build(self) -> str:
        """The CUDA version it was built for. Raises Missing for a CPU-only or a ROCm build."""
        built = self._torch.version.cuda
        if built:
            return str(built)
        hip = getattr(self._torch.version, "hip", None)
        raise Missing(f"this torch is built for ROCm {hip}" if hip else "this torch is a CPU-only build")

    def architectures(self) -> List[str]:
        """The list compiled in: there with no GPU too, which torch.cuda.get_arch_list() is not."""
        flags = getattr(self._torch._C, "_cuda_getArchFlags", None)
        if flags is None:
            self.cuda_build()
            raise Missing("this torch does not say what it was compiled for")
        return str(flags() or "").split()

    def devices(self) -> List[Device]:
        """The GPUs that torch can use; Missing, or RuntimeError with torch's reason where it can't."""
        self.cuda_build()
        self._torch.cuda.init()
        library, _ = cuda.initialise()
        found = []
        for index in range(self._torch.cuda.device_count()):
            uuid = getattr(self._torch.cuda.get_device_properties(index), "uuid", None)
            name = f"GPU-{uuid}" if uuid else (cuda.describe(library, index)[0] if library else "")
            found.append(Device(index, name, tuple(self._torch.cuda.get_device_capability(index))))
        return found

    def create_context(self, device: Device) -> None:
        """A first allocation makes the context; a kernel and a synchronisation show that it works."""
        self._torch.zeros(1, device=f"cuda:{device.index}").add_(1)
        self._torch.cuda.synchronize(device.index)

    def multiply(self, device: Optional[Device]) -> Product:
        """In float32; where it ran is the product's own device."""
        where = "cpu" if device is None else f"cuda:{device.index}"
        left, right = (self._torch.tensor(one, device=where) for one in (LEFT, RIGHT))
        product = left @ right
        return Product(product.tolist(), str(product.device))

    def train(self, device: Optional[Device]) -> List[float]:
        """By autograd alone: an optimiser of torch.optim imports the compiler first, which takes seconds."""
        torch = self._torch
        where = "cpu" if device is None else f"cuda:{device.index}"
        images, targets, filters, weights = (
            torch.tensor(one, device=where) for one in (IMAGES, TARGETS, FILTERS, WEIGHTS)
        )
        learnt = [filters.requires_grad_(), weights.requires_grad_()]
        losses = []
        for _ in range(STEPS):
            hidden = torch.relu(torch.nn.functional.conv2d(images, filters)).flatten(1)
            loss = ((hidden @ weights - targets) ** 2).mean()
            slopes = torch.autograd.grad(loss, learnt)
            with torch.no_grad():
                for one, slope in zip(learnt, slopes):  # noqa: B905 - strict is 3.10+, the host may have 3.9
                    one.sub_(slope, alpha=RATE)
            losses.append(loss.detach())
        return [float(one) for one in losses]

    def cudnn(self) -> str:
        """As torch itself was told by the library. Raises Missing, LookupError."""
        self.cuda_build()
        number = self._torch.backends.cudnn.version()
        if not number:
            raise LookupError("torch finds no cuDNN")
        return cuda.cudnn_version(int(number))

    def nccl(self) -> str:
        """As torch itself was told by the library. Raises Missing, LookupError."""
        self.cuda_build()
        try:
            number = self._torch.cuda.nccl.version()
        except (AttributeError, RuntimeError) as problem:
            raise LookupError(f"this torch was built without NCCL: {problem}") from None
        return ".".join(str(one) for one in number) if isinstance(number, tuple) else cuda.nccl_version(int(number))
