"""What the programs of the check `cifar` share: its parameters, the process's age, and what each kind of run sends."""

from __future__ import annotations

import os
import statistics
import time
from dataclasses import dataclass
from typing import Callable, List, Mapping, Sequence

from validators.schema import HOST, Record, Scalar
from validators.workloads.results import Results

CHECK = "cifar"
LEARNT = ("accuracy", "accuracy_rises", "time_to_accuracy", "training_time", "epochs", "steps")
WHERE_TIME_WENT = ("time_in_loader", "time_in_copy", "time_in_compute")
SPEED = ("images_per_second", "images_per_second_spread")
_IMPORTED = time.monotonic()


@dataclass(frozen=True)
class Terms:
    """The parameters. `gpus`: GPUs in this job, 0 for a CPU run. Zero epochs or batch: the program's own choice."""

    subject: str = HOST
    data: str = ""
    no_data: str = ""
    gpus: int = 1
    epochs: float = 0.0
    batch: int = 0
    seconds: float = 3.0
    target: float = 0.0
    memory_gib: float = 0.0

    @classmethod
    def of(cls, params: Mapping[str, Scalar]) -> Terms:
        """Those of a workload's params. Raises ValueError for one that makes no sense."""
        terms = cls(
            str(params.get("subject", HOST)),
            str(params.get("data", "")),
            str(params.get("no_data", "")) or "no CIFAR-10 on this host",
            int(params.get("gpus", 1)),
            float(params.get("epochs", 0)),
            int(params.get("batch", 0)),
            float(params.get("seconds", 3.0)),
            float(params.get("target", 0.0)),
            float(params.get("memory_gib", 0.0)),
        )
        if min(terms.epochs, terms.batch, terms.seconds, terms.target) < 0 or terms.target > 1:
            raise ValueError("epochs, batch and seconds are not negative, target is between 0 and 1")
        return terms


def process_age_s() -> float:
    """Seconds since this process was started, its imports included."""
    try:
        with open("/proc/self/stat", encoding="ascii", errors="replace") as file:
            started = int(file.read().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
        return time.clock_gettime(time.CLOCK_BOOTTIME) - started
    except (OSError, ValueError, IndexError):
        return time.monotonic() - _IMPORTED


def results(terms: Terms, framework: str, batch: int, emit: Callable[[Record], None]) -> Results:
    """The sender, with the labels that all measurements of this check carry."""
    return Results(CHECK, terms.subject, emit, framework=framework, gpus=str(terms.gpus), batch=str(batch))


def send_speed(found: Results, speeds: Sequence[float], note: str = "") -> None:
    """images_per_second and its spread, from the windows' speeds (images a second, all GPUs together)."""
    middle = statistics.median(speeds)
    found.value("images_per_second", middle, note)
    found.value("images_per_second_spread", spread(speeds), f"{len(speeds)} windows")


def spread(speeds: Sequence[float]) -> float:
    """90th less 10th percentile, by the median."""
    ordered = sorted(speeds)
    low, high = (ordered[round(share * (len(ordered) - 1))] for share in (0.1, 0.9))
    return (high - low) / statistics.median(ordered)


def send_time(found: Results, loader: float, copy: float) -> None:
    """Where the time went: shares of the training in the loader and in copies; the rest is computing."""
    found.value("time_in_loader", loader)
    found.value("time_in_copy", copy)
    found.value("time_in_compute", max(0.0, 1 - loader - copy))


def send_learnt(  # noqa: PLR0917 - both frameworks' programs call it so
    found: Results, accuracy: float, each_epoch: Sequence[float], target: float, age_s: float, note: str
) -> None:
    """accuracy, accuracy_rises and time_to_accuracy; `note`: where that time went."""
    listed = ", ".join(f"{one:.3f}" for one in each_epoch)
    found.value("accuracy", accuracy)
    if len(each_epoch) > 1:
        found.value("accuracy_rises", each_epoch[-1] > each_epoch[0], f"after each epoch: {listed}")
    else:
        found.not_applicable("accuracy_rises", "one epoch has nothing to rise from")
    if accuracy >= target:
        found.value("time_to_accuracy", age_s, f"to {target:.3f}: {note}")
    else:
        found.not_applicable("time_to_accuracy", f"the accuracy, {accuracy:.4f}, is under the target, {target:.3f}")


def without(found: Results, metrics: Sequence[str], why: str) -> None:
    """These metrics are not applicable, for one reason."""
    for metric in metrics:
        found.not_applicable(metric, why)


def on_the_cpu(found: Results, speeds: List[float], trained: bool) -> None:
    """A CPU run's speed; the metrics of a GPU, and without `trained` those of learning, are not applicable."""
    median, varies = statistics.median(speeds), f"{spread(speeds):.3f}"
    found.value("cpu_images_per_second", median, f"{len(speeds)} windows", spread=varies)
    without(found, SPEED, "a CPU run: see cpu_images_per_second")
    if not trained:
        why = "a CPU run measures speed; --param cifar.epochs=N trains, within cifar.gpu_timeout_s (420 s)"
        without(found, (*LEARNT, *WHERE_TIME_WENT), why)
