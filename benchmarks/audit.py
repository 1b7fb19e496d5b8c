"""How long the audit of one host takes over loopback SSH with a warm bundle cache, beside what SSH alone costs.

    python benchmarks/audit.py [ROUNDS]

A throw-away sshd on loopback is the host. In each round, one after the other: `ssh host python3 -c pass` (the floor
for any tool that runs Python there), validate_host (connect, run four checks, last record), and the whole command
`bringup validate --level 1` (start of Python, inventory through Ansible, run directory, four reports). Targets: 1.5 s
for the audit of a host, 0.3 s for importing the command line.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from provision.bundle import build_bundle
from provision.remote import HostRun, Job, validate_host
from tests.hosts.sshd import Sshd, sshd
from validators.schema import CheckRequest, Outcome, Plan

ROOT = Path(__file__).resolve().parent.parent
AUDIT = ("system", "software", "compute_capability", "gpu_health")
TARGETS = {"validate_host": 1.5, "bringup validate": 1.5, "import provision.cli": 0.3}


def main(rounds: int) -> int:
    import_module("provision.transport.ssh")  # once an operator's process, not once a host
    taken: dict[str, list[float]] = {}
    last = HostRun("", "")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with sshd(folder / "sshd", config=(f"SetEnv XDG_CACHE_HOME={folder}",)) as server:
            (folder / "inventory.ini").write_text(server.inventory_line("loopback") + "\n")
            job = Job(build_bundle(), PLAN, folder / "records.jsonl", known_hosts=server.known_hosts)
            cold = timed(lambda: validate_host(server.host("loopback"), job))
            print(f"cold, bundle not yet on the host: {cold:.3f} s")
            for _ in range(rounds):
                taken.setdefault("ssh python3 -c pass", []).append(timed(lambda: bare(server)))
                began = time.perf_counter()
                last = validate_host(server.host("loopback"), job)
                taken.setdefault("validate_host", []).append(time.perf_counter() - began)
                taken.setdefault("bringup validate", []).append(timed(lambda: command(folder)))
                taken.setdefault("import provision.cli", []).append(import_time())
    if last.failure:
        print(last.failure.message)
        return 3
    for record in last.records:
        if isinstance(record, Outcome) and record.subject == "host":
            print(f"  on the host, {record.check}: {record.status}, {record.duration_s:.3f} s")
    floor = statistics.median(taken["ssh python3 -c pass"])
    print(f"{rounds} rounds, load {', '.join(f'{one:.1f}' for one in os.getloadavg())}, {os.cpu_count()} cores")
    missed = False
    for what, laps in taken.items():
        median, target = statistics.median(laps), TARGETS.get(what)
        kept = "" if target is None else f"  target {target} s: {'kept' if median <= target else 'MISSED'}"
        missed |= target is not None and median > target
        print(
            f"{what:22} median {median:.3f} s  ({min(laps):.3f} to {max(laps):.3f})  {median / floor:.1f} x ssh{kept}"
        )
    return int(missed)


PLAN = Plan(tuple(CheckRequest(name, 30.0) for name in AUDIT), 120.0)


def timed(what: Callable[[], object]) -> float:
    began = time.perf_counter()
    what()
    return time.perf_counter() - began


def bare(server: Sshd) -> None:
    options = ("-F", "none", "-o", f"UserKnownHostsFile={server.known_hosts}", "-o", "IdentitiesOnly=yes")
    where = ("-i", str(server.key), "-p", str(server.port), f"{server.user}@{server.addresses[0]}")
    subprocess.run(["ssh", *options, *where, "python3", "-c", "pass"], check=True)


def command(folder: Path) -> None:
    words = ["validate", "-i", "inventory.ini", "--level", "1", "--json"]
    subprocess.run(
        [sys.executable, "-c", "from provision.cli import main; main()", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=False,
    )


def import_time() -> float:
    """Seconds of `import provision.cli` by -X importtime, the interpreter's own start left out."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "import provision.cli"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stderr.strip().splitlines()[-1].split("|")[1]) / 1e6


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 10))
