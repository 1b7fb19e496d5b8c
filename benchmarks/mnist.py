"""MNIST's MLP from the start of a process to 98.5 %: three runs in each framework that this host has.

    python benchmarks/mnist.py [--data DIR] [--runs 3] [--quick] [--tensorflow-python PATH] [--cpu]

Each run is a process of its own, as the check `mnist` starts it: imports, reading the files, training until 98.5 % of
the official test images are named rightly. The target: at most 15 s from process start on an H200. Without --data only
the speed is measured. A framework that fails is told, and the next goes on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGET_S = 15.0
RUN = """
import importlib, json, sys
sys.path.insert(0, sys.argv[1])
from validators.schema import Measurement
def emit(record):
    if isinstance(record, Measurement):
        shown = [record.metric, record.value, record.note, dict(record.labels)]
        print("@" + json.dumps(shown), flush=True)
importlib.import_module("validators.workloads." + sys.argv[2]).main(json.loads(sys.argv[3]), emit)
"""


def run(python: str, program: str, params: dict[str, object], timeout_s: float) -> dict[str, tuple[object, str]]:
    """One process; its measurements and its wall time. Raises RuntimeError with its last words."""
    began = time.perf_counter()
    command = [python, "-c", RUN, str(ROOT), program, json.dumps(params)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    took = time.perf_counter() - began
    if ran.returncode:
        raise RuntimeError((ran.stderr.strip().splitlines() or ["no words"])[-1])
    lines = [json.loads(line[1:]) for line in ran.stdout.splitlines() if line.startswith("@")]
    found = {metric: (value, note) for metric, value, note, _ in lines}
    mode = next((labels.get("mode", "") for *_, labels in lines), "")
    return {**found, "wall": (took, ""), "mode": (mode, "")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="", help="folder of the four idx files")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one run each")
    parser.add_argument("--tensorflow-python", default=sys.executable)
    parser.add_argument("--cpu", action="store_true")
    options = parser.parse_args()
    jobs = (
        ("torch", "mlp", sys.executable, "mnist_torch"),
        ("torch", "cnn", sys.executable, "mnist_torch"),
        ("tensorflow", "mlp", options.tensorflow_python, "mnist_keras"),
    )
    for framework, model, python, program in jobs:
        params = {"data": options.data, "gpus": 0 if options.cpu else 1, "model": model, "seconds": 0.5}
        times, walls = [], []
        for number in range(1 if options.quick else options.runs):
            try:
                found = run(python, program, params, 600 if options.cpu else 90)
            except (RuntimeError, subprocess.TimeoutExpired, OSError) as problem:
                print(f"{framework} {model}: {problem}", flush=True)
                break
            walls.append(float(str(found["wall"][0])))
            if found["time_to_accuracy"][0] is not None:
                times.append(float(str(found["time_to_accuracy"][0])))
            shown = ", ".join(
                f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
                for name, (value, _) in found.items()
            )
            print(f"{framework} {model} run {number + 1}: {shown}; {found['time_to_accuracy'][1]}", flush=True)
        if times:
            middle = statistics.median(times)
            verdict = "reached" if max(times) <= TARGET_S else "missed"
            print(
                f"{framework} {model}: 98.5 % after {middle:.1f} s ({min(times):.1f} to {max(times):.1f}) from process "
                f"start, whole process {statistics.median(walls):.1f} s; target {TARGET_S:g} s {verdict}",
                flush=True,
            )


if __name__ == "__main__":
    main()
