"""The plan for a host: what is run, where, for how long."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from provision.bundle import Bundle, build_bundle
from provision.catalogue import load_catalogue
from provision.errors import BringupError, UsageError
from provision.hosts import Host
from provision.request import Choice, make_plan, narrowed, parse_duration, parse_params
from tests.unit.host_tree import context
from tests.unit.judging import CATALOGUE
from validators.schema import Plan, decode_plan, encode_catalogue, encode_plan


def planned(variables: dict[str, object] | None = None, **choice: Any) -> Plan:
    return make_plan(Host("gpu1", variables=variables or {}), CATALOGUE, Choice(**choice))


def names(plan: Plan) -> list[str]:
    return [request.name for request in plan.checks]


def test_by_default_every_check_up_to_level_2_is_planned_the_one_that_names_gpus_first() -> None:
    assert names(planned()) == ["compute_capability", "system", "matmul"]
    assert names(planned(level=1)) == ["compute_capability", "system"]


def test_compute_capability_is_always_planned() -> None:
    assert names(planned(only=("matmul",))) == ["compute_capability", "matmul"]


def test_a_check_can_be_left_out_but_not_the_one_that_names_gpus() -> None:
    assert names(planned(skip=("matmul",))) == ["compute_capability", "system"]
    with pytest.raises(UsageError, match="cannot be left out"):
        planned(skip=("compute_capability",))


@pytest.mark.parametrize(
    "choice",
    [{"only": ("matmull",)}, {"skip": ("matmull",)}, {"timeouts": {"matmull": 1.0}}, {"params": {"matmull": {}}}],
)
def test_an_unknown_check_is_an_error_with_a_guess(choice: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r'no check is named "matmull"; did you mean "matmul"\?'):
        planned(**choice)


def test_a_check_both_asked_for_and_left_out_is_an_error() -> None:
    with pytest.raises(UsageError, match="both asked for and left out"):
        planned(only=("matmul",), skip=("matmul",))


def test_host_variables_choose_too() -> None:
    assert names(planned({"bringup_only": "matmul"})) == ["compute_capability", "matmul"]
    assert names(planned({"bringup_skip": ["matmul", "system"]})) == ["compute_capability"]
    assert names(planned({"bringup_level": "1"})) == ["compute_capability", "system"]
    assert planned({"bringup_device": "cpu"}).device == "cpu"
    assert planned({"bringup_timeout_matmul": 7}).checks[-1].timeout_s == 7.0


def test_the_command_line_goes_before_host_variables() -> None:
    assert names(planned({"bringup_only": "system"}, only=("matmul",))) == ["compute_capability", "matmul"]
    assert planned({"bringup_timeout_matmul": 7}, timeouts={"matmul": 9.0}).checks[-1].timeout_s == 9.0
    assert names(planned({"bringup_level": 2}, level=1)) == ["compute_capability", "system"]


def test_what_a_hosts_variables_leave_out_is_said() -> None:
    host = Host("gpu1", variables={"bringup_skip": "matmul", "bringup_only": ["system"]})
    assert list(narrowed(host, Choice())) == [
        "gpu1: its bringup_only asks only for system.",
        "gpu1: its bringup_skip leaves out matmul.",
    ]
    assert list(narrowed(host, Choice(only=("system",)))) == ["gpu1: its bringup_skip leaves out matmul."]


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"bringup_level": "high"}, "host gpu1: bringup_level = 'high' is not a number"),
        ({"bringup_level": "nan"}, "bringup_level = nan is none of 1 to 4"),
        ({"bringup_level": 0}, "bringup_level = 0 is none of 1 to 4"),
        ({"bringup_only": 3}, "host gpu1: bringup_only = 3 is not a list of checks"),
        ({"bringup_device": "tpu"}, "neither gpu nor cpu"),
        ({"bringup_timeout_matmul": 0}, "cannot be meant"),
        ({"bringup_timeout_matmul": "nan"}, "cannot be meant"),
        ({"bringup_torch_python": "python3"}, "is not an absolute path"),
        ({"bringup_torch_python": ["/a"]}, "is not an absolute path"),
    ],
)
def test_a_host_variable_that_cannot_be_meant_names_host_and_variable(variables: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        planned(variables)
    assert said in caught.value.message


def test_interpreters_of_frameworks_come_from_the_inventory() -> None:
    plan = planned({"bringup_torch_python": "/opt/t/bin/python3", "bringup_jax_python": ""})
    assert plan.pythons == {"torch": "/opt/t/bin/python3"}


def test_deadlines_are_those_of_the_checks_with_something_to_spare_or_the_users() -> None:
    assert planned().deadline_s > 20 + 20 + 120
    plan = planned(timeout_s=50.0)
    assert plan.deadline_s == 50.0
    assert max(request.timeout_s for request in plan.checks) == 50.0


@pytest.mark.parametrize("seconds", [float("inf"), float("nan"), -1.0, 1e9])
def test_a_deadline_that_cannot_be_meant_is_an_error(seconds: float) -> None:
    with pytest.raises(UsageError, match="cannot be meant"):
        make_plan(Host("a"), CATALOGUE, Choice(timeout_s=seconds))


def test_a_plan_goes_over_the_wire_as_it_is() -> None:
    plan = planned({"bringup_torch_python": "/opt/t/bin/python3"}, params={"matmul": {"seconds": 5}})
    assert decode_plan(encode_plan(plan)) == plan
    assert plan.checks[-1].params == {"seconds": 5}


def test_params_are_read_as_what_they_look_like() -> None:
    read = parse_params(
        ["matmul.seconds=5", "matmul.sizes=4096,8192", "matmul.fp8=false", "a.b=c=d", "a.x=1.5", "a.n=nan"]
    )
    assert read == {
        "matmul": {"seconds": 5, "sizes": "4096,8192", "fp8": False},
        "a": {"b": "c=d", "x": 1.5, "n": "nan"},
    }


@pytest.mark.parametrize("text", ["matmul", "matmul=3", ".x=3", "matmul.=3", ""])
def test_a_setting_that_is_not_check_key_value_is_an_error(text: str) -> None:
    with pytest.raises(UsageError, match="is not CHECK"):
        parse_params([text])


def test_the_catalogue_is_asked_of_the_bundle_once_and_kept_by_its_hash(tmp_path: Path) -> None:
    bundle = build_bundle()
    first = load_catalogue(bundle, tmp_path)
    assert {info.name for info in first} >= {"system", "software", "compute_capability", "gpu_health", "matmul"}
    deaf = Bundle(b"no bundle at all", bundle.sha256)  # it would not answer: the kept answer is used
    assert load_catalogue(deaf, tmp_path) == first


def test_a_kept_catalogue_that_is_damaged_is_asked_again(tmp_path: Path) -> None:
    bundle = build_bundle()
    first = load_catalogue(bundle, tmp_path)
    (kept,) = tmp_path.iterdir()
    kept.write_text(kept.read_text(encoding="utf-8")[:100], encoding="utf-8")
    assert load_catalogue(bundle, tmp_path) == first
    assert kept.read_text(encoding="utf-8").strip() == encode_catalogue(first).strip()


def test_a_bundle_that_does_not_describe_itself_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(BringupError, match="does not describe itself: exit status 1"):
        load_catalogue(Bundle(b"raise SystemExit('broken')", "0" * 64), tmp_path)
    with pytest.raises(BringupError, match="not a catalogue of checks"):
        load_catalogue(Bundle(b"print('[{}]')", "1" * 64), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert load_catalogue(build_bundle(), tmp_path / "file")


LOADED = (
    *CATALOGUE,
    replace(CATALOGUE[-1], name="cifar", level=3, data=("cifar10",)),
    replace(CATALOGUE[-1], name="soak", level=4, timeout_s=300.0, params=("duration_s",), data=()),
)


def loaded(variables: dict[str, object] | None = None, **choice: Any) -> Plan:
    return make_plan(Host("gpu1", variables=variables or {}), LOADED, Choice(**choice))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("24h", 86400), ("90m", 5400), ("3600", 3600), ("45s", 45), ("1h30m", 5400), ("2D", 172800), ("0.5h", 1800)],
)
def test_a_duration_is_read_as_people_write_it(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "-5", "5 parsecs", "h", "7d", "nan", "inf", "1e3", "30m1h"])
def test_what_is_no_duration_is_an_error_with_examples(text: str) -> None:
    with pytest.raises(UsageError, match="is not a duration") as caught:
        parse_duration(text)
    assert "24h, 90m" in caught.value.hint


def test_the_soaks_timeout_follows_its_duration() -> None:
    plan = loaded(level=4, duration_s=86400.0)
    assert plan.checks[-1].params == {"duration_s": 86400.0}
    assert plan.checks[-1].timeout_s == 86700.0
    assert plan.deadline_s > 86700.0
    assert loaded(level=4).checks[-1] == replace(plan.checks[-1], params={}, timeout_s=300.0)
    assert loaded(level=4, params={"soak": {"duration_s": 7200}}).checks[-1].timeout_s == 7500.0


@pytest.mark.parametrize(
    ("choice", "variables", "said"),
    [
        ({"duration_s": 60.0}, {}, "the soak, which is not asked for"),
        ({"duration_s": 60.0, "only": ("matmul",)}, {}, "the soak, which is not asked for"),
        ({"duration_s": 60.0, "level": 4, "params": {"soak": {"duration_s": 1}}}, {}, "given twice"),
        ({"duration_s": 3600.0, "level": 4, "timeout_s": 600.0}, {}, "ends the soak before"),
        ({"duration_s": 3600.0, "level": 4}, {"bringup_timeout_soak": 60}, "ends the soak before"),
        ({"level": 4, "params": {"soak": {"duration_s": "long"}}}, {}, "not a number of seconds"),
    ],
)
def test_a_duration_that_nothing_would_last_is_an_error(
    choice: dict[str, Any], variables: dict[str, object], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        loaded(variables, **choice)


def test_a_host_whose_own_variables_leave_the_soak_out_stops_nobody() -> None:
    assert "soak" not in names(loaded({"bringup_skip": "soak"}, level=4, duration_s=60.0))


def test_share_is_asked_of_the_host_only_where_the_user_insists() -> None:
    assert (loaded().share, loaded(share=True).share) == (False, True)


def test_a_hosts_own_data_is_planned_where_a_check_trains_on_it() -> None:
    variables: dict[str, object] = {
        "bringup_data_cifar10": "/srv/cifar",
        "bringup_data_url_cifar10": "https://mirror.example/data",
        "bringup_data_mnist": "/srv/mnist",
    }
    expected = {"cifar10": "/srv/cifar", "cifar10_url": "https://mirror.example/data"}
    assert decode_plan(encode_plan(loaded(variables, level=3))).data == expected
    assert loaded(variables, level=2).data == {}


@pytest.mark.parametrize(
    "variables",
    [
        {"bringup_data_cifar10": "data"},
        {"bringup_data_cifar10": ["/data"]},
        {"bringup_data_cifar10": "/data\0"},
        {"bringup_data_url_cifar10": "file:///etc"},
        {"bringup_data_url_cifar10": "https://me:secret@mirror.example/"},
        {"bringup_data_url_cifar10": 7},
    ],
)
def test_a_place_for_data_that_cannot_be_meant_is_an_error(variables: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="bringup_data_") as caught:
        loaded(variables, level=3)
    assert "secret" not in caught.value.message


@pytest.mark.parametrize(("text", "meant"), [("true", True), ("false", False), ("1", True), ("0", False)])
def test_what_is_true_or_false_is_taken_so_and_no_is_not_yes(text: str, meant: bool) -> None:
    def flag(words: str) -> bool:
        params = parse_params([f"matmul.parallel={words}"])["matmul"]
        return context("matmul", None, **params)[0].flag("parallel", True)

    assert flag(text) is meant
    for wrong in ("no", "off", "2"):
        with pytest.raises(ValueError, match="neither true nor false"):
            flag(wrong)
