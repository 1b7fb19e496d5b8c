"""What NVML knows of why a GPU takes no context: its compute mode, who holds it, MIG; and how much room there is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, Mapping, Sequence, Tuple

from validators.probes import nvml
from validators.probes.gpu_state import COMPUTE_MODES, MAX_NAMED_PROCESSES
from validators.probes.sysfs import Files

HOST_MIB_EACH = 2048
GPU_MIB_EACH = 1024
"""What one framework may take to come up: TensorFlow's import about 1 GB of the host, a context with cuDNN and cuBLAS
about 0.6 GB of a GPU (measured 2026-11-21, one H200); doubled, as other cards and versions differ."""


@dataclass(frozen=True)
class Card:
    """A GPU as NVML tells it. `capability`: "9.0", empty where not told. `instances`: the UUIDs of its MIG devices."""

    uuid: str
    capability: str = ""
    mode: str = "default"
    mig: bool = False
    instances: Tuple[str, ...] = ()
    users: str = ""
    free_mib: int = 0

    @property
    def exclusive(self) -> bool:
        """Whether one context at a time is all that it takes, or none."""
        return self.mode != "default"

    def hindrance(self) -> str:
        """Why a context may be refused, in words; empty where nothing of it is known."""
        if self.mode == "prohibited":
            return "its compute mode is Prohibited: no program can use it (nvidia-smi -c DEFAULT allows it)"
        if self.exclusive:
            held = f"and {self.users} holds it" if self.users else "and NVML names nobody who holds it"
            return f"its compute mode is {self.mode}, one context at a time, {held} (nvidia-smi -c DEFAULT ends that)"
        if self.mig and not self.instances:
            return "MIG is on and it has no instance (nvidia-smi mig -cgi ... -C makes one, nvidia-smi -mig 0 ends it)"
        return ""


def cards() -> Dict[str, Card]:
    """UUID -> card, by NVML; none where it does not answer: that is compute_capability's to report."""
    try:
        with nvml.session() as session:
            return {gpu.uuid: _card(gpu) for gpu in session.gpus()[0]}
    except nvml.NvmlFailure:
        return {}


def _card(gpu: nvml.Gpu) -> Card:
    capability = gpu.get("GetCudaComputeCapability")
    mode, mig = gpu.get("GetComputeMode"), gpu.get("GetMigMode")
    memory = gpu.get("GetMemoryInfo")
    on = isinstance(mig, (tuple, list)) and bool(mig[0])
    return Card(
        gpu.uuid,
        ".".join(map(str, capability)) if isinstance(capability, (tuple, list)) else "",
        "default" if isinstance(mode, nvml.Absent) else COMPUTE_MODES.get(mode, f"{mode}"),
        on,
        _instances(gpu) if on else (),
        _users(gpu),
        0 if isinstance(memory, nvml.Absent) else int(memory.free) >> 20,
    )


def _instances(gpu: nvml.Gpu) -> Tuple[str, ...]:
    count = gpu.get("GetMaxMigDeviceCount")
    found = []
    for index in range(0 if isinstance(count, nvml.Absent) else int(count)):
        handle = gpu.get("GetMigDeviceHandleByIndex", index)
        uuid = handle if isinstance(handle, nvml.Absent) else nvml.text(gpu.nvml.call("nvmlDeviceGetUUID", handle))
        if not isinstance(uuid, nvml.Absent):
            found.append(uuid)
    return tuple(found)


def _users(gpu: nvml.Gpu) -> str:
    processes = gpu.get("GetComputeRunningProcesses")
    if isinstance(processes, nvml.Absent):
        return ""
    named = []
    for process in processes[:MAX_NAMED_PROCESSES]:
        name = nvml.text(gpu.nvml.call("nvmlSystemGetProcessName", int(process.pid)))
        named.append(f"process {process.pid}" + ("" if isinstance(name, nvml.Absent) else f" ({name[:120]})"))
    return ", ".join(named)


def side_by_side(frameworks: int, cards: Mapping[str, Card], files: Files) -> int:
    """How many frameworks may come up at once: as the memory of host and GPUs allows; one, where a GPU takes one."""
    if any(card.exclusive for card in cards.values()):
        return 1
    room = [_available_mib(files) // HOST_MIB_EACH, *(card.free_mib // GPU_MIB_EACH for card in cards.values())]
    return max(1, min([frameworks, *room]))


def _available_mib(files: Files) -> int:
    for line in (files.text("/proc/meminfo") or "").splitlines():
        words: Sequence[str] = line.split()
        if words[:1] == ["MemAvailable:"] and len(words) > 1 and words[1].isdecimal():
            return int(words[1]) >> 10
    return 0
