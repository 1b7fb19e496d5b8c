"""The double answers as the recorded hosts did, refuses what was not recorded, and travels inside a bundle."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pynvml
import pytest

from provision.bundle import build_bundle
from tests.doubles import error, h200, overlay, recording
from tests.doubles.replay_pynvml import Replay
from validators.schema import CheckRequest, Measurement, Plan, decode, encode_plan

RECORDER = Path(__file__).resolve().parent.parent / "fixtures" / "nvml" / "record.py"


@pytest.mark.parametrize("n_gpus", [1, 4])
def test_recording_the_double_gives_the_recording(n_gpus: int, tmp_path: Path) -> None:
    """So the checks make exactly the calls that were recorded: none more (KeyError), and none fewer but EXTRA's."""
    for name, text in overlay(n_gpus).items():
        (tmp_path / name).write_bytes(text)
    out = tmp_path / "again.json"
    done = subprocess.run(
        [sys.executable, str(RECORDER), str(out)],
        env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    again, first = json.loads(out.read_text())["calls"], recording(n_gpus)["calls"]
    known = {key: {name: value for name, value in answer.items() if name != "stamped"} for key, answer in first.items()}
    stampless = {k: {name: value for name, value in answer.items() if name != "stamped"} for k, answer in again.items()}
    assert stampless == known


def test_a_call_that_was_not_recorded_is_an_error_and_never_a_value() -> None:
    double = h200(1)
    handle = double.nvmlDeviceGetHandleByIndex(0)
    with pytest.raises(KeyError, match="record again"):
        double.nvmlDeviceGetFanSpeed(handle)
    with pytest.raises(KeyError, match="record again"):
        double.nvmlDeviceGetFieldValues(handle, [1])


def test_the_double_says_that_it_is_one_and_of_what() -> None:
    double = h200(4)
    assert isinstance(double, Replay)
    assert "DOUBLE" in str(double.__doc__)
    assert double.about["driver"] == "580.159.04"
    assert "real host" in double.about["recorded"]


def test_constants_and_exceptions_are_the_real_ones() -> None:
    double = h200(1, {"nvmlDeviceGetName(gpu0)": error(15)})
    assert double.NVML_SUCCESS == pynvml.NVML_SUCCESS
    with pytest.raises(pynvml.NVMLError_GpuIsLost):
        double.nvmlDeviceGetName(double.nvmlDeviceGetHandleByIndex(0))


def test_devices_are_found_by_uuid_and_by_pci_address() -> None:
    double = h200(4)
    uuid = double.nvmlDeviceGetUUID(double.nvmlDeviceGetHandleByIndex(2))
    assert double.nvmlDeviceGetIndex(double.nvmlDeviceGetHandleByUUID(uuid)) == 2
    assert double.nvmlDeviceGetIndex(double.nvmlDeviceGetHandleByPciBusId("0000:00:09.0")) == 3
    with pytest.raises(pynvml.NVMLError_NotFound):
        double.nvmlDeviceGetHandleByUUID("GPU-none")


def test_a_bundle_with_the_overlay_measures_the_recorded_host(tmp_path: Path) -> None:
    bundle = tmp_path / "validators.pyz"
    bundle.write_bytes(build_bundle(overlay=overlay(4, {"nvmlDeviceGetTemperature(gpu1,0)": {"result": 91}})).data)
    plan = Plan((CheckRequest("compute_capability", 60.0), CheckRequest("gpu_health", 60.0)), 120.0)
    with subprocess.Popen(
        [sys.executable, "-I", str(bundle), "wire"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(encode_plan(plan))
        process.stdin.flush()
        lines = list(process.stdout)  # stdin stays open: it is the lease
        process.stdin.close()
        assert process.stderr is not None
        stderr = process.stderr.read().decode()
    records = [decode(line) for line in lines]
    temperatures = [one.value for one in records if isinstance(one, Measurement) and one.metric == "temperature"]
    assert len(temperatures) == 4, stderr
    assert temperatures[1] == 91
