"""judge(): measurements in, verdicts out. Pure: no I/O, no clock, no host. It never raises.

A host's status is its worst verdict's: FAIL > ERROR > WARN > PASS; only skips make SKIP, nothing at all ERROR.
A host of which no GPU was measured never passes, whatever else of it holds; nor one whose loads (checks above level 1)
were all skipped: that is SKIP.
The report's is its worst host's; there a host that nothing judged (SKIP) is worse than one that passed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from provision.criteria.expectations import INVENTORY
from provision.criteria.loader import Criteria
from provision.doctor import walk
from provision.hosts import Host
from provision.remote import Failure, HostRun
from provision.report.model import CONNECTION, Chain, HostReport, Report, Status, Verdict
from provision.request import IDENTITY
from provision.verdict import fleet
from provision.verdict.cells import Cells, Scopes
from provision.verdict.evaluate import SEE_RECORDS
from provision.verdict.evidence import Evidence, gather
from validators.schema import HOST, NOT_APPLICABLE, CheckInfo, Plan


def judge(
    runs: Sequence[HostRun],
    *,
    hosts: Sequence[Host],
    catalogue: Sequence[CheckInfo],
    criteria: Criteria,
    plans: Mapping[str, Plan],
    run_id: str,
    created: str,
    judged: str,
    version: str,
    command: str = "",
    notes: Sequence[str] = (),
) -> Report:
    """The report of these runs under these criteria (`criteria.for_hosts(hosts)`, so that expectations count).

    A host without a run, a plan without an outcome, a measurement without a criterion: each is ERROR, never PASS.
    """
    infos = {info.name: info for info in catalogue}
    scopes = Scopes(criteria)
    every = {host.name: _unanswered(host.name, host.address) for host in hosts} | {run.host: run for run in runs}
    per_gpu = {name for name, info in infos.items() if info.per_gpu}
    asked = [name for name in every if name in plans and any(one.name == fleet.CHECK for one in plans[name].checks)]
    gathered = fleet.with_fleet({name: gather(run, per_gpu) for name, run in every.items()}, asked)
    reports = [_host(run, plans.get(name), infos, scopes, gathered[name]) for name, run in every.items()]
    return Report(
        run_id=run_id,
        status=_worst((report.status for report in reports), ("FAIL", "ERROR", "SKIP", "WARN", "PASS")),
        created=created,
        judged=judged,
        version=version,
        hosts=tuple(reports),
        command=command,
        criteria_files=tuple((file.name, file.sha256) for file in criteria.files),
        notes=(*notes, *(f"{run.host}: {note}" for run in runs for note in run.notes), *_unplanned(scopes, plans)),
    )


def exit_code(report: Report, *, strict: bool = False) -> int:
    """0: all PASS (WARN too, unless `strict`). 1: something failed. 3: something was not judged, nothing failed."""
    if report.status == "FAIL" or (report.status == "WARN" and strict):
        return 1
    return 0 if report.status in ("PASS", "WARN") else 3


def _host(
    run: HostRun, plan: Plan | None, infos: Mapping[str, CheckInfo], scopes: Scopes, evidence: Evidence
) -> HostReport:
    failure = run.failure or _broken_off(evidence, run) or _beside_the_plan(run, plan)
    in_force = scopes.of_host(run.host)
    verdicts: list[Verdict] = []
    if failure is not None:
        verdicts.append(_failed(failure))
    if plan is None or not plan.checks:
        reason = "nothing was planned for this host"
        verdicts.append(Verdict("ERROR", CONNECTION, HOST, "", reason, next_step="run `bringup validate` for it"))
    for request in plan.checks if plan is not None else ():
        verdicts += Cells(
            check=request.name,
            host=run.host,
            info=infos.get(request.name),
            device=plan.device if plan is not None else "gpu",
            evidence=evidence,
            criteria=[one for one in in_force if one.check == request.name],
            informational=scopes.informational.get(request.name, ""),
            failure=failure.message if failure is not None else "",
        ).verdicts()
    if not evidence.gpus and _of_host(verdicts) in ("PASS", "WARN"):  # its count was disabled, or only warns
        reason = "no NVIDIA GPU was measured here: what holds says nothing about a GPU"
        verdicts.append(Verdict("ERROR", IDENTITY, HOST, "", reason, next_step=f"bringup doctor {run.host}"))
    status = _of_host(verdicts)
    told = verdicts
    loads = [one for one in verdicts if one.check in infos and infos[one.check].level > 1]
    if status in ("PASS", "WARN") and loads and all(one.status == "SKIP" for one in loads):
        status, told = "SKIP", loads  # nothing of what was asked for was measured: an audit is no answer to that
    chain = _chain(evidence)
    return HostReport(
        name=run.host,
        address=run.address,
        status=status,
        headline=_headline(status, told, evidence, failure, chain),
        verdicts=tuple(verdicts),
        chain=chain,
        gpus=evidence.gpus,
        measurements=evidence.measurements,
        samples=evidence.samples,
        started_unix=run.started_unix,
        duration_s=run.duration_s,
        timings=_timings(run, plan),
        device=plan.device if plan is not None else "gpu",
        bundle=evidence.hello.bundle if evidence.hello is not None else "",
    )


def _unplanned(scopes: Scopes, plans: Mapping[str, Plan]) -> Iterator[str]:
    """What the inventory expects of a host and the plan did not look at: neither PASS nor FAIL, so it is said."""
    for name, plan in plans.items():
        planned = {request.name for request in plan.checks}
        for one in scopes.of_host(name):
            if one.source.startswith(INVENTORY) and one.check not in planned:
                yield f"{name}: {one.id} was not judged: the check {one.check} was not asked for."


def _unanswered(name: str, address: str) -> HostRun:
    why = Failure("Unanswered", "no answer of this host is in the run", "run `bringup validate` for it again")
    return HostRun(name, address, failure=why)


def _broken_off(evidence: Evidence, run: HostRun) -> Failure | None:
    """A run whose last record never came or counts others than there are, whatever else is said of it."""
    hint = "run `bringup validate` again"
    if evidence.bye is None:
        return Failure("Interrupted", "the host's answer breaks off before its end", hint)
    kept = len(run.records) - 1
    if evidence.bye.count != kept:
        return Failure("WireError", f"the host sent {evidence.bye.count} records, and {kept} are here", hint)
    return None


def _beside_the_plan(run: HostRun, plan: Plan | None) -> Failure | None:
    """Records of a check that the plan does not have: a run takes none in, so its manifest is another's, or changed."""
    planned = {request.name for request in plan.checks} if plan is not None else set()
    odd = next((name for one in run.records if (name := getattr(one, "check", "")) and name not in planned), "")
    if not odd or not planned:
        return None
    why = f"there are records of the check {odd!r:.80}, which the plan does not have"
    return Failure("WireError", why, "was the manifest changed? run `bringup validate` again")


def _chain(evidence: Evidence) -> Chain | None:
    """The chain for torch, or for the framework that was asked in its place. None where nothing was measured."""
    if not evidence.measurements and not evidence.outcomes:
        return None
    of_preflight = (one for one in evidence.measurements if one.check == "preflight" and one.absence != NOT_APPLICABLE)
    asked = dict.fromkeys(one.labels.get("framework", "") for one in of_preflight)
    asked.pop("", None)
    framework = "torch" if "torch" in asked or not asked else next(iter(asked))
    return walk(evidence.measurements, tuple(evidence.outcomes.values()), framework)


def _failed(failure: Failure) -> Verdict:
    return Verdict("ERROR", CONNECTION, HOST, "", failure.message, next_step=failure.hint or SEE_RECORDS)


def _of_host(verdicts: Iterable[Verdict]) -> Status:
    return _worst((verdict.status for verdict in verdicts), ("FAIL", "ERROR", "WARN", "PASS", "SKIP"))


def _worst(statuses: Iterable[Status], order: Sequence[Status]) -> Status:
    """The first of `order` that occurs; nothing at all is ERROR."""
    seen = set(statuses)
    return next((status for status in order if status in seen), "ERROR")


def _timings(run: HostRun, plan: Plan | None) -> dict[str, float]:
    timings = dict(run.timings)
    if plan is not None:
        timings["deadline_host"] = plan.deadline_s
        timings.update({f"deadline_{request.name}": request.timeout_s for request in plan.checks})
    return timings


def _headline(
    status: Status, verdicts: Sequence[Verdict], evidence: Evidence, failure: Failure | None, chain: Chain | None
) -> str:
    """The host in a sentence: why it could not be measured, else the first broken link, else the first bad verdict."""
    if failure is not None:
        return f"{failure.message}. {failure.hint}".rstrip(". ") + "."
    cards = _cards(evidence)
    of_status = [verdict for verdict in verdicts if verdict.status == status]
    if status == "PASS":
        return f"{cards}: all {len(of_status)} criteria that apply hold."
    if not of_status:
        return f"{cards}: nothing was judged."
    if chain is not None and chain.broken is not None and chain.broken.state == "broken":
        return f"{cards}: {chain.sentence}" if evidence.gpus else chain.sentence
    first = of_status[0]
    more = f" ({len(of_status) - 1} more {status})" if len(of_status) > 1 else ""
    where = f"{first.check}.{first.metric}" if first.metric else first.check
    return f"{cards}: {status} {where}: {first.reason}{more}"


def _cards(evidence: Evidence) -> str:
    names = [gpu.name or "a GPU without a name" for gpu in evidence.gpus]
    if not names:
        return "No NVIDIA GPU was measured"
    return ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))[:300]
