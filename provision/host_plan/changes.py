"""What provisioning would do to a host, thing by thing, and whether it reboots. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from provision.compat.data import version as numbers
from provision.compat.model import Part, Resolution
from provision.doctor.facts import Facts
from provision.host_plan.found import Installed, driver_packages, driver_version, packages, toolkits
from provision.host_plan.model import Change, Kind
from provision.profile import Profile

_NVIDIA_SITES = ("developer.download.nvidia.com",)
_OUR_SOURCE = "/etc/apt/sources.list.d/nvidia.sources"
"""What the role nvidia_repository writes, whatever mirror it leads to."""
DOCKER_REPLACES = (
    "docker.io",
    "docker-doc",
    "docker-compose",
    "docker-compose-v2",
    "podman-docker",
    "containerd",
    "runc",
)
"""What the role docker removes before Docker's own packages go in: its docker_vendor_conflicts."""
_FRAMEWORKS = ("torch", "tensorflow", "jax")


def changes_of(facts: Facts, profile: Profile, resolution: Resolution) -> tuple[Change, ...]:
    """Every change, in the order of the roles."""
    return (
        *_repository(facts, profile, resolution),
        *_headers(facts, resolution),
        *_driver(facts, resolution),
        *_following(facts, resolution),
        *_tools(facts, profile),
        *_frameworks(facts, profile, resolution),
    )


def driver_changes(facts: Facts, resolution: Resolution) -> bool:
    """Whether a driver is installed, exchanged or its module's flavour changed."""
    part = resolution.part("driver")
    if part is None:
        return False
    step = _step(driver_version(facts), part.value)
    return step is not None or _missing(facts, part) != () or _flavour(facts, resolution) is not None


def _repository(facts: Facts, profile: Profile, resolution: Resolution) -> Iterator[Change]:
    part = resolution.part("repository")
    if part is None:
        return
    sources = [one for one in facts.all("installation.apt_source") if one.value is not None]
    if any(
        one.labels.get("file") == _OUR_SOURCE or any(name in str(one.value) for name in _NVIDIA_SITES)
        for one in sources
    ):
        return
    if profile.wish.source == "mirror":
        yield Change("configure", "NVIDIA's repository", then="the site's mirror", because="nvidia_repository_url")
    else:
        yield Change("configure", "NVIDIA's repository", then=part.value, because="the driver or CUDA is from it")


def _headers(facts: Facts, resolution: Resolution) -> Iterator[Change]:
    part = resolution.part("driver")
    if part is None or not driver_changes(facts, resolution) or not is_built_here(resolution):
        return
    kernel = facts.text("system.kernel_release")
    if facts.flag("installation.kernel_headers") is False:
        yield Change("install", f"linux-headers-{kernel}", because="DKMS builds the module against them")


def is_built_here(resolution: Resolution) -> bool:
    """Whether the kernel module is compiled on the host: no package of a prebuilt, signed one is among the parts."""
    names = [name for kind in ("driver", "module") for name in _packages(resolution.part(kind))]
    return bool(names) and not any(name.startswith("linux-modules-nvidia-") for name in names)


def _packages(part: Part | None) -> tuple[str, ...]:
    return part.packages if part else ()


def _driver(facts: Facts, resolution: Resolution) -> Iterator[Change]:
    part = resolution.part("driver")
    if part is None:
        return
    named = "." in part.value  # the profile's own word; a branch is the resolver's choice, for its first reason
    why = "the profile names this version" if named else part.because[0].rule if part.because else ""
    now, there = driver_version(facts), driver_packages(facts)
    yield from _removed(there, part)
    step = _step(now, part.value)
    missing = _missing(facts, part)
    if step is not None:
        yield Change(step, "driver", now, part.value, why)
    elif missing:
        yield Change("install", "driver packages", "", " ".join(missing), "they belong to this driver")
    if (flavour := _flavour(facts, resolution)) is not None:
        yield flavour
    if facts.flag("software.nouveau_loaded"):
        yield Change("configure", "nouveau", "loaded", "kept from loading", "it holds the cards")
    held = {str(one.value) for one in facts.all("installation.package_held") if one.value is not None}
    names = {one.name for one in there if one.branch == branch_of(part.value)} | set(part.packages)
    if not part.packages:
        return
    if step is not None or missing or not names <= held:
        yield Change(
            "hold",
            "driver packages",
            f"{len(names & held)} of {len(names)} held",
            "held",
            "nothing upgrades them alone",
        )


def _removed(there: tuple[Installed, ...], part: Part) -> Iterator[Change]:
    """Packages of another branch go: two drivers share the same files."""
    groups: dict[str, list[str]] = {}
    for one in there:
        if one.branch and one.branch != branch_of(part.value) and one.name not in part.packages:
            groups.setdefault(one.upstream, []).append(one.name)
    for found, names in groups.items():
        what = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        yield Change("remove", what, found, "", "another driver's; the new one replaces them")


def _flavour(facts: Facts, resolution: Resolution) -> Change | None:
    part, now = resolution.part("module"), facts.text("software.module_flavour")
    if part is None or not now or now == part.value or part.value not in ("open", "proprietary"):
        return None
    return Change("configure", "kernel module", now, part.value, part.because[0].rule if part.because else "")


def _missing(facts: Facts, part: Part) -> tuple[str, ...]:
    there = packages(facts)
    return tuple(name for name in part.packages if name not in there)


def branch_of(value: str) -> str:
    """The branch of a driver's branch or version."""
    return value.partition(".")[0]


def _step(now: str, then: str) -> Kind | None:
    """From a version to a branch or a version; None where it is there already."""
    if not now:
        return "install"
    if now == then or now.startswith(f"{then}."):
        return None
    return "upgrade" if numbers(now) < numbers(then) else "downgrade"


def _following(facts: Facts, resolution: Resolution) -> Iterator[Change]:
    driver = resolution.part("driver")
    if (part := resolution.part("fabric_manager")) is not None:
        now = facts.text("software.fabric_manager")
        wanted = driver.value if driver else part.value
        if (step := _step(now, wanted)) is not None:
            yield Change(step, "fabric_manager", now, wanted, part.because[0].rule if part.because else "")
    for part in toolkits_missing(facts, resolution):
        yield Change("install", "cuda_toolkit", "", part.value, part.because[0].rule if part.because else "")
    if (part := resolution.part("container_toolkit")) is not None:
        now = facts.text("software.container_toolkit")
        if not now:
            yield Change("install", "container_toolkit", "", part.value or "newest", "containers get the GPU by it")
        elif part.value[:1].isdecimal() and (step := _step(now, part.value)) is not None:
            yield Change(step, "container_toolkit", now, part.value, "the profile asks for it")


def toolkits_missing(facts: Facts, resolution: Resolution) -> tuple[Part, ...]:
    """The CUDA toolkits of the resolution that the host lacks."""
    there = toolkits(facts)
    return tuple(
        part
        for part in resolution.parts
        if part.name == "cuda_toolkit"
        and not any(one == part.value or one.startswith(f"{part.value}.") for one in there)
    )


def _tools(facts: Facts, profile: Profile) -> Iterator[Change]:
    replaced = [name for name in DOCKER_REPLACES if name in packages(facts)] if profile.docker == "vendor" else []
    if replaced:
        why = "Docker's own packages own the same files; refused where Kubernetes or another containerd runs on them"
        yield Change("remove", ", ".join(replaced), "installed", "", why)
    if profile.docker != "none" and (replaced or not facts.text("software.docker")):
        yield Change("install", "docker", "", "newest", f"from {_docker(profile)}")
    if profile.nvtop != "none" and not facts.text("software.nvtop"):
        yield Change("install", "nvtop", "", "newest", "the profile asks for it")
    for image in profile.images:
        yield Change("install", image, "", "", "pulled by its digest")


def _docker(profile: Profile) -> str:
    return "Docker's repository" if profile.docker == "vendor" else "the distribution"


def _frameworks(facts: Facts, profile: Profile, resolution: Resolution) -> Iterator[Change]:
    for name in _FRAMEWORKS:
        part = resolution.part(name)
        if part is None:
            continue
        place = f"/opt/bringup/venvs/{name}/"
        now = next(
            (
                str(one.value)
                for metric in ("software.framework_version", "software.framework_elsewhere")
                for one in facts.all(metric, framework=name)
                if one.value is not None and one.labels.get("python", "").startswith(place)
            ),
            "",
        )
        if (step := _step(now.partition("+")[0], part.value)) is not None:
            index = f" from {part.index}" if part.index else ""
            yield Change(step, name, now, part.value, f"an environment of its own{index}")


def reboot_of(facts: Facts, resolution: Resolution) -> tuple[bool, str]:
    """Whether these changes need a reboot, and why."""
    part = resolution.part("driver")
    if part is None or not driver_changes(facts, resolution):
        return False, ""
    loaded = facts.text("software.module_loaded_version")
    if loaded and _step(loaded, part.value) is not None:
        return True, f"driver {loaded} is loaded; {part.value} is used from the next boot on"
    if (change := _flavour(facts, resolution)) is not None and loaded:
        return True, f"the {change.now} kernel module is loaded; the {change.then} one is used from the next boot on"
    if facts.flag("software.nouveau_loaded"):
        return True, "nouveau holds the cards until the next boot"
    if facts.flag("installation.kernel_headers") is False and _another_kernel_next(facts):
        kernel = facts.text("installation.kernel_next")
        return True, f"there are headers for {kernel}, the next boot's kernel, and none for the running one"
    prebuilt = not is_built_here(resolution) and not facts.flag("software.module_for_kernel")
    return False, "unless the signed modules come with a newer kernel: then from its boot on" if prebuilt else ""


def _another_kernel_next(facts: Facts) -> bool:
    found = facts.first("installation.kernel_next")
    return found is not None and found.labels.get("running") == "no" and found.labels.get("headers") == "yes"
