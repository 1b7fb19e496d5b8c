"""`expect_*` variables against what a real H200 host measured."""

from __future__ import annotations

import dataclasses
import tomllib
from importlib.resources import files
from typing import Any

import pytest

from provision.criteria import Criteria, load
from provision.hosts import Host
from provision.remote import HostRun
from provision.report.model import Status, Verdict
from provision.verdict import judge
from tests.unit.host_tree import TREES
from validators.check import catalogue
from validators.schema import NOT_APPLICABLE, CheckRequest, Measurement, Plan, Record, decode

RECORDS: list[Record] = [decode(x) for x in (TREES / "records-h200-x1-580.159.04.jsonl").read_bytes().splitlines()]
CATALOGUE = catalogue()
CRITERIA: Criteria = load([], CATALOGUE)
EXPECTATIONS = tomllib.loads((files("provision.criteria") / "expectations.toml").read_text())
CHECKS = ("system", "software", "compute_capability", "gpu_health", "preflight")


def judged(records: list[Record], **variables: Any) -> dict[str, list[Verdict]]:
    """criterion's id -> verdicts of a host with these inventory variables."""
    host = Host("newbox", variables=variables)
    report = judge(
        [HostRun("newbox", "192.0.2.1", tuple(records))],
        hosts=[host],
        catalogue=CATALOGUE,
        criteria=CRITERIA.for_hosts([host], CATALOGUE),
        plans={"newbox": Plan(tuple(CheckRequest(name, 60.0) for name in CHECKS), 300.0)},
        run_id="r",
        created="2026-11-21T00:00:00Z",
        judged="2026-11-21T00:00:00Z",
        version="0",
    )
    found: dict[str, list[Verdict]] = {}
    for verdict in report.hosts[0].verdicts:
        if verdict.criterion is not None:
            found.setdefault(verdict.criterion.id, []).append(verdict)
    return found


GOOD = {
    "expect_gpu_count": 1,
    "expect_gpu_model": "NVIDIA H200",
    "expect_compute_capability": "9.0",
    "expect_nvswitch_count": 0,
    "expect_memory_total": 120000,
    "expect_cpu_sockets": 1,
    "expect_cpu_cores": 16,
    "expect_os": "ubuntu",
    "expect_os_version": "24.04",
    "expect_driver": "580",
    "expect_module_flavour": "open",
    "expect_cuda": "13.0",
    "expect_python": "3.12",
    "expect_torch": "2.11",
    "expect_jax": "0.11.2",
    "expect_opencv": "5",
}
BAD = {
    "expect_gpu_count": 8,
    "expect_gpu_model": "NVIDIA H100 80GB HBM3",
    "expect_compute_capability": "10.0",
    "expect_nvswitch_count": 4,
    "expect_memory_total": 2000000,
    "expect_cpu_sockets": 2,
    "expect_cpu_cores": 96,
    "expect_os": "debian",
    "expect_os_version": "22.04",
    "expect_driver": "570",
    "expect_module_flavour": "proprietary",
    "expect_cuda": "12.4",
    "expect_python": "3.10",
    "expect_torch": "2.10",
    "expect_jax": "0.7",
    "expect_opencv": "4.12",
}
NOT_THERE = {
    "expect_docker": "24",
    "expect_container_toolkit": "1.17",
    "expect_podman": "4",
    "expect_nvtop": "3.0",
    "expect_tensorflow": "2.21",
    "expect_keras": "3",
    "expect_fabric_manager": "580",
    "expect_board": "Supermicro X13DEG-OAD",
    "expect_secure_boot": True,
}


def statuses(variable: str, value: Any) -> set[Status]:
    return {one.status for one in judged(RECORDS, **{variable: value})[variable]}


@pytest.mark.parametrize("variable", GOOD)
def test_a_part_that_is_as_ordered_passes(variable: str):
    assert statuses(variable, GOOD[variable]) == {"PASS"}


@pytest.mark.parametrize("variable", BAD)
def test_a_part_that_is_not_as_ordered_fails(variable: str):
    found = judged(RECORDS, **{variable: BAD[variable]})[variable]

    assert {one.status for one in found} == {"FAIL"}
    assert all(one.next_step for one in found)
    assert all(one.criterion is not None and one.criterion.source == f"inventory: {variable}" for one in found)


@pytest.mark.parametrize("variable", NOT_THERE)
def test_what_was_ordered_and_is_not_there_fails(variable: str):
    assert statuses(variable, NOT_THERE[variable]) == {"FAIL"}


def test_every_expectation_is_tried_here():
    tried = {*GOOD, *BAD, *NOT_THERE, "expect_cpu_model", "expect_disk_total", "expect_root_free", "expect_kernel"}

    assert set(EXPECTATIONS) == tried
    assert statuses("expect_cpu_model", "Intel(R) Xeon(R) Processor") == {"PASS"}
    assert statuses("expect_disk_total", 10**9) == {"FAIL"}
    assert statuses("expect_root_free", 10**9) == {"FAIL"}
    assert statuses("expect_kernel", "6.8.0-88-generic") == {"FAIL"}


def test_a_list_in_the_inventory_means_one_of():
    assert statuses("expect_gpu_model", ["NVIDIA H100 80GB HBM3", "NVIDIA H200"]) == {"PASS"}


def test_a_metric_that_was_not_measured_is_no_pass():
    without = [one for one in RECORDS if not (isinstance(one, Measurement) and one.metric == "gpu_model")]

    found = judged(without, expect_gpu_model="NVIDIA H200")["expect_gpu_model"] if without else []

    assert {one.status for one in found} <= {"ERROR"}


def changed(metric: str, **changes: Any) -> list[Record]:
    return [
        dataclasses.replace(one, **changes) if isinstance(one, Measurement) and one.metric == metric else one
        for one in RECORDS
    ]


@pytest.mark.parametrize(
    ("metric", "value", "criterion", "status"),
    [
        ("gpu_count", 0, "gpu_count", "FAIL"),
        ("root_free", 100, "root_free", "WARN"),
        ("nouveau_loaded", True, "nouveau", "FAIL"),
        ("module_for_kernel", False, "module_for_kernel", "FAIL"),
        ("driver_consistent", False, "driver_consistent", "FAIL"),
        ("uvm_node", False, "uvm_node", "WARN"),
        ("imports", False, "imports", "FAIL"),
        ("devices_seen", 0, "devices_seen", "FAIL"),
        ("arch_supported", False, "arch_supported", "FAIL"),
        ("context", False, "context", "FAIL"),
        ("known_answer", False, "known_answer", "FAIL"),
    ],
)
def test_each_default_threshold_passes_the_good_host_and_catches_the_fault(
    metric: str, value: Any, criterion: str, status: str
):
    assert {one.status for one in judged(RECORDS)[criterion]} == {"PASS"}
    assert status in {one.status for one in judged(changed(metric, value=value))[criterion]}


def test_a_driver_that_is_not_loaded_fails_the_expected_version():
    gone = changed("module_loaded_version", value=None, absence=NOT_APPLICABLE, note="no nvidia module is loaded")

    assert {one.status for one in judged(gone, expect_driver="580")["expect_driver"]} == {"FAIL"}
