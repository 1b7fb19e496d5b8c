"""What NVIDIA's driver wrote into the kernel's log: XIDs by GPU, SXids of NVSwitches, GPUs that failed to start.

Numbers and counts only. What an XID means and what to do is data on the operator's side
(provision/criteria/xid.toml), so an old run can be read with a newer table.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Dict, Iterable, List, Tuple

from validators.probes.kernel_log import Line
from validators.probes.nvml import sysfs_address

# With MIG the instance follows the address: "(PCI:0000:01:00 GPU-I:05)" (open-gpu-kernel-modules).
_XID = re.compile(r"NVRM: Xid \((?:PCI:)?([0-9a-fA-F:.]+)(?: GPU-I:\w+)?\): (\d{1,5})\b")
_SXID = re.compile(r"SXid \(PCI:([0-9a-fA-F:.]+)\): (\d{1,6})\b")
_INIT_FAILED = re.compile(r"NVRM: GPU ([0-9a-fA-F:.]+): (?:RmInitAdapter failed|rm_init_adapter failed)")

MAX_KINDS = 64
"""Different XIDs of one GPU that are kept."""


@dataclass(frozen=True)
class Event:
    """One XID of one device since boot: how often, when first and last (seconds since boot), and its last line."""

    pci_address: str
    number: int
    count: int
    first_s: float
    last_s: float
    line: str


def xids(lines: Iterable[Line]) -> Tuple[Event, ...]:
    """XIDs of GPUs, in order of address and number."""
    return _events(lines, _XID)


def sxids(lines: Iterable[Line]) -> Tuple[Event, ...]:
    """SXids of NVSwitches, in order of address and number."""
    return _events(lines, _SXID)


def start_failures(lines: Iterable[Line]) -> Dict[str, str]:
    """GPUs whose driver could not start them: PCI address -> the last such line."""
    found: Dict[str, str] = {}
    for line in lines:
        match = _INIT_FAILED.search(line.text)
        if match is not None:
            found[sysfs_address(match[1])] = line.text
    return found


def _events(lines: Iterable[Line], pattern: re.Pattern[str]) -> Tuple[Event, ...]:
    seen: Dict[Tuple[str, int], List[Line]] = {}
    kinds: Dict[str, int] = {}
    for line in lines:
        match = pattern.search(line.text)
        if match is None:
            continue
        address, number = sysfs_address(match[1]), int(match[2])
        if (address, number) not in seen:
            kinds[address] = kinds.get(address, 0) + 1
            if kinds[address] > MAX_KINDS:
                continue
        seen.setdefault((address, number), []).append(line)
    return tuple(
        Event(address, number, len(these), these[0].t_s, these[-1].t_s, these[-1].text)
        for (address, number), these in sorted(seen.items())
    )
