"""Matrix products on one device: known answer, exact integers, and throughput with every timed product verified.

Run by the host's framework Python with one GPU visible. The products are in validators/workloads/products.py, how
they are verified in verify.py, the number formats and their tolerances in kinds.py, the exact ones in exact.py.
"""

from __future__ import annotations

from typing import Callable, List, Mapping, Optional, Tuple

import torch

from validators.schema import HOST, MAX_TEXT, NOT_APPLICABLE, UNKNOWN, Measurement, Progress, Record, Scalar
from validators.workloads.exact import ExactInteger, known_answer, takes_small
from validators.workloads.kinds import Kind, kinds, whole_precision
from validators.workloads.products import Run
from validators.workloads.sizing import largest, memory_of

CHECK = "matmul"


class Results:
    """Sends what was measured, and adds up the products over the formats."""

    def __init__(self, subject: str, emit: Callable[[Record], None]) -> None:
        self.subject = subject
        self._emit = emit
        self.runs: List[Tuple[str, Run]] = []

    def value(self, metric: str, value: Scalar, unit: str, note: str = "", **labels: str) -> None:
        """A measurement."""
        self._emit(Measurement(CHECK, self.subject, metric, value, unit, labels, "", note[:MAX_TEXT]))

    def absent(self, kind: Kind, absence: str, note: str) -> None:
        """A format without a rate, and why."""
        for metric, unit in ((f"throughput_{kind.name}", kind.unit), (f"throughput_{kind.name}_spread", "ratio")):
            self.without(metric, unit, absence, note)

    def without(self, metric: str, unit: str, absence: str, note: str) -> None:
        """A metric without a value, and why."""
        self._emit(Measurement(CHECK, self.subject, metric, None, unit, {}, absence, note[:MAX_TEXT]))

    def progress(self, message: str, fraction: float) -> None:
        """What runs now."""
        self._emit(Progress(CHECK, self.subject, message, fraction))

    def rate(self, kind: Kind, run: Run) -> None:
        """A format's rate, its spread, and what verifying cost."""
        self.runs.append((kind.name, run))
        name = f"throughput_cpu_{kind.name}" if self.subject == HOST else f"throughput_{kind.name}"
        with_checks = 2 * run.n**3 * len(run.times) / run.total_s / 1e12
        labels = {
            "n": str(run.n),
            "products": str(len(run.times)),
            "verified_by": run.method,
            "rate_with_verification": f"{with_checks:.4g}",
            "reference_error_of_allowed": f"{run.margin:.3g}",
        }
        self.value(name, run.rate(0.5), kind.unit, **labels)
        self.value(f"{name}_spread", (run.rate(0.9) - run.rate(0.1)) / run.rate(0.5), "ratio", n=str(run.n))

    def products(self) -> None:
        """How many products were verified, and how many of them were wrong."""
        notes = "; ".join(f"{name}: {note}" for name, run in self.runs for note in run.notes)
        counts = ", ".join(f"{name} {run.verified}" for name, run in self.runs)
        self.value("products_verified", sum(run.verified for _, run in self.runs), "count", counts)
        self.value("products_wrong", sum(run.wrong for _, run in self.runs), "count", notes)


def main(params: Mapping[str, Scalar], emit: Callable[[Record], None]) -> None:
    """Measure one device. Raises RuntimeError or MemoryError with the framework's own text where it can't.

    params: subject (GPU UUID, or "host" for a CPU run); seconds a format; dtypes, names with commas, empty for all;
    size, 0 for the largest that memory and time allow.
    """
    subject = str(params.get("subject", HOST))
    seconds = float(params.get("seconds", 2.0))
    names = [name.strip() for name in str(params.get("dtypes", "")).split(",") if name.strip()]
    device = open_device(subject)
    whole_precision()
    results = Results(subject, emit)
    chosen, absent = applicable(device, names)
    for kind, why in absent:
        results.absent(kind, NOT_APPLICABLE, why)
    results.progress("load: known answer and exact integers", 0.0)
    _exact(results, chosen, device)
    problem: Optional[Exception] = None
    for done, kind in enumerate(chosen):
        results.progress(f"load: {kind.name}", (done + 0.5) / (len(chosen) + 0.5))
        try:
            run = largest(kind, device, seconds, int(params.get("size", 0)), memory=memory_of(device))
        except MemoryError as starved:
            problem = starved
            results.absent(kind, UNKNOWN, str(starved))
        except OPERATION_FAILED as failed:
            problem = problem or failed
            results.absent(kind, UNKNOWN, f"{kind.name} products failed: {failed}")
        else:
            results.rate(kind, run)
    if results.runs:
        results.products()
    if problem is not None and (isinstance(problem, MemoryError) or not results.runs):
        raise problem


OPERATION_FAILED = (RuntimeError, TypeError, NotImplementedError)
"""What torch raises for an operation that this card or this version of torch cannot do (TypeError: other arguments)."""


def _exact(results: Results, chosen: List[Kind], device: torch.device) -> None:
    if not chosen:  # a product that never ran is right about nothing
        for metric in ("known_answer", "exact_integer"):
            results.without(metric, "bool", NOT_APPLICABLE, "this card has none of the formats that were asked for")
        return
    if any(map(takes_small, chosen)):
        wrong = known_answer(chosen, device)
        results.value("known_answer", not wrong, "bool", "; ".join(wrong))
    else:
        names = ", ".join(kind.name for kind in chosen)
        results.without("known_answer", "bool", NOT_APPLICABLE, f"{names} take no matrix this small")
    exact = ExactInteger(device)
    faults: List[str] = []
    right: List[str] = []
    failed: List[str] = []
    for kind in chosen:
        try:
            fault = exact.wrong(kind)
        except OPERATION_FAILED as problem:
            failed.append(f"{kind.name} products failed: {problem}")
        else:
            (faults if fault else right).append(fault or kind.name)
    if failed and not faults:
        results.without("exact_integer", "bool", UNKNOWN, "; ".join(failed))
    else:
        results.value("exact_integer", not faults, "bool", "; ".join(faults) or f"every bit right: {', '.join(right)}")


def open_device(subject: str) -> torch.device:
    """The device that the subject names. Raises RuntimeError where torch cannot use it."""
    if subject == HOST:
        return torch.device("cpu")
    if torch.version.cuda is None:
        raise RuntimeError(f"torch {torch.__version__} is a build without CUDA; install a CUDA build of torch")
    torch.cuda.init()  # type: ignore[no-untyped-call]  # torch leaves it untyped; raises with CUDA's own text
    if torch.cuda.device_count() != 1:
        raise RuntimeError(f"torch sees {torch.cuda.device_count()} devices with {subject} alone made visible")
    device = torch.device("cuda", 0)
    found = str(getattr(torch.cuda.get_device_properties(device), "uuid", ""))
    if found and subject.startswith("GPU-") and found.removeprefix("GPU-") != subject.removeprefix("GPU-"):
        raise RuntimeError(f"torch ran on GPU {found}, not on {subject}")
    return device


def applicable(device: torch.device, names: List[str]) -> Tuple[List[Kind], List[Tuple[Kind, str]]]:
    """The formats to measure, and those that this device or torch lacks, with the reason."""
    known = kinds()
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"no such dtype: {', '.join(unknown)}; there are {', '.join(known)}")
    if device.type == "cpu":
        return [known[name] for name in names or ["fp32"]], []
    capability = torch.cuda.get_device_capability(device)
    chosen, absent = [], []
    for kind in known.values():
        if names and kind.name not in names:
            absent.append((kind, "left out by the parameter dtypes"))
        elif capability < kind.capability:
            has, needs = (f"{major}.{minor}" for major, minor in (capability, kind.capability))
            absent.append((kind, f"{kind.lacks} came with compute capability {needs}; this card has {has}"))
        else:
            chosen.append(kind)
    return chosen, absent
