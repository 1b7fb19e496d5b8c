"""From a host's files to its plan: the real checks, the real resolver, planted hosts."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from provision.compat.model import Machine, Wish
from provision.host_plan import changes
from provision.host_plan.machine import facts_of, machine_from
from provision.host_plan.make import plan_of_facts, plan_of_machine
from provision.host_plan.model import HostPlan
from provision.profile import Profile, load_profile
from tests.unit.host_tree import H200_X4, tree
from tests.unit.planted_host import (
    CARD,
    DAY,
    DRIVER,
    KERNEL,
    STANDARD,
    bare,
    blocked,
    facts,
    kinds,
    loaded,
    measured,
    package,
    plan,
    status,
)
from validators.schema import Measurement, decode

STATUS = "/var/lib/dpkg/status"
TOOLS = "\n".join(
    package(name, "1.19.1-1")
    for name in (
        "nvidia-container-toolkit",
        "nvidia-container-toolkit-base",
        "libnvidia-container-tools",
        "libnvidia-container1",
        "docker-ce",
        "nvtop",
    )
)
SOURCE = {
    "/etc/apt/sources.list.d/nvidia.sources": (
        "Types: deb\nURIs: https://developer.download.nvidia.com/compute/cuda/repos/ubuntu2404/x86_64/\nSuites: /\n"
    )
}
NONE = replace(STANDARD, wish=Wish(source="none"))


def test_the_machine_of_a_recorded_host(tmp_path: Path):
    machine = machine_from(facts(tmp_path, tree(H200_X4)))

    assert machine == Machine(
        gpus=("10de:2335 10de:18be",) * 4 if machine.gpus[0].endswith("18be") else ("10de:2335 10de:18bf",) * 4,
        os="ubuntu-24.04",
        kernel="6.18.44-fc-v657-gpu",
        architecture="x86_64",
        secure_boot=False,
    )


def test_a_bare_host_gets_the_driver_the_hold_and_the_tools_and_nothing_blocks(tmp_path: Path):
    made = plan(tmp_path)

    assert made.blockers == ()
    assert kinds(made) == [
        ("configure", "NVIDIA's repository"),
        ("install", "driver"),
        ("hold", "driver packages"),
        ("install", "container_toolkit"),
        ("install", "docker"),
        ("install", "nvtop"),
    ]
    assert made.reboot is False, "nothing is loaded: the new module is"
    assert made.changes[1].then == "580"


def test_a_bare_hosts_variables_are_those_of_the_roles(tmp_path: Path):
    assert plan(tmp_path).variables == {
        "nvidia_repository_wanted": True,
        "nvidia_driver_source": "nvidia",
        "nvidia_driver_branch": "580",
        "nvidia_driver_version": "",
        "nvidia_driver_module": "open",
        "nvidia_driver_packages": list(DRIVER),
        "nvidia_driver_pin_package": "nvidia-driver-pinning-580",
        "fabric_manager_wanted": False,
        "fabric_manager_packages": [],
        "cuda_toolkit_versions": [],
        "cuda_toolkit_packages": [],
        "container_toolkit_wanted": True,
        "container_toolkit_version": "",
        "docker_source": "vendor",
        "nvtop_from": "auto",
        "frameworks": [],
        "ngc_images": [],
    }


def test_every_variable_of_a_plan_is_one_of_a_roles(tmp_path: Path):
    """A name that no role takes would be lost without a word."""
    roles = Path(__file__).parents[2] / "playbooks" / "roles"
    texts = [path.read_text() for path in roles.glob("*/defaults/main.yml")]

    named = {name for text in texts if "bringup_plan" in text for name in re.findall(r"[a-z\]]\.(\w+)", text)}

    assert set(plan(tmp_path).variables) - named == set()


def test_a_mirror_that_the_role_has_set_up_is_not_set_up_again(tmp_path: Path):
    mirrored = {"/etc/apt/sources.list.d/nvidia.sources": "Types: deb\nURIs: https://mirror.example/x\nSuites: ./\n"}

    assert ("configure", "NVIDIA's repository") not in kinds(plan(tmp_path, **mirrored))


def test_a_whole_version_is_passed_on_as_branch_and_version(tmp_path: Path):
    made = plan(tmp_path, replace(STANDARD, wish=Wish(branch="580.159.04", cuda=("13.0", "12.9"))))

    assert made.variables["nvidia_driver_branch"] == "580"
    assert made.variables["nvidia_driver_version"] == "580.159.04"
    assert made.variables["cuda_toolkit_versions"] == ["13.0", "12.9"]
    assert made.variables["cuda_toolkit_packages"] == ["cuda-toolkit-13-0", "cuda-toolkit-12-9"]


def test_frameworks_come_from_the_wheels_index_and_extras_beside_it(tmp_path: Path):
    profile = replace(
        STANDARD, wish=Wish(frameworks={"torch": "auto"}), extras={"torch": ("opencv-python-headless==4.12.0.88",)}
    )
    made = plan(tmp_path, profile)

    (entry,) = made.variables["frameworks"]  # type: ignore[misc]  # variables are plain objects
    assert entry["packages"][0].startswith("torch==")
    assert entry["packages"][1:] == ["opencv-python-headless==4.12.0.88"]
    part = made.resolution.part("torch")
    assert part is not None
    if part.index:
        assert entry["extra_index_url"].endswith(f"/{part.index}")
        assert "index_url" not in entry


CONVERGED = {
    STATUS: f"{status(DRIVER, '580.159.04-1', held=True)}\n{TOOLS}",
    **SOURCE,
    **loaded("580.159.04"),
    "/dev/nvidia0": "",
}


def test_a_converged_host_has_nothing_to_change(tmp_path: Path):
    made = plan(tmp_path, **CONVERGED)

    assert made.changes == ()
    assert (made.blockers, made.reboot) == ((), False)


def test_jobs_on_a_converged_host_block_nothing(tmp_path: Path):
    job(tmp_path, "python3")
    assert plan(tmp_path, **CONVERGED).blockers == ()


OLD = ("libnvidia-compute-570", "nvidia-dkms-570-open", "nvidia-utils-570")


def test_an_older_branch_is_upgraded_and_its_packages_removed_and_the_host_reboots(tmp_path: Path):
    made = plan(tmp_path, **{**CONVERGED, STATUS: f"{status(OLD, '570.211.01-1')}\n{TOOLS}", **loaded("570.211.01")})

    assert kinds(made) == [("remove", made.changes[0].what), ("upgrade", "driver"), ("hold", "driver packages")]
    assert made.changes[0].what == ", ".join(OLD)
    assert (made.changes[1].now, made.changes[1].then) == ("570.211.01", "580")
    assert made.reboot
    assert "570.211.01 is loaded" in made.reboot_because


def test_a_newer_version_than_asked_for_is_a_downgrade(tmp_path: Path):
    wish = Wish(branch="580.159.04")
    made = plan(tmp_path, replace(STANDARD, wish=wish), **{**CONVERGED, STATUS: status(DRIVER, "580.178.04-1")})

    assert ("downgrade", "driver") in kinds(made)


def test_another_module_flavour_is_a_change_and_a_reboot(tmp_path: Path):
    made = plan(tmp_path, **{**CONVERGED, **loaded("580.159.04", "proprietary")})

    assert kinds(made) == [("configure", "kernel module")]
    assert made.reboot
    assert made.changes[0].now == "proprietary"


def test_nouveau_is_kept_from_loading_and_the_host_reboots(tmp_path: Path):
    made = plan(tmp_path, **{"/proc/modules": "nouveau 1 0 - Live 0x0\n"})

    assert ("configure", "nouveau") in kinds(made)
    assert made.reboot
    assert "nouveau" in made.reboot_because


def test_signed_modules_may_come_with_a_newer_kernel_and_the_plan_says_so(tmp_path: Path):
    made = plan(tmp_path, replace(STANDARD, wish=Wish(source="distro")))

    assert not made.reboot
    assert "newer kernel" in made.reboot_because


def test_missing_headers_are_installed_first(tmp_path: Path):
    made = plan(tmp_path, **{f"/lib/modules/{KERNEL}/build/Makefile": None})

    what = [one.what for one in made.changes]
    assert what.index(f"linux-headers-{KERNEL}") < what.index("driver")


def test_a_driver_of_another_version_than_its_packages_reboots_only_when_it_changes(tmp_path: Path):
    """The module of the last version is still loaded after an upgrade: that is the host's own reboot, not ours."""
    made = plan(tmp_path, **{**CONVERGED, **loaded("580.126.09")})
    assert made.changes == ()
    assert made.reboot is False


def test_switches_bring_the_fabric_manager_in_the_drivers_version(tmp_path: Path):
    switch = "/sys/bus/pci/devices/0000:00:10.0"
    made = plan(tmp_path, **{f"{switch}/vendor": "0x10de", f"{switch}/device": "0x22a3", f"{switch}/class": "0x068000"})

    assert made.machine.nvswitches == 1
    assert ("install", "fabric_manager") in kinds(made)
    assert made.variables["fabric_manager_wanted"] is True
    assert made.variables["fabric_manager_packages"]


@pytest.mark.parametrize(("docker", "removed"), [("vendor", "docker.io, containerd"), ("distro", ""), ("none", "")])
def test_what_dockers_own_packages_replace_is_listed(
    tmp_path: Path, docker: Literal["vendor", "distro", "none"], removed: str
):
    names = ("containerd", "docker.io")
    made = plan(
        tmp_path, replace(STANDARD, docker=docker), **{STATUS: status(names, "1.7.24-0ubuntu1", vendor="ubuntu")}
    )

    assert [one.what for one in made.changes if one.kind == "remove"] == ([removed] if removed else [])
    assert (("install", "docker") in kinds(made)) == (docker == "vendor"), "docker.io is there"


def test_what_the_plan_says_is_replaced_is_what_the_role_removes():
    role = (Path(__file__).parents[2] / "playbooks" / "roles" / "docker" / "defaults" / "main.yml").read_text()
    listed = role.partition("docker_vendor_conflicts:\n")[2].partition("\ndocker_")[0]

    assert tuple(re.findall(r"- (\S+)", listed)) == changes.DOCKER_REPLACES


# --- blockers -----------------------------------------------------------------------------------------------------

EFI = "/sys/firmware/efi/efivars"
SECURE = {f"{EFI}/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c": {"hex": "0600000001"}}
KEY = "3082aa" * 20
MOK = {"/var/lib/shim-signed/mok/MOK.der": {"hex": KEY}}
LISTED = {f"{EFI}/MokListRT-605dab50-e046-4300-abb6-3dd810dd8b23": {"hex": "00" + KEY}}


def test_secure_boot_with_a_key_that_is_not_enrolled_blocks_and_says_how_to_enrol_it(tmp_path: Path):
    made = plan(tmp_path, **SECURE, **MOK)

    assert "is not enrolled" in blocked(made)
    assert "mokutil --import /var/lib/shim-signed/mok/MOK.der" in blocked(made)
    assert "Enroll MOK" in blocked(made)
    assert made.machine.secure_boot is True


def test_secure_boot_without_any_key_says_how_to_make_one(tmp_path: Path):
    assert "update-secureboot-policy --new-key" in blocked(plan(tmp_path, **SECURE))


def test_secure_boot_with_an_enrolled_key_blocks_nothing(tmp_path: Path):
    assert plan(tmp_path, **SECURE, **MOK, **LISTED).blockers == ()


def test_secure_boot_with_ubuntus_signed_modules_blocks_nothing(tmp_path: Path):
    made = plan(tmp_path, replace(STANDARD, wish=Wish(source="distro")), **SECURE)
    assert made.blockers == ()
    assert any(name.startswith("linux-modules-nvidia-") for name in made.variables["nvidia_driver_packages"])  # type: ignore[attr-defined]  # a list


def test_secure_boot_does_not_block_a_host_whose_driver_stays(tmp_path: Path):
    assert plan(tmp_path, **CONVERGED, **SECURE).blockers == ()


def job(root: Path, name: str, pid: int = 4711) -> None:
    folder = root / f"proc/{pid}/fd"
    folder.mkdir(parents=True)
    (root / f"proc/{pid}/comm").write_text(name)
    (folder / "3").symlink_to("/dev/nvidia0")


BEFORE = {**CONVERGED, STATUS: status(OLD, "570.211.01-1"), **loaded("570.211.01")}


def test_a_job_on_the_gpu_blocks_a_driver_change_and_is_named(tmp_path: Path):
    job(tmp_path, "python3")
    assert "1 process on the GPU: python3 (pid 4711) -> drain" in blocked(plan(tmp_path, **BEFORE))


@pytest.mark.parametrize("name", ["nvidia-persiste", "nv-hostengine", "nv-fabricmanage"])
def test_the_drivers_own_services_are_no_jobs(tmp_path: Path, name: str):
    job(tmp_path, name)
    assert plan(tmp_path, **BEFORE).blockers == ()


@pytest.mark.parametrize(("path", "part"), [("/usr", "driver"), ("/var", "driver"), ("/boot", "driver")])
def test_too_little_room_blocks_and_names_the_place(tmp_path: Path, path: str, part: str):
    made = plan(tmp_path, free_mib={path: 50})
    assert f"{path} has 50 MiB free; {part}" in blocked(made)


def test_room_is_counted_once_a_file_system_and_for_every_toolkit(tmp_path: Path):
    profile = replace(STANDARD, wish=Wish(cuda=("13.0", "12.9")))
    assert plan(tmp_path / "a", profile, free_mib={"/usr": 20_000}).blockers == ()
    assert "/usr has 12,000 MiB free" in blocked(plan(tmp_path / "b", profile, free_mib={"/usr": 12_000}))


def test_needs_of_one_file_system_are_added_up(tmp_path: Path):
    """A root file system of 11 GB has room for CUDA's files or for its download, and not for both at once."""
    profile = replace(STANDARD, wish=Wish(cuda=("13.0",)))
    records = measured(tmp_path, bare())
    one_disk = [
        replace(one, value=11_000)
        if isinstance(one, Measurement) and one.metric == "disk_free" and one.value is not None
        else one
        for one in records
    ]

    made = plan_of_facts("box", facts_of(one_disk), profile, today=DAY)

    (only,) = made.blockers
    assert only.what.startswith("/ has 11,000 MiB free; driver, cuda_toolkit, docker need about")


def test_a_run_installers_driver_blocks_and_names_its_own_removal(tmp_path: Path):
    log = {"/var/log/nvidia-installer.log": "installer version: 570.86.15\n"}
    made = plan(tmp_path, **{"/usr/bin/nvidia-uninstall": ""}, **log, **loaded("570.86.15"))

    assert "driver 570.86.15 from NVIDIA's .run file" in blocked(made)
    assert "sudo /usr/bin/nvidia-uninstall" in blocked(made)


def test_a_ppas_driver_of_another_branch_blocks(tmp_path: Path):
    ppa = status(OLD, "570.133.07-0ubuntu0~gpu24.04.1", vendor="ubuntu")
    made = plan(tmp_path, **{STATUS: ppa})

    assert "there is a driver from a PPA: libnvidia-compute-570 570.133.07-0ubuntu0~gpu24.04.1 and 2 more" in blocked(
        made
    )
    assert "of branch 570 where 580 is planned" in blocked(made)
    assert f"sudo apt-get purge {' '.join(OLD)}" in blocked(made)


def test_the_distributions_driver_blocks_nvidias_and_may_be_kept(tmp_path: Path):
    there = {STATUS: status(OLD, "570.211.01-0ubuntu0.24.04.1", vendor="ubuntu")}

    assert "there is a driver from the distribution" in blocked(plan(tmp_path / "a", **there))
    assert 'or keep it with [driver] source = "distro"' in blocked(plan(tmp_path / "b", **there))


def test_a_driver_of_unknown_make_from_nvidias_archive_is_nvidias(tmp_path: Path):
    """As on hosts with a rebuilt mirror: the Maintainer says nothing, the archive's label does."""
    lists = "/var/lib/apt/lists/mirror.example_cuda_"
    entries = "\n".join(f"Package: {name}\nVersion: 570.211.01-1\n" for name in OLD)
    labelled = {f"{lists}Packages": entries, f"{lists}InRelease": "Origin: NVIDIA\nLabel: NVIDIA CUDA\n"}
    there = status(OLD, "570.211.01-1").replace("cudatools <cudatools@nvidia.com>", "x <x@x.invalid>")

    assert plan(tmp_path / "a", **labelled, **{STATUS: there}).blockers == ()
    assert "an archive that apt does not know" in blocked(plan(tmp_path / "b", **{STATUS: there}))


def test_a_half_configured_package_blocks_whatever_is_planned(tmp_path: Path):
    broken = package("linux-firmware", "1", "install ok half-configured", "ubuntu")
    made = plan(tmp_path, NONE, **{STATUS: broken})

    assert "linux-firmware (half-configured)" in blocked(made)
    assert "dpkg --configure -a" in blocked(made)


def test_an_unfinished_journal_of_dpkg_blocks(tmp_path: Path):
    assert "was interrupted" in blocked(plan(tmp_path, **{"/var/lib/dpkg/updates/0003": "x"}))


def test_wsl_blocks_and_names_windows(tmp_path: Path):
    made = plan(tmp_path, **{"/proc/sys/kernel/osrelease": "5.15.167.4-microsoft-standard-WSL2"})
    assert "this is WSL" in blocked(made)


def test_a_container_blocks_a_driver_but_not_an_image_build(tmp_path: Path):
    inside = {"/.dockerenv": ""}
    assert "in a container (docker)" in blocked(plan(tmp_path / "a", **inside))
    assert plan(tmp_path / "b", NONE, **inside).blockers == ()
    built = plan(tmp_path / "c", load_profile("image"), **inside)
    assert built.blockers == ()
    assert any("its module cannot be loaded here" in one for one in built.warnings)


def test_a_driver_that_no_package_brings_is_left_to_whoever_brings_it(tmp_path: Path):
    """The recorded H200 hosts are such: the cloud puts the driver into /usr/local/nvidia."""
    host = {**tree(H200_X4), STATUS: package("base-files", "13")}
    made = plan_of_facts("box", facts(tmp_path, host), STANDARD, today=DAY)

    assert "driver 580.159.04 is loaded and no package brings it (its libraries: /usr/local/nvidia" in blocked(made)
    assert made.found["driver_source"] == "not from packages"
    left = plan_of_facts("box", facts(tmp_path / "b", host), NONE, today=DAY)
    assert left.blockers == ()
    assert "driver" not in [one.what for one in left.changes]


def test_an_unsupported_card_blocks_with_the_facts_source(tmp_path: Path):
    made = plan(tmp_path, **{f"{CARD}/device": "0x118a", f"{CARD}/subsystem_device": "0x0000"})

    assert "GRID K520" in blocked(made)
    assert made.blockers[0].because[0].source
    assert made.variables["nvidia_driver_source"] == "none"


def test_a_host_without_a_gpu_where_one_is_required_is_blocked(tmp_path: Path):
    gone = {f"{CARD}/{name}": None for name in ("vendor", "device", "class")}

    assert "no NVIDIA GPU" in blocked(plan(tmp_path / "a", **gone))
    required = replace(STANDARD, wish=Wish(branch="580"))
    assert "the profile requires one" in blocked(plan(tmp_path / "b", required, **gone))


def test_a_host_without_a_gpu_goes_on_without_the_gpus_parts_and_says_so(tmp_path: Path):
    gone = {f"{CARD}/{name}": None for name in ("vendor", "device", "class")}
    profile = replace(STANDARD, gpu_required=False, wish=Wish(cuda=("13.0",)))

    made = plan(tmp_path, profile, **gone)

    assert made.blockers == ()
    assert (
        made.warnings[0] == "no NVIDIA GPU is on the PCI bus: the driver, CUDA and the container toolkit are left out"
    )
    assert kinds(made) == [("install", "docker"), ("install", "nvtop")]
    assert made.variables["nvidia_driver_source"] == "none"


def test_an_unknown_number_of_gpus_is_not_none(tmp_path: Path):
    """No PCI bus is shown: nothing may be left out silently."""
    files = {path: one for path, one in bare().items() if not path.startswith("/sys/bus/pci")}
    made = plan_of_facts("box", facts(tmp_path, files), replace(STANDARD, gpu_required=False), today=DAY)

    assert made.blockers != ()


def recorded(name: str, profile: Profile) -> HostPlan:
    """A plan of the records of a real H200 host (Ubuntu 24.04, a container of a cloud)."""
    path = Path(__file__).parents[1] / "fixtures" / "plan" / f"h200-ubuntu-24.04-{name}.jsonl"
    records = [decode(line.encode()) for line in path.read_text().splitlines()]
    return plan_of_facts("h200", facts_of(records), profile, today=DAY)


def test_a_real_h200_host_at_work_is_blocked_by_what_is_so_there():
    made = recorded("job", load_profile("standard"))

    whats = [one.what for one in made.blockers]
    assert [text.split(":")[0].split(" (")[0] for text in whats] == [
        "this runs in a container",
        "driver 580.159.04 is loaded and no package brings it",
        "1 process on the GPU",
    ]
    assert "python3 (pid 418)" in whats[2]
    assert made.reboot is False


def test_cuda_and_wheels_are_held_against_the_driver_that_stays():
    """The H200's 580.159.04 has CUDA 13.0 in itself: torch comes from cu130, and not from the default cu132."""
    profile = load_profile("training")
    made = recorded("idle", replace(profile, wish=replace(profile.wish, source="none")))

    assert made.blockers == ()
    assert made.resolution.part("driver") is None
    torch = made.resolution.part("torch")
    assert torch is not None
    assert torch.index == "cu130"


def test_with_source_none_the_driver_that_was_measured_goes_before_the_one_that_the_profile_names():
    profile = load_profile("training")
    made = recorded("idle", replace(profile, wish=replace(profile.wish, source="none", branch="535")))

    assert made.blockers == (), "CUDA 13.0 is not for driver 535, which is not there"


# --- warnings -----------------------------------------------------------------------------------------------------


def test_unattended_upgrades_warn_until_the_driver_is_on_hold(tmp_path: Path):
    on = {"/etc/apt/apt.conf.d/20auto-upgrades": 'APT::Periodic::Unattended-Upgrade "1";\n'}
    both = package("unattended-upgrades", "2.9", vendor="ubuntu")

    free = plan(tmp_path / "a", **{**CONVERGED, **on, STATUS: f"{status(DRIVER, '580.159.04-1')}\n{both}"})
    held = plan(tmp_path / "b", **{**CONVERGED, **on, STATUS: f"{status(DRIVER, '580.159.04-1', held=True)}\n{both}"})

    assert any("unattended-upgrades is on" in one for one in free.warnings)
    assert ("hold", "driver packages") in kinds(free)
    assert not any("unattended" in one for one in held.warnings)


def test_a_next_kernel_without_headers_warns(tmp_path: Path):
    made = plan(tmp_path, **{"/boot/vmlinuz-6.8.0-106-generic": ""})
    assert any("6.8.0-106-generic, whose headers are not installed" in one for one in made.warnings)


def test_headers_that_no_list_has_warn(tmp_path: Path):
    gone = {f"/lib/modules/{KERNEL}/build/Makefile": None}
    named = "/var/lib/apt/lists/a.example_dists_noble_main_binary-amd64_Packages"

    without = plan(tmp_path / "a", **gone, **{named: "Package: linux-headers-1\nVersion: 1\n"})
    there = plan(tmp_path / "b", **gone, **{named: f"Package: linux-headers-{KERNEL}\nVersion: 1\n"})
    compressed = plan(tmp_path / "c", **gone, **{named: "Package: x\nVersion: 1\n", f"{named}.lz4": "x"})

    assert any(f"no linux-headers-{KERNEL}" in one for one in without.warnings)
    assert not any("linux-headers" in one for one in (*there.warnings, *compressed.warnings))


@pytest.mark.parametrize(("skew", "word"), [(-86400.0, "86,400 s behind"), (61.0, "61 s ahead")])
def test_a_clock_that_is_off_warns(tmp_path: Path, skew: float, word: str):
    measured = facts(tmp_path, bare())

    assert word in plan_of_facts("box", measured, STANDARD, today=DAY, skew_s=skew).warnings[0]
    assert plan_of_facts("box", measured, STANDARD, today=DAY, skew_s=59.0).warnings == ()


def test_a_branch_past_its_support_is_said(tmp_path: Path):
    made = plan(tmp_path, replace(STANDARD, wish=Wish(source="distro", branch="535")))
    assert any("has ended" in one for one in made.resolution.notes) or made.blockers


def test_cloud_init_and_a_pending_reboot_warn(tmp_path: Path):
    made = plan(tmp_path, **{"/run/cloud-init/enabled": "", "/run/reboot-required": ""})

    assert any("cloud-init" in one for one in made.warnings)
    assert any("asks for a reboot already" in one for one in made.warnings)


# --- without a host -----------------------------------------------------------------------------------------------


def test_without_a_host_only_the_resolver_speaks():
    made = plan_of_machine("card", Machine(gpus=("10de:1b06",), os="ubuntu-24.04"), STANDARD, today=DAY)

    assert made.blockers == ()
    assert made.variables["nvidia_driver_module"] == "proprietary"
    assert made.variables["nvidia_driver_branch"] == "580"
    assert made.reboot_because == "not known without a host"


@pytest.mark.parametrize("name", ["standard", "training", "inference", "image"])
def test_every_profile_that_comes_along_plans_an_h200(tmp_path: Path, name: str):
    profile: Profile = load_profile(name)
    made = plan(tmp_path, profile)
    assert made.blockers == (), blocked(made)
