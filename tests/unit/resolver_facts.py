"""What NVIDIA's documents, package lists and wheels forbid, for the property tests of the resolver.

Written from those facts themselves: nothing here reads compat.toml or calls the resolver. The last branch of each
card comes from NVIDIA's list, pci_ids.csv.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator
from importlib.resources import files

from provision.compat.model import Machine, Part, Resolution, Wish

CURRENT = 10**6
LAST_BRANCH = {
    row["pci_device_id"][:4].lower(): CURRENT
    if row["branch"].startswith("current")
    else int(row["branch"].split(".")[0])
    for row in csv.DictReader((files("provision.compat") / "pci_ids.csv").read_text().splitlines())
}
SYSTEMS = ("ubuntu-22.04", "ubuntu-24.04", "ubuntu-26.04", "debian-12", "debian-13")
PYTHON = {"ubuntu-22.04": 10, "ubuntu-24.04": 12, "ubuntu-26.04": 14, "debian-12": 11, "debian-13": 13}
OFFERED = {
    ("ubuntu-22.04", "nvidia"): {580, 590, 595, 610, 615},
    ("ubuntu-24.04", "nvidia"): {580, 590, 595, 610, 615},
    ("ubuntu-26.04", "nvidia"): {595, 610, 615},
    ("debian-12", "nvidia"): {580, 590, 595, 610, 615},
    ("debian-13", "nvidia"): {590, 595, 610, 615},
    ("ubuntu-22.04", "distro"): {470, 580, 595, 615},
    ("ubuntu-24.04", "distro"): {470, 580, 595, 615},
    ("ubuntu-26.04", "distro"): {580, 595, 615},
    ("debian-12", "distro"): {470, 535},
    ("debian-13", "distro"): {535, 550},
}
ARCHIVE_VERSION = {
    ("debian-12", 535): (535, 309, 1),
    ("debian-13", 535): (535, 274, 2),
    ("debian-13", 550): (550, 163, 1),
}
NEWEST = {
    470: (470, 256, 2),
    535: (535, 309, 1),
    550: (550, 163, 1),
    580: (580, 178, 4),
    590: (590, 48, 1),
    595: (595, 99, 2),
    610: (610, 57, 4),
    615: (615, 71, 9),
}
CUDA_FLOOR = {11: (450, 80, 2), 12: (525, 60, 13), 13: (580, 65, 6)}
MODULES = ("open", "proprietary")
METAPACKAGES = re.compile(r"cuda|cuda-\d+-\d+|cuda-runtime-.*|cuda-drivers-fabricmanager.*")


def numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


def device(gpu: str) -> str:
    return gpu.partition(":")[2][:4].lower()


def group(gpu: str) -> str:
    return device(gpu)[:2]


CAPABILITY = [
    ((0x06C0, 0x06DF), (2, 0)), ((0x102D, 0x102D), (3, 7)), ((0x0FC6, 0x0FFF), (3, 0)), ((0x1180, 0x11FF), (3, 0)),
    ((0x1000, 0x103F), (3, 5)), ((0x1280, 0x12FF), (3, 5)), ((0x13C0, 0x143F), (5, 2)), ((0x17C0, 0x17FF), (5, 2)),
    ((0x1600, 0x16FF), (5, 2)), ((0x1340, 0x13BF), (5, 0)), ((0x1740, 0x179F), (5, 0)), ((0x15F0, 0x15FF), (6, 0)),
    ((0x1D80, 0x1DFF), (7, 0)), ((0x1B00, 0x1D5F), (6, 1)), ((0x1E00, 0x21FF), (7, 5)), ((0x2200, 0x22FF), (8, 6)),
    ((0x2300, 0x23FF), (9, 0)), ((0x2400, 0x25FF), (8, 6)), ((0x2600, 0x28FF), (8, 9)), ((0x2900, 0x29FF), (10, 0)),
    ((0x2E00, 0x2EFF), (12, 1)), ((0x2B00, 0x2FFF), (12, 0)), ((0x3100, 0x31FF), (10, 3)),
]  # fmt: skip
"""Ranges of device ids by the chip that the PCI ID database names, and what NVIDIA's list of CUDA cards says of it."""


def capability(gpu: str) -> tuple[int, int] | None:
    """None: older than what any wheel or toolkit here is built for."""
    number = int(device(gpu), 16)
    if LAST_BRANCH[device(gpu)] < 367 or LAST_BRANCH[device(gpu)] == 390:
        return None
    if group(gpu) == "20":
        return 8, 0
    return next((found for (first, last), found in CAPABILITY if first <= number <= last), None)


def cuda_range(gpu: str) -> tuple[tuple[int, int], tuple[int, int]]:
    """First and last toolkit that builds for the card."""
    found = capability(gpu)
    if found is None:
        return (1, 0), (8, 0)
    first = {
        (7, 5): (10, 0), (8, 0): (11, 0), (8, 6): (11, 1), (8, 9): (11, 8), (9, 0): (11, 8), (10, 0): (12, 8),
        (12, 0): (12, 8), (10, 3): (12, 9), (12, 1): (12, 9),
    }.get(found, (1, 0))  # fmt: skip
    if found >= (7, 5):
        return first, (99, 0)
    return first, (12, 9) if found >= (5, 0) else (11, 8) if found >= (3, 5) else (10, 2)


CU126 = {(5, 0), (6, 0), (7, 0), (7, 5), (8, 0), (8, 6), (9, 0)}
CU128 = {(7, 0), (7, 5), (8, 0), (8, 6), (9, 0), (10, 0), (12, 0)}
CU13 = CU128 - {(7, 0)}
CU117 = {(3, 7), (5, 0), (6, 0), (7, 0), (7, 5), (8, 0), (8, 6)}
TORCH = [((2, 11), CU13), ((2, 8), CU128), ((2, 1), CU126), ((0,), CU117)]
"""First release -> machine code of PyTorch's wheels on PyPI, read from the wheels."""
TENSORFLOW = [
    ((2, 17), {(6, 0), (7, 0), (8, 0), (8, 9)}, (9, 0)),
    ((2, 16), {(5, 0), (6, 0), (7, 0), (8, 0)}, (9, 0)),
    ((2, 15), {(5, 0), (6, 0), (7, 0), (7, 5)}, (8, 0)),
    ((0,), {(3, 5), (5, 0), (6, 0), (7, 0), (7, 5)}, (8, 0)),
]
"""First release -> machine code and PTX of TensorFlow's wheels, from their build_info."""


def code(part: Part) -> tuple[set[tuple[int, int]], tuple[int, int] | None]:
    """Machine code and PTX of a build, as its wheel or PyTorch's support matrix says."""
    release = numbers(part.value)
    if part.name == "jax":
        return set(), (7, 5) if "cuda13" in part.packages[0] else (5, 2)
    if part.name == "tensorflow":
        return next((has, ptx) for first, has, ptx in TENSORFLOW if release >= first)
    if part.index:
        return {"cu126": CU126, "cu128": CU128}.get(part.index, CU13), None
    return next(has for first, has in TORCH if release >= first), None


def wheel_floor(part: Part) -> tuple[int, ...]:
    """The oldest driver that a build's CUDA runs on."""
    release = numbers(part.value)
    if part.name == "jax":
        return CUDA_FLOOR[13] if "cuda13" in part.packages[0] else CUDA_FLOOR[12]
    if part.name == "tensorflow":
        return CUDA_FLOOR[12] if release >= (2, 15) else CUDA_FLOOR[11]
    if part.index:
        return CUDA_FLOOR[int(part.index[2:4])]
    return CUDA_FLOOR[13 if release >= (2, 11) else 12 if release >= (2, 1) else 11]


PYTHONS: dict[str, list[tuple[tuple[int, ...], int, int]]] = {
    "jax": [((0, 10), 11, 14), ((0,), 10, 13)],
    "tensorflow": [((2, 21), 10, 13), ((2, 20), 9, 13), ((2, 16), 9, 12), ((0,), 9, 11)],
    "torch": [((2, 15), 11, 15), ((2, 9), 10, 14), ((2, 5), 9, 13), ((2, 2), 8, 12), ((0,), 8, 11)],
}
"""First release -> first and last minor version of Python 3 that has wheels."""


def has_wheel(part: Part, minor: int) -> bool:
    return next(low <= minor <= high for first, low, high in PYTHONS[part.name] if numbers(part.value) >= first)


def runs(card: tuple[int, int], machine_code: set[tuple[int, int]], ptx: tuple[int, int] | None) -> bool:
    """CUDA C++ Programming Guide: the same major version and the same or a higher minor one; PTX: any higher."""
    return any(has[0] == card[0] and has <= card for has in machine_code) or (ptx is not None and ptx <= card)


def driver_version(machine: Machine, wish: Wish, branch: int) -> tuple[int, ...]:
    if "." in wish.branch:
        return numbers(wish.branch)
    return ARCHIVE_VERSION.get((machine.os, branch), NEWEST[branch]) if wish.source == "distro" else NEWEST[branch]


def source_of(wish: Wish) -> str:
    return "nvidia" if wish.source == "mirror" else wish.source


def forbidden(machine: Machine, wish: Wish, found: Resolution) -> list[str]:
    """Every fact that the resolution breaks."""
    if machine.os not in SYSTEMS or machine.architecture != "x86_64":
        return ["nothing is established there"] if found.parts or not found.blockers else []
    listed = [gpu for gpu in machine.gpus if gpu.startswith("10de:") and device(gpu) in LAST_BRANCH]
    return [
        *forbidden_choice(machine, wish, found, listed),
        *forbidden_driver(machine, wish, found, listed),
        *forbidden_software(machine, wish, found, listed),
        *(f"{part.name}: {text}" for part in found.parts for text in forbidden_reasons(part)),
    ]


def forbidden_choice(machine: Machine, wish: Wish, found: Resolution, listed: list[str]) -> Iterator[str]:
    driver = found.part("driver")
    if wish.source == "none":
        if driver or found.part("module") or found.part("fabric_manager") or any(part.pin for part in found.parts):
            yield "a driver that nobody asked for"
    elif driver is None and not found.blockers:
        yield "neither a driver nor a blocker"
    elif driver is not None and wish.branch == "auto" and (not machine.gpus or len(listed) < len(machine.gpus)):
        yield "a driver was guessed for an unlisted card or none"


def forbidden_reasons(part: Part) -> Iterator[str]:
    if not part.because or any(not reason.rule or not reason.source for reason in part.because):
        yield "no reason"
    elif all(reason.confidence == "low" for reason in part.because):
        yield "stands on facts of low confidence alone"
    if any(METAPACKAGES.fullmatch(name) for name in part.packages):
        yield f"{part.packages} drags a driver along"


BLACKWELL = ("29", "2b", "2c", "2d", "2e", "2f", "31")
CARD_RULES: list[tuple[str, Callable[[str], bool], str, tuple[int, ...]]] = [
    ("is older than Turing: proprietary module only", lambda gpu: LAST_BRANCH[device(gpu)] <= 580, "open", (0,)),
    ("is Grace Hopper: open module only", lambda gpu: device(gpu) in ("2342", "2348"), "proprietary", (0,)),
    ("is Blackwell: open module, 570.26 or newer", lambda gpu: group(gpu) in BLACKWELL, "proprietary", (570, 26)),
    ("came with CUDA 12.9", lambda gpu: group(gpu) in ("2e", "31"), "", (575, 51, 3)),
    ("came with CUDA 11.8", lambda gpu: group(gpu) in ("23", "26", "27", "28"), "", (520, 61, 5)),
    ("came with CUDA 11.1", lambda gpu: group(gpu) in ("22", "24", "25"), "", (455, 23)),
]
"""What it says of a card, which cards, the module that does not serve them, the oldest driver."""


def allowed_branches(machine: Machine, wish: Wish, listed: list[str]) -> set[int]:
    """The branches that no fact forbids for these cards from this source, with a module that is offered."""
    found = set()
    for branch in OFFERED[machine.os, source_of(wish)]:
        version = driver_version(machine, wish, branch)
        for module in ("proprietary",) if branch in (470, 535) else ("open",) if branch >= 615 else MODULES:
            serves = all(
                branch <= LAST_BRANCH[device(gpu)]
                and not any(of(gpu) and (module == no or version < oldest) for _, of, no, oldest in CARD_RULES)
                for gpu in listed
            )
            if serves and wish.module in ("auto", module):
                found.add(branch)
    return found


def forbidden_driver(machine: Machine, wish: Wish, found: Resolution, listed: list[str]) -> Iterator[str]:
    driver, module = found.part("driver"), found.part("module")
    if driver is None:
        return
    if module is None or module.value not in ("open", "proprietary"):
        yield "a driver without a kernel module"
        return
    branch = int(driver.value.split(".")[0])
    version = driver_version(machine, wish, branch)
    if branch not in OFFERED[machine.os, source_of(wish)]:
        yield f"{branch} is not offered by {wish.source} on {machine.os}"
    if wish.branch not in ("auto", driver.value) or wish.module not in ("auto", module.value):
        yield "not what was asked for"
    for gpu in listed:
        if branch > LAST_BRANCH[device(gpu)]:
            yield f"{gpu} ends at {LAST_BRANCH[device(gpu)]}"
        for says, of, excluded, oldest in CARD_RULES:
            if of(gpu) and (module.value == excluded or version < oldest):
                yield f"{gpu} {says}"
    if branch >= 615 and module.value != "open":
        yield "no proprietary module from 615 on"
    if machine.os == "debian-12" and wish.source == "distro" and module.value == "open":
        yield "Debian 12 has the open module of another version than the driver"
    yield from forbidden_packages(machine, wish, driver, module.value, branch)
    yield from forbidden_fabric_manager(machine, wish, found, driver, listed)


def forbidden_fabric_manager(
    machine: Machine, wish: Wish, found: Resolution, driver: Part, listed: list[str]
) -> Iterator[str]:
    manager = found.part("fabric_manager")
    if manager is None:
        if machine.nvswitches and wish.fabric_manager and not found.blockers:
            yield "NVSwitches without a fabric manager"
        return
    if not machine.nvswitches or not wish.fabric_manager or manager.value != driver.value:
        yield "a fabric manager that is not the driver's, or for no NVSwitch"
    hgx_blackwell = any(group(gpu) in ("29", "31") for gpu in listed)
    if wish.source == "distro" and (machine.os.startswith("debian") or hgx_blackwell):
        yield "no archive has a fabric manager for that"
    if hgx_blackwell and not any(name.startswith("nvlink5") for name in manager.packages):
        yield "HGX Blackwell without nvlsm"


def forbidden_packages(machine: Machine, wish: Wish, driver: Part, module: str, branch: int) -> list[str]:
    names, wrong = " ".join(driver.packages), []
    if ("open" in names) != (module == "open"):
        wrong.append(f"{names}: not the {module} module")
    if wish.source == "distro":
        if driver.pin:
            wrong.append("NVIDIA's pin package in an archive")
        if machine.os.startswith("ubuntu") and not all(f"-{branch}-server" in name for name in driver.packages):
            wrong.append(f"{names}: not of branch {branch}")
    else:
        if driver.pin != f"nvidia-driver-pinning-{driver.value}":
            wrong.append("not pinned")
        suffixed = any(re.search(r"-580(-open)?$", name) for name in driver.packages)
        if suffixed != (branch == 580 and machine.os.startswith("ubuntu")):
            wrong.append(f"{names}: branch suffixes are for 580 on Ubuntu")
        if "server" in names:
            wrong.append(f"{names}: the archive's names in NVIDIA's repository")
    return wrong


def forbidden_software(machine: Machine, wish: Wish, found: Resolution, listed: list[str]) -> Iterator[str]:
    driver = found.part("driver")
    ends = [LAST_BRANCH[device(gpu)] for gpu in listed if LAST_BRANCH[device(gpu)] != CURRENT]
    version: tuple[int, ...] = (min(ends), 10**6) if ends else (10**6,)
    if driver is not None:
        version = driver_version(machine, wish, int(driver.value.split(".")[0]))
    elif wish.branch[:3].isdecimal():
        version = numbers(wish.branch) if "." in wish.branch else (int(wish.branch), 10**6)
    for part in found.parts:
        if part.name == "cuda_toolkit":
            yield from forbidden_toolkit(machine, wish, part, listed, version)
        if part.name in ("torch", "tensorflow", "jax"):
            yield from forbidden_wheel(machine, wish, part, listed, version)
    asked = {*wish.frameworks} - {part.name for part in found.parts}
    if asked and not found.blockers:
        yield f"{asked} were dropped without a word"
    toolkits = {part.value for part in found.parts if part.name == "cuda_toolkit"}
    if {*wish.cuda} - {"auto"} - toolkits and not found.blockers:
        yield "a toolkit was dropped without a word"


def forbidden_toolkit(
    machine: Machine, wish: Wish, part: Part, listed: list[str], version: tuple[int, ...]
) -> Iterator[str]:
    wanted = numbers(part.value)
    if version < CUDA_FLOOR[wanted[0]]:
        yield f"CUDA {part.value} under driver {version}"
    for gpu in listed:
        first, last = cuda_range(gpu)
        if not first <= wanted <= last:
            yield f"CUDA {part.value} does not build for {gpu}"
    if machine.os == "debian-13" and wish.source != "distro" and wanted < (13, 1):
        yield "NVIDIA's repository for Debian 13 begins with CUDA 13.1"
    if machine.os.startswith("debian") and wish.source == "distro" and part.packages != ("nvidia-cuda-toolkit",):
        yield "NVIDIA's repository beside Debian's own driver: packages of the same names"


def forbidden_wheel(
    machine: Machine, wish: Wish, part: Part, listed: list[str], version: tuple[int, ...]
) -> Iterator[str]:
    what = f"{part.name} {part.value} {part.index}"
    cards = [capability(gpu) for gpu in listed]
    if any(card is None or not runs(card, *code(part)) for card in cards):
        yield f"{what} has no code for one of {listed}"
    if version < wheel_floor(part):
        yield f"{what} under driver {version}"
    if not has_wheel(part, PYTHON[machine.os]):
        yield f"{what} has no wheel for Python 3.{PYTHON[machine.os]}"
    if wish.frameworks[part.name] not in ("auto", part.value):
        yield "not the release that was asked for"
    if len(listed) < len(machine.gpus):
        yield f"{part.name} was guessed for an unlisted card"
