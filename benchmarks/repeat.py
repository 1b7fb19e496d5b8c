"""How far do a workload's figures vary from run to run? Several runs, each a process of its own, on one idle GPU.

    python benchmarks/repeat.py [matmul] [--runs 10] [--warm] [--most 400] [--gpu N] [--param dtypes=bf16,fp8]
                                [--target 0.5] [--json FILE]

The workload is one of validators/workloads/, run as the check runs it: a fresh process of this Python, that GPU alone
visible. With --warm one process runs it again and again, which saves the imports. Printed for each figure: mean,
coefficient of variation (standard deviation by mean), lowest and highest; and how long a run took, from the start of
the process. No run begins after --most seconds. Without a GPU it runs on the CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.gpus import visible  # noqa: E402

CHILD = """
import dataclasses, importlib, json, sys
out = sys.stdout
sys.stdout = sys.stderr
sys.path.insert(0, sys.argv[1])
main = importlib.import_module("validators.workloads." + sys.argv[2]).main
for number in range(int(sys.argv[4])):
    main(json.loads(sys.argv[3]), lambda record: print(json.dumps(dataclasses.asdict(record)), file=out, flush=True))
    print(json.dumps({"end": number}), file=out, flush=True)
"""
NO_FIGURES = ("bool", "text", "version", "count", "bits")
"""Units of what is not a figure that varies."""


def uuid_of(index: str) -> str:
    """The GPU's UUID as nvidia-smi gives it, or empty where there is none."""
    asked = ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader", "-i", index]
    try:
        return subprocess.run(asked, capture_output=True, text=True, check=True, timeout=30).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return ""


Records = list[dict[str, object]]


def run(workload: str, params: dict[str, object], uuid: str, runs: int, end: float) -> Iterator[tuple[Records, float]]:
    """The measurements of each run in one process, and its seconds. Raises RuntimeError with its last words."""
    env = {**os.environ, **({"CUDA_VISIBLE_DEVICES": uuid} if uuid else {})}
    argv = [
        sys.executable,
        "-c",
        CHILD,
        str(ROOT),
        workload,
        json.dumps({"subject": uuid or "host", **params}),
        str(runs),
    ]
    began = time.monotonic()
    with (
        tempfile.TemporaryFile("w+") as words,
        subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=words, text=True, env=env) as process,
    ):
        found: Records = []
        assert process.stdout
        for line in process.stdout:
            record = json.loads(line)
            if "metric" in record:
                found.append(record)
            elif "end" in record:
                now = time.monotonic()
                yield found, now - began
                began, found = now, []
                if now > end:
                    process.terminate()
                    return
        if process.wait():
            words.seek(0)
            raise RuntimeError((words.read().strip().splitlines() or [f"exit status {process.returncode}"])[-1])


def figures(runs: list[Records]) -> dict[str, list[float]]:
    """Figure -> its value in each run. Its name has those labels that are the same in every run."""
    keyed: list[dict[tuple[str, int], dict[str, object]]] = []
    for measurements in runs:
        seen: dict[str, int] = {}
        found: dict[tuple[str, int], dict[str, object]] = {}
        for one in measurements:
            name = str(one["metric"])
            seen[name] = seen.get(name, 0) + 1
            found[name, seen[name]] = one
        keyed.append(found)
    every: dict[str, list[float]] = {}
    for key, first in keyed[0].items():
        alike = [found[key] for found in keyed if key in found]
        values = [one["value"] for one in alike]
        if (
            first["unit"] in NO_FIGURES
            or len(alike) < len(runs)
            or not all(isinstance(v, (int, float)) for v in values)
        ):
            continue
        labels = {
            k: v for k, v in dict(first["labels"]).items() if all(dict(one["labels"]).get(k) == v for one in alike)
        }  # type: ignore[call-overload]
        shown = ", ".join(f"{k}={v}" for k, v in labels.items() if len(str(v)) < 24)
        every[f"{key[0]} [{first['unit']}]" + (f" ({shown})" if shown else "")] = [float(str(v)) for v in values]
    return every


def parsed(text: str) -> tuple[str, object]:
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workload", nargs="?", default="matmul")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--gpu", default=visible(1)[0], help="its index in nvidia-smi, or its UUID")
    parser.add_argument("--param", action="append", default=[], help="name=value, of the workload")
    parser.add_argument("--target", type=float, default=0.5, help="coefficient of variation that is wanted, percent")
    parser.add_argument("--warm", action="store_true", help="one process for all runs")
    parser.add_argument("--most", type=float, default=400.0, help="seconds after which no run begins")
    parser.add_argument("--quick", action="store_true", help="three runs")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    params, uuid = dict(parsed(one) for one in options.param), uuid_of(options.gpu)
    print(f"{options.workload} on {uuid or 'the CPU'}", flush=True)
    runs, seconds = [], []
    wanted, end = 3 if options.quick else options.runs, time.monotonic() + options.most
    while len(runs) < wanted and time.monotonic() < end:
        try:
            for found, took in run(options.workload, params, uuid, wanted if options.warm else 1, end):
                print(f"run {len(runs) + 1}: {took:.1f} s, {len(found)} measurements", flush=True)
                runs.append(found)
                seconds.append(took)
        except RuntimeError as problem:
            print(f"run {len(runs) + 1}: {problem}", flush=True)
            break
    if not runs:
        sys.exit("no run ended")
    middle = statistics.median(seconds)
    print(f"seconds a run, from the start of the process: {middle:.1f} ({min(seconds):.1f} to {max(seconds):.1f})")
    every = figures(runs)
    for name, values in every.items():
        mean = statistics.fmean(values)
        spread = statistics.stdev(values) / abs(mean) if len(values) > 1 and mean else 0.0
        verdict = "" if "ratio" in name else "kept" if spread <= options.target / 100 else f"over {options.target:g}%"
        print(f"{name}: {mean:.5g}  cv {spread:.3%}  ({min(values):.5g} to {max(values):.5g})  {verdict}")
    if options.json:
        options.json.write_text(json.dumps({"seconds": seconds, "figures": every, "params": params}, indent=1))


if __name__ == "__main__":
    main()
