"""How two GPUs of a host are joined, as NVML sees it: in the words of `nvidia-smi topo -m`."""

from __future__ import annotations

from typing import Any, Dict, Sequence, Set, Tuple, Union

from validators.probes.gpu_links import active_links
from validators.probes.nvml import Absent, Gpu, sysfs_address
from validators.schema import UNKNOWN

ANCESTORS = {0: "INT", 10: "PIX", 20: "PXB", 30: "PHB", 40: "NODE", 50: "SYS"}
"""nvmlGpuTopologyLevel_t: one board, one PCIe switch, several switches, a host bridge, a NUMA node, between nodes."""
P2P_NVLINK = 2
"""NVML_P2P_CAPS_INDEX_NVLINK."""
P2P_OK = 0
SWITCH = 2
"""NVML_NVLINK_DEVICE_TYPE_SWITCH."""


def link_kind(a: Gpu, b: Gpu) -> Union[str, Absent]:
    """ "NV18": that many NVLinks, through NVSwitches or direct; "NV" where their number is not told; PIX ... SYS."""
    status = a.get("GetP2PStatus", b.handle, P2P_NVLINK)
    if not isinstance(status, Absent) and status == P2P_OK:
        links = _nvlinks(a, b)
        return f"NV{links}" if links else "NV"
    level = a.get("GetTopologyCommonAncestor", b.handle)
    if isinstance(level, Absent):
        return level
    return ANCESTORS.get(level, Absent(UNKNOWN, f"NVML answers {level}, a level that is not known"))


def _nvlinks(a: Gpu, b: Gpu) -> int:
    """Active links of `a` that lead to `b` or to a switch, through which all lead to it. 0: not told."""
    links = active_links(a)
    if isinstance(links, Absent):
        return 0
    address = b.pci_address()
    return sum(_leads(a, link, address) for link in links[1])


def _leads(a: Gpu, link: int, address: Union[str, Absent]) -> bool:
    kind: Any = a.get("GetNvLinkRemoteDeviceType", link)
    if not isinstance(kind, Absent) and kind == SWITCH:
        return True
    remote: Any = a.get("GetNvLinkRemotePciInfo", link)
    if isinstance(remote, Absent):
        return False
    bus_id = remote.busId.decode() if isinstance(remote.busId, bytes) else str(remote.busId)
    return sysfs_address(bus_id) == address


def on_switches(gpus: Sequence[Gpu]) -> Set[str]:
    """GPUs (UUIDs) with NVLinks on a host where those lead to switches: built alike, whatever links are up now."""
    found = {gpu.uuid: active_links(gpu) for gpu in gpus}
    switches = any(
        gpu.get("GetNvLinkRemoteDeviceType", link) == SWITCH
        for gpu in gpus
        for links in [found[gpu.uuid]]
        if not isinstance(links, Absent)
        for link in links[1]
    )
    return {uuid for uuid, links in found.items() if switches and not isinstance(links, Absent)}


def kinds(gpus: Sequence[Gpu]) -> Dict[Tuple[str, str], Union[str, Absent]]:
    """link_kind of each pair, by UUIDs, both ways round."""
    return {(a.uuid, b.uuid): link_kind(a, b) for a in gpus for b in gpus if a is not b}
