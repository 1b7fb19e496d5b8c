"""How long `bringup plan` takes over loopback SSH with a warm bundle cache, beside what SSH alone costs.

    python benchmarks/plan.py [ROUNDS]

A throw-away sshd on loopback is the host. In each round, one after the other: `ssh host python3 -c pass` (the floor
for any tool that runs Python there), the survey of a prepared process and the plan made from it (what each further host
of a fleet costs), the whole command for one host of an inventory, and for four. Target: 2 s a host.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from provision.hosts import Host
from provision.planning import plan_of_run, prepare, survey
from provision.profile import load_profile
from tests.hosts.sshd import Sshd, sshd
from validators.schema import Outcome

ROOT = Path(__file__).resolve().parent.parent
TARGET_S = 2.0
HOSTS = tuple(f"127.0.0.{number}" for number in (1, 2, 3, 4))


def main(rounds: int) -> int:
    taken: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with sshd(folder / "sshd", addresses=HOSTS, config=(f"SetEnv XDG_CACHE_HOME={folder}",)) as server:
            lines = [
                server.inventory_line(f"h{number}").replace(HOSTS[0], address) for number, address in enumerate(HOSTS)
            ]
            (folder / "four.ini").write_text("\n".join(lines) + "\n")
            host, prepared, profile = server.host("loopback"), prepare(), load_profile("training")
            survey([host], known_hosts=server.known_hosts, prepared=prepared)  # the bundle is on the host from here on

            def one() -> None:
                (run,) = survey([host], known_hosts=server.known_hosts, prepared=prepared)
                assert run.failure is None, run.failure
                plan_of_run(run, profile)

            for _ in range(rounds):
                for what, lap in (
                    ("ssh python3 -c pass", lambda: bare(server, host)),
                    ("survey and plan", one),
                    ("bringup plan, 1 host", lambda: command(folder, "h0")),
                    ("bringup plan, 4 hosts", lambda: command(folder, "all")),
                ):
                    taken.setdefault(what, []).append(timed(lap))
            (last,) = survey([host], known_hosts=server.known_hosts, prepared=prepared)
    for record in last.records:
        if isinstance(record, Outcome):
            print(f"  on the host, {record.check}: {record.status}, {record.duration_s:.3f} s")
    print(f"{rounds} rounds, load {', '.join(f'{one:.1f}' for one in os.getloadavg())}, {os.cpu_count()} cores")
    floor = statistics.median(taken["ssh python3 -c pass"])
    missed = False
    for what, laps in taken.items():
        median = statistics.median(laps)
        hosts = 4 if "4" in what else 1
        target = TARGET_S * hosts if "plan" in what else None
        kept = "" if target is None else f"  target {target:g} s: {'kept' if median <= target else 'MISSED'}"
        missed |= target is not None and median > target
        print(
            f"{what:22} median {median:.3f} s  ({min(laps):.3f} to {max(laps):.3f})  {median / floor:.1f} x ssh{kept}"
        )
    return int(missed)


def timed(what: Callable[[], object]) -> float:
    began = time.perf_counter()
    what()
    return time.perf_counter() - began


def bare(server: Sshd, host: Host) -> None:
    options = ("-F", "none", "-o", f"UserKnownHostsFile={server.known_hosts}", "-o", "IdentitiesOnly=yes")
    where = ("-i", str(server.key), "-p", str(server.port), f"{host.user}@{host.address}")
    subprocess.run(["ssh", *options, *where, "python3", "-c", "pass"], check=True)


def command(folder: Path, limit: str) -> None:
    words = ["plan", "-i", "four.ini", "--limit", limit, "--profile", "training", "--json"]
    done = subprocess.run(
        [sys.executable, "-c", "from provision.cli import main; main()", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr.decode()


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 10))
