"""NVIDIA devices on the PCI bus, from sysfs: there with no driver loaded and no lspci installed."""

from __future__ import annotations

import pkgutil
from dataclasses import dataclass
from typing import Dict, List, Optional

from validators.probes.sysfs import Files

DEVICES = "/sys/bus/pci/devices"
NVIDIA = 0x10DE
_GPU_CLASSES = (0x0300, 0x0302)
_BRIDGE = 0x0680
"""PCI base and sub class: VGA controller, 3D controller; NVSwitches call themselves "other bridge"."""


@dataclass(frozen=True)
class PciDevice:
    """A PCI device of NVIDIA. Numbers are as sysfs has them; `driver` is the bound kernel driver or empty."""

    address: str
    device: int
    subvendor: int
    subdevice: int
    pci_class: int
    driver: str

    @property
    def is_gpu(self) -> bool:
        """A VGA or 3D controller."""
        return self.pci_class >> 8 in _GPU_CLASSES

    @property
    def is_nvswitch(self) -> bool:
        """A bridge of NVIDIA: an NVSwitch."""
        return self.pci_class >> 8 == _BRIDGE

    @property
    def id(self) -> str:
        """Vendor and device as lspci writes them: "10de:2335"."""
        return f"{NVIDIA:04x}:{self.device:04x}"

    @property
    def subsystem(self) -> str:
        """Subvendor and subdevice in the same way."""
        return f"{self.subvendor:04x}:{self.subdevice:04x}"


def nvidia_devices(files: Files) -> Optional[List[PciDevice]]:
    """All NVIDIA devices, by address; None where this host shows no PCI bus at all."""
    if not files.exists(DEVICES):
        return None
    found = []
    for address in files.names(DEVICES):
        place = f"{DEVICES}/{address}"
        if files.number(f"{place}/vendor", 16) != NVIDIA:
            continue
        device, pci_class = files.number(f"{place}/device", 16), files.number(f"{place}/class", 16)
        if device is None or pci_class is None:
            continue
        found.append(
            PciDevice(
                address,
                device,
                files.number(f"{place}/subsystem_vendor", 16) or 0,
                files.number(f"{place}/subsystem_device", 16) or 0,
                pci_class,
                files.link_name(f"{place}/driver"),
            )
        )
    return found


def name_of(device: PciDevice) -> str:
    """NVIDIA's own name for the card (README of driver 595, appendix A), or empty where the list has none.

    The list names a device id, or a device id together with a subsystem; where only other subsystems are
    listed, the name is taken if they all agree.
    """
    names = _names()
    base = f"{device.device:04x}"
    exact = names.get(f"{base} {device.subvendor:04x} {device.subdevice:04x}") or names.get(base)
    if exact:
        return exact
    others = {name for key, name in names.items() if key.startswith(base + " ")}
    return others.pop() if len(others) == 1 else ""


def _names() -> Dict[str, str]:
    data = pkgutil.get_data("validators.probes", "gpu_names.csv") or b""
    rows = (line.partition(",") for line in data.decode("utf-8").splitlines())
    return {key: name for key, _, name in rows}
