"""The check of links on four recorded H200s: what NVML says of the pairs, what is judged, and who is named."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from provision.report.model import Verdict
from tests.doubles import h200
from tests.unit import load_check
from tests.unit.load_check import outcomes, uuids
from validators import check
from validators.checks import links as links_check
from validators.probes import nvml, pci, peers, pythons, ranks, workload
from validators.schema import (
    ERROR,
    HOST,
    NOT_APPLICABLE,
    RAN,
    SKIPPED,
    CheckRequest,
    Measurement,
    Plan,
    Record,
    Scalar,
    encode,
)

INFO = check.load("links").info
NVSWITCH: dict[str, Any] = {
    "nvmlDeviceGetP2PStatus(*)": {"result": 0},
    "nvmlDeviceGetNvLinkRemoteDeviceType(*)": {"result": 2},
}
PCIE: dict[str, Any] = {
    "nvmlDeviceGetP2PStatus(*)": {"result": 5},
    "nvmlDeviceGetNvLinkState(*)": {"error": nvml.NOT_SUPPORTED},
    "nvmlDeviceGetTopologyCommonAncestor(gpu0,gpu1)": {"result": 10},
    "nvmlDeviceGetTopologyCommonAncestor(gpu1,gpu0)": {"result": 10},
    "nvmlDeviceGetTopologyCommonAncestor(gpu2,gpu3)": {"error": nvml.NOT_SUPPORTED},
    "nvmlDeviceGetTopologyCommonAncestor(*)": {"result": 50},
}
Lay = Callable[..., None]


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Lay:
    """A host with recorded H200s."""

    def lay(faults: Mapping[str, Any] = NVSWITCH, count: int = 4) -> None:
        monkeypatch.setitem(sys.modules, "pynvml", h200(count, dict(faults)))

    monkeypatch.setattr(pci, "nvidia_devices", lambda _files: None)
    monkeypatch.setattr(pythons, "find_python", lambda _plan, _framework: sys.executable)
    lay()
    return lay


class Machine:
    """Stands in for both workloads. `dead`: GPUs that break every job; `slow`: (a, b) -> rate; `bad`: wrong bytes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.dead: set[str] = set()
        self.slow: dict[tuple[str, str], float] = {}
        self.bad: set[tuple[str, str]] = set()
        self.peak = 356.0
        self.jobs: list[tuple[str, tuple[str, ...], str]] = []
        monkeypatch.setattr(workload, "run_workload", self.copies)
        monkeypatch.setattr(ranks, "run_ranks", self.reduce)

    def copies(self, ctx: Any, _python: str, name: str, params: Any, *, gpus: Sequence[str], timeout_s: float) -> None:
        assert (name, params["names"]) == ("links_p2p", ",".join(gpus))
        self.jobs.append((name, tuple(gpus), ""))
        for a in gpus:
            for b in gpus:
                if a == b:
                    continue
                if {a, b} & self.dead:
                    raise RuntimeError("workload links_p2p exited with status 1: CUDA error: GPU is lost")
                send(ctx, "p2p_access", True, "bool", a=a, b=b)
                send(ctx, "p2p_bandwidth", self.slow.get((a, b), 380.0), "GB/s", a=a, b=b)
                send(ctx, "p2p_latency", 5.0, "us", a=a, b=b)
                send(ctx, "p2p_wrong", 3 if (a, b) in self.bad else 0, "count", a=a, b=b)

    def reduce(self, ctx: Any, _python: str, _name: str, params: Any, *, gpus: Sequence[str], **_: object) -> None:
        tasks = params["tasks"]
        self.jobs.append(("links_ranks", tuple(gpus), tasks))
        if set(gpus) & self.dead:
            raise RuntimeError("rank 1: NCCL: unhandled cuda error")
        if "all" in tasks:
            send(ctx, "allreduce_peak", self.peak, "GB/s", bytes=str(2**31))
            send(ctx, "allreduce_peak_spread", 0.01, "ratio", bytes=str(2**31))
        for number, a in enumerate(gpus):
            ctx.forward(Measurement("links", a, "allreduce_wrong", 0, "count", {"rank": str(number)}))
            for b in gpus[number + 1 :]:
                send(ctx, "pair_bus_bandwidth", self.slow.get((a, b), 330.0), "GB/s", a=a, b=b)


def send(ctx: Any, metric: str, value: Scalar, unit: str, **labels: str) -> None:
    ctx.forward(Measurement("links", HOST, metric, value, unit, labels))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def run(**params: Scalar) -> list[Record]:
    records: list[Record] = []
    asked = CheckRequest("links", 300.0, params)
    ctx = check.Context(INFO, asked, Plan((asked,), 330.0), records.append)
    with ctx.subject(HOST):
        check.load("links").run(ctx)
    for record in records:
        encode(record)
    return records


def values(records: list[Record], metric: str) -> list[Measurement]:
    return [one for one in records if isinstance(one, Measurement) and one.metric == metric]


def judged(records: list[Record]) -> list[Verdict]:
    return load_check.judged([*load_check.identity(uuids()), *records], load_check.plan_of("links"))


@pytest.mark.usefixtures("host")
def test_four_healthy_h200s_pass_and_every_pair_says_how_it_is_joined(machine: Machine) -> None:
    records = run()
    assert {one.status for one in outcomes(records).values()} == {RAN}
    kinds = values(records, "link_kind")
    assert [(one.labels["pair"], one.value) for one in kinds] == [
        (f"{a}-{b}", "NV18") for a in range(4) for b in range(a + 1, 4)
    ]
    assert {one.labels["link"] for one in values(records, "p2p_bandwidth")} == {"NV18"}
    assert {one.labels["pair"] for one in values(records, "p2p_bandwidth")} >= {"0>1", "1>0", "3>2"}
    assert [one.value for one in values(records, "pair_of_median")] == [1.0] * 6
    verdicts = judged(records)
    assert {one.status for one in verdicts} == {"PASS", "SKIP"}
    assert {one.subject for one in verdicts if one.status == "PASS"} == {HOST, *uuids()}
    assert [job[2] for job in machine.jobs] == ["", "all,collectives,pairs"], "a healthy host takes two jobs"


@pytest.mark.usefixtures("host")
def test_a_slow_pair_fails_and_is_named(machine: Machine) -> None:
    a, b = uuids()[1], uuids()[3]
    machine.slow[a, b] = 250.0
    found = [one for one in judged(run()) if one.status in ("FAIL", "WARN")]
    assert {(one.metric, one.status) for one in found} == {
        ("p2p_of_median", "WARN"),
        ("p2p_bandwidth", "FAIL"),
        ("pair_of_median", "WARN"),
        ("pair_bus_bandwidth", "FAIL"),
    }
    for one in found:
        assert one.measurement is not None
        assert (one.measurement.labels["a"], one.measurement.labels["b"]) == (a, b)
        assert one.measurement.labels["pair"] in ("1>3", "1-3")


@pytest.mark.usefixtures("host")
def test_an_h200_host_whose_all_reduce_is_slow_as_a_whole_fails(machine: Machine) -> None:
    machine.peak = 48.0  # over PCIe: every pair alike, so none stands out
    failed = [one for one in judged(run()) if one.status == "FAIL"]
    assert [one.metric for one in failed] == ["allreduce_peak"]


@pytest.mark.usefixtures("host")
def test_wrong_bytes_fail_both_ends_and_the_note_names_the_pair(machine: Machine) -> None:
    a, b = uuids()[0], uuids()[2]
    machine.bad.add((a, b))
    found = {one.subject: one for one in values(run(), "p2p_wrong")}
    assert {uuid: found[uuid].value for uuid in uuids()} == {a: 3, b: 3, uuids()[1]: 0, uuids()[3]: 0}
    assert f"GPU 0 ({a}) with GPU 2 ({b})" in found[b].note
    failed = [one for one in judged(run()) if one.status == "FAIL"]
    assert {(one.metric, one.subject) for one in failed} == {("p2p_wrong", a), ("p2p_wrong", b)}


@pytest.mark.usefixtures("host")
def test_a_gpu_that_falls_off_is_named_and_the_others_results_stand(machine: Machine) -> None:
    dead = uuids()[2]
    machine.dead.add(dead)
    records = run()
    ends = outcomes(records)
    assert {uuid for uuid in uuids() if ends[uuid].status == ERROR} == {dead}
    assert "none of its links gave an answer" in ends[dead].detail
    assert ends[HOST].status == ERROR
    assert f"GPU 2 ({dead}): none of its links gave an answer" in ends[HOST].detail
    assert "GPU 1 (" not in ends[HOST].detail
    measured = {one.labels["pair"] for one in values(records, "pair_bus_bandwidth") if one.value is not None}
    assert measured == {"0-1", "0-3", "1-3"}
    both = {one.labels["pair"] for one in values(records, "p2p_bandwidth") if one.value is not None}
    assert both == {"0>1", "1>0", "0>3", "3>0", "1>3", "3>1"}
    unread = {one.labels["pair"] for one in values(records, "pair_of_median") if one.absence == "unknown"}
    assert unread == {"0-2", "1-2", "2-3"}
    verdicts = judged(records)
    assert "PASS" in {one.status for one in verdicts if one.subject == uuids()[0]}
    assert {one.status for one in verdicts if one.subject == dead} == {"ERROR"}


@pytest.mark.usefixtures("host")
def test_pairs_alone_run_in_rounds_without_sharing_a_gpu(machine: Machine) -> None:
    machine.dead.add(uuids()[0])
    run()
    alone = [job for job in machine.jobs if job[2] == "pair"]
    assert len(alone) == 6
    for start in range(0, 6, 2):
        assert not set(alone[start][1]) & set(alone[start + 1][1])


def test_pcie_pairs_are_compared_with_their_own_kind_and_run_one_at_a_time(
    host: Lay, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    host(PCIE)
    seen: list[bool] = []
    real = links_check.Jobs.collectives

    def noted(self: links_check.Jobs, together: bool) -> None:
        seen.append(together)
        real(self, together)

    monkeypatch.setattr(links_check.Jobs, "collectives", noted)
    machine.slow = {(uuids()[0], uuids()[1]): 25.0}
    records = run()
    assert seen == [False]
    kinds = {one.labels["pair"]: one for one in values(records, "link_kind")}
    assert (kinds["0-1"].value, kinds["0-2"].value) == ("PIX", "SYS")
    assert kinds["2-3"].absence == NOT_APPLICABLE
    ratios = {one.labels["pair"]: one for one in values(records, "pair_of_median")}
    assert ratios["0-1"].absence == NOT_APPLICABLE, "the only pair on one switch has nothing to be compared with"
    assert ratios["0-2"].value == 1.0


def test_a_gpu_with_half_of_its_nvlinks_down_is_compared_with_the_others_on_the_switches(
    host: Lay, machine: Machine
) -> None:
    down = {f"nvmlDeviceGetNvLinkState(gpu0,{link})": {"result": 0} for link in range(9)}
    host({**NVSWITCH, **down})
    first = uuids()[0]
    machine.slow = {(a, b): 190.0 for a in uuids() for b in uuids() if first in (a, b)}
    ratios = {one.labels["pair"]: one for one in values(run(), "p2p_of_median")}
    assert ratios["0>1"].labels["link"] == "NV9"
    assert float(str(ratios["0>1"].value)) < 0.8
    assert float(str(ratios["1>2"].value)) >= 1


def test_nvlinks_without_a_switch_are_counted_to_their_peer(host: Lay) -> None:
    def bus_id(index: int) -> dict[str, Any]:
        with nvml.session() as session:
            address = session.gpus()[0][index].pci_address()
        return {"result": {"struct": {"busId": f"0000{address}".upper()}}}

    first, other = bus_id(1), bus_id(2)
    host({
        "nvmlDeviceGetP2PStatus(*)": {"result": 0},
        "nvmlDeviceGetNvLinkRemoteDeviceType(*)": {"result": 0},
        **{f"nvmlDeviceGetNvLinkRemotePciInfo(gpu0,{link})": first for link in range(4)},
        "nvmlDeviceGetNvLinkRemotePciInfo(*)": other,
    })  # fmt: skip
    with nvml.session() as session:
        gpus = session.gpus()[0]
        assert peers.link_kind(gpus[0], gpus[1]) == "NV4"
        assert peers.link_kind(gpus[0], gpus[2]) == "NV14"
        assert peers.link_kind(gpus[0], gpus[3]) == "NV", "through others: their number is not told"


def test_one_gpu_is_skipped_with_the_reason(host: Lay, machine: Machine) -> None:
    host({}, count=1)
    ends = outcomes(run())
    assert ends[HOST].status == SKIPPED
    assert "one GPU" in ends[HOST].detail
    assert machine.jobs == []


def test_a_gpu_in_use_is_left_alone_and_the_others_are_measured(host: Lay, machine: Machine) -> None:
    host({
        **NVSWITCH,
        "nvmlDeviceGetComputeRunningProcesses(gpu1)": {"result": [{"struct": {"pid": 4242}}]},
        "nvmlSystemGetProcessName(*)": {"result": "python3"},
    })  # fmt: skip
    ends = outcomes(run())
    assert ends[uuids()[1]].status == ERROR
    assert "process 4242 (python3)" in ends[uuids()[1]].detail
    assert {uuids()[1]}.isdisjoint({uuid for job in machine.jobs for uuid in job[1]})
    assert ends[uuids()[3]].status == RAN


def test_two_gpus_have_no_other_pair_to_compare_with(host: Lay, machine: Machine) -> None:
    two: dict[str, Any] = {**NVSWITCH, "nvmlDeviceGetMigMode(gpu2)": {"result": [1, 1]}}
    host({**two, "nvmlDeviceGetMigMode(gpu3)": {"result": [1, 1]}})
    records = run()
    assert [one.absence for one in values(records, "pair_of_median")] == [NOT_APPLICABLE]
    assert len(machine.jobs) == 2
    assert outcomes(records)[HOST].status == RAN
