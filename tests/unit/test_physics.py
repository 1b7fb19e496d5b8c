"""Figures of cards: from the table by name, else derived from what NVML says, else not known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from provision.criteria import physics
from provision.criteria.physics import GpuFacts, cards_matching, figure, name_matches

H200 = GpuFacts("NVIDIA H200", "9.0", 132, 16896, 1980, 3201, 6016, 700.0)
"""As recorded on a real H200, driver 580.159.04."""

UNNAMED = replace(H200, name="NVIDIA H20Z")


def value(of: str, gpu: GpuFacts) -> float:
    found = figure(of, gpu)
    assert found is not None
    return found[0]


def test_a_card_of_the_table_has_the_tables_figures_with_their_source() -> None:
    found = figure("peak:bf16_tensor", H200)
    assert found is not None
    assert found[0] == 989.4
    assert "H200-SXM-141GB" in found[1]
    assert "confidence high" in found[1]


def test_the_h200s_bandwidth_follows_from_its_bus_and_its_clock() -> None:
    assert value("memory_bandwidth", UNNAMED) == pytest.approx(4814, abs=1)
    assert value("memory_bandwidth", UNNAMED) == pytest.approx(value("memory_bandwidth", H200), rel=0.01)


def test_derived_peaks_come_near_the_tables_and_never_ask_for_less() -> None:
    for of in physics.FIGURES:
        assert value(of, H200) * 0.998 <= value(of, UNNAMED) <= value(of, H200) * 1.09, of


@pytest.mark.parametrize(
    ("name", "capability", "sms", "clock"),
    [
        ("Tesla T4", "7.5", 40, 1590),
        ("Tesla V100-SXM2-16GB", "7.0", 80, 1530),
        ("NVIDIA A100-SXM4-80GB", "8.0", 108, 1410),
        ("NVIDIA L4", "8.9", 58, 2040),
        ("NVIDIA L40S", "8.9", 142, 2520),
        ("NVIDIA GeForce RTX 3090", "8.6", 82, 1695),
        ("NVIDIA GeForce RTX 4090", "8.9", 128, 2520),
        ("NVIDIA GeForce RTX 5090", "12.0", 170, 2407),
        ("NVIDIA GeForce GTX 1080 Ti", "6.1", 28, 1582),
    ],
)
def test_the_rates_of_an_architecture_agree_with_the_data_sheets_of_its_cards(
    name: str, capability: str, sms: int, clock: int
) -> None:
    card = physics.card_named(name)
    assert card is not None
    facts = GpuFacts(name, capability, sms, None, clock)
    derived = {of: physics._peak(of.removeprefix("peak:"), facts) for of in card.figures if of.startswith("peak:")}
    compared = {of: found[0] for of, found in derived.items() if found is not None}
    assert compared
    for of, peak in compared.items():
        assert peak == pytest.approx(card.figures[of], rel=0.035), of


def test_an_unknown_architecture_has_no_tensor_peak_and_so_is_not_judged() -> None:
    future = replace(UNNAMED, capability="13.7")
    assert figure("peak:bf16_tensor", future) is None
    assert value("peak:fp32", future) == pytest.approx(66.9, rel=0.01)  # from its own cores and clock


def test_a_rate_that_depends_on_the_card_is_not_guessed() -> None:
    assert figure("peak:bf16_tensor", GpuFacts("NVIDIA RTX Z6000", "8.6", 84, None, 1800)) is None
    assert figure("peak:bf16_tensor", GpuFacts("NVIDIA GeForce RTX 3099", "8.6", 84, None, 1800)) is not None


def test_a_unit_that_the_architecture_does_not_have_has_no_peak() -> None:
    assert figure("peak:fp8_tensor", replace(UNNAMED, name="x", capability="8.0")) is None
    assert figure("peak:bf16_tensor", GpuFacts("Tesla T4", "7.5", 40, None, 1590)) is None


def test_fp64_without_tensor_cores_is_held_against_the_vector_rate() -> None:
    ada = GpuFacts("NVIDIA L4", "8.9", 58, None, 2040)
    assert value("peak:fp64_tensor", ada) == pytest.approx(0.47, abs=0.03)


@pytest.mark.parametrize(
    "gpu",
    [
        GpuFacts(),
        replace(UNNAMED, sm_clock_max=None),
        replace(UNNAMED, sm_clock_max=0),
        replace(UNNAMED, sm_count=None),
        replace(UNNAMED, sm_count=-1),
        replace(UNNAMED, sm_clock_max=float("nan")),
        replace(UNNAMED, sm_clock_max=float("inf")),
    ],
)
def test_facts_that_are_missing_or_impossible_give_no_figure(gpu: GpuFacts) -> None:
    assert figure("peak:bf16_tensor", gpu) is None


def test_bandwidth_and_power_need_their_facts() -> None:
    assert figure("memory_bandwidth", replace(UNNAMED, memory_bus_width=None)) is None
    assert figure("power_limit", replace(UNNAMED, power_limit_default=None)) is None
    assert value("power_limit", replace(UNNAMED, power_limit_default=600.0)) == 600.0
    assert figure("peak:fp3", H200) is None


def test_an_entry_of_low_confidence_is_never_used(monkeypatch: pytest.MonkeyPatch) -> None:
    body = physics.tomllib.loads((Path(physics.__file__).parent / "gpus.toml").read_text(encoding="utf-8"))
    for entry in (*body["gpu"], *body["architecture"]):
        entry["confidence"] = "low"
    for cached in (physics._data, physics._cards, physics._by_name, physics._architectures):
        cached.cache_clear()
    with monkeypatch.context() as patched:
        patched.setattr(physics.tomllib, "loads", lambda _: body)
        assert figure("peak:bf16_tensor", H200) is None
        assert cards_matching("*") == ()
    for cached in (physics._data, physics._cards, physics._by_name, physics._architectures):
        cached.cache_clear()
    assert figure("peak:bf16_tensor", H200) is not None


def test_every_entry_of_the_table_states_source_and_confidence() -> None:
    body = physics._data()
    for entry in (*body["gpu"], *body["architecture"]):
        assert entry["confidence"] in ("high", "medium", "low")
        assert entry["source"]
        assert all(isinstance(one, str) and one for one in entry["source"])


def test_older_drivers_leave_the_vendor_out_of_a_name() -> None:
    assert physics.card_named("A100-SXM4-40GB") is physics.card_named("NVIDIA A100-SXM4-40GB")
    assert name_matches("NVIDIA H200", "H200*")
    assert not name_matches("NVIDIA H200", "H100*")
    assert physics.card_named("NVIDIA H200 NVL") is None  # another card
