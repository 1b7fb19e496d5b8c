"""Runs under a framework's own interpreter: what it was built for, which GPUs it can use, and one known answer each."""

from __future__ import annotations

import importlib
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple

from validators.frameworks import cuda
from validators.frameworks.base import PRODUCT, Device, Framework, Missing, serves
from validators.schema import HOST, MAX_TEXT, NOT_APPLICABLE, UNKNOWN, Measurement, Progress, Record, Scalar

CHECK = "preflight"
UNITS: Mapping[str, str] = {
    "imports": "bool",
    "framework_version": "version",
    "cuda_build": "version",
    "arch_list": "text",
    "cuda_init": "text",
    "devices_seen": "count",
    "arch_supported": "bool",
    "context": "bool",
    "known_answer": "bool",
    "device_ran_on": "text",
}
"""Metric -> unit; the check declares the same ones (a test compares them)."""

ADAPTERS: Mapping[str, Tuple[str, str]] = {
    "torch": ("validators.frameworks.torch", "Torch"),
    "tensorflow": ("validators.frameworks.tensorflow", "TensorFlow"),
    "jax": ("validators.frameworks.jax", "Jax"),
}

# What a framework raises where a GPU fails it: torch's and JAX's own errors are RuntimeErrors, and the adapter of
# TensorFlow makes its errors such.
FAILURES = (RuntimeError, AssertionError, OSError, ValueError, ImportError, AttributeError, TypeError)


class _Report:
    """Turns figures into measurements with the framework's label on each."""

    def __init__(self, framework: str, emit: Callable[[Record], None]) -> None:
        self.labels = {"framework": framework}
        self.emit = emit

    def value(self, metric: str, value: Scalar, subject: str = HOST, note: str = "", **labels: str) -> None:
        if isinstance(value, str):
            value = value[:MAX_TEXT]
        self._send(Measurement(CHECK, subject, metric, value, UNITS[metric], self._all(labels), "", note[:MAX_TEXT]))

    def none(self, metric: str, absence: str, note: str, subject: str = HOST, **labels: str) -> None:
        self._send(
            Measurement(CHECK, subject, metric, None, UNITS[metric], self._all(labels), absence, note[:MAX_TEXT])
        )

    def _all(self, labels: Mapping[str, str]) -> Dict[str, str]:
        return {**self.labels, **labels}

    def _send(self, measurement: Measurement) -> None:
        self.emit(measurement)


def main(params: Dict[str, Any], emit: Callable[[Record], None]) -> None:
    """`params`: framework, and device ("gpu" or "cpu"). Says everything through records; raises nothing on purpose."""
    name = str(params["framework"])
    report = _Report(name, emit)
    emit(Progress(CHECK, HOST, f"importing {name}"))
    module, made = ADAPTERS[name]
    try:
        framework: Framework = getattr(importlib.import_module(module), made)()
    except (ImportError, OSError, AttributeError, RuntimeError) as problem:
        report.value("imports", False, note=tell(problem))
        return
    report.value("imports", True)
    report.value("framework_version", framework.version())
    architectures = build(report, framework)
    if params.get("device") == "cpu":
        for metric in ("devices_seen", "arch_supported", "context"):
            report.none(metric, NOT_APPLICABLE, "asked to run on the CPU")
        answer(report, framework, None, HOST)
        return
    _, said = cuda.initialise()
    report.value("cuda_init", said)
    found = devices(report, framework)
    # By NVML first: where the framework gets no device, whether it carries the card's code is still worth knowing.
    capabilities = dict(one.partition("=")[::2] for one in str(params.get("gpus", "")).split())
    capabilities.update((_subject(name, one), ".".join(map(str, one.capability))) for one in found if one.capability)
    for subject in dict.fromkeys([*capabilities, *(_subject(name, one) for one in found)]):
        served(report, subject, capabilities.get(subject, ""), architectures)
    seen = {_subject(name, one) for one in found}
    why = (
        f"{name} does not see this GPU" if all(one.uuid for one in found) else f"{name} does not say which GPUs it sees"
    )
    for subject in capabilities:
        if subject not in seen:  # said for each framework: another one's answer from this GPU is not this one's
            report.none("context", UNKNOWN, why, subject)
    for device in found:
        one_gpu(report, framework, device)


def build(report: _Report, framework: Framework) -> Optional[List[str]]:
    """What the framework was built for; gives its list of architectures where it has one."""
    try:
        report.value("cuda_build", framework.cuda_build())
    except Missing as reason:
        report.none("cuda_build", NOT_APPLICABLE, str(reason))
    try:
        architectures = framework.architectures()
    except Missing as reason:
        report.none("arch_list", NOT_APPLICABLE, str(reason))
        return None
    if not architectures:
        report.none("arch_list", UNKNOWN, "the list is empty")
        return None
    report.value("arch_list", ",".join(architectures))
    return architectures


def devices(report: _Report, framework: Framework) -> List[Device]:
    """The GPUs that the framework can use; its reason is the note where there are none."""
    try:
        found = framework.devices()
    except FAILURES as problem:
        report.value("devices_seen", 0, note=tell(problem))
        return []
    report.value("devices_seen", len(found))
    return found


def _subject(framework: str, device: Device) -> str:
    return device.uuid or f"{framework}:{device.index}"


def served(report: _Report, subject: str, capability: str, architectures: Optional[List[str]]) -> None:
    """Whether the build's machine code runs on a card of this capability."""
    if architectures is None:
        report.none("arch_supported", NOT_APPLICABLE, "the framework has no list of architectures", subject)
        return
    if not capability:
        report.none("arch_supported", UNKNOWN, "neither NVML nor the framework tells the compute capability", subject)
        return
    major, _, minor = capability.partition(".")
    supported, by = serves((int(major), int(minor)), architectures)
    note = f"compute capability {capability}: " + (by or f"none of {', '.join(architectures)} serves it")
    report.value("arch_supported", supported, subject, note, capability=capability)


def one_gpu(report: _Report, framework: Framework, device: Device) -> None:
    """One GPU: a context, the known answer."""
    subject = _subject(report.labels["framework"], device)
    try:
        framework.create_context(device)
    except FAILURES as problem:
        report.value("context", False, subject, tell(problem))
        return
    report.value("context", True, subject)
    answer(report, framework, device, subject)


def answer(report: _Report, framework: Framework, device: Optional[Device], subject: str) -> None:
    """The known product, and where it was computed."""
    try:
        product = framework.multiply(device)
    except FAILURES as problem:
        report.none("known_answer", UNKNOWN, tell(problem), subject)
        return
    on_gpu = any(word in product.ran_on.lower() for word in ("cuda", "gpu"))
    report.value("device_ran_on", product.ran_on, subject)
    if device is not None and not on_gpu:
        report.none("known_answer", UNKNOWN, f"it ran on {product.ran_on}, not on the GPU", subject)
        return
    right = product.values == PRODUCT
    report.value("known_answer", right, subject, "" if right else f"{product.values} instead of {PRODUCT}")


def tell(problem: BaseException) -> str:
    """The exception in one line, without torch's paragraph about debugging flags."""
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    kept = [line for line in lines if "CUDA_LAUNCH_BLOCKING" not in line and "TORCH_USE_CUDA_DSA" not in line]
    return f"{type(problem).__name__}: {' '.join(kept)}"
