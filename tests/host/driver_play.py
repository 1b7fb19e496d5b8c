"""A container host, a stub of NVIDIA's repository with sound and broken versions, and the roles played on it.

Underneath is a Debian with Debian's apt and dpkg. `as_ubuntu` replaces /etc/os-release alone: by it the roles choose
Ubuntu's package names, and Ansible says Ubuntu 24.04. No GPU, no real module: tests/hosts/nvidia_repository says what
stands in for what.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from provision.plays import PlayResult, run_play
from tests.hosts import nvidia_repository
from tests.hosts.containers import ContainerHost
from tests.hosts.nvidia_repository import Family, Repository

ROLES = Path(__file__).resolve().parents[2] / "playbooks" / "roles"
OLD, NEW, NEXT = "580.159.04", "580.178.04", "595.91.07"
BROKEN = {
    "580.100.01": "preinst-fails",
    "580.100.02": "postinst-fails",
    "580.100.03": "postinst-hangs",
    "580.100.04": "missing-dependency",
    "580.100.05": "file-conflict",
    "580.100.06": "truncated",
    "580.100.07": "dkms-fails",
    "580.100.08": "wrong-module-version",
    "580.100.09": "needs-contrib",
}
UBUNTU = 'ID=ubuntu\nID_LIKE=debian\nNAME="Ubuntu"\nVERSION_ID="24.04"\nVERSION_CODENAME=noble\nVERSION="24.04 LTS"\n'
STATE = """
dpkg-query -W -f '${Package} ${Version} ${db:Status-Abbrev}\\n' | sort
echo held: $(apt-mark showhold | sort)
echo by hand: $(apt-mark showmanual | sort)
find /etc/apt /etc/modprobe.d /etc/systemd/system -type f -exec sha256sum {} + | sort -k2
find /lib/modules/$(uname -r) -name 'nvidia*' 2>/dev/null | sort
ls -A /var/lib/dkms 2>/dev/null || true
"""
CLEAN = """
apt-mark showhold | xargs -r apt-mark unhold >/dev/null
names=$(dpkg-query -W -f '${Package} ${db:Status-Abbrev}\\n' \\
    '*nvidia*' 'libcuda*' 'linux-headers-*' dkms '*planted*' 2>/dev/null | awk '$2 !~ /^un/ {print $1}')
for name in $names; do printf '#!/bin/sh\\n' >/var/lib/dpkg/info/$name.prerm; done
[ -z "$names" ] || dpkg --force-all --purge $names >/dev/null 2>&1
rm -rf /var/lib/gpu-bringup /run/gpu-bringup /run/stub-nvidia /var/log/gpu-bringup /var/lib/dkms \\
    /lib/modules/$(uname -r) /etc/modprobe.d/bringup-* /usr/src/nvidia-* \\
    /etc/systemd/system/nvidia-persistenced.service.d
systemctl daemon-reload
dpkg --audit; apt-get -q check
"""


@dataclass(frozen=True)
class DriverHost:
    """One host, what it installs from, and where plays leave their records."""

    host: ContainerHost
    repository: Repository
    url: str
    folder: Path

    def sh(self, script: str, *, check: bool = True) -> str:
        return self.host.sh(script, check=check).strip()

    def play(
        self, version: str = OLD, *, roles: Sequence[str] = ("nvidia_driver",), check: bool = False, **variables: object
    ) -> PlayResult:
        """Play roles on it, wanting a version of the driver; the repository is there by the first of all plays."""
        book = self.folder / "book.yml"
        given: dict[str, object] = {
            "nvidia_driver_source": "nvidia",
            "nvidia_driver_branch": version.partition(".")[0],
            "nvidia_driver_version": version if "." in version else "",
            "nvidia_driver_in_container": True,
            "nvidia_driver_free_mib": {"/var": 100},
            "reboot_pre_delay_s": 0,
            **self.repository.variables(self.url),
        }
        tasks: list[Mapping[str, object]] = [{"ansible.builtin.setup": {"gather_subset": ["!all", "min"]}}]
        for role in roles:
            name, _, part = role.partition("/")
            include = {"name": name, "tasks_from": part or "main", "public": True}
            tasks.append({"ansible.builtin.include_role": include})
        verdict = {"dest": "/run/verdict", "content": "{{ _nvidia_driver_verdict | default('') }}", "mode": "0600"}
        tasks.append({"ansible.builtin.copy": verdict, "changed_when": False})
        book.write_text(json.dumps([{"hosts": "all", "gather_facts": False, "become": True, "tasks": tasks}]))
        if not (self.folder / "roles").exists():
            (self.folder / "roles").symlink_to(ROLES)
        return run_play(
            str(book),
            [self.host.host()],
            artifact_dir=self.folder / "plays",
            extra_vars={**given, **variables},
            check=check,
        )

    def done(self, version: str = OLD, **variables: object) -> PlayResult:
        result = self.play(version, **variables)  # type: ignore[arg-type]  # the keywords of play, and any variable
        assert result.ok, [failure.sentence() for failure in result.failures]
        return result

    def foretold(self, version: str = OLD, **variables: object) -> PlayResult:
        """Play under --check, where nothing may fail or be changed."""
        before = self.state()
        result = self.play(version, check=True, **variables)  # type: ignore[arg-type]  # as above
        assert result.ok, [failure.sentence() for failure in result.failures]
        assert self.state() == before
        return result

    def refused(self, version: str = OLD, **variables: object) -> str:
        """Play, and return the one sentence that it fails with."""
        result = self.play(version, **variables)  # type: ignore[arg-type]  # the keywords of play, and any variable
        (failure,) = result.failures
        assert "\n" not in failure.message.strip()
        assert "Traceback" not in failure.message
        return failure.message.strip()

    def verdict(self) -> str:
        """What the last play that reached its end had to say of the driver."""
        return self.sh("cat /run/verdict")

    def state(self) -> str:
        """What a failed installation may not change."""
        return self.sh(STATE)

    def clean(self) -> None:
        """Take away everything that a test has left."""
        self.sh(CLEAN)


@contextlib.contextmanager
def driver_host(
    host: ContainerHost, folder: Path, *, family: Family = "debian", broken: bool = False
) -> Iterator[DriverHost]:
    """Make a host ready: Python's parts and the repository are there, the driver is not."""
    versions = [OLD, NEW, NEXT, *(BROKEN if broken else ())]
    repository = nvidia_repository.build(
        folder / "repository",
        family=family,
        versions=versions,
        toolkits=(),
        container_toolkits=(),
        broken=BROKEN if broken else {},
    )
    if family == "ubuntu":
        host.sh("rm /etc/os-release; cat >/etc/os-release", stdin=UBUNTU.encode())
    host.sh("DEBIAN_FRONTEND=noninteractive apt-get -q update && apt-get -qy install python3-debian python3-packaging")
    yield DriverHost(host, repository, repository.copy_to(host), folder)
