"""A plan as JSON: docs/planning.md names every field. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from provision.host_plan.model import HostPlan
from provision.profile import Profile

SCHEMA_VERSION = 1
"""Goes up when a field changes its meaning or goes away; new fields do not raise it."""


def render(plans: Sequence[HostPlan], profile: Profile) -> str:
    """ASCII JSON, so nothing that a host sent can act on a terminal."""
    body = {
        "schema_version": SCHEMA_VERSION,
        "profile": {"name": profile.name, "description": profile.description},
        "hosts": [as_data(one) for one in plans],
    }
    return json.dumps(body, indent=1, ensure_ascii=True, allow_nan=False) + "\n"


def as_data(plan: HostPlan) -> dict[str, Any]:
    """One host's plan in the fields of the schema."""
    return {
        "host": plan.host,
        "status": "unread" if plan.failure else "blocked" if plan.blockers else "ready",
        "machine": asdict(plan.machine),
        "found": dict(plan.found),
        "parts": [asdict(part) for part in plan.resolution.parts],
        "blockers": [asdict(one) for one in plan.blockers],
        "changes": [asdict(one) for one in plan.changes],
        "warnings": list(plan.warnings),
        "notes": list(plan.resolution.notes),
        "reboot": plan.reboot,
        "reboot_because": plan.reboot_because,
        "variables": dict(plan.variables),
        "failure": plan.failure,
        "hint": plan.hint,
    }
