"""Does each framework see each GPU, and can it compute there: the question most asked in this field."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Callable, Dict, List, Mapping, Optional, Set, Tuple

from validators import lease
from validators.check import Context, Metric, Skip, check
from validators.frameworks import said
from validators.probes import gpu_contexts, pci, pythons
from validators.probes.gpu_contexts import Card
from validators.probes.sysfs import Files
from validators.probes.workload import run_workload
from validators.processes import last_words
from validators.schema import ERROR, HOST, MAX_TEXT, RAN, Measurement, Record, Scalar

METRICS = (
    Metric("imports", "bool", "whether the framework can be imported (note: what it said)"),
    Metric("framework_version", "version", "its version, as it says itself"),
    Metric("cuda_build", "version", "the CUDA version it was built for"),
    Metric("cudnn_version", "version", "the cuDNN that it loaded"),
    Metric("nccl_version", "version", "the NCCL that it has"),
    Metric("arch_list", "text", "machine code in its wheel: sm_90 is for compute capability 9.0, compute_90 is PTX"),
    Metric("cuda_init", "text", "what the driver library's cuInit answers"),
    Metric("devices_seen", "count", "GPUs that the framework can use (note: their UUIDs, or why none)"),
    Metric("devices_missing", "count", "GPUs that NVML has and the framework has not (note: their UUIDs)"),
    Metric("arch_supported", "bool", "whether that machine code runs on this GPU"),
    Metric("context", "bool", "whether a CUDA context and a first kernel came about (note: the error)"),
    Metric("known_answer", "bool", "whether [[1,2,3],[4,5,6]] @ [[1,2],[3,4],[5,6]] is [[22,28],[49,64]]; of Horovod: "
                                   "whether a sum over processes is right"),
    Metric("device_ran_on", "text", "the framework's own word for where that was computed"),
    Metric("ran_on_gpu", "bool", "whether that was this GPU (note: where else, and why)"),
    Metric("loss_falls", "bool", "whether a few steps of training there make the loss smaller (note: from, to)"),
)  # fmt: skip
TIMEOUT_S = 150.0
"""For one framework: its first import from a cold disk can take a minute."""
FRAMEWORKS = ("torch", "tensorflow", "jax", "mxnet", "horovod")


@check(
    catches="a wheel built for another CUDA or another card, missing libraries, a silent fallback to the CPU",
    needs=("a framework's Python: bringup_torch_python, or the frameworks role",),
    level=2,
    seconds=10,
    timeout_s=780,
    per_gpu=True,
    params=("frameworks", "framework_timeout_s"),
    metrics=METRICS,
)
def preflight(ctx: Context) -> None:
    """Per framework its CUDA build, libraries and GPUs; on each GPU a known product and a few steps of training.

    Frameworks come up side by side, as far as memory allows. Params: frameworks (torch, and each other one that a
    Python of this host has), framework_timeout_s (150), for one of them.
    """
    on_cpu = ctx.plan.device == "cpu"
    if not on_cpu:
        devices = pci.nvidia_devices(Files())
        if devices is not None and not any(device.is_gpu for device in devices):
            raise Skip("no NVIDIA GPU on the PCI bus")
    cards = {} if on_cpu else gpu_contexts.cards()
    wanted = _wanted(ctx)
    seen = _Seen(ctx, cards)
    with ThreadPoolExecutor(gpu_contexts.side_by_side(len(wanted), cards, Files())) as pool:
        found = list(pool.map(lambda framework: _measure(seen, framework, cards, wanted[framework]), wanted))
    problems = [problem for of_one in found for problem in of_one]
    for uuid in cards:
        answered = uuid in seen.subjects
        detail = "" if answered else "; ".join(problems) or "no framework reached this GPU (see devices_seen)"
        ctx.outcome(uuid, RAN if answered else ERROR, detail)
    if problems:
        raise RuntimeError("; ".join(problems))


def _wanted(ctx: Context) -> Dict[str, bool]:
    """torch always, another framework where a Python has it or should have; or those asked for. Says why one is not.

    With each, whether it was found by chance: neither inventory, params nor role speak of it.
    """
    asked = [name.strip() for name in str(ctx.request.params.get("frameworks", "")).split(",") if name.strip()]
    unknown = [name for name in asked if name not in FRAMEWORKS]
    if unknown:
        raise ValueError(f"no such framework: {', '.join(unknown)}; there are {', '.join(FRAMEWORKS)}")
    made = [name for name in FRAMEWORKS if Files().exists(f"{pythons.VENVS}/{name}/bin/python3")]
    named = asked or ["torch", *ctx.plan.pythons, *made]
    others = [name for name in FRAMEWORKS if name not in named]
    found: Dict[str, Tuple[Optional[str], str]] = dict.fromkeys(others, (None, "left out by the parameter frameworks"))
    if not asked:
        found = pythons.look_for(ctx.plan, others)
    for name, (python, why) in found.items():
        if python is None:
            ctx.not_applicable("imports", why, HOST, {"framework": name})
    return {name: name in found for name in FRAMEWORKS if name not in found or found[name][0]}


class _Seen(Context):
    """The same context, noting which GPUs gave an answer on the way, and saying what NVML knows of a refusal."""

    def __init__(self, ctx: Context, cards: Mapping[str, Card]) -> None:
        super().__init__(ctx.info, ctx.request, ctx.plan, self._note)
        self.subjects: Set[str] = set()
        self._cards = cards
        self._pass_on: Callable[[Record], None] = ctx.forward

    def _note(self, record: Record) -> None:
        if isinstance(record, Measurement):
            if record.subject != HOST:
                self.subjects.add(record.subject)
            told = self._known(record)
            if told:
                note = "; ".join(one for one in (record.note, told) if one)
                record = replace(record, note=note[:MAX_TEXT])
        self._pass_on(record)

    def _known(self, record: Measurement) -> str:
        """What NVML says of the GPUs that a record is about: of one that is refused, of one that others use."""
        if record.metric == "devices_seen" and not record.value:
            told = {uuid: card.hindrance() for uuid, card in gpu_contexts.cards().items()} if self._cards else {}
            return "; ".join(f"{uuid}: {text}" for uuid, text in told.items() if text)
        card = self._cards.get(record.subject)
        if record.metric != "context" or card is None:
            return ""
        if record.value is False:
            return gpu_contexts.cards().get(card.uuid, card).hindrance() or (
                f"in use by {card.users}" if card.users else ""
            )
        return f"in use by {card.users}, which this check leaves alone" if card.users else ""


def _measure(ctx: Context, framework: str, cards: Mapping[str, Card], by_chance: bool) -> List[str]:
    """Measure one framework, found `by_chance` or not; gives what stood in the way."""
    python = pythons.find_python(ctx.plan, framework)
    if python is None:
        return [pythons.explain(ctx.plan, framework)]
    log = said.make()
    params: Dict[str, Scalar] = {
        "framework": framework,
        "device": ctx.plan.device,
        "gpus": " ".join(f"{card.uuid}={card.capability}" for card in cards.values()),
        "instances": " ".join(f"{one}={card.uuid}" for card in cards.values() for one in card.instances),
        "mig": any(card.mig for card in cards.values()),
        "by_chance": by_chance,
        "log": f"/proc/{os.getpid()}/fd/{log}" if log >= 0 else "",
    }
    timeout_s = float(ctx.request.params.get("framework_timeout_s", TIMEOUT_S))
    try:
        run_workload(ctx, python, "preflight", params, gpus=None, timeout_s=timeout_s)
    except RuntimeError as problem:
        words = said.text(log)
        told = said.why(words)
        how = last_words(words.encode("utf-8", "replace"))
        return [f"{framework} under {python}: {problem}{how}" + (f"; its log: {told}" if told else "")]
    finally:
        if log >= 0:
            lease.write_all(2, said.text(log).encode("utf-8", "replace")[-said.SHOWN_BYTES :])
            os.close(log)
    return []
