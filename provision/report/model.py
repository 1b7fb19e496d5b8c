"""The report as data: what judge() returns and every renderer reads. docs/report.schema.json documents its JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from provision.criteria.model import Criterion
from validators.schema import Measurement, Sample, Scalar

Status = Literal["PASS", "WARN", "FAIL", "SKIP", "ERROR"]
LinkState = Literal["holds", "broken", "unknown", "not_applicable", "not_reached"]

CONNECTION = "connection"
"""The name under which a host's own failure stands among its verdicts; there is no check of that name."""
NO_OUTCOME = "planned, and no outcome came"
"""How the reason of a planned cell begins that has no outcome."""


@dataclass(frozen=True)
class Verdict:
    """One judgement. PASS, WARN and FAIL always carry the measurement and the criterion.

    `required` is the criterion's value resolved for this card ("at least 692 TFLOP/s"), `required_value`
    its number where it is one, for plots. `next_step` is set for FAIL and ERROR.
    """

    status: Status
    check: str
    subject: str
    metric: str
    reason: str
    measurement: Measurement | None = None
    criterion: Criterion | None = None
    required: str = ""
    required_value: Scalar | None = None
    next_step: str = ""


@dataclass(frozen=True)
class Link:
    """A link of the chain from the PCI device to a framework's known answer."""

    name: str
    state: LinkState
    evidence: str
    mend: str = ""
    """The command or step that mends it, where it is broken."""


@dataclass(frozen=True)
class Chain:
    """The links in order; `sentence` names the first that does not hold, or says that all hold."""

    links: tuple[Link, ...]
    sentence: str

    @property
    def broken(self) -> Link | None:
        """The first link that is broken or unknown, if any."""
        return next((link for link in self.links if link.state in ("broken", "unknown")), None)


@dataclass(frozen=True)
class Gpu:
    """A GPU of a host as it was measured. `uuid` is the subject of its measurements."""

    uuid: str
    index: int
    name: str
    pci_address: str = ""
    compute_capability: str = ""


@dataclass(frozen=True)
class HostReport:
    """One host: its verdict, what it rests on, and the raw measurements."""

    name: str
    address: str
    status: Status
    headline: str
    verdicts: tuple[Verdict, ...]
    chain: Chain | None = None
    gpus: tuple[Gpu, ...] = ()
    measurements: tuple[Measurement, ...] = ()
    samples: tuple[tuple[str, Sample], ...] = ()
    """(check, sample) in order of time."""
    started_unix: float = 0.0
    duration_s: float = 0.0
    timings: Mapping[str, float] = field(default_factory=dict)
    """Seconds: connect, upload, run; and the deadlines that were in force, as deadline_*."""
    device: str = "gpu"
    bundle: str = ""


@dataclass(frozen=True)
class Report:
    """A whole run, judged."""

    run_id: str
    status: Status
    created: str
    """ISO 8601, UTC: when the run was made. `judged` is when these verdicts were."""
    judged: str
    version: str
    hosts: tuple[HostReport, ...]
    command: str = ""
    criteria_files: tuple[tuple[str, str], ...] = ()
    """(name, SHA-256) of each criteria file in force."""
    notes: tuple[str, ...] = ()
