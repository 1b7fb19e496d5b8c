from __future__ import annotations

import csv
import tomllib
from importlib.resources import files
from pathlib import Path

import pytest

from provision.compat import cards, commands
from provision.compat.data import facts, version
from provision.compat.table import document, groups
from tests.test_layering import IO_MODULES, imports
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


ROOT = Path(__file__).parents[2]


def test_the_documented_table_is_what_the_generator_prints():
    written = (ROOT / "docs" / "compatibility.md").read_text(encoding="utf-8")

    assert written == document(), "run: python -m provision.compat.table > docs/compatibility.md"


def test_the_table_has_every_card_with_figures_and_every_pci_id_on_five_systems():
    text = document()
    figures = tomllib.loads((files("provision.criteria") / "gpus.toml").read_text())["gpu"]

    assert [one["name"] for one in figures if f"\n### {one['name']}\n" not in text] == []
    assert {pci_id.partition(":")[2] for ids in groups().values() for pci_id in ids} == {
        row["pci_device_id"].split()[0].lower() for row in rows()
    }
    tables = text.count("| system | driver |")
    for system in facts().systems.values():
        assert text.count(f"\n| {system.name} |") == tables


def test_within_a_group_of_the_table_every_card_gets_the_same_answer():
    for ids in groups().values():
        first = cards.card(ids[0])
        for pci_id in ids:
            one = cards.card(pci_id)
            assert (one.last_branch, one.capability, one.modules, one.first_driver, one.architecture) == (
                first.last_branch,
                first.capability,
                first.modules,
                first.first_driver,
                first.architecture,
            )


def test_every_fact_has_a_source_and_a_confidence():
    data = tomllib.loads((files("provision.compat") / "compat.toml").read_text())
    entries = [one for name, group in data.items() if name != "meta" for one in
               (group if isinstance(group, list) else group.values())]  # fmt: skip

    assert len(entries) > 150
    for entry in entries:
        assert str(entry.get("from") or entry["source"]).strip()
        assert entry["confidence"] in ("high", "medium", "low")


def test_the_facts_refer_to_each_other():
    """A look-up that finds nothing would be a crash in the middle of a plan."""
    known = facts()

    assert {one.branch for one in known.offers} <= set(known.branches)
    assert {one.cuda for one in known.builds} | {one.version for one in known.toolkits} <= set(known.cuda)
    assert {int(one.version.split(".")[0]) for one in known.toolkits} <= set(known.cuda_majors)
    for one in known.builds:
        floor = known.cuda_majors[int(one.cuda.split(".")[0])][0]
        assert one.minimum_driver == floor
        assert version(one.python[0]) <= version(one.python[1])
    for one in known.offers:
        assert one.branch in (version(one.version or known.branches[one.branch].newest)[0],)
        assert set(one.modules) <= set(known.branches[one.branch].modules)


def test_every_card_from_fermi_on_has_an_architecture_and_no_older_one_has():
    for row in rows():
        found = cards.card("10de:" + row["pci_device_id"].split()[0])
        old = version(row["branch"].removesuffix(".xx"))[:1] not in ((), (367,), (390,), (470,), (580,))
        assert bool(found.architecture) != old, row


@pytest.mark.parametrize("path", sorted((ROOT / "provision" / "compat").glob("*.py")), ids=lambda path: path.name)
def test_the_resolver_does_no_input_or_output_but_for_its_own_data(path: Path):
    assert not {name.split(".")[0] for name in imports(path)} & IO_MODULES


@pytest.mark.parametrize(
    ("capability", "code", "by"),
    [
        ("8.9", ["sm_86"], "sm_86"),
        ("8.6", ["sm_89"], ""),
        ("9.0", ["sm_80", "compute_80"], "compute_80"),
        ("12.0", ["sm_100"], ""),
        ("10.3", ["sm_100"], "sm_100"),
        ("7.0", ["compute_75"], ""),
    ],
)
def test_machine_code_runs_on_its_major_version_and_ptx_on_anything_newer(capability: str, code: list[str], by: str):
    assert cards.serves(capability, code) == by
