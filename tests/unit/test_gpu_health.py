"""Every metric of gpu_health on recordings of healthy H200 hosts; what deserves a look but no verdict; the decoders."""

from __future__ import annotations

from typing import Any

import pytest

from tests.doubles import entry, error, filled, result
from tests.unit.nvml_host import ADDRESSES, CLEAN, LOGS, h200_host, log_with
from validators import check
from validators.probes import gpu_links, gpu_memory, gpu_state, kernel_log
from validators.probes.nvml import Absent
from validators.schema import NOT_APPLICABLE, UNKNOWN

NO_NVLINK = {metric.name for metric in check.load("gpu_health").info.metrics if metric.name.startswith("nvlink_")}
OLD_CARDS_ONLY = {"retired_pages", "retired_pages_corrected", "retired_pages_uncorrected", "page_retirement_pending"}
NVLINK_5 = {
    "nvlink_link_integrity_errors",
    "nvlink_recovery_failures",
    "nvlink_effective_errors",
    "nvlink_symbol_errors",
}
FABRIC = {"fabric_state", "fabric_status", "fabric_health"}
HOST_METRICS = {"sxid", "gpu_start_failures", "kernel_log_complete"}


@pytest.mark.parametrize(
    ("n_gpus", "absent"),
    [(1, OLD_CARDS_ONLY | NO_NVLINK | FABRIC), (4, OLD_CARDS_ONLY | NVLINK_5 | {"fabric_health"})],
)
def test_every_metric_is_reported_for_every_gpu_and_absent_only_where_the_card_has_none(
    n_gpus: int, absent: set[str]
) -> None:
    measured = h200_host(n_gpus)
    for uuid in measured.gpus:
        for metric in check.load("gpu_health").info.metrics:
            if metric.name in HOST_METRICS:
                continue
            one = measured.one(metric.name, uuid)
            assert one.absence == (NOT_APPLICABLE if metric.name in absent else ""), metric.name
        assert measured.outcome("gpu_health", uuid).status == "ran"
    assert measured.judged().status == "PASS"


def test_the_values_are_those_of_the_recorded_card_in_our_units() -> None:
    measured = h200_host(4)
    uuid = measured.gpus[0]
    expected: dict[str, Any] = {
        "ecc_enabled": True,
        "recovery_action": "none",
        "pcie_width": 16,
        "pcie_width_fraction": 1.0,
        "fabric_state": "completed",
        "fabric_status": "success",
        "nvlink_links": 18,
        "nvlink_active": 18,
        "nvlink_active_fraction": 1.0,
        "nvlink_speed": 26.562,
        "power_limit": 700.0,
        "power_limit_fraction": 1.0,
        "temperature_shutdown": 95,
        "temperature_slowdown": 89,
        "temperature_operating_max": 87,
        "compute_mode": "default",
        "persistence_mode": True,
        "inforom_valid": True,
        "xid": "none",
    }
    assert {metric: measured.one(metric, uuid).value for metric in expected} == expected
    power, temperature = measured.one("power", uuid).value, measured.one("temperature", uuid).value
    assert isinstance(power, float)
    assert 40 < power < 700
    assert isinstance(temperature, int)
    assert measured.one("temperature_margin", uuid).value == 87 - temperature
    assert measured.one("banks_without_spare", uuid).labels["max"] == "3072"


def test_the_generation_of_the_link_is_told_with_the_load_and_never_judged() -> None:
    measured = h200_host(1, {"nvmlDeviceGetCurrPcieLinkGeneration*": result(1)})
    assert measured.one("pcie_generation").labels == {"max": "5", "state": "idle"}
    assert measured.judged().status == "PASS"
    busy = {"nvmlDeviceGetUtilizationRates*": result({"struct": {"gpu": 97, "memory": 40}})}
    assert h200_host(1, busy).one("pcie_generation").labels["state"] == "loaded"


@pytest.mark.parametrize("mask", [0x0, 0x1, 0x2, 0x4, 0x1 | 0x2 | 0x4 | 0x10 | 0x100])
def test_idle_application_clocks_and_the_power_cap_are_no_faults(mask: int) -> None:
    measured = h200_host(1, {"nvmlDeviceGetCurrentClocksEventReasons*": result(mask)})
    assert measured.one("throttle_faults").value == "none"
    assert measured.judged().status == "PASS"


def test_throttle_reasons_are_named_and_unknown_bits_kept() -> None:
    assert gpu_state.reasons(0x8 | 0x40, True) == "hardware slowdown, hardware thermal slowdown"
    assert gpu_state.reasons(0x1 | 0x4, False) == "idle, software power cap"
    assert gpu_state.reasons(0x1000, False) == "unnamed 0x1000"
    assert gpu_state.reasons(0x1000, True) == "none"


def test_fabric_health_names_each_problem() -> None:
    assert isinstance(gpu_links.fabric_health(0), Absent)
    fine = 0b10 | 0b10 << 2 | 0b10 << 4 | 0b10 << 6 | 1 << 8 | 1 << 12 | 1 << 14
    assert gpu_links.fabric_health(fine) == "healthy"
    assert gpu_links.fabric_health(0b01) == "degraded bandwidth"
    assert gpu_links.fabric_health(0b01 << 4 | 5 << 8) == "route unhealthy, too few NVLinks"
    assert gpu_links.fabric_health(2 << 12 | 2 << 14) == "no partition assigned, fabric manager disconnected"
    assert gpu_links.fabric_health(15 << 8) == "wrong configuration 15"


def test_a_recovery_action_that_is_newer_than_this_program_keeps_its_number_and_fails() -> None:
    assert gpu_memory.recovery_action(4) == "drain and reset"
    measured = h200_host(1, {"field(gpu0,230,0)": entry(42)})
    assert measured.one("recovery_action").value == "action 42"
    assert measured.metrics("FAIL") == {"recovery_action"}


def test_links_that_are_all_off_on_every_gpu_are_a_card_without_a_bridge() -> None:
    off = {"nvmlDeviceGetNvLinkState(*,?)": result(0), "nvmlDeviceGetNvLinkState(*,1[0-7])": result(0)}
    bridged = h200_host(4, off)  # the fabric is there: they should be up
    assert "nvlink_active_fraction" in bridged.metrics("FAIL")
    alone = h200_host(4, {**off, "nvmlDeviceGetGpuFabricInfoV*": filled(state=0)})
    uuid = alone.gpus[0]
    assert alone.one("nvlink_active", uuid).value == 0
    assert alone.one("nvlink_active_fraction", uuid).absence == NOT_APPLICABLE
    assert "nvlink_active_fraction" not in alone.metrics("PASS")


def test_a_link_state_that_cannot_be_read_is_not_the_end_of_the_links() -> None:
    measured = h200_host(4, {"nvmlDeviceGetNvLinkState(gpu0,7)": error(999)})
    assert measured.one("nvlink_active_fraction", measured.gpus[0]).absence == UNKNOWN
    assert "nvlink_active_fraction" in measured.metrics("ERROR")


def test_the_links_that_are_down_and_those_with_errors_are_named() -> None:
    measured = h200_host(4, {"nvmlDeviceGetNvLinkState(gpu1,9)": result(0), "field(gpu1,163,4)": entry(12)})
    uuid = measured.gpus[1]
    assert measured.one("nvlink_active", uuid).labels == {"down": "9"}
    assert measured.one("nvlink_crc_errors", uuid).labels == {"links": "4:12"}


def test_older_structs_of_the_fabric_are_tried_where_the_driver_refuses_the_newest() -> None:
    older = {
        "nvmlDeviceGetGpuFabricInfoV(*,c_nvmlGpuFabricInfo_v3_t)": error(25),
        "nvmlDeviceGetGpuFabricInfoV(*,c_nvmlGpuFabricInfo_v2_t)": filled(state=3, status=0, healthMask=1),
    }
    measured = h200_host(4, older)
    assert measured.one("fabric_state", measured.gpus[0]).value == "completed"
    assert measured.one("fabric_health", measured.gpus[0]).value == "degraded bandwidth"


def test_processes_are_counted_and_named_in_bounds() -> None:
    many = [{"struct": {"pid": 1000 + one, "usedGpuMemory": 1}} for one in range(40)]
    measured = h200_host(
        1,
        {
            "nvmlDeviceGetComputeRunningProcesses*": result(many),
            "nvmlSystemGetProcessName(1000)": error(6),
            "nvmlSystemGetProcessName*": result("x" * 5000),
        },
    )
    one = measured.one("compute_processes")
    assert one.value == 40
    assert one.note.startswith("1000 ?; 1001 xxx")
    assert len(one.note) < 2500


def test_a_memory_temperature_of_zero_is_no_reading() -> None:
    measured = h200_host(1, {"field(gpu0,82,0)": entry(0)})
    assert measured.one("memory_temperature").absence == UNKNOWN
    assert measured.one("memory_temperature_margin").absence == UNKNOWN


def test_a_log_that_may_not_be_read_is_an_error_and_never_zero_xids() -> None:
    def refused() -> kernel_log.KernelLog:
        raise kernel_log.LogUnreadable("/dev/kmsg: Operation not permitted; journalctl: gave no line")

    measured = h200_host(4, log=refused)
    for uuid in measured.gpus:
        assert measured.one("xid", uuid).absence == UNKNOWN
        assert "Operation not permitted" in measured.one("xid", uuid).note
    assert "xid" in measured.metrics("ERROR")
    assert "xid" not in measured.metrics("PASS")
    assert measured.judged().status == "ERROR"


def test_a_log_whose_beginning_is_lost_is_a_warning() -> None:
    measured = h200_host(1, log=kernel_log.KernelLog(CLEAN.lines[5:], False, "kmsg"))
    assert measured.metrics("WARN") == {"kernel_log_complete"}


def test_an_xid_belongs_to_the_gpu_at_its_address_and_to_no_other() -> None:
    measured = h200_host(4, log=log_with(79, 13, address=ADDRESSES[2].removesuffix(".0")))
    third = measured.gpus[2]
    assert [one.value for one in measured.all("xid", third)] == ["13", "79"]
    first, second = measured.all("xid", third)
    assert first.labels["count"] == "2"
    assert second.labels["first"] == "812 s after boot"
    assert "GPU has fallen off the bus" in second.note
    for uuid in (measured.gpus[0], measured.gpus[1], measured.gpus[3]):
        assert measured.one("xid", uuid).value == "none"
    assert not measured.all("xid", "host")


def test_an_xid_of_no_gpu_that_answers_is_the_hosts() -> None:
    measured = h200_host(1, log=log_with(79, address="0000:ff:1f"))
    (event,) = measured.all("xid", "host")
    assert event.value == "79"
    assert measured.metrics("FAIL") == {"xid"}


def test_nvswitches_and_gpus_that_did_not_start_are_told_by_the_log() -> None:
    text = (CLEAN.lines, kernel_log.parse_text(_xids(), "dmesg").lines)
    lines = text[0] + tuple(line for line in text[1] if "SXid" in line.text or "RmInit" in line.text)
    measured = h200_host(1, log=kernel_log.KernelLog(lines, True, "kmsg"))
    assert measured.one("sxid").value == "12028"
    assert measured.one("gpu_start_failures").value == 1
    assert measured.metrics("FAIL") == {"sxid", "gpu_start_failures"}


def _xids() -> str:

    return (LOGS / "xids.txt").read_text()


def test_the_verdict_on_an_xid_tells_its_meaning_the_line_and_what_to_do() -> None:
    measured = h200_host(1, log=log_with(79, 94))
    failed, warned = measured.verdicts("FAIL")[0], measured.verdicts("WARN")[0]
    assert failed.reason.startswith("79: GPU has fallen off the bus (ROBUST_CHANNEL_GPU_HAS_FALLEN_OFF_THE_BUS)")
    assert "pid=1122" in failed.reason
    assert "power the machine off and on" in failed.next_step
    assert "Contained memory error" in warned.reason
    assert "restart that" in warned.next_step


def test_times_powers_and_speeds_are_converted_to_our_units() -> None:
    measured = h200_host(
        1,
        {
            "nvmlDeviceGetViolationStatus(gpu0,1)": result({"struct": {"violationTime": 90 * 10**9}}),
            "nvmlDeviceGetViolationStatus(gpu0,0)": result({"struct": {"violationTime": 5 * 10**8}}),
            "nvmlDeviceGetPowerUsage*": result(124622),
            "nvmlDeviceGetEnforcedPowerLimit*": result(350000),
        },
    )
    metrics = ("thermal_violation_time", "power_violation_time", "power", "power_limit", "power_limit_fraction")
    assert [measured.one(metric).value for metric in metrics] == [90.0, 0.5, 124.622, 350.0, 0.5]
    assert measured.one("power_limit").labels == {"default": "700"}
