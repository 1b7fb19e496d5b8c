"""The digests of like GPUs, compared over the hosts that are judged together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from provision.bundle import build_bundle
from provision.criteria import load as load_criteria
from provision.hosts import Host
from provision.remote import Failure, HostRun
from provision.report.model import Report, Verdict
from provision.upgrade.measure import Measuring
from provision.verdict import judge
from provision.verdict.evidence import MAX_GPUS
from tests.unit.load_check import CATALOGUE, plan_of
from validators.schema import (
    ERROR,
    HOST,
    NOT_APPLICABLE,
    RAN,
    SKIPPED,
    UNKNOWN,
    Bye,
    Hello,
    Measurement,
    Outcome,
    Plan,
    Record,
)

METRIC = "digests_agree_in_fleet"
CRITERIA = load_criteria((), CATALOGUE)
PLAN = plan_of("matmul")
A, B, C = "a" * 32, "b" * 32, "c" * 32


def digest(uuid: str, bits: str | None, dtype: str = "bf16", torch: str = "2.11+cu130", **more: str) -> Measurement:
    labels = {"dtype": dtype, "torch": torch, "gpu": "NVIDIA H200", **more}
    return Measurement("matmul", uuid, "digest", bits, "text", labels, "" if bits else UNKNOWN)


def card(uuid: str, name: str = "NVIDIA H200", sm_count: int = 132) -> list[Record]:
    return [
        Measurement("compute_capability", uuid, "gpu_name", name, "text"),
        Measurement("compute_capability", uuid, "sm_count", sm_count, "count"),
        Outcome("compute_capability", uuid, RAN, "", 0.1),
    ]


def host(name: str, *digests: Measurement, cards: list[Record] | None = None, ends: str = RAN) -> HostRun:
    """A host whose GPUs, those of the digests, ran matmul and gave these."""
    uuids = dict.fromkeys(one.subject for one in digests if one.subject != HOST)
    cards = cards if cards is not None else [record for uuid in uuids for record in card(uuid)]
    ended = [Outcome("matmul", uuid, ends, "", 20.0) for uuid in uuids]
    last = [Outcome(check, HOST, RAN, "", 20.0) for check in ("compute_capability", "matmul")]
    records = (Hello(1, "x", "3.12", name, "boot", 0.0), *cards, *digests, *ended, *last)
    return HostRun(name, name, (*records, Bye(len(records))))


def report_of(*runs: HostRun, plan: Plan = PLAN) -> Report:
    return judge(
        runs,
        hosts=[Host(run.host, run.host) for run in runs],
        catalogue=CATALOGUE,
        criteria=CRITERIA,
        plans={run.host: plan for run in runs},
        run_id="r",
        created="",
        judged="",
        version="0",
    )


def said(*runs: HostRun, plan: Plan = PLAN) -> dict[str, list[Verdict]]:
    """The verdicts on the fleet's digests, by host."""
    return {
        one.name: [verdict for verdict in one.verdicts if verdict.metric == METRIC]
        for one in report_of(*runs, plan=plan).hosts
    }


def statuses(*runs: HostRun) -> dict[str, list[str]]:
    return {name: [one.status for one in found] for name, found in said(*runs).items()}


def note(verdict: Verdict) -> str:
    assert verdict.measurement is not None
    return verdict.measurement.note


def test_hosts_whose_like_gpus_agree_pass_and_say_with_whom() -> None:
    found = said(host("h1", digest("GPU-1", A)), host("h2", digest("GPU-2", A)), host("h3", digest("GPU-3", A)))
    for verdicts in found.values():
        (verdict,) = verdicts
        assert (verdict.status, verdict.subject) == ("PASS", HOST)
        assert note(verdict) == "bf16: 3 GPUs agree, of h1, h2, h3"
        assert verdict.measurement is not None
        assert verdict.measurement.labels == {"dtype": "bf16", "torch": "2.11+cu130", "gpu": "NVIDIA H200"}


def test_an_upgrade_judges_each_host_by_itself_whatever_became_of_the_others(tmp_path: Path) -> None:
    """Before beside its wave, after alone: what another host is compared with is not this one's regression."""
    measuring = Measuring(tmp_path, (Host("h1"), Host("h2")), build_bundle())
    one, two = host("h1", digest("GPU-1", A)), host("h2", digest("GPU-2", A))
    before, after = measuring._judged([one, two])["h1"], measuring._judged([one])["h1"]
    assert before.verdicts == after.verdicts


def test_the_host_with_the_odd_gpu_fails_and_the_others_pass() -> None:
    found = said(*(host(f"h{i}", digest(f"GPU-{i}", B if i == 7 else A)) for i in range(10)))
    assert {name: one.status for name, (one,) in found.items() if one.status != "PASS"} == {"h7": "FAIL"}
    (odd,), (good,) = found["h7"], found["h0"]
    assert note(odd) == "bf16: GPU-7 differs from the 9 GPUs that agree, of h0, h1, h2, h3 and 5 more"
    assert note(odd) in odd.reason
    assert odd.next_step
    assert note(good).endswith("; others differ, of h7")


def test_only_the_format_that_differs_fails() -> None:
    runs = [host(f"h{i}", digest(f"GPU-{i}", A), digest(f"GPU-{i}", B if i else A, "fp64")) for i in range(3)]
    assert statuses(*runs) == {"h0": ["PASS", "FAIL"], "h1": ["PASS", "PASS"], "h2": ["PASS", "PASS"]}


def test_where_no_answer_is_that_of_most_nobody_passes() -> None:
    two = said(host("h1", digest("GPU-1", A)), host("h2", digest("GPU-2", B)))
    assert {name: one.status for name, (one,) in two.items()} == {"h1": "FAIL", "h2": "FAIL"}
    assert note(two["h1"][0]) == "bf16: 2 GPUs of h1, h2 differ, and it cannot be told which is wrong"
    even = statuses(*(host(f"h{i}", digest(f"GPU-{i}", A if i < 2 else B)) for i in range(4)))
    assert even == {f"h{i}": ["FAIL"] for i in range(4)}


def test_gpus_are_counted_and_not_hosts() -> None:
    four = host("four", *(digest(f"GPU-{i}", B if i == 3 else A) for i in range(4)))
    found = said(four, host("one", digest("GPU-9", C)))
    assert note(found["four"][0]) == "bf16: GPU-3 differs from the 3 GPUs that agree, of four"
    assert note(found["one"][0]) == "bf16: GPU-9 differs from the 3 GPUs that agree, of four"
    assert [found["four"][0].status, found["one"][0].status] == ["FAIL", "FAIL"]


def test_one_host_alone_is_not_compared() -> None:
    runs = host("h1", digest("GPU-1", A), digest("GPU-2", B), digest("GPU-1", A, "fp64"))
    (verdict,) = said(runs)["h1"]
    assert (verdict.status, verdict.reason) == ("SKIP", "not applicable: one host alone has none to agree with")
    assert statuses(host("h1", ends=ERROR, cards=card("GPU-1")))["h1"] == ["SKIP"]  # the check ran on the host


@pytest.mark.parametrize(
    "other",
    [
        host("h2", digest("GPU-2", B, torch="2.12+cu130")),
        host("h2", digest("GPU-2", B, gpu="NVIDIA H100")),
        host("h2", digest("GPU-2", B, cublas="13.1")),  # a label that a later workload may add
        host("h2", digest("GPU-2", B), cards=card("GPU-2", sm_count=114)),
        host("h2", digest("GPU-2", B), cards=card("GPU-2", name="NVIDIA H200 NVL")),
    ],
    ids=["torch", "card", "label", "multiprocessors", "name"],
)
def test_what_is_not_alike_is_not_compared(other: HostRun) -> None:
    found = said(host("h1", digest("GPU-1", A)), other)
    assert {name: one.status for name, (one,) in found.items()} == {"h1": "SKIP", "h2": "SKIP"}
    assert "no other host gave a digest of a like GPU" in found["h1"][0].reason


def test_a_host_without_its_digest_does_not_pass_by_the_others() -> None:
    agree = [host("h1", digest("GPU-1", A)), host("h2", digest("GPU-2", A))]
    found = said(*agree, host("failed", digest("GPU-3", None)))
    assert {name: one.status for name, (one,) in found.items()} == {"h1": "PASS", "h2": "PASS", "failed": "ERROR"}
    assert note(found["failed"][0]) == "bf16: no digest of GPU-3"
    answer = Measurement("matmul", "GPU-3", "known_answer", True, "bool")
    (verdict,) = said(*agree, host("silent", answer))["silent"]
    assert (verdict.status, verdict.reason) == ("ERROR", "it ran, and did not report this")
    empty = Measurement("matmul", "GPU-3", "digest", "", "text", digest("GPU-3", A).labels)
    assert statuses(*agree, host("empty", empty))["empty"] == ["ERROR"]


@pytest.mark.parametrize(("end", "expected"), [("", "ERROR"), (ERROR, "ERROR"), (SKIPPED, "PASS")])
def test_a_gpu_beside_one_that_agrees_is_missed_unless_it_was_skipped(end: str, expected: str) -> None:
    run = host("h2", digest("GPU-2", A), cards=[*card("GPU-2"), *card("GPU-3"), *card("GPU-4", "NVIDIA T4")])
    if end:
        records = (*run.records[:-1], Outcome("matmul", "GPU-3", end, "why", 0.1))
        run = HostRun("h2", "h2", (*records, Bye(len(records))))
    found = said(host("h1", digest("GPU-1", A)), run)
    assert [one.status for one in found["h2"]] == [expected]
    assert expected == "PASS" or note(found["h2"][0]) == "bf16: no digest of GPU-3"
    assert [one.status for one in found["h1"]] == ["PASS"]


def test_a_host_that_failed_leaves_the_comparison_of_the_others() -> None:
    gone = HostRun("gone", "gone", failure=Failure("Unreachable", "refused", "start sshd"))
    runs = [host("h1", digest("GPU-1", A)), host("h2", digest("GPU-2", A)), gone]
    assert statuses(*runs) == {"h1": ["PASS"], "h2": ["PASS"], "gone": []}
    assert [one.status for one in said(runs[0], gone)["h1"]] == ["SKIP"]  # nobody is left to compare with


def test_a_gpu_that_two_hosts_name_is_not_held_against_itself() -> None:
    inside = host("container", digest("GPU-1", A))
    assert statuses(host("h1", digest("GPU-1", A)), inside) == {"h1": ["SKIP"], "container": ["SKIP"]}
    found = statuses(host("h1", digest("GPU-1", A)), inside, host("h2", digest("GPU-2", B)))
    assert found == {"h1": ["FAIL"], "container": ["FAIL"], "h2": ["FAIL"]}  # one against one, not two


def test_gpus_without_any_digest_are_not_compared() -> None:
    none = Measurement("matmul", "GPU-3", "digest", None, "text", {"dtype": "fp8"}, NOT_APPLICABLE, "needs 8.9")
    runs = [host("h1", digest("GPU-1", A)), host("h2", digest("GPU-2", A)), host("old", none)]
    assert statuses(*runs) == {"h1": ["PASS"], "h2": ["PASS"], "old": ["SKIP"]}
    some = [host(f"h{i}", digest(f"GPU-{i}", A), replace(none, subject=f"GPU-{i}")) for i in range(2)]
    assert statuses(*some) == {"h0": ["PASS"], "h1": ["PASS"]}  # what was compared is said, and nothing of fp8


def test_what_a_host_says_of_the_fleet_itself_counts_for_nothing() -> None:
    claim = Measurement("matmul", HOST, METRIC, True, "bool", {"dtype": "bf16"})
    runs = [host("h1", digest("GPU-1", A)), host("h2", digest("GPU-2", A)), host("liar", digest("GPU-3", B), claim)]
    assert statuses(*runs)["liar"] == ["FAIL"]
    alone = report_of(host("liar", claim, cards=card("GPU-3"))).hosts[0]
    assert claim not in alone.measurements
    assert [one.status for one in alone.verdicts if one.metric == METRIC] == ["SKIP"]


def test_a_host_has_no_more_votes_than_a_host_can_have_gpus_and_two_answers_are_none() -> None:
    crowd = host("crowd", *(digest(f"GPU-x{i}", B) for i in range(MAX_GPUS + 50)))
    (verdict,) = said(host("h1", digest("GPU-1", A)), crowd)["h1"]
    assert f"{MAX_GPUS} GPUs that agree" in note(verdict)
    both = host("both", digest("GPU-3", A), digest("GPU-3", B))
    assert statuses(host("h1", digest("GPU-1", A)), host("h2", digest("GPU-2", A)), both)["both"] == ["FAIL"]


def test_hosts_without_matmul_in_their_plan_have_no_vote_and_no_verdict() -> None:
    runs = [host("h1", digest("GPU-1", A)), host("h2", digest("GPU-2", B))]
    report = judge(
        runs,
        hosts=[],
        catalogue=CATALOGUE,
        criteria=CRITERIA,
        plans={"h1": PLAN, "h2": plan_of("memory")},
        run_id="r",
        created="",
        judged="",
        version="0",
    )
    found = {one.name: [v.status for v in one.verdicts if v.metric == METRIC] for one in report.hosts}
    assert found == {"h1": ["SKIP"], "h2": []}


def test_names_and_digests_in_a_note_are_bounded() -> None:
    long = "GPU-" + "x" * 4000
    odd = host("h3", digest(long, "z" * 4096))
    (verdict,) = said(host("h1", digest("GPU-1", A)), host("h2", digest("GPU-2", A)), odd)["h3"]
    assert verdict.status == "FAIL"
    assert len(note(verdict)) < 200
    assert "zz" not in note(verdict)
