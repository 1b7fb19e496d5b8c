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
from provision.upgrade.model import Planner, Prepared

_JOBS = re.compile(r"\d+ process(es)? on the GPU: ")
"""How the plan's blocker begins that a drain takes away."""


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
    """The plans' variables; a host that could not be read, or that something stands in the way of, with the reason.

    Jobs on a GPU are no reason: the drain comes before the installation.
    """
    refused = {plan.host: plan.failure for plan in plans if plan.failure}
    for plan in plans:
        stays = [one for one in plan.blockers if not _JOBS.match(one.what)]
        if stays and plan.host not in refused:
            refused[plan.host] = f"{stays[0].what}. {stays[0].next_step}"
        elif plan.host not in refused and plan.variables.get("nvidia_driver_source", "none") == "none":
            refused[plan.host] = "the plan has no driver for it"
    return Prepared({plan.host: plan.variables for plan in plans if plan.host not in refused}, refused)
