"""Criteria files: what they may say, and what each mistake in them is answered with."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from provision.bundle import build_bundle
from provision.catalogue import load_catalogue
from provision.criteria import Criteria, Fraction, lint, load, load_files
from provision.criteria.expectations import parse_expectations
from provision.criteria.loader import _package_files
from provision.criteria.model import CriteriaFile, Expectation
from provision.criteria.rules import holds, in_words
from provision.criteria.versions import at_least, at_most, equals, parts
from provision.errors import CriteriaError
from provision.hosts import Host
from tests.unit.judging import CATALOGUE

ENTRY = """
[[criterion]]
id = "rate"
check = "matmul"
metric = "throughput_bf16"
unit = "TFLOP/s"
rule = "at_least"
value = { fraction = 0.7, of = "peak:bf16_tensor" }
because = "a healthy card does that"
source = "measured"
"""


def file_of(text: str, name: str = "mine.toml", kind: str = "user") -> CriteriaFile:
    return CriteriaFile(name, hashlib.sha256(text.encode()).hexdigest(), text, kind)  # type: ignore[arg-type]  # a literal


def loaded(text: str, base: str = "") -> Criteria:
    return load_files([file_of(base, "defaults/base.toml", "defaults"), file_of(text)], CATALOGUE)


def refused(text: str, base: str = "") -> str:
    with pytest.raises(CriteriaError) as caught:
        loaded(text, base)
    return caught.value.message


def test_an_entry_is_read_with_all_that_it_states() -> None:
    (one,) = loaded(
        ENTRY + 'gpu = "*H200*"\nhost = "dgx*"\nseverity = "WARN"\nlabels = { framework = "torch" }'
    ).criteria
    assert (one.check, one.id, one.value) == ("matmul", "rate", Fraction(0.7, "peak:bf16_tensor"))
    assert (one.gpu, one.host, one.severity, one.labels) == ("*H200*", "dgx*", "WARN", {"framework": "torch"})


@pytest.mark.parametrize(
    ("written", "instead", "said"),
    [
        ('check = "matmul"', 'check = "matmull"', 'no check is named "matmull"; did you mean "matmul"?'),
        ('"throughput_bf16"', '"througput_bf16"', 'no metric "througput_bf16"; did you mean "throughput_bf16"?'),
        ("because =", "becuase =", 'unknown key "becuase"; did you mean "because"?'),
        ('rule = "at_least"', 'rule = "atleast"', 'did you mean "at_least"?'),
        (
            'unit = "TFLOP/s"',
            'unit = "GFLOP/s"',
            'is in TFLOP/s (10**12 floating-point operations a second), not in "GFLOP/s"',
        ),
        ("peak:bf16_tensor", "peak:bf16_tenser", 'no figure "peak:bf16_tenser"; did you mean "peak:bf16_tensor"?'),
        ('because = "a healthy card does that"\n', "", 'without "because"'),
        ('source = "measured"\n', "", 'without "source"'),
        ('source = "measured"', 'source = "  "', '"source" is empty'),
        ('source = "measured"', "source = 3", '"source" is a text in quotes'),
        ("fraction = 0.7", "fraction = 1.7", "outside 0 to 1"),
        ("fraction = 0.7", "fraction = nan", "outside 0 to 1"),
        ('rule = "at_least"', 'rule = "between"', 'goes with "at_least" or "at_most"'),
        ("{ fraction = 0.7, of =", "{ fraktion = 0.7, of =", "a derived value is"),
    ],
)
def test_a_typo_is_an_error_that_names_file_and_entry(written: str, instead: str, said: str) -> None:
    assert written in ENTRY
    message = refused(ENTRY.replace(written, instead, 1))
    assert said in message
    assert message.startswith("mine.toml: criterion ")
    assert "rate" in message


def test_an_entry_without_an_id_is_named_by_its_number() -> None:
    assert 'criterion 2 (without an id): without "id"' in refused(ENTRY + "[[criterion]]\ncheck = 'matmul'")


def test_a_syntax_error_quotes_file_line_and_text() -> None:
    message = refused(ENTRY + "value = = 3\n")
    assert message.startswith("mine.toml:11: not TOML")
    assert "value = = 3" in message


def test_an_unknown_key_at_the_head_is_an_error() -> None:
    assert 'unknown key "criteria" at the head; did you mean "criterion"?' in refused("[[criteria]]\nid = 'x'")


def test_the_same_id_twice_in_a_file_is_an_error() -> None:
    assert "twice" in refused(ENTRY + ENTRY)


def test_an_entry_of_the_same_id_overrides_what_it_states_of_the_default() -> None:
    mine = '[[criterion]]\nid = "matmul.rate"\nvalue = 800.0\nbecause = "contract"\nsource = "section 4"\n'
    (one,) = loaded(mine, base=ENTRY).criteria
    assert (one.value, one.metric, one.rule, one.because, one.source) == (
        800.0,
        "throughput_bf16",
        "at_least",
        "contract",
        "section 4",
    )


def test_an_override_states_its_own_reason_and_source() -> None:
    assert 'without "because"' in refused('[[criterion]]\nid = "rate"\ncheck = "matmul"\nvalue = 800.0\n', base=ENTRY)


def test_another_id_joins_the_defaults() -> None:
    assert len(loaded(ENTRY.replace('"rate"', '"mine"'), base=ENTRY).criteria) == 2


def test_a_default_can_be_disabled_by_name_and_a_typo_in_it_is_an_error() -> None:
    assert loaded('disable = ["matmul.rate"]', base=ENTRY).criteria == ()
    assert 'no criterion is named "matmul.rat"; did you mean "matmul.rate"?' in refused(
        'disable = ["matmul.rat"]', ENTRY
    )


def test_a_missing_file_and_one_that_is_not_text_are_errors(tmp_path: Path) -> None:
    with pytest.raises(CriteriaError, match=r"none\.toml cannot be read: No such file"):
        load([tmp_path / "none.toml"], CATALOGUE)
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(CriteriaError, match="not UTF-8"):
        load([tmp_path / "bytes.toml"], CATALOGUE)


def test_each_file_is_kept_with_the_hash_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(ENTRY, encoding="utf-8")
    kept = load([tmp_path / "mine.toml"], CATALOGUE).files[-1]
    assert kept.sha256 == hashlib.sha256(ENTRY.encode()).hexdigest()
    assert (kept.text, kept.kind) == (ENTRY, "user")


def test_the_files_of_a_run_load_to_the_same_criteria_again(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(ENTRY, encoding="utf-8")
    first = load([tmp_path / "mine.toml"], CATALOGUE)
    assert load_files(first.files, CATALOGUE) == first


def test_the_defaults_of_this_package_fit_its_own_checks() -> None:
    catalogue = load_catalogue(build_bundle())
    criteria = load([], catalogue)
    assert lint(criteria.criteria, catalogue) == []
    assert {one.check for one in criteria.criteria} >= {"system", "software", "preflight"}
    checks = {info.name: {metric.name: metric.unit for metric in info.metrics} for info in catalogue}
    for one in criteria.expectations:
        assert checks[one.check][one.metric] == one.unit, one.variable


def test_every_check_has_a_criterion_or_says_that_it_only_informs() -> None:
    catalogue = load_catalogue(build_bundle())
    criteria = load([], catalogue)
    assert {info.name for info in catalogue} <= {one.check for one in criteria.criteria} | set(criteria.informational)


EXPECTED = (
    Expectation("expect_gpu_count", "system", "gpu_count", "count", "equals", "the parts list"),
    Expectation("expect_torch", "matmul", "torch_version", "version", "equals", "the software list"),
    Expectation("expect_memory", "system", "memory_total", "MiB", "at_least", "the parts list"),
)


def test_an_expectation_becomes_a_criterion_of_that_host_alone() -> None:
    hosts = [Host("gpu[1]", variables={"expect_gpu_count": 8}), Host("gpu1")]
    (one,) = Criteria(expectations=EXPECTED).for_hosts(hosts, CATALOGUE).criteria
    assert (one.value, one.source, one.not_applicable) == (8, "inventory: expect_gpu_count", "FAIL")
    assert one.host == "gpu[[]1]"


@pytest.mark.parametrize(
    ("value", "read"), [(13.0, "13.0"), ("2.11", "2.11"), (580, "580"), (["2.11", "2.12"], ("2.11", "2.12"))]
)
def test_a_version_that_an_inventory_gives_as_a_number_is_a_version(value: object, read: object) -> None:
    (one,) = (
        Criteria(expectations=EXPECTED).for_hosts([Host("a", variables={"expect_torch": value})], CATALOGUE).criteria
    )
    assert one.value == read
    assert one.rule == ("one_of" if isinstance(value, list) else "equals")


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        (
            {"expect_gpu_cuont": 8},
            'host a: no expectation is named "expect_gpu_cuont"; did you mean "expect_gpu_count"?',
        ),
        ({"expect_gpu_count": "eight"}, "host a: expect_gpu_count = 'eight' is not in count"),
        ({"expect_gpu_count": True}, "host a: expect_gpu_count = True is not in count"),
        ({"expect_gpu_count": 8.5}, "expect_gpu_count = 8.5"),
        ({"expect_gpu_count": {"a": 1}}, "expect_gpu_count = {'a': 1}"),
        ({"expect_gpu_count": None}, "expect_gpu_count = None"),
        ({"expect_torch": "newest"}, "the value 'newest' is not in version"),
    ],
)
def test_an_expectation_that_cannot_be_meant_names_host_and_variable(variables: dict[str, object], said: str) -> None:
    with pytest.raises(CriteriaError) as caught:
        Criteria(expectations=EXPECTED).for_hosts([Host("a", variables=variables)], CATALOGUE)
    assert said in caught.value.message
    assert "host a" in caught.value.message


def test_numbers_that_an_inventory_gives_as_text_are_numbers() -> None:
    host = Host("a", variables={"expect_gpu_count": "8", "expect_memory": "2000000"})
    criteria = Criteria(expectations=EXPECTED).for_hosts([host], CATALOGUE).criteria
    assert [one.value for one in criteria] == [8, 2000000]


def test_an_expectation_with_an_unknown_key_is_an_error() -> None:
    with pytest.raises(CriteriaError, match="expect_x"):
        parse_expectations({"expect_x": {"cheque": "system"}})


def test_every_default_file_is_utf8_toml_with_a_hash() -> None:
    assert all(len(one.sha256) == 64 for one in _package_files())


@pytest.mark.parametrize(
    ("measured", "required", "same"),
    [
        ("580.159.04", "580", True),
        ("580.159.04", "580.159.4", True),
        ("580.159.04", "580.126", False),
        ("13.0", "13.1", False),
        ("13.0", "13", True),
        ("13", "13.0", True),
        ("2.11.0+cu130", "2.11", True),
        ("5:28.0.1-1~ubuntu", "28.0", True),
        ("v1.2", "1.2", True),
        ("2.1", "2.10", False),
        ("newest", "1", None),
        ("1", "newest", None),
        ("9" * 400, "1", None),
    ],
)
def test_versions_are_equal_in_the_parts_that_are_required(measured: str, required: str, same: bool | None) -> None:
    assert equals(measured, required) is same


def test_versions_are_ordered_by_their_numbers() -> None:
    assert at_least("9.0", "5.2") is True
    assert at_least("10.0", "9.0") is True  # not as text
    assert at_least("12.8", "13.0") is False
    assert at_least("2.13.0rc1", "2.13.0") is False
    assert at_least("2.13.1rc1", "2.13.0") is True
    assert at_most("13.1", "13") is True
    assert at_most("14.0", "13") is False
    assert parts("") is None


@pytest.mark.parametrize(
    ("rule", "required", "value", "unit", "answer"),
    [
        ("equals", 1, True, "count", None),
        ("equals", True, 1, "bool", None),
        ("equals", True, True, "bool", True),
        ("between", (1, 4), 4, "count", True),
        ("between", (1, 4), 5, "count", False),
        ("between", 1, 1, "count", None),
        ("at_least", (1, 2), 3, "count", None),
        ("one_of", ("ubuntu", "debian"), "debian", "text", True),
        ("one_of", (), "debian", "text", None),
        ("at_least", "a", "b", "text", None),
        ("at_most", 0.5, float("nan"), "ratio", None),
        ("at_least", 1.0, 10**400, "W", None),
    ],
)
def test_a_rule_holds_or_not_or_cannot_be_answered(
    rule: str, required: object, value: object, unit: str, answer: bool | None
) -> None:
    assert holds(rule, required, value, unit) is answer  # type: ignore[arg-type]  # wrong types are the point


def test_requirements_are_put_in_words() -> None:
    assert in_words("at_least", 692.58, "TFLOP/s") == "at least 692.6 TFLOP/s"
    assert in_words("between", (1, 4), "count") == "between 1 and 4"
    assert in_words("one_of", ("ubuntu", "debian"), "text") == "one of ubuntu, debian"
    assert in_words("equals", True, "bool") == "equals true"
