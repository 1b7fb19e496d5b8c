"""A host's plan from what was measured and what the profile wants. Pure."""

from __future__ import annotations

import re
from dataclasses import replace

from provision.compat.model import Blocker, Machine, Resolution, Wish
from provision.compat.resolver import resolve
from provision.doctor.facts import Facts
from provision.host_plan.changes import changes_of, reboot_of
from provision.host_plan.found import driver_version, found_of
from provision.host_plan.machine import machine_from
from provision.host_plan.model import HostPlan
from provision.host_plan.obstacles import blockers_of
from provision.host_plan.variables import variables_of
from provision.host_plan.warnings import warnings_of
from provision.profile import Profile


def plan_of_facts(
    host: str, facts: Facts, profile: Profile, *, today: str = "", skew_s: float | None = None
) -> HostPlan:
    """The plan of a host that was measured (checks system, software, installation). `skew_s`: its clock minus ours."""
    machine = machine_from(facts)
    wish, said = wish_for(machine, facts, profile)
    resolution = resolve(machine, wish, today)
    return make_host_plan(host, machine, facts, replace(profile, wish=wish), resolution, said=said, skew_s=skew_s)


def plan_of_machine(host: str, machine: Machine, profile: Profile, *, today: str = "") -> HostPlan:
    """The plan of a machine of which nothing else is known: `bringup plan --gpu ... --os ...`."""
    made = make_host_plan(host, machine, Facts((), ()), profile, resolve(machine, profile.wish, today))
    return replace(made, reboot_because="not known without a host")


def make_host_plan(
    host: str,
    machine: Machine,
    facts: Facts,
    profile: Profile,
    resolution: Resolution,
    *,
    said: tuple[str, ...] = (),
    skew_s: float | None = None,
) -> HostPlan:
    """The plan of one host. `said`: warnings that come first, such as parts that are left out."""
    blockers = resolution.blockers
    changes = changes_of(facts, profile, resolution)
    reboot, because = reboot_of(facts, resolution)
    if profile.gpu_required and facts.number("system.gpu_count") == 0:
        named = profile.wish.branch != "auto"
        step = "look whether the card is seated and powered, or use a profile with gpu_required = false"
        if named or not blockers:
            blockers = (Blocker("no NVIDIA GPU is on the PCI bus, and the profile requires one", step), *blockers)
    return HostPlan(
        host=host,
        machine=machine,
        found=found_of(facts),
        resolution=resolution,
        changes=changes,
        blockers=(*blockers, *blockers_of(facts, profile, resolution, changes)),
        warnings=(*said, *warnings_of(facts, profile, resolution, skew_s)),
        reboot=reboot,
        reboot_because=because,
        variables=variables_of(profile, resolution),
    )


def wish_for(machine: Machine, facts: Facts, profile: Profile) -> tuple[Wish, tuple[str, ...]]:
    """The profile's wish with the driver that stays, and less the GPU's parts where there is no GPU and none is
    required; and what to say of that.

    Where the number of GPUs is unknown, nothing is left out: that is not the same as none.
    """
    wish = profile.wish
    there = driver_version(facts)
    if wish.source == "none" and re.fullmatch(r"\d{3}(\.\d{1,4}){1,2}", there, re.ASCII):
        wish = replace(wish, branch=there)  # what stays is what CUDA and the wheels are held against
    if profile.gpu_required or machine.gpus or wish.branch != "auto" or facts.number("system.gpu_count") != 0:
        return wish, ()
    left = [name for name, wanted in (
        ("the driver", wish.source != "none"),
        ("CUDA", bool(wish.cuda)),
        ("the container toolkit", wish.container_toolkit),
    ) if wanted]  # fmt: skip
    if not left:
        return wish, ()
    words = f"{', '.join(left[:-1])} and {left[-1]}" if len(left) > 1 else left[0]
    without = replace(wish, source="none", cuda=(), container_toolkit=False, fabric_manager=False)
    return without, (f"no NVIDIA GPU is on the PCI bus: {words} are left out" if len(left) > 1 else
                     f"no NVIDIA GPU is on the PCI bus: {words} is left out",)  # fmt: skip
