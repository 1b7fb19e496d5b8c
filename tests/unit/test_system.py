from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.unit.host_tree import H200, H200_X4, VM, Measured, grow, measure, tree
from validators.checks import system
from validators.schema import NOT_APPLICABLE, UNKNOWN

EFI = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"


def look(root: Path, name: str, **changes: Any) -> Measured:
    files = {**tree(name), **changes}
    return measure("system", system.collect, grow(root, {path: one for path, one in files.items() if one is not None}))


def test_a_recorded_h200_host_is_read_without_its_driver_s_help(tmp_path: Path):
    host = look(tmp_path, H200)

    assert host.value("os_id") == "ubuntu"
    assert host.value("os_version") == "24.04"
    assert host.value("kernel_release") == "6.18.44-fc-v657-gpu"
    assert host.value("memory_total") == 131981020 // 1024
    assert (host.value("cpu_sockets"), host.value("cpu_cores"), host.value("cpu_threads")) == (1, 16, 16)
    assert host.value("gpu_count") == 1
    gpu = host.one("pci_gpu")
    assert gpu.value == "10de:2335"
    assert gpu.labels == {"address": "0000:00:06.0", "driver": "nvidia", "subsystem": "10de:18bf", "class": "0302"}
    assert host.value("gpu_model", address="0000:00:06.0") == "NVIDIA H200"


def test_four_gpus_are_four_measurements(tmp_path: Path):
    host = look(tmp_path, H200_X4)

    assert host.value("gpu_count") == 4
    assert [one.labels["address"] for one in host.all("pci_gpu")] == [f"0000:00:0{n}.0" for n in (6, 7, 8, 9)]


def test_a_gpu_with_no_driver_is_found(tmp_path: Path):
    host = look(tmp_path, H200, **{"/sys/bus/pci/devices/0000:00:06.0/driver": None})

    assert host.value("gpu_count") == 1
    assert host.one("pci_gpu").labels["driver"] == ""


def test_a_host_without_a_gpu_counts_zero_and_names_no_model(tmp_path: Path):
    host = look(tmp_path, VM)

    assert host.value("gpu_count") == 0
    assert host.all("pci_gpu") == []
    assert host.one("gpu_model").absence == NOT_APPLICABLE
    assert host.value("disk_total") == 262144
    assert [one.labels["device"] for one in host.all("disk_size")] == ["vda"]
    assert host.value("container") == "docker"


def test_a_host_that_shows_no_pci_bus_has_an_unknown_number_of_gpus(tmp_path: Path):
    host = measure("system", system.collect, grow(tmp_path, {"/etc/os-release": "ID=debian\n"}))

    assert host.one("gpu_count").absence == UNKNOWN
    assert host.one("memory_total").absence == UNKNOWN
    assert host.one("cpu_cores").absence == UNKNOWN
    assert host.one("os_version").absence == NOT_APPLICABLE


def test_audio_and_switches_are_no_gpus(tmp_path: Path):
    def device(address: str, pci_class: str, number: str = "0x22a3") -> dict[str, str]:
        place = f"/sys/bus/pci/devices/{address}"
        return {f"{place}/vendor": "0x10de\n", f"{place}/device": f"{number}\n", f"{place}/class": f"{pci_class}\n"}

    host = look(tmp_path, VM, **device("0000:05:00.0", "0x068000"), **device("0000:01:00.1", "0x040300"),
                **device("0000:02:00.0", "0x030000", "0xfffe"))  # fmt: skip

    assert host.value("nvswitch_count") == 1
    assert host.value("gpu_count") == 1
    assert host.one("gpu_model").absence == UNKNOWN
    assert "10de:fffe" in host.one("gpu_model").note


@pytest.mark.parametrize(
    ("files", "value", "absence"),
    [
        ({}, None, NOT_APPLICABLE),
        ({EFI: {"hex": "0600000001"}}, True, ""),
        ({EFI: {"hex": "0600000000"}}, False, ""),
        ({EFI: {"hex": "06000000"}}, None, UNKNOWN),
        ({EFI: {"hex": "0600000007"}}, None, UNKNOWN),
        ({"/sys/firmware/efi/fw_platform_size": "64\n"}, None, UNKNOWN),
    ],
    ids=["no EFI", "on", "off", "truncated", "garbage", "variables not mounted"],
)
def test_secure_boot_is_the_last_of_five_bytes(tmp_path: Path, files: dict[str, Any], value: object, absence: str):
    found = look(tmp_path, VM, **files).one("secure_boot")

    assert (found.value, found.absence) == (value, absence)


def test_the_board_is_read_where_there_are_smbios_tables(tmp_path: Path):
    dmi = {"board_vendor": "Supermicro\n", "board_name": "X13DEG-OAD\n", "bios_vendor": "AMI\n",
           "bios_version": "2.1\n", "sys_vendor": "Supermicro\n", "product_name": "SYS-821GE-TNHR\n"}  # fmt: skip

    host = look(tmp_path, VM, **{f"/sys/class/dmi/id/{name}": value for name, value in dmi.items()})

    assert host.value("board") == "Supermicro X13DEG-OAD"
    assert host.value("bios") == "AMI 2.1"
    assert host.value("product") == "Supermicro SYS-821GE-TNHR"


def test_no_smbios_is_not_applicable_and_a_silent_one_unknown(tmp_path: Path):
    assert look(tmp_path / "a", VM).one("board").absence == NOT_APPLICABLE
    assert look(tmp_path / "b", VM, **{"/sys/class/dmi/id/uevent": "x"}).one("board").absence == UNKNOWN


@pytest.mark.parametrize(
    ("files", "name"),
    [
        ({}, "yes"),
        ({"/sys/class/dmi/id/sys_vendor": "Amazon EC2\n"}, "amazon"),
        ({"/sys/hypervisor/type": "xen\n"}, "xen"),
        ({"/proc/sys/kernel/osrelease": "5.15.167.4-microsoft-standard-WSL2\n"}, "wsl"),
    ],
)
def test_the_hypervisor_is_named_where_something_names_it(tmp_path: Path, files: dict[str, Any], name: str):
    assert look(tmp_path, VM, **files).value("virtualisation") == name


def test_garbage_in_every_file_gives_absences_and_no_crash(tmp_path: Path):
    garbage = {
        path: "\0\x7f\u2028garbage: <b>[red]" if isinstance(one, str) else one for path, one in tree(H200).items()
    }

    host = measure("system", system.collect, grow(tmp_path, garbage))

    assert host.value("gpu_count") == 0
    assert host.one("memory_total").absence == UNKNOWN
    assert host.one("uptime").absence == UNKNOWN
    assert host.one("os_id").absence == UNKNOWN
    assert host.one("cpu_sockets").absence == UNKNOWN


def test_two_threads_of_a_core_are_one_core(tmp_path: Path):
    topology = "/sys/devices/system/cpu/cpu1/topology/core_id"

    host = look(tmp_path, VM, **{topology: "0\n"})

    assert (host.value("cpu_cores"), host.value("cpu_threads")) == (1, 2)
