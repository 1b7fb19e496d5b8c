"""The report of an upgrade as rows: what each host was before, what was tried, what it is now. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from provision.report.model import Status
from provision.upgrade.journal import HostState, RunState
from provision.upgrade.phases import Outcome, Phase, Step

Word = Outcome | Literal["nothing to do", "in flight", "not begun"]

STATUSES: Mapping[Word, Status] = {
    "done": "PASS",
    "nothing to do": "SKIP",
    "refused": "SKIP",
    "rolled_back": "FAIL",
    "broken": "ERROR",
    "lost": "ERROR",
    "in flight": "ERROR",
    "not begun": "SKIP",
}
MEANINGS: Mapping[Word, str] = {
    "done": "upgraded, and as good as before by its own measurements",
    "nothing to do": "it had the driver already; nothing was done to it, and this run did not measure it",
    "refused": "not begun, since it could not go well; nothing was changed",
    "rolled_back": "the upgrade failed; the driver from before is back and measured",
    "broken": "neither the new driver nor the old one works: somebody has to look at it",
    "lost": "it does not answer: somebody has to look at its console",
    "in flight": "the operator's process ended in the middle: bringup resume goes on",
    "not begun": "its wave was not begun; nothing was changed",
}
_WHAT: Mapping[Phase, str] = {
    "before": "measured before",
    "snapshot": "snapshot",
    "drain": "drained, and nothing runs on its GPUs",
    "install": "installed",
    "reboot": "rebooted",
    "validate": "measured against before",
    "hold": "held",
    "restore": "snapshot brought back",
    "reboot_back": "rebooted again",
    "validate_back": "measured again",
    "undrain": "put back into service",
}


@dataclass(frozen=True)
class Row:
    """A step of the attempt. `seconds` None: it has no end."""

    what: str
    phase: str
    status: Status
    started: str
    seconds: float | None
    detail: str


@dataclass(frozen=True)
class Rate:
    """A throughput before and after, in the metric's unit; None: not measured. `share`: after by before."""

    name: str
    before: float | None
    after: float | None
    share: float | None


@dataclass(frozen=True)
class HostRow:
    """A host of the report. `before`, `after`, `back`: what was measured: driver, status, headline, gpus."""

    name: str
    wave: int
    word: Word
    status: Status
    detail: str
    steps: tuple[Row, ...]
    before: Mapping[str, object]
    after: Mapping[str, object]
    back: Mapping[str, object]
    rates: tuple[Rate, ...]

    @property
    def now(self) -> str:
        """The driver that was measured last."""
        last = self.back or self.after or self.before
        return str(last.get("driver") or "none that answers") if last else "not measured"


@dataclass(frozen=True)
class Page:
    """The whole report."""

    run: str
    to: str
    status: Status
    sentence: str
    stopped: str
    counts: tuple[tuple[Word, int], ...]
    hosts: tuple[HostRow, ...]


def page(run: str, state: RunState) -> Page:
    """The rows of a run, worst hosts first."""
    waves = [wave for wave in _list(state.plan.get("waves")) if isinstance(wave, Mapping)]
    numbers = {str(name): _whole(wave.get("number")) for wave in waves for name in _list(wave.get("hosts"))}
    begun = {name: one.wave for name, one in state.hosts.items()}  # in no wave: there was nothing to do
    rows = [_host(state.hosts.get(name, HostState(name, wave))) for name, wave in {**begun, **numbers}.items()]
    counts = tuple((word, sum(row.word == word for row in rows)) for word in STATUSES)
    order: tuple[Status, ...] = ("ERROR", "FAIL", "SKIP", "WARN", "PASS")
    worst: Status = next((one for one in order if any(row.status == one for row in rows)), "ERROR")
    options = state.plan.get("options")
    to = str(options.get("to", "")) if isinstance(options, Mapping) else ""
    goal = f"Upgrade to {to}" if to else "Back to the snapshot"
    said = ", ".join(f"{count} {word.replace('_', ' ')}" for word, count in counts if count)
    rows.sort(key=lambda row: (order.index(row.status), row.wave, row.name))
    return Page(
        run, to, worst, f"{goal}: {len(rows)} hosts, {said or 'none begun'}.", state.stopped, counts, tuple(rows)
    )


def _host(state: HostState) -> HostRow:
    word: Word = state.outcome or ("in flight" if state.steps else "not begun")
    if word == "done" and not state.steps:
        word = "nothing to do"
    before, after, back = state.data("before"), state.data("validate"), state.data("validate_back")
    return HostRow(
        name=state.name,
        wave=state.wave,
        word=word,
        status="FAIL" if state.still_drained and STATUSES[word] in ("PASS", "SKIP") else STATUSES[word],
        detail=state.detail,
        steps=tuple(_row(step) for step in state.steps),
        before=before,
        after=after,
        back=back,
        rates=tuple(_rates(before, back or after)),
    )


def _row(step: Step) -> Row:
    statuses: Mapping[str, Status] = {"ok": "PASS", "failed": "FAIL", "started": "ERROR"}
    seconds = (_time(step.ended) - _time(step.started)).total_seconds() if step.ended and step.started else None
    detail = step.detail or ("" if step.ended else "the operator's process ended here")
    return Row(_WHAT[step.phase], step.phase, statuses[step.status], step.started, seconds, detail)


def _rates(before: Mapping[str, object], after: Mapping[str, object]) -> list[Rate]:
    old, new = before.get("rates"), after.get("rates")
    if not isinstance(old, Mapping):
        return []
    there = new if isinstance(new, Mapping) else {}
    found = []
    for name, value in old.items():
        one, other = _number(value), _number(there.get(name))
        share = other / one if one and other is not None else None
        found.append(Rate(str(name), one, other, share))
    return found


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _whole(value: object) -> int:
    return value if isinstance(value, int) else 0


def _list(value: object) -> list[object]:
    return list(value) if isinstance(value, (list, tuple)) else []


def _time(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        return datetime.fromisoformat("1970-01-01T00:00:00+00:00")
