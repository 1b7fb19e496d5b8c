"""Which of four recorded H200s may be loaded, what stands in the way of the others, and what is read beside a load."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from tests.doubles import error, h200, result
from tests.doubles.replay_pynvml import Answer
from validators import check
from validators.check import Metric, Skip
from validators.probes import gpu_load, load_trace, nvml, pci, pythons
from validators.probes.load_trace import Sampler, Trace
from validators.schema import (
    ERROR,
    HOST,
    SKIPPED,
    CheckInfo,
    CheckRequest,
    Measurement,
    Outcome,
    Plan,
    Progress,
    Record,
    Sample,
)

INFO = CheckInfo("load", "", "", (), 2, 1.0, 60.0, True, (*gpu_load.UNDER_LOAD, Metric("ran", "bool", "")), (), ())
MIG = result([1, 1])
PROHIBITED, EXCLUSIVE = result(2), result(3)
TRAINING = result([{"struct": {"pid": 4242, "usedGpuMemory": 1 << 30}}])
NAMED = {"nvmlSystemGetProcessName(4242)": result("/usr/bin/python3 train.py")}
BUSY = {"nvmlDeviceGetUtilizationRates(*)": result({"struct": {"gpu": 99, "memory": 50}})}

Lay = Callable[[Mapping[str, Answer]], None]


@pytest.fixture
def lay(monkeypatch: pytest.MonkeyPatch) -> Lay:
    """Faults over the recorded host with four H200s."""
    monkeypatch.setattr(pci, "nvidia_devices", lambda _files: None)
    monkeypatch.setattr(pythons, "find_python", lambda _plan, _framework: sys.executable)

    def over(faults: Mapping[str, Answer]) -> None:
        monkeypatch.setitem(sys.modules, "pynvml", h200(4, {**faults, **NAMED, **BUSY}))

    over({})
    return over


def context(records: list[Record], *, share: bool = False) -> check.Context:
    asked = CheckRequest("load", 60.0)
    return check.Context(INFO, asked, Plan((asked,), 60.0, share=share), records.append)


def loadable(*, share: bool = False) -> tuple[list[int], dict[int | str, Outcome]]:
    """The numbers of the GPUs that are given to a check, and how it ended for the others and for the host."""
    records: list[Record] = []
    ctx = context(records, share=share)
    given: list[int] = []
    with ctx.subject(HOST), gpu_load.ready(ctx, "torch") as (_python, gpus):
        given += [gpu.index for gpu in gpus]
    names: dict[str, int | str] = {uuid: number for number, uuid in enumerate(uuids())}
    return given, {names.get(one.subject, one.subject): one for one in records if isinstance(one, Outcome)}


def uuids() -> list[str]:
    return [h200(4).calls[f"nvmlDeviceGetUUID(gpu{number})"]["result"] for number in range(4)]


def test_all_four_may_be_loaded_where_nothing_stands_in_the_way(lay: Lay) -> None:
    given, ends = loadable()
    assert given == [0, 1, 2, 3]
    assert set(ends) == {HOST}


def test_a_card_in_use_is_refused_with_the_process_and_the_others_are_loaded(lay: Lay) -> None:
    lay({"nvmlDeviceGetComputeRunningProcesses(gpu2)": TRAINING})
    given, ends = loadable()
    assert given == [0, 1, 3]
    assert ends[2].status == ERROR
    assert "in use by process 4242 (/usr/bin/python3 train.py)" in ends[2].detail
    assert "--share" in ends[2].detail


def test_whoever_insists_shares_the_card(lay: Lay) -> None:
    lay({"nvmlDeviceGetComputeRunningProcesses(*)": TRAINING})
    given, ends = loadable(share=True)
    assert given == [0, 1, 2, 3]
    assert set(ends) == {HOST}


def test_a_process_whose_name_nobody_may_know_is_named_by_its_number(lay: Lay) -> None:
    lay({"nvmlDeviceGetComputeRunningProcesses(gpu0)": TRAINING, "nvmlSystemGetProcessName(*)": error(4)})
    assert "in use by process 4242;" in loadable()[1][0].detail


def test_a_card_with_mig_on_is_skipped_and_where_all_are_the_host_is(lay: Lay) -> None:
    lay({"nvmlDeviceGetMigMode(gpu1)": MIG})
    given, ends = loadable()
    assert given == [0, 2, 3]
    assert ends[1].status == SKIPPED
    assert "MIG is on" in ends[1].detail
    assert ends[HOST].status == "ran"
    lay({"nvmlDeviceGetMigMode(*)": MIG})
    given, ends = loadable()
    assert given == []
    assert [ends[one].status for one in (0, 1, 2, 3, HOST)] == [SKIPPED] * 5
    assert "no GPU of this host may be loaded: MIG is on" in ends[HOST].detail


def test_a_lost_card_beside_cards_with_mig_is_not_hidden_by_a_skip(lay: Lay) -> None:
    lay({"nvmlDeviceGetMigMode(*)": MIG, "nvmlDeviceGetHandleByIndex(3)": error(nvml.GPU_IS_LOST)})
    ends = loadable()[1]
    assert ends[HOST].status == ERROR
    assert "GPU 3" in ends[HOST].detail
    assert ends[0].status == SKIPPED


def test_a_prohibited_card_is_an_error_that_says_how_to_allow_it(lay: Lay) -> None:
    lay({"nvmlDeviceGetComputeMode(gpu0)": PROHIBITED})
    given, ends = loadable(share=True)
    assert given == [1, 2, 3]
    assert ends[0].status == ERROR
    assert "nvidia-smi -c DEFAULT" in ends[0].detail


def test_an_exclusive_card_is_loaded_unless_somebody_has_it_and_then_no_insisting_helps(lay: Lay) -> None:
    lay({"nvmlDeviceGetComputeMode(*)": EXCLUSIVE, "nvmlDeviceGetComputeRunningProcesses(gpu3)": TRAINING})
    for share in (False, True):
        given, ends = loadable(share=share)
        assert given == [0, 1, 2]
        assert ends[3].status == ERROR
        assert "process 4242" in ends[3].detail
        assert "Exclusive" in ends[3].detail
        assert "--share" not in ends[3].detail


def test_where_one_is_prohibited_and_the_rest_has_mig_on_the_host_is_an_error(lay: Lay) -> None:
    lay({"nvmlDeviceGetComputeMode(gpu0)": PROHIBITED, "nvmlDeviceGetMigMode(gpu[123])": MIG})
    assert loadable()[1][HOST].status == ERROR


def test_a_lost_card_is_the_hosts_error_once_the_others_were_measured(lay: Lay) -> None:
    lay({"nvmlDeviceGetHandleByIndex(1)": error(nvml.GPU_IS_LOST)})
    given, ends = loadable()
    assert given == [0, 2, 3]
    assert ends[HOST].status == ERROR
    assert "GPU 1" in ends[HOST].detail


def test_a_host_without_a_card_is_skipped(lay: Lay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pci, "nvidia_devices", lambda _files: [])
    with pytest.raises(Skip, match="--device cpu"), gpu_load.ready(context([]), "torch"):
        pass


def held(lay: Lay, faults: Mapping[str, Answer], *readings: tuple[int, int]) -> object:
    """clock_held_low of the first GPU after readings of (clock, reasons)."""
    lay(faults)
    trace = Trace()
    for clock, reasons in readings:
        trace.add({"sm_clock": clock, "reasons": reasons, "utilisation": 100})
    records: list[Record] = []
    with nvml.session() as session:
        gpu_load.under_load(context(records), session.gpus()[0][0], trace)
    return next(one.value for one in records if isinstance(one, Measurement) and one.metric == "clock_held_low")


CAPPED = (1300, 0x4)


def test_a_locked_clock_is_told_though_the_power_limit_was_met_for_a_moment(lay: Lay) -> None:
    assert held(lay, {}, *[(1005, 0)] * 9, CAPPED) is True
    assert held(lay, {}, *[(1005, 0x2)] * 9, (1005, 0x6)) is True


def test_a_clock_that_power_heat_or_a_brake_holds_down_is_not_called_locked(lay: Lay) -> None:
    for reason in (0x4, 0x20, 0x40, 0x8, 0x80, 0x6):
        assert held(lay, {}, *[(1005, reason)] * 10) is False
    assert held(lay, {}, *[CAPPED] * 6, *[(1305, 0)] * 4) is False, "read between two reasons"


def test_a_reading_on_the_way_up_is_no_lock(lay: Lay) -> None:
    assert held(lay, {}, (345, 0), (900, 0), *[(1980, 0)] * 6) is False
    assert held(lay, {}, (345, 0), *[CAPPED] * 3) is False


def test_a_card_under_its_own_default_application_clock_was_locked_by_nobody(lay: Lay) -> None:
    k80 = {
        "nvmlDeviceGetMaxClockInfo(*)": result(875),
        "nvmlDeviceGetDefaultApplicationsClock(*)": result(562),
    }
    assert held(lay, k80, *[(562, 0x2)] * 8) is False
    assert held(lay, k80, *[(324, 0x2)] * 8) is True
    assert held(lay, {**k80, "nvmlDeviceGetDefaultApplicationsClock(*)": error(3)}, *[(562, 0x2)] * 8) is True


def test_no_answer_is_no_verdict_on_the_clock(lay: Lay) -> None:
    assert held(lay, {"nvmlDeviceGetMaxClockInfo(*)": error(3)}, *[(1980, 0)] * 4) is None
    assert held(lay, {"nvmlDeviceGetMaxClockInfo(*)": result(0)}, *[(1980, 0x2)] * 4) is False


def test_a_card_that_falls_off_ends_its_readings_and_nothing_else(lay: Lay) -> None:
    double = h200(4, BUSY)
    sys.modules["pynvml"] = double
    records: list[Record] = []
    ctx = context(records)
    with nvml.session() as session:
        first, second = session.gpus()[0][:2]

        def make(gpu: nvml.Gpu) -> Sampler:
            return Sampler(gpu, lambda t_s, values: ctx.sample(t_s, values, gpu.uuid), period_s=0.02)

        with gpu_load.watched(ctx, first, second, sampler=make) as watching:
            watching.forward(Progress("load", first.uuid, "load", 0.0))
            time.sleep(0.3)
            double.faults = {"nvmlDevice*(gpu0*)": error(nvml.GPU_IS_LOST), **BUSY}
            time.sleep(0.3)
    found = {(one.subject, one.metric): one.value for one in records if isinstance(one, Measurement)}
    assert found[first.uuid, "power_under_load"] is not None, "what was read until then stands"
    assert found[first.uuid, "clock_held_low"] is None
    times = {uuid: [one.t_s for one in records if isinstance(one, Sample) and one.subject == uuid] for uuid in uuids()}
    assert max(times[second.uuid]) > max(times[first.uuid]) + 0.1


def test_an_answer_that_the_binding_cannot_read_does_not_end_the_watch(lay: Lay) -> None:
    """Once in a while a field of another type, or of none, comes from a driver."""
    looked: list[Mapping[str, float]] = []
    answers: list[Any] = [{"a": 1}, ValueError("NVML: 0xDEAD"), {"a": 2}]

    def more(_gpu: nvml.Gpu) -> Mapping[str, float]:
        now = answers.pop(0) if answers else {"a": 3}
        if isinstance(now, Exception):
            raise now
        return dict(now)

    with nvml.session() as session:
        sampler = Sampler(
            session.gpus()[0][0], lambda _t, _v: None, period_s=0.01, more=more, look=lambda _t, one: looked.append(one)
        )
        sampler.start()
        time.sleep(0.3)
        trace = sampler.stop()
    assert [one.get("a") for one in looked[:3]] == [1, None, 2]
    assert trace.highest("a") == 3


def test_a_trace_of_days_stays_small_and_keeps_its_highest_and_its_middle() -> None:
    trace = Trace()
    for second in range(100_000):
        trace.add({"power": 9000.0 if second == 77_777 else second / 1000, "utilisation": 100})
    assert len(trace.series["power"].values) <= load_trace.KEPT
    assert trace.series["power"].seen == 100_000
    assert trace.highest("power") == 9000.0
    middle = trace.median("power")
    assert isinstance(middle, float)
    assert middle == pytest.approx(50.0, abs=0.2)
