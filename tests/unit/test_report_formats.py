"""JSON, JUnit and Markdown say what the report says, and nothing that a host sent acts in them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jsonschema
import pytest

from provision.errors import UsageError
from provision.report import FORMATS, render
from provision.report.as_json import from_json
from provision.report.as_md import MAX_CHARACTERS, escape
from provision.report.model import Report
from tests.unit.report_examples import (
    EXAMPLES,
    HOSTILE,
    fleet,
    gpuless_host,
    healthy,
    healthy_host,
    hostile,
    mixed,
    report,
    slow_gpu_host,
)

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "report.schema.json").read_text(encoding="utf-8"))
BUILDERS = pytest.mark.parametrize("build", EXAMPLES.values(), ids=EXAMPLES)


@BUILDERS
@pytest.mark.parametrize("format", FORMATS)
def test_every_format_renders_every_report_as_utf8(build: Callable[[], Report], format: str) -> None:
    assert render(build(), format).encode("utf-8").strip()


def test_an_unknown_format_names_those_there_are() -> None:
    with pytest.raises(UsageError) as caught:
        render(healthy(), "pdf")
    assert caught.value.hint == "one of: html, md, json, junit"


# JSON


@BUILDERS
def test_json_fits_its_documented_schema(build: Callable[[], Report]) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.Draft202012Validator(SCHEMA).validate(json.loads(render(build(), "json")))


@BUILDERS
def test_json_comes_back_as_the_same_report(build: Callable[[], Report]) -> None:
    assert from_json(render(build(), "json")) == build()


def test_the_schema_knows_each_key_and_asks_for_each() -> None:
    validator = jsonschema.Draft202012Validator(SCHEMA)
    host = healthy_host()
    body = json.loads(
        render(
            report(
                replace(host, verdicts=host.verdicts[:1], measurements=host.measurements[:1], samples=host.samples[:1])
            ),
            "json",
        )
    )
    places: list[dict[str, Any]] = [body, body["summary"], body["hosts"][0], body["hosts"][0]["chain"]]
    places += [body["hosts"][0][name][0] for name in ("verdicts", "gpus", "measurements")]
    places += [body["hosts"][0]["verdicts"][0]["criterion"], body["hosts"][0]["samples"][0][1]]
    for place in places:
        for key in list(place):
            kept = place.pop(key)
            assert not validator.is_valid(body), f"{key} may be left out"
            place[key] = kept
        place["surprise"] = 1
        assert not validator.is_valid(body)
        del place["surprise"]
    assert validator.is_valid(body)


def test_json_is_ascii_so_that_it_cannot_act_on_a_terminal() -> None:
    text = render(hostile(), "json")
    assert text.isascii()
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", text)


def test_json_summary_counts_hosts_and_verdicts() -> None:
    summary = json.loads(render(mixed(), "json"))["summary"]
    assert summary["hosts"] == {"FAIL": 3, "ERROR": 1, "WARN": 1, "SKIP": 1, "PASS": 6}
    assert summary["verdicts"]["FAIL"] == 7 + 1 + 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"schema_version": 2}, "schema_version"),
        ({"status": "GOOD"}, "report.status is none of PASS"),
        ({"hosts": {}}, "report.hosts is not a list"),
        ({"criteria_files": [["one"]]}, "does not have 2 entries"),
        ({"run_id": 7}, "report.run_id is not str"),
        ({"hosts": [{"name": "x"}]}, "report.hosts[0].address is missing"),
    ],
)
def test_json_that_is_no_report_is_refused_with_the_place(change: dict[str, object], says: str) -> None:
    body = json.loads(render(healthy(), "json")) | change
    with pytest.raises(UsageError, match=re.escape(says)):
        from_json(json.dumps(body))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"schema_version": NaN}', "[" * 100_000, "9" * 10_000])
def test_garbage_is_no_report(text: str) -> None:
    with pytest.raises(UsageError, match="not a report"):
        from_json(text)


def test_a_verdict_with_a_number_in_a_text_field_is_refused() -> None:
    body = json.loads(render(healthy(), "json"))
    body["hosts"][0]["verdicts"][0]["measurement"]["labels"] = {"x": 1}
    with pytest.raises(UsageError, match=r"measurement\.labels\.x is not str"):
        from_json(json.dumps(body))


# JUnit


def _junit(made: Report) -> ElementTree.Element:
    return ElementTree.fromstring(render(made, "junit").encode())  # noqa: S314 - our own text


@BUILDERS
def test_junit_counts_are_those_of_its_cases(build: Callable[[], Report]) -> None:
    root = _junit(build())
    for key, tag in (("tests", "testcase"), ("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        assert int(root.get(key, "-1")) == len(root.findall(f".//{tag}")) == sum(int(s.get(key, "-1")) for s in root)


def test_junit_has_a_case_per_verdict_with_the_matching_end() -> None:
    made = mixed()
    root = _junit(made)
    verdicts = [one for host in made.hosts for one in host.verdicts]
    assert len(root.findall(".//testcase")) == len(verdicts)
    for tag, status in (("failure", "FAIL"), ("error", "ERROR"), ("skipped", "SKIP"), ("system-out", "WARN")):
        assert len(root.findall(f".//{tag}")) == sum(one.status == status for one in verdicts)


def test_junit_cases_have_names_of_their_own() -> None:
    cases = [(case.get("classname"), case.get("name")) for case in _junit(mixed()).findall(".//testcase")]
    assert len(cases) == len(set(cases))


def test_a_junit_failure_says_what_was_measured_required_and_what_next() -> None:
    failure = _junit(report(slow_gpu_host())).findall(".//failure")[0]
    for words in ("measured: 43.11 TFLOP/s", "required: at least 46.8 TFLOP/s", "source: ", "next: nvidia-smi"):
        assert words in str(failure.text)


@pytest.mark.parametrize("made", [report(), report(replace(healthy_host(), verdicts=()))], ids=["hosts", "verdicts"])
def test_junit_without_anything_judged_is_an_error(made: Report) -> None:
    root = _junit(made)
    assert (root.get("tests"), root.get("errors")) == ("1", "1")


# Markdown


def test_markdown_says_verdict_measurement_requirement_and_next_step() -> None:
    text = render(report(slow_gpu_host()), "md")
    assert text.startswith("## ❌ Failed")
    row = next(line for line in text.splitlines() if "throughput&#95;bf16" in line and "❌" in line)
    for words in ("558.2 TFLOP/s", "at least 692.6 TFLOP/s", "NVIDIA H200 datasheet", "nvidia-smi"):
        assert words in row


def test_markdown_names_the_first_broken_link_and_what_mends_it() -> None:
    text = render(report(gpuless_host()), "md")
    assert "**First broken link:** The first broken link is “PCI device”" in text
    assert "<code>lspci -d 10de&#58;</code>" in text


def test_markdown_fits_into_a_comment_however_many_hosts() -> None:
    text = render(fleet(300), "md")
    assert len(text) <= MAX_CHARACTERS
    assert re.search(r"[\d,]+ more parts do not fit here", text)


@pytest.mark.parametrize("text", HOSTILE)
def test_markdown_shows_hostile_text_without_obeying_it(text: str) -> None:
    done = escape(text)
    assert not re.search(r"[<>|`*_\[\]!\n]", done)
    assert not re.search(r"@\w", done)
    assert "http:" not in done


def test_every_markdown_table_row_has_its_tables_columns() -> None:
    columns = 0
    for line in render(hostile(), "md").splitlines():
        if line.startswith("|"):
            columns = columns or line.count("|")
            assert line.count("|") == columns
        else:
            columns = 0
