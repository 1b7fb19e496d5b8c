"""A GPU's present state: clocks and what holds them back, heat, power, modes, and who uses it."""

from __future__ import annotations

from typing import Any, Iterator, List, Tuple, Union

from validators.probes.nvml import (
    CORRUPTED_INFOROM,
    FUNCTION_NOT_FOUND,
    Absent,
    Found,
    Gpu,
    Reading,
    flag,
    number,
    part,
    text,
)
from validators.schema import UNKNOWN

GRAPHICS, SM, MEMORY = 0, 1, 2
"""NVML_CLOCK_*."""

FIELD_MEMORY_TEMPERATURE = 82

REASONS: Tuple[Tuple[int, str, bool], ...] = (
    (0x1, "idle", False),
    (0x2, "application clocks", False),
    (0x4, "software power cap", False),
    (0x8, "hardware slowdown", True),
    (0x10, "sync boost", False),
    (0x20, "software thermal slowdown", True),
    (0x40, "hardware thermal slowdown", True),
    (0x80, "hardware power brake", True),
    (0x100, "display clocks", False),
)
"""(bit, name, is it a fault): nvmlClocksEventReason* of nvml.h. A power cap under load is how cards work."""

COMPUTE_MODES = {0: "default", 1: "exclusive thread", 2: "prohibited", 3: "exclusive process"}

MAX_NAMED_PROCESSES = 16


def read(gpu: Gpu) -> Iterator[Found]:
    """Every metric of gpu_health about the present state."""
    yield from _throttle(gpu)
    yield from _heat(gpu)
    yield from _power(gpu)
    yield from _clocks(gpu)
    yield from _modes(gpu)
    yield from _users(gpu)


def _throttle(gpu: Gpu) -> Iterator[Found]:
    mask = gpu.get("GetCurrentClocksEventReasons")
    if isinstance(mask, Absent) and mask.code == FUNCTION_NOT_FOUND:
        mask = gpu.get("GetCurrentClocksThrottleReasons")  # its name before driver 535
    yield Found("throttle_reasons", mask if isinstance(mask, Absent) else reasons(mask, False))
    yield Found("throttle_faults", mask if isinstance(mask, Absent) else reasons(mask, True))
    for metric, policy in (("thermal_violation_time", 1), ("power_violation_time", 0)):
        spent = gpu.get("GetViolationStatus", policy)
        yield Found(metric, number(part(spent, "violationTime"), 10**9))  # nanoseconds


def reasons(mask: int, faults_only: bool) -> str:
    """The names of the bits that are set, comma-separated; "none" where there are none."""
    named = [name for bit, name, fault in REASONS if mask & bit and (fault or not faults_only)]
    other = mask & ~sum(bit for bit, _, _ in REASONS)
    if other and not faults_only:
        named.append(f"unnamed {other:#x}")
    return ", ".join(named) or "none"


def _heat(gpu: Gpu) -> Iterator[Found]:
    now = gpu.get("GetTemperature", 0)
    limits = {
        name: number(gpu.get("GetTemperatureThreshold", which))
        for which, name in ((0, "shutdown"), (1, "slowdown"), (2, "memory_max"), (3, "operating_max"))
    }
    yield Found("temperature", number(now))
    yield Found("temperature_shutdown", limits["shutdown"])
    yield Found("temperature_slowdown", limits["slowdown"])
    yield Found("temperature_operating_max", limits["operating_max"])
    yield Found("temperature_margin", *_margin(gpu, now, limits["operating_max"], limits["slowdown"]))
    memory = gpu.fields([(FIELD_MEMORY_TEMPERATURE, 0)])[FIELD_MEMORY_TEMPERATURE, 0]
    if memory == 0:
        memory = Absent(UNKNOWN, "NVML gives 0 degrees, which is no reading")
    yield Found("memory_temperature", memory)
    yield Found("memory_temperature_margin", _minus(limits["memory_max"], memory))


def _margin(gpu: Gpu, now: Any, *limits: Reading) -> Tuple[Reading, Any]:
    """Degrees left to the lowest limit that NVML names, with the label that says which way it was found."""
    margins: List[Tuple[Union[int, float], str]] = []
    own = gpu.get("GetMarginTemperature")
    if not isinstance(own, Absent):
        margins.append((int(own), "nvml"))
    for limit in limits:
        left = _minus(limit, now)
        if not isinstance(left, Absent):
            margins.append((left, "threshold"))
    if not margins:
        return (now if isinstance(now, Absent) else own), {}
    least, how = min(margins)
    return least, {"from": how}


def _minus(limit: Any, now: Any) -> Union[int, float, Absent]:
    if isinstance(limit, Absent):
        return limit
    return now if isinstance(now, Absent) else limit - now


def _power(gpu: Gpu) -> Iterator[Found]:
    limit, default = gpu.get("GetEnforcedPowerLimit"), gpu.get("GetPowerManagementDefaultLimit")
    yield Found("power", number(gpu.get("GetPowerUsage"), 1000))  # milliwatts
    labels = {} if isinstance(default, Absent) else {"default": f"{default / 1000:g}"}
    yield Found("power_limit", number(limit, 1000), labels)
    yield Found("power_limit_fraction", _ratio(limit, default))


def _clocks(gpu: Gpu) -> Iterator[Found]:
    yield Found("sm_clock", number(gpu.get("GetClockInfo", SM)))
    yield Found("memory_clock", number(gpu.get("GetClockInfo", MEMORY)))
    set_to, default = gpu.get("GetApplicationsClock", GRAPHICS), gpu.get("GetDefaultApplicationsClock", GRAPHICS)
    yield Found("application_clock_fraction", _ratio(set_to, default))
    yield Found("performance_state", number(gpu.get("GetPerformanceState")))


def _ratio(value: Any, of: Any) -> Union[float, Absent]:
    for one in (value, of):
        if isinstance(one, Absent):
            return one
    return value / of if of else Absent(UNKNOWN, "NVML gives 0 as the default")


def _modes(gpu: Gpu) -> Iterator[Found]:
    yield Found("persistence_mode", flag(gpu.get("GetPersistenceMode")))
    mode = gpu.get("GetComputeMode")
    yield Found("compute_mode", mode if isinstance(mode, Absent) else COMPUTE_MODES.get(mode, f"mode {mode}"))
    mig = gpu.get("GetMigMode")
    yield Found("mig_enabled", flag(part(mig, 0)))
    yield Found("mig_change_pending", mig if isinstance(mig, Absent) else mig[0] != mig[1])
    valid = gpu.get("ValidateInforom")
    corrupted = isinstance(valid, Absent) and valid.code == CORRUPTED_INFOROM
    yield Found("inforom_valid", not corrupted if corrupted or not isinstance(valid, Absent) else valid)


def _users(gpu: Gpu) -> Iterator[Found]:
    load = gpu.get("GetUtilizationRates")
    yield Found("utilisation", number(part(load, "gpu")))
    processes = gpu.get("GetComputeRunningProcesses")
    if isinstance(processes, Absent):
        yield Found("compute_processes", processes)
        return
    named = []
    for process in processes[:MAX_NAMED_PROCESSES]:
        name = text(gpu.nvml.call("nvmlSystemGetProcessName", int(process.pid)))
        named.append(f"{process.pid} {'?' if isinstance(name, Absent) else name[:120]}")
    yield Found("compute_processes", len(processes), {}, "; ".join(named))
