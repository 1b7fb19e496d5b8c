"""compat.toml as typed records: read once, then look-ups only."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

from provision.compat.model import Reason


@dataclass(frozen=True)
class Architecture:
    """Cards of one compute capability. `last_cuda`: empty where the newest toolkit still builds for it.

    `on_arm`: the GPU comes on one board with an Arm processor.
    """

    name: str
    capability: str
    modules: tuple[str, ...]
    first_cuda: str
    last_cuda: str
    on_arm: bool
    reason: Reason


@dataclass(frozen=True)
class Branch:
    """A driver branch. `kind`: LTSB, PB, NFB, legacy or empty. `eol`: a month, "ended", or empty: not established."""

    number: int
    kind: str
    eol: str
    newest: str
    modules: tuple[str, ...]
    reason: Reason

    def is_over(self, today: str) -> bool:
        """Whether support has ended by `today` ("2026-11-21"), as far as that is established."""
        return self.reason.confidence != "low" and (
            self.eol == "ended" or (bool(self.eol) and self.eol < today[: len("2026-11")])
        )


@dataclass(frozen=True)
class System:
    """A distribution's release. `repository`: its directory in NVIDIA's repository. `kernel`: its first kernel."""

    id: str
    name: str
    repository: str
    python: str
    kernel: str
    reason: Reason


@dataclass(frozen=True)
class Flavour:
    """The apt packages of one kernel module flavour. `dkms`, `signed_package`: the module where it is separate."""

    compute: tuple[str, ...]
    full: tuple[str, ...]
    dkms: str = ""
    signed_package: str = ""


@dataclass(frozen=True)
class Offer:
    """One driver branch from one source on one system. `version`: what an archive has; empty: every version."""

    system: str
    source: str
    branch: int
    version: str
    pin: str
    modules: Mapping[str, Flavour]
    fabric_manager: tuple[str, ...]
    fabric_manager_blackwell: tuple[str, ...]
    signed: tuple[str, ...]
    components: tuple[str, ...]
    note: str
    reason: Reason


@dataclass(frozen=True)
class Toolkit:
    """A CUDA toolkit's package on one system."""

    system: str
    source: str
    version: str
    package: str
    reason: Reason


@dataclass(frozen=True)
class Build:
    """One build of a framework. `code`: sm_XY and compute_XY that it carries. `python`: first and last version."""

    framework: str
    version: str
    cuda: str
    index: str
    code: tuple[str, ...]
    python: tuple[str, str]
    minimum_driver: str
    requirement: str
    reason: Reason


@dataclass(frozen=True)
class Facts:
    """Everything that compat.toml says."""

    as_of: str
    pci_list: str
    architectures: tuple[tuple[int, int, Architecture], ...]
    branches: Mapping[int, Branch]
    systems: Mapping[str, System]
    offers: tuple[Offer, ...]
    transitional: Mapping[tuple[str, str, int], tuple[int, Reason]]
    toolkits: tuple[Toolkit, ...]
    builds: tuple[Build, ...]
    cuda: Mapping[str, tuple[str, Reason]]
    cuda_majors: Mapping[int, tuple[str, Reason]]
    rules: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def rule(self, name: str) -> Reason:
        """A rule of compat.toml as a reason."""
        entry = self.rules[name]
        return Reason(str(entry["rule"]), str(entry["source"]), str(entry["confidence"]))

    def architecture(self, device: str) -> Architecture | None:
        """The architecture of a PCI device id ("2335")."""
        try:
            number = int(device, 16)
        except ValueError:
            return None
        return next((one for first, last, one in self.architectures if first <= number <= last), None)


def version(text: str) -> tuple[int, ...]:
    """A version as numbers; a part that is none ends it."""
    numbers = []
    for part in text.split("."):
        if not (part.isascii() and part.isdecimal()):
            break
        numbers.append(int(part))
    return tuple(numbers)


_CUDA = "driver {driver} and newer have CUDA {version} in themselves"


@cache
def facts() -> Facts:
    """The package's own data, read once."""
    data = tomllib.loads((files("provision.compat") / "compat.toml").read_text(encoding="utf-8"))
    names = {entry["id"]: entry["name"] for entry in data["system"]}
    return Facts(
        as_of=data["meta"]["as_of"],
        pci_list=data["meta"]["pci_list"],
        architectures=tuple(
            (int(first, 16), int(last, 16), _architecture(entry))
            for entry in data["architecture"]
            for first, last in (ids.split("-") for ids in entry["ids"])
        ),
        branches={entry["number"]: _branch(entry) for entry in data["branch"]},
        systems={entry["id"]: _system(entry) for entry in data["system"]},
        offers=tuple(
            _offer(entry, system, branch, names[system])
            for entry in data["offer"]
            for system in entry["systems"]
            for branch in entry["branches"]
        ),
        transitional={
            (system, entry["source"], entry["branch"]): (entry["installs"], _reason(entry, ""))
            for entry in data["transitional"]
            for system in entry["systems"]
        },
        toolkits=tuple(
            _toolkit(entry, system, number, names[system])
            for entry in data["toolkit"]
            for system in entry["systems"]
            for number in entry["versions"]
        ),
        builds=tuple(_build(entry) for entry in data["build"]),
        cuda={entry["version"]: (entry["driver"], _reason(entry, _CUDA.format(**entry))) for entry in data["cuda"]},
        cuda_majors={
            entry["major"]: (
                entry["minimum_driver"],
                _reason(entry, f"CUDA {entry['major']} needs driver {entry['minimum_driver']} or newer"),
            )
            for entry in data["cuda_major"]
        },
        rules=data["rule"],
    )


def _reason(entry: Mapping[str, Any], rule: str) -> Reason:
    return Reason(rule, str(entry.get("from", entry["source"])), str(entry["confidence"]))


def _architecture(entry: Mapping[str, Any]) -> Architecture:
    modules, last = tuple(entry["modules"]), entry.get("last_cuda", "")
    rule = f"{entry['name']}, compute capability {entry['capability']}: {' or '.join(modules)} kernel module"
    rule += f", CUDA {entry['first_cuda']} to {last}" if last else f", CUDA {entry['first_cuda']} and newer"
    return Architecture(
        name=entry["name"],
        capability=entry["capability"],
        modules=modules,
        first_cuda=entry["first_cuda"],
        last_cuda=last,
        on_arm=entry.get("host") == "arm64",
        reason=_reason(entry, rule),
    )


def _branch(entry: Mapping[str, Any]) -> Branch:
    kinds = {"LTSB": "a long-term support branch", "PB": "a production branch", "NFB": "a new feature branch"}
    rule = f"branch {entry['number']} is {kinds.get(entry['kind'], 'of no established kind')}"
    eol = entry["eol"]
    rule += f", supported until {eol}" if eol[:1].isdecimal() else ", its support has ended" if eol else ""
    return Branch(entry["number"], entry["kind"], eol, entry["newest"], tuple(entry["modules"]), _reason(entry, rule))


def _system(entry: Mapping[str, Any]) -> System:
    rule = f"{entry['name']} has Python {entry['python']}"
    return System(
        entry["id"], entry["name"], entry["repository"], entry["python"], entry["kernel"], _reason(entry, rule)
    )


def _offer(entry: Mapping[str, Any], system: str, branch: int, name: str) -> Offer:
    fill = {"branch": str(branch), "flavour": "{flavour}", "version": "{version}"}

    def filled(names: list[str]) -> tuple[str, ...]:
        return tuple(name.format(**fill) for name in names)

    modules = {
        module: Flavour(
            filled(entry[module]["compute"]),
            filled(entry[module]["full"]),
            str(entry[module].get("dkms", "")).format(**fill),
            str(entry[module].get("signed_package", "")).format(**fill),
        )
        for module in ("open", "proprietary")
        if module in entry
    }
    where = "NVIDIA's repository" if entry["source"] == "nvidia" else "the distribution's archive"
    rule = f"{where} has branch {branch} for {name}"
    return Offer(
        system=system,
        source=entry["source"],
        branch=branch,
        version=entry.get("version", ""),
        pin=entry.get("pin", ""),
        modules=modules,
        fabric_manager=filled(entry.get("fabric_manager", [])),
        fabric_manager_blackwell=filled(entry.get("fabric_manager_blackwell", [])),
        signed=tuple(entry.get("signed", ())),
        components=tuple(entry.get("components", ())),
        note=entry.get("note", ""),
        reason=_reason(entry, rule),
    )


def _toolkit(entry: Mapping[str, Any], system: str, number: str, name: str) -> Toolkit:
    package = entry.get("package", "cuda-toolkit-" + number.replace(".", "-"))
    where = "NVIDIA's repository" if entry["source"] == "nvidia" else "the distribution's archive"
    return Toolkit(system, entry["source"], number, package, _reason(entry, f"{where} has CUDA {number} for {name}"))


def _build(entry: Mapping[str, Any]) -> Build:
    where = f" from the index {entry['index']}" if entry["index"] else ""
    rule = (
        f"{entry['framework']} {entry['version']}{where} is built for CUDA {entry['cuda']},"
        f" Python {entry['python'][0]} to {entry['python'][1]}, {' '.join(entry['code'])}"
    )
    return Build(
        entry["framework"], entry["version"], entry["cuda"], entry["index"], tuple(entry["code"]),
        (entry["python"][0], entry["python"][1]), entry["minimum_driver"], entry["requirement"], _reason(entry, rule),
    )  # fmt: skip
