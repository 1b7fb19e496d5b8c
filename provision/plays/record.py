"""What a play leaves behind: PlayResult in memory, NAME.jsonl and NAME.json on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from provision.plays.progress import HostResult, PlayEvent, Status, Tally, TaskFailure, parse_event


@dataclass(frozen=True)
class PlayResult:
    """How a play ended, host by host."""

    playbook: str
    status: Status
    hosts: Mapping[str, HostResult] = field(default_factory=dict)
    duration_s: float = 0.0
    check: bool = False
    events_path: Path | None = None
    message: str = ""
    """Ansible's own words where it broke off and no host's task says why: a playbook that it cannot read, say."""

    @property
    def ok(self) -> bool:
        """Whether it went through on every host, and there was one."""
        return self.status == "successful" and bool(self.hosts) and all(host.good for host in self.hosts.values())

    @property
    def changed(self) -> int:
        """How many tasks changed something, over all hosts."""
        return sum(host.changed for host in self.hosts.values())

    @property
    def failures(self) -> tuple[TaskFailure, ...]:
        """Return the failure that ended each failed host."""
        return tuple(host.failure for host in self.hosts.values() if host.failure is not None)


class PlayRecord:
    """The files that a play leaves: NAME.jsonl as events arrive, NAME.json at the end."""

    def __init__(self, directory: Path, stem: str, secrets: set[str]) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        number = 1
        name = stem
        while (directory / f"{name}.jsonl").exists():
            number += 1
            name = f"{stem}-{number}"
        self.events_path = directory / f"{name}.jsonl"
        self.result_path = directory / f"{name}.json"
        self.tally = Tally()
        self._secrets = sorted((text for text in secrets if text), key=len, reverse=True)
        self._file = self.events_path.open("x", encoding="utf-8")

    def __enter__(self) -> PlayRecord:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def take(self, raw: Mapping[str, object]) -> PlayEvent | None:
        """Parse, count and write one event of ansible-runner. None where it is of no interest."""
        event = parse_event(raw)
        if event is None:
            return None
        if event.kind == "stats":
            data = raw.get("event_data")
            self.tally.take_stats(data if isinstance(data, Mapping) else {})
        event = replace(event, message=self.scrub(event.message), diff=self.scrub(event.diff))
        self.tally.add(event)
        line = {key: value for key, value in asdict(event).items() if value}
        self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._file.flush()
        return event

    def finish(self, result: PlayResult) -> None:
        """Write NAME.json: the counts and failures per host."""
        content = {
            "playbook": result.playbook,
            "status": result.status,
            "check": result.check,
            "message": result.message,
            "duration_s": round(result.duration_s, 1),
            "hosts": {name: asdict(host) for name, host in sorted(result.hosts.items())},
        }
        self.result_path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def scrub(self, text: str) -> str:
        """Return text without the secrets that we know of."""
        for secret in self._secrets:
            text = text.replace(secret, "********")
        return text
