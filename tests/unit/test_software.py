from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.need import need
from tests.unit.host_tree import H200, TREES, VM, Measured, grow, measure, text, tools, tree
from validators.checks import software
from validators.probes import driver, kernel_log, packages
from validators.probes.sysfs import Files
from validators.schema import NOT_APPLICABLE, UNKNOWN

LDCONFIG = text("ldconfig-p-h200-580.159.04.txt")
KERNEL = "6.18.44-fc-v657-gpu"
MODULES = f"/lib/modules/{KERNEL}"
# Of Debian 12's own package, cut in its parameters and signature. The open module's licence is the one that NVIDIA's
# README (595, chapter 45) names.
MODINFO = text("modinfo-nvidia-current-535.261.03.txt")
OPEN = MODINFO.replace("535.261.03", "580.159.04").replace("license:        NVIDIA", "license:        Dual MIT/GPL")


def look(
    root: Path, name: str = H200, *, without: tuple[str, ...] = (), said: Sequence[str] = (), **files: Any
) -> Measured:
    outputs = files.pop("outputs", {"ldconfig": LDCONFIG})
    grown = {path: one for path, one in {**tree(name), **files}.items() if not path.startswith(without or ("\0",))}
    return measure("software", software.collect, grow(root, grown), tools(**outputs), lambda: said)


NO_MODULE = ("/proc/driver/nvidia", "/proc/modules", "/sys/module/nvidia", "/dev/nvidia")


def test_a_recorded_h200_host_fits_itself(tmp_path: Path):
    host = look(tmp_path)

    assert host.value("module_loaded_version") == "580.159.04"
    assert host.value("module_flavour") == "open"
    assert host.value("module_for_kernel") is True
    assert "no file of it" in host.one("module_for_kernel").note
    assert host.value("userspace_version", library="libcuda") == "580.159.04"
    assert host.one("userspace_version", library="libnvidia-ml").labels["path"].endswith("libnvidia-ml.so.580.159.04")
    assert host.value("driver_consistent") is True
    assert (host.value("device_nodes"), host.value("device_control_node"), host.value("uvm_node")) == (1, True, True)
    assert host.value("nouveau_loaded") is False


def test_a_host_without_a_driver_has_absences_and_no_good_values(tmp_path: Path):
    host = look(tmp_path, VM, outputs={})

    for metric in ("module_loaded_version", "module_flavour", "driver_consistent", "cuda_toolkit", "docker", "nvtop"):
        assert host.one(metric).absence == NOT_APPLICABLE, metric
    assert {one.absence for one in host.all("userspace_version")} == {NOT_APPLICABLE}
    assert host.one("module_for_kernel").absence == NOT_APPLICABLE
    assert host.value("device_nodes") == 0
    assert host.one("module_package_version").absence == UNKNOWN


def test_a_card_without_a_driver_lacks_its_module(tmp_path: Path):
    card = "/sys/bus/pci/devices/0000:00:06.0"

    host = look(
        tmp_path,
        VM,
        outputs={},
        **{f"{card}/vendor": "0x10de\n", f"{card}/device": "0x2335\n", f"{card}/class": "0x030200\n"},
    )

    assert host.value("module_for_kernel") is False
    assert host.value("uvm_node") is False


def test_a_library_of_another_version_is_told(tmp_path: Path):
    new = "/usr/local/nvidia/lib64/libnvidia-ml.so.580.178.04"

    host = look(
        tmp_path, **{new: "", "/usr/local/nvidia/lib64/libnvidia-ml.so.1": {"link": "libnvidia-ml.so.580.178.04"}}
    )

    assert host.value("driver_consistent") is False
    assert "580.178.04" in host.one("driver_consistent").note


def test_a_library_without_a_version_in_its_name_is_unknown(tmp_path: Path):
    host = look(tmp_path, **{"/usr/local/nvidia/lib64/libnvidia-ml.so.1": ""})

    assert host.one("userspace_version", library="libnvidia-ml").absence == UNKNOWN
    assert host.one("driver_consistent").absence == UNKNOWN


def test_libraries_are_found_without_ldconfig(tmp_path: Path):
    assert look(tmp_path, outputs={}).value("driver_consistent") is True


@pytest.mark.parametrize(
    "place",
    [
        "updates/dkms/nvidia-current.ko.xz",
        "updates/dkms/nvidia.ko.zst",
        "updates/dkms/nvidia-current-open.ko",
        "updates/dkms/nvidia-tesla-470.ko",
        "kernel/nvidia-580srv-open/nvidia.ko",
    ],
)
def test_a_module_file_for_the_running_kernel_is_found(tmp_path: Path, place: str):
    files = {f"{MODULES}/{place}": "", f"{MODULES}/modules.dep": f"kernel/a.ko: kernel/b.ko\n{place}: kernel/b.ko\n"}

    host = look(tmp_path, without=NO_MODULE, outputs={"modinfo": OPEN, "ldconfig": LDCONFIG}, **files)

    assert host.value("module_for_kernel") is True
    assert host.one("module_for_kernel").labels["path"] == f"{MODULES}/{place}"
    assert host.value("module_file_version") == "580.159.04"
    assert host.value("module_flavour", loaded="no") == "open"


def test_a_dkms_module_counts_before_depmod_ran(tmp_path: Path):
    host = look(tmp_path, without=NO_MODULE, **{f"{MODULES}/updates/dkms/nvidia.ko": ""})

    assert host.value("module_for_kernel") is True
    assert host.one("module_flavour").absence == UNKNOWN


def test_a_module_that_modules_dep_lists_but_that_is_gone_does_not_count(tmp_path: Path):
    host = look(tmp_path, without=NO_MODULE, **{f"{MODULES}/modules.dep": "updates/dkms/nvidia.ko: x.ko\n"})

    assert host.value("module_for_kernel") is False


DKMS = "/lib/modules/6.1.0-50-cloud-amd64/updates/dkms/nvidia-current.ko"
DEBIAN: dict[str, Any] = {"/proc/sys/kernel/osrelease": "6.1.0-50-cloud-amd64\n", DKMS: ""}
DMESG = kernel_log.parse_text(
    (TREES.parent / "kernel_log" / "dmesg-debian-12-vm-without-gpu-535.261.03.txt").read_text(), "dmesg"
)
SAID = [line.text for line in DMESG.lines]


def test_debian_s_own_driver_without_a_gpu_is_there_and_not_loaded_and_why(tmp_path: Path):
    host = look(tmp_path, VM, outputs={"modinfo": MODINFO}, said=SAID, **DEBIAN)

    assert host.one("module_for_kernel").labels["path"] == DKMS
    assert host.value("module_file_version") == "535.261.03"
    assert host.value("module_flavour", loaded="no") == "proprietary"
    loaded = host.one("module_loaded_version")
    assert loaded.absence == NOT_APPLICABLE
    assert loaded.note == (
        f"no nvidia module is loaded; {DKMS} is there for this kernel, and no NVIDIA GPU on the PCI bus; "
        'the kernel\'s log: "NVRM: No NVIDIA GPU found."'
    )


def test_without_a_readable_kernel_log_the_missing_gpu_still_explains(tmp_path: Path):
    note = look(tmp_path, VM, outputs={"modinfo": MODINFO}, **DEBIAN).one("module_loaded_version").note

    assert note.endswith("no NVIDIA GPU on the PCI bus")


def test_a_driver_for_another_kernel_is_told_without_a_gpu_too(tmp_path: Path):
    host = look(tmp_path, VM, outputs={}, **{**DEBIAN, "/proc/sys/kernel/osrelease": "6.1.0-50-amd64\n"})

    assert host.value("module_for_kernel") is False
    assert host.one("module_for_kernel").labels["other_kernels"] == "6.1.0-50-cloud-amd64"
    assert host.one("module_loaded_version").note == "no nvidia module is loaded"


ATTEMPT = "nvidia-nvlink: Nvlink Core is being initialized, major device number 244"


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (SAID, "NVRM: No NVIDIA GPU found."),
        ([], ""),
        ([*SAID, ATTEMPT], "NVRM: No NVIDIA GPU found."),
        (["NVRM: API mismatch", ATTEMPT, "NVRM: No NVIDIA GPU found."], "NVRM: No NVIDIA GPU found."),
        (["NVRM: The NVIDIA GPU 0000:01:00.0", "usb 1-1: x", "NVRM: installed in this system is not supported"],
         "NVRM: The NVIDIA GPU 0000:01:00.0 NVRM: installed in this system is not supported"),
        (["nvidia: version magic '6.1.0' should be '6.8.0'"], "nvidia: version magic '6.1.0' should be '6.8.0'"),
        (["Loading of unsigned module is rejected"], "Loading of unsigned module is rejected"),
        (["NVRM: " + "x" * 999], "NVRM: " + "x" * 294),
        (["mce: NVRM: not the driver's"], ""),
    ],
    ids=["recorded", "nothing", "one under way", "the last attempt alone", "two lines", "another kernel's", "unsigned",
         "long", "other"],
)  # fmt: skip
def test_what_the_kernel_said_of_the_last_attempt(said: Sequence[str], reason: str):
    assert driver.last_attempt(said) == reason


def test_other_modules_of_nvidia_are_not_the_module(tmp_path: Path):
    files = {
        f"{MODULES}/updates/{name}": ""
        for name in ("nvidia-uvm.ko", "nvidia-drm.ko", "nvidia-peermem.ko", "i2c-nvidia-gpu.ko")
    }

    assert look(tmp_path, without=NO_MODULE, **files).value("module_for_kernel") is False


def test_a_module_for_another_kernel_is_named(tmp_path: Path):
    other = "/lib/modules/6.8.0-40-generic/updates/dkms/nvidia.ko.zst"
    log = "/var/lib/dkms/nvidia/580.159.04/build/make.log"

    host = look(tmp_path, without=NO_MODULE, **{other: "", log: "error"})

    found = host.one("module_for_kernel")
    assert found.value is False
    assert found.labels["other_kernels"] == "6.8.0-40-generic"
    assert found.labels["build_log"] == log


def test_nouveau_is_seen(tmp_path: Path):
    assert look(tmp_path, **{"/proc/modules": "nouveau 2306048 0 - Live 0x0\n"}).value("nouveau_loaded") is True


def test_packages_are_read_from_dpkg_s_file_held_ones_too(tmp_path: Path):
    files = {
        "/var/lib/dpkg/status": text("dpkg-status-ubuntu-24.04.txt"),
        "/proc/sys/kernel/osrelease": "6.8.0-88-generic\n",
    }

    host = look(tmp_path, **files)

    modules = {one.labels["package"]: one.value for one in host.all("module_package_version")}
    assert modules == {
        "nvidia-dkms-580-server-open": "580.159.04",
        "linux-modules-nvidia-580-server-open-6.8.0-88-generic": "580",
    }
    assert host.value("docker") == "27.3.1"
    assert host.value("container_toolkit") == "1.17.8"
    assert host.value("fabric_manager") == "580.159.04"
    assert host.one("nvtop").absence == NOT_APPLICABLE, "half-configured is not installed"


@pytest.mark.parametrize(
    ("name", "version", "module"),
    [
        ("nvidia-kernel-dkms", "535.309.01-1~deb12u1", "535.309.01"),
        ("nvidia-open-kernel-dkms", "550.163.01-2", "550.163.01"),
        ("nvidia-kernel-open-dkms", "1:590.48.01-1", "590.48.01"),
        ("nvidia-tesla-470-kernel-dkms", "470.256.02-1~deb12u1", "470.256.02"),
        ("nvidia-dkms-open", "595.71.05-1ubuntu1", "595.71.05"),
        ("nvidia-utils-580-server", "580.178.04-0ubuntu0.24.04.1", None),
    ],
)
def test_the_package_that_brings_the_module_is_known_by_its_name(name: str, version: str, module: str | None):
    assert driver.module_packages({name: version}, "6.1.0").get(name) == module


@pytest.mark.parametrize(
    ("version", "upstream"),
    [("5:27.3.1-1~ubuntu.24.04~noble", "27.3.1"), ("20.10.24+dfsg1-1+deb12u1+b2", "20.10.24"), ("garbage", "garbage")],
)
def test_the_upstream_part_of_a_package_version(version: str, upstream: str):
    assert packages.upstream(version) == upstream


def test_held_packages_of_a_real_host_are_installed_ones():
    """Ours hold the driver's packages: a parser that only knows "install ok installed" would not see them."""
    found = packages.parse_status(text("dpkg-status-h200-ubuntu-24.04.txt"))

    assert found["libnccl2"] == "2.28.3-1+cuda13.0"
    assert found["cuda-compat-13-0"] == "580.95.05-0ubuntu1"


def test_this_machine_s_packages_are_those_that_dpkg_names():
    need(shutil.which("dpkg-query") is not None, "dpkg-query (a Debian or Ubuntu)", installable=False)
    words = ["dpkg-query", "-W", "-f", "${db:Status-Abbrev}\t${Package}\t${Version}\n"]
    told = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60)
    rows = [line.split("\t") for line in told.stdout.splitlines()]

    assert packages.installed(Files()) == {
        name: version for status, name, version in rows if status.strip() in ("ii", "hi")
    }


@pytest.mark.parametrize("cut", [0, 10, 60, 200, 500])
def test_a_truncated_dpkg_file_is_no_crash(cut: int):
    assert packages.parse_status(text("dpkg-status-ubuntu-24.04.txt")[:cut]).keys() <= {"docker-ce"}


PROPRIETARY = (
    "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.309.01  Mon Oct 27 07:04:11 UTC 2025\nGCC version:  gcc\n"
)


@pytest.mark.parametrize(
    ("said", "version", "flavour"),
    [
        (tree(H200)["/proc/driver/nvidia/version"], "580.159.04", "open"),
        (PROPRIETARY, "535.309.01", "proprietary"),
        ("NVRM version: NVIDIA UNIX Open Kernel Mod", "", ""),
        ("", "", ""),
        ("<script>NVRM version: 580.159.04", "", ""),
    ],
    ids=["open", "proprietary", "truncated", "empty", "garbage"],
)
def test_the_loaded_module_s_own_words(said: str, version: str, flavour: str):
    found = driver.parse_proc_version(said)

    assert (found.version, found.flavour) == (version, flavour)


def test_modinfo_tells_flavour_by_its_licence():
    assert driver.modinfo(MODINFO).flavour == "proprietary"
    assert driver.modinfo(OPEN).flavour == "open"
    assert driver.modinfo("garbage").flavour == ""


def test_a_garbled_version_of_a_loaded_module_is_unknown_and_not_absent(tmp_path: Path):
    host = look(tmp_path, without=("/sys/module/nvidia",), **{"/proc/driver/nvidia/version": "garbage"})

    assert host.one("module_loaded_version").absence == UNKNOWN
    assert host.one("module_flavour").absence == UNKNOWN


def test_the_toolkit_of_usr_local_cuda_comes_first_and_others_beside_it(tmp_path: Path):
    files = {
        "/usr/local/cuda": {"link": "cuda-13.0"},
        "/usr/local/cuda-13.0/version.json": '{"cuda": {"name": "CUDA SDK", "version": "13.0.2"}}',
        "/usr/local/cuda-10.2/version.txt": "CUDA Version 10.2.89\n",
        "/usr/local/cuda-12.4/version.json": '{"cuda": ',
    }

    host = measure("software", software.collect, grow(tmp_path, files), tools())

    assert host.value("cuda_toolkit") == "13.0.2"
    assert host.one("cuda_toolkit").labels["path"] == "/usr/local/cuda-13.0"
    assert host.value("cuda_toolkit_other") == "10.2.89"


def test_a_toolkit_without_a_version_file_is_asked_through_its_own_nvcc(tmp_path: Path):
    files = {"/usr/local/cuda": {"link": "cuda-13.0"}, "/usr/local/cuda-13.0/bin/nvcc": ""}

    asked = measure("software", software.collect, grow(tmp_path / "a", files), tools(nvcc=NVCC))
    silent = measure("software", software.collect, grow(tmp_path / "b", files), tools())

    assert asked.value("cuda_toolkit") == "13.0.88"
    assert silent.one("cuda_toolkit").absence == UNKNOWN


NVCC = """nvcc: NVIDIA (R) Cuda compiler driver
Cuda compilation tools, release 13.0, V13.0.88
Build cuda_13.0.r13.0/compiler.36424714_0
"""


def test_tools_without_a_package_are_asked_for_their_version(tmp_path: Path):
    outputs = {
        "nvcc": NVCC,
        "docker": "Docker version 28.2.2, build e6534b4\n",
        "nvtop": "nvtop version 3.0.1\n",
        "podman": "podman version 4.3.1\n",
        "nvidia_ctk": "NVIDIA Container Toolkit CLI version 1.17.8\ncommit: f202b80\n",
    }

    host = measure("software", software.collect, grow(tmp_path, {}), tools(**outputs))

    found = {name: host.value(name) for name in ("cuda_toolkit", "docker", "nvtop", "podman", "container_toolkit")}
    assert found == {
        "cuda_toolkit": "13.0.88",
        "docker": "28.2.2",
        "nvtop": "3.0.1",
        "podman": "4.3.1",
        "container_toolkit": "1.17.8",
    }


def test_a_tool_that_answers_garbage_is_unknown(tmp_path: Path):
    host = measure("software", software.collect, grow(tmp_path, {}), tools(docker="\x1b[31mno idea", nvcc="\0"))

    assert host.one("docker").absence == UNKNOWN


def test_nodes_that_are_no_devices_do_not_count(tmp_path: Path):
    host = look(tmp_path, without=("/dev/nvidia",), **{"/dev/nvidia0/inside": "", "/dev/nvidia-caps/nvidia-cap1": ""})

    assert host.value("device_nodes") == 0
    assert host.one("device_nodes_open").absence == NOT_APPLICABLE
