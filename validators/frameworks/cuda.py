"""The CUDA driver library by itself: whether it starts, and which GPU is which, for frameworks that don't tell."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from typing import List, Optional, Tuple

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
    # The second version names the MIG instance where MIG is on; the first, until CUDA 11.3 the only one, its card.
    ask = getattr(library, "cuDeviceGetUuid_v2", None) or library.cuDeviceGetUuid
    failed = ask(ctypes.byref(data), device)
    digits = bytes(data).hex()
    uuid = f"GPU-{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
    numbers = []
    for attribute in (75, 76):  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
        number = ctypes.c_int()
        if library.cuDeviceGetAttribute(ctypes.byref(number), ctypes.c_int(attribute), device):
            return ("" if failed else uuid), None
        numbers.append(number.value)
    return ("" if failed else uuid), (numbers[0], numbers[1])


def cudnn_version(number: int) -> str:
    """cudnnGetVersion's number as people write it: 91002 is "9.10.2", 8907 was "8.9.7"."""
    major, minor = divmod(number, 10000 if number >= 90000 else 1000)
    return f"{major}.{minor // 100}.{minor % 100}"


def nccl_version(number: int) -> str:
    """ncclGetVersion's number as people write it: 22705 is "2.27.5"; before 2.9 2804 was "2.8.4"."""
    major, minor = divmod(number, 10000 if number >= 10000 else 1000)
    return f"{major}.{minor // 100}.{minor % 100}"


def loaded_cudnn() -> str:
    """The version of the cuDNN that this process has loaded, else of the one it would. Raises LookupError."""
    library = _library("libcudnn.so")
    function = library.cudnnGetVersion
    function.restype = ctypes.c_size_t
    return cudnn_version(int(function()))


def loaded_nccl() -> str:
    """The version of the NCCL that this process has loaded, else of the one it would. Raises LookupError."""
    library, number = _library("libnccl.so"), ctypes.c_int()
    if library.ncclGetVersion(ctypes.byref(number)):
        raise LookupError("NCCL does not tell its version")
    return nccl_version(number.value)


def _library(name: str) -> ctypes.CDLL:
    wheels = [
        str(one) for folder in sys.path if folder for one in sorted(Path(folder).glob(f"nvidia/*/lib/{name}.*"))[:4]
    ]
    for path in [*_mapped(name), *wheels, *(f"{name}.{major}" for major in (9, 8, 2))]:
        try:
            return ctypes.CDLL(path)
        except OSError:
            continue
    raise LookupError(f"{name} is neither loaded nor found in the Python's packages or by the dynamic linker")


def _mapped(name: str) -> List[str]:
    """Libraries of this process, by its memory map."""
    try:
        lines = Path("/proc/self/maps").read_text(errors="replace").splitlines()
    except OSError:
        return []
    paths = dict.fromkeys(line[line.index("/") :] for line in lines if "/" in line)
    return [path for path in paths if path.rpartition("/")[2].startswith(name)]
