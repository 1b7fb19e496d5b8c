"""The check `installation` over recorded and planted trees; nothing here needs root."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.unit.host_tree import H200, VM, Measured, grow, measure, text, tools, tree
from validators.check import Context
from validators.checks import installation
from validators.probes import apt, dpkg, gpu_users, kernels
from validators.probes.command import Ran
from validators.probes.sysfs import Files
from validators.schema import NOT_APPLICABLE, UNKNOWN, decode

KERNEL = "6.8.0-49-generic"
STATUS = "/var/lib/dpkg/status"
ANY = "Package: base-files\nStatus: install ok installed\nVersion: 13\n"
BASE = {"/proc/sys/kernel/osrelease": KERNEL, "/proc/locks": "", STATUS: ANY}


def paragraph(name: str, version: str, status: str = "install ok installed", maintainer: str = "NVIDIA <x@nvidia.com>"):
    return f"Package: {name}\nStatus: {status}\nMaintainer: {maintainer}\nArchitecture: amd64\nVersion: {version}\n"


def look(root: Path, outputs: dict[str, str] | None = None, **files: Any) -> Measured:
    grown = {path: one for path, one in {**BASE, **files}.items() if one is not None}
    return measure("installation", installation.collect, grow(root, grown), tools(**(outputs or {})))


def test_every_metric_says_something_on_a_recorded_host(tmp_path: Path):
    host = measure("installation", installation.collect, grow(tmp_path, tree(H200)), tools())

    said = {one.metric for one in host.records}
    assert {metric.name for metric in installation.METRICS} - said == {"gpu_process"}
    assert host.one("package").absence == UNKNOWN, "that tree has no dpkg list"


def test_packages_of_a_recorded_h200_host_are_named_with_version_and_vendor(tmp_path: Path):
    host = look(tmp_path, **{STATUS: text("dpkg-status-h200-ubuntu-24.04.txt")})

    nccl = host.one("package", name="libnccl2")
    assert (nccl.value, nccl.labels["vendor"]) == ("2.28.3-1+cuda13.0", "nvidia")
    assert "libnccl2" in [one.value for one in host.all("package_held")]
    assert not host.all("package", name="python3.12-minimal"), "not a package that matters here"
    assert host.value("packages_broken") == 0
    assert host.one("package_broken").absence == NOT_APPLICABLE


@pytest.mark.parametrize(
    ("status", "state"),
    [
        ("install ok half-configured", "half-configured"),
        ("install ok unpacked", "unpacked"),
        ("install reinstreq half-installed", "half-installed reinstreq"),
        ("install ok triggers-pending", "triggers-pending"),
        ("install reinstreq installed", "installed reinstreq"),
    ],
)
def test_a_package_left_half_way_is_named_with_its_state(tmp_path: Path, status: str, state: str):
    host = look(tmp_path, **{STATUS: paragraph("nvidia-dkms-580-open", "580.159.04-1", status)})

    assert host.value("packages_broken") == 1
    assert host.one("package_broken").labels == {"state": state, "version": "580.159.04-1"}
    assert host.one("package").absence == NOT_APPLICABLE, "half-installed is not installed"


def test_a_removed_package_whose_settings_stay_is_neither_installed_nor_broken(tmp_path: Path):
    host = look(tmp_path, **{STATUS: paragraph("docker.io", "20.10", "deinstall ok config-files")})

    assert host.value("packages_broken") == 0
    assert host.one("package").absence == NOT_APPLICABLE


def test_garbled_paragraphs_are_left_out_and_do_no_harm(tmp_path: Path):
    garbled = "Package: ../../etc\nStatus: install ok installed\n\nStatus: x\n\n\0\n\nPackage: dkms\nStatus: ok\n"

    assert dpkg.parse(garbled) == []


def test_an_unfinished_journal_of_dpkg_is_seen(tmp_path: Path):
    assert look(tmp_path / "a").value("dpkg_interrupted") is False
    assert look(tmp_path / "b", **{"/var/lib/dpkg/updates/0001": "x"}).value("dpkg_interrupted") is True


def test_a_host_without_dpkg_is_unknown_and_not_clean(tmp_path: Path):
    host = look(tmp_path, **{STATUS: None})

    for metric in ("package", "package_held", "packages_broken", "dpkg_interrupted", "unattended_upgrades"):
        assert host.one(metric).absence == UNKNOWN, metric


SECRET = "hunter2"  # noqa: S105 - planted, to be looked for
SOURCES = {
    "/etc/apt/sources.list": (
        f"# deb http://old/ x main\ndeb [arch=amd64] https://countess:{SECRET}@mirror.example/ubuntu noble main\n"
    ),
    "/etc/apt/sources.list.d/cloud.list": f"deb https://dl.example/{SECRET}/owner/repo any-version main # {SECRET}\n",
    "/etc/apt/sources.list.d/q.list": (
        f"deb https://pkgs.example:8443/x?token={SECRET} ./\ndeb-src http://src/ x main\n"
    ),
    "/etc/apt/sources.list.d/nvidia.sources": (
        "Types: deb\n# a comment\nURIs: https://developer.download.nvidia.com/compute/cuda/repos/ubuntu2404/x86_64/\n"
        "Suites: /\nSigned-By:\n -----BEGIN PGP\n .\n x\n\n"
        "Types: deb deb-src\nURIs: http://a.example/ http://b.example/\nSuites: noble noble-updates\n"
        "Components: main\n universe\n\nEnabled: no\nTypes: deb\nURIs: http://off.example/\nSuites: x\n"
    ),
    "/etc/apt/sources.list.d/ppa.list": (
        "deb https://ppa.launchpadcontent.net/graphics-drivers/ppa/ubuntu/ noble main\n"
    ),
    "/etc/apt/sources.list.d/broken.list": "deb https://[::1 noble main\n",
    "/etc/apt/sources.list.d/ignored.save": "deb http://saved/ x main\n",
}


def test_sources_are_told_by_site_and_suite_in_both_formats(tmp_path: Path):
    host = look(tmp_path, **SOURCES)

    told = {(one.value, one.labels["suite"]) for one in host.all("apt_source")}
    assert told == {
        ("https://mirror.example", "noble"),
        ("https://dl.example", "any-version"),
        ("https://pkgs.example:8443", "./"),
        ("https://developer.download.nvidia.com/compute/cuda/repos/ubuntu2404/x86_64", "/"),
        ("http://a.example", "noble"),
        ("http://a.example", "noble-updates"),
        ("http://b.example", "noble"),
        ("http://b.example", "noble-updates"),
        ("https://ppa.launchpadcontent.net/graphics-drivers/ppa/ubuntu", "noble"),
        ("unreadable address", "noble"),
    }
    assert (
        host.all("apt_source", suite="noble", file="/etc/apt/sources.list.d/nvidia.sources")[0].labels["components"]
        == "main universe"
    )


def test_no_credential_of_a_source_or_a_proxy_leaves_the_host(tmp_path: Path):
    proxy = {"/etc/apt/apt.conf.d/99proxy": f'Acquire::http::Proxy "http://countess:{SECRET}@proxy:3128";\n'}

    host = look(tmp_path, **SOURCES, **proxy)

    assert SECRET not in repr(host.records)
    assert "countess" not in repr(host.records)


@pytest.mark.parametrize(
    "uri", [f"https://:{SECRET}@h/x", f"https://u%40x:{SECRET}@h", f"tor+https://h/{SECRET}", f"mirror+file:/{SECRET}"]
)
def test_odd_addresses_are_cut_as_well(uri: str):
    assert SECRET not in apt.site(uri)


def test_pins_about_nvidia_are_told_and_others_are_not(tmp_path: Path):
    host = look(
        tmp_path,
        **{
            "/etc/apt/preferences.d/cuda-repository-pin-600": (
                "Package: nsight-compute\nPin: origin *ubuntu.com*\nPin-Priority: -1\n\n"
                "Package: *\nPin: release l=NVIDIA CUDA\nPin-Priority: 600\n"
            ),
            "/etc/apt/preferences.d/node.pref": "Package: nodejs\nPin: version 18*\nPin-Priority: 1001\n",
            "/etc/apt/preferences.d/x.bak": "Package: *\nPin: origin nowhere\nPin-Priority: 1\n",
        },
    )

    assert [(one.value, one.labels["pin"], one.labels["priority"]) for one in host.all("package_pin")] == [
        ("*", "release l=NVIDIA CUDA", "600")
    ]


def test_where_a_package_came_from_is_read_from_the_lists(tmp_path: Path):
    lists = "/var/lib/apt/lists/"
    entry = "Package: {}\nArchitecture: amd64\nVersion: {}\nFilename: x\n\n"
    host = look(
        tmp_path,
        **{
            STATUS: "\n".join(
                paragraph(name, version)
                for name, version in (
                    ("nvidia-utils-580", "580.95.05-0ubuntu1"),
                    ("nvidia-utils-570", "570.1"),
                    ("libnvidia-compute-580", "580.65.06-0ubuntu0~gpu24.04.1"),
                )
            ),
            f"{lists}developer.download.nvidia.com_compute_cuda_repos_ubuntu2404_x86%5f64_Packages": (
                entry.format("nvidia-utils-580", "580.95.05-0ubuntu1") + entry.format("nvidia-utils-570", "570.2")
            ),
            f"{lists}ppa.launchpadcontent.net_graphics-drivers_ppa_ubuntu_dists_noble_main_binary-amd64_Packages": (
                entry.format("libnvidia-compute-580-server", "1")
                + entry.format("libnvidia-compute-580", "580.65.06-0ubuntu0~gpu24.04.1")
            ),
        },
    )

    origins = {one.labels["name"]: one.labels["origin"] for one in host.all("package")}
    assert origins == {
        "nvidia-utils-580": "developer.download.nvidia.com",
        "nvidia-utils-570": "",
        "libnvidia-compute-580": "ppa.launchpadcontent.net/graphics-drivers/ppa",
    }


def test_of_several_versions_in_a_list_the_installed_one_is_found(tmp_path: Path):
    listed = "".join(
        f"Package: nvidia-utils-580\nVersion: 580.{number}-1\nAuto-Built-Package: nvidia-utils-570\n\n"
        for number in (3, 2, 1)
    )
    files = grow(tmp_path, {"/var/lib/apt/lists/example.net_dists_x_main_Packages": listed})

    found = apt.origins(files, {"nvidia-utils-580": "580.2-1", "nvidia-utils-570": "580.1-1"})

    assert {name: origin.site for name, origin in found.items()} == {"nvidia-utils-580": "example.net"}


POLICY = """libnvidia-compute-580:
  Installed: 580.159.04-1ubuntu1
  Candidate: 580.178.04-1ubuntu1
  Version table:
     580.178.04-1ubuntu1 600
        600 https://ada:hunter2@other.example/repo ./ Packages
 *** 580.159.04-1ubuntu1 600
        600 file:/srv/nvidia-repository ./ Packages
        100 /var/lib/dpkg/status
nvidia-utils-580:
  Installed: (none)
  Candidate: 580.178.04-1ubuntu1
  Version table:
     580.178.04-1ubuntu1 600
        600 file:/srv/nvidia-repository ./ Packages
"""


def test_an_unknown_makers_package_is_asked_of_apt_where_the_lists_are_compressed(tmp_path: Path):
    """The lines are those that apt 2.6 prints, from a file: repository and a mirror with a password."""
    stub = paragraph("libnvidia-compute-580", "580.159.04-1ubuntu1", maintainer="x <x@x.invalid>")
    release = {"/var/lib/apt/lists/_srv_nvidia-repository_._InRelease": "Origin: NVIDIA\nLabel: NVIDIA CUDA\n"}

    host = look(tmp_path, {"apt_cache": POLICY}, **{STATUS: stub}, **release)

    labels = host.one("package").labels
    assert (labels["vendor"], labels["origin"], labels["archive"]) == ("other", "file:", "NVIDIA CUDA")


def test_a_held_apt_lock_is_told_with_its_holder(tmp_path: Path):
    """A real lock by a real process; /proc/locks is the kernel's own."""
    lock = tmp_path / "var/lib/dpkg/lock-frontend"
    grow(tmp_path, {**BASE, "/var/lib/dpkg/lock-frontend": ""})
    (tmp_path / "proc/locks").unlink()
    (tmp_path / "proc/locks").symlink_to("/proc/locks")
    code = (
        "import fcntl,sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print('held', flush=True);"
        "sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        files = _LiveProc(str(tmp_path))
        found = dpkg.lock_holders(files)
        with lock.open("w") as file, pytest.raises(OSError, match="unavailable"):
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        holder.communicate()
    assert found is not None
    assert [(one.lock, one.pid) for one in found] == [("/var/lib/dpkg/lock-frontend", holder.pid)]
    assert dpkg.lock_holders(files) == []


class _LiveProc(Files):
    """A planted tree whose /proc is this machine's."""

    def data(self, path: str, limit_bytes: int = 1 << 20) -> bytes | None:
        return (Files("/") if path.startswith("/proc/") else super()).data(path, limit_bytes)


def test_without_the_kernels_table_a_lock_is_unknown(tmp_path: Path):
    assert look(tmp_path, **{"/proc/locks": None}).one("apt_lock").absence == UNKNOWN
    assert look(tmp_path / "b").value("apt_lock") == "none"


@pytest.mark.parametrize(("setting", "on"), [('"1"', True), ('"0"', False), ('"7"', True)])
def test_unattended_upgrades_count_where_installed_and_switched_on(tmp_path: Path, setting: str, on: bool):
    files = {
        STATUS: paragraph("unattended-upgrades", "2.9"),
        "/etc/apt/apt.conf.d/20auto-upgrades": f"APT::Periodic::Unattended-Upgrade {setting};\n",
    }

    assert look(tmp_path / "a", **files).value("unattended_upgrades") is on
    assert look(tmp_path / "b", **{**files, STATUS: ANY}).value("unattended_upgrades") is False


def test_headers_count_only_where_their_makefile_is(tmp_path: Path):
    link = {f"/lib/modules/{KERNEL}/build": {"link": f"/usr/src/linux-headers-{KERNEL}"}}

    assert look(tmp_path / "a", **link).value("kernel_headers") is False, "a link to nowhere"
    there = look(tmp_path / "b", **link, **{f"/usr/src/linux-headers-{KERNEL}/Makefile": ""})
    assert there.value("kernel_headers") is True


def test_the_next_boots_kernel_is_the_newest_and_not_the_last_by_name(tmp_path: Path):
    images = {f"/boot/vmlinuz-6.8.0-{number}-generic": "" for number in (9, 49, 106)}

    host = look(tmp_path, **images, **{"/lib/modules/6.8.0-106-generic/updates/dkms/nvidia.ko.zst": ""})

    coming = host.one("kernel_next")
    assert coming.value == "6.8.0-106-generic"
    assert coming.labels == {"headers": "no", "module": "yes", "running": "no"}


def test_dkms_modules_are_told_per_kernel_with_their_state(tmp_path: Path):
    tree_of = "/var/lib/dkms/nvidia"
    host = look(
        tmp_path,
        **{
            f"{tree_of}/580.159.04/source/dkms.conf": "",
            f"{tree_of}/580.159.04/{KERNEL}/x86_64/log/make.log": "",
            f"{tree_of}/580.159.04/6.8.0-50-generic/x86_64/log/make.log": "",
            f"{tree_of}/kernel-{KERNEL}-x86_64": {"link": f"580.159.04/{KERNEL}/x86_64"},
            "/var/lib/dkms/zfs/2.2/source/dkms.conf": "",
        },
    )

    told = {
        (one.labels["module"], one.value, one.labels["kernel"], one.labels["state"]) for one in host.all("dkms_module")
    }
    assert told == {
        ("nvidia", "580.159.04", KERNEL, "installed"),
        ("nvidia", "580.159.04", "6.8.0-50-generic", "built"),
        ("zfs", "2.2", "", "added"),
    }


EFIVARS = "/sys/firmware/efi/efivars"
MOK_LIST = f"{EFIVARS}/MokListRT-605dab50-e046-4300-abb6-3dd810dd8b23"
MOK = "/var/lib/shim-signed/mok/MOK.der"


def test_an_enrolled_key_is_found_in_the_firmwares_list(tmp_path: Path):
    """The list carries certificates in DER, byte for byte, among its own headers; these bytes stand for one."""
    key, other = "3082aa" * 20, "3082bb" * 20
    listed = {MOK: {"hex": key}, MOK_LIST: {"hex": "07000000" + "a1" * 16 + other + "a1" * 16 + key}}

    assert look(tmp_path / "a", **listed).value("signing_key_enrolled") is True
    assert look(tmp_path / "b", **{**listed, MOK_LIST: {"hex": other}}).value("signing_key_enrolled") is False
    alone = look(tmp_path / "c", **{MOK: {"hex": key}, f"{EFIVARS}/x": ""})
    assert alone.value("signing_key_enrolled") is False, "no list: nothing is enrolled"


def test_a_key_that_cannot_be_read_is_asked_of_mokutil_and_else_unknown(tmp_path: Path):
    files = {MOK: "", f"{MOK_LIST}": ""}

    asked = look(tmp_path / "a", {"mokutil": f"{MOK} is already enrolled\n"}, **files)
    assert asked.value("signing_key_enrolled") is True
    assert look(tmp_path / "b", {"mokutil": f"{MOK} is not enrolled\n"}, **files).value("signing_key_enrolled") is False
    assert look(tmp_path / "c", **files).one("signing_key_enrolled").absence == UNKNOWN


def test_without_a_key_or_efi_there_is_nothing_to_enrol(tmp_path: Path):
    assert "makes one" in look(tmp_path / "a", **{f"{EFIVARS}/x": ""}).one("signing_key_enrolled").note
    assert "EFI" in look(tmp_path / "b").one("signing_key_enrolled").note


def test_a_run_installers_driver_is_told_with_its_version(tmp_path: Path):
    log = "nvidia-installer log file '/var/log/nvidia-installer.log'\ncreation time: x\ninstaller version: 570.86.15\n"
    files = {"/usr/bin/nvidia-uninstall": "", "/var/log/nvidia-installer.log": log}

    told = look(tmp_path / "a", **files).one("run_installer")
    assert (told.value, told.labels["version"]) == ("/usr/bin/nvidia-uninstall", "570.86.15")
    assert look(tmp_path / "b").value("run_installer") == "none"
    files["/var/log/nvidia-installer.log"] = f"installer version: 1.{'9' * 5000}\n"
    assert look(tmp_path / "c", **files).one("run_installer").labels["version"] == ""


def planted_process(root: Path, pid: int, name: str, *targets: str) -> None:
    folder = root / f"proc/{pid}/fd"
    folder.mkdir(parents=True)
    (root / f"proc/{pid}/comm").write_text(name + "\n")
    (root / f"proc/{pid}/cmdline").write_text(f"/usr/bin/{name}\0")
    (root / "proc/1/fd").mkdir(parents=True, exist_ok=True)
    for number, target in enumerate(targets):
        (folder / str(number)).symlink_to(target)


def test_processes_that_hold_a_gpu_are_named_and_others_are_not(tmp_path: Path):
    planted_process(tmp_path, 4711, "python3", "/dev/null", "/dev/nvidia0", "/dev/nvidia-uvm")
    planted_process(tmp_path, 12, "sshd", "/dev/null", "/home/x/nvidia0")

    host = look(tmp_path, **{"/dev/nvidia0": ""})

    assert host.value("gpu_processes") == 1
    assert host.one("gpu_process").labels == {"pid": "4711", "nodes": "/dev/nvidia-uvm /dev/nvidia0"}


def test_processes_that_cannot_be_looked_into_make_the_number_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Root sees everything, and tests may run as root: the refusal is planted."""
    planted_process(tmp_path, 4711, "python3", "/dev/nvidia0")
    planted_process(tmp_path, 99, "other")
    listed = os.listdir

    def refusing(path: str | Path) -> list[str]:
        if str(path).endswith("/proc/99/fd"):
            raise PermissionError(13, "Permission denied", path)
        return listed(str(path))

    monkeypatch.setattr(gpu_users.os, "listdir", refusing)

    host = look(tmp_path, **{"/dev/nvidia0": ""})

    assert host.one("gpu_processes").absence == UNKNOWN
    assert "1 processes of other users" in host.one("gpu_processes").note
    assert host.value("gpu_process") == "python3", "what is seen is told all the same"


def test_a_proc_that_hides_other_users_makes_the_number_unknown(tmp_path: Path):
    """Mounted with hidepid=2 it shows this user's own processes alone: an empty list there is not zero."""
    host = look(tmp_path, **{"/dev/nvidia0": ""})
    assert host.one("gpu_processes").absence == UNKNOWN


def test_a_real_h200_host_was_asked_idle_at_work_and_without_root():
    """Recorded there: python3 held /dev/nvidia0; without root 174 processes, kernel threads among them, were closed."""
    told = {}
    for name in ("idle", "job", "nobody"):
        lines = text_of(f"h200-ubuntu-24.04-{name}.jsonl").splitlines()
        told[name] = Measured([decode(line.encode()) for line in lines])

    assert told["idle"].value("gpu_processes") == 0
    assert told["job"].one("gpu_process").labels["nodes"] == "/dev/nvidia0"
    assert told["nobody"].one("gpu_processes").absence == UNKNOWN


def text_of(name: str) -> str:
    return (Path(__file__).parents[1] / "fixtures" / "plan" / name).read_text()


def test_a_host_without_device_nodes_has_no_gpu_processes(tmp_path: Path):
    assert look(tmp_path).one("gpu_processes").absence == NOT_APPLICABLE


@pytest.mark.parametrize(
    ("files", "word"),
    [
        ({}, "absent"),
        ({"/run/cloud-init/enabled": ""}, "running"),
        ({"/run/cloud-init/status.json": "{}", "/run/cloud-init/result.json": "{}"}, "done"),
        ({"/run/cloud-init/disabled": ""}, "disabled"),
    ],
)
def test_cloud_init_is_running_until_its_result_is_there(tmp_path: Path, files: dict[str, str], word: str):
    assert look(tmp_path, **files).value("cloud_init") == word


def test_a_reboot_that_packages_ask_for_is_told_with_their_names(tmp_path: Path):
    host = look(
        tmp_path, **{"/run/reboot-required": "", "/run/reboot-required.pkgs": "linux-base\nlibc6\nlinux-base\n"}
    )

    assert host.one("reboot_required").labels["packages"] == "linux-base libc6"
    assert look(tmp_path / "b").value("reboot_required") is False


def test_pythons_are_told_by_their_names(tmp_path: Path):
    names = {f"/usr/bin/{name}": "" for name in ("python3", "python3.12", "python3.12-config", "python3.10")}

    assert [one.value for one in look(tmp_path, **names).all("python_available")] == ["3.10", "3.12"]


def test_free_room_is_told_with_the_file_system_that_it_is_on(tmp_path: Path):
    for name in ("usr", "var", "opt"):
        (tmp_path / name).mkdir(exist_ok=True)

    host = look(tmp_path)

    assert {one.labels["path"] for one in host.all("disk_free")} == {"/", "/usr", "/var", "/opt"}
    assert len({one.labels["device"] for one in host.all("disk_free")}) == 1


def test_this_machine_is_measured_within_the_wires_bounds():
    def tool(argv: object) -> Ran:
        return installation._run(argv)  # type: ignore[arg-type]  # as the check itself calls it

    def run(ctx: Context) -> None:
        installation.collect(ctx, Files(), tool)

    host = measure("installation", run)
    assert {one.metric for one in host.records} >= {
        "packages_broken",
        "apt_source",
        "apt_lock",
        "disk_free",
        "cloud_init",
    }


def test_hostile_names_are_bounded(tmp_path: Path):
    many = "\n".join(paragraph(f"nvidia-x{number}", "9" * 5000) for number in range(1000))

    host = look(tmp_path, **{STATUS: many, "/etc/apt/sources.list": "deb http://h/ x\n" * 5000})

    assert len(host.all("package")) == 200
    assert len(host.all("apt_source")) == 200


def test_kernels_are_ordered_by_number():
    names = ["6.8.0-9-generic", "6.8.0-49-generic", "6.8.0-106-generic", "6.11.0-1-generic", "6.12.95+deb13-amd64"]
    assert sorted(set(names), key=kernels.order) == names


def test_a_recorded_vm_without_a_gpu_has_no_gpu_processes(tmp_path: Path):
    host = measure("installation", installation.collect, grow(tmp_path, tree(VM)), tools())
    assert host.one("gpu_processes").absence == NOT_APPLICABLE
