"""Hosts measured before and after, in run directories of their own: `bringup report RUN/before` renders them."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

from provision import __version__
from provision.bundle import Bundle
from provision.catalogue import load_catalogue
from provision.criteria import Criteria, load
from provision.hosts import Host
from provision.manifest import Manifest, public_host
from provision.measuring import run_jobs
from provision.remote import HostRun, Job
from provision.report.model import HostReport, Status
from provision.request import Choice, make_plan
from provision.store import RunDirectory, now
from provision.verdict import judge
from validators.schema import CheckInfo, Plan, Record

CHECKS = ("compute_capability", "system", "software", "gpu_health", "matmul")
MATMUL_S = 1
"""Seconds of products per format: enough to see a card that lost a tenth of its speed."""
WORKERS = 32
When = Literal["before", "after", "back"]


@dataclass(frozen=True)
class Measuring:
    """Measures hosts of one upgrade. `folder`: its run directory. `become`: as root, by a sudo that asks nothing."""

    folder: Path
    hosts: Sequence[Host]
    bundle: Bundle
    host_keys: Literal["strict", "accept-new"] = "strict"
    become: bool = True

    @cached_property
    def _catalogue(self) -> tuple[CheckInfo, ...]:
        return load_catalogue(self.bundle)

    @cached_property
    def _criteria(self) -> Criteria:
        return load((), self._catalogue)

    @cached_property
    def _plans(self) -> dict[str, Plan]:
        choice = Choice(only=CHECKS, params={"matmul": {"seconds": MATMUL_S}})
        return {host.name: make_plan(_as_asked(host), self._catalogue, choice) for host in self.hosts}

    def run(self, when: When, names: Iterable[str]) -> dict[str, HostReport]:
        """Measure these hosts now, all at once, and judge them. What was measured under `when` before is replaced."""
        kept = self._directory(when)
        chosen = [host for host in self.hosts if host.name in set(names)]
        runs: list[HostRun] = []

        def keep(run: HostRun) -> None:
            runs.append(run)
            kept.finish_host(run)

        jobs = []
        for host in chosen:
            records = kept.records_path(host.name)
            records.unlink(missing_ok=True)
            job = Job(self.bundle, self._plans[host.name], records, host_keys=self.host_keys)
            jobs.append((replace(host, become=host.become or self.become), job))
        run_jobs(jobs, workers=WORKERS, progress=_Silent(), keep=keep)
        return self._judged(runs)

    def read(self, when: When, names: Iterable[str]) -> dict[str, HostReport]:
        """What was measured of these hosts earlier. Raises RunDirectoryError."""
        wanted = set(names)
        return self._judged([run for run in RunDirectory.open(self.folder / when).runs() if run.host in wanted])

    def _judged(self, runs: Sequence[HostRun]) -> dict[str, HostReport]:
        """Each by itself: what a host measured may not depend on which others its wave has, or has lost."""
        return {run.host: without_idle_checks(self._report(run)) for run in runs}

    def _report(self, run: HostRun) -> HostReport:
        report = judge(
            [run],
            hosts=[host for host in self.hosts if host.name == run.host],
            catalogue=self._catalogue,
            criteria=self._criteria,
            plans=self._plans,
            run_id=self.folder.name,
            created=now(),
            judged=now(),
            version=__version__,
        )
        return report.hosts[0]

    def _directory(self, when: When) -> RunDirectory:
        manifest = Manifest(
            version=__version__,
            created=now(),
            python=platform.python_version(),
            command=f"bringup upgrade: {when}",
            hosts=tuple(public_host(host) for host in self.hosts),
            catalogue=self._catalogue,
            plans=self._plans,
            criteria=self._criteria.files,
            bundle=self.bundle.sha256,
            run_id=when,
        )
        return RunDirectory.at(self.folder / when, manifest)


class _Silent:
    """The phases' own lines say how it went."""

    def record(self, host: str, record: Record) -> None:
        pass

    def done(self, host: str, headline: str) -> None:
        pass


def _as_asked(host: Host) -> Host:
    """The host without the inventory's choice of checks: what is compared must be the same on both sides."""
    kept = {key: value for key, value in host.variables.items() if key not in ("bringup_only", "bringup_skip")}
    return replace(host, variables=kept)


def without_idle_checks(report: HostReport) -> HostReport:
    """A host without a framework has no matmul: that is no fault of its driver. With one, it must run."""
    has = any(one.metric == "framework_version" and one.value is not None for one in report.measurements)
    verdicts = tuple(one for one in report.verdicts if one.check != "matmul")
    if has or len(verdicts) == len(report.verdicts) or any(one.check == "matmul" for one in report.measurements):
        return report
    seen = {one.status for one in verdicts}
    order: tuple[Status, ...] = ("FAIL", "ERROR", "WARN", "PASS", "SKIP")
    status: Status = next((one for one in order if one in seen), "ERROR")
    first = next((one for one in verdicts if one.status == status), None)
    said = f"{first.check}.{first.metric}: {first.reason}" if first is not None and status in order[:3] else ""
    headline = f"{len(report.gpus)} GPUs, no framework to compute with: {said or 'what was measured holds'}"
    return replace(report, verdicts=verdicts, status=status, headline=headline)
