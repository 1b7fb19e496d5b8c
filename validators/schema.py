"""The wire format, and the only module that both sides import.

A host answers a `Plan` (one JSON line on its stdin) with records, one JSON object a line:
`hello`, then `progress`, `measurement`, `sample` and `outcome` in any order, then `bye`.
What a host sends is hostile input: `decode` bounds it, checks every field and refuses NaN.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from typing import Any, Dict, Mapping, Tuple, Union

SCHEMA = 1
"""Version of this format. Both ends refuse any other."""

HOST = "host"
"""The subject of a measurement that is about the host as a whole. Other subjects are GPU UUIDs."""

MAX_RECORD_BYTES = 64 * 1024
"""One record may not be longer, newline included."""

MAX_TEXT = 4096
"""Characters in any one string of a record (Plan strings too)."""

MAX_ITEMS = 256
"""Entries in any one mapping or list of a record."""

UNITS: Mapping[str, str] = {
    "bool": "true or false",
    "text": "a name",
    "version": "a version, compared part by part",
    "count": "how many",
    "ratio": "a fraction, 1 is all",
    "percent": "parts of a hundred",
    "MiB": "mebibytes (2**20 bytes)",
    "GB/s": "10**9 bytes a second",
    "Mbit/s": "10**6 bits a second",
    "GT/s": "10**9 transfers a second",
    "TFLOP/s": "10**12 floating-point operations a second",
    "TOP/s": "10**12 integer operations a second",
    "images/s": "images a second",
    "MHz": "10**6 cycles a second",
    "W": "watts",
    "celsius": "degrees Celsius",
    "bits": "bits",
    "s": "seconds",
    "us": "microseconds",
}
"""Every unit there is. A metric has exactly one, for ever; probes convert."""

Scalar = Union[bool, int, float, str]

NOT_APPLICABLE = "not_applicable"
"""Absence: the thing has no such property (NVML: NOT_SUPPORTED). Never a good value."""
UNKNOWN = "unknown"
"""Absence: it should have a value and none could be read."""

RAN, SKIPPED, ERROR = "ran", "skipped", "error"


class SchemaError(ValueError):
    """A line that is not a record of this format; the text says why, without quoting the line raw."""


@dataclass(frozen=True)
class Hello:
    """First record: who answers. `time_unix` is the host's clock in seconds since 1970 (UTC)."""

    schema: int
    bundle: str
    python: str
    hostname: str
    boot_id: str
    time_unix: float


@dataclass(frozen=True)
class Progress:
    """Something to show while a long check runs. `fraction` is 0..1, or -1 where it is not known."""

    check: str
    subject: str
    message: str
    fraction: float = -1.0


@dataclass(frozen=True)
class Measurement:
    """One number or fact. `value` is None exactly when `absence` says why there is none."""

    check: str
    subject: str
    metric: str
    value: Union[bool, int, float, str, None]
    unit: str
    labels: Mapping[str, str] = field(default_factory=dict)
    absence: str = ""
    note: str = ""


@dataclass(frozen=True)
class Sample:
    """A point of a trace taken while a load runs: `t_s` seconds after the load began, metric -> number."""

    check: str
    subject: str
    t_s: float
    values: Mapping[str, float]


@dataclass(frozen=True)
class Outcome:
    """How a check ended for one subject. `status`: ran, skipped (not applicable here) or error."""

    check: str
    subject: str
    status: str
    detail: str
    duration_s: float


@dataclass(frozen=True)
class Bye:
    """Last record: how many records came before it, `hello` included."""

    count: int


Record = Union[Hello, Progress, Measurement, Sample, Outcome, Bye]

_KINDS: Dict[str, type] = {
    "hello": Hello,
    "progress": Progress,
    "measurement": Measurement,
    "sample": Sample,
    "outcome": Outcome,
    "bye": Bye,
}
_NAMES = {cls: name for name, cls in _KINDS.items()}


def encode(record: Record) -> bytes:
    """One JSON line, newline included. Raises SchemaError for what `decode` would refuse."""
    body: Dict[str, Any] = {"type": _NAMES[type(record)], **asdict(record)}
    _check(record)
    try:
        line = json.dumps(body, allow_nan=False, ensure_ascii=True, separators=(",", ":")).encode() + b"\n"
    except (TypeError, ValueError) as problem:
        raise SchemaError(f"a {body['type']} record cannot be written: {problem}") from None
    if len(line) > MAX_RECORD_BYTES:
        raise SchemaError(f"a {body['type']} record of {len(line)} bytes is over {MAX_RECORD_BYTES}")
    return line


def decode(line: bytes) -> Record:
    """The record of one line. Raises SchemaError for anything that `encode` would not have written."""
    if len(line) > MAX_RECORD_BYTES:
        raise SchemaError(f"a line of {len(line)} bytes is over {MAX_RECORD_BYTES}")
    body = _load(line)
    cls = _KINDS.get(str(body.pop("type", None)))
    if cls is None:
        raise SchemaError("a record of no known type")
    try:
        record: Record = cls(**body)
    except TypeError:
        raise SchemaError(f"a {_NAMES[cls]} record with missing or unknown fields") from None
    _check(record)
    return record


def _load(line: bytes) -> Dict[str, Any]:
    def refuse(constant: str) -> None:
        raise SchemaError(f"{constant} is not a number that can be judged")

    try:
        body = json.loads(line.decode("utf-8"), parse_constant=refuse)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as problem:
        raise SchemaError(f"not JSON ({type(problem).__name__})") from None
    except SchemaError:
        raise
    except ValueError:  # an integer of thousands of digits
        raise SchemaError("not JSON (a number too long)") from None
    if not isinstance(body, dict):
        raise SchemaError("not a JSON object")
    return body


def _check(record: Record) -> None:
    kind = _NAMES[type(record)]
    for name, value in vars(record).items():
        if not _fits(value, _TYPES[kind, name]):
            raise SchemaError(f"{kind}.{name} is not {_TYPES[kind, name]}")
    if isinstance(record, Hello) and record.schema != SCHEMA:
        raise SchemaError(f"the host speaks schema {record.schema}, this side {SCHEMA}")
    if isinstance(record, Measurement):
        if record.unit not in UNITS:
            raise SchemaError(f"measurement of {record.metric!r:.80}: no such unit")
        if (record.value is None) != (record.absence in (NOT_APPLICABLE, UNKNOWN)) or (
            record.value is not None and record.absence
        ):
            raise SchemaError(f"measurement of {record.metric!r:.80}: a value or an absence, not both or neither")
        if record.value is not None and not _value_has_unit(record.value, record.unit):
            raise SchemaError(f"measurement of {record.metric!r:.80}: the value is not in {record.unit}")
    if isinstance(record, Outcome) and record.status not in (RAN, SKIPPED, ERROR):
        raise SchemaError("outcome.status is none of ran, skipped, error")


def _value_has_unit(value: Scalar, unit: str) -> bool:
    if unit == "bool":
        return isinstance(value, bool)
    if unit in ("text", "version"):
        return isinstance(value, str)
    if unit in ("count", "bits"):
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, (int, float)) and not isinstance(value, bool)


_TYPES: Dict[Tuple[str, str], str] = {
    (kind, name): str(annotation) for kind, cls in _KINDS.items() for name, annotation in cls.__annotations__.items()
}


def _fits(value: object, annotation: str) -> bool:
    if annotation == "str":
        return isinstance(value, str) and len(value) <= MAX_TEXT
    if annotation == "int":
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
    if annotation == "float":
        return isinstance(value, (int, float)) and not isinstance(value, bool) and _finite(value)
    if annotation.startswith("Mapping"):
        item = "str" if annotation == "Mapping[str, str]" else "float"
        return (
            isinstance(value, Mapping)
            and len(value) <= MAX_ITEMS
            and all(_fits(k, "str") and _fits(v, item) for k, v in value.items())
        )
    return value is None or isinstance(value, bool) or _fits(value, "str") or _fits(value, "float")


def _finite(value: Union[int, float]) -> bool:
    try:
        return math.isfinite(value) and abs(value) < 2.0**64
    except OverflowError:
        return False


@dataclass(frozen=True)
class CheckRequest:
    """One check to run. `params` are the check's own settings (JSON scalars)."""

    name: str
    timeout_s: float
    params: Mapping[str, Scalar] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """What the operator asks of a host.

    `pythons`: framework name -> interpreter on the host that has it ("torch" -> "/opt/torch/bin/python3");
    a framework that is not named is looked for on the host. `device`: "gpu", or "cpu" where the user
    asked for a CPU run. `deadline_s`: the host ends everything after so many seconds. `share`: load GPUs that somebody
    else uses, too. `data`: dataset ("cifar10", "mnist") -> the folder on the host that holds its files;
    "<dataset>_url" -> the address of the folder to download its archives from.
    """

    checks: Tuple[CheckRequest, ...]
    deadline_s: float
    pythons: Mapping[str, str] = field(default_factory=dict)
    device: str = "gpu"
    share: bool = False
    data: Mapping[str, str] = field(default_factory=dict)
    schema: int = SCHEMA


def encode_plan(plan: Plan) -> bytes:
    """One JSON line, newline included."""
    return json.dumps(asdict(plan), allow_nan=False, separators=(",", ":")).encode() + b"\n"


def decode_plan(line: bytes) -> Plan:
    """The plan of one line. Raises SchemaError."""
    body = _load(line)
    if body.get("schema") != SCHEMA:
        raise SchemaError(f"the operator speaks schema {body.get('schema')!r:.40}, this bundle {SCHEMA}")
    try:
        checks = tuple(CheckRequest(**one) for one in body.pop("checks"))
        return Plan(checks=checks, **body)
    except (KeyError, TypeError):
        raise SchemaError("not a plan: missing or unknown fields") from None


@dataclass(frozen=True)
class Metric:
    """A metric that a check may report: its one unit, and a line of explanation."""

    name: str
    unit: str
    help: str


@dataclass(frozen=True)
class CheckInfo:
    """What the catalogue says of a check; `seconds` is the usual time on one GPU, `level` as in DCGM (1..4)."""

    name: str
    measures: str
    catches: str
    needs: Tuple[str, ...]
    level: int
    seconds: float
    timeout_s: float
    per_gpu: bool
    metrics: Tuple[Metric, ...]
    params: Tuple[str, ...] = ()
    """Settings that a CheckRequest may give it."""
    data: Tuple[str, ...] = ()
    """Datasets that it trains on; see Plan.data."""


def encode_catalogue(checks: Tuple[CheckInfo, ...]) -> str:
    """The catalogue as JSON."""
    return json.dumps([asdict(one) for one in checks], indent=1, sort_keys=True)


def decode_catalogue(text: str) -> Tuple[CheckInfo, ...]:
    """The catalogue of such a JSON text. Raises SchemaError."""
    try:
        return tuple(
            CheckInfo(
                **{
                    **one,
                    "needs": tuple(one["needs"]),
                    "params": tuple(one["params"]),
                    "data": tuple(one["data"]),
                    "metrics": tuple(Metric(**metric) for metric in one["metrics"]),
                }
            )
            for one in json.loads(text)
        )
    except (KeyError, TypeError, ValueError):
        raise SchemaError("not a catalogue of checks") from None
