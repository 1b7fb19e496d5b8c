"""What a framework said on stderr while it worked: the reasons for a silent fallback to the CPU are there only.

C++ libraries write to descriptor 2 itself, so that is where it is taken: the check makes a file in memory, the
workload points its descriptor 2 there. What a process said before it crashed is then still the check's to read.
"""

from __future__ import annotations

import fcntl
import os
import re
import sys
from typing import List

LIMIT_BYTES = 16 << 20
"""The file's size, fixed by a seal: a framework that says more gets an error of write(2) for the rest."""
READ_BYTES = 1 << 20
SHOWN_BYTES = 16 << 10
"""What the check passes on of it to its own stderr, for a person to read."""
MAX_LINE = 300
MAX_WHY = 900

_SEALS, _SHRINK, _GROW = 1033, 0x2, 0x4  # F_ADD_SEALS, F_SEAL_SHRINK, F_SEAL_GROW of fcntl(2); names since Python 3.10

SIGNS = (
    r"Could not load dynamic library '(?!libnvinfer)",  # TensorFlow 2.21, with dso_loader at level 1
    r"Unable to load \S+. Is it installed",  # JAX's CUDA plugin 0.10
    r"Outdated \S+ installation found",  # the same
    r"is not compatible with the current PyTorch",  # torch, a UserWarning
    r"which is of (?:cuda|compute) capability",  # torch, another one
    r"was not built with CUDA kernel binaries compatible",  # TensorFlow
    r"Ignoring visible gpu device",  # TensorFlow: too few multiprocessors, or too old
    r"requires compute capability",
    r"no kernel image is available",
    r"cannot open shared object",
    r"undefined symbol",
    r"busy or unavailable|CUDA_ERROR_\w+|CUDNN_STATUS_\w+|CUBLAS_STATUS_\w+",
    r"[Ff]ailed call to cuInit",  # TensorFlow, with the driver's answer
    r"driver on your system is too old",  # torch
    r"CUDA initialization:|Can't initialize NVML",  # torch
    r"backend failed to initialize|Unable to initialize backend",  # JAX
    r"Jax plugin configuration error",
    r"does not match DSO version|kernel driver does not appear",  # TensorFlow
    r"Could not find cuda drivers",  # TensorFlow
    r"Cannot dlopen some GPU libraries",  # TensorFlow
    r"may be present on this machine",  # JAX without its CUDA plugin
    r"GPU support is disabled",  # MXNet built without CUDA
    r"out of memory",
)
"""What says why there is no GPU, the most telling first; the versions are those whose words were looked at."""

_PREFIX = re.compile(r"^(?:[IWEF]\d{4} [\d:.]+ +\d+ |\d{4}-\d\d-\d\d [\d:.]+ [IWEF] )\S+:\d+\] ?|^\[[\d:]+\] \S+:\d+: ")
"""Of absl's log, of TensorFlow's before it, of MXNet's."""


def make() -> int:
    """A file in memory for a process's stderr, of a size that cannot grow; -1 where the system has none."""
    try:
        fd = os.memfd_create("stderr", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, LIMIT_BYTES)
        fcntl.fcntl(fd, _SEALS, _SHRINK | _GROW)
    except (AttributeError, OSError):  # a Python built without it, an old kernel: then the notes say less
        return -1
    return fd


def take(path: str) -> bool:
    """Point this process's stderr, its libraries' too, to the file. False where it cannot be opened."""
    try:
        fd = os.open(path, os.O_RDWR)
    except OSError:
        return False
    os.dup2(fd, 2)
    os.close(fd)
    return True


def text(fd: int = 2) -> str:
    """What was said until now, the last MiB of it; empty where descriptor 2 is no such file."""
    try:
        if fd == 2:
            sys.stderr.flush()
        end = _end(fd)
        start = max(0, end - READ_BYTES)
        return os.pread(fd, end - start, start).decode("utf-8", "replace")
    except (OSError, ValueError):  # a pipe, or a stderr that was closed
        return ""


def _end(fd: int) -> int:
    """Where the text ends: the file is of one size from the start, zeros behind the text. Text has no zeros in it."""
    low, high = 0, LIMIT_BYTES
    while low < high:
        middle = (low + high) // 2
        if os.pread(fd, 1, middle) in (b"", b"\0"):
            high = middle
        else:
            low = middle + 1
    return low


def why(words: str) -> str:
    """The lines that tell why a GPU is not used, the most telling first, in one bounded line; empty where none does."""
    lines = dict.fromkeys(clean(one) for one in words.splitlines())
    found: List[str] = []
    for sign in SIGNS:
        found += [one for one in lines if re.search(sign, one) and one not in found]
    kept = ""
    for one in found:
        if len(kept) + len(one) + 3 > MAX_WHY:
            break
        kept += (" | " if kept else "") + one
    return kept


def clean(line: str) -> str:
    """A line without its log prefix and without control characters, bounded."""
    plain = "".join(one if one.isprintable() else " " for one in line[: 4 * MAX_LINE])
    return _PREFIX.sub("", plain.strip())[:MAX_LINE].strip()
