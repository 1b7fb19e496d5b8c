"""The verdicts of one check on one host: every planned cell (host, or GPU) ends with one, whatever is missing.

A cell ends in ERROR where no outcome came, where it ended in error, and where it ran and nothing judged it.
Whatever was measured before is still judged: a wrong answer before a crash is FAIL.
"""

from __future__ import annotations

import glob
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from provision.criteria.loader import Criteria
from provision.criteria.model import Criterion
from provision.criteria.physics import GpuFacts, name_matches
from provision.report.model import NO_OUTCOME, Status, Verdict
from provision.verdict.evaluate import NOT_JUDGED, SEE_RECORDS, evaluate, labels_match, requirement
from provision.verdict.evidence import Evidence
from validators.schema import ERROR, HOST, RAN, SKIPPED, CheckInfo, Measurement, Outcome


@dataclass(frozen=True)
class Cells:
    """One check on one host. `failure`: why the host's answer ended early, if it did. `info`: None: not catalogued."""

    check: str
    host: str
    info: CheckInfo | None
    device: str
    evidence: Evidence
    criteria: Sequence[Criterion]
    informational: str = ""
    failure: str = ""

    def verdicts(self) -> tuple[Verdict, ...]:
        """All of them: how the cells ended, then each criterion over each measurement, then what nothing judged."""
        judged = [verdict for criterion in self.criteria for verdict in self._criterion(criterion)]
        return (*self._ended(), *judged, *self._unjudged(judged))

    @property
    def _on_cpu(self) -> bool:
        """A load check that the user asked to run on the CPU, and that did: it has no GPU cells."""
        if self.device != "cpu" or self.info is None or self.info.level < 2:
            return False
        subjects = {one.subject for one in self.evidence.measurements if one.check == self.check}
        return HOST in subjects and subjects == {HOST}

    @property
    def _gpu_cells(self) -> tuple[str, ...]:
        if self.info is None or not self.info.per_gpu or self._on_cpu:
            return ()
        return tuple(gpu.uuid for gpu in self.evidence.gpus)

    def _outcome(self, subject: str) -> Outcome | None:
        return self.evidence.outcome(self.check, subject)

    def _ran(self, subject: str) -> bool:
        outcome = self._outcome(subject)
        return outcome is not None and outcome.status == RAN

    def _ended(self) -> Iterator[Verdict]:
        host = self._outcome(HOST)
        for subject in (HOST, *self._gpu_cells):
            outcome = self._outcome(subject)
            if outcome is None and subject != HOST and host is not None and host.status == SKIPPED:
                continue  # skipped for the host as a whole
            if outcome is None:
                why = self.failure or (host.detail[:300] if host is not None and host.status == ERROR else "")
                yield self._cell("ERROR", subject, NO_OUTCOME + (f": {why}" if why else ""))
            elif outcome.status == ERROR:
                yield self._cell("ERROR", subject, outcome.detail[:500] or "ended in error, without a word")
            elif outcome.status == SKIPPED:
                yield self._cell("SKIP", subject, outcome.detail[:500] or "skipped, without a reason")
        missing = self.evidence.counted - len(self.evidence.gpus)
        whole = self.info is not None and self.info.per_gpu and not self._on_cpu
        if whole and missing > 0 and not (host is not None and host.status == SKIPPED):
            counted = self.evidence.counted
            yield self._cell("ERROR", HOST, f"{counted} GPUs were counted, and {missing} of them gave no answer here")

    def _criterion(self, criterion: Criterion) -> Iterator[Verdict]:
        measured = {
            subject: [one for one in found if labels_match(criterion, one)]
            for subject, found in self.evidence.of(self.check, criterion.metric).items()
        }
        measured = {subject: found for subject, found in measured.items() if found}
        for subject, found in measured.items():
            in_scope = self._in_scope(criterion, subject)
            for one in found if in_scope is not False else ():
                if in_scope is None:
                    reason = f"{NOT_JUDGED}: the criterion is for {criterion.gpu}, and the GPU's name is not known"
                    yield self._about(criterion, subject, reason, one)
                else:
                    yield evaluate(criterion, one, self._facts(subject), self.device)
        for subject in self._lacking(criterion, measured):
            if self._in_scope(criterion, subject) is not False:
                yield self._about(criterion, subject, "it ran, and did not report this")

    def _lacking(self, criterion: Criterion, measured: Mapping[str, Sequence[Measurement]]) -> Iterator[str]:
        """The cells that ran without reporting the metric. Whether it is the GPUs' or the host's, its reports say."""
        reported = measured or self.evidence.of(self.check, criterion.metric)
        of_gpus = any(subject != HOST for subject in reported)
        if of_gpus and not self._on_cpu:
            cells = self._gpu_cells or tuple(gpu.uuid for gpu in self.evidence.gpus if self._ran(HOST))
            yield from (
                uuid for uuid in cells if uuid not in measured and (self._ran(uuid) or uuid not in self._gpu_cells)
            )
        elif not measured and self._ran(HOST):
            cells = self._gpu_cells
            if not cells or any(self._ran(uuid) for uuid in cells):
                yield HOST

    def _in_scope(self, criterion: Criterion, subject: str) -> bool | None:
        """Whether the criterion is about this subject's card. None: its name is not known, so that cannot be said."""
        if criterion.gpu == "*":
            return True
        if subject != HOST:
            name = self.evidence.facts[subject].name if subject in self.evidence.facts else ""
            return name_matches(name, criterion.gpu) if name else None
        names = [gpu.name for gpu in self.evidence.gpus if gpu.name]
        if any(name_matches(name, criterion.gpu) for name in names):
            return True
        return None if len(names) < self.evidence.counted else False

    def _unjudged(self, judged: Sequence[Verdict]) -> Iterator[Verdict]:
        subjects = {verdict.subject for verdict in judged}
        if self.informational:
            if not judged and self._ran(HOST):
                yield self._cell("SKIP", HOST, f"for information: {self.informational}")
            return
        for uuid in self._gpu_cells:
            if self._ran(uuid) and uuid not in subjects:
                yield self._cell("ERROR", uuid, f"{NOT_JUDGED}: no criterion applies")
        if self._ran(HOST) and not judged:
            yield self._cell("ERROR", HOST, f"{NOT_JUDGED}: no criterion applies")

    def _facts(self, subject: str) -> GpuFacts | None:
        return None if subject == HOST else self.evidence.facts.get(subject, GpuFacts())

    def _cell(self, status: Status, subject: str, reason: str) -> Verdict:
        step = SEE_RECORDS if status == "ERROR" else ""
        return Verdict(status, self.check, subject, "", reason, next_step=step)

    def _about(self, criterion: Criterion, subject: str, reason: str, one: Measurement | None = None) -> Verdict:
        return Verdict(
            "ERROR",
            self.check,
            subject,
            criterion.metric,
            reason,
            one,
            criterion,
            requirement(criterion),
            next_step=SEE_RECORDS,
        )


class Scopes:
    """The criteria by host. An inventory of many hosts states many of one host each: those are found by name."""

    def __init__(self, criteria: Criteria) -> None:
        self.informational = criteria.informational
        self._patterns = [one for one in criteria.criteria if glob.has_magic(one.host)]
        self._named: dict[str, list[Criterion]] = {}
        for one in criteria.criteria:
            if not glob.has_magic(one.host):
                self._named.setdefault(one.host, []).append(one)

    def of_host(self, host: str) -> list[Criterion]:
        """The criteria that are about this host."""
        return [one for one in self._patterns if fnmatchcase(host, one.host)] + self._named.get(host, [])
