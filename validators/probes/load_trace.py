"""What a GPU does while a load runs on it: clock, power, temperature, utilisation, read beside the load."""

from __future__ import annotations

import statistics
import threading
import time
from dataclasses import dataclass, field
from typing import Callable, Dict, List, Mapping, Optional, Tuple, Union

from validators.probes.gpu_state import reasons
from validators.probes.nvml import FUNCTION_NOT_FOUND, Absent, Gpu, number, part
from validators.schema import UNKNOWN

SM_CLOCK = 1
"""NVML_CLOCK_SM."""
THERMAL = 0x20 | 0x40
"""Software and hardware thermal slowdown."""
BRAKED = 0x8 | 0x80
"""Hardware slowdown, hardware power brake."""
POWER = 0x4
"""Software power cap: how cards work under load."""
LOADED_PERCENT = 90.0
"""Utilisation from which on a sample counts as taken under load."""
KEPT = 4096
"""Values of a series that are kept; a load of days has more, and every other one is then dropped."""
UNHINDERED = "unhindered_sm_clock"
"""The series of clocks that were read while neither heat, nor a brake, nor the power limit held the clock back."""

Readings = Mapping[str, Union[int, float, Absent]]
"""What was read at one moment, by name."""


@dataclass
class Series:
    """Values in the order in which they came: every `every`-th of `seen`, at most KEPT; and the highest of all."""

    values: List[float] = field(default_factory=list)
    every: int = 1
    seen: int = 0
    top: float = float("-inf")

    def add(self, value: float) -> None:
        """Take one."""
        if self.seen % self.every == 0:
            self.values.append(value)
        self.seen += 1
        self.top = max(self.top, value)
        if len(self.values) >= KEPT:
            del self.values[1::2]
            self.every *= 2


@dataclass
class Trace:
    """What was read under load. `absent`: why a series has no values."""

    series: Dict[str, Series] = field(default_factory=dict)
    absent: Dict[str, Absent] = field(default_factory=dict)
    mask: int = 0

    def add(self, values: Readings) -> Dict[str, float]:
        """Take one reading; gives the numbers in it. Idle moments, between two formats, are not under load."""
        numbers = {name: float(value) for name, value in values.items() if not isinstance(value, Absent)}
        for name, value in values.items():
            if isinstance(value, Absent):
                self.absent.setdefault(name, value)
        if numbers.get("utilisation", 100.0) >= LOADED_PERCENT:
            for name, value in numbers.items():
                self.series.setdefault(name, Series()).add(value)
            self.mask |= int(numbers.get("reasons", 0))
            if {"reasons", "sm_clock"} <= set(numbers) and not int(numbers["reasons"]) & (THERMAL | BRAKED | POWER):
                self.series.setdefault(UNHINDERED, Series()).add(numbers["sm_clock"])
        return numbers

    def median(self, name: str) -> Union[float, Absent]:
        """The middle value under load, or why there is none."""
        found = self.series.get(name)
        return statistics.median(found.values) if found else self.missing(name)

    def highest(self, name: str) -> Union[float, Absent]:
        """The highest value under load, or why there is none."""
        found = self.series.get(name)
        return found.top if found else self.missing(name)

    def share(self, name: str, of: str) -> float:
        """How many values a series has by those of another; 0 where that has none."""
        counts = [self.series[one].seen if one in self.series else 0 for one in (name, of)]
        return counts[0] / counts[1] if counts[1] else 0.0

    def missing(self, name: str) -> Absent:
        """Why a series is empty."""
        return self.absent.get(name, Absent(UNKNOWN, "no reading was taken under load"))

    def throttled(self, bits: int) -> Union[bool, Absent]:
        """Whether one of these reasons held the clock back under load."""
        return bool(self.mask & bits) if "reasons" in self.series else self.missing("reasons")

    def reasons(self) -> Union[str, Absent]:
        """All reasons seen under load, by name."""
        return reasons(self.mask, False) if "reasons" in self.series else self.missing("reasons")


def reading(gpu: Gpu) -> Dict[str, Union[int, float, Absent]]:
    """One reading: MHz, W, degrees Celsius, percent, NVML's reasons mask, PCIe generation and width."""
    mask = gpu.get("GetCurrentClocksEventReasons")
    if isinstance(mask, Absent) and mask.code == FUNCTION_NOT_FOUND:
        mask = gpu.get("GetCurrentClocksThrottleReasons")  # its name before driver 535
    return {
        "sm_clock": number(gpu.get("GetClockInfo", SM_CLOCK)),
        "power": number(gpu.get("GetPowerUsage"), 1000),
        "temperature": number(gpu.get("GetTemperature", 0)),
        "utilisation": number(part(gpu.get("GetUtilizationRates"), "gpu")),
        "reasons": number(mask),
        "pcie_generation": number(gpu.get("GetCurrPcieLinkGeneration")),
        "pcie_width": number(gpu.get("GetCurrPcieLinkWidth")),
    }


TRACED = ("sm_clock", "power", "temperature", "utilisation", "reasons")
"""What goes into every sample, beside what a check reads in addition."""
SENT_AS = {"reasons": "throttle_reasons"}
"""Names that differ in a sample. The reasons: NVML's bit mask as a number; gpu_state.REASONS names its bits."""


class Sampler:
    """Reads a GPU every `period_s` seconds in a thread, from `start` to `stop`. NVML stays open for as long.

    `sample` is given a reading at most every `apart_s` seconds: a day's trace must fit into a report. `look` sees every
    one, as it comes, an empty one where nothing could be read. `more` reads what else a check wants of the GPU.
    """

    def __init__(
        self,
        gpu: Gpu,
        sample: Callable[[float, Mapping[str, float]], None],
        *,
        period_s: float = 0.25,
        apart_s: float = 0.0,
        more: Callable[[Gpu], Readings] = lambda _gpu: {},
        look: Callable[[float, Mapping[str, float]], None] = lambda _t_s, _numbers: None,
    ) -> None:
        self._gpu, self._sample, self._period_s, self._apart_s = gpu, sample, period_s, apart_s
        self._more, self._look = more, look
        self._end = threading.Event()
        self._thread: Optional[threading.Thread] = None
        self.trace = Trace()

    def start(self) -> None:
        """The load begins now; a second start is nothing."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()

    def stop(self) -> Trace:
        """The load has ended."""
        self._end.set()
        if self._thread is not None:
            self._thread.join(timeout=10.0)
        return self.trace

    def _run(self) -> None:
        began, due = time.monotonic(), 0.0
        while not self._end.is_set():
            t_s = time.monotonic() - began
            further, numbers = self._read()
            values = {SENT_AS.get(name, name): numbers[name] for name in (*TRACED, *further) if name in numbers}
            if values and t_s >= due:
                self._sample(t_s, values)
                due = t_s + self._apart_s
            self._look(t_s, numbers)
            self._end.wait(self._period_s)

    def _read(self) -> Tuple[Readings, Dict[str, float]]:
        """One reading. What the binding cannot make sense of (a GPU that falls off) must not end the watch."""
        try:
            further = self._more(self._gpu)
            return further, self.trace.add({**reading(self._gpu), **further})
        except Exception as problem:  # noqa: BLE001 - a thread's boundary: noted, and the next reading is tried
            text = f"NVML could not be read: {type(problem).__name__}: {problem}"
            self.trace.add({name: Absent(UNKNOWN, text[:500]) for name in (*TRACED, "pcie_generation")})
            return {}, {}
