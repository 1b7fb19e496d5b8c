"""Take a snapshot: all that a way back needs, the packages' own .deb files included, so that it needs no network."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

import files
import host
from host import Refused

FORMAT = 1
_CACHE = Path("/var/cache/apt/archives")


def take(name: str, *, keep: int, without_way_back: bool, check: bool) -> dict[str, Any]:
    """Take the snapshot `name`; one that is there is left as it is. Raises Refused before anything is changed."""
    folder = host.BASE / name
    if (folder / "snapshot.json").is_file():
        return {"changed": False, **_summary(folder)}
    found = host.packages()
    ours = host.ours(found)
    _refuse_unsound(found)
    if check:
        return {"changed": True, "packages": _versions(ours), "snapshot": str(folder), "missing": []}
    host.BASE.mkdir(parents=True, exist_ok=True)
    for made in (host.BASE.parent, host.BASE):
        made.chmod(0o700)
    part = host.BASE / f".{name}.part"
    shutil.rmtree(part, ignore_errors=True)
    (part / "debs").mkdir(parents=True, mode=0o700)
    (part / "files").mkdir(mode=0o700)
    try:
        debs, missing = _debs(part / "debs", ours)
        if missing and not without_way_back:
            more = " and more" if len(missing) > 6 else ""
            raise Refused(
                f"there is no way back for {', '.join(missing[:6])}{more}: no .deb of it is in apt's cache "
                "or can still be fetched, and dpkg-repack is not there to make one. Install dpkg-repack there, or say "
                "--without-way-back"
            )
        body = {
            "format": FORMAT,
            "name": name,
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "boot_id": host.boot_id(),
            "driver": host.installed_driver(found),
            "packages": {one.name: {"version": one.version, "held": one.held} for one in ours.values()},
            "others": {one.name: one.version for one in host.others(found).values()},
            "unmet": host.unmet(),
            "left_settings": sorted(name for name, one in found.items() if one.state[1:2] == "c"),
            "held": sorted(one.name for one in found.values() if one.held),
            "automatic": host.automatic(sorted(ours)),
            "dkms": host.dkms(),
            "debs": debs,
            "missing": missing,
            "files": files.keep(part / "files"),
            "names": [str(path) for path in files.listed()],
        }
        (part / "snapshot.json").write_text(json.dumps(body, indent=1, sort_keys=True) + "\n")
        os.sync()
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
    except OSError as problem:
        raise Refused(f"the snapshot cannot be written to {host.BASE}: {problem.strerror or problem}") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    _prune(keep, folder)
    return {"changed": True, **_summary(folder)}


def _refuse_unsound(found: dict[str, host.Package]) -> None:
    broken = [f"{one.name} ({one.state})" for one in found.values() if one.state[1:].strip() not in ("i", "c")]
    if broken:
        raise Refused(
            f"dpkg has unfinished work: {', '.join(broken[:5])}. Mend it first: sudo dpkg --configure -a, "
            "then sudo apt-get -f install"
        )
    if Path("/usr/bin/nvidia-uninstall").exists():
        raise Refused(
            "the driver there comes from NVIDIA's .run installer, which packages can neither replace nor bring back. "
            "Remove it first: sudo nvidia-uninstall"
        )


def load(folder: Path) -> dict[str, Any]:
    """A snapshot's description. Raises Refused."""
    try:
        body = json.loads((folder / "snapshot.json").read_text())
        if body["format"] != FORMAT:
            raise Refused(f"the snapshot {folder} is of another version of gpu-bringup")
    except (OSError, ValueError, KeyError, TypeError):
        raise Refused(f"there is no whole snapshot in {folder}") from None
    return dict(body)


def newest_first() -> list[str]:
    """The names of all snapshots."""
    return [folder.name for folder in sorted(taken(), key=lambda one: str(load(one)["time"]), reverse=True)]


def taken() -> list[Path]:
    """The folders of all whole snapshots."""
    if not host.BASE.is_dir():
        return []
    return [
        path for path in host.BASE.iterdir() if not path.name.startswith(".") and (path / "snapshot.json").is_file()
    ]


def _versions(ours: dict[str, host.Package]) -> dict[str, str]:
    return {one.name: one.version for one in ours.values()}


def _summary(folder: Path) -> dict[str, Any]:
    body = load(folder)
    return {
        "snapshot": str(folder),
        "driver": body["driver"],
        "boot_id": body["boot_id"],
        "packages": {name: one["version"] for name, one in body["packages"].items()},
        "missing": body["missing"],
        "mib": sum(path.stat().st_size for path in (folder / "debs").iterdir()) >> 20,
    }


def _debs(folder: Path, ours: dict[str, host.Package]) -> tuple[dict[str, dict[str, str]], list[str]]:
    """The .deb of each package, by package; and the packages that have none."""
    left = dict(ours)
    kept: dict[str, dict[str, str]] = {}
    older = [path for snapshot in taken() for path in (snapshot / "debs").glob("*.deb")]
    _adopt([*_CACHE.glob("*.deb"), *older], folder, left, kept)
    if left:
        wanted = [f"{one.name}={one.version}" for one in left.values()]
        fetch = ["apt-get", "-q", "-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=1", "download"]
        if host.run([*fetch, *wanted], 900, str(folder)).returncode and len(wanted) > 1:
            for one in wanted:  # apt fetches none of them where one is not to be had
                host.run([*fetch, one], 300, str(folder))
        _adopt(list(folder.glob("*.deb")), folder, left, kept)
    if left and shutil.which("dpkg-repack"):
        for name in list(left):
            host.run(["dpkg-repack", name], 600, str(folder))
        _adopt(list(folder.glob("*.deb")), folder, left, kept)
    used = {one["file"] for one in kept.values()}
    for path in folder.iterdir():
        if path.name not in used:
            path.unlink()
    return kept, sorted(f"{one.name} {one.version}" for one in left.values())


def _adopt(
    candidates: list[Path], folder: Path, left: dict[str, host.Package], kept: dict[str, dict[str, str]]
) -> None:
    """Take what is wanted out of `candidates`, and out of `left`. The file's own words count, not its name."""
    names = {one.name.partition(":")[0] for one in left.values()}
    for path in candidates:
        if path.name.partition("_")[0] not in names or not is_whole(path):
            continue
        fields = host.run(["dpkg-deb", "-W", "--showformat", "${Package}\t${Version}\t${Architecture}", str(path)], 60)
        words = fields.out.split("\t")
        for name, one in list(left.items()):
            if words == [one.name.partition(":")[0], one.version, one.architecture]:
                target = folder / path.name
                if path.parent != folder:
                    target.unlink(missing_ok=True)
                    _link_or_copy(path, target)
                kept[name] = {"file": target.name, "sha256": digest(target)}
                del left[name]


def _link_or_copy(path: Path, target: Path) -> None:
    """A link costs nothing; `apt-get clean` only removes its own name of the file."""
    try:
        os.link(path, target)
    except OSError:
        shutil.copy2(path, target)


def is_whole(path: Path) -> bool:
    """Whether a .deb has all the bytes that its own table of contents speaks of."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            if file.read(8) != b"!<arch>\n":
                return False
            at = 8
            while at + 60 <= size:
                file.seek(at)
                header = file.read(60)
                length = re.fullmatch(rb"(\d+) *", header[48:58])
                if length is None or header[58:] != b"`\n":
                    return False
                at += 60 + int(length[1]) + int(length[1]) % 2
    except OSError:
        return False
    return at == size or at == size + 1


def digest(path: Path) -> str:
    """SHA-256, hex."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        for piece in iter(lambda: file.read(1 << 20), b""):
            found.update(piece)
    return found.hexdigest()


def _prune(keep: int, newest_one: Path) -> None:
    others = sorted((one for one in taken() if one != newest_one), key=lambda one: str(load(one)["time"]))
    for path in others[: max(0, len(others) - max(0, keep - 1))]:
        shutil.rmtree(path, ignore_errors=True)
