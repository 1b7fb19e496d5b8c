"""What to install on each host for an upgrade: the resolver's answer, for the branch or version that was asked for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from provision.compat.model import Wish
from provision.host_plan.model import HostPlan
from provision.hosts import Host
from provision.planning import plan_hosts
from provision.profile import Profile, load_profile
from provision.upgrade.compare import is_version
from provision.upgrade.model import Planner, Prepared

_JOBS = re.compile(r"\d+ process(es)? on the GPU: ")
"""How the plan's blocker begins that a drain takes away."""
_UNTOUCHED = ("cuda_toolkit", "docker", "nvtop", "torch", "tensorflow", "jax")
"""What a profile may want beside the driver and an upgrade leaves as it is (ROLES)."""


def planner_for(to: str, profile: str = "", *, host_keys: Literal["strict", "accept-new"] = "strict") -> Planner:
    """Plans the driver `to` alone, or what a profile has beside it. Raises ProfileError."""
    wanted = profile_for(to, profile)

    def plan(hosts: Sequence[Host]) -> Prepared:
        return prepared(plan_hosts(hosts, wanted, host_keys=host_keys))

    return plan


def profile_for(to: str, profile: str = "") -> Profile:
    """The profile with the driver `to` (empty: its own); without a profile, the driver and nothing else."""
    if profile:
        found = load_profile(profile)
        return replace(found, wish=replace(found.wish, branch=to)) if to else found
    return Profile(f"driver {to}", wish=Wish(branch=to, container_toolkit=False), docker="none", nvtop="none")


def prepared(plans: Sequence[HostPlan]) -> Prepared:
    """The plans' variables; a host that could not be read, or that something stands in the way of, with the reason;
    and a host that has it all already.

    Jobs on a GPU are no reason: the drain comes before the installation.
    """
    refused = {plan.host: plan.failure for plan in plans if plan.failure}
    for plan in plans:
        stays = [one for one in plan.blockers if not _JOBS.match(one.what)]
        if stays and plan.host not in refused:
            refused[plan.host] = f"{stays[0].what}. {stays[0].next_step}"
        elif plan.host not in refused and plan.variables.get("nvidia_driver_source", "none") == "none":
            refused[plan.host] = "the plan has no driver for it"
    left = [plan for plan in plans if plan.host not in refused]
    already = {plan.host: why for plan in left if (why := _already(plan))}
    return Prepared({plan.host: plan.variables for plan in left}, refused, already)


def _already(plan: HostPlan) -> str:
    """Why there is nothing to do, or nothing: the plan changes nothing, and the driver asked for is loaded.

    A branch is there with any version of it; a newer one in the repository is asked for by its number.
    """
    wanted = str(plan.variables.get("nvidia_driver_version") or plan.variables.get("nvidia_driver_branch") or "")
    there, loaded = plan.found.get("driver", ""), plan.found.get("driver_loaded", "")
    images = plan.variables.get("ngc_images")
    untouched = {*_UNTOUCHED, *(images if isinstance(images, list) else ())}
    if loaded != there or not is_version(loaded, wanted) or any(one.what not in untouched for one in plan.changes):
        return ""
    return f"it has {loaded} already"
