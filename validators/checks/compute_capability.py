"""Does NVML answer, how many GPUs does it see, and what are they: identity, capability, and the card's physics."""

from __future__ import annotations

from typing import Any, List, Optional, Union

from validators.check import Context, Metric, Skip, check
from validators.probes import pci
from validators.probes.gpu_report import report
from validators.probes.nvml import Absent, Found, Gpu, Nvml, NvmlFailure, Reading, flag, number, part, session, text
from validators.probes.sysfs import Files
from validators.schema import NOT_APPLICABLE, UNKNOWN

CORES_PER_SM = {
    "5.0": 128, "5.2": 128, "5.3": 128, "6.0": 64, "6.1": 128, "6.2": 128, "7.0": 64, "7.2": 64, "7.5": 64,
    "8.0": 64, "8.6": 128, "8.7": 128, "8.9": 128, "9.0": 128, "10.0": 128, "10.1": 128, "10.3": 128,
    "11.0": 128, "12.0": 128, "12.1": 128,
}  # fmt: skip
"""FP32 cores of one SM by compute capability: NVIDIA cuda-samples, Common/helper_cuda.h, _ConvertSMVer2Cores.

NVML counts cores and not SMs; a capability that is not here leaves the SMs unknown.
"""

ARCHITECTURES = {2: "Kepler", 3: "Maxwell", 4: "Pascal", 5: "Volta", 6: "Turing", 7: "Ampere", 8: "Ada", 9: "Hopper",
                 10: "Blackwell", 13: "Rubin"}  # fmt: skip
"""NVML_DEVICE_ARCH_*."""

BRANDS = {1: "Quadro", 2: "Tesla", 3: "NVS", 4: "GRID", 5: "GeForce", 6: "Titan", 7: "NVIDIA vApps", 8: "NVIDIA vPC",
          9: "NVIDIA vCS", 10: "NVIDIA vWS", 11: "NVIDIA Cloud Gaming", 12: "Quadro RTX", 13: "NVIDIA RTX",
          14: "NVIDIA", 15: "GeForce RTX", 16: "Titan RTX"}  # fmt: skip
"""NVML_BRAND_*."""


@check(
    catches="a driver that does not answer; a GPU that is on the PCI bus but not in NVML; a card too old to use",
    needs=("NVML",),
    level=1,
    seconds=0.3,
    timeout_s=60,
    per_gpu=True,
    metrics=(
        Metric("nvml_answers", "bool", "NVML could be initialised and counts the GPUs"),
        Metric("driver_version", "version", "version of the loaded NVIDIA driver, as NVML gives it"),
        Metric("nvml_version", "version", "version of libnvidia-ml"),
        Metric("cuda_driver", "version", "newest CUDA that the driver serves"),
        Metric("gpu_count_nvml", "count", "GPUs that NVML reaches"),
        Metric("gpu_count_pci", "count", "NVIDIA GPUs on the PCI bus, by sysfs"),
        Metric("count_matches_pci", "bool", "NVML reaches every GPU that is on the PCI bus"),
        Metric("gpus_unreachable", "count", "GPUs that NVML counts but cannot reach"),
        Metric("gpu_name", "text", "the card's name"),
        Metric("compute_capability", "version", "CUDA compute capability"),
        Metric("architecture", "text", "NVIDIA's name of the generation"),
        Metric("brand", "text", "NVIDIA's product line"),
        Metric("sm_count", "count", "streaming multiprocessors, from the cores and the capability"),
        Metric("cuda_cores", "count", "FP32 cores"),
        Metric("sm_clock_max", "MHz", "highest clock of the SMs"),
        Metric("memory_clock_max", "MHz", "highest clock of the memory"),
        Metric("memory_bus_width", "bits", "width of the memory bus"),
        Metric("memory_total", "MiB", "memory of the card"),
        Metric("power_limit_default", "W", "the power limit that the card is shipped with"),
        Metric("mig_mode", "bool", "the card is split into instances (MIG)"),
        Metric("vbios_version", "text", "version of the card's firmware"),
        Metric("board_part_number", "text", "NVIDIA's part number of the board"),
    ),
)
def compute_capability(ctx: Context) -> None:
    """Whether NVML answers, how many GPUs it reaches, and for each its name, compute capability, clocks and memory."""
    on_bus = _count_pci(ctx)
    try:
        with session() as nvml:
            _measure(ctx, nvml, on_bus)
    except NvmlFailure as failure:
        if on_bus == 0:
            ctx.not_applicable("nvml_answers", f"no NVIDIA GPU on the PCI bus; NVML says: {failure}")
            raise Skip("no NVIDIA GPU on the PCI bus") from None
        ctx.measure("nvml_answers", False, labels={"cause": failure.cause}, note=str(failure))
        for metric in ("driver_version", "cuda_driver", "gpu_count_nvml"):
            ctx.unknown(metric, f"NVML does not answer: {failure}")


def _count_pci(ctx: Context) -> Optional[int]:
    devices = pci.nvidia_devices(Files())
    if devices is None:
        ctx.unknown("gpu_count_pci", "this host shows no PCI bus in sysfs")
        return None
    count = sum(device.is_gpu for device in devices)
    ctx.measure("gpu_count_pci", count)
    return count


def _measure(ctx: Context, nvml: Nvml, on_bus: Optional[int]) -> None:
    gpus, lost = nvml.gpus()
    ctx.measure("nvml_answers", True)
    for metric, reading in (
        ("driver_version", nvml.driver_version()),
        ("nvml_version", nvml.library_version()),
        ("cuda_driver", nvml.cuda_driver()),
    ):
        report(ctx, Found(metric, reading))
    ctx.measure("gpu_count_nvml", len(gpus))
    ctx.measure("gpus_unreachable", len(lost), note="; ".join(one.note for one in lost))
    report(ctx, Found("count_matches_pci", _matches(len(gpus), on_bus)))
    for gpu in gpus:
        with ctx.subject(gpu.uuid):
            for found in identity(gpu):
                report(ctx, found, gpu.uuid)


def _matches(reached: int, on_bus: Optional[int]) -> Reading:
    if on_bus is None:
        return Absent(UNKNOWN, "this host shows no PCI bus in sysfs")
    if on_bus == 0 and reached:
        return Absent(NOT_APPLICABLE, "NVML reaches GPUs, but sysfs shows none (WSL, or a masked /sys)")
    return reached == on_bus


def identity(gpu: Gpu) -> List[Found]:
    """What a GPU is: nothing in here changes while it runs."""
    address, minor = gpu.pci_address(), gpu.get("GetMinorNumber")
    labels = {"index": str(gpu.index)}
    if not isinstance(address, Absent):
        labels["pci_address"] = address
    if not isinstance(minor, Absent):
        labels["minor"] = str(minor)
    answer = gpu.get("GetCudaComputeCapability")
    capability: Union[str, Absent] = answer if isinstance(answer, Absent) else f"{answer[0]}.{answer[1]}"
    cores = number(gpu.get("GetNumGpuCores"))
    return [
        Found("gpu_name", text(gpu.get("GetName")), labels),
        Found("compute_capability", capability),
        Found("architecture", _named(gpu.get("GetArchitecture"), ARCHITECTURES)),
        Found("brand", _named(gpu.get("GetBrand"), BRANDS)),
        Found("sm_count", sm_count(cores, capability)),
        Found("cuda_cores", cores),
        Found("sm_clock_max", number(gpu.get("GetMaxClockInfo", 1))),
        Found("memory_clock_max", number(gpu.get("GetMaxClockInfo", 2))),
        Found("memory_bus_width", number(gpu.get("GetMemoryBusWidth"))),
        Found("memory_total", number(part(gpu.get("GetMemoryInfo"), "total"), 2**20)),
        Found("power_limit_default", number(gpu.get("GetPowerManagementDefaultLimit"), 1000)),
        Found("mig_mode", flag(part(gpu.get("GetMigMode"), 0))),
        Found("vbios_version", text(gpu.get("GetVbiosVersion"))),
        Found("board_part_number", text(gpu.get("GetBoardPartNumber"))),
    ]


def sm_count(cores: Reading, capability: Union[str, Absent]) -> Reading:
    """Streaming multiprocessors of so many cores, where the cores of one are known."""
    if isinstance(cores, Absent):
        return cores
    if isinstance(capability, Absent):
        return capability
    each = CORES_PER_SM.get(capability)
    if each is None or int(cores) % each:
        return Absent(UNKNOWN, f"the cores of an SM of compute capability {capability} are not known here")
    return int(cores) // each


def _named(answer: Any, names: dict[int, str]) -> Reading:
    return answer if isinstance(answer, Absent) else names.get(int(answer), f"number {int(answer)}")
