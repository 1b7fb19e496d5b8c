"""The run directory: what a run asked, what each host answered, as it arrived.

    runs/<id>/manifest.json                    versions, command, hosts, plans, catalogue; never a secret
    runs/<id>/criteria/NN-<name>.toml          each criteria file in force
    runs/<id>/hosts/<safe name>/records.jsonl  one line a record, written by validate_host as they arrive
    runs/<id>/hosts/<safe name>/host.json      how the host's run ended; without it, it was interrupted
    runs/<id>/plays/<name>/                    what Ansible did
    runs/<id>/report.*                         renderings

kill -9 loses the record in flight and nothing else. Folders are 0700 and files 0600: a report may name what is yours.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from provision import __version__
from provision.criteria import Criteria
from provision.criteria.loader import load_files
from provision.errors import RunDirectoryError
from provision.manifest import Manifest, decode_manifest, encode_manifest
from provision.remote import Failure, HostRun
from provision.report.model import Report
from provision.typed import fitted
from provision.verdict import judge
from validators.schema import MAX_RECORD_BYTES, Record, SchemaError, decode

_PLAIN = re.compile(r"[a-z0-9][a-z0-9._-]{0,79}")
_HASHED = re.compile(r".*-[0-9a-f]{12}")


def safe_name(name: str) -> str:
    """A folder name for a host: its own where that is harmless, else what is harmless of it and a hash."""
    if _PLAIN.fullmatch(name) and not _HASHED.fullmatch(name):
        return name
    kept = re.sub(r"[^A-Za-z0-9_-]+", "_", name)[:60].strip("_-") or "host"
    return f"{kept}-{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}"


class RunDirectory:
    """A run on disk. `create` makes one before any host is touched, `open` finds one again."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest

    @classmethod
    def create(cls, base: Path | str, manifest: Manifest) -> RunDirectory:
        """A new directory under `base`, named by `manifest.run_id` or by the time. Raises RunDirectoryError."""
        base = Path(base)
        wanted = manifest.run_id or datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        try:
            base.mkdir(parents=True, exist_ok=True)
            path = _claim(base, safe_name(wanted))
            return cls._filled(path, replace(manifest, run_id=path.name))
        except OSError as problem:
            raise RunDirectoryError(
                f"no run directory can be made in {base}: {problem.strerror or problem}",
                "name a folder that can be written: --runs DIR",
            ) from None

    @classmethod
    def at(cls, path: Path, manifest: Manifest) -> RunDirectory:
        """The one at `path`, made where there is none, or whose making was cut off. Raises RunDirectoryError."""
        if (path / "manifest.json").is_file():
            return cls.open(path)
        try:
            path.mkdir(mode=0o700, exist_ok=True)
            return cls._filled(path, manifest)
        except OSError as problem:
            raise RunDirectoryError(
                f"{path} cannot be made: {problem.strerror or problem}", "is the disk full?"
            ) from None

    @classmethod
    def _filled(cls, path: Path, manifest: Manifest) -> RunDirectory:
        made = cls(path, manifest)
        made._write("manifest.json", encode_manifest(manifest))
        for number, file in enumerate(manifest.criteria):
            made._write(f"criteria/{number:02d}-{safe_name(Path(file.name).stem)}.toml", file.text)
        for host in manifest.hosts:
            made.records_path(host.name).touch(mode=0o600)
        return made

    @classmethod
    def open(cls, path: Path | str) -> RunDirectory:
        """A run that was made before. Raises RunDirectoryError where there is none, or its manifest cannot be read."""
        path = Path(path)
        hint = "a run directory is runs/<id>, with a manifest.json in it"
        try:
            manifest = decode_manifest(_plain_file(path / "manifest.json").read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as problem:
            why = getattr(problem, "strerror", None) or "its manifest.json is not text"
            raise RunDirectoryError(f"{path} is not a run directory: {why}", hint) from None
        except ValueError as problem:
            raise RunDirectoryError(f"{path / 'manifest.json'}: {problem}", hint) from None
        return cls(path, manifest)

    def host_folder(self, host: str) -> Path:
        """The host's folder, made where it is missing."""
        folder = self.path / "hosts" / safe_name(host)
        _folder(folder)
        return folder

    def records_path(self, host: str) -> Path:
        """Where validate_host writes the host's records as they arrive."""
        return self.host_folder(host) / "records.jsonl"

    def finish_host(self, run: HostRun) -> None:
        """Write how the host's run ended. Until then a reader takes it as interrupted."""
        body = {name: value for name, value in asdict(replace(run, records=())).items() if name != "records"}
        folder = self.host_folder(run.host)
        self._write(f"{folder.relative_to(self.path)}/host.json", json.dumps(body, indent=1, sort_keys=True) + "\n")

    def write_report(self, suffix: str, text: str) -> Path:
        """Write a rendering as report.<suffix>; its path."""
        return self._write(f"report.{suffix}", text)

    def runs(self) -> tuple[HostRun, ...]:
        """What each host of the manifest answered, read back; each irregularity is that host's failure."""
        return tuple(self._run(host.name, host.address) for host in self.manifest.hosts)

    def criteria(self) -> Criteria:
        """The criteria that were in force, as the manifest keeps them. Raises RunDirectoryError, CriteriaError."""
        for file in self.manifest.criteria:
            if hashlib.sha256(file.text.encode("utf-8", "surrogatepass")).hexdigest() != file.sha256:
                raise RunDirectoryError(
                    f"{self.path / 'manifest.json'}: the criteria file {file.name} was changed: its hash is another",
                    "bringup judge RUN --criteria FILE judges by other criteria, and says so",
                )
        return load_files(self.manifest.criteria, self.manifest.catalogue)

    def _run(self, name: str, address: str) -> HostRun:
        folder = self.path / "hosts" / safe_name(name)
        records, problem = _records(folder / "records.jsonl")
        try:
            body = json.loads((folder / "host.json").read_text(encoding="utf-8"))
            run = replace(fitted(HostRun, {**body, "records": [], "host": name}, "host.json"), records=records)
        except FileNotFoundError:
            problem = problem or Failure(
                "Interrupted", "the run was interrupted before this host was done", "run `bringup validate` again"
            )
            run = HostRun(name, address, records)
        except (OSError, ValueError, TypeError, AttributeError):
            problem = Failure("RunDirectoryError", f"{folder / 'host.json'} cannot be read", "run it again")
            run = HostRun(name, address, records)
        return replace(run, failure=run.failure or problem)

    def _write(self, name: str, text: str) -> Path:
        path = self.path / name
        _folder(path.parent)
        part = path.with_name(path.name + ".part")
        try:
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as stream:
                stream.write(text)
            part.replace(path)
        except OSError as problem:
            raise RunDirectoryError(f"{path} cannot be written: {problem.strerror}", "is the disk full?") from None
        return path


def rejudge(run: RunDirectory, criteria: Criteria | None = None, judged: str = "") -> Report:
    """The report of a run read back: by the criteria kept with it, or by these (`bringup judge`). No host is touched.

    `judged`: ISO 8601, UTC; empty: now. Raises CriteriaError, RunDirectoryError.
    """
    manifest = run.manifest
    in_force = criteria if criteria is not None else run.criteria()
    return judge(
        run.runs(),
        hosts=manifest.hosts,
        catalogue=manifest.catalogue,
        criteria=in_force.for_hosts(manifest.hosts, manifest.catalogue),
        plans=manifest.plans,
        run_id=manifest.run_id,
        created=manifest.created,
        judged=judged or now(),
        version=__version__,
        command=manifest.command,
        notes=manifest.notes,
    )


def now() -> str:
    """The time, ISO 8601 in UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _claim(base: Path, wanted: str) -> Path:
    """A folder that nobody else has: the first of wanted, wanted-2, ... that can be made."""
    for number in range(1, 10000):
        path = base / (wanted if number == 1 else f"{wanted}-{number}")
        try:
            path.mkdir(mode=0o700)
        except FileExistsError:
            continue
        return path
    raise RunDirectoryError(f"{base} has too many runs named {wanted}", "name another folder: --runs DIR")


def _folder(path: Path) -> None:
    try:
        for one in (path.parent, path):  # `parents=True` would leave the parent open to others
            one.mkdir(mode=0o700, exist_ok=True)
    except OSError as problem:
        raise RunDirectoryError(f"{path} cannot be made: {problem.strerror}", "is it a folder of yours?") from None


def _plain_file(path: Path) -> Path:
    """The path, unless something else than a file stands there: a pipe would be waited for without end."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "not a file")
    return path


def _records(path: Path) -> tuple[tuple[Record, ...], Failure | None]:
    """The records of a file, up to the first line that is none, and what is wrong with the file, if anything."""
    found: list[Record] = []
    try:
        with _plain_file(path).open("rb") as stream:
            for number, line in enumerate(_lines(stream), start=1):
                try:
                    found.append(decode(line))
                except SchemaError as problem:
                    return tuple(found), _torn(path, line, number, problem)
    except FileNotFoundError:
        return (), None
    except OSError as problem:
        why = f"{path} cannot be read: {problem.strerror}"
        return tuple(found), Failure("RunDirectoryError", why, "look at the run directory")
    return tuple(found), None


def _torn(path: Path, line: bytes, number: int, problem: SchemaError) -> Failure:
    if not line.endswith(b"\n"):
        return Failure("Interrupted", "the run was interrupted while a record came in", "run `bringup validate` again")
    why = f"line {number} of {path.name} is not a record: {problem}"
    return Failure("WireError", why, "the file was changed, or the disk is failing")


def _lines(stream: BinaryIO) -> Iterator[bytes]:
    """Lines of bounded length; the rest of an overlong one comes as a line of its own, which is no record."""
    while line := stream.readline(MAX_RECORD_BYTES + 1):
        yield line
