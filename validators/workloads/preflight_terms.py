"""Words that preflight's workload uses: the GPUs that NVML tells of, where something ran, why something failed."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Dict, Mapping, Tuple

from validators.frameworks import said
from validators.frameworks.base import Device, Missing

# What a framework raises where a GPU fails it: torch's, JAX's and MXNet's own errors are RuntimeErrors, and the adapter
# of TensorFlow makes its errors such.
FAILURES = (RuntimeError, AssertionError, OSError, ValueError, ImportError, AttributeError, TypeError, Missing)


@dataclass(frozen=True)
class Expected:
    """The GPUs as NVML tells them: UUID -> compute capability ("" where not told), MIG device's UUID -> its GPU's."""

    gpus: Mapping[str, str] = field(default_factory=dict)
    instances: Mapping[str, str] = field(default_factory=dict)
    mig: bool = False

    def name(self, framework: str, device: Device) -> Tuple[str, Dict[str, str]]:
        """The subject of a device's measurements, and a label where it is a MIG device. Prefixes are NVML's own."""
        for instance, gpu in self.instances.items():
            if device.uuid and _digits(instance) == _digits(device.uuid):
                return gpu, {"instance": instance}
        for gpu in self.gpus:
            if _digits(gpu) == _digits(device.uuid):
                return gpu, {}
        return device.uuid or f"{framework}:{device.index}", {}


def _digits(uuid: str) -> str:
    return re.sub(r"^(MIG-GPU-|MIG-|GPU-)", "", uuid)


def expected(params: Mapping[str, Any]) -> Expected:
    """`gpus`: "UUID=9.0 UUID=", `instances`: "MIG-UUID=GPU-UUID", `mig`: whether it is on for any."""
    pairs = [
        dict(one.partition("=")[::2] for one in str(params.get(name, "")).split()) for name in ("gpus", "instances")
    ]
    return Expected(pairs[0], pairs[1], bool(params.get("mig")))


def placed(ran_on: str, device: Device) -> bool:
    """Whether the framework's word for a device means this one: "cuda:1", ".../device:GPU:1", "gpu(1)"."""
    number = re.search(r"(\d+)\D*$", ran_on)
    kind = any(word in ran_on.lower() for word in ("cuda", "gpu"))
    return kind and (number is None or int(number.group(1)) == device.index)


def because(problem: BaseException, *, log_first: bool = False) -> str:
    """The exception, and the lines of the framework's log that say why; a verdict shows the beginning."""
    log = said.why(said.text())
    told = tell(problem)
    if not log or log in told:
        return told
    return f"{log}; {told}" if log_first else f"{told}; its log: {log}"


def tell(problem: BaseException) -> str:
    """The exception in one line, without torch's paragraph about debugging flags."""
    if isinstance(problem, Missing):
        return str(problem)
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    kept = [line for line in lines if "CUDA_LAUNCH_BLOCKING" not in line and "TORCH_USE_CUDA_DSA" not in line]
    return f"{type(problem).__name__}: {' '.join(kept)}"
