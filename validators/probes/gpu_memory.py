"""A GPU's memory: ECC errors, rows remapped, pages retired, repairs that wait, and what the driver asks for next."""

from __future__ import annotations

from typing import Any, Iterator, List, Union

from validators.probes.nvml import Absent, Found, Gpu, Reading, flag, number, part
from validators.schema import NOT_APPLICABLE

CORRECTED, UNCORRECTED = 0, 1
VOLATILE, AGGREGATE = 0, 1
"""Since the driver was loaded, and over the card's life."""

FIELD_RECOVERY_ACTION = 230

RECOVERY_ACTIONS = (
    "none",
    "gpu reset",
    "node reboot",
    "drain p2p",
    "drain and reset",
    "recover imex domain",
    "bus reset",
    "system reboot",
)
"""By the value of NVML_FI_DEV_GET_GPU_RECOVERY_ACTION (nvml.h, NVML_GPU_RECOVERY_ACTION_*)."""


def read(gpu: Gpu) -> Iterator[Found]:
    """Every memory metric of gpu_health."""
    yield from _ecc(gpu)
    yield from _remapping(gpu)
    yield from _retirement(gpu)
    yield from _repairs(gpu)


def _ecc(gpu: Gpu) -> Iterator[Found]:
    mode = gpu.get("GetEccMode")
    yield Found("ecc_enabled", flag(part(mode, 0)))
    yield Found("ecc_change_pending", mode if isinstance(mode, Absent) else mode[0] != mode[1])
    off = not isinstance(mode, Absent) and not mode[0]
    for metric, kind, since in (
        ("ecc_corrected", CORRECTED, VOLATILE),
        ("ecc_uncorrected", UNCORRECTED, VOLATILE),
        ("ecc_corrected_lifetime", CORRECTED, AGGREGATE),
        ("ecc_uncorrected_lifetime", UNCORRECTED, AGGREGATE),
    ):
        # With ECC switched off the counters stand still: a zero there says nothing about the memory.
        count: Reading = (
            Absent(NOT_APPLICABLE, "ECC is switched off, so nothing is counted")
            if off
            else number(gpu.get("GetTotalEccErrors", kind, since))
        )
        yield Found(metric, count)
    sram = gpu.fill("GetSramEccErrorStatus", "c_nvmlEccSramErrorStatus_v1_t")
    yield Found("sram_threshold_exceeded", flag(part(sram, "bThresholdExceeded")))
    yield Found("sram_uncorrected", _sum(sram, ["volatileUncParity", "volatileUncSecDed"]))
    yield Found("sram_uncorrected_lifetime", _sum(sram, ["aggregateUncParity", "aggregateUncSecDed"]))


def _sum(answer: object, members: List[str]) -> Reading:
    if isinstance(answer, Absent):
        return answer
    return sum(int(getattr(answer, member)) for member in members)


def _remapping(gpu: Gpu) -> Iterator[Found]:
    rows = gpu.get("GetRemappedRows")
    yield Found("remapped_rows_corrected", number(part(rows, 0)))
    yield Found("remapped_rows_uncorrected", number(part(rows, 1)))
    yield Found("row_remap_pending", flag(part(rows, 2)))
    yield Found("row_remap_failed", flag(part(rows, 3)))
    spares = gpu.get("GetRowRemapperHistogram")
    labels = (
        {}
        if isinstance(spares, Absent)
        else {name: str(int(getattr(spares, name))) for name in ("max", "high", "partial", "low", "none")}
    )
    yield Found("banks_without_spare", number(part(spares, "none")), labels)


def _retirement(gpu: Gpu) -> Iterator[Found]:
    """Turing and older retire pages; newer cards remap rows and answer Not Supported here."""
    corrected, uncorrected = (_length(gpu.get("GetRetiredPages", cause)) for cause in (0, 1))
    yield Found("retired_pages_corrected", corrected)
    yield Found("retired_pages_uncorrected", uncorrected)
    if isinstance(corrected, Absent) or isinstance(uncorrected, Absent):
        yield Found("retired_pages", corrected if isinstance(corrected, Absent) else uncorrected)
    else:
        yield Found("retired_pages", corrected + uncorrected)
    yield Found("page_retirement_pending", flag(gpu.get("GetRetiredPagesPendingStatus")))


def _length(answer: Any) -> Union[int, Absent]:
    return answer if isinstance(answer, Absent) else len(answer)


def _repairs(gpu: Gpu) -> Iterator[Found]:
    repair = gpu.get("GetRepairStatus")
    yield Found("channel_repair_pending", flag(part(repair, 0)))
    yield Found("tpc_repair_pending", flag(part(repair, 1)))
    yield Found("unrepairable_memory", flag(gpu.get("GetUnrepairableMemoryFlag_v1")))
    yield Found("recovery_action", recovery_action(gpu.fields([(FIELD_RECOVERY_ACTION, 0)])[FIELD_RECOVERY_ACTION, 0]))


def recovery_action(value: Union[int, Absent]) -> Reading:
    """The name of a recovery action; one that this program does not know keeps its number."""
    if isinstance(value, Absent):
        return value
    return RECOVERY_ACTIONS[value] if 0 <= value < len(RECOVERY_ACTIONS) else f"action {value}"
