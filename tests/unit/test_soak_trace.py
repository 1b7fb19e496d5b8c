"""The soak's trace: throttle reasons and new XIDs in every sample, and nothing where they cannot be read."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from tests.doubles import NOT_SUPPORTED, error, result
from tests.unit.load_check import measured, uuids
from tests.unit.test_soak import four_gpus, run
from validators.probes import kernel_log, nvml, soak_limits
from validators.probes.nvml import Absent
from validators.probes.soak_limits import Xids
from validators.schema import UNKNOWN, Record, Sample

__all__ = ["four_gpus"]  # a fixture
Lay = Callable[[Mapping[str, Any]], None]
HERE, THERE = "0000:0f:00.0", "0000:10:00.0"


def traced(records: list[Record], uuid: str) -> list[Mapping[str, float]]:
    """What NVML and the kernel's log gave of a GPU, in order of time."""
    samples = [one for one in records if isinstance(one, Sample) and one.subject == uuid]
    return [one.values for one in sorted(samples, key=lambda one: one.t_s) if "products_wrong" not in one.values]


def line(t_s: float, number: int, address: str = HERE) -> kernel_log.Line:
    return kernel_log.Line(t_s, f"NVRM: Xid (PCI:{address[:-2]}): {number}, pid=1, name=x, Ch 1")


class Log:
    """A kernel's log that a test fills; None cannot be read. Counts how often it is asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *lines: kernel_log.Line) -> None:
        self.lines: tuple[kernel_log.Line, ...] | None = lines
        self.asked = 0
        self.source = "kmsg"
        monkeypatch.setattr(kernel_log, "read", self.read)

    def read(self) -> kernel_log.KernelLog:
        self.asked += 1
        if self.lines is None:
            raise kernel_log.LogUnreadable("/dev/kmsg: Operation not permitted")
        return kernel_log.KernelLog(self.lines, True, self.source)


def addresses() -> list[str]:
    with nvml.session() as session:
        return [str(gpu.pci_address()) for gpu in session.gpus()[0]]


def test_throttle_reasons_are_in_every_sample_as_nvml_s_bit_mask(four_gpus: Lay) -> None:
    four_gpus(
        {
            "nvmlDeviceGetCurrentClocksEventReasons(gpu0)": result(0x4 | 0x20),
            "nvmlDeviceGetCurrentClocksEventReasons(gpu1)": result(0),
            "nvmlDeviceGetCurrentClocksEventReasons(gpu2)": error(NOT_SUPPORTED),
        }
    )
    records = run(duration_s=1.5)
    capped, free, blind = (
        [one for one in traced(records, uuid) if "sm_clock" in one] for uuid in uuids()[:3]
    )  # the last sample of each is of XIDs alone
    assert capped
    assert {one.get("throttle_reasons") for one in capped} == {0x24}
    assert {one.get("throttle_reasons") for one in free} == {0}
    assert blind
    assert not any("throttle_reasons" in one for one in blind), "what cannot be read is no 0"
    others = {"sm_clock", "power", "temperature", "memory_temperature", "ecc_uncorrected", "pcie_replays"}
    assert others <= set(capped[0])


def test_xids_that_come_meanwhile_are_in_the_trace_of_their_gpu(
    four_gpus: Lay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soak_limits, "XIDS_EVERY_S", 0.2)
    hit = addresses()[0]
    log = Log(monkeypatch, line(5.0, 31, hit))
    timer = threading.Timer(1.5, lambda: setattr(log, "lines", (line(5.0, 31, hit), line(9.0, 79, hit))))
    timer.start()
    records = run(duration_s=4.0)
    timer.join()
    counts = [one["xids"] for one in traced(records, uuids()[0])]
    assert (counts[0], counts[-1]) == (0, 1), "the one from before the load is not new"
    assert counts == sorted(counts)
    assert 1 in counts[:-1], "it is seen while the load runs"
    assert {one["xids"] for one in traced(records, uuids()[1])} == {0}
    assert measured(records, uuids()[0])["xids_during"].value == 1
    assert log.asked < 40, "one reading for all GPUs, and one each at the end"


def test_a_load_too_short_for_a_second_reading_ends_its_trace_with_the_xids(
    four_gpus: Lay, monkeypatch: pytest.MonkeyPatch
) -> None:
    hit = addresses()[0]
    log = Log(monkeypatch)
    answers = itertools.chain([()], itertools.repeat((line(9.0, 79, hit),)))
    read = log.read
    monkeypatch.setattr(kernel_log, "read", lambda: setattr(log, "lines", next(answers)) or read())
    counts = [one["xids"] for one in traced(run(duration_s=1.5), uuids()[0])]
    assert (counts[0], counts[-1]) == (0, 1)
    assert log.asked == 5, "at the beginning, and at each GPU's end"


def test_a_log_that_cannot_be_read_gives_no_zero(four_gpus: Lay, monkeypatch: pytest.MonkeyPatch) -> None:
    Log(monkeypatch).lines = None
    records = run(duration_s=0.5)
    assert traced(records, uuids()[0])
    assert not any("xids" in one for one in traced(records, uuids()[0]))
    found = measured(records, uuids()[0])["xids_during"]
    assert (found.value, found.absence) == (None, UNKNOWN)


def test_xids_are_added_up_though_the_log_forgets(monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log(monkeypatch, line(1.0, 31))
    xids = Xids()
    assert (xids.count(HERE), xids.count(THERE)) == (0, 0)
    log.lines = (line(1.0, 31), line(2.0, 31), line(3.0, 79), line(3.5, 48, THERE))
    xids.read()
    log.lines = (line(4.0, 31),)  # the ring was overwritten
    xids.read()
    xids.read()
    assert (xids.count(HERE), xids.count(THERE)) == (3, 1)
    found = xids.of(HERE)
    assert not isinstance(found, Absent)
    assert [(one.number, one.count, one.last_s) for one in found] == [(31, 2, 4.0), (79, 1, 3.0)]


def test_a_log_that_becomes_unreadable_is_no_zero_and_takes_back_no_xid(monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log(monkeypatch)
    xids = Xids()
    log.lines = (line(1.0, 79),)
    xids.read()
    log.lines = None
    xids.read()
    assert xids.count(HERE) == 1
    assert isinstance(xids.count(THERE), Absent)
    log.lines = ()
    xids.read()
    assert xids.count(THERE) == 0


def test_a_log_that_was_unreadable_at_the_beginning_says_nothing_of_what_is_new(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = Log(monkeypatch)
    log.lines = None
    xids = Xids()
    log.lines = (line(1.0, 79),)
    xids.read()
    assert isinstance(xids.count(HERE), Absent)
    absent = Absent(UNKNOWN, "GPU is lost")
    assert xids.count(absent) is absent


def test_a_log_that_is_slow_to_read_is_read_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    clock = itertools.count(0.0, 5.0)  # each reading takes five seconds
    Log(monkeypatch)
    xids = Xids()
    monkeypatch.setattr(soak_limits.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(xids._end, "wait", lambda wait_s: waits.append(wait_s) or len(waits) > 2)
    xids._run()
    assert waits == [60.0, pytest.approx(300.0), pytest.approx(300.0)]


def test_a_line_whose_stamp_is_the_journals_is_not_new(monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log(monkeypatch, line(10.0, 79))
    xids = Xids()
    log.source, log.lines = "journalctl", (line(10.4, 79),)  # the ring has wrapped; the journal stamps on receipt
    xids.read()
    assert xids.count(HERE) == 0
    log.lines = (line(10.4, 79), line(20.0, 79))
    xids.read()
    assert xids.count(HERE) == 1


def test_an_older_reading_that_comes_late_counts_nothing_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log(monkeypatch, line(1.0, 31))
    xids = Xids()
    newest = (line(1.0, 31), line(2.0, 79))
    for log.lines in (newest, newest[:1], newest):  # another GPU's thread had read before the XID came
        xids.read()
    assert xids.count(HERE) == 1
