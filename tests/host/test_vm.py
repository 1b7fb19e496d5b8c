"""A virtual machine with a kernel of its own, provisioned and validated: no container's shortcuts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from provision.plays import run_play
from tests.hosts.vm import available, virtual_machine
from tests.need import need

ROOT = Path(__file__).resolve().parents[2]
COMMAND = "from provision.cli import main; main()"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_virtual_machine_is_provisioned_then_left_alone_then_validated(tmp_path: Path) -> None:
    need(available(), "root with qemu-system-x86, qemu-utils, e2fsprogs and debootstrap could boot a machine")
    with virtual_machine() as vm:
        given = {"docker_source": "distro"}

        def play(*, check: bool = False) -> int:
            result = run_play(
                "site.yml",
                [vm.host()],
                artifact_dir=tmp_path,
                extra_vars=given,
                check=check,
                known_hosts=vm.known_hosts,
            )
            assert result.ok, [failure.sentence() for failure in result.failures]
            return result.changed

        assert play(check=True) >= 2
        assert play() >= 3
        assert play() == 0
        assert play(check=True) == 0

        (tmp_path / "hosts.ini").write_text(vm.inventory_line(expect_nvtop=3) + "\n")
        done = subprocess.run(
            [sys.executable, "-c", COMMAND, "validate", "-i", "hosts.ini", "--level", "1", "--json"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1, done.stderr
        (host,) = json.loads(done.stdout)["hosts"]
        found = {(one["check"], one["metric"]): one["status"] for one in host["verdicts"]}
        assert found["system", "gpu_count"] == "FAIL"
        assert found["software", "nvtop"] == "PASS"
