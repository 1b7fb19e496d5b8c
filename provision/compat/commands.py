"""What a person types to mend a host: for the doctor."""

from __future__ import annotations

from provision.compat.cards import CURRENT, Card
from provision.compat.data import facts
from provision.compat.frameworks import best
from provision.compat.model import Machine, Resolution, Source, Wish
from provision.compat.resolver import resolve

_GUIDE = "follow docs.nvidia.com/datacenter/tesla/driver-installation-guide for this system"


def install_command(os_id: str, os_version: str, wanted: Card) -> str:
    """How this system installs a driver for the card: from its own archive, else from NVIDIA's repository."""
    for source in ("distro", "nvidia"):
        found = _driver(f"{os_id}-{os_version}", wanted, source)
        part = found.part("driver")
        if part is None:
            continue
        command = f"sudo apt-get install linux-headers-$(uname -r) {' '.join(part.packages)} && sudo reboot"
        if source == "nvidia":
            return f"add NVIDIA's repository (cuda-keyring), since {os_id} has no driver for this card; then: {command}"
        return command + ("   # components contrib and non-free" if os_id == "debian" else "")
    if wanted.last_branch not in ("", CURRENT):
        system = os_id or "this system"
        return f"install a driver of branch {wanted.last_branch} from nvidia.com: {system} packages none"
    return _GUIDE


def _driver(os: str, wanted: Card, source: Source) -> Resolution:
    # The kernel is not known here, and DKMS builds for whatever runs: no prebuilt module of some flavour.
    machine = Machine(gpus=(wanted.pci_id,), os=os, kernel="any")
    return resolve(machine, Wish(source=source, scope="full", container_toolkit=False))


def torch_build(capability: str, driver: str) -> str:
    """The CUDA index ("cu130") of the newest torch that serves this capability under this driver; empty: none known.

    An empty capability asks for any card.
    """
    builds = [one for one in facts().builds if one.framework == "torch"]
    found = best(builds, [capability] if capability else [], driver)
    return "" if found is None else found.index or "cu" + found.cuda.replace(".", "")
