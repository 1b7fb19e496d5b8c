"""Installed Debian packages, from dpkg's own file: no process, and no root."""

from __future__ import annotations

import re
from typing import Dict, Optional

from validators.probes.sysfs import Files

STATUS = "/var/lib/dpkg/status"
_LIMIT_BYTES = 64 << 20


def installed(files: Files) -> Optional[Dict[str, str]]:
    """Package -> version of all that are fully installed; None where dpkg keeps no list here."""
    text = files.text(STATUS, _LIMIT_BYTES)
    return None if text is None else parse_status(text)


def parse_status(text: str) -> Dict[str, str]:
    """The same from the file's text. A package that is removed, half-installed or garbled is left out."""
    found = {}
    for paragraph in text.split("\n\n"):
        if not re.search(r"^Status: (?:install|hold) ok installed$", paragraph, re.MULTILINE):
            continue
        name = re.match(r"\s*Package: (\S+)$", paragraph, re.MULTILINE)
        version = re.search(r"^Version: (\S+)$", paragraph, re.MULTILINE)
        if name and version:
            found[name.group(1)] = version.group(1)
    return found


def upstream(version: str) -> str:
    """The upstream part of a package's version: "5:27.3.1-1~ubuntu.24.04~noble" is 27.3.1."""
    numbers = re.match(r"(?:\d+:)?(\d+(?:\.\d+)*)", version)
    return numbers.group(1) if numbers else version
