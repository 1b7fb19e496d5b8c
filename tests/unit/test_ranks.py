"""Ranks: rounds of disjoint pairs, ports, and how a job of several processes ends."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from validators import check
from validators.probes import ranks, workload
from validators.schema import CheckRequest, Measurement, Plan, Record

ROOT = Path(__file__).parents[2]

PROGRAM = """
import os, time
from validators.schema import Measurement
def main(params, emit):
    rank = int(os.environ["RANK"])
    if rank == params.get("dies"):
        raise RuntimeError("CUDA error: the launch timed out and was terminated")
    if "says_%d" % rank in params:
        time.sleep(float(rank == params.get("slow")))
        raise RuntimeError(params["says_%d" % rank])
    if rank == 0 and params.get("taken") == int(os.environ["MASTER_PORT"]):
        raise RuntimeError("The server socket has failed to listen on any address. code: -98, name: EADDRINUSE")
    if rank == params.get("closes"):
        os.closerange(2, 64)
    time.sleep(float(params.get("sleeps", 0)))
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_PORT"):
        emit(Measurement("links", "host", name, int(os.environ[name]), "count", {"rank": str(rank)}))
    emit(Measurement("links", "host", "MASTER_ADDR", os.environ["MASTER_ADDR"], "text", {"rank": str(rank)}))
    emit(Measurement("links", "host", "gpus", os.environ.get("CUDA_VISIBLE_DEVICES", ""), "text", {"rank": str(rank)}))
"""


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "root"
    shutil.copytree(ROOT / "validators", root / "validators", ignore=shutil.ignore_patterns("__pycache__"))
    (root / "validators" / "workloads" / "x_rank.py").write_text(PROGRAM)
    monkeypatch.setattr(workload, "bundle_root", lambda: str(root))


def run(
    gpus: tuple[str, ...] = (), params: dict[str, int | str] | None = None, **more: object
) -> dict[str, dict[str, object]]:
    records: list[Record] = []
    asked = CheckRequest("links", 60.0)
    ctx = check.Context(check.load("links").info, asked, Plan((asked,), 60.0), records.append)
    ranks.run_ranks(ctx, sys.executable, "x_rank", params or {}, gpus=gpus, timeout_s=30.0, **more)  # type: ignore[arg-type]
    found: dict[str, dict[str, object]] = {}
    for one in records:
        assert isinstance(one, Measurement)
        found.setdefault(one.labels["rank"], {})[one.metric] = one.value
    return found


@pytest.mark.usefixtures("planted")
def test_each_rank_finds_what_torchrun_would_tell_it_and_sees_every_gpu() -> None:
    found = run(("GPU-a", "GPU-b"))
    assert sorted(found) == ["0", "1"]
    for rank, said in found.items():
        assert (said["RANK"], said["LOCAL_RANK"]) == (int(rank), int(rank))
        assert (said["WORLD_SIZE"], said["LOCAL_WORLD_SIZE"], said["MASTER_ADDR"]) == (2, 2, "127.0.0.1")
        assert said["gpus"] == "GPU-a,GPU-b"
    assert found["0"]["MASTER_PORT"] == found["1"]["MASTER_PORT"]


@pytest.mark.usefixtures("planted")
def test_ranks_of_the_second_host_of_two_come_after_those_of_the_first() -> None:
    found = run(ranks=2, first_rank=2, world=4, master="192.0.2.1", port=5)
    assert sorted(found) == ["2", "3"]
    assert {(said["WORLD_SIZE"], said["MASTER_ADDR"], said["MASTER_PORT"]) for said in found.values()} == {
        (4, "192.0.2.1", 5)
    }
    assert {said["LOCAL_RANK"] for said in found.values()} == {0, 1}


@pytest.mark.usefixtures("planted")
def test_a_rank_that_dies_is_named_with_its_gpu_and_ends_the_others() -> None:
    began = time.monotonic()
    with pytest.raises(RuntimeError, match=r"rank 1 on GPU-b: .*the launch timed out"):
        run(("GPU-a", "GPU-b"), {"dies": 1, "sleeps": 25})
    assert time.monotonic() - began < 15


@pytest.mark.usefixtures("planted")
def test_the_rank_that_failed_is_named_and_not_the_one_that_its_end_brought_down() -> None:
    """Its peer's sockets close first, and it takes its time to end."""
    peer = "[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1"
    with pytest.raises(RuntimeError, match=r"rank 1 on GPU-b: .*uncorrectable ECC") as caught:
        run(("GPU-a", "GPU-b"), {"says_0": peer, "says_1": "CUDA error: uncorrectable ECC error", "slow": 1})
    assert "gloo" not in str(caught.value)


@pytest.mark.usefixtures("planted")
def test_a_collective_that_hangs_in_every_rank_ends_at_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    real = workload.run_workload
    monkeypatch.setattr(workload, "run_workload", lambda *args, **how: real(*args, **{**how, "timeout_s": 1.0}))
    with pytest.raises(
        RuntimeError, match=r"rank . on GPU-.: workload x_rank timed out after 1 s; 1 more of its ranks"
    ):
        run(("GPU-a", "GPU-b"), {"sleeps": 60})


@pytest.mark.usefixtures("planted")
def test_a_port_that_somebody_else_took_meanwhile_is_not_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    ports = [1, 2]
    monkeypatch.setattr(ranks, "free_port", lambda: ports.pop(0))
    assert run(("GPU-a", "GPU-b"), {"taken": 1})["0"]["MASTER_PORT"] == 2
    assert ports == []
    with pytest.raises(RuntimeError, match="EADDRINUSE"):
        run(("GPU-a", "GPU-b"), {"taken": 7}, port=7)


@pytest.mark.usefixtures("planted")
def test_a_workload_that_closed_its_streams_and_lives_on_is_ended_on_request() -> None:
    """Or a rank whose library daemonises would hold up the others until the deadline."""
    began = time.monotonic()
    with pytest.raises(RuntimeError, match="rank 0 on GPU-a"):
        run(("GPU-a", "GPU-b"), {"says_0": "RuntimeError: gone", "closes": 1, "sleeps": 25})
    assert time.monotonic() - began < 15


@pytest.mark.usefixtures("planted")
def test_a_process_that_cannot_be_killed_is_named_and_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that is stuck inside the driver: a day's soak on the other GPUs must not wait for it."""
    real, begun = subprocess.Popen.wait, time.monotonic()

    def wait(process: subprocess.Popen[bytes], timeout: float | None = None) -> int:
        if timeout is None:
            time.sleep(30)
            return real(process)
        raise subprocess.TimeoutExpired(process.args, timeout)

    monkeypatch.setattr(subprocess.Popen, "wait", wait)
    monkeypatch.setattr(subprocess.Popen, "kill", lambda _process: None)  # it has ended; nobody is to notice
    with pytest.raises(RuntimeError, match=r"process \d+ cannot be killed, it is stuck in the kernel"):
        run(("GPU-a",), {"says_0": "x"})
    assert time.monotonic() - begun < 15


@pytest.mark.parametrize("count", range(2, 18))
def test_rounds_have_every_pair_once_and_nobody_twice_at_a_time(count: int) -> None:
    found = ranks.rounds(count)
    assert sorted(pair for one in found for pair in one) == [(a, b) for a in range(count) for b in range(a + 1, count)]
    assert len(found) == count - 1 + count % 2
    for one in found:
        players = [player for pair in one for player in pair]
        assert len(players) == len(set(players))


def test_four_gpus_take_three_rounds_of_two_pairs_and_eight_seven_of_four() -> None:
    assert [len(one) for one in ranks.rounds(4)] == [2, 2, 2]
    assert [len(one) for one in ranks.rounds(8)] == [4] * 7


def test_ports_given_out_together_differ() -> None:
    found = ranks.free_ports(50)
    assert len(set(found)) == 50
    assert all(1023 < port < 65536 for port in found)
    assert ranks.free_ports(0) == []
