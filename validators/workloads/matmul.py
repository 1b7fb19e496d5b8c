"""Matrix products on one device: known answer, exact integers, and throughput with every timed product verified.

Run by the host's framework Python with one GPU visible. The products are in validators/workloads/products.py, their
operands in operands.py, how they are verified in verify.py, the number formats and their tolerances in kinds.py, the
exact ones and the digests in exact.py.
"""

from __future__ import annotations

from typing import Callable, List, Mapping, Optional, Tuple

import torch

from validators.schema import HOST, Record, Scalar
from validators.workloads.exact import ExactInteger, cublas, digest, known_answer, takes_small, wrong_at_full_size
from validators.workloads.kinds import Kind, kinds, whole_precision
from validators.workloads.products import Run
from validators.workloads.results import Results
from validators.workloads.sizing import largest, limit_memory, memory_of

CHECK = "matmul"
OPERATION_FAILED = (RuntimeError, TypeError, NotImplementedError)
"""What torch raises for an operation that this card or this version of torch cannot do (TypeError: other arguments)."""


class Findings:
    """What the formats gave, one after the other, and what they add up to."""

    def __init__(self, results: Results, device: torch.device) -> None:
        self.results, self.device = results, device
        self.runs: List[Tuple[str, Run]] = []
        self._exact = ExactInteger(device)
        self._right: List[str] = []
        self._faults: List[str] = []
        self._failed: List[str] = []

    def exact(self, kind: Kind, n: int = 0) -> None:
        """The exact-integer product, against the CPU's answer, or at the size of the timed products."""
        try:
            fault = wrong_at_full_size(kind, n, self.device) if n else self._exact.wrong(kind)
        except OPERATION_FAILED as problem:
            self._failed.append(f"{kind.name} products failed: {problem}")
        else:
            (self._faults if fault else self._right).append(fault or (f"{kind.name} ({n})" if n else kind.name))

    def rate(self, kind: Kind, run: Run) -> None:
        """A format's rate, its spread, and what verifying cost."""
        self.runs.append((kind.name, run))
        if self.device.type == "cpu" and kind.name != "fp32":
            return  # a CPU's rate is measured in fp32 alone; its other formats are verified
        name = f"throughput_{kind.name}" if self.device.type == "cuda" else "throughput_cpu_fp32"
        labels = {
            "n": str(run.n),
            "terms": str(run.terms),
            "products": str(len(run.times)),
            "verified_by": run.method,
            "reference": kind.reference,
            "median": f"{run.rate(0.5):.4g}",
            "rate_with_verification": f"{run.rate_with_verification:.4g}",
            "reference_error_of_allowed": f"{run.margin:.3g}",
            "flips_found_above": f"{kind.flips_found_above(run.terms, run.n):.3g}",
        }
        self.results.value(name, run.mean_rate, **labels)
        if self.device.type == "cuda":
            self.results.value("bits_repeat", run.method != "tolerance", dtype=kind.name)
        self.results.value(f"{name}_spread", (run.rate(0.9) - run.rate(0.1)) / run.mean_rate, n=str(run.n))

    def digest(self, kind: Kind) -> None:
        """The bits of one product, to be compared with those of like GPUs."""
        if self.device.type != "cuda":
            return
        labels = {"dtype": kind.name, "torch": str(torch.__version__), "gpu": torch.cuda.get_device_name(self.device)}
        try:
            bits = digest(kind, self.device)
        except OPERATION_FAILED as problem:
            self.results.unknown("digest", f"{kind.name} products failed: {problem}", cublas=cublas(), **labels)
        else:
            self.results.value("digest", bits, cublas=cublas(), **labels)

    def totals(self) -> None:
        """What holds over all formats."""
        if self._failed and not self._faults:
            self.results.unknown("exact_integer", "; ".join(self._failed))
        else:
            right = f"every bit right: {', '.join(self._right)}"
            self.results.value("exact_integer", not self._faults, "; ".join(self._faults) or right)
        if not self.runs:
            return
        notes = "; ".join(f"{name}: {note}" for name, run in self.runs for note in run.notes)
        counts = ", ".join(f"{name} {run.verified}" for name, run in self.runs)
        self.results.value("products_verified", sum(run.verified for _, run in self.runs), counts)
        self.results.value("products_wrong", sum(run.wrong for _, run in self.runs), notes)
        self.results.value("operand_rows_wrong", sum(run.operands_wrong for _, run in self.runs), notes)


def main(params: Mapping[str, Scalar], emit: Callable[[Record], None]) -> None:
    """Measure one device. Raises RuntimeError or MemoryError with the framework's own text where it can't.

    params: subject (GPU UUID, or "host" for a CPU run); seconds a format; dtypes, names with commas, empty for all;
    size, 0 for the fastest that memory and time allow; memory_gib, to use no more than so much, 0 for all there is.
    """
    subject = str(params.get("subject", HOST))
    seconds = float(params.get("seconds", SECONDS))
    names = [name.strip() for name in str(params.get("dtypes", "")).split(",") if name.strip()]
    device = open_device(subject)
    whole_precision()
    limit_memory(device, float(params.get("memory_gib", 0.0)))
    results = Results(CHECK, subject, emit)
    chosen, absent = applicable(device, names)
    for kind, why in absent:
        for metric in (f"throughput_{kind.name}", f"throughput_{kind.name}_spread"):
            results.not_applicable(metric, why)
        results.not_applicable("digest", why, dtype=kind.name)
    results.progress("load: known answer and exact integers", 0.0)
    if not chosen:  # a product that never ran is right about nothing
        for metric in ("known_answer", "exact_integer"):
            results.not_applicable(metric, "this card has none of the formats that were asked for")
        return
    _known_answer(results, chosen, device)
    found = Findings(results, device)
    for kind in chosen:
        found.exact(kind)
    problem: Optional[Exception] = None
    for done, kind in enumerate(chosen):
        results.progress(f"load: {kind.name}", (done + 0.5) / (len(chosen) + 0.5))
        try:
            run = largest(kind, device, seconds, int(params.get("size", 0)), memory=memory_of(device))
        except (MemoryError, *OPERATION_FAILED) as failed:
            text = str(failed) if isinstance(failed, MemoryError) else f"{kind.name} products failed: {failed}"
            problem = failed if isinstance(failed, MemoryError) else problem or failed
            for metric in (f"throughput_{kind.name}", f"throughput_{kind.name}_spread"):
                results.unknown(metric, text)
        else:
            found.rate(kind, run)
            found.exact(kind, run.n)
        found.digest(kind)
    found.totals()
    if problem is not None and (isinstance(problem, MemoryError) or not found.runs):
        raise problem


SECONDS = 1.2
"""Timed load of each format: one whole swing of a power limit (products.SETTLE_S), so that the mean does not depend on
where in it the timing begins."""


def _known_answer(results: Results, chosen: List[Kind], device: torch.device) -> None:
    if any(map(takes_small, chosen)):
        wrong = known_answer(chosen, device)
        results.value("known_answer", not wrong, "; ".join(wrong))
    else:
        names = ", ".join(kind.name for kind in chosen)
        results.not_applicable("known_answer", f"{names} take no matrix this small")


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
