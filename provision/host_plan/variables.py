"""What the roles are given for a host: docs/planning.md lists the names. Pure."""

from __future__ import annotations

from provision.compat.model import Resolution
from provision.host_plan.changes import branch_of
from provision.profile import Profile

_TORCH_INDEX = "https://download.pytorch.org/whl/"
_FRAMEWORKS = ("torch", "tensorflow", "jax")


def variables_of(profile: Profile, resolution: Resolution) -> dict[str, object]:
    """The role variables of this plan, complete: what is not wanted is said to be none."""
    driver, module = resolution.part("driver"), resolution.part("module")
    manager, containers = resolution.part("fabric_manager"), resolution.part("container_toolkit")
    toolkits = [part for part in resolution.parts if part.name == "cuda_toolkit"]
    ours = driver is not None and bool(driver.packages)
    return {
        "nvidia_repository_wanted": resolution.part("repository") is not None,
        "nvidia_driver_source": profile.wish.source if ours else "none",
        "nvidia_driver_branch": branch_of(driver.value) if driver and ours else "",
        "nvidia_driver_version": driver.value if driver and ours and "." in driver.value else "",
        "nvidia_driver_module": module.value if module and ours else "open",
        "nvidia_driver_packages": list(driver.packages) if driver and ours else [],
        "nvidia_driver_pin_package": driver.pin if driver and ours else "",
        "fabric_manager_wanted": manager is not None,
        "fabric_manager_packages": list(manager.packages) if manager else [],
        "cuda_toolkit_versions": [part.value for part in toolkits],
        "cuda_toolkit_packages": [name for part in toolkits for name in part.packages],
        "container_toolkit_wanted": containers is not None,
        "container_toolkit_version": containers.value if containers and containers.value[:1].isdecimal() else "",
        "docker_source": profile.docker,
        "nvtop_from": profile.nvtop,
        "frameworks": [_framework(name, profile, resolution) for name in _FRAMEWORKS if resolution.part(name)],
        "ngc_images": list(profile.images),
    }


def _framework(name: str, profile: Profile, resolution: Resolution) -> dict[str, object]:
    """One entry of the role's `frameworks`. PyTorch's index has what torch needs; extras come from the default one."""
    part = resolution.part(name)
    assert part is not None  # noqa: S101 - the caller asked for it; mypy cannot see that
    extras = profile.extras.get(name, ())
    entry: dict[str, object] = {"name": name, "packages": [*part.packages, *extras]}
    if part.index:
        entry["extra_index_url" if extras else "index_url"] = f"{_TORCH_INDEX}{part.index}"
    return entry
