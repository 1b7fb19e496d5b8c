"""PyTorch's adapter."""

from __future__ import annotations

import importlib
from typing import Any, List, Optional

from validators.frameworks import cuda
from validators.frameworks.base import LEFT, RIGHT, Device, Missing, Product


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
        """The GPUs that torch can use; RuntimeError or AssertionError with torch's reason where it can't."""
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
