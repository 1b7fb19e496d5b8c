"""validate_host(): one host measured, from connecting to the last record. Mapped over hosts by an executor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from validators.schema import Record


@dataclass(frozen=True)
class Failure:
    """Why a host gave no complete answer: `kind` is the exception's name in provision.errors."""

    kind: str
    message: str
    hint: str = ""


@dataclass(frozen=True)
class HostRun:
    """What one host answered. Plain data: it comes back from threads, processes or a cluster.

    `failure` is set where the connection or the wire failed; the records that came before it stay.
    A run without `bye` whose failure is empty cannot exist: validate_host sets one.
    """

    host: str
    address: str
    records: tuple[Record, ...] = ()
    failure: Failure | None = None
    started_unix: float = 0.0
    duration_s: float = 0.0
    timings: Mapping[str, float] = field(default_factory=dict)
    stderr_tail: str = ""
