"""Whatever a host sends or leaves out: no PASS without a measurement that satisfies its criterion."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from provision.bundle import build_bundle
from provision.catalogue import load_catalogue
from provision.criteria import Fraction, load
from provision.criteria.physics import figure
from provision.criteria.rules import holds
from provision.hosts import Host
from provision.remote import HostRun
from provision.report.model import Report
from provision.verdict import judge
from provision.verdict.evidence import gather
from tests.unit.judging import CATALOGUE, CRITERIA, GPU0, GPU1, PLAN, answered, criterion, good, report_of
from validators.schema import (
    HOST,
    NOT_APPLICABLE,
    UNITS,
    UNKNOWN,
    Bye,
    CheckRequest,
    Measurement,
    Outcome,
    Plan,
    Record,
)

SCOPED = criterion("h200", "matmul", "spread", "ratio", "at_most", 0.1, gpu="*H200*")
VERSIONED = criterion("torch", "matmul", "torch_version", "version", "one_of", ("2.11", "2.12"), labels={"f": "torch*"})
BETWEEN = criterion("memory", "system", "memory_total", "MiB", "between", (1000, 2000), unknown="SKIP")
EVERY = (*CRITERIA, SCOPED, VERSIONED, BETWEEN)

checks = st.sampled_from([info.name for info in CATALOGUE] + ["nonsense"])
metrics = st.sampled_from([metric.name for info in CATALOGUE for metric in info.metrics] + ["nonsense"])
subjects = st.sampled_from([HOST, GPU0, GPU1, "", "x[red]"])
values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["9.0", "2.11.0", "NVIDIA H200", 747.0, 1, 1500]),
)
labels = st.dictionaries(st.sampled_from(["f", "index"]), st.sampled_from(["torch", "1", "²", "-9"]), max_size=2)
measurements = st.builds(
    Measurement,
    checks,
    subjects,
    metrics,
    values,
    st.sampled_from([*UNITS, "furlong"]),
    labels,
    st.sampled_from(["", NOT_APPLICABLE, UNKNOWN]),
    st.text(max_size=5),
)
outcomes = st.builds(
    Outcome, checks, subjects, st.sampled_from(["ran", "skipped", "error"]), st.text(max_size=5), st.just(0.1)
)
worlds = st.lists(st.one_of(measurements, outcomes), max_size=25)
plans = st.sampled_from([PLAN, replace(PLAN, device="cpu"), replace(PLAN, checks=PLAN.checks[:1])])


def assert_every_pass_is_earned(report: Report, run: HostRun) -> None:
    evidence = gather(run, {info.name for info in (*CATALOGUE, *REAL) if info.per_gpu})
    for verdict in report.hosts[0].verdicts:
        assert verdict.reason
        assert bool(verdict.next_step) == (verdict.status in ("FAIL", "ERROR", "WARN")), verdict
        if verdict.status != "PASS":
            continue
        assert verdict.criterion is not None
        assert verdict.measurement in run.records
        assert verdict.measurement is not None
        assert verdict.measurement.value is not None
        assert verdict.measurement.unit == verdict.criterion.unit
        required: Any = verdict.criterion.value
        if isinstance(required, Fraction):
            known = figure(required.of, evidence.facts[verdict.subject])
            assert known is not None
            required = known[0] * required.fraction
        assert holds(verdict.criterion.rule, required, verdict.measurement.value, verdict.criterion.unit)
    if report.status == "PASS":
        assert any(verdict.status == "PASS" for verdict in report.hosts[0].verdicts)


@settings(max_examples=300, deadline=None)
@given(worlds, plans, st.booleans())
def test_no_records_whatever_pass_without_a_measurement_that_satisfies_its_criterion(
    records: list[Record], plan: Any, whole: bool
) -> None:
    run = answered(records)
    run = run if whole else replace(run, records=run.records[:-1])
    report = report_of(run, EVERY, plan)
    assert_every_pass_is_earned(report, run)
    if not whole:
        assert report.status != "PASS"


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_leaving_records_out_of_a_good_answer_never_leaves_a_pass(data: st.DataObject) -> None:
    records = good((GPU0, GPU1))
    # gpu_name alone is a fact for the eye and a card of the table: without it the rate is not judged, so it counts too
    gone = data.draw(st.sets(st.integers(0, len(records) - 1), min_size=1))
    left = [record for number, record in enumerate(records) if number not in gone]
    report = report_of(left)
    assert report.status != "PASS", [records[number] for number in gone]
    assert_every_pass_is_earned(report, answered(left))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_leaving_records_out_never_turns_a_host_that_did_not_pass_into_one_that_did(data: st.DataObject) -> None:
    records: list[Record] = []
    for one in good((GPU0, GPU1)):
        record = one
        if isinstance(record, Measurement):
            bad = data.draw(st.sampled_from(["as it is", "as it is", "bad", "not applicable", "unknown"]))
            wrong: dict[str, Any] = {"bool": False, "text": "?", "version": "1.0", "count": 0}
            if bad == "bad":
                record = replace(record, value=wrong.get(record.unit, 0.001))
            elif bad != "as it is":
                record = replace(record, value=None, absence=NOT_APPLICABLE if bad == "not applicable" else UNKNOWN)
        elif isinstance(record, Outcome) and record.subject != HOST:
            record = replace(record, status=data.draw(st.sampled_from(["ran", "ran", "error"])))
        records.append(record)
    before = report_of(records).status
    gone = data.draw(st.sets(st.integers(0, len(records) - 1)))
    after = report_of([record for number, record in enumerate(records) if number not in gone]).status
    assert before == "PASS" or after != "PASS"


def test_leaving_out_any_one_or_two_records_of_a_good_answer_keeps_it_from_passing() -> None:
    records = good((GPU0, GPU1))
    for gone in [*itertools.combinations(range(len(records)), 1), *itertools.combinations(range(len(records)), 2)]:
        left = [record for number, record in enumerate(records) if number not in gone]
        assert report_of(left).status != "PASS", [records[number] for number in gone]


def test_the_order_of_records_does_not_matter() -> None:
    records = good((GPU0, GPU1))
    before = {(one.check, one.subject, one.metric, one.status) for one in report_of(records).hosts[0].verdicts}
    for seed in range(20):
        random.Random(seed).shuffle(records)  # noqa: S311 - an order, not a secret
        after = {(one.check, one.subject, one.metric, one.status) for one in report_of(records).hosts[0].verdicts}
        assert after == before


def test_the_bye_is_needed_even_where_nothing_else_is_missing() -> None:
    run = answered(good())
    assert isinstance(run.records[-1], Bye)
    assert report_of(run).status == "PASS"
    assert report_of(replace(run, records=run.records[:-1])).status == "ERROR"


REAL = load_catalogue(build_bundle())
DEFAULTS = load([], REAL)
REAL_PLAN = Plan(tuple(CheckRequest(info.name, info.timeout_s) for info in REAL), 100.0)
real_measurements = st.sampled_from([(info.name, metric) for info in REAL for metric in info.metrics]).flatmap(
    lambda pair: st.builds(
        Measurement,
        st.just(pair[0]),
        subjects,
        st.just(pair[1].name),
        st.one_of(values, st.sampled_from([True, False, 0, 1, "", "580.159.04", "13.0", "sm_90,sm_100", "10de:2335"])),
        st.just(pair[1].unit),
        st.dictionaries(
            st.sampled_from(["framework", "index", "path", "driver", "address"]), st.text(max_size=6), max_size=3
        ),
        st.just(""),
        st.text(max_size=5),
    )
)
real_outcomes = st.builds(
    Outcome,
    st.sampled_from([info.name for info in REAL]),
    subjects,
    st.sampled_from(["ran", "skipped", "error"]),
    st.text(max_size=5),
    st.just(0.1),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(real_measurements, real_outcomes), max_size=40))
def test_the_defaults_and_the_chain_take_whatever_a_host_sends(records: list[Record]) -> None:
    run = answered(records)
    report = judge(
        [run],
        hosts=[Host(run.host)],
        catalogue=REAL,
        criteria=DEFAULTS,
        plans={run.host: REAL_PLAN},
        run_id="r",
        created="",
        judged="",
        version="0",
    )
    assert_every_pass_is_earned(report, run)
    assert report.status != "PASS"  # a handful of records is never a whole answer to six checks
