"""An upgrade by the product's own roles, with the resolver's own plan: one host that goes well, one whose DKMS fails.

Real: the roles, apt, systemd, SSH, reboots. Doubles: NVIDIA's repository and the GPU (tests/host/upgrade_hosts.py).
"""

from __future__ import annotations

from pathlib import Path

import pytest

from provision.commands import Selection
from provision.upgrade import command
from provision.upgrade.journal import read, state
from provision.upgrade.model import Means, Options, Prepared
from provision.upgrade.waves import Rules
from tests.host.upgrade_hosts import (
    NEW,
    NEW_DIRECTORY,
    NEW_URL,
    OLD,
    VARIABLES,
    bundle_with_double,
    hosts_with_driver,
    variables_for,
)
from tests.hosts.containers import available
from tests.hosts.nvidia_repository import build
from tests.need import need

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def test_the_roles_upgrade_one_host_and_another_is_as_it_was_after_its_build_failed(tmp_path: Path) -> None:
    need(available(), "no Docker engine runs, and root with docker.io, debootstrap and iptables could start one")
    old = build(tmp_path / "old", versions=[OLD], toolkits=[])
    good = build(tmp_path / "good", versions=[OLD, NEW], toolkits=[])
    bad = build(tmp_path / "bad", versions=[OLD, NEW], toolkits=[], broken={NEW: "dkms-fails"})
    with hosts_with_driver(2, old, tmp_path / "plays") as hosts:
        variables = {}
        for host, repository in zip(hosts, (good, bad), strict=True):
            repository.copy_to(host, NEW_DIRECTORY)
            variables[host.name] = variables_for(NEW, repository, NEW_URL)
        inventory = tmp_path / "inventory.ini"
        inventory.write_text("\n".join(host.inventory_line(**VARIABLES) for host in hosts) + "\n")
        holds = hosts[1].sh("apt-mark showhold")
        means = Means(bundle_with_double(), tell=lambda line: print(line, flush=True), settle_s=0)
        code = command.upgrade(
            Selection((str(inventory),)),
            Options(to=NEW, rules=Rules(canary=0, wave="100%"), reboot_timeout_s=240),
            runs=tmp_path / "runs",
            planner=lambda _hosts: Prepared(variables),
            means=means,
        )
        (run,) = (tmp_path / "runs").iterdir()
        ended = {name: (one.outcome, one.detail) for name, one in state(read(run)).hosts.items()}
        assert code == 1
        assert ended[hosts[0].name][0] == "done", ended
        assert ended[hosts[1].name][0] == "rolled_back" and "install failed" in ended[hosts[1].name][1], ended
        assert [host.sh("cat /run/stub-nvidia/loaded").strip() for host in hosts] == [NEW, OLD]
        assert "nvidia-driver-cuda" in hosts[0].sh("apt-mark showhold")
        assert hosts[1].sh("apt-mark showhold") == holds and hosts[1].sh("dpkg --audit") == ""
        proposed = hosts[0].sh("apt-get -s dist-upgrade | grep -E '^(Inst|Remv) .*(nvidia|cuda)' || true")
        assert proposed == "", "unattended-upgrades would touch it"
