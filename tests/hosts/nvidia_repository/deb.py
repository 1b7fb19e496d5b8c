"""Debian packages and a signed flat repository of them, by dpkg-deb and gpg."""

from __future__ import annotations

import datetime
import gzip
import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

MAINTAINER = "gpu-bringup tests <tests@gpu-bringup.invalid>"


@dataclass(frozen=True)
class Package:
    """One binary package. `files`: absolute path -> content; what begins with #! is executable.

    `links`: absolute path -> target. `scripts`: preinst, postinst, prerm, postrm. `fields`: further control fields
    (Conflicts, Provides, ...).
    """

    name: str
    version: str
    depends: str = ""
    files: Mapping[str, str | bytes] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)
    scripts: Mapping[str, str] = field(default_factory=dict)
    fields: Mapping[str, str] = field(default_factory=dict)
    architecture: str = "amd64"

    @property
    def filename(self) -> str:
        """Its file's name, as a repository has it: without the epoch."""
        return f"{self.name}_{self.version.partition(':')[2] or self.version}_{self.architecture}.deb"

    def control(self) -> str:
        """The control file."""
        fields = {
            "Package": self.name,
            "Version": self.version,
            "Architecture": self.architecture,
            "Maintainer": MAINTAINER,
            "Section": "non-free/devel",
            "Priority": "optional",
            "Depends": self.depends,
            **self.fields,
            "Description": f"stub of {self.name}\n made by the tests of gpu-bringup; not NVIDIA's",
        }
        return "".join(f"{name}: {value}\n" for name, value in fields.items() if value)

    def build(self, directory: Path) -> Path:
        """Write the .deb into `directory`."""
        with tempfile.TemporaryDirectory(prefix="bringup-deb-") as scratch:
            tree = Path(scratch)
            tree.chmod(0o755)
            self._write(tree, {"/DEBIAN/control": self.control()})
            self._write(tree, {f"/DEBIAN/{name}": f"#!/bin/sh\n{text}" for name, text in self.scripts.items()})
            self._write(tree, self.files)
            conffiles = [path for path in self.files if path.startswith("/etc/")]
            if conffiles:
                self._write(tree, {"/DEBIAN/conffiles": "".join(f"{path}\n" for path in conffiles)})
            for path, target in self.links.items():
                link = tree / path.lstrip("/")
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(target)
            out = directory / self.filename
            # Uncompressed: they hold next to nothing, and a hundred are made.
            command = ["dpkg-deb", "--root-owner-group", "-Znone", "-b", str(tree), str(out)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"{self.filename}: {done.stderr}")
            return out

    @staticmethod
    def _write(tree: Path, files: Mapping[str, str | bytes]) -> None:
        for name, content in files.items():
            path = tree / name.lstrip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            data = content.encode() if isinstance(content, str) else content
            path.write_bytes(data)
            path.chmod(0o755 if data.startswith(b"#!") else 0o644)


def write_packages(directory: Path, packages: Sequence[Package]) -> None:
    """Write every .deb, and the index `Packages` over them."""
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda package: package.build(directory), packages))
    index = []
    for package, path in zip(packages, paths, strict=True):
        data = path.read_bytes()
        index.append(
            f"{package.control()}Filename: ./{path.name}\nSize: {len(data)}\n"
            f"SHA256: {hashlib.sha256(data).hexdigest()}\n"
        )
    text = "\n".join(index).encode()
    (directory / "Packages").write_bytes(text)
    (directory / "Packages.gz").write_bytes(gzip.compress(text, mtime=0))


@contextmanager
def _gpg(home: Path) -> Iterator[list[str]]:
    """Gpg on a copy of a home whose path is short enough for the agent's socket."""
    with tempfile.TemporaryDirectory(prefix="bg-", dir="/tmp") as scratch:
        place = Path(scratch) / "g"
        if home.exists():
            # Not the sockets of an agent that was.
            shutil.copytree(home, place, ignore=shutil.ignore_patterns("S.*"))
        else:
            place.mkdir(mode=0o700)
        try:
            yield ["gpg", "--batch", "--quiet", "--no-tty", "--homedir", str(place), "--passphrase", ""]
            shutil.rmtree(home, ignore_errors=True)
            shutil.copytree(place, home, ignore=shutil.ignore_patterns("S.*"))
        finally:
            subprocess.run(["gpgconf", "--homedir", str(place), "--kill", "all"], capture_output=True, check=False)


def make_key(home: Path, user: str) -> tuple[str, str]:
    """Make a signing key without a passphrase; return it armoured, and its fingerprint."""
    with _gpg(home) as gpg:
        # Made yesterday: a clock that is set back by a second makes no signature older than its key.
        yesterday = ["--faked-system-time", str(int(time.time()) - 86400)]
        _run([*gpg, *yesterday, "--quick-gen-key", user, "rsa2048", "sign", "never"])
        listing = _run([*gpg, "--with-colons", "--fingerprint"])
        fingerprint = next(line.split(":")[9] for line in listing.splitlines() if line.startswith("fpr:"))
        return _run([*gpg, "--armor", "--export"]), fingerprint


def dearmour(key: str) -> bytes:
    """Return an armoured key in the binary form of /usr/share/keyrings/*.gpg."""
    return subprocess.run(["gpg", "--dearmor"], input=key.encode(), capture_output=True, check=True).stdout


def write_release(directory: Path, home: Path, *, label: str, state: str = "") -> None:
    """Write Release and InRelease. `state`: "", unsigned, expired, not-valid-yet."""
    now = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)
    date = {"expired": now - 9 * day, "not-valid-yet": now + day}.get(state, now - day / 24)
    lines = ["Origin: NVIDIA", f"Label: {label}", "Architectures: amd64", f"Date: {_rfc(date)}"]
    if state == "expired":
        lines.append(f"Valid-Until: {_rfc(now - 2 * day)}")
    lines.append("SHA256:")
    for name in ("Packages", "Packages.gz"):
        data = (directory / name).read_bytes()
        lines.append(f" {hashlib.sha256(data).hexdigest()} {len(data)} {name}")
    (directory / "Release").write_text("\n".join(lines) + "\n")
    for name in ("InRelease", "Release.gpg"):
        (directory / name).unlink(missing_ok=True)
    if state != "unsigned":
        with _gpg(home) as gpg:
            release = str(directory / "Release")
            _run([*gpg, "--clearsign", "--digest-algo", "SHA256", "-o", str(directory / "InRelease"), release])
            _run([*gpg, "-abs", "--digest-algo", "SHA256", "-o", str(directory / "Release.gpg"), release])


def _rfc(moment: datetime.datetime) -> str:
    return moment.strftime("%a, %d %b %Y %H:%M:%S UTC")


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C"})
    if done.returncode:
        raise RuntimeError(f"{command[-1]}: {done.stderr}")
    return done.stdout
