"""What a host's own round says against loading its GPUs from a container: inside, who uses a GPU may not be seen.

The engine gives a container a PID namespace of its own, in which NVML may name no process. So what the host's load
checks refused, its container's must not load either, and where the host was not asked, nobody knows.
"""

from __future__ import annotations

from dataclasses import replace

from provision.hosts import Host
from provision.remote import Failure, HostRun, Job
from provision.request import IDENTITY
from validators.schema import ERROR, HOST, Outcome

QUIET = (IDENTITY, "preflight")
"""Checks that a host runs on a GPU in use, too: in the container they go on. Every other check there is a load."""
IN_USE = "in use by "
"""How a load check's refusal begins: validators/probes/gpu_load.py."""
MAX_NAMED = 4
"""GPUs that the sentence quotes."""


def against_loads(own: HostRun) -> tuple[str, str]:
    """Why a container may not load GPUs after this run of its host, and what to do; empty where it may."""
    refused: dict[str, str] = {}
    for one in own.records:
        if isinstance(one, Outcome) and one.status == ERROR and one.subject != HOST and one.detail.startswith(IN_USE):
            refused.setdefault(one.subject, one.detail)
    if refused:
        told = [f"{gpu[:80]}, {detail[:400]}" for gpu, detail in list(refused.items())[:MAX_NAMED]]
        if more := len(refused) - len(told):
            told.append(f"{more} more GPUs are refused")
        insist = ", or with --share" if any("--share" in detail for detail in refused.values()) else ""
        return f"{own.host}'s own refused {'; '.join(told)}", f"run it again once that has ended{insist}"
    if own.failure:
        why = f"who uses the GPUs of {own.host} is not known, as it was not measured itself: {own.failure.message}"
        return why, f"mend that first, or insist with --share: {own.failure.hint}".rstrip(": ")
    return "", ""


def without_loads(container: Host, job: Job, reason: tuple[str, str]) -> Job:
    """The container's job without its loads, and with the failure that tells of them; the same where it has none.

    The manifest keeps the whole plan: each check that is held back is an ERROR of the report, with this reason.
    """
    why, hint = reason
    quiet = tuple(request for request in job.plan.checks if request.name in QUIET)
    if not why or job.plan.share or job.plan.device == "cpu" or quiet == job.plan.checks:
        return job
    message = f"{container.name}: its load checks were held back: {why}"
    return replace(job, plan=replace(job.plan, checks=quiet), held=Failure("HostError", message, hint), data={})
