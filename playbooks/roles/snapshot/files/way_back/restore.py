"""Bring a host back to its snapshot, from whatever state apt and dpkg are in. Needs no network."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import host
import lock
from take import Refused, digest, load

_LOCAL = [
    *host.APT,
    "--no-download",
    "--no-install-recommends",
    "--allow-downgrades",
    "--allow-change-held-packages",
    "-o",
    "Dpkg::Options::=--force-confold",
    "-o",
    "Dpkg::Options::=--force-confmiss",
]
_AGAIN = ["dpkg", "--force-confold", "--force-confmiss", "--force-downgrade", "--install"]
_FORCE = ["--force-depends", "--force-remove-reinstreq", "--force-overwrite", "--force-confold", "--force-downgrade"]


def restore(name: str, *, patience_s: float, check: bool) -> dict[str, Any]:
    """Bring back the snapshot `name`. Raises Refused where it cannot begin; `problems` says what is not as it was."""
    folder = host.BASE / name
    body = load(folder)
    debs = _checked_debs(folder, body)
    if check:
        problems = _differences(body)
        return {"changed": bool(problems), "problems": [], "would": problems, "notes": []}
    notes: list[str] = []
    ended, holder = lock.free(patience_s)
    if ended:
        notes.append(f"ended what the install had left running: {', '.join(ended[:8])}")
    if holder:
        raise Refused(f"the package manager's lock is held by {holder}; wait for it or end it, then run it again")
    before = _state()
    _put_files_back(folder, body)
    _packages_back(body, debs, notes)
    _dkms_back(body, debs, notes)
    _settings_back(body)
    _put_files_back(folder, body)
    problems = _differences(body)
    changed = before != _state() or bool(notes)
    result: dict[str, Any] = {
        "changed": changed,
        "problems": problems,
        "notes": notes,
        "driver": host.installed_driver(),
        "wanted_driver": body["driver"],
        "boot_id": host.boot_id(),
        "snapshot": str(folder),
    }
    (folder / "restored.json").write_text(json.dumps(result, indent=1) + "\n")
    return result


def _checked_debs(folder: Path, body: dict[str, Any]) -> dict[str, Path]:
    found = {}
    for name, one in body["debs"].items():
        path = folder / "debs" / one["file"]
        if not path.is_file() or digest(path) != one["sha256"]:
            raise Refused(f"{path} is missing or was changed since the snapshot: it cannot bring {name} back")
        found[name] = path
    return found


def _to_do(body: dict[str, Any]) -> tuple[list[str], list[str]]:
    """The packages that are not as they were, and those that were not there."""
    now = host.ours(host.packages())
    wanted = body["packages"]
    wrong = [name for name, one in wanted.items() if name not in now or now[name].version != one["version"]]
    wrong += [name for name, one in now.items() if name in wanted and name not in wrong and not one.whole]
    return wrong, [name for name in now if name not in wanted]


def _packages_back(body: dict[str, Any], debs: dict[str, Path], notes: list[str]) -> None:
    wrong, extra = _to_do(body)
    paths = [str(debs[name]) for name in wrong if name in debs]
    if paths or extra:
        stuck = [one.name for one in host.packages().values() if one.name in extra and not one.whole]
        if stuck:
            _remove(stuck, notes)
        there = host.ours(host.packages())
        done = host.run([*_LOCAL, "install", *paths, *(f"{name}-" for name in extra if name in there)])
        if done.returncode:
            notes.append(f"apt could not do it ({done.said}); dpkg was used by itself")
            _by_force(paths, [name for name in extra if name in host.ours(host.packages())], notes)
    # Of the right version already: apt would do nothing about these.
    again = {*_to_do(body)[0], *_damaged(list(body["packages"]))} & set(debs)
    if again:
        host.run([*_AGAIN, *(str(debs[name]) for name in sorted(again))])
        notes.append(f"installed again: {', '.join(sorted(again))}")
    stubborn = set(_to_do(body)[0]) & set(debs)
    if stubborn:
        _silence(sorted(stubborn), notes)
        host.run([*_AGAIN, *(str(debs[name]) for name in sorted(stubborn))])
    unfinished = [one.name for one in host.packages().values() if one.state[1:].strip() not in ("i", "c")]
    if unfinished:
        host.run(["dpkg", "--force-confold", "--configure", "-a"])
    left = _to_do(body)[1] + _left_settings(body)
    if left:
        host.run(["dpkg", "--force-depends", "--purge", *left])


def _by_force(paths: Sequence[str], extra: Sequence[str], notes: list[str]) -> None:
    if extra:
        _remove(extra, notes)
    if paths:
        host.run(["dpkg", *_FORCE, "--install", *paths])
        host.run([*host.APT, "--no-download", "-f", "install"])


def _remove(names: Sequence[str], notes: list[str]) -> None:
    """Remove packages whatever state they are in; a removal script that fails is put out of the way."""
    if host.run(["dpkg", *_FORCE, "--remove", *names], 300).returncode == 0:
        return
    _silence(names, notes)
    host.run(["dpkg", *_FORCE, "--remove", *names], 300)


def _silence(names: Sequence[str], notes: list[str]) -> None:
    """Put the removal scripts of installed packages out of the way: they come from what failed."""
    for name in names:
        for suffix in ("prerm", "postrm"):
            script = Path("/var/lib/dpkg/info") / f"{name}.{suffix}"
            if script.is_file():
                script.write_text("#!/bin/sh\nexit 0\n")
    notes.append(f"the removal scripts of {', '.join(names)} failed and were left out")


def _left_settings(body: dict[str, Any]) -> list[str]:
    """Packages that are gone but for their settings, and that the snapshot does not know."""
    known = set(body["left_settings"])
    found = host.packages().values()
    return [one.name for one in found if one.state[1:2] == "c" and host.in_scope(one.name) and one.name not in known]


def _damaged(names: Sequence[str]) -> list[str]:
    """Packages of which a file is not as they brought it; settings do not count."""
    if not names:
        return []
    owners = []
    for name in names:
        lines = host.run(["dpkg", "--verify", name], 120).out.splitlines()
        if any(len(line) > 12 and line[10:11] != "c" for line in lines):
            owners.append(name)
    return owners


def _settings_back(body: dict[str, Any]) -> None:
    """Holds and apt's marks. Only of what is ours: others may have changed theirs meanwhile."""
    now = host.ours(host.packages())
    held = [name for name, one in body["packages"].items() if one["held"] and name in now and not now[name].held]
    free = [name for name, one in now.items() if one.held and not body["packages"].get(name, {}).get("held")]
    automatic = [name for name in body["automatic"] if name in now]
    manual = [name for name in body["packages"] if name in now and name not in automatic]
    for word, names in (("unhold", free), ("auto", automatic), ("manual", manual), ("hold", held)):
        if names:
            host.run(["apt-mark", word, *names], 60)


def _put_files_back(folder: Path, body: dict[str, Any]) -> None:
    for name, one in body["files"].items():
        path = Path(name)
        if "link" in one:
            if not path.is_symlink() or str(path.readlink()) != one["link"]:
                path.unlink(missing_ok=True)
                path.symlink_to(one["link"])
            continue
        copy = folder / "files" / one["copy"]
        if path.is_symlink() or not path.is_file() or path.read_bytes() != copy.read_bytes():
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f".{path.name}.bringup")
            shutil.copyfile(copy, part)
            part.chmod(one["mode"])
            part.replace(path)
    for path in host.files():
        if str(path) not in body["files"] and str(path) not in ("/etc/apt/sources.list", "/etc/apt/preferences"):
            path.unlink(missing_ok=True)


def _state() -> tuple[object, ...]:
    """All that a way back may change, to say whether it did."""
    there = host.ours(host.packages())
    contents = {str(path): b"" if path.is_symlink() else path.read_bytes() for path in host.files()}
    return there, contents, sorted(host.automatic(sorted(there))), host.dkms()


def _dkms_back(body: dict[str, Any], debs: dict[str, Path], notes: list[str]) -> None:
    """Modules that were not there leave DKMS; those that were are built again, by their package's own script.

    A package that is as it was can still have lost its module: its removal script runs before the new one's fails.
    """
    known = {_module(line) for line in body["dkms"]}
    for line in host.dkms():
        if _module(line) not in known:
            host.run(["dkms", "remove", _module(line), "--all"], 300)
            notes.append(f"removed from DKMS: {_module(line)}")
    there = host.dkms()
    lost = {_module(line) for line in body["dkms"] if line not in there}
    owners = {_owner(module) for module in lost} & set(debs)
    if owners:
        host.run([*_AGAIN, *(str(debs[name]) for name in sorted(owners))], 3600)
        notes.append(f"built again by {', '.join(sorted(owners))}: {', '.join(sorted(lost))}")
    elif lost:
        host.run(["dkms", "autoinstall"], 3600)


def _owner(module: str) -> str:
    """The package that brings a module's source."""
    name, _, version = module.partition("/")
    said = host.run(["dpkg-query", "-S", f"/usr/src/{name}-{version}/dkms.conf"], 60).out
    return said.rpartition(": ")[0].partition(",")[0].strip()


def _module(line: str) -> str:
    """ "nvidia/580.159.04, 6.1.0-49-amd64, x86_64: installed" is of the module "nvidia/580.159.04"."""
    return line.partition(",")[0].partition(":")[0].strip()


def _differences(body: dict[str, Any]) -> list[str]:
    """What is not as in the snapshot, a sentence each."""
    wrong, extra = _to_do(body)
    now = host.packages()
    found = []
    for name in wrong:
        there = now.get(name)
        what = f"{there.version} ({there.state})" if there else "missing"
        found.append(f"{name} is {what} and was {body['packages'][name]['version']}")
    found += [f"{name} is there and was not" for name in extra]
    unfinished = host.audit()
    if unfinished:
        found.append(f"dpkg --audit: {' '.join(unfinished.split())[:300]}")
    held = {name for name, one in body["packages"].items() if one["held"]}
    for name in sorted(held ^ {one.name for one in host.ours(now).values() if one.held}):
        if name not in extra and name not in wrong:
            found.append(f"{name} {'was' if name in held else 'is'} held and {'is' if name in held else 'was'} not")
    for line in body["dkms"]:
        if line not in host.dkms():
            found.append(f"DKMS said {line!r} and does not now")
    return found
