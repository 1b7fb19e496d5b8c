"""What is installed and running on a host, by name. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from provision.doctor.facts import Facts

_DRIVER_PACKAGE = re.compile(
    r"(lib)?nvidia-(compute|cfg1|common|decode|encode|extra|fbc1|gl|gpucomp|ml1|ptxjitcompiler1|nvvm\d*)\S*"
    r"|nvidia-(driver|dkms|open|utils|kernel|firmware|headless|compute-utils|smi|settings|persistenced|modprobe"
    r"|persistence|alternative|current|tesla|legacy)\S*|libcuda1|libcudadebugger1|cuda-drivers\S*"
    r"|linux-(modules|objects|signatures)-nvidia-\S*|xserver-xorg-video-nvidia\S*|firmware-nvidia-\S*"
)
_NOT_THE_DRIVER = re.compile(r"nvidia-(driver-pinning|container|docker|settings|modprobe|cuda|fabricmanager|nscq)\S*")
_PPA = re.compile(r"~gpu\d|ppa", re.IGNORECASE)


@dataclass(frozen=True)
class Installed:
    """An installed package. `vendor`: by its Maintainer. `origin` and `archive`: the site whose list has this version,
    and what that archive calls itself; empty where no list has it.
    """

    name: str
    version: str
    vendor: str = ""
    origin: str = ""
    archive: str = ""

    @property
    def upstream(self) -> str:
        """The version without epoch and revision."""
        return re.sub(r"^\d+:|-.*$", "", self.version)

    @property
    def branch(self) -> str:
        """The driver branch of a driver's package: of its version, or of its name where it only points."""
        number = re.match(r"\d{3}(?=\.)", self.upstream) or re.search(r"(?<=-)\d{3}(?=-|$)", self.name)
        return number.group() if number else ""

    @property
    def source(self) -> str:
        """Where it is from, as a Wish names sources; "ppa" and "other" are neither NVIDIA nor the distribution."""
        if self.archive.startswith("LP-PPA") or self.origin.startswith("ppa.") or _PPA.search(self.version):
            return "ppa"
        if self.archive == "NVIDIA CUDA" or self.vendor == "nvidia" or self.origin.endswith("nvidia.com"):
            return "nvidia"
        return "distro" if self.vendor in ("ubuntu", "debian") else "other"

    @property
    def came_from(self) -> str:
        """The same for a person."""
        named = {"nvidia": "NVIDIA's repository", "distro": "the distribution", "ppa": "a PPA"}
        told = named.get(self.source, "an archive that apt does not know")
        return f"{told} ({self.origin})" if self.origin and self.source in ("ppa", "other") else told


def packages(facts: Facts) -> dict[str, Installed]:
    """Name -> installed package, of those that the check `installation` looks for."""
    return {
        one.labels["name"]: Installed(
            one.labels["name"],
            str(one.value),
            one.labels.get("vendor", ""),
            one.labels.get("origin", ""),
            one.labels.get("archive", ""),
        )
        for one in facts.all("installation.package")
        if one.value is not None and "name" in one.labels
    }


def driver_packages(facts: Facts) -> tuple[Installed, ...]:
    """The installed packages that make up a driver."""
    return tuple(
        one
        for name, one in sorted(packages(facts).items())
        if _DRIVER_PACKAGE.fullmatch(name) and not _NOT_THE_DRIVER.fullmatch(name)
    )


def driver_version(facts: Facts) -> str:
    """The driver's version: of its packages, else of the module's file or of what is loaded; empty where none."""
    counted = Counter(one.upstream for one in driver_packages(facts) if re.match(r"\d{3}\.", one.upstream))
    if counted:
        return counted.most_common(1)[0][0]
    packaged = facts.text("software.module_package_version")
    if re.match(r"\d{3}\.", packaged):
        return packaged
    return facts.text("software.module_file_version") or facts.text("software.module_loaded_version")


def found_of(facts: Facts) -> dict[str, str]:
    """What is there, by the names of the resolver's parts and a few more; what is not there is left out."""
    names = Counter(str(one.value) for one in facts.all("system.gpu_model") if one.value is not None)
    told: Mapping[str, str] = {
        "os": facts.text("system.os_name"),
        "kernel": facts.text("system.kernel_release"),
        "gpus": ", ".join(f"{count} x {name}" if count > 1 else name for name, count in names.items()),
        "driver": driver_version(facts),
        "driver_loaded": facts.text("software.module_loaded_version"),
        "module": facts.text("software.module_flavour"),
        "driver_source": _driver_source(facts),
        "fabric_manager": facts.text("software.fabric_manager"),
        "cuda_toolkit": ", ".join(toolkits(facts)),
        "container_toolkit": facts.text("software.container_toolkit"),
        "docker": facts.text("software.docker"),
        "nvtop": facts.text("software.nvtop"),
        **{name: facts.text("software.framework_version", framework=name) for name in ("torch", "tensorflow", "jax")},
        "secure_boot": _secure_boot(facts),
        "nouveau": "loaded" if facts.flag("software.nouveau_loaded") else "",
    }
    return {name: value for name, value in told.items() if value}


def _secure_boot(facts: Facts) -> str:
    flag = facts.flag("system.secure_boot")
    if flag is None:
        return "off" if facts.is_not_applicable("system.secure_boot") else ""
    return "on" if flag else "off"


def _driver_source(facts: Facts) -> str:
    sources = Counter(one.source for one in driver_packages(facts))
    if sources:
        return sources.most_common(1)[0][0]
    if facts.text("installation.run_installer") not in ("", "none"):
        return ".run installer"
    return "not from packages" if facts.text("software.module_loaded_version") else ""


def toolkits(facts: Facts) -> tuple[str, ...]:
    """The versions of CUDA toolkits on the host, the default one first."""
    metrics = ("software.cuda_toolkit", "software.cuda_toolkit_other")
    return tuple(str(one.value) for name in metrics for one in facts.all(name) if one.value is not None)
