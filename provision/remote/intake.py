"""What a host sends, taken in under bounds: bytes in, records out, a WireError for anything else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

from provision.errors import WireError
from validators.schema import (
    MAX_RECORD_BYTES,
    Bye,
    Hello,
    Plan,
    Record,
    SchemaError,
    decode,
)

MAX_BYTES = 64 << 20
"""What one host may send in a run, both streams together."""
MAX_RECORDS = 200_000
MAX_NOISE = 1 << 20
"""What a MOTD and shell profiles may print before the first answer."""

_HINT = "run it again; if it stays, run the bundle by hand on the host: python3 <bundle>.pyz run --all"


@dataclass(frozen=True)
class Answer:
    """A line of validators/receive.py: `status` is old, cached, send, stored or failed."""

    status: str
    text: str
    python: str


class Greeting:
    """The lines before the wire: what is not marked as ours is noise and dropped."""

    def __init__(self, host: str, mark: str) -> None:
        self._host = host
        self._mark = mark.encode()
        self._buffer = b""
        self._noise = 0

    def feed(self, data: bytes) -> Iterator[Answer]:
        """The answers in `data`. Stop iterating at the last one wanted: `rest` then is what follows it."""
        self._buffer += data
        while b"\n" in self._buffer:
            line, self._buffer = self._buffer.split(b"\n", 1)
            answer = self._answer(line)
            if answer:
                yield answer
            else:
                self._noise += len(line) + 1
        if self._noise + len(self._buffer) > MAX_NOISE:
            raise WireError(
                f"{self._host}: over {MAX_NOISE >> 20} MiB of other output came before the first answer",
                "look at what the login shell's profile prints on the host",
            )

    @property
    def rest(self) -> bytes:
        """What came behind the last answer: the wire's own first bytes."""
        return self._buffer

    def _answer(self, line: bytes) -> Answer | None:
        if not line.startswith(self._mark):
            return None
        try:
            body = json.loads(line[len(self._mark) :])
            return Answer(str(body["status"]), str(body["text"])[:1000], str(body["python"])[:40])
        except (ValueError, KeyError, TypeError, RecursionError):
            return None


class Intake:
    """The wire's records, in order, for one host and plan. Every refusal is a WireError that names the host."""

    def __init__(self, host: str, plan: Plan, sha256: str) -> None:
        self._host = host
        self._planned = {request.name for request in plan.checks}
        self._sha256 = sha256
        self._buffer = b""
        self.count = 0
        self.complete = False
        """Whether `bye` came and counted right."""

    def feed(self, data: bytes) -> Iterator[Record]:
        """The whole records in `data` and what was kept of earlier data."""
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            yield self._take(line)
        if len(self._buffer) > MAX_RECORD_BYTES:
            raise self._error(f"a line of more than {MAX_RECORD_BYTES} bytes")

    def _take(self, line: bytes) -> Record:
        try:
            record = decode(line)
        except SchemaError as problem:
            raise self._error(str(problem)) from None
        if self.complete:
            raise self._error("a record after bye")
        if isinstance(record, Bye):
            if record.count != self.count:
                raise self._error(f"bye counts {record.count} records where {self.count} arrived")
            self.complete = True
            return record
        self.count += 1
        if self.count > MAX_RECORDS:
            raise self._error(f"more than {MAX_RECORDS} records; the rest was not taken")
        if isinstance(record, Hello) != (self.count == 1):
            raise self._error("hello is not the first record, or not the only one")
        if isinstance(record, Hello):
            if record.bundle != self._sha256:
                raise self._error("another bundle answers than the one that was sent")
        elif record.check not in self._planned:
            raise self._error(f"a record of {record.check!r:.80}, which was not asked for")
        return record

    def unfinished(self, how: str) -> WireError:
        """The error of an answer that ends without bye; `how` says how the program ended."""
        broken = ", in the middle of a record" if self._buffer else ""
        return self._error(f"the answer ends without bye after {self.count} records{broken}; {how}", said="")

    def _error(self, what: str, said: str = "the host sent what is not the wire format: ") -> WireError:
        return WireError(f"{self._host}: {said}{what}", _HINT)
