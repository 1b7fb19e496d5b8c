"""What arrives from a host: every valid record survives the trip, everything else is a WireError."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from provision.errors import WireError
from provision.remote import intake as intake_module
from provision.remote.intake import Greeting, Intake
from validators.schema import (
    SCHEMA,
    UNITS,
    Bye,
    CheckRequest,
    Hello,
    Measurement,
    Outcome,
    Plan,
    Progress,
    Record,
    Sample,
    SchemaError,
    decode,
    decode_plan,
    encode,
    encode_plan,
)

SHA = "5" * 64
HELLO = Hello(SCHEMA, SHA, "3.11.7", "box", "", 1.0)
PLAN = Plan((CheckRequest("x", 5.0),), 10.0)

text = st.text(max_size=200)
numbers = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e15, max_value=1e15) | st.integers(
    -(2**62), 2**62
)
labels = st.dictionaries(text, text, max_size=5)


@st.composite
def measurements(draw: st.DrawFn) -> Measurement:
    unit = draw(st.sampled_from(sorted(UNITS)))
    value: bool | int | float | str | None
    if unit == "bool":
        value = draw(st.booleans())
    elif unit in ("text", "version"):
        value = draw(text)
    elif unit in ("count", "bits"):
        value = draw(st.integers(-(2**62), 2**62))
    else:
        value = draw(numbers)
    absence = draw(st.sampled_from(["", "", "unknown", "not_applicable"]))
    return Measurement("x", draw(text), draw(text), None if absence else value, unit, draw(labels), absence, draw(text))


records = st.one_of(
    measurements(),
    st.builds(Progress, st.just("x"), text, text, st.floats(-1, 1)),
    st.builds(Sample, st.just("x"), text, st.floats(0, 1e6), st.dictionaries(text, numbers, max_size=5)),
    st.builds(Outcome, st.just("x"), text, st.sampled_from(["ran", "skipped", "error"]), text, st.floats(0, 1e6)),
)


@given(records)
def test_decode_gives_back_what_encode_took(record: Record) -> None:
    line = encode(record)
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert decode(line) == record


@given(st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
def test_decode_of_anything_is_a_record_or_a_schema_error(data: bytes) -> None:
    try:
        decode(data)
    except SchemaError:
        return


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=10,
)


@given(records, st.data())
def test_a_record_with_any_one_field_replaced_is_a_record_or_a_schema_error(
    record: Record, data: st.DataObject
) -> None:
    body = json.loads(encode(record))
    body[data.draw(st.sampled_from(sorted(body)))] = data.draw(json_values)
    try:
        again = decode(json.dumps(body).encode())
    except SchemaError:
        return
    assert encode(again)  # what is accepted can be written again


@given(st.dictionaries(text, st.booleans() | numbers | text, max_size=5), st.floats(1, 1e6))
def test_a_plan_survives_the_trip(params: dict[str, bool | float | str], seconds: float) -> None:
    plan = Plan((CheckRequest("x", seconds, params),), seconds, {"torch": "/opt/python"}, "cpu")
    assert decode_plan(encode_plan(plan)) == plan


def fed(*lines: bytes, step: int = 0) -> list[Record]:
    intake = Intake("box", PLAN, SHA)
    data = b"".join(lines)
    step = step or len(data)
    return [record for start in range(0, len(data), step) for record in intake.feed(data[start : start + step])]


@settings(max_examples=30)
@given(st.lists(records, max_size=5), st.integers(1, 50))
def test_records_arrive_whole_however_the_bytes_are_cut(some: list[Record], step: int) -> None:
    sent = [HELLO, *some, Bye(len(some) + 1)]
    assert fed(*(encode(one) for one in sent), step=step) == sent


GOOD = encode(Measurement("x", "host", "n", 1, "count"))
BAD = {
    "garbage": ([encode(HELLO), b"\x00\xff garbage\n"], "not JSON"),
    "truncated JSON": ([encode(HELLO), GOOD[:-9] + b"\n"], "not JSON"),
    "NaN": ([encode(HELLO), GOOD.replace(b'"value":1', b'"value":NaN')], "NaN is not a number"),
    "Infinity": ([encode(HELLO), GOOD.replace(b'"value":1', b'"value":-Infinity')], "-Infinity is not a number"),
    "a number that overflows to infinity": (
        [encode(HELLO), encode(Measurement("x", "host", "n", 1.5, "W")).replace(b"1.5", b"1e999")],
        "measurement.value is not",
    ),
    "an integer of thousands of digits": ([encode(HELLO), GOOD.replace(b":1,", b":" + b"9" * 5000 + b",")], ""),
    "deep nesting": ([encode(HELLO), b"[" * 60_000 + b"\n"], "not JSON"),
    "an unknown schema version": ([encode(HELLO).replace(b'"schema":1', b'"schema":2')], "speaks schema 2"),
    "no hello": ([GOOD], "hello is not the first"),
    "two hellos": ([encode(HELLO), encode(HELLO)], "hello is not the first"),
    "another bundle": ([encode(Hello(SCHEMA, "6" * 64, "3.11.7", "box", "", 1.0))], "another bundle answers"),
    "a check that was not planned": (
        [encode(HELLO), encode(Outcome("y", "host", "ran", "", 1.0))],
        "record of 'y', which was not asked for",
    ),
    "a wrong count": ([encode(HELLO), encode(Bye(2))], "bye counts 2 records where 1 arrived"),
    "a record after bye": ([encode(HELLO), encode(Bye(1)), GOOD], "a record after bye"),
    "a bye after bye": ([encode(HELLO), encode(Bye(1)), encode(Bye(1))], "a record after bye"),
    "a unit that is none": ([encode(HELLO), GOOD.replace(b'"count"', b'"furlongs"')], "no such unit"),
    "a text where a count is due": ([encode(HELLO), GOOD.replace(b":1,", b':"1",')], "the value is not in count"),
    "an endless line": ([encode(HELLO), b"x" * 70_000], "a line of more than 65536 bytes"),
    "an unknown field": ([encode(HELLO), GOOD.replace(b'"note"', b'"nota"')], "missing or unknown fields"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_wire_error_that_names_the_host_for(kind: str) -> None:
    lines, what = BAD[kind]
    with pytest.raises(WireError) as caught:
        fed(*lines)
    assert caught.value.message.startswith("box: the host sent what is not the wire format: ")
    assert what in caught.value.message
    assert caught.value.hint
    assert "garbage" not in caught.value.message, "what the host sent is not quoted raw"


def test_more_records_than_the_bound_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake_module, "MAX_RECORDS", 10)
    with pytest.raises(WireError, match="more than 10 records"):
        fed(encode(HELLO), *[GOOD] * 10)


@settings(max_examples=50)
@given(st.binary(max_size=500), st.integers(1, 40))
def test_noise_before_the_answer_changes_nothing(noise: bytes, step: int) -> None:
    greeting = Greeting("box", "<bringup 1234> ")
    answer = b'\n<bringup 1234> {"status": "cached", "text": "", "python": "3.11.7"}\n'
    data = noise + answer
    answers = [one for start in range(0, len(data), step) for one in greeting.feed(data[start : start + step])]
    assert [one.status for one in answers] == ["cached"]


def test_what_follows_the_answer_is_the_wires_own() -> None:
    greeting = Greeting("box", "<m> ")
    stream: Iterator[object] = greeting.feed(b'motd\n<m> {"status": "cached", "text": "", "python": "3"}\n{"type"')
    next(stream)
    assert greeting.rest == b'{"type"'


def test_endless_noise_is_given_up() -> None:
    greeting = Greeting("box", "<m> ")
    with pytest.raises(WireError, match="box: over 1 MiB of other output"):
        for _ in range(2000):
            list(greeting.feed(b"n" * 1023 + b"\n"))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 2.0**64, 10**400])
def test_a_number_that_cannot_be_judged_is_refused_by_the_sender_too(value: float) -> None:
    with pytest.raises(SchemaError):
        encode(Measurement("x", "host", "n", value, "W"))
