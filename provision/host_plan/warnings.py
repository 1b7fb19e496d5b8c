"""What does not stop an installation, and a person should know before it. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from provision.compat.model import Resolution
from provision.doctor.facts import Facts
from provision.host_plan.changes import driver_changes, is_built_here
from provision.host_plan.found import driver_packages
from provision.host_plan.obstacles import is_image
from provision.profile import Profile

SKEW_S = 60.0
"""A clock that is further off makes apt refuse a repository's signature, or trust an expired one."""


def warnings_of(facts: Facts, profile: Profile, resolution: Resolution, skew_s: float | None) -> Iterator[str]:
    """One sentence each."""
    if skew_s is not None and abs(skew_s) > SKEW_S:
        side = "behind" if skew_s < 0 else "ahead"
        yield (
            f"its clock is {abs(skew_s):,.0f} s {side} of this machine's: apt may refuse signatures; "
            "set it (timedatectl set-ntp true)"
        )
    if facts.text("installation.cloud_init") == "running":
        yield "cloud-init is still at work: it may hold apt's lock; wait for `cloud-init status --wait`"
    locks = [one for one in facts.all("installation.apt_lock") if one.value not in (None, "none")]
    if locks:
        who = f"{locks[0].labels.get('program') or 'another process'} (pid {locks[0].labels.get('pid', '?')})"
        yield f"apt's lock is held by {who}: provisioning waits for it, 10 minutes at most"
    if facts.flag("installation.reboot_required"):
        told = facts.first("installation.reboot_required")
        names = told.labels.get("packages", "") if told else ""
        yield f"the host asks for a reboot already{f' ({names[:200]})' if names else ''}"
    if resolution.part("driver") is not None:
        yield from _driver(facts, profile, resolution)


def _driver(facts: Facts, profile: Profile, resolution: Resolution) -> Iterator[str]:
    names = {one.name for one in driver_packages(facts)}
    held = {str(one.value) for one in facts.all("installation.package_held") if one.value is not None}
    if facts.flag("installation.unattended_upgrades") and names - held:
        yield "unattended-upgrades is on and the driver is not on hold: it may be upgraded at night before this is done"
    coming = facts.first("installation.kernel_next")
    another = coming is not None and coming.labels.get("running") == "no" and coming.labels.get("headers") == "no"
    if coming is not None and another and is_built_here(resolution):
        yield f"the next boot starts kernel {coming.value}, whose headers are not installed: no nvidia module for it"
    if not driver_changes(facts, resolution):
        return
    hidden = facts.all("installation.gpu_processes")
    if hidden and hidden[0].absence == "unknown":
        yield f"whether jobs use the GPU is not known: {hidden[0].note}; ansible_become=true looks with sudo"
    container = facts.text("system.container")
    if container not in ("", "none") and is_image(profile):
        yield (
            f"this runs in a container ({container}): the driver's files go in, where nvidia_driver_in_container=true "
            "says so, and its module cannot be loaded here"
        )
    if facts.flag("installation.kernel_headers_offered") is False and is_built_here(resolution):
        kernel = facts.text("system.kernel_release")
        yield f"apt's lists have no linux-headers-{kernel}: DKMS builds no module for this kernel without them"
