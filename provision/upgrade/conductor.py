"""Takes hosts through their phases, wave by wave, and writes each step down before and after it is done."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from provision.report.text import plain
from provision.upgrade.actions import Actions
from provision.upgrade.journal import Event, HostState, Journal, RunState
from provision.upgrade.model import Means, Result
from provision.upgrade.phases import DOWN, ORDER, Outcome, Phase, following, is_outcome, is_phase
from provision.upgrade.waves import Member, Rules, Wave, held_back, stop_reason


@dataclass(frozen=True)
class Conductor:
    """Goes on from wherever the journal stands: a new run and a resumed one are the same to it."""

    journal: Journal
    waves: Sequence[Wave]
    members: Sequence[Member]
    rules: Rules
    actions: Actions
    means: Means
    first: Phase = "before"

    def run(self) -> RunState:
        """Do what is left to do. Raises KeyboardInterrupt with the journal in order."""
        try:
            for wave in self.waves:
                if all(self._outcome(name) for name in wave.hosts):
                    continue
                if not self._may_begin(wave):
                    break
                self._wave(wave)
            self.journal.write(Event("end"))
        except KeyboardInterrupt:
            self.journal.write(Event("interrupt", detail="Ctrl-C"))
            raise
        return self.journal.state()

    def retry_lost(self) -> None:
        """A host that was lost and answers again goes on with the phase that it was lost in."""
        for name, state in self.journal.state().hosts.items():
            if state.outcome == "lost" and state.last is not None and self.actions.answers(name):
                self.means.tell(f"{name}: it answers again")
                self.journal.write(Event(state.last.phase, "started", name, state.wave))

    def _may_begin(self, wave: Wave) -> bool:
        """A wave that has begun is brought to its end; no other begins after too many failures."""
        hosts = self.journal.state().hosts
        if any(name in hosts and hosts[name].steps for name in wave.hosts):
            return True
        failed = [name for name, state in hosts.items() if state.outcome not in (None, "done", "lost")]
        lost = [name for name, state in hosts.items() if state.outcome == "lost"]
        why = stop_reason(failed, lost, self.rules)
        if why:
            self.journal.write(Event("stop", wave=wave.number, detail=why))
            self.means.tell(f"stopped before wave {wave.number}: {why}")
        return not why

    def _wave(self, wave: Wave) -> None:
        label = f"wave {wave.number}{' (canary)' if wave.canary else ''}"
        self.means.tell(f"{label}: {', '.join(wave.hosts)}")
        hosts = self.journal.state().hosts
        fresh = [name for name in wave.hosts if name not in hosts]
        down = [name for name, state in hosts.items() if state.outcome in DOWN]
        for name, other in held_back(fresh, self.members, down, self.rules).items():
            self._end(wave, name, "refused", f"{other} of its serial group is down")
        while True:
            todo = {name: self._next(name) for name in wave.hosts if not self._outcome(name)}
            if not todo:
                return
            together = next(group for group in ORDER if any(phase in group for phase in todo.values()))
            self._phase(wave, {name: phase for name, phase in todo.items() if phase in together})

    def _phase(self, wave: Wave, phases: Mapping[str, Phase]) -> None:
        """Do one phase on these hosts; a reboot there and a reboot back are one play."""
        for name, phase in phases.items():
            self.journal.write(Event(phase, "started", name, wave.number))
        states = self.journal.state().hosts
        began = time.monotonic()
        written: set[str] = set()

        def done(name: str, result: Result = Result(True)) -> None:  # noqa: B008  frozen
            if name not in written:
                written.add(name)
                self._write(wave, phases[name], name, result, time.monotonic() - began)

        phase = next(iter(phases.values()))
        results = self.actions.run(phase, {name: states[name] for name in phases}, f"wave{wave.number}-{phase}", done)
        for name in phases:
            done(name, results.get(name, Result(False, "nothing is known of how it went")))
        for name in phases:
            self._next_or_end(wave, name)

    def _write(self, wave: Wave, phase: Phase, name: str, result: Result, seconds: float) -> None:
        status = "ok" if result.ok else "failed"
        self.journal.write(Event(phase, status, name, wave.number, result.detail[:2000], result.data))
        note = f": {plain(result.detail, 500)}" if result.detail else ""
        self.means.tell(f"{name}: {phase} {status} ({seconds:.1f} s){note}")

    def _next_or_end(self, wave: Wave, name: str) -> None:
        state = self.journal.state().hosts[name]
        after = following(state.steps, first=self.first)
        if is_outcome(after):
            self._end(wave, name, after, sentence(state, after))

    def _end(self, wave: Wave, name: str, outcome: Outcome, detail: str) -> None:
        self.journal.write(Event("end", outcome, name, wave.number, detail[:2000]))
        loud = "ERROR: " if outcome in DOWN else ""
        self.means.tell(f"{loud}{name}: {outcome.replace('_', ' ')}{f': {plain(detail, 600)}' if detail else ''}")

    def _outcome(self, name: str) -> Outcome | None:
        state = self.journal.state().hosts.get(name)
        return state.outcome if state is not None else None

    def _next(self, name: str) -> Phase:
        state = self.journal.state().hosts.get(name, HostState(name))
        after = following(state.steps, first=self.first)
        if is_phase(after):
            return after
        raise AssertionError(f"{name} has ended: {after}")


def sentence(state: HostState, outcome: Outcome) -> str:
    """Why a host ended so, in one sentence."""
    failed = [step for step in state.steps if step.status == "failed"]
    if outcome == "done":
        last = state.last
        if last is not None and last.phase == "before":
            return last.detail
        return next(
            (f"the command that puts it back failed: {step.detail}" for step in failed[-1:] if step is last), ""
        )
    if not failed:
        return ""
    first, newest = failed[0], failed[-1]
    if outcome == "broken" and first is not newest:
        return f"{first.phase} failed: {first.detail}; and the way back failed at {newest.phase}: {newest.detail}"
    chosen = newest if outcome == "lost" else first
    return f"{chosen.phase} failed: {chosen.detail}"
