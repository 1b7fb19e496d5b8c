"""How long `bringup provision` takes on hosts that have everything already, beside Ansible alone on the same play.

    python benchmarks/provision.py [ROUNDS] [HOSTS]

Hosts are containers (tests/hosts), reached over SSH, all on this machine's own cores. In each round, one after the
other on the first host: `ansible-playbook site.yml` with the same variables and connection settings, run_play (our
wrapper alone), and the whole command (inventory, survey, plan, play, run directory). Then the whole command on all
hosts, and Ansible alone on them. Last, the same on one host that says it is Ubuntu and has a GPU host's whole software
from the stub of NVIDIA's repositories: driver, CUDA, Docker, container toolkit, nvtop.
Targets: the whole command at most 10 s, ours at most 5% over Ansible alone, ten hosts at most twice one.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from provision.plays import PLAYBOOKS, run_play
from provision.plays.settings import environment
from tests.host.test_provision import OS_RELEASE, PROFILE
from tests.hosts.containers import ContainerHost, container_hosts
from tests.hosts.nvidia_repository import build

ROOT = Path(__file__).resolve().parent.parent
BARE, WRAPPED, WHOLE = "ansible-playbook", "run_play", "bringup provision"
GPU_PROFILE = PROFILE.partition("[frameworks")[0]


def main(rounds: int, count: int) -> int:
    with tempfile.TemporaryDirectory() as name, container_hosts(count) as hosts:
        folder = Path(name)
        (folder / "hosts.ini").write_text("".join(f"{host.inventory_line(docker_source='distro')}\n" for host in hosts))
        print(f"{count} bare hosts provisioned: {timed(lambda: command(folder)):.1f} s")
        plan, first = planned(folder), hosts[0].name
        many = f"{count} hosts"
        usual = measure(
            rounds,
            {
                BARE: lambda: bare(folder, first),
                WRAPPED: lambda: wrapped(folder, first, plan),
                WHOLE: lambda: command(folder, "--limit", first),
                f"{BARE}, {many}": lambda: bare(folder, "all"),
                f"{WHOLE}, {many}": lambda: command(folder),
            },
        )
    with tempfile.TemporaryDirectory() as name, container_hosts(1) as (host,):
        words = gpu_host(Path(name), host)
        print(f"a bare host given a GPU host's software: {timed(lambda: command(Path(name), *words)):.1f} s")
        plan = planned(Path(name))
        whole = measure(
            rounds,
            {
                BARE: lambda: bare(Path(name), host.name),
                WRAPPED: lambda: wrapped(Path(name), host.name, plan),
                WHOLE: lambda: command(Path(name), *words),
            },
        )
    judged = {
        "whole command at most 10 s, standard profile": usual[WHOLE] <= 10,
        "whole command at most 10 s, a GPU host's software": whole[WHOLE] <= 10,
        "run_play at most 5% over Ansible alone": usual[WRAPPED] <= 1.05 * usual[BARE],
        "run_play at most 5% over Ansible alone, a GPU host's software": whole[WRAPPED] <= 1.05 * whole[BARE],
        f"{many} at most 2 x one": usual[f"{WHOLE}, {many}"] <= 2 * usual[WHOLE],
    }
    for what, kept in judged.items():
        print(f"{what}: {'kept' if kept else 'MISSED'}")
    return int(not all(judged.values()))


def measure(rounds: int, sides: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Time each side once a round; print and return the medians in seconds."""
    taken: dict[str, list[float]] = {}
    for _ in range(rounds):
        for what, side in sides.items():
            taken.setdefault(what, []).append(timed(side))
    print(f"{rounds} rounds, load {', '.join(f'{one:.1f}' for one in os.getloadavg())}, {os.cpu_count()} cores")
    middle = {what: statistics.median(laps) for what, laps in taken.items()}
    for what, laps in taken.items():
        spread = f"({min(laps):.2f} to {max(laps):.2f})"
        print(f"{what:28} median {middle[what]:6.2f} s  {spread:20} {middle[what] / middle[BARE]:.2f} x Ansible alone")
    return middle


def planned(folder: Path) -> dict[str, object]:
    """Return the variables that the last run's plan gave, and keep them as a file for Ansible alone."""
    newest = max(folder.glob("runs/*/plan.json"))
    plan = {one["host"]: one["variables"] for one in json.loads(newest.read_text())["hosts"]}
    (folder / "plan.json").write_text(json.dumps({"bringup_plan": plan}))
    return plan


def gpu_host(folder: Path, host: ContainerHost) -> list[str]:
    """Prepare a host and the operator's folder; return the words of the command."""
    host.sh("rm -f /etc/os-release; cat >/etc/os-release", stdin=OS_RELEASE.encode())
    host.sh("sed -i 's/ main$/ main contrib/' /etc/apt/sources.list")
    repository = build(folder / "repository", family="ubuntu", versions=("580.159.04",), toolkits=("13.0.2",))
    url = repository.copy_to(host)
    (folder / "group_vars").mkdir()
    (folder / "group_vars" / "all.yml").write_text(
        json.dumps(
            {
                **repository.variables(url),
                "container_toolkit_repository_url": url,
                "container_toolkit_repository_key": repository.key,
                "container_toolkit_repository_fingerprint": repository.fingerprint,
                "nvidia_driver_in_container": True,
            }
        )
    )
    (folder / "hosts.ini").write_text(f"{host.inventory_line()}\n")
    (folder / "gpu.toml").write_text(GPU_PROFILE)
    return ["--profile", "./gpu.toml", "--reboot"]


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
