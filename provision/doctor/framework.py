"""The framework's links: its CUDA build, its machine code, a context, the known answer."""

from __future__ import annotations

from provision.compat import cards, commands
from provision.doctor.driver import driver_version
from provision.doctor.facts import Facts
from provision.doctor.finding import Finding, broken, holds, unknown
from validators.schema import ERROR


def was_asked(facts: Facts, name: str) -> bool:
    """Whether preflight ran, or tried to, for this framework."""
    if facts.all("preflight.imports", framework=name):
        return True
    return any(one.check == "preflight" and one.status == ERROR for one in facts.outcomes)


def cuda_build(facts: Facts, name: str) -> Finding:
    """The framework is there, is a CUDA build, and its CUDA is not too new for the driver."""
    imported = facts.first("preflight.imports", framework=name)
    if imported is None:
        mend = f"bringup provision --tags frameworks, or set bringup_{name}_python"
        return unknown(facts.why("preflight.imports", framework=name), mend)
    if not imported.value:
        mend = f"{_python(facts, name)} -m pip install --force-reinstall {name}"
        return broken(f"{name} cannot be imported", imported.note, mend)
    built = facts.first("preflight.cuda_build", framework=name)
    return _no_build(facts, name) if built is None else _against_driver(facts, name, str(built.value))


def _no_build(facts: Facts, name: str) -> Finding:
    why = facts.why("preflight.cuda_build", framework=name)
    if facts.is_not_applicable("preflight.cuda_build", framework=name):
        version = facts.text("preflight.framework_version", framework=name)
        return broken(f"{name} {version} has no CUDA in it", why, _other_build(facts, name))
    return unknown(why)


def _against_driver(facts: Facts, name: str, built: str) -> Finding:
    version = facts.text("preflight.framework_version", framework=name)
    # libcuda counts, not the module: the cuda-compat package brings a newer one on purpose.
    driver = facts.text("software.userspace_version", library="libcuda") or driver_version(facts)
    oldest = cards.minimum_driver(built)
    if not driver or not oldest:
        return unknown(f"{name} {version} is built for CUDA {built}; driver {driver or 'not known'}")
    if cards.version(driver) < cards.version(oldest):
        claim = f"{name} {version} is built for CUDA {built}, which needs driver {oldest} or newer"
        return broken(claim, f"driver {driver}", f"{_other_build(facts, name)}; or install a newer driver")
    return holds(f"{name} {version} for CUDA {built}, driver {driver} (at least {oldest})")


def architectures(facts: Facts, name: str) -> Finding:
    """The framework's machine code runs on every card."""
    served = facts.per_gpu("preflight.arch_supported", framework=name)
    bad = [one for one in served.values() if one.value is False]
    if bad:
        capability = bad[0].labels.get("capability", "")
        claim = f"{name} carries no machine code for compute capability {capability}"
        return broken(claim, bad[0].note, _other_build(facts, name, capability))
    if served and all(one.value is True for one in served.values()):
        return holds("; ".join(sorted({one.note for one in served.values()})))
    if facts.is_not_applicable("preflight.arch_list", framework=name):
        return Finding("not_applicable", "", facts.why("preflight.arch_list", framework=name))
    return unknown(facts.why("preflight.arch_supported", framework=name))


_MENDS = (
    ("802", "sudo systemctl enable --now nvidia-fabricmanager (of the driver's version)"),
    ("803", "sudo reboot (module and libcuda are of different versions)"),
    ("NO_DEVICE", "env | grep VISIBLE_DEVICES ; unset the variable that hides the GPUs"),
    ("too old", "install a newer driver, or a build of the framework for an older CUDA"),
    ("out of memory", "nvidia-smi ; end the processes that hold the card's memory"),
    (
        "busy or unavailable",
        "nvidia-smi -q -d COMPUTE ; sudo nvidia-smi -c DEFAULT, or end the process that holds the card",
    ),
    ("no kernel image", "install a build of the framework for this card's compute capability"),
    ("cannot open shared object", "reinstall the framework with its CUDA libraries, or set LD_LIBRARY_PATH"),
    ("999", "sudo nvidia-modprobe -u -c=0 ; if that does not help: sudo rmmod nvidia_uvm && sudo modprobe nvidia_uvm"),
    (
        "unknown error",
        "sudo nvidia-modprobe -u -c=0 ; if that does not help: sudo rmmod nvidia_uvm && sudo modprobe nvidia_uvm",
    ),
    ("", "sudo dmesg | grep -E 'NVRM|Xid' | tail ; unset CUDA_VISIBLE_DEVICES"),
)
"""What CUDA's error says -> what mends it; the first that fits."""


def context(facts: Facts, name: str) -> Finding:
    """Every GPU that NVML reaches takes a context from the framework."""
    seen = facts.first("preflight.devices_seen", framework=name)
    if seen is None:
        return unknown(facts.why("preflight.devices_seen", framework=name))
    started = facts.text("preflight.cuda_init", framework=name)
    said = f"cuInit: {started}; {seen.note}" if started != "CUDA_SUCCESS" else seen.note
    reached = facts.number("compute_capability.gpu_count_nvml")
    count = seen.value if isinstance(seen.value, int) else 0
    if not count:
        return broken(f"{name} gets no CUDA device", said.strip("; "), _mend(said))
    failed = [one for one in facts.per_gpu("preflight.context", framework=name).values() if one.value is False]
    if failed:
        return broken(f"{name} gets no CUDA context on {failed[0].subject}", failed[0].note, _mend(failed[0].note))
    in_parts = facts.is_not_applicable("preflight.devices_missing", framework=name)  # MIG: a process gets one instance
    if reached is not None and count < reached and not in_parts:
        missing = facts.first("preflight.devices_missing", framework=name)
        named = missing.note if missing is not None and missing.value else "CUDA_VISIBLE_DEVICES may hide the others"
        return broken(f"{name} sees {count} of {reached:g} GPUs", named, "env | grep CUDA_VISIBLE_DEVICES")
    good = [one for one in facts.per_gpu("preflight.context", framework=name).values() if one.value is True]
    if len(good) < count:
        return unknown(f"{len(good)} of {count} GPUs told of a context")
    return holds(f"{len(good)} GPU(s)")


def known_answer(facts: Facts, name: str) -> Finding:
    """Every GPU computes [[22, 28], [49, 64]]."""
    answers = facts.per_gpu("preflight.known_answer", framework=name)
    wrong = [one for one in answers.values() if one.value is False]
    if wrong:
        mend = "take the card out of service: look at gpu_health (XIDs, ECC), then have it replaced"
        return broken(f"{wrong[0].subject} computes a wrong product", wrong[0].note, mend)
    right = sum(one.value is True for one in answers.values())
    reached = facts.number("compute_capability.gpu_count_nvml")
    expected = int(reached) if reached is not None else len(answers)
    if not right or right < expected:
        note = next((one.note for one in answers.values() if one.absence), "")
        return unknown(note or facts.why("preflight.known_answer", framework=name))
    version = facts.text("preflight.framework_version", framework=name)
    return holds(f"{name} {version} computes the known answer on {right} of {expected} GPU(s)")


def _mend(said: str) -> str:
    return next(mend for sign, mend in _MENDS if sign in said)


def _python(facts: Facts, name: str) -> str:
    found = facts.first("software.framework_version", framework=name)
    return "python3" if found is None else found.labels.get("python", "python3")


def _other_build(facts: Facts, name: str, capability: str = "") -> str:
    """A command that brings a build of the framework which fits this driver and card."""
    python = _python(facts, name)
    if name in ("mxnet", "horovod"):
        return f"{name} is not released any more: use torch, TensorFlow or JAX on this card"
    if name != "torch":
        extra = {"tensorflow": "tensorflow[and-cuda]", "jax": "jax[cuda12]"}.get(name, name)
        return f"{python} -m pip install --force-reinstall '{extra}'"
    index = commands.torch_build(capability, driver_version(facts))
    if not index:
        return "no recent torch fits this driver and card: install a newer driver, or an older torch by hand"
    return f"{python} -m pip install --force-reinstall torch --index-url (PyTorch's index {index})"
