"""Runs under a framework's own interpreter: what it was built for, which GPUs it can use, and what each computes."""

from __future__ import annotations

import importlib
import math
import os
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple

from validators.frameworks import cuda, said
from validators.frameworks.base import PRODUCT, Device, Framework, Missing, serves
from validators.schema import HOST, Record
from validators.workloads.preflight_terms import FAILURES, Expected, because, expected, placed
from validators.workloads.results import Results

CHECK = "preflight"

ADAPTERS: Mapping[str, Tuple[str, str]] = {
    "torch": ("validators.frameworks.torch", "Torch"),
    "tensorflow": ("validators.frameworks.tensorflow", "TensorFlow"),
    "jax": ("validators.frameworks.jax", "Jax"),
    "mxnet": ("validators.frameworks.mxnet", "MXNet"),
    "horovod": ("validators.frameworks.horovod", "Horovod"),
}

LAST_RELEASES: Mapping[str, str] = {
    "mxnet": "MXNet 1.9.1 of 2022 is its last release: no build of it serves a newer card",
}
"""Frameworks that are not released any more: nothing is tried on a card that they carry no code for."""

ALLREDUCE_S = 90.0
"""Seconds for horovodrun: 11 on a CPU host of two cores; it starts a Python with its framework in each process."""


def main(params: Dict[str, Any], emit: Callable[[Record], None]) -> None:
    """`params`: framework, device ("gpu" or "cpu"), `expected`'s, by_chance (it was found, nobody asked for it), and
    log: a file for this process's stderr.
    """
    if params.get("log"):
        said.take(str(params["log"]))
    name = str(params["framework"])
    results = Results(CHECK, HOST, emit, framework=name)
    results.progress(f"importing {name}")
    module, made = ADAPTERS[name]
    try:
        framework = getattr(importlib.import_module(module), made)()
    except (Exception, SystemExit) as problem:  # noqa: BLE001 - an import may raise anything; its words are the result
        if params.get("by_chance"):
            results.not_applicable("imports", f"nobody named this one, which cannot be imported: {because(problem)}")
        else:
            results.value("imports", False, because(problem))
        return
    results.value("imports", True)
    results.value("framework_version", framework.version())
    nvml = expected(params)
    if name == "horovod":
        processes(results, framework, 0 if params.get("device") == "cpu" else len(nvml.gpus))
        return
    architectures = build(results, framework)
    if params.get("by_chance") and params.get("device") != "cpu" and not has_cuda(framework):
        results.not_applicable("devices_seen", "nobody named this one, which is a build without CUDA")
        return
    if params.get("device") == "cpu":
        for metric in ("devices_seen", "devices_missing", "arch_supported", "context", "ran_on_gpu"):
            results.not_applicable(metric, "asked to run on the CPU")
        compute(results, framework, None, HOST, {})
    else:
        on_gpus(results, framework, nvml, architectures)
    libraries(results, framework)


def on_gpus(results: Results, framework: Framework, nvml: Expected, architectures: Optional[List[str]]) -> None:
    """Which GPUs it has, which of NVML's it lacks, and what each of them computes."""
    name = results.labels["framework"]
    results.value("cuda_init", cuda.initialise()[1])
    found = devices(results, framework, nvml)
    named = [(one, *nvml.name(name, one)) for one in found]
    missing(results, nvml, [(subject, labels) for _, subject, labels in named])
    # By NVML first: where the framework gets no device, whether it carries the card's code is still worth knowing.
    capabilities = dict(nvml.gpus)
    capabilities.update((subject, ".".join(map(str, one.capability))) for one, subject, _ in named if one.capability)
    for subject in dict.fromkeys([*nvml.gpus, *(subject for _, subject, _ in named)]):
        foreign = not served(results, subject, capabilities.get(subject, ""), architectures)
        seen = [(one, labels) for one, of, labels in named if of == subject]
        for device, labels in seen:
            if foreign and name in LAST_RELEASES:
                for metric in ("context", "ran_on_gpu", "known_answer", "loss_falls"):
                    results.not_applicable(metric, f"not tried: {LAST_RELEASES[name]}", subject, **labels)
            else:
                one_gpu(results, framework, device, subject, labels)
        if not seen:
            unseen(results, nvml, subject, identified=all(one.uuid for one in found))


def unseen(results: Results, nvml: Expected, subject: str, *, identified: bool) -> None:
    """A GPU of NVML's that the framework does not have. Another framework's answer from it is not this one's."""
    name = results.labels["framework"]
    if nvml.mig:
        why = "MIG is on for a card of this host: a CUDA process gets one instance, and no more"
        results.not_applicable("context", why, subject)
    else:
        says = "does not see this GPU" if identified else "does not say which GPUs it sees"
        results.unknown("context", f"{name} {says}", subject)


def build(results: Results, framework: Framework) -> Optional[List[str]]:
    """What the framework was built for; gives its list of architectures where it has one."""
    try:
        results.value("cuda_build", framework.cuda_build())
    except Missing as reason:
        results.not_applicable("cuda_build", str(reason))
    try:
        architectures = framework.architectures()
    except Missing as reason:
        results.not_applicable("arch_list", str(reason))
        return None
    if not architectures:
        results.unknown("arch_list", "the list is empty")
        return None
    results.value("arch_list", ",".join(architectures))
    return architectures


def has_cuda(framework: Framework) -> bool:
    """Whether it was built for GPUs at all."""
    try:
        framework.cuda_build()
    except Missing:
        return False
    return True


def devices(results: Results, framework: Framework, nvml: Expected) -> List[Device]:
    """The GPUs that the framework can use. Where there are none: why, and that it computes all the same, on the CPU."""
    try:
        found = framework.devices()
    except FAILURES as problem:
        name, reason = results.labels["framework"], because(problem, log_first=True)
        results.value("devices_seen", 0, reason)
        if nvml.gpus:
            try:
                where = framework.multiply(None).ran_on
            except FAILURES:
                return []
            results.value("ran_on_gpu", False, f"{name} goes on without an error, on {where}: {reason}")
        return []
    seen = ", ".join(one.uuid or f"no UUID for {one.index}" for one in found)
    results.value("devices_seen", len(found), seen)
    return found


def missing(results: Results, nvml: Expected, found: List[Tuple[str, Dict[str, str]]]) -> None:
    """The GPUs that NVML has and the framework has not, by UUID."""
    subjects = [subject for subject, _ in found]
    lacking = [gpu for gpu in nvml.gpus if gpu not in subjects]
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    why = "" if hidden is None else f"; CUDA_VISIBLE_DEVICES is set to {hidden[:200]!r}"
    if not nvml.gpus:
        results.unknown("devices_missing", "NVML names no GPU to compare with")
    elif nvml.mig:
        seen = ", ".join(labels.get("instance", subject) for subject, labels in found) or "none"
        there = ", ".join(nvml.instances) or "no instance"
        note = f"MIG is on: a CUDA process gets one instance at most; NVML has {there}; seen: {seen}{why}"
        results.not_applicable("devices_missing", note)
    elif lacking and len(found) >= len(nvml.gpus):
        results.unknown("devices_missing", f"it has {len(found)} GPUs, and not by NVML's UUIDs: {', '.join(subjects)}")
    else:
        results.value("devices_missing", len(lacking), f"{', '.join(lacking)}{why}" if lacking else "")


def served(results: Results, subject: str, capability: str, architectures: Optional[List[str]]) -> bool:
    """Whether the build's machine code runs on a card of this capability; True too where that is not known."""
    if architectures is None:
        results.not_applicable("arch_supported", "the framework has no list of architectures", subject)
        return True
    if not capability:
        why = "neither NVML nor the framework tells the compute capability"
        results.unknown("arch_supported", why, subject)
        return True
    major, _, minor = capability.partition(".")
    supported, by = serves((int(major), int(minor)), architectures)
    note = f"compute capability {capability}: " + (by or f"none of {', '.join(architectures)} serves it")
    if not supported:
        told = [LAST_RELEASES.get(results.labels["framework"], ""), said.why(said.text())]
        note = "; ".join([note, *(one for one in told if one)])
    results.value("arch_supported", supported, note, subject, capability=capability)
    return supported


def one_gpu(results: Results, framework: Framework, device: Device, subject: str, labels: Mapping[str, str]) -> None:
    """One GPU: a context, the known answer, a few steps of training."""
    try:
        framework.create_context(device)
    except FAILURES as problem:
        results.value("context", False, because(problem), subject, **labels)
        for metric in ("ran_on_gpu", "loss_falls"):
            results.not_applicable(metric, "no context came about", subject, **labels)
        return
    results.value("context", True, "", subject, **labels)
    compute(results, framework, device, subject, labels)


def compute(
    results: Results, framework: Framework, device: Optional[Device], subject: str, labels: Mapping[str, str]
) -> None:
    """The known product, where it was computed, and whether training learns there."""
    try:
        product = framework.multiply(device)
    except FAILURES as problem:
        for metric in ("known_answer", *(("ran_on_gpu",) if device is not None else ())):
            results.unknown(metric, because(problem), subject, **labels)
    else:
        results.value("device_ran_on", product.ran_on, "", subject, **labels)
        there = device is None or placed(product.ran_on, device)
        astray = "" if there else f"it ran on {product.ran_on}, not on the GPU"
        if device is not None:
            told = astray and "; ".join(one for one in (astray, said.why(said.text())) if one)
            results.value("ran_on_gpu", there, told, subject, **labels)
        right = product.values == PRODUCT
        if astray:
            results.unknown("known_answer", astray, subject, **labels)
        else:
            note = "" if right else f"{product.values} instead of {PRODUCT}"
            results.value("known_answer", right, note, subject, **labels)
    learns(results, framework, device, subject, labels)


def learns(
    results: Results, framework: Framework, device: Optional[Device], subject: str, labels: Mapping[str, str]
) -> None:
    """A few steps of gradient descent: a convolution (cuDNN), its gradient, and a loss that falls."""
    try:
        losses = framework.train(device)
    except FAILURES as problem:
        reason = because(problem)
        if "out of memory" in reason.lower() or "RESOURCE_EXHAUSTED" in reason:  # somebody else's, most of the time
            results.unknown("loss_falls", reason, subject, **labels)
        else:
            results.value("loss_falls", False, reason, subject, **labels)
        return
    falls = all(map(math.isfinite, losses)) and losses[-1] < losses[0]
    results.value("loss_falls", falls, f"{losses[0]:.4g} to {losses[-1]:.4g} in {len(losses)} steps", subject, **labels)


def libraries(results: Results, framework: Any) -> None:
    """cuDNN and NCCL, after the work: by then they are loaded."""
    for metric, ask in (("cudnn_version", "cudnn"), ("nccl_version", "nccl")):
        try:
            results.value(metric, getattr(framework, ask)())
        except Missing as reason:
            results.not_applicable(metric, str(reason))
        except (LookupError, *FAILURES) as problem:
            results.unknown(metric, str(problem))


def processes(results: Results, horovod: Any, gpus: int) -> None:
    """Horovod: a known sum over processes, instead of a known product."""
    for metric in ("devices_seen", "devices_missing", "arch_supported", "context", "ran_on_gpu", "loss_falls"):
        results.not_applicable(metric, f"Horovod computes with {horovod.binding}: see there")
    try:
        results.value("cuda_build", horovod.cuda_build())
    except Missing as reason:
        results.not_applicable("cuda_build", str(reason))
    results.not_applicable("cudnn_version", f"Horovod uses none itself; see {horovod.binding}")
    try:
        results.value("nccl_version", horovod.nccl())
    except Missing as reason:
        results.not_applicable("nccl_version", str(reason))
    except LookupError as problem:
        results.unknown("nccl_version", str(problem))
    try:
        summed = horovod.allreduce(gpus, ALLREDUCE_S)
    except FAILURES as problem:
        results.unknown("known_answer", because(problem))
        return
    right = all(one == summed.expected for one in summed.sums)
    how = f"the sum over {summed.processes} processes ({summed.over})"
    note = how if right else f"{how} is {summed.sums} instead of {summed.expected}"
    results.value("known_answer", right, note, processes=str(summed.processes))
    results.value("device_ran_on", summed.over)
