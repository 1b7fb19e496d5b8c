"""NVIDIA GPUs on the PCI bus by sysfs alone: no driver and no tool needed."""

from __future__ import annotations

from pathlib import Path
from typing import List

NVIDIA = "0x10de"
CLASSES = ("0x0300", "0x0302")
"""VGA and 3D controllers."""


def addresses(devices: str = "/sys/bus/pci/devices") -> List[str]:
    """PCI addresses, sorted, as sysfs writes them. Raises OSError where the bus cannot be listed."""
    found = []
    for device in sorted(Path(devices).iterdir()):
        try:
            vendor = (device / "vendor").read_text().strip()
            kind = (device / "class").read_text().strip()
        except OSError:
            continue  # the device went away meanwhile
        if vendor == NVIDIA and kind.startswith(CLASSES):
            found.append(device.name)
    return found
