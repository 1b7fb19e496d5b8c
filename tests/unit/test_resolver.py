"""The rules that the issue names, one by one."""

from __future__ import annotations

import pytest

from provision.compat.data import facts
from provision.compat.lookup import known_gpus, machine_for
from provision.compat.model import Machine, Resolution, Source, Wish
from provision.compat.resolver import known_systems, resolve
from provision.errors import UsageError

H200, B200, B300, V100, K520, K80 = "10de:2335", "10de:2901", "10de:3182", "10de:1db1", "10de:118a", "10de:102d"
GTX_1080_TI, GTX_970, T4, GTX_480, GEFORCE_6800 = "10de:1b06", "10de:13c2", "10de:1eb8", "10de:06c0", "10de:0041"
NOBLE, RESOLUTE, JAMMY, BOOKWORM, TRIXIE = "ubuntu-24.04", "ubuntu-26.04", "ubuntu-22.04", "debian-12", "debian-13"
BLACKWELL = ("nvidia-fabricmanager", "libnvidia-nscq", "libnvsdm", "nvidia-imex", "libibumad3", "infiniband-diags")
ALL = {"torch": "auto", "tensorflow": "auto", "jax": "auto"}


def ask(gpu: str, os: str = NOBLE, source: Source = "nvidia", branch: str = "auto", **wish: object) -> Resolution:
    return resolve(Machine((gpu,), os), Wish(source=source, branch=branch, **wish))  # type: ignore[arg-type] # free words


def values(found: Resolution) -> dict[str, str]:
    return {part.name: part.value + (f" {part.index}" if part.index else "") for part in found.parts}


def said(found: Resolution) -> str:
    return " | ".join(f"{one.what} -> {one.next_step}" for one in found.blockers)


def packages(found: Resolution, name: str = "driver") -> tuple[str, ...]:
    part = found.part(name)
    assert part is not None, said(found)
    return part.packages


# --- the branch -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gpu", "os", "source", "driver", "module"),
    [
        (H200, NOBLE, "nvidia", "580", "open"),
        (H200, JAMMY, "distro", "580", "open"),
        (H200, BOOKWORM, "mirror", "580", "open"),
        (H200, RESOLUTE, "nvidia", "595", "open"),
        (H200, TRIXIE, "nvidia", "595", "open"),
        (H200, TRIXIE, "distro", "550", "proprietary"),
        (H200, BOOKWORM, "distro", "535", "proprietary"),
        (B200, NOBLE, "nvidia", "580", "open"),
        (B300, RESOLUTE, "distro", "580", "open"),
        (V100, NOBLE, "nvidia", "580", "proprietary"),
        (V100, RESOLUTE, "distro", "580", "proprietary"),
        (V100, TRIXIE, "distro", "550", "proprietary"),
        (GTX_1080_TI, NOBLE, "nvidia", "580", "proprietary"),
        (GTX_970, BOOKWORM, "nvidia", "580", "proprietary"),
        (K520, NOBLE, "distro", "470", "proprietary"),
        (K520, BOOKWORM, "distro", "470", "proprietary"),
    ],
)
def test_each_card_gets_the_branch_and_the_module_that_serve_it(
    gpu: str, os: str, source: Source, driver: str, module: str
) -> None:
    found = ask(gpu, os, source)

    assert (values(found).get("driver"), values(found).get("module")) == (driver, module), said(found)
    assert not found.blockers


@pytest.mark.parametrize(
    ("gpu", "os", "source", "names", "step"),
    [
        (K520, RESOLUTE, "distro", ["GRID K520", "up to branch 470", "580, 595 and 615"], "on Ubuntu 22.04, Ubuntu 24"),
        (K520, RESOLUTE, "nvidia", ["GRID K520", "NVIDIA's repository for Ubuntu 26.04"], "on Ubuntu 22.04, Ubuntu 24"),
        (K520, NOBLE, "nvidia", ["GRID K520"], 'source = "distro" (branch 470) on Ubuntu 24.04'),
        (V100, RESOLUTE, "nvidia", ["Tesla V100", "up to branch 580"], '"distro" (branch 580) on Ubuntu 26.04'),
        (V100, TRIXIE, "nvidia", ["Tesla V100", "590, 595, 610 and 615"], '"distro" (branch 550 or 535) on Debian 13'),
        (V100, RESOLUTE, "mirror", ["a mirror of NVIDIA's repository"], 'source = "distro"'),
        (B200, TRIXIE, "distro", ["NVIDIA B200", "needs driver 570.26"], 'source = "nvidia" (branch 590'),
        (GTX_480, NOBLE, "distro", ["GeForce GTX 480", "up to branch 390"], "replace the card"),
        (GEFORCE_6800, NOBLE, "nvidia", ["GeForce 6800"], "replace the card"),
    ],
)  # fmt: skip
def test_a_card_that_no_driver_here_serves_is_refused_with_the_next_step(
    gpu: str, os: str, source: Source, names: list[str], step: str
) -> None:
    found = ask(gpu, os, source)

    assert found.part("driver") is None
    assert [word for word in names if word not in found.blockers[0].what] == [], said(found)
    assert step in found.blockers[0].next_step
    assert found.blockers[0].because


@pytest.mark.parametrize(
    ("gpus", "driver", "module"),
    [
        ((V100, H200), "580", "proprietary"),
        ((T4, B200), "580", "open"),
        ((T4, H200, H200), "580", "open"),
    ],
)
def test_several_kinds_of_cards_get_what_serves_all_of_them(gpus: tuple[str, ...], driver: str, module: str) -> None:
    found = resolve(Machine(gpus, NOBLE), Wish(cuda=("auto",)))

    assert (values(found)["driver"], values(found)["module"]) == (driver, module)
    assert values(found)["cuda_toolkit"] == ("12.9" if V100 in gpus else "13.0")


@pytest.mark.parametrize(
    ("gpus", "source", "why"),
    [
        ((V100, B200), "nvidia", "no kernel module serves Tesla V100-SXM2-16GB (10de:1db1) and NVIDIA B200"),
        ((K520, H200), "distro", "no driver branch that is known here serves GRID K520 (10de:118a) and NVIDIA H200"),
        ((K520, V100), "nvidia", "GRID K520 (10de:118a) is served up to branch 470"),
    ],
)
def test_cards_that_nothing_serves_together_are_named_together(gpus: tuple[str, ...], source: Source, why: str) -> None:
    found = resolve(Machine(gpus, NOBLE), Wish(source=source))

    assert found.part("driver") is None
    assert why in said(found)


def test_an_old_card_beside_a_newer_one_gets_the_old_branch_where_it_serves_both() -> None:
    assert values(resolve(Machine((K80, T4), NOBLE), Wish(source="distro")))["driver"] == "470"


@pytest.mark.parametrize(
    ("gpu", "os", "source", "branch", "why"),
    [
        (V100, NOBLE, "nvidia", "595", "served up to branch 580"),
        (B200, BOOKWORM, "distro", "535", "needs driver 570.26"),
        (B200, NOBLE, "nvidia", "570", "branch 570 is not known to be in NVIDIA's repository for Ubuntu 24.04"),
        (H200, NOBLE, "distro", "535", "installs 580 where 535 is asked for"),
        (H200, RESOLUTE, "nvidia", "580", "branch 580 is not known to be in"),
        (H200, NOBLE, "nvidia", "620", "branch 620 is not known"),
        (H200, NOBLE, "nvidia", "latest", '"latest" is no driver branch'),
        (H200, NOBLE, "nvidia", "58\n0", '"58?0" is no driver branch'),
    ],
)
def test_a_named_branch_that_does_not_fit_is_refused(gpu: str, os: str, source: Source, branch: str, why: str) -> None:
    found = ask(gpu, os, source, branch)

    assert found.part("driver") is None
    assert why in said(found)
    assert all(one.next_step for one in found.blockers)


def test_a_whole_version_is_pinned_and_judged_by_itself() -> None:
    found = ask(H200, branch="580.159.04", cuda=("13.0",))
    too_old = ask(H200, branch="580.10", cuda=("13.0",))

    driver = found.part("driver")
    assert driver is not None
    assert (driver.value, driver.pin) == ("580.159.04", "nvidia-driver-pinning-580.159.04")
    assert "CUDA 13.0 needs driver 580.65.06 or newer, and driver 580.10 is the one here" in said(too_old)


@pytest.mark.parametrize(
    ("gpu", "branch", "module", "why"),
    [
        (V100, "auto", "open", "the open kernel module does not serve Tesla V100"),
        (B200, "auto", "proprietary", "the proprietary kernel module does not serve NVIDIA B200"),
        (B200, "580", "proprietary", "the proprietary kernel module does not serve NVIDIA B200"),
        ("10de:2342", "auto", "proprietary", "the proprietary kernel module does not serve NVIDIA GH200"),
        (H200, "615", "proprietary", "has the open kernel module only"),
    ],
)
def test_a_kernel_module_that_does_not_serve_the_card_is_refused(gpu: str, branch: str, module: str, why: str) -> None:
    found = ask(gpu, branch=branch, module=module)

    assert found.part("driver") is None
    assert why in said(found)


def test_the_next_step_after_a_refused_module_names_no_branch_that_refuses_it_too() -> None:
    found = ask(T4, branch="615", module="proprietary")

    assert '"nvidia" (branch 580, 590, 595 or 610)' in said(found)
    assert "branch 470, 580 or 595" in said(found)


def test_the_module_that_is_asked_for_is_taken_where_it_serves() -> None:
    assert values(ask(H200, module="proprietary"))["module"] == "proprietary"


def test_an_archive_is_judged_by_the_version_that_it_has() -> None:
    found = ask(H200, TRIXIE, "distro", "535", cuda=("13.0",))

    assert "and driver 535.274.02 is the one here" in said(found)


def test_a_branch_past_its_support_is_left_for_one_that_is_not() -> None:
    wish = Wish(source="nvidia")
    later = resolve(Machine((H200,), NOBLE), wish, today="2028-07-01")

    assert values(resolve(Machine((H200,), NOBLE), wish, today="2028-06-30"))["driver"] == "580"
    assert values(later)["driver"] == "615"
    assert "how long branch 615 is supported is not established" in later.notes


def test_a_date_of_low_confidence_does_not_rule_a_branch_out() -> None:
    found = ask(V100, TRIXIE, "distro")

    assert values(found)["driver"] == "550"
    assert "how long branch 550 is supported is not established" in found.notes


# --- packages -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gpu", "os", "source", "wish", "expected"),
    [
        (H200, NOBLE, "nvidia", {}, "libnvidia-compute-580 nvidia-dkms-580-open nvidia-utils-580"),
        (V100, NOBLE, "nvidia", {}, "libnvidia-compute-580 nvidia-dkms-580 nvidia-utils-580"),
        (H200, NOBLE, "nvidia", {"scope": "full"}, "nvidia-open-580"),
        (V100, NOBLE, "mirror", {"scope": "full"}, "cuda-drivers-580"),
        (H200, NOBLE, "nvidia", {"branch": "595"}, "libnvidia-compute nvidia-dkms-open nvidia-utils"),
        (
            H200,
            NOBLE,
            "nvidia",
            {"branch": "595", "module": "proprietary"},
            "libnvidia-compute nvidia-dkms nvidia-utils",
        ),
        (H200, TRIXIE, "nvidia", {}, "nvidia-driver-cuda nvidia-kernel-open-dkms"),
        (H200, TRIXIE, "nvidia", {"scope": "full"}, "nvidia-open"),
        (K520, BOOKWORM, "distro", {"scope": "full"}, "nvidia-tesla-470-driver"),
        (V100, BOOKWORM, "distro", {"scope": "full"}, "nvidia-driver"),
    ],
)
def test_the_packages_are_named_as_their_source_names_them(
    gpu: str, os: str, source: Source, wish: dict[str, object], expected: str
) -> None:
    found = ask(gpu, os, source, **wish)  # type: ignore[arg-type] # free words

    assert " ".join(packages(found)) == expected
    assert ("repository" in values(found)) == (source != "distro")


def test_every_driver_for_computing_names_the_package_that_has_nvidia_smi() -> None:
    without = [
        (offer.system, offer.source, offer.branch, name)
        for offer in facts().offers
        for name, flavour in offer.modules.items()
        if not any(one.startswith("nvidia-utils") or one.endswith(("-smi", "-driver-cuda")) for one in flavour.compute)
    ]
    assert without == []


@pytest.mark.parametrize(
    ("os", "kernel", "expected"),
    [
        (NOBLE, "6.8.0-45-generic", "linux-modules-nvidia-580-server-open-generic"),
        (NOBLE, "6.14.0-33-generic", "linux-modules-nvidia-580-server-open-generic-hwe-24.04"),
        (NOBLE, "6.8.0-1017-aws", "linux-modules-nvidia-580-server-open-aws"),
        (NOBLE, "6.8.0-1017-nvidia", "linux-modules-nvidia-580-server-open-nvidia"),
        (NOBLE, "6.17.0-1032-nvidia", "linux-modules-nvidia-580-server-open-nvidia-hwe-24.04"),
        (JAMMY, "6.8.0-1035-nvidia", "linux-modules-nvidia-580-server-open-nvidia-hwe-22.04"),
        (JAMMY, "6.8.0-90-lowlatency", "linux-modules-nvidia-580-server-open-lowlatency-hwe-22.04"),
        (NOBLE, "6.14.0-33-lowlatency", "nvidia-dkms-580-server-open"),
        (JAMMY, "5.15.0-1030-aws", "linux-modules-nvidia-580-server-open-aws"),
        (RESOLUTE, "7.0.0-43-generic", "linux-modules-nvidia-580-server-open-generic"),
        (NOBLE, "", "linux-modules-nvidia-580-server-open-generic"),
        (NOBLE, "6.8.0-45-realtime", "nvidia-dkms-580-server-open"),
        (NOBLE, "6.6.6", "nvidia-dkms-580-server-open"),
    ],
)
def test_ubuntu_s_signed_modules_are_those_of_the_running_kernel_s_flavour(os: str, kernel: str, expected: str) -> None:
    found = resolve(Machine((H200,), os, kernel), Wish(source="distro"))

    assert packages(found)[-1] == expected
    assert any("built by DKMS" in note for note in found.notes) == expected.startswith("nvidia-dkms")


def test_branch_470_of_ubuntu_is_built_by_dkms_since_its_signed_modules_are_of_old_kernels() -> None:
    assert "nvidia-dkms-470-server" in packages(resolve(Machine((K520,), NOBLE, "6.8.0-45-generic"), Wish("distro")))


@pytest.mark.parametrize(
    ("os", "source", "kernel", "noted"),
    [
        (NOBLE, "nvidia", "6.8.0-45-generic", True),
        (TRIXIE, "nvidia", "6.12.0-1-amd64", False),
        (NOBLE, "distro", "6.8.0-45-generic", False),
        (NOBLE, "distro", "6.8.0-45-realtime", False),
    ],
)
def test_under_secure_boot_signed_modules_elsewhere_are_pointed_at(
    os: str, source: Source, kernel: str, noted: bool
) -> None:
    on = resolve(Machine((H200,), os, kernel, secure_boot=True), Wish(source))
    off = resolve(Machine((H200,), os, kernel, secure_boot=False), Wish(source))

    assert any('source = "distro"' in note for note in on.notes if "Secure Boot" in note) == noted
    assert not any("Secure Boot" in note for note in off.notes)


# --- the fabric manager ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gpu", "os", "wish", "expected"),
    [
        (H200, NOBLE, Wish(), ("nvidia-fabricmanager", "libnvidia-nscq")),
        (H200, NOBLE, Wish("distro"), ("nvidia-fabricmanager-580", "libnvidia-nscq-580")),
        (B200, NOBLE, Wish(), ("nvlink5-580", *BLACKWELL)),
        (B200, RESOLUTE, Wish(), ("nvlink5", *BLACKWELL)),
    ],
)
def test_nvswitches_bring_the_fabric_manager_of_the_drivers_version(
    gpu: str, os: str, wish: Wish, expected: tuple[str, ...]
) -> None:
    found = resolve(Machine((gpu,), os, nvswitches=4), wish)

    assert packages(found, "fabric_manager") == expected
    assert values(found)["fabric_manager"] == values(found)["driver"]
    assert resolve(Machine((gpu,), os), wish).part("fabric_manager") is None


def test_no_archive_has_what_hgx_blackwell_and_debian_need() -> None:
    assert "no nvlsm for HGX Blackwell" in said(resolve(Machine((B200,), NOBLE, nvswitches=2), Wish("distro")))
    assert "no fabric manager" in said(resolve(Machine((H200,), TRIXIE, nvswitches=4), Wish("distro")))


def test_a_fabric_manager_that_is_not_wanted_is_warned_of() -> None:
    found = resolve(Machine((H200,), NOBLE, nvswitches=4), Wish(fabric_manager=False))

    assert found.part("fabric_manager") is None
    assert any("CUDA does not start without it" in note for note in found.notes)


def test_blackwell_of_the_data_centre_without_a_visible_nvswitch_is_noted() -> None:
    assert any("nvlsm" in note for note in ask(B200).notes)
    assert not any("nvlsm" in note for note in ask("10de:2b85").notes)


# --- CUDA and frameworks --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gpu", "os", "source", "expected"),
    [
        (H200, NOBLE, "nvidia", ("13.0", "2.15.0 cu130", "2.21.0")),
        (H200, RESOLUTE, "nvidia", ("13.2", "2.15.0", None)),
        (H200, JAMMY, "nvidia", ("13.0", "2.14.1", "2.21.0")),
        (H200, BOOKWORM, "distro", ("11.8", "2.14.1 cu126", "2.21.0")),
        (V100, NOBLE, "nvidia", ("12.9", "2.14.1 cu126", "2.21.0")),
        (GTX_1080_TI, NOBLE, "nvidia", ("12.9", "2.14.1 cu126", "2.21.0")),
        (GTX_970, BOOKWORM, "nvidia", ("12.9", "2.14.1 cu126", "2.16.2")),
        (K80, BOOKWORM, "distro", ("11.8", "2.0.1", "2.14.1")),
        (K520, BOOKWORM, "distro", (None, None, None)),
        (B200, NOBLE, "nvidia", ("13.0", "2.15.0 cu130", "2.21.0")),
    ],
)
def test_cuda_and_the_wheels_fit_card_driver_and_python(
    gpu: str, os: str, source: Source, expected: tuple[str | None, ...]
) -> None:
    found = ask(gpu, os, source, cuda=("auto",), frameworks=ALL)

    got = values(found)
    assert tuple(got.get(name) for name in ("cuda_toolkit", "torch", "tensorflow")) == expected


@pytest.mark.parametrize(
    ("gpu", "wish", "index"),
    [
        (V100, "2.14.1", "cu126"),
        (V100, "2.10.0", ""),
        (GTX_1080_TI, "2.10.0", "cu126"),
        (GTX_1080_TI, "2.7.1", ""),
        (H200, "2.14.1", ""),
    ],
)
def test_a_torch_that_is_named_comes_from_the_index_that_serves_the_card(gpu: str, wish: str, index: str) -> None:
    part = ask(gpu, frameworks={"torch": wish}).part("torch")

    assert part is not None
    assert (part.value, part.index, part.packages) == (wish, index, (f"torch=={wish}",))


@pytest.mark.parametrize(
    ("gpu", "os", "frameworks", "why"),
    [
        (V100, NOBLE, {"torch": "2.15.0"}, "no build of torch 2.15.0 has machine code for Tesla V100-SXM2-16GB"),
        (K520, BOOKWORM, {"torch": "auto"}, "no build of torch has machine code for GRID K520 (10de:118a), compute"),
        (
            H200,
            RESOLUTE,
            {"tensorflow": "auto"},
            "Ubuntu 26.04 has Python 3.14, and tensorflow 2.21.0, the",
        ),
        (H200, NOBLE, {"torch": "9.9"}, "torch 9.9 is not among the established releases"),
        (H200, NOBLE, {"mxnet": "auto"}, 'no wheels of "mxnet" are established'),
        (H200, BOOKWORM, {"torch": "2.15.0"}, "torch 2.15.0 needs driver 580.65.06 or newer, and driver 535.309.01"),
    ],
)
def test_a_framework_that_does_not_fit_is_refused_with_the_reason(
    gpu: str, os: str, frameworks: dict[str, str], why: str
) -> None:
    source: Source = "distro" if os == BOOKWORM else "nvidia"
    found = ask(gpu, os, source, frameworks=frameworks)

    assert why in said(found)
    assert all(one.next_step for one in found.blockers)


@pytest.mark.parametrize(
    ("gpu", "os", "source", "cuda", "why"),
    [
        (V100, NOBLE, "nvidia", "13.0", "CUDA 13.0 does not know Tesla V100-SXM2-16GB (10de:1db1) any more: 12.9 was"),
        (B200, RESOLUTE, "distro", "12.4", "CUDA 12.4 does not know NVIDIA B200 (10de:2901) yet: 12.8 is the first"),
        (H200, BOOKWORM, "distro", "13.0", "CUDA 13.0 needs driver 580.65.06 or newer"),
        (H200, TRIXIE, "distro", "13.0", "and driver 550.163.01 is the one here"),
        (H200, NOBLE, "nvidia", "13.5", "CUDA 13.5 is not among the established versions"),
        (H200, TRIXIE, "nvidia", "12.9", "no package of CUDA 12.9 is established for Debian 13"),
        (H200, NOBLE, "nvidia", "13", "CUDA 13 is not among the established versions"),
    ],
)
def test_a_toolkit_that_does_not_fit_is_refused_with_what_fits(
    gpu: str, os: str, source: Source, cuda: str, why: str
) -> None:
    found = ask(gpu, os, source, cuda=(cuda,))

    assert found.part("cuda_toolkit") is None
    assert why in said(found)
    assert "ask for " in found.blockers[0].next_step


def test_toolkits_stand_side_by_side_in_the_order_of_the_wish() -> None:
    found = ask(H200, cuda=("12.9", "auto", "12.9"))

    toolkits = [part for part in found.parts if part.name == "cuda_toolkit"]
    assert [part.packages for part in toolkits] == [("cuda-toolkit-12-9",), ("cuda-toolkit-13-0",)]


def test_a_toolkit_beyond_the_drivers_own_is_said_to_run_by_minor_version_compatibility() -> None:
    found = ask(H200, cuda=("13.2",))

    assert values(found)["cuda_toolkit"] == "13.2"
    assert any("minor-version compatibility" in note for note in found.notes)


def test_debian_s_own_driver_is_not_mixed_with_nvidia_s_repository() -> None:
    found = ask(H200, TRIXIE, "distro", cuda=("auto",))

    assert packages(found, "cuda_toolkit") == ("nvidia-cuda-toolkit",)
    assert found.part("repository") is None


# --- what is not there, not known, or not ours ----------------------------------------------------------------


def test_without_a_card_and_a_branch_there_is_nothing_to_choose() -> None:
    found = resolve(Machine((), NOBLE), Wish())

    assert found.parts == ()
    assert "no NVIDIA GPU is seen" in said(found)
    assert "name a driver branch" in said(found)


def test_a_named_branch_is_resolved_without_a_card_for_images() -> None:
    found = resolve(Machine((), NOBLE), Wish(branch="580", cuda=("13.0",), frameworks={"torch": "auto"}))

    assert values(found) == {
        "repository": "ubuntu2404", "driver": "580", "module": "open", "cuda_toolkit": "13.0", "container_toolkit": "",
        "torch": "2.15.0 cu130",
    }  # fmt: skip
    assert any("no card is known" in note for note in found.notes)
    assert not found.blockers


@pytest.mark.parametrize("gpu", ["10de:4001", "1002:740f", "garbage", "10de:\x1b[31m"])
def test_a_card_that_is_not_listed_is_never_guessed_at(gpu: str) -> None:
    found = resolve(Machine((gpu, H200), NOBLE), Wish())
    named = resolve(Machine((gpu,), NOBLE), Wish(branch="595", frameworks={"torch": "auto"}))

    assert found.parts == ()
    assert 'branch = "595"' in said(found)
    assert values(named)["driver"] == "595"
    assert any("nothing says that the branch named serves it" in note for note in named.notes)
    assert "which torch runs on" in said(named)
    assert "\x1b" not in said(found) + "".join(named.notes)


def test_with_source_none_the_driver_is_left_alone_and_the_rest_is_judged_by_the_card() -> None:
    found = ask(V100, source="none", cuda=("auto",), frameworks=ALL)
    refused = ask(V100, source="none", cuda=("13.0",), frameworks={"torch": "2.15.0"})

    assert values(found) == {
        "repository": "ubuntu2404", "cuda_toolkit": "12.9", "container_toolkit": "", "torch": "2.14.1 cu126",
        "tensorflow": "2.21.0", "jax": "0.10.2",
    }  # fmt: skip
    assert "12.9 was the last" in said(refused)
    assert "no build of torch 2.15.0" in said(refused)


def test_with_source_none_a_named_branch_is_the_driver_that_the_host_has() -> None:
    found = ask(H200, source="none", branch="535", cuda=("13.0",), frameworks={"torch": "auto"})

    assert values(found)["torch"] == "2.14.1 cu126"
    assert "CUDA 13.0 needs driver 580.65.06 or newer, and driver 535.309.01 is the one here" in said(found)


@pytest.mark.parametrize(
    ("gpu", "branch", "why"),
    [
        (V100, "595.71.05", "driver 595.71.05 does not serve the card: Tesla V100-SXM2-16GB (10de:1db1) is served"),
        (H200, "470", "driver 470.256.02 does not serve the card: NVIDIA H200 (10de:2335) needs driver 520.61.05"),
        (H200, "580", ""),
    ],
)
def test_with_source_none_a_driver_that_does_not_serve_the_card_is_noted(gpu: str, branch: str, why: str) -> None:
    notes = [note for note in ask(gpu, source="none", branch=branch).notes if "does not serve" in note]

    assert [why in note for note in notes] == ([True] if why else [])


@pytest.mark.parametrize(
    ("machine", "why"),
    [
        (Machine((H200,), NOBLE, architecture="aarch64"), "of aarch64 takes is not established"),
        (Machine((H200,), "rocky-9.5"), '"rocky-9.5" is not a supported system'),
        (Machine((H200,), ""), '"" is not a supported system'),
        (Machine((H200,), "ubuntu-24.04\n"), '"ubuntu-24.04?" is not a supported system'),
    ],
)
def test_what_is_not_established_is_refused_as_a_whole(machine: Machine, why: str) -> None:
    found = resolve(machine, Wish(cuda=("auto",), frameworks=ALL))

    assert found.parts == ()
    assert why in said(found)


def test_every_decision_says_its_rule_and_where_that_stands() -> None:
    found = resolve(Machine((H200,), NOBLE, nvswitches=4), Wish(cuda=("auto",), frameworks=ALL))

    assert len(found.parts) == 9
    for part in found.parts:
        assert part.because
        assert all(
            reason.rule and reason.source and reason.confidence in ("high", "medium", "low") for reason in part.because
        )


# --- names ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "pci_id"),
    [
        ("GTX 1080 Ti", "10de:1b06"),
        ("nvidia geforce gtx 1080 ti", "10de:1b06"),
        ("gtx1080ti", "10de:1b06"),
        ("V100-SXM2-16GB", "10de:1db1"),
        ("K520", "10de:118a"),
        ("A100", "10de:20b0"),
        ("H200-SXM-141GB", "10de:2335 10de:18be"),
        ("10de:2335", "10de:2335"),
        ("2335", "10de:2335"),
        ("10de:1080", "10de:1080"),
    ],
)
def test_a_card_is_found_by_the_name_that_people_give_it(name: str, pci_id: str) -> None:
    assert machine_for(name, " Ubuntu 24.04 ") == Machine((pci_id,), NOBLE)


@pytest.mark.parametrize(("name", "architecture"), [("GB200", "aarch64"), ("10de:2e12", "aarch64"), ("B200", "x86_64")])
def test_a_card_on_one_board_with_an_arm_processor_is_asked_about_as_that(name: str, architecture: str) -> None:
    assert machine_for(name, NOBLE).architecture == architecture


@pytest.mark.parametrize(
    ("name", "os", "words"),
    [
        ("GTX 1O80 Ti", NOBLE, ['did you mean "NVIDIA GeForce GTX 1080 Ti"']),
        ("banana", NOBLE, ['no card is called "banana"']),
        ("", NOBLE, ["no card is called"]),
        ("GT 730", NOBLE, ["cards that differ", "10de:0f02 (Fermi, last branch 390)", "(Kepler, last branch 470)"]),
        ("4090", NOBLE, ['no card is called "4090"; did you mean', 'RTX 4090"']),
        ("1080", NOBLE, ['did you mean "NVIDIA GeForce GTX 1080']),
        ("10de:4001", NOBLE, ["10de:4001 is not in NVIDIA's list"]),
        ("T4", "ubuntu-24.10", ['did you mean "ubuntu-24.04"']),
        ("T4", "fedora\x1b", ['"fedora?"']),
    ],
)
def test_a_name_that_is_not_known_ends_in_a_sentence(name: str, os: str, words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        machine_for(name, os)

    assert [word for word in words if word not in caught.value.message] == [], caught.value.message


def test_every_known_name_finds_a_card_or_says_which_ids_it_stands_for() -> None:
    ambiguous = []
    for name in known_gpus():
        try:
            machine = machine_for(name, NOBLE)
        except UsageError as problem:
            assert "cards that differ" in problem.message
            ambiguous.append(name)
        else:
            assert resolve(machine, Wish()) == resolve(machine, Wish())
    assert len(ambiguous) < len(known_gpus()) / 10


def test_the_systems_are_the_five_that_are_supported() -> None:
    assert known_systems() == (JAMMY, NOBLE, RESOLUTE, BOOKWORM, TRIXIE)
    assert set(facts().systems) == set(known_systems())
