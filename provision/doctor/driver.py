"""The machine's links: from the PCI device to NVML and the NVLink fabric."""

from __future__ import annotations

from provision.compat import cards, commands
from provision.doctor.facts import Facts
from provision.doctor.finding import Finding, broken, holds, unknown

NO_DRIVER = "No NVIDIA driver is installed"


def pci_device(facts: Facts) -> Finding:
    """An NVIDIA GPU on the PCI bus."""
    count = facts.number("system.gpu_count")
    if count is None:
        hint = "update the NVIDIA driver in Windows, then: wsl --update" if _is_wsl(facts) else ""
        return unknown(facts.why("system.gpu_count"), hint)
    if count:
        return holds(f"{count:g} GPU(s): {', '.join(dict.fromkeys(_card_words(facts))) or 'of unread id'}")
    virtual = facts.text("system.virtualisation") not in ("", "none")
    where = "give this virtual machine a GPU (instance type, PCI passthrough)"
    bare = (
        "lspci -d 10de: ; then reseat the card and its power cables, enable Above 4G Decoding in the BIOS, or return it"
    )
    seen = f"no device of vendor 10de with class 0300 or 0302 in sysfs{', under a hypervisor' if virtual else ''}"
    seen += _idle_driver(facts)
    return broken("No NVIDIA GPU is on the PCI bus", seen, where if virtual else bare)


def _idle_driver(facts: Facts) -> str:
    """What is known of a driver that waits for a GPU; empty where none is installed."""
    built = facts.first("software.module_for_kernel")
    version = driver_version(facts)
    if built is None or not version:
        return ""
    kernel = built.labels.get("kernel", "")
    if not built.value:
        return f"; driver {version} is installed, and not for the running kernel {kernel}"
    if facts.is_not_applicable("software.module_loaded_version"):
        # Of why no module is loaded, only what the kernel says is news here.
        parts = facts.why("software.module_loaded_version").split("; ")
        said = "".join(f"; {part}" for part in parts if part.startswith("the kernel's log"))
        return f"; driver {version} is installed for this kernel and waits for one{said}"
    return f"; driver {version} is installed for this kernel"


def supports_card(facts: Facts) -> Finding:
    """A driver that serves each card: its branch, its age, and the flavour of its module."""
    driver = driver_version(facts)
    wanted = [(one, _address(one.labels.get("address", ""))) for one in facts.all("system.pci_gpu")]
    listed = [(cards.card(str(one.value), one.labels.get("subsystem", "")), at) for one, at in wanted]
    first = listed[0][0] if listed else cards.Card("")
    if not driver:
        if not facts.is_not_applicable("software.module_loaded_version"):
            return unknown(facts.why("software.module_loaded_version"))
        return broken(NO_DRIVER, "no module, no package, no library", _install(facts, first))
    flavour = facts.text("software.module_flavour")
    for card, at in listed:
        fault = _misfit(card, at, driver, flavour)
        if fault:
            return broken(fault, f"driver {driver} ({flavour or 'flavour unread'})", _install(facts, card))
    unlisted = [f"{card.pci_id}{at}" for card, at in listed if not card.last_branch and not card.generation]
    if unlisted or not listed:
        return unknown(
            f"NVIDIA's list for driver 595 does not have {', '.join(unlisted) or 'the card'}; driver {driver}"
        )
    return holds(
        f"driver {driver} ({flavour or 'flavour unread'}) serves {', '.join(dict.fromkeys(_card_words(facts)))}"
    )


def _misfit(card: cards.Card, at: str, driver: str, flavour: str) -> str:
    """Why this driver does not serve the card; empty where nothing speaks against it."""
    name = f"{card.name or card.pci_id}{at}"
    if card.last_branch not in ("", cards.CURRENT):
        last = cards.version(card.last_branch)
        if cards.version(driver)[: len(last)] > last:
            return f"The driver is too new for the card: {name} is served up to branch {card.last_branch}"
    if card.first_driver and cards.version(driver) < cards.version(card.first_driver):
        return f"The driver is too old for the card: {name} needs {card.first_driver} or newer"
    if flavour and card.modules and flavour not in card.modules:
        return f"The {flavour} kernel module does not serve {name}: it needs the {card.modules[0]} one"
    return ""


def module_built(facts: Facts) -> Finding:
    """A module file for the running kernel, or a module that runs."""
    found = facts.first("software.module_for_kernel")
    if found is None or not isinstance(found.value, bool):
        return unknown(facts.why("software.module_for_kernel"))
    kernel = found.labels.get("kernel", "")
    if found.value:
        return holds(found.note or found.labels.get("path", ""))
    others, log = found.labels.get("other_kernels", ""), found.labels.get("build_log", "")
    mend = f"sudo apt-get install linux-headers-{kernel} && sudo dkms autoinstall -k {kernel}"
    evidence = f"nothing below /lib/modules/{kernel}"
    if others:
        evidence += f", but a module for {others}"
        mend = f"sudo reboot (into {others.split()[-1]}), or: {mend}"
    if log:
        evidence += f"; a build failed: {log}"
        mend = f"tail -n 40 {log} ; then: {mend}"
    return broken(f"The nvidia module was not built for the running kernel {kernel}", evidence, mend)


def module_loaded(facts: Facts) -> Finding:
    """The nvidia module runs and has taken every card."""
    loaded = facts.text("software.module_loaded_version")
    held = {one.labels.get("address", ""): one.labels.get("driver", "") for one in facts.all("system.pci_gpu")}
    others = sorted({name for name in held.values() if name not in ("", "nvidia")})
    if facts.flag("software.nouveau_loaded") and not loaded:
        return broken("nouveau holds the cards instead of the nvidia module", "nouveau is loaded", _NO_NOUVEAU)
    if others and loaded:
        which = ", ".join(address for address, name in held.items() if name in others)
        mend = _NO_NOUVEAU if "nouveau" in others else "take the card out of that driver's ids, then reboot"
        return broken(f"{', '.join(others)} holds {which}", "bound in sysfs", mend)
    if loaded:
        free = [address for address, name in held.items() if not name]
        if free:
            claim = f"The nvidia module is loaded but has not taken {', '.join(free)}"
            return broken(claim, f"module {loaded}; no driver is bound there", "sudo dmesg | grep -E 'NVRM|nvidia'")
        return holds(f"nvidia {loaded}")
    if not facts.is_not_applicable("software.module_loaded_version"):
        return unknown(facts.why("software.module_loaded_version"))
    return _not_loaded(facts)


_NO_NOUVEAU = (
    "printf 'blacklist nouveau\\noptions nouveau modeset=0\\n' | sudo tee /etc/modprobe.d/blacklist-nouveau.conf"
    " && sudo update-initramfs -u && sudo reboot"
)


def _not_loaded(facts: Facts) -> Finding:
    path = facts.text("software.module_for_kernel") and _label(facts, "software.module_for_kernel", "path")
    module = path.rpartition("/")[2].partition(".")[0] or "nvidia"
    inside = facts.text("system.container")
    if inside not in ("", "none"):
        return broken("The nvidia module is not loaded", f"seen from a container ({inside})",
                      f"on the container's host: sudo modprobe {module}")  # fmt: skip
    if facts.flag("system.secure_boot"):
        key = "/var/lib/dkms/mok.pub" if facts.text("system.os_id") == "debian" else "/var/lib/shim-signed/mok/MOK.der"
        claim = "The nvidia module is not loaded, and Secure Boot lets only signed modules in"
        mend = f"sudo mokutil --import {key} && sudo reboot (enrol the key at the prompt), then: sudo modprobe {module}"
        return broken(claim, f"Secure Boot is on; {path or 'the module'} is there", mend)
    mend = f"sudo modprobe {module} || sudo dmesg | grep -E 'NVRM|nvidia' | tail"
    return broken("The nvidia module is not loaded", f"{path or 'the module'} is there", mend)


def device_nodes(facts: Facts) -> Finding:
    """/dev/nvidiactl and one node for each card, open to this user."""
    nodes, control = facts.number("software.device_nodes"), facts.flag("software.device_control_node")
    if nodes is None or control is None:
        return unknown(facts.why("software.device_nodes"))
    cards_there = facts.number("system.gpu_count") or 0
    inside = facts.text("system.container") not in ("", "none")
    evidence = f"/dev/nvidiactl {'is there' if control else 'is missing'}, {nodes:g} of {cards_there:g} card nodes"
    if not control or not nodes or (nodes < cards_there and not inside):
        mend = "sudo nvidia-modprobe -u -c=0 && sudo nvidia-smi"
        if inside:
            mend = "start the container with --gpus all (nvidia-container-toolkit on its host)"
        return broken("Device nodes are missing", evidence, mend)
    if facts.flag("software.device_nodes_open") is False:
        note = next((one.note for one in facts.all("software.device_nodes_open")), "")
        mend = "ls -l /dev/nvidia* ; sudo usermod -aG video $USER and log in again, or set NVreg_DeviceFileMode=0666"
        return broken("This user may not open the device nodes", note, mend)
    if facts.flag("software.uvm_node") is False:
        evidence += "; /dev/nvidia-uvm is missing: CUDA has it made by nvidia-modprobe on first use"
    return holds(evidence)


def userspace(facts: Facts) -> Finding:
    """libcuda and libnvidia-ml are there, of the loaded module's version."""
    loaded = facts.text("software.module_loaded_version")
    inside = facts.text("system.container") not in ("", "none")
    for library in ("libnvidia-ml", "libcuda"):
        if facts.is_not_applicable("software.userspace_version", library=library):
            branch = loaded.partition(".")[0]
            mend = f"sudo apt-get install libnvidia-compute-{branch}-server"
            if facts.text("system.os_id") == "debian":
                mend = "sudo apt-get install libcuda1 libnvidia-ml1 nvidia-smi"
            if inside:
                mend = "start the container with --gpus all -e NVIDIA_DRIVER_CAPABILITIES=compute,utility"
            return broken(
                f"The driver's library {library}.so.1 is missing", "not in ldconfig -p nor a usual folder", mend
            )
        version = facts.text("software.userspace_version", library=library)
        if not version or not loaded:
            return unknown(facts.why("software.userspace_version"))
        path = _label(facts, "software.userspace_version", "path", library=library)
        compat = library == "libcuda" and "/compat/" in path and cards.version(version) > cards.version(loaded)
        if version != loaded and not compat:
            mend = "sudo reboot (the driver was upgraded while the old module was loaded)"
            if inside:
                mend = "recreate the container, so that it gets its host's libraries"
            claim = "The loaded module and the driver's libraries are of different versions"
            return broken(claim, f"module {loaded}, {library} {version} at {path}", mend)
    return holds(f"libraries {facts.text('software.userspace_version', library='libcuda')}, module {loaded}")


def nvml_answers(facts: Facts) -> Finding:
    """NVML starts and reaches every card."""
    answer = facts.first("compute_capability.nvml_answers")
    if answer is None:
        return unknown(facts.why("compute_capability.nvml_answers"))
    if not answer.value:
        mend = "sudo dmesg | grep -E 'NVRM|Xid' | tail ; sudo nvidia-smi"
        return broken("NVML does not answer", answer.note, mend)
    reached, there = facts.number("compute_capability.gpu_count_nvml"), facts.number("system.gpu_count")
    inside = facts.text("system.container") not in ("", "none")
    if reached is None or not reached:
        return broken("NVML answers but reaches no GPU", facts.why("compute_capability.gpu_count_nvml"), _LOST)
    if there is not None and reached < there and not inside:
        return broken(f"NVML reaches {reached:g} of {there:g} GPUs", "by sysfs and NVML", _LOST)
    return holds(f"{reached:g} GPU(s), driver {facts.text('compute_capability.driver_version')}")


_LOST = "sudo dmesg | grep -E 'NVRM|Xid' | tail ; a card that fell off the bus (Xid 79) needs a power cycle"


def fabric(facts: Facts) -> Finding:
    """On an NVSwitch system each GPU has registered with the fabric; elsewhere there is no such link."""
    states = facts.per_gpu("gpu_health.fabric_state")
    if not states:
        return unknown(facts.why("gpu_health.fabric_state"))
    if all(one.absence == "not_applicable" for one in states.values()):
        return Finding("not_applicable", "", "no GPU here is in an NVLink fabric")
    late = {uuid: one for uuid, one in states.items() if one.value is not None and one.value != "completed"}
    status = facts.per_gpu("gpu_health.fabric_status")
    ill = {uuid: one for uuid, one in status.items() if one.value is not None and one.value != "success"}
    if late or ill:
        said = ", ".join(sorted({f"{one.value}" for one in (*late.values(), *ill.values())}))
        manager = facts.text("software.fabric_manager")
        driver = driver_version(facts)
        evidence = f"{len(late | ill)} of {len(states)} GPUs: {said}; "
        evidence += f"Fabric Manager {manager}, driver {driver}" if manager else "Fabric Manager is not installed"
        mend = "sudo systemctl enable --now nvidia-fabricmanager && journalctl -u nvidia-fabricmanager -n 40"
        if manager != driver:
            branch = driver.partition(".")[0]
            mend = f"sudo apt-get install nvidia-fabricmanager-{branch}={driver}* && {mend}"
        return broken("The GPUs have not registered with the NVLink fabric: CUDA cannot start", evidence, mend)
    if any(one.value is None and one.absence == "unknown" for one in states.values()):
        return unknown(facts.why("gpu_health.fabric_state"))
    return holds(f"{sum(one.value == 'completed' for one in states.values())} GPU(s) registered")


def driver_version(facts: Facts) -> str:
    """The driver's version: of the loaded module, else of its file, its package, its libraries."""
    names = ("module_loaded_version", "module_file_version", "module_package_version", "userspace_version")
    return next((found for found in (facts.text(f"software.{name}") for name in names) if found), "")


def _install(facts: Facts, card: cards.Card) -> str:
    return commands.install_command(facts.text("system.os_id"), facts.text("system.os_version"), card)


def _card_words(facts: Facts) -> list[str]:
    found = ((str(one.value), one.labels.get("subsystem", "")) for one in facts.all("system.pci_gpu") if one.value)
    return [f"{cards.card(pci_id, subsystem).name or 'unlisted card'} ({pci_id})" for pci_id, subsystem in found]


def _address(address: str) -> str:
    return f" at {address}" if address else ""


def _is_wsl(facts: Facts) -> bool:
    return facts.text("system.virtualisation") == "wsl"


def _label(facts: Facts, name: str, label: str, **labels: str) -> str:
    found = facts.first(name, **labels)
    return "" if found is None else found.labels.get(label, "")
