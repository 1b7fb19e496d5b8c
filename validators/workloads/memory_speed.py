"""How fast memory is: on the device (copy, read, write) and over the link to the host.

Rates are 10**9 bytes a second. A copy counts each byte twice, read and written, as NVIDIA's figures of memory bandwidth
do. Times are taken by events in the stream of work, of single operations.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from dataclasses import dataclass, field
from typing import Callable, Iterator, List

import torch
from torch import Tensor

from validators.workloads.products import Stopwatch

MOST_BYTES = 8 * 2**30
"""Of one operand on the device; more would only take longer."""
PINNED_BYTES = 256 * 2**20
"""Of the host's pinned buffer: about 5 ms over 16 lanes of generation 5, a thousand times the launch."""
PAGEABLE_BYTES = 64 * 2**20
LEAST, MOST = 5, 200
"""Operations timed for one figure."""
OPERATION_S = 0.1
"""Transfers are made smaller where one would take longer."""
PART_WORDS = 2**20
ODD = 0x1E3779B97F4A7C15
"""An odd factor: words stay different from each other, modulo 2**64."""
TURN_S = 60.0
"""So long a GPU waits until the others' transfers are over."""


@dataclass
class Speed:
    """Rates of single operations in GB/s, and the bytes that each moved."""

    rates: List[float] = field(default_factory=list)
    moved: int = 0

    def quantile(self, share: float) -> float:
        """0.5 for the median."""
        ordered = sorted(self.rates)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    @property
    def spread(self) -> float:
        """90th less 10th percentile, by the median."""
        return (self.quantile(0.9) - self.quantile(0.1)) / self.quantile(0.5)


def timed(device: torch.device, work: Callable[[], object], moved: int, seconds: float) -> Speed:
    """Time `work` alone, again and again for about `seconds`; it moves `moved` bytes."""
    once = 0.0
    for _ in range(2):  # the first call loads the kernel, or wakes the link
        once = _times(device, work, 1)[0]
    repeats = max(LEAST, min(MOST, int(seconds / max(once, 1e-6))))
    return Speed([moved / max(one, 1e-9) / 1e9 for one in _times(device, work, repeats)], moved)


def _times(device: torch.device, work: Callable[[], object], repeats: int) -> List[float]:
    watch = Stopwatch(device)
    watch.mark()
    for _ in range(repeats):
        work()
        watch.mark()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return [watch.between(number, number + 1) for number in range(repeats)]


def device_copy(buffer: Tensor, seconds: float) -> Speed:
    """A plain copy of one half of the buffer (at most MOST_BYTES) onto the other."""
    size = min(len(buffer) // 2, MOST_BYTES // buffer.element_size())
    source, target = buffer[:size], buffer[len(buffer) - size :]
    return timed(buffer.device, lambda: target.copy_(source), 2 * size * buffer.element_size(), seconds)


def device_read(buffer: Tensor, seconds: float) -> Speed:
    """The sum of int64 words, modulo 2**64; one word is written."""
    part = buffer[: MOST_BYTES // buffer.element_size()]
    total = torch.zeros((), dtype=part.dtype, device=part.device)
    return timed(buffer.device, lambda: torch.sum(part, dim=0, out=total), part.numel() * part.element_size(), seconds)


def device_write(buffer: Tensor, seconds: float) -> Speed:
    """Filling with one value."""
    part = buffer[: MOST_BYTES // buffer.element_size()]
    return timed(buffer.device, lambda: part.fill_(-1), part.numel() * part.element_size(), seconds)


@dataclass
class Transfers:
    """Pinned both ways, pageable to the device, and words that came back wrong."""

    to_device: Speed
    to_host: Speed
    pageable: Speed
    wrong: int


def transfers(buffer: Tensor, seconds: float, pinned_bytes: int = PINNED_BYTES) -> Transfers:
    """Copy the buffer's front to the host and back to its rear, timed, and compare the two on the device.

    `buffer`: int64 on a GPU; front and rear are overwritten. Raises RuntimeError where the host gives no pinned memory.
    """
    words = max(1, min(pinned_bytes, host_bytes() // 16) // buffer.element_size())
    words = min(words, len(buffer) // 2)
    host = pinned(words, buffer.dtype)
    words = min(words, patient_words(buffer, host))
    host = host[:words]
    front, rear = buffer[:words], buffer[len(buffer) - words :]
    moved = words * buffer.element_size()
    torch.arange(words, out=front).mul_(ODD)  # no two words the same
    rear.zero_()
    to_host = timed(buffer.device, lambda: host.copy_(front, non_blocking=True), moved, seconds)
    to_device = timed(buffer.device, lambda: rear.copy_(host, non_blocking=True), moved, seconds)
    wrong = 0
    for start in range(0, words, PART_WORDS):  # in parts: there is little room left on the device
        part = slice(start, start + PART_WORDS)
        wrong += int(torch.ne(front[part], rear[part]).sum())
    some = torch.ones(min(words, PAGEABLE_BYTES // buffer.element_size()), dtype=buffer.dtype)
    into = rear[: len(some)]
    pageable = timed(buffer.device, lambda: into.copy_(some), len(some) * buffer.element_size(), seconds / 4)
    return Transfers(to_device, to_host, pageable, wrong)


def pinned(words: int, dtype: torch.dtype) -> Tensor:
    """Memory of the host that the device reads and writes by itself."""
    return torch.empty(words, dtype=dtype, pin_memory=True)


def patient_words(buffer: Tensor, host: Tensor) -> int:
    """Words that cross the link in OPERATION_S, by a copy of 4 MiB."""
    probe = min(len(host), 2**19)
    once = 0.0
    for _ in range(2):
        once = _times(buffer.device, lambda: host[:probe].copy_(buffer[:probe], non_blocking=True), 1)[0]
    return max(probe, int(probe * OPERATION_S / max(once, 1e-6)))


def host_bytes() -> int:
    """Memory of the host that can be had, its cache of files included."""
    with contextlib.suppress(OSError), open("/proc/meminfo", encoding="ascii") as lines:
        for line in lines:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def turn(path: str, wait_s: float = TURN_S) -> Iterator[bool]:
    """Hold the lock on the file `path`: GPUs share the host's memory, and transfer one after the other.

    Gives False where there is no such file, or another holds it for longer than `wait_s`. A holder that dies lets go.
    """
    try:
        lock = os.open(path, os.O_RDWR) if path else -1
    except OSError:
        lock = -1
    if lock < 0:
        yield False
        return
    try:
        yield _locked(lock, time.monotonic() + wait_s)
    finally:
        os.close(lock)


def _locked(lock: int, end: float) -> bool:
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if time.monotonic() > end:
                return False
            time.sleep(0.02)
        else:
            return True
