"""Takes hosts through their phases, wave by wave, and writes each step down before and after it is done."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from provision.report.text import plain
from provision.upgrade.actions import Actions
from provision.upgrade.journal import Event, HostState, Journal, RunState
from provision.upgrade.model import Means, Result
from provision.upgrade.phases import DOWN, FORWARD, ORDER, Outcome, Phase, following, is_outcome, is_phase
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
    path: Sequence[Phase] = FORWARD
    already: Mapping[str, str] = field(default_factory=dict)
    """Hosts that have nothing to do, and why."""

    def run(self) -> RunState:
        """Do what is left to do. Raises KeyboardInterrupt with the journal in order."""
        try:
            self._settle()
            self._begin_again()
            for wave in self.waves:
                if not self._through(wave):
                    break
            self.journal.write(Event("end"))
        except KeyboardInterrupt:
            self.journal.write(Event("interrupt", detail="Ctrl-C"))
            raise
        return self.journal.state()

    def _settle(self) -> None:
        """Write the end of hosts whose last step was written and not what follows from it."""
        hosts = self.journal.state().hosts
        for name, why in self.already.items():
            if name not in hosts:
                self._end(0, name, "done", why)
        for name, state in hosts.items():
            if state.steps and state.outcome is None:
                self._next_or_end(state.wave, name)

    def _begin_again(self) -> None:
        """A host that was lost and answers goes on with the phase that it was lost in; what is drained is put back."""
        for name, state in self.journal.state().hosts.items():
            answers = state.outcome == "lost" and self.actions.answers(name)
            if state.last is not None and (answers or state.still_drained):
                self.means.tell(f"{name}: {'it answers again' if answers else 'it is still drained'}")
                self.journal.write(Event(state.last.phase, "started", name, state.wave))

    def _through(self, wave: Wave) -> bool:
        """Bring a wave to its end; while no canary was upgraded, its first hosts alone. False: it may not begin."""
        while left := tuple(name for name in wave.hosts if not self._outcome(name)):
            first = self.rules.canary > 0 and not self._proven()
            part = replace(wave, hosts=left[: self.rules.canary] if first else left, canary=first)
            if not self._may_begin(part):
                return False
            self._wave(part)
        return True

    def _proven(self) -> bool:
        """Whether a host has the new driver and is as good as before with it."""
        return any(state.outcome == "done" and state.steps for state in self.journal.state().hosts.values())

    def _may_begin(self, wave: Wave) -> bool:
        """A wave that has begun is brought to its end; no other begins after too many failures."""
        hosts = self.journal.state().hosts
        if any(name in hosts and hosts[name].steps for name in wave.hosts):
            return True
        lost = [name for name, state in hosts.items() if state.outcome == "lost"]
        failed = [
            name
            for name, state in hosts.items()
            if state.outcome in ("refused", "rolled_back", "broken") or state.still_drained
        ]
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
        down = [name for name, state in hosts.items() if state.outcome in DOWN or state.still_drained]
        for name, other in held_back(fresh, self.members, down, self.rules).items():
            self._end(wave.number, name, "refused", f"{other} of its serial group is down")
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
            self._next_or_end(wave.number, name)

    def _write(self, wave: Wave, phase: Phase, name: str, result: Result, seconds: float) -> None:
        status = "ok" if result.ok else "failed"
        self.journal.write(Event(phase, status, name, wave.number, result.detail[:2000], result.data))
        note = f": {plain(result.detail, 500)}" if result.detail else ""
        self.means.tell(f"{name}: {phase} {status} ({seconds:.1f} s){note}")

    def _next_or_end(self, wave: int, name: str) -> None:
        state = self.journal.state().hosts[name]
        after = following(state.steps, self.path)
        if is_outcome(after):
            self._end(wave, name, after, sentence(state, after))

    def _end(self, wave: int, name: str, outcome: Outcome, detail: str) -> None:
        self.journal.write(Event("end", outcome, name, wave, detail[:2000]))
        loud = "ERROR: " if outcome in DOWN else ""
        self.means.tell(f"{loud}{name}: {outcome.replace('_', ' ')}{f': {plain(detail, 600)}' if detail else ''}")

    def _outcome(self, name: str) -> Outcome | None:
        state = self.journal.state().hosts.get(name)
        return state.outcome if state is not None else None

    def _next(self, name: str) -> Phase:
        state = self.journal.state().hosts.get(name, HostState(name))
        after = following(state.steps, self.path)
        if is_phase(after):
            return after
        raise AssertionError(f"{name} has ended: {after}")


def sentence(state: HostState, outcome: Outcome) -> str:
    """Why a host ended so, in one sentence; and that it is still drained, where it is."""
    drained = ""
    if state.still_drained and state.last is not None:
        drained = f"it is still drained, since the command that puts it back failed: {state.last.detail}"
    return "; ".join(text for text in (_why(state, outcome), drained) if text)


def _why(state: HostState, outcome: Outcome) -> str:
    failed = [step for step in state.steps if step.status == "failed" and step.phase != "undrain"]
    if outcome == "done" or not failed:
        return ""
    first, newest = failed[0], failed[-1]
    if outcome == "broken" and first is not newest:
        return f"{first.phase} failed: {first.detail}; and the way back failed at {newest.phase}: {newest.detail}"
    chosen = newest if outcome == "lost" else first
    return f"{chosen.phase} failed: {chosen.detail}"
