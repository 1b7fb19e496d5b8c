"""The CUDA driver library by itself: whether it starts, and which GPU is which, for frameworks that don't tell."""

from __future__ import annotations

import ctypes
from typing import Optional, Tuple

_NAMES = {
    0: "CUDA_SUCCESS",
    2: "CUDA_ERROR_OUT_OF_MEMORY",
    3: "CUDA_ERROR_NOT_INITIALIZED",
    34: "CUDA_ERROR_STUB_LIBRARY",
    46: "CUDA_ERROR_DEVICE_UNAVAILABLE",
    100: "CUDA_ERROR_NO_DEVICE",
    101: "CUDA_ERROR_INVALID_DEVICE",
    304: "CUDA_ERROR_OPERATING_SYSTEM",
    801: "CUDA_ERROR_NOT_SUPPORTED",
    802: "CUDA_ERROR_SYSTEM_NOT_READY",
    803: "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH",
    804: "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE",
    999: "CUDA_ERROR_UNKNOWN",
}
"""Results of cuInit as cuda.h names them (CUDA Driver API, "Data types used by CUDA driver")."""


def initialise() -> Tuple[Optional[ctypes.CDLL], str]:
    """The library after cuInit, and "CUDA_SUCCESS"; or None and what cuInit or the dynamic linker said."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError as problem:
        return None, str(problem)
    result = library.cuInit(0)
    name = _NAMES.get(result, f"CUDA error {result}")
    return (library, name) if result == 0 else (None, f"{name} ({result})")


def describe(library: ctypes.CDLL, index: int) -> Tuple[str, Optional[Tuple[int, int]]]:
    """UUID (as NVML writes it) and compute capability of the library's n-th device; empty and None where not told."""
    device = ctypes.c_int()
    if library.cuDeviceGet(ctypes.byref(device), ctypes.c_int(index)):
        return "", None
    data = (ctypes.c_ubyte * 16)()
    failed = library.cuDeviceGetUuid(ctypes.byref(data), device)
    digits = bytes(data).hex()
    uuid = f"GPU-{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
    numbers = []
    for attribute in (75, 76):  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
        number = ctypes.c_int()
        if library.cuDeviceGetAttribute(ctypes.byref(number), ctypes.c_int(attribute), device):
            return ("" if failed else uuid), None
        numbers.append(number.value)
    return ("" if failed else uuid), (numbers[0], numbers[1])
