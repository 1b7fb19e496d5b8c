"""What a framework's adapter must do, and what holds for all: the known product, and which cards a build serves.

An adapter imports its framework only when it is made, by name: this package's modules may be called like it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import List, Optional, Protocol, Sequence, Tuple

LEFT = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]
RIGHT = [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]
PRODUCT = [[22.0, 28.0], [49.0, 64.0]]
"""LEFT @ RIGHT. Small whole numbers: exact in every floating-point format from bfloat16 up."""


SIDE, COUNT, FILTERS_COUNT = 8, 16, 2
STEPS, RATE = 12, 0.03
"""Steps of plain gradient descent. The loss falls from 0.0567 to 0.0262, with each step, in every framework alike."""
IMAGES = [
    [[[((n * 7 + row * 3 + column * 5 + n * row) % 11) / 11 for column in range(SIDE)] for row in range(SIDE)]]
    for n in range(COUNT)
]
"""COUNT images: n x 1 x row x column."""
TARGETS = [[sum(row[column] for row in one[0] for column in range(4)) / 16 - 1] for one in IMAGES]
"""What is to be learnt, n x 1: how bright the left half is."""
FILTERS = [[[[((f * 5 + r * 3 + c) % 7 - 2) / 10 for c in range(3)] for r in range(3)]] for f in range(FILTERS_COUNT)]
"""A convolution of 3 x 3, at the start: filter x 1 x row x column."""
WEIGHTS = [[((k * 5) % 9 - 4) / 40] for k in range(FILTERS_COUNT * (SIDE - 2) ** 2)]
"""The layer behind it, at the start. No random numbers: every framework begins at the same loss."""


class Missing(Exception):
    """The framework has no such figure; the text says why (a CPU-only build, no list in the wheel)."""


@dataclass(frozen=True)
class Device:
    """A GPU as the framework sees it. `uuid` as NVML writes it; `capability` such as (9, 0), None where not told."""

    index: int
    uuid: str
    capability: Optional[Tuple[int, int]]


@dataclass(frozen=True)
class Product:
    """What came of LEFT @ RIGHT, and the framework's own word for where it was computed."""

    values: List[List[float]]
    ran_on: str


class Framework(Protocol):
    """An adapter. Every method may raise what its framework raises; the texts are kept for the report."""

    def version(self) -> str:
        """The framework's version."""

    def cuda_build(self) -> str:
        """The CUDA version it was built for, "13.0". Raises Missing for a build without CUDA."""

    def architectures(self) -> List[str]:
        """What machine code it carries: "sm_90", "compute_90". Raises Missing where it doesn't say."""

    def devices(self) -> List[Device]:
        """The GPUs it can use. Raises RuntimeError with the framework's reason where there are none."""

    def create_context(self, device: Device) -> None:
        """Put something on the GPU and wait for it."""

    def multiply(self, device: Optional[Device]) -> Product:
        """LEFT @ RIGHT on a GPU, or on the CPU for None."""

    def train(self, device: Optional[Device]) -> List[float]:
        """STEPS steps of gradient descent on a convolution and a layer: the loss before each. On the CPU for None."""

    def cudnn(self) -> str:
        """cuDNN's version as it was loaded. Raises Missing for a build without CUDA, LookupError where not told."""

    def nccl(self) -> str:
        """NCCL's version. Raises Missing and LookupError as `cudnn` does."""


def serves(capability: Tuple[int, int], architectures: Sequence[str]) -> Tuple[bool, str]:
    """Whether a build's machine code runs on a card, and by which entry.

    Machine code (sm_XY) runs on the same major and the same or a higher minor; with the suffix "a" on that
    capability only, with "f" as without. PTX (compute_XY) is compiled on the spot for the same capability or
    a higher one. Source: CUDA C++ Programming Guide, "Compute capabilities: binary and PTX compatibility".
    """
    major, minor = capability
    by_ptx = ""
    for name in architectures:
        match = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", name.strip())
        if not match:
            continue
        kind, has = match.group(1), (int(match.group(2)), int(match.group(3)))
        if match.group(4) == "a" and has != (major, minor):
            continue
        if kind == "sm" and has[0] == major and has[1] <= minor:
            return True, name
        if kind == "compute" and has <= (major, minor):
            by_ptx = name
    return (True, f"{by_ptx} (PTX, compiled on first use)") if by_ptx else (False, "")
