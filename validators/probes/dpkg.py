"""Every package that dpkg knows of, its state and what the user decided about it: from dpkg's own files."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import List, Optional

from validators.probes.packages import STATUS
from validators.probes.sysfs import Files

_LIMIT_BYTES = 64 << 20
_UPDATES = "/var/lib/dpkg/updates"
_LOCKS = (
    "/var/lib/dpkg/lock-frontend",
    "/var/lib/dpkg/lock",
    "/var/lib/apt/lists/lock",
    "/var/cache/apt/archives/lock",
)
_SETTLED = ("installed", "config-files", "not-installed")
_FIELDS = ("Package", "Status", "Version", "Maintainer", "Architecture")


@dataclass(frozen=True)
class Package:
    """One package. `want` is the selection (install, hold, deinstall, purge), `state` dpkg's status word."""

    name: str
    version: str
    want: str
    flag: str
    state: str
    maintainer: str = ""
    architecture: str = ""

    @property
    def is_installed(self) -> bool:
        """Whole and usable."""
        return self.state == "installed" and self.flag == "ok"

    @property
    def is_broken(self) -> bool:
        """Left half-way: apt refuses to install anything before it is mended."""
        return self.state not in _SETTLED or self.flag != "ok"

    @property
    def vendor(self) -> str:
        """Who built it, by its Maintainer: nvidia, docker, ubuntu, debian or other."""
        who = self.maintainer.lower()
        for sign, vendor in _VENDORS:
            if sign in who:
                return vendor
        return "other"


_VENDORS = (
    ("@nvidia.com", "nvidia"),
    ("@docker.com", "docker"),
    ("@lists.ubuntu.com", "ubuntu"),
    ("@ubuntu.com", "ubuntu"),
    ("@canonical.com", "ubuntu"),
    ("@lists.debian.org", "debian"),
    (".debian.org", "debian"),
    ("@debian.org", "debian"),
)


def everything(files: Files) -> Optional[List[Package]]:
    """All packages in dpkg's list; None where it keeps none here."""
    text = files.text(STATUS, _LIMIT_BYTES)
    return None if text is None else parse(text)


def parse(text: str) -> List[Package]:
    """The packages of such a text. A paragraph that is garbled is left out."""
    found = []
    for paragraph in text.split("\n\n"):
        fields = {}
        for line in paragraph.split("\n"):
            name, colon, value = line.partition(": ")
            if colon and name in _FIELDS:
                fields[name] = value.strip()
        status = fields.get("Status", "").split()
        if len(status) == 3 and re.fullmatch(r"[a-z0-9][a-z0-9+.-]*", fields.get("Package", "")):
            found.append(
                Package(
                    fields["Package"],
                    fields.get("Version", "")[:200],
                    status[0],
                    status[1],
                    status[2],
                    fields.get("Maintainer", "")[:200],
                    fields.get("Architecture", "")[:40],
                )
            )
    return found


def was_interrupted(files: Files) -> bool:
    """Whether dpkg has a journal that it did not finish: apt then asks for `dpkg --configure -a`."""
    return any(name.isdigit() for name in files.names(_UPDATES))


@dataclass(frozen=True)
class Holder:
    """Who holds one of apt's or dpkg's locks."""

    lock: str
    pid: int
    program: str


def lock_holders(files: Files) -> Optional[List[Holder]]:
    """Who holds apt's locks, from /proc/locks, which every user may read; None where it is not there.

    A process of another PID namespace shows as 0 or -1 there: the lock is seen, its holder is not.
    """
    table = files.text("/proc/locks")
    if table is None and not files.exists("/proc/locks"):
        return None
    held = {}
    for line in (table or "").splitlines():
        row = re.match(r"\d+: POSIX\s+\w+\s+WRITE\s+(-?\d+) ([0-9a-f]+):([0-9a-f]+):(\d+) ", line)
        if row:
            held[int(row.group(2), 16), int(row.group(3), 16), int(row.group(4))] = int(row.group(1))
    found = []
    for path in _LOCKS:
        try:
            place = os.stat(files.root + path)
        except OSError:
            continue
        pid = held.get((os.major(place.st_dev), os.minor(place.st_dev), place.st_ino))
        if pid is not None:
            found.append(Holder(path, pid, files.text(f"/proc/{pid}/comm", 64) or ""))
    return found
