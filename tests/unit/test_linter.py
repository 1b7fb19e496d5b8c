"""The linter of criteria: thresholds that cannot be meant."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from provision.criteria import Criterion, Fraction, lint
from tests.unit.judging import CATALOGUE, criterion
from validators.schema import CheckInfo, Metric

BANDWIDTH = CheckInfo(
    "hbm", "m", "c", (), 2, 1.0, 10.0, True,
    (Metric("memory_bandwidth", "GB/s", ""), Metric("power", "W", ""), Metric("temperature", "celsius", ""),
     Metric("busy", "percent", ""), Metric("throughput_int8", "TOP/s", "")),
)  # fmt: skip
EVERY = (*CATALOGUE, BANDWIDTH)


def problems(one: Criterion) -> list[str]:
    return [text for _, text in lint([one], EVERY)]


def test_dcgms_own_slip_is_refused_megabytes_in_a_field_of_gigabytes() -> None:
    """DCGM 4.6 ships 2333 for the H200 where its neighbours have MB/s: 2.333 GB/s would let any card pass."""
    slip = criterion("b", "hbm", "memory_bandwidth", "GB/s", "at_least", 2.333, gpu="*H200*")
    assert "below 1/100 of what the card can do (4800 GB/s)" in problems(slip)[0]
    assert "above what the card can do" in problems(replace(slip, value=2333000.0))[0]
    assert problems(replace(slip, value=4000.0)) == []
    assert 'not in "MB/s"' in problems(replace(slip, unit="MB/s"))[0]


@pytest.mark.parametrize(
    ("gpu", "value", "said"),
    [
        ("*H200*", 1100.0, "above what the card can do at most (H200-SXM-141GB: 989.4 TFLOP/s)"),
        ("NVIDIA H200", 9.0, "below 1/100"),
        ("*H200*", 700.0, ""),
        ("*", 5000.0, "above what the card can do at most"),
        ("*", 700.0, ""),
        ("*Z999*", 5000.0, ""),
    ],
)
def test_an_absolute_rate_is_held_against_the_peak_of_the_cards_it_is_for(gpu: str, value: float, said: str) -> None:
    found = problems(criterion("r", "matmul", "throughput_bf16", "TFLOP/s", "at_least", value, gpu=gpu))
    assert (said in found[0]) if said else found == []


def test_fp64_is_held_against_the_tensor_rate_where_there_is_one() -> None:
    rate = criterion("r", "matmul", "throughput_fp64", "TFLOP/s", "at_least", 60.0, gpu="*H200*")
    assert problems(rate) == []
    assert "above" in problems(replace(rate, value=70.0))[0]
    assert "above" in problems(replace(rate, gpu="*T4*"))[0]


@pytest.mark.parametrize(
    ("metric", "unit", "value"),
    [
        ("spread", "ratio", 3.0),
        ("spread", "ratio", -0.1),
        ("spread", "ratio", float("nan")),
    ],
)
def test_a_ratio_is_between_0_and_1(metric: str, unit: str, value: float) -> None:
    assert problems(criterion("r", "matmul", metric, unit, "at_most", value))


@pytest.mark.parametrize(
    ("metric", "unit", "value"), [("power", "W", 700000.0), ("temperature", "celsius", 8700), ("busy", "percent", 900)]
)
def test_milliwatts_and_their_like_are_refused(metric: str, unit: str, value: float) -> None:
    assert "outside" in problems(criterion("r", "hbm", metric, unit, "at_most", value))[0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"metric": "os_id", "unit": "text", "value": "ubuntu", "rule": "at_least"},
            'rule "at_least" makes no sense for text',
        ),
        ({"metric": "gpu_count", "unit": "count", "value": "8"}, "is not in count"),
        ({"metric": "gpu_count", "unit": "count", "value": 8.5}, "is not in count"),
        ({"metric": "gpu_count", "unit": "count", "value": True}, "is not in count"),
        ({"metric": "gpu_count", "unit": "count", "value": (1, 2)}, "takes one value"),
        ({"metric": "gpu_count", "unit": "count", "value": 3, "rule": "between"}, "takes a list of two"),
        ({"metric": "gpu_count", "unit": "count", "value": (4, 1), "rule": "between"}, "upside down"),
        ({"metric": "gpu_count", "unit": "count", "value": 3, "rule": "one_of"}, "takes a list of choices"),
        ({"metric": "gpu_count", "unit": "count", "value": -1}, "outside"),
        (
            {"metric": "gpu_count", "unit": "count", "value": Fraction(0.5, "power_limit")},
            "is in W, the criterion in count",
        ),
        ({"metric": "gpu_count", "unit": "count", "value": 1, "because": " "}, '"because" is empty'),
        ({"metric": "gpu_count", "unit": "count", "value": 1, "source": ""}, '"source" is empty'),
    ],
)
def test_a_value_that_does_not_fit_unit_or_rule_is_refused(changes: dict[str, Any], said: str) -> None:
    base = criterion("c", "system", "gpu_count", "count", "at_least", 1)
    assert problems(base) == []
    assert said in problems(replace(base, **changes))[0]


def test_a_bool_takes_equals_alone() -> None:
    one = criterion("a", "matmul", "known_answer", "bool", "equals", True)
    assert problems(one) == []
    assert problems(replace(one, rule="at_least"))
    assert problems(replace(one, value=1))


def test_a_problem_names_check_and_id() -> None:
    one = criterion("mine", "system", "gpu_count", "MiB", "at_least", 1)
    assert lint([one], CATALOGUE)[0][0] == "system.mine"


def test_int8_is_in_tera_operations() -> None:
    one = criterion("i", "hbm", "throughput_int8", "TOP/s", "at_least", Fraction(0.4, "peak:int8_tensor"))
    assert problems(one) == []
    assert problems(replace(one, value=Fraction(0.4, "peak:fp8_tensor")))
