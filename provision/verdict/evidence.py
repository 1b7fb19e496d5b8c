"""One host's records in order for judging: what was measured of what, how each cell ended, which GPUs there are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from provision.criteria.physics import GpuFacts
from provision.remote import HostRun
from provision.report.model import Gpu
from validators.schema import ERROR, HOST, RAN, SKIPPED, Bye, Hello, Measurement, Outcome, Record, Sample

IDENTITY = "compute_capability"
"""The check that names the GPUs; the planner puts it into every plan."""

MAX_GPUS = 256
"""More subjects than that are no GPUs: what a host sends is bounded here, too."""

_WORST = {RAN: 0, SKIPPED: 1, ERROR: 2}


@dataclass(frozen=True)
class Evidence:
    """What a host answered. `counted`: the most GPUs that any count names (PCI bus, NVML, subjects)."""

    measurements: tuple[Measurement, ...]
    samples: tuple[tuple[str, Sample], ...]
    outcomes: Mapping[tuple[str, str], Outcome]
    values: Mapping[tuple[str, str], Mapping[str, Sequence[Measurement]]]
    """(check, metric) -> subject -> its measurements."""
    gpus: tuple[Gpu, ...]
    facts: Mapping[str, GpuFacts]
    counted: int
    hello: Hello | None
    bye: Bye | None

    def outcome(self, check: str, subject: str) -> Outcome | None:
        """How the check ended for this subject; the worst, where a host says several."""
        return self.outcomes.get((check, subject))

    def of(self, check: str, metric: str) -> Mapping[str, Sequence[Measurement]]:
        """Every measurement of a metric, by subject."""
        return self.values.get((check, metric), {})


def gather(run: HostRun, per_gpu: Collection[str]) -> Evidence:
    """Order the records of a run. `per_gpu`: the checks whose subjects are GPUs."""
    measurements = tuple(record for record in run.records if isinstance(record, Measurement))
    outcomes: dict[tuple[str, str], Outcome] = {}
    for record in run.records:
        if isinstance(record, Outcome):
            key = record.check, record.subject
            if key not in outcomes or _WORST[record.status] > _WORST[outcomes[key].status]:
                outcomes[key] = record
    values: dict[tuple[str, str], dict[str, list[Measurement]]] = defaultdict(lambda: defaultdict(list))
    for one in measurements:
        values[one.check, one.metric][one.subject].append(one)
    facts = {uuid: _facts(uuid, values) for uuid in _subjects(run.records, per_gpu)}
    gpus = sorted((_gpu(uuid, facts[uuid], values) for uuid in facts), key=lambda gpu: (gpu.index, gpu.uuid))
    counts = [_number(values, check, metric, HOST) for check, metric in _COUNTS]
    samples = sorted(
        ((record.check, record) for record in run.records if isinstance(record, Sample)), key=lambda pair: pair[1].t_s
    )
    return Evidence(
        measurements=measurements,
        samples=tuple(samples),
        outcomes=outcomes,
        values=values,
        gpus=tuple(gpus),
        facts=facts,
        counted=max(len(gpus), *(int(count) for count in counts if count is not None), 0),
        hello=next((record for record in run.records if isinstance(record, Hello)), None),
        bye=next((record for record in run.records if isinstance(record, Bye)), None),
    )


_COUNTS = (("system", "gpu_count"), (IDENTITY, "gpu_count_nvml"))

_Values = Mapping[tuple[str, str], Mapping[str, Sequence[Measurement]]]


def _subjects(records: Sequence[Record], per_gpu: Collection[str]) -> list[str]:
    """GPUs in order of appearance: every subject but the host that the checks of GPUs speak of."""
    found: dict[str, None] = {}
    for record in records:
        if isinstance(record, (Measurement, Outcome)) and record.subject != HOST:
            if record.check == IDENTITY or record.check in per_gpu:
                found.setdefault(record.subject)
            if len(found) >= MAX_GPUS:
                break
    return list(found)


def _facts(uuid: str, values: _Values) -> GpuFacts:
    return GpuFacts(
        name=_text(values, "gpu_name", uuid),
        capability=_text(values, "compute_capability", uuid),
        **{
            name: _number(values, IDENTITY, name, uuid)
            for name in (
                "sm_count",
                "cuda_cores",
                "sm_clock_max",
                "memory_clock_max",
                "memory_bus_width",
                "power_limit_default",
            )
        },
    )


def _gpu(uuid: str, facts: GpuFacts, values: _Values) -> Gpu:
    named = values.get((IDENTITY, "gpu_name"), {}).get(uuid, ())
    labels = named[0].labels if named else {}
    index = labels.get("index", "")
    return Gpu(
        uuid=uuid,
        index=int(index) if index.isascii() and index.isdigit() and len(index) < 6 else -1,
        name=facts.name,
        pci_address=labels.get("pci_address", ""),
        compute_capability=facts.capability,
    )


def _text(values: _Values, metric: str, subject: str) -> str:
    for one in values.get((IDENTITY, metric), {}).get(subject, ()):
        if isinstance(one.value, str):
            return one.value
    return ""


def _number(values: _Values, check: str, metric: str, subject: str) -> float | None:
    for one in values.get((check, metric), {}).get(subject, ()):
        if isinstance(one.value, (int, float)) and not isinstance(one.value, bool) and abs(one.value) < 2**64:
            return one.value
    return None
