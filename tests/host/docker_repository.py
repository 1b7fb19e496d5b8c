"""A signed stand-in for Docker's package repository: a suite with a component, as the real one has.

Real: names, what conflicts with what, the signature that apt checks, units of systemd. The daemon is a `sleep`, and the
client says a version; the distribution's containerd and runc are here too, as stubs, so that something is in the way.
"""

from __future__ import annotations

import gzip
import hashlib
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.hosts.nvidia_repository.deb import Package, make_key, write_packages

SUITE, COMPONENT = "bookworm", "stable"
_UNIT = "[Service]\nExecStart=/bin/sleep infinity\n[Install]\nWantedBy=multi-user.target\n"
_CLIENT = "#!/bin/sh\nsystemctl is-active --quiet docker || exit 1\necho 'version: 99.0'\n"


@dataclass(frozen=True)
class DockerRepository:
    """A repository at `path`; `key`: armoured text."""

    path: Path
    key: str
    fingerprint: str


def _unit(name: str) -> dict[str, str]:
    return {f"/lib/systemd/system/{name}.service": _UNIT}


def _packages() -> list[Package]:
    enable = {"postinst": "systemctl daemon-reload; systemctl enable --now {0}\n", "prerm": "systemctl stop {0}\n"}

    def scripts(name: str) -> dict[str, str]:
        return {when: text.format(name) for when, text in enable.items()}

    return [
        Package("docker-ce", "99.0-1", "containerd.io, docker-ce-cli", _unit("docker"), scripts=scripts("docker")),
        Package("docker-ce-cli", "99.0-1", files={"/usr/bin/docker": _CLIENT}),
        Package(
            "containerd.io",
            "99.0-1",
            files=_unit("containerd"),
            scripts=scripts("containerd"),
            fields={"Conflicts": "containerd, runc", "Replaces": "containerd, runc"},
        ),
        Package("docker-buildx-plugin", "99.0-1"),
        Package("docker-compose-plugin", "99.0-1"),
        Package("containerd", "99.0~stub", "runc", _unit("containerd"), scripts=scripts("containerd")),
        Package("runc", "99.0~stub"),
    ]


def build(directory: Path) -> DockerRepository:
    """Build it in `directory`."""
    directory.mkdir(parents=True)
    directory.chmod(0o755)
    suite = directory / "dists" / SUITE
    binary = suite / COMPONENT / "binary-amd64"
    binary.mkdir(parents=True)
    write_packages(directory, _packages())
    for name in ("Packages", "Packages.gz"):
        (directory / name).rename(binary / name)
    data = (binary / "Packages").read_bytes()
    lines = [
        f"Origin: Docker\nSuite: {SUITE}\nCodename: {SUITE}\nComponents: {COMPONENT}\nArchitectures: amd64\nSHA256:"
    ]
    for name, content in (("Packages", data), ("Packages.gz", gzip.compress(data, mtime=0))):
        lines.append(f" {hashlib.sha256(content).hexdigest()} {len(content)} {COMPONENT}/binary-amd64/{name}")
    (suite / "Release").write_text("\n".join(lines) + "\n")
    with tempfile.TemporaryDirectory(prefix="bd-", dir="/tmp") as scratch:  # short: gpg's agent has a socket there
        home = Path(scratch) / "g"
        key, fingerprint = make_key(home, "Docker Release (a stub) <docker@gpu-bringup.invalid>")
        home.chmod(0o700)
        gpg = ["gpg", "--batch", "--quiet", "--homedir", str(home), "--pinentry-mode", "loopback", "--passphrase", ""]
        command = [*gpg, "--clearsign", "-o", str(suite / "InRelease"), str(suite / "Release")]
        try:
            subprocess.run(command, check=True, capture_output=True)
        finally:
            subprocess.run(["gpgconf", "--homedir", str(home), "--kill", "all"], capture_output=True, check=False)
            shutil.rmtree(home, ignore_errors=True)
    return DockerRepository(directory, key, fingerprint)
