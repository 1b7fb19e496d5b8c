"""known_hosts: which keys a host may have. Each file is parsed once a process and looked up in a dict.

(Parsing 1,100 entries anew for each connection costs 100 to 400 ms of CPU each: measured.)
"""

from __future__ import annotations

import base64
import binascii
import fcntl
import fnmatch
import hashlib
import hmac
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from provision.errors import ConnectError, HostKeyError

HostKeys = Literal["strict", "accept-new"]


@dataclass(frozen=True)
class Entry:
    """One line of a known_hosts file. `blob` is the public key as it goes over the wire."""

    path: Path
    line: int
    marker: str
    names: str
    key_type: str
    blob: bytes

    def __str__(self) -> str:
        return f"{self.path} line {self.line}"


@dataclass
class _File:
    """A parsed file: literal names in a dict, hashed names and patterns in lists."""

    literal: dict[str, list[Entry]] = field(default_factory=dict)
    hashed: list[tuple[bytes, bytes, Entry]] = field(default_factory=list)
    patterns: list[Entry] = field(default_factory=list)
    size: int = 0

    def add(self, entry: Entry) -> None:
        if entry.names.startswith("|1|"):
            try:
                _, _, salt, digest = entry.names.split("|")
                self.hashed.append((base64.b64decode(salt), base64.b64decode(digest), entry))
            except (ValueError, binascii.Error):
                return  # a damaged line says nothing about any host
        elif any(sign in entry.names for sign in "*?!"):
            self.patterns.append(entry)
        else:
            for name in entry.names.split(","):
                self.literal.setdefault(name.lower(), []).append(entry)

    def find(self, name: str) -> list[Entry]:
        found = list(self.literal.get(name, ()))
        plain = name.encode()
        found += [
            entry for salt, digest, entry in self.hashed if hmac.digest(salt, plain, "sha1") == digest
        ]  # HMAC-SHA1 is the file format's own (HashKnownHosts)
        found += [entry for entry in self.patterns if _matches(entry.names, name)]
        return found


_lock = threading.Lock()
_files: dict[Path, tuple[tuple[int, int, int], _File]] = {}


def fingerprint(blob: bytes) -> str:
    """As ssh-keygen -l prints it: SHA256:..."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")


def lookup(paths: Iterable[Path], name: str) -> list[Entry]:
    """Every entry of these files for `name` (a host name, or [name]:port). A file that is not there has none.

    Raises ConnectError for a file that cannot be read.
    """
    found: list[Entry] = []
    for path in paths:
        with _lock:
            found += _load(path).find(name.lower())
    return found


def known_types(entries: Iterable[Entry]) -> list[str]:
    """The key types that the host may show, in the files' order: what to ask the host for."""
    return list(dict.fromkeys(entry.key_type for entry in entries if not entry.marker))


def host_label(hostname: str, port: int) -> str:
    """The name under which a host stands in known_hosts."""
    return hostname if port == 22 else f"[{hostname}]:{port}"


def verify(
    who: str,
    name: str,
    entries: Sequence[Entry],
    key_type: str,
    blob: bytes,
    *,
    policy: HostKeys,
    files: Sequence[Path],
    note: str = "",
) -> None:
    """Accept the key that the host showed, or raise HostKeyError saying which line to look at.

    `policy` "accept-new" adds a key where nothing at all is known about the host. A host that is known
    by keys of other types only counts as changed: it was asked for those first and did not have them.
    """
    shown = f"{key_type} {fingerprint(blob)}"
    for entry in entries:
        if entry.marker == "@revoked" and entry.blob == blob:
            raise HostKeyError(
                f"{who}: it shows the key {shown}, which is revoked ({entry})",
                hint="someone declared this key stolen or void: do not connect before you know why",
            )
    plain = [entry for entry in entries if not entry.marker]
    if any(entry.key_type == key_type and entry.blob == blob for entry in plain):
        return
    if plain:
        of_type = [entry for entry in plain if entry.key_type == key_type] or plain
        expected = "; ".join(f"{entry.key_type} {fingerprint(entry.blob)} ({entry})" for entry in of_type[:3])
        raise HostKeyError(
            f"{who}: its host key has CHANGED: it shows {shown}, known is {expected}",
            hint=f"if the host was reinstalled, remove the old key: ssh-keygen -R '{name}' -f {of_type[0].path} ; "
            "if it was not, somebody may stand in between: do not connect",
        )
    if any(entry.marker == "@cert-authority" for entry in entries):
        raise HostKeyError(
            f"{who}: known_hosts names a certificate authority for it ({entries[0]}), and bringup cannot check "
            f"host certificates; the host's own key is {shown}",
            hint=f"add the plain key too: ssh-keyscan, compare the fingerprint, append it for '{name}'",
        )
    if policy == "accept-new":
        remember(files, name, key_type, blob)
        return
    raise HostKeyError(
        f"{who}: its host key is not known ({shown}; looked for '{name}' in {', '.join(map(str, files))})",
        hint="compare the fingerprint with the one on the host's console (ssh-keygen -lf "
        "/etc/ssh/ssh_host_ed25519_key.pub), then connect once with ssh, or say --host-keys accept-new" + note,
    )


def remember(files: Sequence[Path], name: str, key_type: str, blob: bytes) -> None:
    """Append the key to the first of the files, under a lock. Raises ConnectError where it cannot be written.

    Another thread may have accepted a key for the same host a moment ago: the same one is not added twice, and
    a different one raises HostKeyError.
    """
    path = files[0]
    line = f"{name} {key_type} {base64.b64encode(blob).decode()}\n".encode()
    with _lock:
        parsed = _load(path)
        already = [entry for entry in parsed.find(name.lower()) if not entry.marker]
        if any(entry.blob == blob for entry in already):
            return
        if already:
            raise HostKeyError(
                f"{name} shows two host keys at once: {key_type} {fingerprint(blob)}, and before that {already[0]}",
                hint="somebody may stand in between: do not connect before you know why",
            )
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with path.open("ab+") as handle:
                fcntl.flock(handle, fcntl.LOCK_EX)
                handle.seek(0)
                before = handle.read()
                if before and not before.endswith(b"\n"):
                    line = b"\n" + line
                handle.write(line)
                handle.flush()
                number = (before + line).count(b"\n")
        except OSError as problem:
            raise ConnectError(f"cannot add a host key to {path}: {problem.strerror}") from problem
        parsed.add(Entry(path, number, "", name, key_type, blob))
        after = _stamp(path)
        if after[2] == parsed.size + len(line):
            parsed.size = after[2]
            _files[path] = (after, parsed)
        else:  # somebody else wrote to it too: read it anew next time
            _files.pop(path, None)


def _load(path: Path) -> _File:
    """The parsed file, from the cache where it did not change. Called with the lock held."""
    try:
        stamp = _stamp(path)
        cached = _files.get(path)
        if cached is not None and cached[0] == stamp:
            return cached[1]
        text = path.read_bytes().decode("utf-8", "replace") if path.is_file() else ""
    except FileNotFoundError:
        return _File()
    except OSError as problem:
        raise ConnectError(f"cannot read {path}: {problem.strerror}") from problem
    parsed = _File(size=stamp[2])
    for number, line in enumerate(text.split("\n"), 1):
        entry = _entry(path, number, line)
        if entry is not None:
            parsed.add(entry)
    _files[path] = (stamp, parsed)
    return parsed


def _stamp(path: Path) -> tuple[int, int, int]:
    stat = path.stat()
    return stat.st_ino, stat.st_mtime_ns, stat.st_size


def _entry(path: Path, number: int, line: str) -> Entry | None:
    words = line.split()
    if not words or words[0].startswith("#"):
        return None
    marker = words.pop(0) if words[0].startswith("@") else ""
    if len(words) < 3:
        return None
    try:
        blob = base64.b64decode(words[2], validate=True)
    except (ValueError, binascii.Error):
        return None
    return Entry(path, number, marker, words[0], words[1], blob)


def _matches(patterns: str, name: str) -> bool:
    """OpenSSH's pattern list: any match counts, unless a pattern with `!` matches. `[` is no class here."""
    hit = False
    for pattern in patterns.lower().split(","):
        literal = pattern.removeprefix("!").replace("[", "[[]")
        if fnmatch.fnmatchcase(name, literal):
            if pattern.startswith("!"):
                return False
            hit = True
    return hit
