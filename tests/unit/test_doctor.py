"""Each link broken once, over what a real H200 host answered (tests/fixtures/trees/records-h200-x1-...)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from provision.doctor import LINKS, walk
from provision.report.model import Chain
from tests.unit.host_tree import TREES
from validators.schema import ERROR, HOST, NOT_APPLICABLE, UNKNOWN, Measurement, Outcome, decode

RECORDS = [decode(line) for line in (TREES / "records-h200-x1-580.159.04.jsonl").read_bytes().splitlines()]
MEASURED = [one for one in RECORDS if isinstance(one, Measurement)]
OUTCOMES = [one for one in RECORDS if isinstance(one, Outcome)]
GONE = object()


def host(*changes: tuple[str, Any]) -> list[Measurement]:
    """The recorded host with some metrics changed: to a value, (absence, note), GONE, or fields of the measurement."""
    found = list(MEASURED)
    for name, change in changes:
        check, metric = name.split(".")
        assert any((one.check, one.metric) == (check, metric) for one in found), f"{name} was not recorded"
        kept = []
        for one in found:
            if (one.check, one.metric) != (check, metric):
                kept.append(one)
            elif change is not GONE:
                kept.append(_changed(one, change))
        found = kept
    return found


def _changed(one: Measurement, change: Any) -> Measurement:
    if isinstance(change, tuple):
        return replace(one, value=None, absence=change[0], note=change[1])
    if isinstance(change, dict):
        labels = {**one.labels, **change.get("labels", {})}
        return replace(one, **{**change, "labels": labels})
    return replace(one, value=change)


def without(*checks: str) -> list[Measurement]:
    return [one for one in MEASURED if one.check not in checks]


def no_driver() -> list[tuple[str, Any]]:
    return [
        ("software.module_loaded_version", (NOT_APPLICABLE, "no nvidia module is loaded")),
        ("software.module_flavour", (NOT_APPLICABLE, "there is no nvidia module")),
        ("software.module_for_kernel", {"value": False, "labels": {"path": ""}, "note": ""}),
        ("software.userspace_version", (NOT_APPLICABLE, "no library")),
        ("software.driver_consistent", (NOT_APPLICABLE, "no nvidia module is loaded")),
        ("software.device_nodes", 0),
        ("software.device_control_node", False),
        *no_nvml("NVML Shared Library Not Found"),
        ("system.pci_gpu", {"labels": {"driver": ""}}),
    ]


def no_nvml(note: str) -> list[tuple[str, Any]]:
    return [
        ("compute_capability.nvml_answers", {"value": False, "note": note}),
        ("compute_capability.gpu_count_nvml", (UNKNOWN, note)),
        ("compute_capability.driver_version", (UNKNOWN, note)),
        *no_cuda(note),
    ]


def no_cuda(note: str) -> list[tuple[str, Any]]:
    return [
        ("preflight.devices_seen", {"value": 0, "note": note}),
        ("preflight.context", GONE),
        ("preflight.known_answer", GONE),
        ("preflight.device_ran_on", GONE),
    ]


def is_first_broken(chain: Chain, link: str, *, state: str = "broken") -> bool:
    """The link is in that state, all before it hold, all behind it are not reached."""
    at = LINKS.index(link)
    assert [one.name for one in chain.links] == list(LINKS)
    assert {one.state for one in chain.links[:at]} <= {"holds", "not_applicable"}, chain
    assert chain.links[at].state == state, chain
    assert {one.state for one in chain.links[at + 1 :]} <= {"not_reached"}, chain
    return True


def test_the_recorded_host_holds_link_by_link():
    chain = walk(MEASURED, OUTCOMES)

    assert chain.broken is None
    assert [one.state for one in chain.links] == ["holds"] * 7 + ["not_applicable"] + ["holds"] * 4
    assert chain.sentence == "Every link holds: torch 2.11.0+cu130 computes the known answer on 1 of 1 GPU(s)."
    assert all(one.evidence for one in chain.links)


def test_nothing_measured_is_unknown_and_not_well():
    chain = walk([], [])

    assert is_first_broken(chain, "PCI device", state="unknown")
    assert "system did not run" in chain.sentence


def test_a_check_that_failed_says_how():
    chain = walk([], [Outcome("system", HOST, ERROR, "it was killed by signal 11", 0.1)])

    assert "killed by signal 11" in chain.sentence


Case = tuple[str, Sequence[tuple[str, Any]], Sequence[str]]
K520 = {"value": "10de:118a", "labels": {"subsystem": "10de:1013", "driver": ""}}
B200 = {"value": "10de:2901", "labels": {"subsystem": "10de:1999", "driver": ""}}
V100 = {"value": "10de:1db1", "labels": {"subsystem": "10de:1212", "driver": ""}}
NO_NVML = no_nvml("Driver Not Loaded")
KERNEL = "6.18.44-fc-v657-gpu"

BROKEN: dict[str, Case] = {
    "no GPU on the bus": (
        "PCI device",
        [("system.gpu_count", 0), ("system.pci_gpu", GONE), *NO_NVML],
        ["No NVIDIA GPU is on the PCI bus", "give this virtual machine a GPU"],
    ),
    "no GPU on the bus of bare metal": (
        "PCI device",
        [("system.gpu_count", 0), ("system.pci_gpu", GONE), ("system.virtualisation", "none"), *NO_NVML],
        ["reseat the card", "lspci -d 10de:"],
    ),
    "no driver": (
        "driver for this card",
        no_driver(),
        ["No NVIDIA driver is installed", "nvidia-driver-580-server-open"],
    ),
    "no driver on Debian": (
        "driver for this card",
        [*no_driver(), ("system.os_id", "debian"), ("system.os_version", "12")],
        ["apt-get install linux-headers-$(uname -r) nvidia-driver"],
    ),
    "a Kepler card under 580": (
        "driver for this card",
        [("system.pci_gpu", K520), *NO_NVML],
        ["too new for the card: GRID K520", "branch 470", "nvidia-driver-470-server"],
    ),
    "a Blackwell card under 535": (
        "driver for this card",
        [("system.pci_gpu", B200), ("software.module_loaded_version", "535.183.01"), *NO_NVML],
        ["too old for the card: NVIDIA B200", "570.26"],
    ),
    "a Blackwell card under the proprietary module": (
        "driver for this card",
        [("system.pci_gpu", B200), ("software.module_flavour", "proprietary"), *NO_NVML],
        ["The proprietary kernel module does not serve NVIDIA B200", "580-server-open"],
    ),
    "a Volta card under the open module": (
        "driver for this card",
        [("system.pci_gpu", V100), *NO_NVML],
        ["The open kernel module does not serve Tesla V100-SXM2-16GB", "nvidia-driver-580-server "],
    ),
    "a module for another kernel": (
        "module for this kernel",
        [
            ("software.module_loaded_version", (NOT_APPLICABLE, "")),
            ("software.module_for_kernel", {"value": False, "labels": {"other_kernels": "6.8.0-40-generic"}}),
            *NO_NVML,
        ],
        [
            f"not built for the running kernel {KERNEL}",
            "a module for 6.8.0-40-generic",
            "sudo reboot",
            "dkms autoinstall",
        ],
    ),
    "a DKMS build that failed": (
        "module for this kernel",
        [
            ("software.module_loaded_version", (NOT_APPLICABLE, "")),
            (
                "software.module_for_kernel",
                {"value": False, "labels": {"build_log": "/var/lib/dkms/nvidia/580.159.04/build/make.log"}},
            ),
            *NO_NVML,
        ],
        ["a build failed", "tail -n 40 /var/lib/dkms/nvidia/580.159.04/build/make.log"],
    ),
    "nouveau": (
        "module loaded",
        [
            ("software.nouveau_loaded", True),
            ("software.module_loaded_version", (NOT_APPLICABLE, "")),
            ("system.pci_gpu", {"labels": {"driver": "nouveau"}}),
            *NO_NVML,
        ],
        ["nouveau holds the cards", "blacklist nouveau"],
    ),
    "not loaded": (
        "module loaded",
        [
            ("software.module_loaded_version", (NOT_APPLICABLE, "")),
            ("system.container", "none"),
            (
                "software.module_for_kernel",
                {"labels": {"path": "/lib/modules/6.1.0/updates/dkms/nvidia-current.ko.xz"}},
            ),
            *NO_NVML,
        ],
        ["The nvidia module is not loaded", "sudo modprobe nvidia-current"],
    ),
    "not loaded under Secure Boot": (
        "module loaded",
        [
            ("software.module_loaded_version", (NOT_APPLICABLE, "")),
            ("system.container", "none"),
            ("system.secure_boot", {"value": True, "absence": ""}),
            *NO_NVML,
        ],
        ["Secure Boot is on", "mokutil --import"],
    ),
    "held by vfio": (
        "module loaded",
        [("system.pci_gpu", {"labels": {"driver": "vfio-pci"}}), *NO_NVML],
        ["vfio-pci holds 0000:00:06.0"],
    ),
    "loaded, but the card is not taken": (
        "module loaded",
        [("system.pci_gpu", {"labels": {"driver": ""}}), *NO_NVML],
        ["has not taken 0000:00:06.0", "dmesg"],
    ),
    "no device nodes": (
        "device nodes",
        [("software.device_nodes", 0), ("software.device_control_node", False), ("system.container", "none"), *NO_NVML],
        ["Device nodes are missing", "nvidia-modprobe"],
    ),
    "no device nodes in a container": (
        "device nodes",
        [
            ("software.device_nodes", 0),
            ("software.device_control_node", False),
            ("system.container", "docker"),
            *NO_NVML,
        ],
        ["Device nodes are missing", "--gpus all"],
    ),
    "nodes shut to this user": (
        "device nodes",
        [("software.device_nodes_open", {"value": False, "note": "this user may not open /dev/nvidia0"}), *NO_NVML],
        ["may not open /dev/nvidia0", "usermod -aG"],
    ),
    "libraries of another version": (
        "libraries of the same version",
        [
            ("software.userspace_version", "580.178.04"),
            ("software.driver_consistent", False),
            ("system.container", "none"),
            *no_nvml("Driver/library version mismatch"),
        ],
        ["module 580.159.04", "580.178.04", "sudo reboot"],
    ),
    "libraries missing": (
        "libraries of the same version",
        [("software.userspace_version", (NOT_APPLICABLE, "no libcuda.so.1")), ("system.container", "none"), *NO_NVML],
        ["libnvidia-ml.so.1 is missing", "libnvidia-compute-580-server"],
    ),
    "NVML does not answer": (
        "NVML answers",
        no_nvml("Unknown Error"),
        ["NVML does not answer (Unknown Error)", "dmesg"],
    ),
    "a card that NVML does not reach": (
        "NVML answers",
        [("system.gpu_count", 2), ("software.device_nodes", 2), ("system.container", "none")],
        ["NVML reaches 1 of 2 GPUs", "power cycle"],
    ),
    "no fabric": (
        "NVLink fabric",
        [
            ("gpu_health.fabric_state", {"value": "in progress", "absence": ""}),
            ("software.fabric_manager", {"value": "580.95.05", "absence": ""}),
            *no_cuda("CUDA error 802"),
        ],
        [
            "1 of 1 GPUs: in progress",
            "Fabric Manager 580.95.05, driver 580.159.04",
            "nvidia-fabricmanager-580=580.159.04",
        ],
    ),
    "torch does not import": (
        "CUDA build against the driver",
        [("preflight.imports", {"value": False, "note": "OSError: libcudart.so.13: cannot open"}), *no_cuda("")],
        ["torch cannot be imported (OSError: libcudart.so.13", "/opt/torch/.venv/bin/python3 -m pip install"],
    ),
    "a CPU-only torch": (
        "CUDA build against the driver",
        [("preflight.cuda_build", (NOT_APPLICABLE, "this torch is a CPU-only build")), *no_cuda("")],
        ["has no CUDA in it", "CPU-only build", "index cu130"],
    ),
    "a torch newer than the driver": (
        "CUDA build against the driver",
        [
            ("software.module_loaded_version", "535.183.01"),
            ("software.userspace_version", "535.183.01"),
            *no_cuda("The NVIDIA driver on your system is too old"),
        ],
        ["built for CUDA 13.0, which needs driver 580.65.06", "driver 535.183.01", "index cu126"],
    ),
    "no machine code": (
        "wheel's architectures",
        [
            ("preflight.arch_supported", {"value": False, "note": "none of sm_75", "labels": {"capability": "7.0"}}),
            *no_cuda("no kernel image is available"),
        ],
        ["no machine code for compute capability 7.0 (none of sm_75)", "index cu126"],
    ),
    "no context": (
        "CUDA context",
        [
            ("preflight.context", {"value": False, "note": "AcceleratorError: CUDA error: out of memory"}),
            ("preflight.known_answer", GONE),
        ],
        ["no CUDA context on GPU-", "out of memory", "end the processes"],
    ),
    "no device": (
        "CUDA context",
        [
            ("preflight.cuda_init", "CUDA_ERROR_UNKNOWN (999)"),
            *no_cuda("RuntimeError: CUDA unknown error"),
        ],
        ["torch gets no CUDA device (cuInit: CUDA_ERROR_UNKNOWN (999)", "nvidia-modprobe -u"],
    ),
    "GPUs hidden by a variable": (
        "CUDA context",
        [
            ("preflight.cuda_init", "CUDA_ERROR_NO_DEVICE (100)"),
            *no_cuda("RuntimeError: No CUDA GPUs are available"),
        ],
        ["No CUDA GPUs are available", "unset the variable"],
    ),
    "a wrong product": (
        "known answer",
        [("preflight.known_answer", {"value": False, "note": "[[22.0, 28.0], [49.0, 65.0]] instead of"})],
        ["computes a wrong product", "49.0, 65.0", "replaced"],
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_link_is_named_with_its_evidence_and_what_mends_it(name: str):
    link, changes, words = BROKEN[name]

    chain = walk(host(*changes), OUTCOMES)

    assert is_first_broken(chain, link)
    for word in words:
        assert word in chain.sentence, chain.sentence
    assert chain.broken is not None
    assert chain.broken.mend
    assert "\n" not in chain.sentence


def test_every_link_is_broken_by_some_case():
    assert {link for link, _, _ in BROKEN.values()} == set(LINKS)


def test_nvml_proves_what_could_not_be_read_before_it():
    chain = walk(
        host(("software.module_for_kernel", (UNKNOWN, "no /lib/modules")), ("software.device_nodes", 0)), OUTCOMES
    )

    assert chain.broken is None
    assert chain.links[LINKS.index("module for this kernel")].evidence.startswith("NVML reaches 1 GPU(s) through it")


def test_nvml_proves_nothing_when_it_does_not_answer():
    unread = ("software.module_for_kernel", (UNKNOWN, "no /lib/modules"))

    chain = walk(host(unread, *NO_NVML), OUTCOMES)

    assert is_first_broken(chain, "module for this kernel", state="unknown")
    assert "not known" in chain.sentence


def test_a_known_answer_proves_an_unread_fabric_but_not_a_faulty_one():
    unread = walk(host(("gpu_health.fabric_state", (UNKNOWN, "NVML: unknown error"))), OUTCOMES)
    faulty = walk(host(("gpu_health.fabric_state", {"value": "not started", "absence": ""})), OUTCOMES)

    assert unread.broken is None
    assert is_first_broken(faulty, "NVLink fabric")


def test_a_framework_that_nobody_asked_ends_the_chain_without_a_fault():
    chain = walk(without("preflight"), [one for one in OUTCOMES if one.check != "preflight"])

    assert chain.broken is None
    assert [one.state for one in chain.links[-4:]] == ["not_reached"] * 4
    assert "torch was not asked" in chain.sentence


def test_a_missing_torch_is_unknown_and_says_where_it_was_looked_for():
    failed = Outcome(
        "preflight", HOST, ERROR, "RuntimeError: no Python with torch on this host; looked at /usr/bin/python3", 1
    )

    chain = walk(without("preflight"), [one for one in OUTCOMES if one.check != "preflight"] + [failed])

    assert is_first_broken(chain, "CUDA build against the driver", state="unknown")
    assert "looked at /usr/bin/python3" in chain.sentence
    assert "bringup_torch_python" in chain.sentence


def test_a_newer_libcuda_of_the_compat_package_is_no_mismatch():
    compat = [
        replace(
            one, value="590.44.01", labels={**one.labels, "path": "/usr/local/cuda-13.1/compat/libcuda.so.590.44.01"}
        )
        if one.metric == "userspace_version" and one.labels["library"] == "libcuda"
        else one
        for one in MEASURED
    ]

    assert walk(compat, OUTCOMES).broken is None


def test_a_card_that_the_list_does_not_know_is_unknown_unless_nvml_reaches_it():
    new = ("system.pci_gpu", {"value": "10de:4001", "labels": {"subsystem": "10de:0001"}})

    assert is_first_broken(walk(host(new, *NO_NVML), OUTCOMES), "driver for this card", state="unknown")
    assert walk(host(new), OUTCOMES).broken is None


def test_an_answer_from_fewer_gpus_than_nvml_reaches_is_not_enough():
    two = host(("system.gpu_count", 2), ("software.device_nodes", 2), ("compute_capability.gpu_count_nvml", 2))

    assert is_first_broken(walk(two, OUTCOMES), "CUDA context")


LOG = "the kernel's log: NVRM: No NVIDIA GPU found."
IDLE = f"no nvidia module is loaded; x.ko is there for this kernel, and no NVIDIA GPU on the PCI bus; {LOG}"
IDLE_WORDS = (f"is installed for this kernel and waits for one; {LOG}",)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("software.module_loaded_version", (NOT_APPLICABLE, IDLE)), IDLE_WORDS),
        (
            ("software.module_for_kernel", {"value": False, "labels": {"kernel": "6.1.0-50-amd64"}}),
            ("is installed, and not for the running kernel 6.1.0-50-amd64",),
        ),
    ],
    ids=["for this kernel", "for another"],
)
def test_a_missing_gpu_is_told_with_the_driver_that_waits_for_it(change: tuple[str, Any], words: Sequence[str]):
    chain = walk(host(("system.gpu_count", 0), ("system.pci_gpu", GONE), *NO_NVML, change), OUTCOMES)

    assert is_first_broken(chain, "PCI device")
    assert all(word in chain.sentence for word in words), chain.sentence


def test_wsl_shows_no_bus_but_nvml_counts():
    wsl = [("system.gpu_count", (UNKNOWN, "no PCI bus")), ("system.virtualisation", "wsl")]

    assert walk(host(*wsl), OUTCOMES).broken is None
    assert "wsl --update" in walk(host(*wsl, *NO_NVML), OUTCOMES).sentence


def test_a_context_on_both_and_an_answer_from_one_is_not_known():
    two = host(
        ("system.gpu_count", 2),
        ("software.device_nodes", 2),
        ("compute_capability.gpu_count_nvml", 2),
        ("preflight.devices_seen", 2),
    )
    two += [replace(one, subject="GPU-second") for one in MEASURED if one.metric == "context"]

    assert is_first_broken(walk(two, OUTCOMES), "known answer", state="unknown")
