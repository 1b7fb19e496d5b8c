"""XIDs are found in real wordings, and each has a meaning, a severity and a next step."""

from __future__ import annotations

import tomllib
from importlib.resources import files

import pytest

from provision.criteria.xid import meaning, meaning_of
from tests.unit.nvml_host import LOGS
from validators.probes import xid
from validators.probes.kernel_log import Line, parse_text
from validators.schema import Measurement

LINES = parse_text((LOGS / "xids.txt").read_text(), "dmesg").lines


def test_each_wording_is_found_with_address_and_count() -> None:
    events = {event.number: event for event in xid.xids(LINES)}
    assert sorted(events) == [13, 31, 48, 63, 79, 94, 109, 119, 149]
    assert {event.pci_address for event in events.values()} == {"0000:9b:00.0"}
    assert events[94].count == 2  # with and without a MIG instance
    assert events[13].count == 2
    assert (events[13].first_s, events[13].last_s) == (830.000001, 830.000002)
    assert events[79].line.endswith("GPU has fallen off the bus.")


def test_an_sxid_is_no_xid() -> None:
    (event,) = xid.sxids(LINES)
    assert (event.pci_address, event.number) == ("0000:05:00.0", 12028)
    assert 12028 not in {one.number for one in xid.xids(LINES)}


def test_a_gpu_that_did_not_start_is_named_once() -> None:
    assert list(xid.start_failures(LINES)) == ["0001:00:00.0"]


@pytest.mark.parametrize(
    "text",
    [
        "NVRM: Xid (PCI:0000:9b:00): garbled",
        "NVRM: Xid 79",
        "audit: user typed Xid (PCI:0000:9b:00): 79",
        "NVRM: Xid (PCI:): 79",
        "NVRM: Xid (PCI:0000:9b:00): 123456789, x",
    ],
)
def test_what_is_not_an_xid_is_none(text: str) -> None:
    assert xid.xids([Line(1.0, text)]) == ()


def test_a_log_full_of_different_numbers_stays_bounded() -> None:
    lines = [Line(1.0, f"NVRM: Xid (PCI:0000:9b:00): {number}, x") for number in range(5000)]
    assert len(xid.xids(lines)) == xid.MAX_KINDS


@pytest.mark.parametrize(
    ("number", "severity", "words", "advice"),
    [
        (79, "FAIL", "GPU has fallen off the bus", "power the machine off and on"),
        (48, "FAIL", "Double Bit ECC Error", "row_remap_failed"),
        (63, "WARN", "GPU memory remapping event", "reset the GPU"),
        (64, "FAIL", "GPU memory remapping failure", "return the card"),
        (94, "WARN", "Contained memory error", "restart that"),
        (95, "FAIL", "Uncontained memory error", "reset the GPU"),
        (13, "WARN", "Graphics Engine Exception", "compute-sanitizer"),
        (119, "FAIL", "GSP RPC Timeout", "GSP"),
        (154, "WARN", "GPU Recovery Action Changed", "recovery_action"),
        (65000, "FAIL", "not in NVIDIA's catalogue", "docs.nvidia.com"),
    ],
)
def test_an_xid_has_a_meaning_and_a_next_step(number: int, severity: str, words: str, advice: str) -> None:
    found = meaning(number)
    assert found.severity == severity
    assert words in found.text
    assert advice in found.advice


def test_every_entry_of_the_table_can_be_told() -> None:
    table = tomllib.loads((files("provision.criteria") / "xid.toml").read_text())
    assert "docs.nvidia.com" in table["source"]
    assert len(table["xid"]) > 100
    for number in table["xid"]:
        found = meaning(int(number))
        assert found.text
        assert found.advice
        assert found.severity in ("FAIL", "WARN")


@pytest.mark.parametrize("value", ["none", "", "79; rm -rf", "\u0663", "999999", "-1"])
def test_a_value_that_is_no_xid_has_no_meaning(value: str) -> None:
    assert meaning_of(Measurement("gpu_health", "GPU-1", "xid", value, "text")) is None


def test_only_the_xids_of_gpu_health_are_explained() -> None:
    assert meaning_of(Measurement("gpu_health", "GPU-1", "sxid", "79", "text")) is None
    assert meaning_of(Measurement("other", "GPU-1", "xid", "79", "text")) is None
    found = meaning_of(Measurement("gpu_health", "GPU-1", "xid", "79", "text"))
    assert found is not None
    assert found.action == "RESTART_BM"
