"""What a host's records say of it as a machine: what the resolver needs. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from provision.compat.model import Machine
from provision.doctor.facts import Facts
from validators.schema import Measurement, Outcome, Record


def facts_of(records: Iterable[Record]) -> Facts:
    """The records as facts to ask by "check.metric"."""
    kept = tuple(records)
    return Facts(
        [one for one in kept if isinstance(one, Measurement)], [one for one in kept if isinstance(one, Outcome)]
    )


def machine_from(facts: Facts) -> Machine:
    """The machine by its check `system`. What that does not tell stays empty."""
    name, version = facts.text("system.os_id"), facts.text("system.os_version")
    switches = facts.number("system.nvswitch_count")
    secure = facts.flag("system.secure_boot")
    if secure is None and facts.is_not_applicable("system.secure_boot"):
        secure = False
    return Machine(
        gpus=tuple(
            " ".join(part for part in (str(one.value), one.labels.get("subsystem", "")) if part)
            for one in facts.all("system.pci_gpu")
            if one.value is not None
        ),
        os="-".join(part for part in (name, version) if part),
        kernel=facts.text("system.kernel_release"),
        architecture=facts.text("system.architecture") or "x86_64",
        nvswitches=int(switches or 0),
        secure_boot=secure,
    )
