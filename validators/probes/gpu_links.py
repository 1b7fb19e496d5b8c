"""A GPU's links: PCIe to the host, NVLink to its peers, and the fabric that the fabric manager makes of them."""

from __future__ import annotations

from typing import Any, Dict, Iterator, List, Tuple, Union

from validators.probes.nvml import (
    ARGUMENT_VERSION_MISMATCH,
    FUNCTION_NOT_FOUND,
    INVALID_ARGUMENT,
    NOT_SUPPORTED,
    Absent,
    Found,
    Gpu,
    number,
)
from validators.schema import NOT_APPLICABLE, UNKNOWN

PCIE_FIELDS = (
    ("pcie_correctable_errors", 173),
    ("pcie_nonfatal_errors", 179),
    ("pcie_fatal_errors", 180),
)
"""NVML_FI_DEV_PCIE_COUNT_*."""

LINK_ERRORS = (
    ("nvlink_replays", 161),
    ("nvlink_recoveries", 162),
    ("nvlink_crc_errors", 163),
    ("nvlink_link_integrity_errors", 211),
    ("nvlink_recovery_failures", 214),
    ("nvlink_effective_errors", 219),
    ("nvlink_symbol_errors", 221),
)
"""Field ids counted per link: 161 to 163 up to NVLink 4, the others from NVLink 5 (Blackwell).

nvmlDeviceGetNvLinkErrorCounter is not used: on Hopper with driver 580 its counter 3 gave the link's own number.
"""

FIELD_SPEED = 164
"""NVML_FI_DEV_NVLINK_GET_SPEED, of one link, in megabytes a second."""

MAX_LINKS = 36
"""NVML_NVLINK_MAX_LINKS of nvml.h."""

FABRIC_STATES = ("not supported", "not started", "in progress", "completed")

_HEALTH: Tuple[Tuple[str, int, int], ...] = (
    ("degraded bandwidth", 0, 1),
    ("route recovery in progress", 2, 1),
    ("route unhealthy", 4, 1),
    ("access timeout recovery", 6, 1),
    ("no partition assigned", 12, 2),
    ("fabric manager disconnected", 14, 2),
)
"""(problem, shift, the value of the two bits that states it); 0 is "not supported" (NVML_GPU_FABRIC_HEALTH_MASK_*)."""

_WRONG_CONFIGURATION = {
    2: "wrong system GUID",
    3: "wrong chassis serial number",
    4: "no partition",
    5: "too few NVLinks",
    6: "incompatible GPU firmware",
    7: "invalid location",
    8: "invalid GPU state",
}


def read(gpu: Gpu, peer_links_active: bool = False) -> Iterator[Found]:
    """Every link metric of gpu_health. `peer_links_active`: another GPU of this host has NVLinks that are up."""
    yield from _pcie(gpu)
    state, fabric = _fabric(gpu)
    yield from fabric
    yield from _nvlink(gpu, peer_links_active or state in FABRIC_STATES[1:])


def _pcie(gpu: Gpu) -> Iterator[Found]:
    width, widest = gpu.get("GetCurrPcieLinkWidth"), gpu.get("GetMaxPcieLinkWidth")
    yield Found("pcie_width", number(width), {} if isinstance(widest, Absent) else {"max": str(widest)})
    yield Found("pcie_width_fraction", _fraction(width, widest))
    generation, newest = gpu.get("GetCurrPcieLinkGeneration"), gpu.get("GetMaxPcieLinkGeneration")
    labels = {} if isinstance(newest, Absent) else {"max": str(newest)}
    # At idle the link drops to a lower generation to save power, so the number means little without a load.
    load = gpu.get("GetUtilizationRates")
    labels["state"] = "unknown" if isinstance(load, Absent) else ("loaded" if load.gpu else "idle")
    yield Found("pcie_generation", number(generation), labels)
    yield Found("pcie_replays", number(gpu.get("GetPcieReplayCounter")))
    values = gpu.fields([(field, 0) for _, field in PCIE_FIELDS])
    for metric, field in PCIE_FIELDS:
        yield Found(metric, values[field, 0])


def _fraction(value: Any, of: Any) -> Union[float, Absent]:
    if isinstance(value, Absent):
        return value
    if isinstance(of, Absent):
        return of
    return value / of if of else Absent(UNKNOWN, "NVML gives 0 as the most there can be")


def _fabric(gpu: Gpu) -> Tuple[str, List[Found]]:
    info: Any = Absent(UNKNOWN, "not asked")
    for name, struct in (
        ("GetGpuFabricInfoV", "c_nvmlGpuFabricInfo_v3_t"),
        ("GetGpuFabricInfoV", "c_nvmlGpuFabricInfo_v2_t"),
        ("GetGpuFabricInfo", "c_nvmlGpuFabricInfo_t"),
    ):
        info = gpu.fill(name, struct)
        if not isinstance(info, Absent) or info.code not in (FUNCTION_NOT_FOUND, ARGUMENT_VERSION_MISMATCH):
            break
    if isinstance(info, Absent):
        return "", [Found(metric, info) for metric in ("fabric_state", "fabric_status", "fabric_health")]
    number_of_state = int(info.state)
    known = 0 <= number_of_state < len(FABRIC_STATES)
    state = FABRIC_STATES[number_of_state] if known else f"state {number_of_state}"
    if state == FABRIC_STATES[0]:
        no = Absent(NOT_APPLICABLE, "NVML: this GPU is in no NVLink fabric")
        return state, [Found(metric, no) for metric in ("fabric_state", "fabric_status", "fabric_health")]
    status: Union[str, Absent] = Absent(UNKNOWN, f"the fabric's registration is {state}")
    if state == FABRIC_STATES[3]:
        status = "success" if not info.status else str(gpu.nvml.module.NVMLError(int(info.status)))
    return state, [
        Found("fabric_state", state),
        Found("fabric_status", status),
        Found("fabric_health", fabric_health(int(getattr(info, "healthMask", 0)))),
    ]


def fabric_health(mask: int) -> Union[str, Absent]:
    """The problems that a fabric health mask states, "healthy", or Absent where it states nothing."""
    if not mask:
        return Absent(NOT_APPLICABLE, "this GPU or driver reports no fabric health")
    problems = [problem for problem, shift, bad in _HEALTH if (mask >> shift) & 3 == bad]
    configuration = (mask >> 8) & 0xF
    if configuration > 1:
        problems.append(_WRONG_CONFIGURATION.get(configuration, f"wrong configuration {configuration}"))
    return ", ".join(problems) or "healthy"


def active_links(gpu: Gpu) -> Union[Tuple[List[int], List[int]], Absent]:
    """(links that this GPU has, links that are up), or Absent where it has no NVLink."""
    every: List[int] = []
    up: List[int] = []
    for link in range(MAX_LINKS):
        state = gpu.get("GetNvLinkState", link)
        if isinstance(state, Absent):
            if not every or state.code not in (INVALID_ARGUMENT, NOT_SUPPORTED):
                return state
            break  # links are numbered without gaps: this is the first that the GPU does not have
        every.append(link)
        if state == 1:
            up.append(link)
    return every, up


def _nvlink(gpu: Gpu, expected: bool) -> Iterator[Found]:
    links = active_links(gpu)
    if isinstance(links, Absent):
        yield from (Found(metric, links) for metric in ("nvlink_links", "nvlink_active", "nvlink_active_fraction"))
        yield from (Found(metric, links) for metric, _ in LINK_ERRORS)
        yield Found("nvlink_speed", links)
        return
    every, up = links
    down = [link for link in every if link not in up]
    yield Found("nvlink_links", len(every))
    yield Found("nvlink_active", len(up), {"down": ",".join(map(str, down))} if down else {})
    if up or expected:
        yield Found("nvlink_active_fraction", len(up) / len(every))
    else:
        note = "every link is off, on every GPU, and there is no fabric: cards without a bridge"
        yield Found("nvlink_active_fraction", Absent(NOT_APPLICABLE, note))
    ids = [(field, link) for _, field in LINK_ERRORS for link in every] + [(FIELD_SPEED, link) for link in up]
    values = gpu.fields(ids)
    for metric, field in LINK_ERRORS:
        yield _total(metric, {link: values[field, link] for link in every})
    speeds = [value for link in up if not isinstance(value := values[FIELD_SPEED, link], Absent)]
    slowest = min(speeds) / 1000 if speeds else Absent(NOT_APPLICABLE if not up else UNKNOWN, "no link tells its speed")
    yield Found("nvlink_speed", slowest)


def _total(metric: str, counts: Dict[int, Union[int, Absent]]) -> Found:
    """The sum over the links; the label names the links that counted anything, as link:count."""
    known = {link: count for link, count in counts.items() if not isinstance(count, Absent)}
    if len(known) < len(counts):
        return Found(metric, next(count for count in counts.values() if isinstance(count, Absent)))
    bad = ",".join(f"{link}:{count}" for link, count in known.items() if count)
    return Found(metric, sum(known.values()), {"links": bad} if bad else {})
