"""What all hosts of a run measure together: each one's plan names the place where they meet, and its own place there.

Only the operator's side knows all of them. The hosts meet at the first one's address (validators/probes/meeting.py):
its `bringup_fabric_address`, where the fast network is another than that of SSH, else the address of the inventory.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace

from provision.errors import UsageError
from provision.hosts import Host
from validators.schema import CheckInfo, CheckRequest, Plan, Scalar

CHECK = "links"
PORT = 29400
"""Where hosts meet, unless the first one's `bringup_fabric_port` says otherwise; torchrun's own default."""
PATIENCE_S = 60.0
"""Seconds that hosts wait for each other, beside those that the load checks before this one take."""


def plan_between(hosts: Sequence[Host], plans: Mapping[str, Plan], catalogue: Sequence[CheckInfo]) -> dict[str, Plan]:
    """The plans, with what `links` needs to measure between these hosts. Raises UsageError where that cannot be meant.

    All of them must run at the same time: the caller needs a worker for each.
    """
    if len(hosts) < 2:
        raise UsageError("--between-hosts needs two hosts or more", "name them, or widen --limit")
    for host in hosts:
        if not any(request.name == CHECK for request in plans[host.name].checks):
            raise UsageError(f"--between-hosts is a part of the check {CHECK}, which {host.name} is not asked for",
                             f"add --only {CHECK}, or --level 3")  # fmt: skip
    devices = {plans[host.name].device for host in hosts}
    if len(devices) > 1:
        raise UsageError("--between-hosts: some hosts run on the CPU and some on GPUs; they cannot reduce together")
    together: dict[str, Scalar] = {
        "between_hosts": " ".join(host.name for host in hosts),
        "between_address": _address(hosts[0]),
        "between_port": _port(hosts[0]),
        "between_run": secrets.token_hex(8),
        "between_wait_s": PATIENCE_S + max(_before(plans[host.name], catalogue) for host in hosts),
    }
    return {host.name: _told(plans[host.name], {**together, "between_index": i}) for i, host in enumerate(hosts)}


def _told(plan: Plan, together: Mapping[str, Scalar]) -> Plan:
    def told(request: CheckRequest) -> CheckRequest:
        return replace(request, params={**request.params, **together}) if request.name == CHECK else request

    return replace(plan, checks=tuple(told(one) for one in plan.checks))


def _before(plan: Plan, catalogue: Sequence[CheckInfo]) -> float:
    """Seconds that the load checks of a plan usually take before the links' turn."""
    seconds = {info.name: info.seconds for info in catalogue if 1 < info.level <= 3}
    return sum(seconds.get(request.name, 0.0) for request in plan.checks if request.name != CHECK)


def _address(host: Host) -> str:
    said = host.variables.get("bringup_fabric_address", "")
    if not isinstance(said, str) or any(letter.isspace() for letter in said):
        raise UsageError(f"host {host.name}: bringup_fabric_address = {said!r:.80} is not an address")
    if not said and host.connection == "local":
        raise UsageError(
            f"the hosts meet at {host.name}, which is this machine: the others do not know it by that name",
            f"set bringup_fabric_address of {host.name} to its address on the network that they share",
        )
    return said or host.address


def _port(host: Host) -> int:
    said = host.variables.get("bringup_fabric_port", PORT)
    if not str(said).isdecimal() or not 0 < int(str(said)) < 65536:
        raise UsageError(f"host {host.name}: bringup_fabric_port = {said!r:.80} is not a port (1 to 65535)")
    return int(str(said))
