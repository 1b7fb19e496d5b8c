from __future__ import annotations

import csv
from importlib.resources import files

import pytest

from provision.compat import cards, commands
from validators.probes import pci


def rows() -> list[dict[str, str]]:
    return list(csv.DictReader((files("provision.compat") / "pci_ids.csv").read_text().splitlines()))


@pytest.mark.parametrize(
    ("pci_id", "subsystem", "name", "branch", "generation"),
    [
        ("10de:2335", "10de:18bf", "NVIDIA H200", "current", "Hopper"),
        ("10DE:2335", "10DE:18BF", "NVIDIA H200", "current", "Hopper"),
        ("10de:118a", "10de:1013", "GRID K520", "470", "Kepler"),
        ("10de:1db1", "10de:1212", "Tesla V100-SXM2-16GB", "580", "Volta"),
        ("10de:1e30", "10de:129e", "Quadro RTX 8000", "current", "Turing"),
        ("10de:1e30", "ffff:ffff", "Quadro RTX 6000", "current", "Turing"),
        ("10de:2901", "10de:1999", "NVIDIA B200", "current", "Blackwell"),
        ("10de:ffff", "", "", "", ""),
        ("8086:2335", "", "", "", ""),
        ("garbage", "", "", "", ""),
    ],
)
def test_a_card_is_found_by_its_pci_id(pci_id: str, subsystem: str, name: str, branch: str, generation: str):
    found = cards.card(pci_id, subsystem)

    assert (found.name, found.last_branch, found.generation) == (name, branch, generation)


def test_a_device_id_has_one_branch_whatever_the_subsystem():
    branches: dict[str, set[str]] = {}
    for row in rows():
        branches.setdefault(row["pci_device_id"].split()[0], set()).add(row["branch"])

    assert [device for device, found in branches.items() if len(found) > 1] == []


def test_every_current_card_has_a_generation():
    current = {row["pci_device_id"].split()[0] for row in rows() if row["branch"].startswith("current")}

    assert sorted(device for device in current if not cards.card(f"10de:{device}").generation) == []


def test_the_host_s_list_of_names_is_the_operator_s():
    """validators/probes/gpu_names.csv is pci_ids.csv without the cards that driver 470 and older left behind."""
    expected = {
        row["pci_device_id"].lower(): row["name"]
        for row in rows()
        if row["branch"].startswith(("current", "580", "470"))
    }

    assert pci._names() == expected


@pytest.mark.parametrize(("cuda", "driver"), [("13.0", "580.65.06"), ("12.6", "525.60.13"), ("10.2", ""), ("x", "")])
def test_the_oldest_driver_of_a_cuda(cuda: str, driver: str):
    assert cards.minimum_driver(cuda) == driver


@pytest.mark.parametrize(
    ("capability", "driver", "index"),
    [
        ("9.0", "580.159.04", "cu130"),
        ("9.0", "535.183.01", "cu126"),
        ("7.0", "580.159.04", "cu126"),
        ("12.0", "520.61.05", ""),
        ("3.0", "470.256.02", ""),
        ("", "580.159.04", "cu130"),
    ],
)
def test_a_torch_for_card_and_driver(capability: str, driver: str, index: str):
    assert commands.torch_build(capability, driver) == index


@pytest.mark.parametrize(
    ("os_id", "os_version", "pci_id", "word"),
    [
        ("ubuntu", "24.04", "10de:2335", "nvidia-driver-580-server-open"),
        ("ubuntu", "22.04", "10de:118a", "nvidia-driver-470-server"),
        ("ubuntu", "26.04", "10de:118a", "ubuntu packages none"),
        ("debian", "12", "10de:118a", "nvidia-tesla-470-driver"),
        ("debian", "13", "10de:118a", "debian packages none"),
        ("debian", "12", "10de:2901", "nvidia-open"),
        ("debian", "12", "10de:1db1", "nvidia-driver &&"),
        ("rocky", "9.5", "10de:2335", "driver-installation-guide"),
        ("ubuntu", "24.04", "10de:ffff", "driver-installation-guide"),
    ],
)
def test_the_command_that_installs_a_driver_is_the_distribution_s(os_id: str, os_version: str, pci_id: str, word: str):
    assert word in commands.install_command(os_id, os_version, cards.card(pci_id))
