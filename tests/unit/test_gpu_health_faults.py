"""Each fault, laid over the recording of a healthy H200 host, turns the criterion that is about it, and no other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from tests.doubles import FUNCTION_NOT_FOUND, GPU_IS_LOST, NOT_SUPPORTED, entry, error, filled, result
from tests.doubles.replay_pynvml import Answer
from tests.unit.nvml_host import Measured, h200_host, log_with, measure

FABRIC = "nvmlDeviceGetGpuFabricInfoV(gpu0,*)"
SRAM = "nvmlDeviceGetSramEccErrorStatus(gpu0,*)"


@dataclass(frozen=True)
class Fault:
    """`wrong`: the metrics whose verdict turns, each to FAIL or WARN. All others stay as they were."""

    name: str
    wrong: Mapping[str, str]
    faults: Mapping[str, Answer] = field(default_factory=dict)
    n_gpus: int = 1
    xids: tuple[int, ...] = ()


def struct(**members: object) -> Answer:
    return result({"struct": members})


FAULTS = (
    Fault("uncorrected ECC error", {"ecc_uncorrected": "FAIL"}, {"nvmlDeviceGetTotalEccErrors(gpu0,1,0)": result(2)}),
    Fault(
        "an uncorrected ECC error long ago",
        {"ecc_uncorrected_lifetime": "WARN"},
        {"nvmlDeviceGetTotalEccErrors(gpu0,1,1)": result(1)},
    ),
    Fault("corrected ECC errors", {"ecc_corrected": "WARN"}, {"nvmlDeviceGetTotalEccErrors(gpu0,0,0)": result(7)}),
    Fault(
        "ECC switched on at the next reset", {"ecc_change_pending": "WARN"}, {"nvmlDeviceGetEccMode*": result([1, 0])}
    ),
    Fault("SRAM threshold exceeded", {"sram_threshold_exceeded": "FAIL"}, {SRAM: filled(bThresholdExceeded=1)}),
    Fault("SRAM parity error", {"sram_uncorrected": "FAIL"}, {SRAM: filled(volatileUncParity=1)}),
    Fault("row remap pending", {"row_remap_pending": "FAIL"}, {"nvmlDeviceGetRemappedRows*": result([0, 0, 1, 0])}),
    Fault("row remap failed", {"row_remap_failed": "FAIL"}, {"nvmlDeviceGetRemappedRows*": result([0, 0, 0, 1])}),
    Fault(
        "rows remapped after lost data",
        {"remapped_rows_uncorrected": "WARN"},
        {"nvmlDeviceGetRemappedRows*": result([0, 3, 0, 0])},
    ),
    Fault(
        "rows remapped after corrected errors",
        {"remapped_rows_corrected": "WARN"},
        {"nvmlDeviceGetRemappedRows*": result([2, 0, 0, 0])},
    ),
    Fault(
        "a bank with no spare row",
        {"banks_without_spare": "WARN"},
        {"nvmlDeviceGetRowRemapperHistogram*": struct(max=3071, high=0, partial=0, low=0, none=1)},
    ),
    Fault(
        "an older card with a page that waits to be retired",
        {"page_retirement_pending": "FAIL"},
        {"nvmlDeviceGetRetiredPagesPendingStatus*": result(1)},
    ),
    Fault(
        "an older card with 60 retired pages",
        {"retired_pages": "FAIL", "retired_pages_uncorrected": "WARN"},
        {
            "nvmlDeviceGetRetiredPages(gpu0,0)": result(list(range(58))),
            "nvmlDeviceGetRetiredPages(gpu0,1)": result([1, 2]),
        },
    ),
    Fault("channel repair pending", {"channel_repair_pending": "FAIL"}, {"nvmlDeviceGetRepairStatus*": result([1, 0])}),
    Fault("TPC repair pending", {"tpc_repair_pending": "FAIL"}, {"nvmlDeviceGetRepairStatus*": result([0, 1])}),
    Fault(
        "unrepairable memory", {"unrepairable_memory": "FAIL"}, {"nvmlDeviceGetUnrepairableMemoryFlag_v1*": result(1)}
    ),
    Fault("the driver asks for a reset", {"recovery_action": "FAIL"}, {"field(gpu0,230,0)": entry(1)}),
    Fault("corrupted infoROM", {"inforom_valid": "FAIL"}, {"nvmlDeviceValidateInforom*": error(14)}),
    Fault("XID 79", {"xid": "FAIL"}, xids=(79,)),
    Fault("XID 48", {"xid": "FAIL"}, xids=(48,)),
    Fault("XID 119", {"xid": "FAIL"}, xids=(119,)),
    Fault("XID 149", {"xid": "FAIL"}, xids=(149,)),
    Fault("XID 63", {"xid": "WARN"}, xids=(63,)),
    Fault("XID 94", {"xid": "WARN"}, xids=(94,)),
    Fault("XID 13", {"xid": "WARN"}, xids=(13,)),
    Fault("XID 31", {"xid": "WARN"}, xids=(31,)),
    Fault("PCIe at half its width", {"pcie_width_fraction": "FAIL"}, {"nvmlDeviceGetCurrPcieLinkWidth*": result(8)}),
    Fault("PCIe replays", {"pcie_replays": "WARN"}, {"nvmlDeviceGetPcieReplayCounter*": result(412)}),
    Fault("fatal PCIe errors", {"pcie_fatal_errors": "FAIL"}, {"field(gpu0,180,0)": entry(1)}),
    Fault("nonfatal PCIe errors", {"pcie_nonfatal_errors": "WARN"}, {"field(gpu0,179,0)": entry(1)}),
    Fault(
        "one NVLink down", {"nvlink_active_fraction": "FAIL"}, {"nvmlDeviceGetNvLinkState(gpu0,5)": result(0)}, n_gpus=4
    ),
    Fault(
        "every NVLink of one GPU down",
        {"nvlink_active_fraction": "FAIL"},
        {f"nvmlDeviceGetNvLinkState(gpu0,{link})": result(0) for link in range(18)},
        n_gpus=4,
    ),
    Fault("NVLink recoveries", {"nvlink_recoveries": "WARN"}, {"field(gpu0,162,3)": entry(2)}, n_gpus=4),
    Fault("NVLink CRC errors", {"nvlink_crc_errors": "WARN"}, {"field(gpu0,163,17)": entry(9)}, n_gpus=4),
    Fault("NVLink replays", {"nvlink_replays": "WARN"}, {"field(gpu0,161,0)": entry(1)}, n_gpus=4),
    Fault(
        "an NVLink 5 recovery that failed",
        {"nvlink_recovery_failures": "FAIL"},
        {"field(gpu0,214,4)": entry(1), "field(gpu0,214,*)": entry(0)},
        n_gpus=4,
    ),
    Fault("the fabric not started", {"fabric_state": "FAIL"}, {FABRIC: filled(state=1)}, n_gpus=4),
    Fault("the fabric in progress", {"fabric_state": "FAIL"}, {FABRIC: filled(state=2)}, n_gpus=4),
    Fault("the fabric ended in an error", {"fabric_status": "FAIL"}, {FABRIC: filled(status=999)}, n_gpus=4),
    Fault("the fabric degraded", {"fabric_health": "FAIL"}, {FABRIC: filled(healthMask=0b0101)}, n_gpus=4),
    Fault("hardware slowdown", {"throttle_faults": "FAIL"}, {"nvmlDeviceGetCurrentClocksEventReasons*": result(0x8)}),
    Fault("thermal slowdown", {"throttle_faults": "FAIL"}, {"nvmlDeviceGetCurrentClocksEventReasons*": result(0x61)}),
    Fault("power brake", {"throttle_faults": "FAIL"}, {"nvmlDeviceGetCurrentClocksEventReasons*": result(0x80)}),
    Fault(
        "heat has slowed it",
        {"thermal_violation_time": "WARN"},
        {"nvmlDeviceGetViolationStatus(gpu0,1)": struct(referenceTime=1, violationTime=90 * 10**9)},
    ),
    Fault(
        "temperature above the limit", {"temperature_margin": "FAIL"}, {"nvmlDeviceGetTemperature(gpu0,0)": result(91)}
    ),
    Fault("no thermal margin by NVML", {"temperature_margin": "FAIL"}, {"nvmlDeviceGetMarginTemperature*": result(-3)}),
    Fault("memory above its limit", {"memory_temperature_margin": "FAIL"}, {"field(gpu0,82,0)": entry(97)}),
    Fault(
        "power limit lowered", {"power_limit_fraction": "WARN"}, {"nvmlDeviceGetEnforcedPowerLimit*": result(400000)}
    ),
    Fault(
        "application clocks lowered",
        {"application_clock_fraction": "WARN"},
        {"nvmlDeviceGetApplicationsClock(gpu0,0)": result(1200)},
    ),
    Fault("persistence off", {"persistence_mode": "WARN"}, {"nvmlDeviceGetPersistenceMode*": result(0)}),
    Fault("compute prohibited", {"compute_mode": "FAIL"}, {"nvmlDeviceGetComputeMode*": result(2)}),
    Fault("MIG on", {"mig_enabled": "WARN"}, {"nvmlDeviceGetMigMode*": result([1, 1])}),
    Fault("MIG at the next reset", {"mig_change_pending": "WARN"}, {"nvmlDeviceGetMigMode*": result([0, 1])}),
    Fault(
        "somebody computes",
        {"compute_processes": "WARN"},
        {
            "nvmlDeviceGetComputeRunningProcesses*": result([{"struct": {"pid": 4711, "usedGpuMemory": 1}}]),
            "nvmlSystemGetProcessName(4711)": result("/usr/bin/train"),
        },
    ),
)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_the_fault_turns_its_own_criterion(fault: Fault) -> None:
    from tests.unit.nvml_host import CLEAN

    healthy = _statuses(h200_host(fault.n_gpus))
    assert not {"FAIL", "WARN", "ERROR"} & set(healthy.values())
    faulty = h200_host(fault.n_gpus, fault.faults, log=log_with(*fault.xids) if fault.xids else CLEAN)
    turned = {key: status for key, status in _statuses(faulty).items() if status in ("FAIL", "WARN", "ERROR")}
    assert turned == {(faulty.gpus[0], metric): status for metric, status in fault.wrong.items()}


def _statuses(measured: Measured) -> dict[tuple[str, str], str]:
    return {(one.subject, one.metric): one.status for one in measured.judged().verdicts}


def test_ecc_that_is_off_is_a_warning_and_its_counters_say_nothing() -> None:
    off = h200_host(1, {"nvmlDeviceGetEccMode*": result([0, 0])})
    assert off.metrics("WARN") == {"ecc_enabled"}
    for metric in ("ecc_uncorrected", "ecc_corrected", "ecc_uncorrected_lifetime"):
        assert off.one(metric).absence == "not_applicable"
    assert "ecc_uncorrected" in off.metrics("SKIP")


def test_a_gpu_that_falls_off_the_bus_between_two_calls_fails_and_its_readings_are_errors() -> None:
    gone = {
        "nvmlInit()": {"recorded": True},
        "nvmlSystem*": {"recorded": True},
        "nvmlDeviceGetCount()": {"recorded": True},
        "nvmlDeviceGetHandleByIndex*": {"recorded": True},
        "nvmlDeviceGetUUID*": {"recorded": True},
        "nvmlDeviceGetPciInfo*": {"recorded": True},
        "*gpu3*": error(GPU_IS_LOST),
    }
    measured = h200_host(4, gone, log=log_with(79, address="0000:00:09"))
    lost = measured.gpus[-1]
    assert measured.one("responds", lost).value is False
    report = measured.judged()
    assert report.status == "FAIL"
    failed = {(one.subject, one.metric) for one in report.verdicts if one.status == "FAIL"}
    assert failed == {(lost, "responds"), (lost, "xid")}
    good = {one.metric for one in report.verdicts if one.status == "PASS" and one.subject == lost}
    assert not good  # nothing of a lost GPU passes


def test_a_gpu_that_nvml_cannot_open_fails_by_count_and_keeps_its_xid() -> None:
    measured = h200_host(
        4, {"nvmlDeviceGetHandleByIndex(3)": error(GPU_IS_LOST)}, log=log_with(79, address="0000:00:09")
    )
    assert len(measured.gpus) == 3
    assert {"gpus_unreachable", "count_matches_pci", "responds", "xid"} <= measured.metrics("FAIL")
    (event,) = measured.all("xid", "host")
    assert event.value == "79"
    assert event.labels["pci_address"] == "0000:00:09.0"


def test_the_only_gpu_lost_is_a_failure_and_an_error_and_no_long_list() -> None:
    measured = h200_host(1, {"nvmlDeviceGetHandleByIndex(0)": error(GPU_IS_LOST)}, log=log_with(79))
    report = measured.judged()
    assert report.status == "FAIL"
    assert {"gpus_unreachable", "gpu_count_nvml", "xid"} <= measured.metrics("FAIL")
    assert "GPU is lost" in measured.outcome("gpu_health").detail
    assert len([one for one in report.verdicts if one.status == "ERROR"]) <= 6


@pytest.mark.parametrize("code", [9, 12, 18, 4, 999])
def test_a_driver_that_does_not_answer_is_no_pass(code: int) -> None:
    measured = h200_host(1, {"nvmlInit()": error(code)})
    assert measured.one("nvml_answers").value is False
    assert measured.outcome("gpu_health").status == "error"
    assert measured.judged().status == "FAIL"
    assert measured.metrics("FAIL") == {"nvml_answers"}


def test_a_host_without_a_gpu_is_skipped_and_never_passes() -> None:
    measured = measure(_without_driver(), on_bus=())
    assert measured.outcome("compute_capability").status == "skipped"
    assert measured.outcome("gpu_health").status == "skipped"
    assert measured.outcome("gpu_health").detail == "no NVIDIA GPU on the PCI bus"
    assert measured.one("gpu_count_pci").value == 0
    assert measured.judged().status not in ("PASS", "WARN")


def test_a_host_without_a_pci_bus_is_not_known_to_be_without_a_gpu() -> None:
    measured = measure(_without_driver(), bus=False)
    assert measured.metrics("FAIL") == {"nvml_answers"}
    assert measured.outcome("gpu_health").status == "error"
    assert measured.one("gpu_count_pci").absence == "unknown"


def test_a_host_whose_only_gpu_is_gone_from_the_bus_still_fails_by_its_log() -> None:
    measured = measure(_without_driver(), on_bus=(), log=log_with(79))
    assert measured.metrics("FAIL") == {"xid"}
    assert measured.one("xid").subject == "host"


def test_a_card_on_the_bus_without_a_driver_fails() -> None:
    measured = measure(_without_driver(), on_bus=("0000:00:06.0",))
    assert measured.metrics("FAIL") == {"nvml_answers"}
    assert "libnvidia-ml.so.1 is missing" in measured.one("nvml_answers").note
    assert measured.one("gpu_count_nvml").absence == "unknown"


def _without_driver() -> object:
    from tests.doubles import h200

    return h200(1, {"nvmlInit()": error(12)})


IDENTITY = {
    name: {"recorded": True}
    for name in (
        "nvmlInit()",
        "nvmlSystem*",
        "nvmlDeviceGetCount()",
        "nvmlDeviceGetHandleByIndex*",
        "nvmlDeviceGetUUID*",
        "nvmlDeviceGetPciInfo*",
        "nvmlDeviceGetName*",
    )
}


def test_a_card_that_supports_nothing_is_never_called_good() -> None:
    """Most of NVML says Not Supported on a GeForce."""
    measured = h200_host(1, {**IDENTITY, "*": error(NOT_SUPPORTED)})
    uuid = measured.gpus[0]
    values = {one.metric for one in measured.all("temperature", uuid) if one.value is not None}
    assert not values
    passed = {one.metric for one in measured.verdicts("PASS") if one.subject == uuid}
    assert passed == {"responds", "xid"}  # it answered, and the log was read
    assert not {one.metric for one in measured.verdicts("FAIL") if one.subject == uuid}
    assert {"ecc_uncorrected", "row_remap_failed", "temperature_margin", "fabric_state"} <= measured.metrics("SKIP")


def test_an_old_driver_without_the_new_functions_is_judged_by_what_it_has() -> None:
    """Driver 535 has none of these; they are skipped as unknown, and the rest still passes or fails."""
    new = {
        f"nvmlDeviceGet{name}*": error(FUNCTION_NOT_FOUND)
        for name in (
            "SramEccErrorStatus",
            "RepairStatus",
            "UnrepairableMemoryFlag_v1",
            "MarginTemperature",
            "GpuFabricInfo",
        )
    }
    measured = h200_host(4, {**new, "field(*,230,0)": {"return": 2, "type": 0, "value": 0.0}})
    report = measured.judged()
    assert report.status == "PASS"
    skipped = {one.metric: one.reason for one in report.verdicts if one.status == "SKIP"}
    for metric in ("sram_threshold_exceeded", "channel_repair_pending", "unrepairable_memory", "recovery_action"):
        assert skipped[metric].startswith("could not be read")
    assert measured.one("temperature_margin", measured.gpus[0]).labels == {"from": "threshold"}


def test_the_reasons_for_slow_clocks_have_an_older_name() -> None:
    measured = h200_host(1, {"nvmlDeviceGetCurrentClocksEventReasons*": error(FUNCTION_NOT_FOUND)})
    assert measured.one("throttle_faults").value == "none"
    older = {
        "nvmlDeviceGetCurrentClocksEventReasons*": {"missing": True},
        "nvmlDeviceGetCurrentClocksThrottle*": result(8),
    }
    assert h200_host(1, older).one("throttle_faults").value == "hardware slowdown"


def test_what_every_driver_tells_and_cannot_be_read_is_an_error() -> None:
    measured = h200_host(1, {"nvmlDeviceGetTotalEccErrors*": error(999), "nvmlDeviceGetCurrPcieLinkWidth*": error(999)})
    assert {"ecc_uncorrected", "pcie_width_fraction"} <= measured.metrics("ERROR")
    assert measured.judged().status == "ERROR"
