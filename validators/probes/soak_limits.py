"""What a GPU must not reach under sustained load, by its own limits, and the counters that are read meanwhile."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Dict, List, Mapping, Optional, Tuple, Type, Union

from validators.probes import kernel_log, xid
from validators.probes.gpu_memory import UNCORRECTED, VOLATILE
from validators.probes.gpu_state import FIELD_MEMORY_TEMPERATURE
from validators.probes.load_trace import THERMAL, Readings
from validators.probes.nvml import Absent, Gpu, number
from validators.schema import UNKNOWN

COUNTERS = ("products_verified", "products_wrong", "memory_errors")
"""Running counts in a workload's samples."""
XIDS_EVERY_S = 60.0
"""Seconds between two readings of the kernel's log under load."""
SOURCES_APART_S = 1.0
"""How much later a line may stand in the journal than in the kernel's ring: it is not new where the source changes."""
XIDS_SHARE = 1 / 60
"""Of the time, at most, goes into them: a large journal may take seconds to read."""

SLOWDOWN, MEMORY_MAX = 1, 2
"""NVML_TEMPERATURE_THRESHOLD_SLOWDOWN, _MEM_MAX."""
CORRECTED = 0


def readings(gpu: Gpu) -> Readings:
    """The memory's temperature (degrees Celsius; absent where NVML gives 0), ECC errors since the driver was loaded,
    PCIe replays since the last reset.
    """
    memory: Union[int, float, Absent] = gpu.fields([(FIELD_MEMORY_TEMPERATURE, 0)])[FIELD_MEMORY_TEMPERATURE, 0]
    if memory == 0:
        memory = Absent(UNKNOWN, "NVML gives 0 degrees, which is no reading")
    return {
        "memory_temperature": memory,
        "ecc_corrected": number(gpu.get("GetTotalEccErrors", CORRECTED, VOLATILE)),
        "ecc_uncorrected": number(gpu.get("GetTotalEccErrors", UNCORRECTED, VOLATILE)),
        "pcie_replays": number(gpu.get("GetPcieReplayCounter")),
    }


@dataclass(frozen=True)
class Limits:
    """Temperatures in degrees Celsius, None where NVML names none; uncorrected ECC errors before the load."""

    slowdown: Optional[float]
    memory: Optional[float]
    ecc_uncorrected: Optional[float]

    def reached(self, numbers: Mapping[str, float]) -> str:
        """Why the load must end now, or nothing."""
        for name, limit, what in (
            ("temperature", self.slowdown, "the GPU"),
            ("memory_temperature", self.memory, "its memory"),
        ):
            if limit is not None and numbers.get(name, 0.0) >= limit:
                return f"thermal limit: {what} reached {numbers[name]:.0f} degrees Celsius, its limit is {limit:.0f}"
        errors = numbers.get("ecc_uncorrected", 0.0)
        if self.ecc_uncorrected is not None and errors > self.ecc_uncorrected:
            return f"ECC limit: {errors - self.ecc_uncorrected:.0f} errors were not corrected"
        return ""

    @staticmethod
    def hot(numbers: Mapping[str, float]) -> bool:
        """Whether a thermal slowdown is on."""
        return bool(int(numbers.get("reasons", 0)) & THERMAL)


def limits(gpu: Gpu) -> Limits:
    """This GPU's own limits."""

    def known(value: Union[int, float, Absent]) -> Optional[float]:
        return None if isinstance(value, Absent) or value <= 0 else float(value)

    errors = readings(gpu)["ecc_uncorrected"]
    return Limits(
        slowdown=known(number(gpu.get("GetTemperatureThreshold", SLOWDOWN))),
        memory=known(number(gpu.get("GetTemperatureThreshold", MEMORY_MAX))),
        ecc_uncorrected=None if isinstance(errors, Absent) else float(errors),
    )


class Xids:
    """The XIDs that came since this was made, for all GPUs of the host. Added up from one reading of the kernel's log
    to the next, since the log forgets.

    Within `with` a thread of its own reads it: a slow journal must not hold up those that watch the temperatures.
    """

    def __init__(self) -> None:
        self._lock, self._end = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._found: Dict[Tuple[str, int], xid.Event] = {}
        self._newest = -1.0
        self._begun = self._readable = False
        self._source = ""
        with suppress(kernel_log.LogUnreadable):
            log = kernel_log.read()
            self._newest, self._source = max((line.t_s for line in log.lines), default=-1.0), log.source
            self._begun = self._readable = True

    def __enter__(self) -> Xids:
        self._thread.start()
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], at: Optional[TracebackType]
    ) -> None:
        self._end.set()
        self._thread.join(timeout=kernel_log.COMMAND_TIMEOUT_S)

    def read(self) -> None:
        """Look for new ones now."""
        if not self._begun:  # which of them are new cannot be known
            return
        try:
            log = kernel_log.read()
        except kernel_log.LogUnreadable:
            self._readable = False
            return
        with self._lock:
            slack = 0.0 if log.source == self._source else SOURCES_APART_S
            new = [line for line in log.lines if line.t_s > self._newest + slack]
            self._source = log.source
            # Never back: several threads read, and one may come here with an older log than another's.
            self._newest = max([self._newest, *(line.t_s for line in log.lines)])
            for event in xid.xids(new):
                key = event.pci_address, event.number
                before = self._found[key].count if key in self._found else 0
                self._found[key] = replace(event, count=before + event.count)
            self._readable = True

    def of(self, address: Union[str, Absent]) -> Union[List[xid.Event], Absent]:
        """Those of one GPU, as of the last reading. None seen in a log that cannot be read is no answer."""
        if isinstance(address, Absent):
            return address
        with self._lock:
            own = [event for key, event in sorted(self._found.items()) if key[0].startswith(address[:-2])]
            return own if own or self._readable else Absent(UNKNOWN, "the kernel's log cannot be read")

    def count(self, address: Union[str, Absent]) -> Union[int, Absent]:
        """How many those are."""
        own = self.of(address)
        return own if isinstance(own, Absent) else sum(event.count for event in own)

    def _run(self) -> None:
        took = 0.0
        while not self._end.wait(max(XIDS_EVERY_S, took / XIDS_SHARE)):
            began = time.monotonic()
            self.read()
            took = time.monotonic() - began
