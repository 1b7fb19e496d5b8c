"""What the GPUs are, read from recordings of real H200 hosts, and whether NVML reaches all that are on the bus."""

from __future__ import annotations

import pytest

from tests.doubles import error, result
from tests.unit.nvml_host import ADDRESSES, h200_host
from validators.checks.compute_capability import sm_count
from validators.probes.nvml import Absent
from validators.schema import NOT_APPLICABLE, UNKNOWN

H200 = {
    "gpu_name": "NVIDIA H200",
    "compute_capability": "9.0",
    "architecture": "Hopper",
    "brand": "NVIDIA",
    "sm_count": 132,
    "cuda_cores": 16896,
    "sm_clock_max": 1980,
    "memory_clock_max": 3201,
    "memory_bus_width": 6016,
    "memory_total": 143771.0,
    "power_limit_default": 700.0,
    "mig_mode": False,
    "vbios_version": "96.00.A5.00.1A",
}


@pytest.mark.parametrize("n_gpus", [1, 4])
def test_an_h200_is_what_nvidia_says_it_is(n_gpus: int) -> None:
    measured = h200_host(n_gpus)
    assert len(measured.gpus) == n_gpus
    for index, uuid in enumerate(measured.gpus):
        found = {metric: measured.one(metric, uuid).value for metric in H200}
        assert found == H200
        labels = measured.one("gpu_name", uuid).labels
        assert labels == {"index": str(index), "pci_address": ADDRESSES[index], "minor": str(index)}
        assert uuid.startswith("GPU-")
        assert measured.outcome("compute_capability", uuid).status == "ran"


@pytest.mark.parametrize("n_gpus", [1, 4])
def test_the_host_level_facts_are_there(n_gpus: int) -> None:
    measured = h200_host(n_gpus)
    facts = {
        metric: measured.one(metric, "host").value
        for metric in ("nvml_answers", "driver_version", "nvml_version", "cuda_driver", "gpu_count_nvml")
    }
    assert facts == {
        "nvml_answers": True,
        "driver_version": "580.159.04",
        "nvml_version": "13.580.159.04",
        "cuda_driver": "13.0",
        "gpu_count_nvml": n_gpus,
    }
    assert measured.one("gpu_count_pci").value == n_gpus
    assert measured.one("count_matches_pci").value is True


def test_a_card_on_the_bus_that_nvml_does_not_reach_fails() -> None:
    measured = h200_host(1, on_bus=ADDRESSES[:2])
    assert measured.metrics("FAIL") == {"count_matches_pci"}


def test_gpus_without_a_pci_bus_are_not_called_a_mismatch() -> None:
    measured = h200_host(1, on_bus=())
    assert measured.one("count_matches_pci").absence == NOT_APPLICABLE
    assert measured.one("nvml_answers").value is True


def test_a_card_older_than_the_floor_fails() -> None:
    measured = h200_host(1, {"nvmlDeviceGetCudaComputeCapability*": result([3, 7])})
    assert measured.metrics("FAIL") == {"compute_capability"}
    assert measured.one("sm_count").absence == UNKNOWN


def test_capability_10_is_newer_than_9() -> None:
    measured = h200_host(1, {"nvmlDeviceGetCudaComputeCapability*": result([10, 3])})
    assert measured.one("compute_capability").value == "10.3"
    assert "compute_capability" in measured.metrics("PASS")


@pytest.mark.parametrize(
    ("cores", "capability", "expected"),
    [(16896, "9.0", 132), (6912, "8.0", 108), (10240, "7.0", 160), (5120, "7.0", 80), (18176, "8.9", 142)],
)
def test_sms_follow_from_cores_and_capability(cores: int, capability: str, expected: int) -> None:
    assert sm_count(cores, capability) == expected


@pytest.mark.parametrize(("cores", "capability"), [(1000, "9.0"), (16896, "99.0")])
def test_sms_that_do_not_follow_are_unknown(cores: int, capability: str) -> None:
    assert isinstance(sm_count(cores, capability), Absent)


def test_a_driver_from_before_a_call_leaves_that_fact_unknown() -> None:
    measured = h200_host(1, {"nvmlDeviceGetNumGpuCores*": error(13), "nvmlDeviceGetMemoryBusWidth*": error(13)})
    for metric in ("cuda_cores", "sm_count", "memory_bus_width"):
        assert measured.one(metric).absence == UNKNOWN
    assert measured.one("gpu_name").value == "NVIDIA H200"
