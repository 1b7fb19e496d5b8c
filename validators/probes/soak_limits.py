"""What a GPU must not reach under sustained load, by its own limits, and the counters that are read meanwhile."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Mapping, Optional, Union

from validators.probes.gpu_memory import UNCORRECTED, VOLATILE
from validators.probes.gpu_state import FIELD_MEMORY_TEMPERATURE
from validators.probes.load_trace import THERMAL, Readings
from validators.probes.nvml import Absent, Gpu, number

COUNTERS = ("products_verified", "products_wrong", "memory_errors")
"""Running counts in a workload's samples."""

SLOWDOWN, MEMORY_MAX = 1, 2
"""NVML_TEMPERATURE_THRESHOLD_SLOWDOWN, _MEM_MAX."""
CORRECTED = 0


def readings(gpu: Gpu) -> Readings:
    """The memory's temperature (degrees Celsius; absent where NVML gives 0), ECC errors since the driver was loaded,
    PCIe replays since the last reset.
    """
    memory: Union[int, float, Absent] = gpu.fields([(FIELD_MEMORY_TEMPERATURE, 0)])[FIELD_MEMORY_TEMPERATURE, 0]
    if memory == 0:
        memory = Absent("unknown", "NVML gives 0 degrees, which is no reading")
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
