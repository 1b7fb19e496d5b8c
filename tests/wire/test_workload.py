"""Workloads: programs under another Python, whose every way to end is told apart."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from provision.bundle import build_bundle
from tests.need import need
from tests.wire.planting import (
    alive,
    noted,
    outcomes,
    own_python,
    plan_of,
    planted,
    records_of,
    spawn_and_note,
    wait_until,
    wire,
)
from validators.schema import Measurement, Record

CALL = (
    "from validators.probes.workload import run_workload\n"
    "run_workload(ctx, {python!r}, 'x_work', {{'n': 7}}, gpus={gpus!r}, timeout_s={timeout})"
)
HEAD = "import os, sys, time\nfrom validators.schema import Measurement\ndef main(params, emit):\n    "
EMIT = "emit(Measurement('x_load', 'host', 'n', params['n'], 'count'))"


def run(
    folder: Path, body: str, *, python: str = sys.executable, gpus: tuple[str, ...] | None = None, timeout: float = 20.0
) -> list[Record]:
    check = planted({"x_load": CALL.format(python=python, gpus=gpus, timeout=timeout)})
    work = {"validators/workloads/x_work.py": (HEAD + body.replace("\n", "\n    ")).encode()}
    with wire(folder, build_bundle({**check, **work}), plan_of(["x_load"])) as process:
        return records_of(process)


def test_its_records_are_passed_on(tmp_path: Path) -> None:
    records = run(tmp_path, EMIT)
    assert outcomes(records)["x_load"].status == "ran"
    assert [one.value for one in records if isinstance(one, Measurement)] == [7]


def test_what_it_prints_is_no_record(tmp_path: Path) -> None:
    records = run(tmp_path, "print('hello', flush=True); os.system('echo hello'); " + EMIT)
    assert outcomes(records)["x_load"].status == "ran"


def test_it_sees_one_gpu_by_its_uuid(tmp_path: Path) -> None:
    body = "emit(Measurement('x_load', 'host', 'n', 1, 'count', {'seen': os.environ['CUDA_VISIBLE_DEVICES']}))"
    [seen] = [one for one in run(tmp_path, body, gpus=("GPU-1234",)) if isinstance(one, Measurement)]
    assert seen.labels == {"seen": "GPU-1234"}


def test_an_override_of_its_arithmetic_does_not_reach_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    body = "emit(Measurement('x_load', 'host', 'n', int('NVIDIA_TF32_OVERRIDE' in os.environ), 'count'))"
    assert [one.value for one in run(tmp_path, body) if isinstance(one, Measurement)] == [0]


FEW = min(8, len(os.sched_getaffinity(0)))


@pytest.mark.parametrize(
    ("gpus", "own", "expected"), [(("GPU-1",), None, FEW), (("GPU-1",), "3", 3), ((), None, 0), (None, None, 0)]
)
def test_a_gpus_workload_leaves_cores_to_the_others(
    tmp_path: Path,
    gpus: tuple[str, ...] | None,
    own: str | None,
    expected: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if own:
        monkeypatch.setenv("OMP_NUM_THREADS", own)
    body = "emit(Measurement('x_load', 'host', 'n', int(os.environ.get('OMP_NUM_THREADS', '0')), 'count'))"
    assert [one.value for one in run(tmp_path, body, gpus=gpus) if isinstance(one, Measurement)] == [expected]


ENDS = {
    "crash": ("import ctypes; ctypes.string_at(0)", "workload x_work crashed: SIGSEGV"),
    "exception": ("raise MemoryError('CUDA out of memory')", "last words: MemoryError: CUDA out of memory"),
    "exit": ("os._exit(4)", "workload x_work exited with status 4"),
    "hang": (EMIT + "\ntime.sleep(600)", "workload x_work timed out after 2 s"),
    "garbage": ("os.write(int(sys.argv[-1]), b'garbage\\n'); time.sleep(600)", "sent what cannot be used: not JSON"),
    "a status of 0 before its end": (EMIT + "; os._exit(0)", "exited with status 0 before its end"),
    "half a record": ("os.write(int(sys.argv[-1]), b'half'); os._exit(0)", "ended in the middle of a record"),
    "closes its pipes and hangs": (
        "os.closerange(2, 64); time.sleep(600)",
        "workload x_work timed out after 2 s",
    ),
}


def test_a_script_that_loses_its_pythons_status_hides_no_killed_workload(tmp_path: Path) -> None:
    python = tmp_path / "python3"
    python.write_text(f'#!/bin/sh\ntimeout -s KILL 1 {sys.executable} "$@"\ntrue\n')
    python.chmod(0o755)
    ended = outcomes(run(tmp_path, EMIT + "; time.sleep(30)", python=str(python)))["x_load"]
    assert (ended.status, "before its end" in ended.detail) == ("error", True)


@pytest.mark.parametrize("end", ENDS)
def test_the_check_says_how_it_ended(tmp_path: Path, end: str) -> None:
    body, said = ENDS[end]
    ended = outcomes(run(tmp_path, body, timeout=2.0))["x_load"]
    assert ended.status == "error"
    assert ended.detail.startswith("RuntimeError: ")
    assert said in ended.detail


def test_an_interpreter_that_is_not_there_is_named(tmp_path: Path) -> None:
    ended = outcomes(run(tmp_path, EMIT, python="/opt/none/python3"))["x_load"]
    assert "/opt/none/python3 cannot be run: No such file or directory" in ended.detail


def test_an_interpreter_that_is_too_old_is_named(tmp_path: Path) -> None:
    python = own_python("3.6")
    need(python is not None, "Python 3.6 is not installed", installable=True)
    assert python
    ended = outcomes(run(tmp_path, EMIT, python=python))["x_load"]
    assert "Python 3.6." in ended.detail
    assert "too old: the workloads need 3.9 or newer" in ended.detail


def test_another_pythons_packages_are_seen_and_ours_do_not_stand_before_them(tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    [site] = venv.glob("lib/python3.*/site-packages")
    (site / "x_framework.py").write_text("answer = 42")
    (site / "pynvml.py").write_text("mine = True")
    (site / "validators").mkdir()
    (site / "validators" / "__init__.py").write_text("raise ImportError('the other package of that name')")
    body = "import x_framework, pynvml\nassert pynvml.mine\n" + EMIT
    ended = outcomes(run(tmp_path, body, python=str(venv / "bin" / "python3")))["x_load"]
    assert ended.status == "ran", ended.detail


def test_what_lies_in_the_working_directory_does_not_stand_before_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "trap").mkdir()
    (tmp_path / "trap" / "json.py").write_text("raise SystemExit('TRAPPED')")
    monkeypatch.chdir(tmp_path / "trap")
    assert outcomes(run(tmp_path, EMIT))["x_load"].status == "ran"


def test_nothing_of_it_is_left_when_the_lease_is_lost(tmp_path: Path) -> None:
    check = planted({"x_load": CALL.format(python=sys.executable, gpus=None, timeout=60)})
    tree = spawn_and_note(tmp_path).replace("\n", "\n    ")
    work = {"validators/workloads/x_work.py": (HEAD + tree).encode()}
    with wire(tmp_path, build_bundle({**check, **work}), plan_of(["x_load"])) as process:
        pids = noted(tmp_path)
        assert all(alive(pid) for pid in pids)
        assert process.stdin
        process.stdin.close()
        assert wait_until(lambda: not any(alive(pid) for pid in pids))


def test_it_ends_itself_when_everything_above_it_is_killed(tmp_path: Path) -> None:
    check = planted({"x_load": CALL.format(python=sys.executable, gpus=None, timeout=60)})
    tree = f"open({str(tmp_path / 'pids')!r}, 'w').write(f'{{os.getpid()}} {{os.getppid()}} done')\ntime.sleep(600)"
    work = {"validators/workloads/x_work.py": (HEAD + tree.replace("\n", "\n    ")).encode()}
    with wire(tmp_path, build_bundle({**check, **work}), plan_of(["x_load"])) as process:
        own, check_pid = noted(tmp_path)
        os.kill(check_pid, 9)
        assert wait_until(lambda: not alive(own))
        process.kill()
