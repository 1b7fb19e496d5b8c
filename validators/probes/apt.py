"""What apt is told: its sources, pins and periodic upgrades. Nothing secret of a source's address is read out."""

from __future__ import annotations

import mmap
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Iterator, List, Mapping, Optional, Sequence, Tuple
from urllib.parse import urlsplit

from validators.probes.driver import Tool
from validators.probes.sysfs import Files

_APT = "/etc/apt"
_LISTS = "/var/lib/apt/lists"
_LISTS_BYTES = 96 << 20
"""Bytes of package lists that are searched for where a package came from."""
_PUBLIC = ("ppa.launchpadcontent.net", "ppa.launchpad.net", "developer.download.nvidia.com", "nvidia.github.io")
"""Sites whose paths are public names; any other path may hold a token, and stays on the host."""
_MAX_FILES = 200
_MAX_ASKED = 40


@dataclass(frozen=True)
class Source:
    """One suite of one source. `site`: scheme and host, and the path on public sites; never a name or a password."""

    site: str
    suite: str
    components: str
    file: str


@dataclass(frozen=True)
class Pin:
    """One paragraph of apt's preferences."""

    package: str
    pin: str
    priority: str
    file: str


def sources(files: Files) -> List[Source]:
    """What apt is to fetch packages from: sources.list, and sources.list.d in both formats."""
    found: List[Source] = []
    for path in _files(files, f"{_APT}/sources.list", (".list", ".sources")):
        text = files.text(path) or ""
        found += _deb822(text, path) if path.endswith(".sources") else _one_line(text, path)
    return found


def _files(files: Files, single: str, endings: Sequence[str]) -> List[str]:
    folder = f"{single}.d"
    names = [name for name in files.names(folder)[:_MAX_FILES] if name.endswith(tuple(endings))]
    return [single, *(f"{folder}/{name}" for name in names)]


def _one_line(text: str, path: str) -> Iterator[Source]:
    for line in text.splitlines():
        words = re.match(r"\s*deb\s+(?:\[[^\]]*\]\s+)?(\S+)\s+(\S+)((?:\s+[^\s#]+)*)", line)
        if words:
            yield Source(site(words.group(1)), words.group(2)[:200], " ".join(words.group(3).split())[:200], path)


def _deb822(text: str, path: str) -> Iterator[Source]:
    for fields in paragraphs(text):
        if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes").lower() in ("no", "false", "0"):
            continue
        components = " ".join(fields.get("components", "").split())[:200]
        for uri in fields.get("uris", "").split():
            for suite in fields.get("suites", "").split():
                yield Source(site(uri), suite[:200], components, path)


def paragraphs(text: str) -> Iterator[Dict[str, str]]:
    """The paragraphs of a deb822 text; names in lower case, continued lines joined, comments left out."""
    fields: Dict[str, str] = {}
    last = ""
    for line in [*text.splitlines(), ""]:
        if line.startswith("#"):
            continue
        if not line.strip():
            if fields:
                yield fields
            fields, last = {}, ""
        elif line[0] in " \t" and last:
            fields[last] += " " + line.strip()
        else:
            name, colon, value = line.partition(":")
            if colon:
                last = name.strip().lower()
                fields[last] = value.strip()


def site(uri: str) -> str:
    """The scheme and host of a source's address; its path too where that is a public name. Nothing else leaves.

    A password stands before the host ("https://user:secret@host/"), and some vendors put a token into the path.
    """
    try:
        parts = urlsplit(uri)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return "unreadable address"
    if parts.scheme in ("file", "copy", "cdrom"):
        return f"{parts.scheme}:"
    path = parts.path.rstrip("/") if host in _PUBLIC else ""
    return f"{parts.scheme}://{host}{f':{port}' if port else ''}{path}"[:300]


def pins(files: Files) -> List[Pin]:
    """What apt's preferences say."""
    found = []
    folder = f"{_APT}/preferences.d"
    names = [name for name in files.names(folder)[:_MAX_FILES] if "." not in name or name.endswith(".pref")]
    for path in (f"{_APT}/preferences", *(f"{folder}/{name}" for name in names)):
        for fields in paragraphs(files.text(path) or ""):
            if "package" in fields and "pin" in fields:
                priority = fields.get("pin-priority", "")
                found.append(Pin(fields["package"][:500], fields["pin"][:300], priority[:20], path))
    return found


def settings(files: Files) -> Mapping[str, str]:
    """The single values that apt.conf.d sets with a full name (`APT::Periodic::Unattended-Upgrade "1";`)."""
    found = {}
    for name in files.names(f"{_APT}/apt.conf.d")[:_MAX_FILES]:
        for line in (files.text(f"{_APT}/apt.conf.d/{name}") or "").splitlines():
            words = re.match(r'\s*([A-Za-z][\w:-]*)\s+"([^"]*)"\s*;', line)
            if words and "://" not in words.group(2):  # a proxy's address may hold a password
                found[words.group(1).lower()] = words.group(2)
    return found


@dataclass(frozen=True)
class Origin:
    """Where a package came from: the site, and what that archive calls itself ("NVIDIA CUDA", "Ubuntu", "LP-PPA-x")."""

    site: str
    label: str


def origins(files: Files, wanted: Mapping[str, str]) -> Dict[str, Origin]:
    """Package -> the archive whose list has this very version of it; where none has, absent.

    `wanted`: package -> version. Lists that are kept compressed are passed by, and so is what goes over the bound.
    """
    found: Dict[str, Origin] = {}
    left = _LISTS_BYTES
    for size, name in _lists(files):
        if size > left or len(found) == len(wanted):
            break
        left -= size
        for package in _in_list(files, name, {key: one for key, one in wanted.items() if key not in found}):
            found[package] = Origin(_place(name), _label(files, name))
    return found


def asked_origins(files: Files, wanted: Mapping[str, str], tool: Tool) -> Dict[str, Origin]:
    """The same by asking apt, which takes it a second: its caches are built in memory, and nothing is written."""
    names = list(wanted)[:_MAX_ASKED]
    if not names:
        return {}
    nowhere = ("-o", "Dir::Cache::pkgcache=", "-o", "Dir::Cache::srcpkgcache=")
    return parse_policy(files, tool(("apt-cache", *nowhere, "policy", "--", *names)).stdout)


def parse_policy(files: Files, text: str) -> Dict[str, Origin]:
    """The first archive of the installed version of each package in what `apt-cache policy NAME...` prints."""
    found: Dict[str, Origin] = {}
    package, at_installed = "", False
    for line in text.splitlines():
        head = re.match(r"(\S+):$", line)
        if head:
            package, at_installed = head.group(1), False
        elif line.startswith(" ***"):
            at_installed = True
        elif re.match(r"     \S", line):
            at_installed = False  # another version
        archive = (
            re.match(r"        \s*-?\d+ (\w+:\S+) (\S+) ", line) if at_installed and package not in found else None
        )
        if archive:
            uri, suite = archive.group(1), archive.group(2).partition("/")[0]
            begin = re.sub(r"^\w+:(//)?", "", uri).rstrip("/").replace("/", "_")
            inner = f"_dists_{suite}_" if suite != "." else "_"
            names = [one for one in files.names(_LISTS)[:1000] if one.startswith(begin + inner)]
            release = next((one for one in names if one.endswith("Release")), "")
            found[package] = Origin(site(uri), _of_release(files, release) if release else "")
    return found


def in_lists(files: Files, package: str) -> Optional[bool]:
    """Whether any list has this package; None where that cannot be said: a list is compressed, or there is none."""
    names = [name for name in files.names(_LISTS)[:1000] if re.search(r"_Packages(\.\w+)?$", name)]
    left = _LISTS_BYTES
    for size, name in _lists(files):
        left -= size
        if left < 0:
            return None
        if any(_in_list(files, name, {package: ""})):
            return True
    return False if names and all(name.endswith("_Packages") for name in names) else None


def _lists(files: Files) -> List[Tuple[int, str]]:
    """Size and name of each package list, the small ones first: those are NVIDIA's, Docker's and the PPAs'."""
    found = []
    for name in files.names(_LISTS)[:1000]:
        if name.endswith("_Packages"):
            try:
                size = Path(files.root + f"{_LISTS}/{name}").stat().st_size
            except OSError:
                continue
            if size:
                found.append((size, name))
    return sorted(found)


def _in_list(files: Files, name: str, wanted: Mapping[str, str]) -> Iterator[str]:
    """The packages that the list has in these versions; an empty version stands for any."""
    named = {package.encode(): package for package in wanted}
    try:
        with (
            Path(files.root + f"{_LISTS}/{name}").open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text,
        ):
            for at, found in _paragraphs(text):
                package = named.get(found)
                if package is not None and _is_version(text, at, wanted[package]):
                    yield package
    except (OSError, ValueError):
        return


def _label(files: Files, name: str) -> str:
    """What the archive of a list calls itself, by the Release file that came with it."""
    begin = re.match(r".*_dists_[^_]+_", name)
    start = begin.group() if begin else name[: -len("Packages")]
    for ending in ("InRelease", "Release"):
        if files.exists(f"{_LISTS}/{start}{ending}"):
            return _of_release(files, f"{start}{ending}")
    return ""


def _of_release(files: Files, name: str) -> str:
    text = files.text(f"{_LISTS}/{name}", 4096) or ""
    told: Dict[str, str] = {key: value.strip()[:100] for key, value in re.findall(r"(?m)^(Origin|Label):(.*)$", text)}
    personal = told.get("Origin", "").startswith("LP-PPA")  # a PPA's label is free text
    return told.get("Origin", "") if personal else told.get("Label", "") or told.get("Origin", "")


def _place(name: str) -> str:
    """The host that a list's file name begins with, and a PPA's owner and name; "file:" for a local repository."""
    host, _, rest = name.replace("%5f", "_").partition("_")
    if host.startswith("ppa."):
        return "/".join([host, *rest.split("_", 2)[:2]])[:200]
    return host[:200] if host not in ("", ".") else "file:"


def _paragraphs(text: mmap.mmap) -> Iterator[Tuple[int, bytes]]:
    """Where each package's paragraph begins, and its name: one pass over 100 MB, however many are looked for."""
    at = text.find(b"Package: ")
    while at >= 0:
        end = text.find(b"\n", at)
        if end < 0:
            return
        yield at, text[at + len(b"Package: ") : end]
        newline = text.find(b"\nPackage: ", end)
        at = newline + 1 if newline >= 0 else -1


def _is_version(text: mmap.mmap, at: int, version: str) -> bool:
    end = text.find(b"\n\n", at)
    paragraph = text[at : end if end >= 0 else len(text)][:65536]
    return not version or f"\nVersion: {version}\n".encode() in paragraph + b"\n"
