"""What the way back knows of a host: its packages, its files, its processes. Python 3.9, standard library only."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

BASE = Path("/var/lib/gpu-bringup/snapshots")
MARK = b"BRINGUP_UPGRADE="
"""Begins an entry in the environment of everything that an upgrade's install phase starts."""

APT = ["apt-get", "-q", "-y", "-o", "DPkg::Lock::Timeout=120", "-o", "APT::Get::AutomaticRemove=false"]
UNLOCKED = ["-o", "Debug::NoLocking=true"]
"""For what only asks apt."""

_SCOPE = re.compile(
    r"(?!nvidia-(cuda-(dev|doc|gdb|samples|toolkit.*)|cudnn.*|nsight.*|openjdk.*|profiler|visual-profiler)$)nvidia-.*"
    r"|libnvidia-.*|xserver-xorg-video-nvidia.*|firmware-nvidia-.*|glx-alternative-nvidia|.*-nvidia\d*"
    r"|lib(egl|gl|gles|glx|gl1|egl1|gles1|gles2|glx0)-nvidia.*|nvidia|dkms"
    r"|cuda|cuda-\d+-\d+|cuda-drivers.*|cuda-compat.*|cuda-keyring"
    r"|libcuda1.*|libcudadebugger1.*|libnvcuvid1.*|libnvoptix1.*|libnvidia.*|libnvsdm.*|libxnvctrl.*|libnvscq.*|nvlsm"
    r"|linux-(modules|objects|signatures)-nvidia-.*"
)
"""The driver, what must be of its version, the container toolkit, and metapackages that drag a driver. The first line
leaves out Debian's names of a CUDA toolkit."""


class Refused(Exception):
    """The text says why, in a sentence."""


class Done(NamedTuple):
    """How a command ended. `returncode` -1: it did not end in time and was killed; 127: there is no such command."""

    returncode: int
    out: str
    err: str

    @property
    def said(self) -> str:
        """Its last words, in one line."""
        lines = [line.strip() for line in (self.err + "\n" + self.out).splitlines() if line.strip()]
        bad = [line for line in lines if re.match(r"(E:|dpkg: error|dpkg-deb: error|.*: error)", line)]
        return " / ".join((bad or lines[-2:])[:3])[:600]


def run(argv: Sequence[str], timeout_s: float = 900, cwd: str = "/") -> Done:
    """Run a command without a terminal or questions. What it started is killed with it when the time is over."""
    environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive", "NEEDRESTART_MODE": "l"}
    # Files and no pipes: a daemon that a package starts would keep a pipe open for ever.
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        try:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=cwd,
                env=environment,
                start_new_session=True,
            )
        except OSError as problem:
            return Done(127, "", f"{argv[0]}: {problem.strerror}")
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            code = -1
        out.seek(0)
        err.seek(0)
        texts = [stream.read(4 << 20).decode("utf-8", "replace") for stream in (out, err)]
    if code == -1:
        texts[1] += f"\nE: {argv[0]} did not end within {timeout_s:.0f} s"
    return Done(code, *texts)


class Package(NamedTuple):
    """A package as dpkg has it. `state`: dpkg's abbreviation, such as "ii", "hi", "iF", "iHR"."""

    name: str
    version: str
    state: str
    architecture: str

    @property
    def held(self) -> bool:
        """Whether apt leaves it as it is."""
        return self.state.startswith("h")

    @property
    def whole(self) -> bool:
        """Whether it is installed and configured, and nobody has begun to take it away."""
        return self.state[1:].strip() == "i" and self.state[0] in "ih"


def packages() -> dict[str, Package]:
    """Every package that is there, wholly or in part, by dpkg's name of it."""
    fields = "${binary:Package}\\t${Version}\\t${db:Status-Abbrev}\\t${Architecture}\\n"
    rows = (line.split("\t") for line in run(["dpkg-query", "-W", "-f", fields], 60).out.splitlines())
    found = (Package(row[0], row[1], row[2].rstrip(), row[3]) for row in rows if len(row) == 4)
    return {one.name: one for one in found if one.state[1:2] not in ("n", "")}


def in_scope(name: str) -> bool:
    """Whether a driver's upgrade is about this package."""
    return _SCOPE.fullmatch(name.partition(":")[0]) is not None


def ours(found: dict[str, Package]) -> dict[str, Package]:
    """The packages in scope that are there; what was removed and left its settings is not."""
    return {name: one for name, one in found.items() if in_scope(name) and one.state[1:2] != "c"}


def audit() -> str:
    """What dpkg finds unfinished, in its words; empty: nothing."""
    return run(["dpkg", "--audit"], 60).out.strip()


def automatic(names: Sequence[str]) -> list[str]:
    """Those of the packages that apt installed because others need them."""
    return run(["apt-mark", "showauto", *names], 60).out.split() if names else []


def others(found: dict[str, Package]) -> dict[str, Package]:
    """The packages that are there and are no matter of a driver's upgrade: other people's."""
    return {name: one for name, one in found.items() if not in_scope(name) and one.state[1:2] != "c"}


def unmet() -> str:
    """What apt finds of dependencies that are not met, in its words; empty: nothing."""
    done = run(["apt-get", "-q", *UNLOCKED, "check"], 120)
    return done.said if done.returncode else ""


def boot_id() -> str:
    """Changes with every boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def dkms() -> list[str]:
    """What DKMS says of NVIDIA's modules, a line each."""
    lines = run(["dkms", "status"], 60).out.splitlines()
    return sorted(line.strip() for line in lines if "nvidia" in line)


def installed_driver(found: dict[str, Package] | None = None) -> str:
    """The driver's version by its packages: that of libnvidia-ml or nvidia-smi; empty where there is none."""
    for name, one in sorted((packages() if found is None else found).items()):
        if (
            re.match(r"libnvidia-ml1|libnvidia-compute(-\d+)?(:|$)|nvidia-utils(-\d+)?$|nvidia-smi$", name)
            and one.whole
        ):
            return re.sub(r"^\d+:|-.*$", "", one.version)
    return ""
