"""How long the audit takes over loopback SSH with a warm bundle cache: connect, run, last record. Budget: 1.5 s.

    python benchmarks/audit.py [RUNS]

A throw-away sshd on loopback is the host; every run is a new connection, as the operator makes it.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from provision.bundle import build_bundle
from provision.remote import HostRun, Job, validate_host
from tests.hosts.sshd import sshd
from validators.schema import CheckRequest, Outcome, Plan

AUDIT = ("system", "software", "compute_capability", "gpu_health")
BUDGET_S = 1.5


def main(runs: int) -> int:
    bundle = build_bundle()
    plan = Plan(tuple(CheckRequest(name, 30.0) for name in AUDIT), 120.0)
    import_module("provision.transport.ssh")  # once an operator's process, not once a host
    taken: list[float] = []
    last = HostRun("", "")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with sshd(folder / "sshd", config=(f"SetEnv XDG_CACHE_HOME={folder}",)) as server:
            for number in range(runs + 1):
                job = Job(bundle, plan, folder / "records.jsonl", known_hosts=server.known_hosts)
                began = time.perf_counter()
                last = validate_host(server.host("loopback"), job)
                spent = time.perf_counter() - began
                if last.failure:
                    print(last.failure.message)
                    return 3
                label, laps = "warm" if number else "cold", last.timings
                print(f"{label} {spent:.3f} s  connect {laps['connect']:.3f}  hello {laps['start']:.3f}")
                taken += [spent] if number else []
    for record in last.records:
        if isinstance(record, Outcome) and record.subject == "host":
            print(f"  {record.check}: {record.status}, {record.duration_s:.3f} s")
    load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
    print(f"warm: median {statistics.median(taken):.3f} s, worst {max(taken):.3f} s, budget {BUDGET_S} s (load {load})")
    return 0 if statistics.median(taken) < BUDGET_S else 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 10))
