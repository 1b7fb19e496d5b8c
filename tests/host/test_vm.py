"""site.yml on a virtual machine with a kernel of its own: no container's shortcuts."""

from __future__ import annotations

from pathlib import Path

import pytest

from provision.plays import run_play
from tests.hosts.vm import available, virtual_machine
from tests.need import need


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_virtual_machine_is_provisioned_and_then_left_alone(tmp_path: Path) -> None:
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
