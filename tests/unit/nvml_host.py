"""A host for the tests of the NVML checks: a replaying pynvml, a PCI bus, and a kernel log; measured and judged."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

from provision.criteria import load as load_criteria
from provision.hosts import Host
from provision.remote import HostRun
from provision.report.model import HostReport, Verdict
from provision.verdict import judge
from tests.doubles import h200
from tests.doubles.replay_pynvml import Answer
from validators import check
from validators.probes import kernel_log, pci
from validators.schema import HOST, Bye, CheckRequest, Hello, Measurement, Outcome, Plan, Record, encode

CHECKS = ("compute_capability", "gpu_health")
ADDRESSES = ("0000:00:06.0", "0000:00:07.0", "0000:00:08.0", "0000:00:09.0")
"""Where the recorded hosts have their GPUs."""

LOGS = Path(__file__).resolve().parent.parent / "fixtures" / "kernel_log"
CLEAN = kernel_log.parse_text((LOGS / "dmesg-h200-x4-580.159.04.txt").read_text(), "dmesg")


def log_with(*numbers: int, address: str = "0000:00:06") -> kernel_log.KernelLog:
    """The clean log with the recorded lines of these XIDs, of the GPU at `address`."""
    lines = kernel_log.parse_text((LOGS / "xids.txt").read_text().replace("0000:9b:00", address), "dmesg").lines
    chosen = tuple(line for line in lines if any(f"): {number}," in line.text for number in numbers))
    assert chosen, f"xids.txt has no line of {numbers}"
    return kernel_log.KernelLog(CLEAN.lines + chosen, True, "kmsg")


@dataclass(frozen=True)
class Measured:
    """What the two checks reported."""

    records: tuple[Record, ...]

    @property
    def gpus(self) -> list[str]:
        """UUIDs in order of appearance."""
        subjects = [one.subject for one in self.records if isinstance(one, (Measurement, Outcome))]
        return [one for one in dict.fromkeys(subjects) if one != HOST]

    def all(self, metric: str, subject: str | None = None) -> list[Measurement]:
        """The measurements of a metric, of this subject or of any."""
        return [
            one
            for one in self.records
            if isinstance(one, Measurement) and one.metric == metric and subject in (None, one.subject)
        ]

    def one(self, metric: str, subject: str | None = None) -> Measurement:
        """The only measurement of a metric."""
        (found,) = self.all(metric, subject)
        return found

    def outcome(self, name: str, subject: str = HOST) -> Outcome:
        """How a check ended."""
        (found,) = [
            one for one in self.records if isinstance(one, Outcome) and one.check == name and one.subject == subject
        ]
        return found

    def judged(self) -> HostReport:
        """These measurements under the default criteria."""
        catalogue = tuple(check.load(name).info for name in CHECKS)
        hello = Hello(1, "x", "3.12", "gpu1", "boot", 0.0)
        records = (hello, *self.records)
        report = judge(
            [HostRun("gpu1", "gpu1", (*records, Bye(len(records))))],
            hosts=[Host("gpu1", "gpu1")],
            catalogue=catalogue,
            criteria=_criteria(),
            plans={"gpu1": _plan()},
            run_id="r",
            created="",
            judged="",
            version="0",
        )
        return report.hosts[0]

    def verdicts(self, status: str) -> list[Verdict]:
        """The verdicts of this status."""
        return [one for one in self.judged().verdicts if one.status == status]

    def metrics(self, status: str) -> set[str]:
        """The metrics that were judged so; a whole cell stands as its check's name."""
        return {one.metric or one.check for one in self.verdicts(status)}


def measure(
    module: Any,
    *,
    log: kernel_log.KernelLog | Callable[[], kernel_log.KernelLog] = CLEAN,
    on_bus: Sequence[str] | None = None,
    bus: bool = True,
) -> Measured:
    """Run both checks with `module` as pynvml, GPUs at these addresses, or no PCI `bus`. Records must pass the wire."""
    if on_bus is None:
        on_bus = ADDRESSES[: module.calls["nvmlDeviceGetCount()"]["result"]]
    devices = [pci.PciDevice(address, 0x2335, 0x10DE, 0x18BF, 0x030200, "nvidia") for address in on_bus]
    read = log if callable(log) else lambda: log
    records: list[Record] = []
    with (
        _pynvml(module),
        mock.patch.object(pci, "nvidia_devices", lambda files: devices if bus else None),
        mock.patch.object(kernel_log, "read", read),
    ):
        for name in CHECKS:
            found = check.load(name)
            request = CheckRequest(name, 30.0)
            context = check.Context(found.info, request, _plan(), records.append)
            with context.subject(HOST):
                found.run(context)
    for record in records:
        encode(record)
    return Measured(tuple(records))


@contextlib.contextmanager
def _pynvml(module: Any) -> Iterator[None]:
    """Only this one entry: mock.patch.dict would drop what is imported meanwhile, and load it twice."""
    before = sys.modules.get("pynvml")
    sys.modules["pynvml"] = module
    try:
        yield
    finally:
        if before is None:
            del sys.modules["pynvml"]
        else:
            sys.modules["pynvml"] = before


def h200_host(n_gpus: int = 1, faults: Mapping[str, Answer] | None = None, **more: Any) -> Measured:
    """The recorded host with these faults, measured."""
    return measure(h200(n_gpus, faults), **more)


def _plan() -> Plan:
    return Plan(tuple(CheckRequest(name, 30.0) for name in CHECKS), 60.0)


@cache
def _criteria() -> Any:
    return load_criteria((), tuple(check.load(name).info for name in CHECKS))
