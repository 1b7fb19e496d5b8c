"""The jobs that the check of links runs, and what it makes of their answers.

First everybody at once, in one job each for copies and for collectives. Where such a job ends early, each pair that it
left unmeasured runs alone, in a job of its own with its own deadline: so a link, or a GPU, that breaks a job is named.
"""

from __future__ import annotations

import statistics
import threading
import time
from dataclasses import replace
from typing import Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from validators.check import Context
from validators.probes import ranks, workload
from validators.schema import HOST, Measurement, Progress, Record, Scalar

Pair = Tuple[str, str]
"""Names of two ranks: UUIDs of GPUs, or "rank0" and so on. Directed for copies: from, to."""

PAIR_METRICS = ("p2p_access", "p2p_bandwidth", "p2p_both_ways", "p2p_latency", "pair_bus_bandwidth")
WRONG_METRICS = ("p2p_wrong", "allreduce_wrong", "between_wrong")
DIRECTED = ("p2p_access", "p2p_bandwidth", "p2p_latency")
JOB_S = 150.0
ALONE_S = 60.0
ALL_ALONE_S = 360.0
"""Deadlines in seconds: of a job of all ranks, of a pair alone, and of all the pairs alone together."""
MAX_NOTES = 6


class Heard(Context):
    """Passes on what jobs send, with what is known of each pair as labels, and adds up what was wrong.

    `link`: how two GPUs are joined now; `alike`: which pairs are built alike, and so compared; by default as joined.
    """

    def __init__(
        self,
        ctx: Context,
        names: Sequence[str],
        link: Callable[[str, str], str],
        alike: Optional[Callable[[str, str], str]] = None,
    ) -> None:
        super().__init__(ctx.info, ctx.request, ctx.plan, self._take)
        self.names = list(names)
        self.measured: Dict[str, Dict[Pair, float]] = {metric: {} for metric in PAIR_METRICS}
        self.wrong: Dict[Tuple[str, str], int] = {}
        self.notes: Dict[Tuple[str, str], List[str]] = {}
        self.doing = ""
        self._ctx, self._link, self._lock = ctx, link, threading.Lock()
        self._alike = alike or link

    def _take(self, record: Record) -> None:
        if isinstance(record, Progress):
            self.doing = record.message
        if isinstance(record, Measurement) and record.value is not None:
            if record.metric in WRONG_METRICS:
                self._add(record)
                return
            if record.metric in PAIR_METRICS:
                pair = record.labels["a"], record.labels["b"]
                with self._lock:
                    self.measured[record.metric][pair] = float(record.value)
                record = replace(record, labels={**record.labels, **self.labels(record.metric, *pair)})
        self._ctx.forward(record)

    def _add(self, record: Measurement) -> None:
        a, b = record.labels.get("a"), record.labels.get("b")
        between = record.metric == "between_wrong"
        subjects = [name for name in (a, b) if name] or [HOST if between else record.subject]
        note = f"{self.pair_words(a, b)} {record.note}" if a and b else record.note
        with self._lock:
            for subject in subjects:
                key = record.metric, subject
                self.wrong[key] = self.wrong.get(key, 0) + int(record.value or 0)
                if record.value:
                    self.notes.setdefault(key, []).append(f"{record.value} in {note}".strip())

    def labels(self, metric: str, a: str, b: str) -> Dict[str, str]:
        """Who the pair is, for a report: a and b (UUIDs), their numbers, and how they are joined."""
        sign = ">" if metric in (*DIRECTED, "p2p_of_median") else "-"
        return {"a": a, "b": b, "pair": f"{self._index(a)}{sign}{self._index(b)}", "link": self._link(a, b)}

    def pair_words(self, a: str, b: str) -> str:
        """Both of them, by number and UUID."""
        return f"{self.words(a)} with {self.words(b)}"

    def words(self, name: str) -> str:
        """One GPU by number and UUID."""
        return f"GPU {self._index(name)} ({name})" if name.startswith("GPU-") else name

    def _index(self, name: str) -> int:
        return self.names.index(name)

    def say_wrong(self, metric: str, subject: str) -> None:
        """The sum over all jobs, or that no job gave one."""
        if (metric, subject) not in self.wrong:
            self.unknown(metric, "no job gave an answer that could be compared", subject)
            return
        notes = "; ".join(self.notes.get((metric, subject), [])[:MAX_NOTES])
        self._ctx.measure(metric, self.wrong[metric, subject], subject, note=notes)

    def say_of_median(self, metric: str, of: str, failed: Mapping[Pair, str], shared: bool = False) -> None:
        """Each pair's bandwidth by the median of those that are joined in the same way.

        `shared`: some of them ran beside others on one PCIe, after a job that had ended early.
        """
        found = self.measured[of]
        kinds: Dict[str, List[float]] = {}
        for pair, value in found.items():
            kinds.setdefault(self._alike(*pair), []).append(value)
        for pair, value in found.items():
            alike = kinds[self._alike(*pair)]
            labels = self.labels(metric, *pair)
            least = 3 if of in DIRECTED else 2  # both ways of one pair are one link
            if self._link(*pair) == "unknown":
                self.not_applicable(metric, "NVML does not tell how they are joined", labels=labels)
            elif shared:
                self.not_applicable(
                    metric, "a job ended early: some pairs ran beside others on one PCIe", labels=labels
                )
            elif len(alike) < least:
                self.not_applicable(metric, "no other pair is joined in this way", labels=labels)
            else:
                self.measure(metric, value / max(statistics.median(alike), 1e-9), labels=labels)
        for pair, why in failed.items():
            if pair not in found:
                self.unknown(metric, why, labels=self.labels(metric, *pair))
        if not found and not failed:
            self.not_applicable(metric, "no pair was measured")


class Jobs:
    """Runs the jobs of one host. `gpus`: their UUIDs, empty on the CPU. `failed`: pair -> why, for each metric."""

    def __init__(self, heard: Heard, python: str, gpus: Sequence[str]) -> None:
        self._heard, self._python, self._gpus = heard, python, tuple(gpus)
        self._names = heard.names
        self.failed: Dict[str, Dict[Pair, str]] = {"p2p_bandwidth": {}, "pair_bus_bandwidth": {}}
        self.problems: List[str] = []

    def copies(self) -> None:
        """Every pair's copies; GPUs only."""
        params = self._params("p2p_seconds")

        def job(names: Sequence[str], timeout_s: float) -> None:
            what = {**params, "names": ",".join(names)}
            workload.run_workload(self._heard, self._python, "links_p2p", what, gpus=names, timeout_s=timeout_s)

        try:
            job(self._gpus, self._deadline("job_s", JOB_S))
        except RuntimeError as problem:
            self._early("copies between GPUs", problem)
            self._alone("p2p_bandwidth", lambda pair, _port, timeout_s: job(pair, timeout_s))

    def collectives(self, together: bool) -> None:
        """All-reduce over all, then over each pair."""
        tasks = "all,collectives,pairs" if self._gpus else "all,pairs"
        params = {**self._params("seconds", "smallest", "largest", "pair_bytes", "hang_s"), "cpu": not self._gpus}

        def job(names: Sequence[str], what: Mapping[str, Scalar], port: int, timeout_s: float) -> None:
            ranks.run_ranks(
                self._heard,
                self._python,
                "links_ranks",
                {**params, "names": ",".join(names), **what},
                gpus=names if self._gpus else (),
                ranks=len(names),
                port=port,
                timeout_s=timeout_s,
            )

        try:
            job(self._names, {"tasks": tasks, "together": together}, 0, self._deadline("job_s", JOB_S))
        except RuntimeError as problem:
            self._early(f"all-reduce over all {len(self._names)}", problem)
            self._alone("pair_bus_bandwidth", lambda pair, port, left: job(pair, {"tasks": "pair"}, port, left))

    def _early(self, what: str, problem: RuntimeError) -> None:
        self.problems.append(f"{what} ended early (last begun: {self._heard.doing}): {problem}")

    def _alone(self, metric: str, run: Callable[[Pair, int, float], None]) -> None:
        """Each pair that has no answer yet, in rounds of disjoint pairs; what fails is noted and named."""
        end = time.monotonic() + ALL_ALONE_S
        for one in ranks.rounds(len(self._names)):
            pairs = [(self._names[a], self._names[b]) for a, b in one]
            left = [pair for pair in pairs if not self._has(metric, pair)]
            timeout_s = min(self._deadline("alone_s", ALONE_S), end - time.monotonic())

            def attempt(pair: Pair, port: int, timeout_s: float = timeout_s) -> None:
                try:
                    if timeout_s <= 0:
                        raise RuntimeError("not tried alone: the pairs before it had used up the time")
                    run(pair, port, timeout_s)
                except Exception as problem:  # noqa: BLE001 - a thread's boundary: it becomes this pair's own verdict
                    self.failed[metric][pair] = str(problem)

            threads = [
                threading.Thread(target=attempt, args=(pair, port))
                for pair, port in zip(left, ranks.free_ports(len(left)))  # noqa: B905 - strict is 3.10+
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        for pair, why in self.failed[metric].items():
            self._heard.unknown(metric, why, labels=self._heard.labels(metric, *pair))

    def _has(self, metric: str, pair: Pair) -> bool:
        found = self._heard.measured[metric]
        return pair in found and (metric not in DIRECTED or (pair[1], pair[0]) in found)

    def _params(self, *names: str) -> Dict[str, Scalar]:
        given = self._heard.request.params
        return {("seconds" if name == "p2p_seconds" else name): given[name] for name in names if name in given}

    def _deadline(self, name: str, default: float) -> float:
        return float(self._heard.request.params.get(name, default))

    def lost(self) -> Dict[str, str]:
        """GPUs none of whose links gave an answer, and why: name -> the first words."""
        found: Dict[str, str] = {}
        for name in self._names:
            why = self._first_failure(name)
            if why and not any(name in pair for values in self._heard.measured.values() for pair in values):
                found[name] = why
        return found

    def _first_failure(self, name: str) -> Optional[str]:
        return next((why for pairs in self.failed.values() for pair, why in pairs.items() if name in pair), None)

    def verdict(self) -> str:
        """What went wrong, the culprits first; empty where nothing did."""
        lost = self.lost()
        said = [f"{self._heard.words(name)}: none of its links gave an answer: {why}" for name, why in lost.items()]
        for metric, pairs in self.failed.items():
            what = "copies" if metric == "p2p_bandwidth" else "all-reduce"
            said += [
                f"{what} of {self._heard.pair_words(*pair)}: {why}"
                for pair, why in pairs.items()
                if not any(name in lost for name in pair)
            ]
        if self.problems and not said:
            said.append("each pair alone gave an answer")
        return "; ".join([*said, *self.problems])
