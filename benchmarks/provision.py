"""How long `bringup provision` takes on hosts that have everything already, beside Ansible alone on the same play.

    python benchmarks/provision.py [ROUNDS] [HOSTS]

Hosts are containers (tests/hosts), reached over SSH, all on this machine's own cores. In each round, one after the
other on the first host: `ansible-playbook site.yml` with the same variables and connection settings, run_play (our
wrapper alone), and the whole command (inventory, survey, plan, play, run directory). Then the whole command on all
hosts. Targets: the whole command at most 10 s, ours at most 5% over Ansible alone, ten hosts at most twice one.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from provision.plays import PLAYBOOKS, run_play
from provision.plays.settings import environment
from tests.hosts.containers import container_hosts

ROOT = Path(__file__).resolve().parent.parent
BARE, WRAPPED, WHOLE = "ansible-playbook", "run_play", "bringup provision"


def main(rounds: int, count: int) -> int:
    taken: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name, container_hosts(count) as hosts:
        folder = Path(name)
        lines = [host.inventory_line(docker_source="distro") for host in hosts]
        (folder / "hosts.ini").write_text("\n".join(lines) + "\n")
        first = hosts[0].name
        print(f"{count} bare hosts provisioned: {timed(lambda: command(folder)):.1f} s")
        plans = max(folder.glob("runs/*/plan.json"))
        plan = {one["host"]: one["variables"] for one in json.loads(plans.read_text())["hosts"]}
        (folder / "plan.json").write_text(json.dumps({"bringup_plan": plan}))
        for _ in range(rounds):
            taken.setdefault(BARE, []).append(timed(lambda: bare(folder, first)))
            taken.setdefault(WRAPPED, []).append(timed(lambda: wrapped(folder, first, plan)))
            taken.setdefault(WHOLE, []).append(timed(lambda: command(folder, "--limit", first)))
            taken.setdefault(f"{WHOLE}, {count} hosts", []).append(timed(lambda: command(folder)))
    print(f"{rounds} rounds, load {', '.join(f'{one:.1f}' for one in os.getloadavg())}, {os.cpu_count()} cores")
    middle = {what: statistics.median(laps) for what, laps in taken.items()}
    for what, laps in taken.items():
        spread = f"({min(laps):.2f} to {max(laps):.2f})"
        print(f"{what:28} median {middle[what]:6.2f} s  {spread:20} {middle[what] / middle[BARE]:.2f} x Ansible alone")
    judged = {
        "whole command at most 10 s": middle[WHOLE] <= 10,
        "run_play at most 5% over Ansible alone": middle[WRAPPED] <= 1.05 * middle[BARE],
        "whole command at most 5% over Ansible alone": middle[WHOLE] <= 1.05 * middle[BARE],
        f"{count} hosts at most 2 x one": middle[f"{WHOLE}, {count} hosts"] <= 2 * middle[WHOLE],
    }
    for what, kept in judged.items():
        print(f"{what}: {'kept' if kept else 'MISSED'}")
    return int(not all(judged.values()))


def timed(what: Callable[[], object]) -> float:
    began = time.perf_counter()
    what()
    return time.perf_counter() - began


def bare(folder: Path, host: str) -> None:
    """As a person would: the same settings, and connections that end with it."""
    with tempfile.TemporaryDirectory(prefix="bare-", dir="/tmp") as name:
        words = ["-i", "hosts.ini", "--limit", host, "-e", "@plan.json", str(PLAYBOOKS / "site.yml")]
        subprocess.run(
            [sys.executable, "-m", "ansible", "playbook", *words],
            cwd=folder,
            env={**os.environ, **environment(Path(name), "strict", None)},
            capture_output=True,
            check=True,
        )


def wrapped(folder: Path, host: str, plan: dict[str, object]) -> None:
    result = run_play(
        "site.yml",
        [folder / "hosts.ini"],
        artifact_dir=folder / "plays",
        limit=host,
        extra_vars={"bringup_plan": plan},
    )
    assert result.ok, result.failures
    assert result.changed == 0


def command(folder: Path, *words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from provision.cli import main; main()", "provision", "-i", "hosts.ini", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


if __name__ == "__main__":
    given = [int(word) for word in sys.argv[1:]]
    sys.exit(main(given[0] if given else 5, given[1] if len(given) > 1 else 10))
