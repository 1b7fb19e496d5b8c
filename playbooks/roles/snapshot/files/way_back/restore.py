"""Bring a host back to its snapshot, from whatever state apt and dpkg are in. Needs no network."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import files
import host
import lock
from host import Refused
from take import digest, load

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
_EXCLUDED = tuple(f"/usr/share/{name}/" for name in ("doc", "info", "lintian", "locale", "man"))
"""What a minimal image has dpkg leave out (dpkg.cfg's path-exclude), so that it is missing on a sound host."""
_FORCE = ["--force-depends", "--force-remove-reinstreq", "--force-overwrite", "--force-confold", "--force-downgrade"]


def restore(name: str, *, run: str, patience_s: float, check: bool) -> dict[str, Any]:
    """Bring back the snapshot `name`. Raises Refused where it cannot begin; `problems` says what is not as it was.

    `run`: whose way back it is; empty: by hand. Where that run took the snapshot, what others have lost since is a
    problem; days later it is somebody's own doing, and is only said.
    """
    folder = host.BASE / name
    body = load(folder)
    debs = _checked_debs(folder, body)
    if check:
        body["spared"] = _spared(body, debs)
        problems = differences(body)
        return {"changed": bool(problems), "problems": [], "would": problems, "notes": []}
    notes: list[str] = []
    ended, holder = lock.free(patience_s, {run, name} if run else set())
    if ended:
        notes.append(f"ended what the install had left running: {', '.join(ended[:8])}")
    if holder:
        raise Refused(f"the package manager's lock is held by {holder}; wait for it or end it, then run it again")
    before, there = _state(), host.packages()
    _remove_stuck(body, notes)
    body["spared"] = _spared(body, debs)
    aside = folder / f"aside-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"
    files.bring_back(folder, body, aside)
    _packages_back(body, debs, notes)
    _dkms_back(body, debs, notes)
    _settings_back(body)
    files.bring_back(folder, body, aside)
    problems = differences(body)
    changed = before != _state() or bool(notes)
    now = host.packages()
    removed = sorted(host.ours(there).keys() - host.ours(now).keys())
    if removed:
        notes.append(f"removed, since the snapshot does not have them: {', '.join(removed)}")
    if aside.is_dir():
        notes.append(f"files that were not so at the snapshot are in {aside}")
    if body["spared"]:
        notes.append(f"left, since other packages need it: {', '.join(body['spared'])}")
    lost = [name for name in host.others(there) if name not in now]
    problems += [f"{name}, which is not the driver's, was removed by this way back" for name in lost]
    gone = [name for name in body["others"] if name not in host.others(there)]
    if gone:
        told = problems if run == name else notes
        told.append(f"gone since the snapshot, and not the driver's: {', '.join(gone[:20])}")
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
    """The packages that are not as they were, and those that were not there and do not stay for others' sake."""
    now = host.ours(host.packages())
    wanted = body["packages"]
    wrong = [name for name, one in wanted.items() if name not in now or now[name].version != one["version"]]
    wrong += [name for name, one in now.items() if name in wanted and name not in wrong and not one.whole]
    return wrong, [name for name in now if name not in wanted and name not in body.get("spared", ())]


def _words(body: dict[str, Any], debs: dict[str, Path], spared: Sequence[str] = ()) -> list[str]:
    """What apt is asked for: the packages' own files, and those that were not there with a minus."""
    wrong, extra = _to_do(body)
    return [*(str(debs[name]) for name in wrong if name in debs), *(f"{name}-" for name in extra if name not in spared)]


def _spared(body: dict[str, Any], debs: dict[str, Path]) -> list[str]:
    """Packages that were not there and stay, since other people's need them: dkms, say. Raises Refused.

    apt would take those others away with them without a word.
    """
    words = _words(body, debs)
    others, _ = _would_remove([*_LOCAL, "install", *words]) if words else ([], True)
    if not others:
        return []
    extra = _to_do(body)[1]
    spared: list[str] = []
    while True:
        needed = _needs([*others, *spared])
        more = [name for name in extra if name.partition(":")[0] in needed and name not in spared]
        if not more:
            break
        spared += more
    still, possible = _would_remove([*_LOCAL, "install", *_words(body, debs, spared)])
    if still or not possible:
        raise Refused(
            f"the way back would remove {', '.join(others[:6])}, which {'is' if len(others) == 1 else 'are'} not the "
            f"driver's and {'needs' if len(others) == 1 else 'need'} what came after the snapshot. "
            f"Remove it yourself, then run this again: sudo apt-get remove {' '.join(others[:6])}"
        )
    return spared


def _would_remove(words: Sequence[str]) -> tuple[list[str], bool]:
    """Other people's packages that apt would remove by this command, and whether it can do it at all."""
    done = host.run([words[0], "-s", *host.UNLOCKED, *words[1:]])
    names = re.findall(r"^(?:Remv|Purg) (\S+)", done.out, re.MULTILINE)
    return sorted(name for name in names if not host.in_scope(name)), done.returncode == 0


def _needs(names: Sequence[str]) -> set[str]:
    """The names in these packages' dependencies."""
    said = host.run(["dpkg-query", "-W", "-f", "${Pre-Depends},${Depends}\\n", *names], 60).out
    return {re.split(r"[\s(:]", one.strip(), maxsplit=1)[0] for one in re.split(r"[,|\n]", said)}


def _remove_stuck(body: dict[str, Any], notes: list[str]) -> None:
    """What was not there and is there by half hinders apt in everything."""
    extra = _to_do(body)[1]
    stuck = [one.name for one in host.packages().values() if one.name in extra and not one.whole]
    if stuck:
        _remove(stuck, notes)


def _packages_back(body: dict[str, Any], debs: dict[str, Path], notes: list[str]) -> None:
    wrong, extra = _to_do(body)
    paths = [str(debs[name]) for name in wrong if name in debs]
    if paths or extra:
        done = host.run([*_LOCAL, "install", *_words(body, debs)])
        if done.returncode:
            notes.append(f"apt could not do it ({done.said}); dpkg was used by itself")
            _by_force(paths, [name for name in extra if name in host.ours(host.packages())], notes)
    # Of the right version already: apt would do nothing about these.
    again = {*_to_do(body)[0], *_damaged(list(body["packages"]))} & set(debs)
    if again:
        host.run([*_AGAIN, *(str(debs[name]) for name in sorted(again))])
        notes.append(f"installed again: {', '.join(sorted(again))}")
    stubborn = {*_to_do(body)[0], *_damaged(list(body["packages"]))} & set(debs)
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
        mend = [*host.APT, "--no-download", "-f", "install"]
        others, _ = _would_remove(mend)
        if others:
            notes.append(f"apt would mend the rest by removing {', '.join(others[:6])}: it was not asked to")
        else:
            host.run(mend)


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
        if any(len(line) > 12 and line[10:11] != "c" and not line[12:].startswith(_EXCLUDED) for line in lines):
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


def _state() -> tuple[object, ...]:
    """All that a way back may change, to say whether it did."""
    there = host.ours(host.packages())
    contents = {str(path): b"" if path.is_symlink() else path.read_bytes() for path in files.ours()}
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


def differences(body: dict[str, Any]) -> list[str]:
    """What is not as in the snapshot, a sentence each."""
    wrong, extra = _to_do(body)
    now = host.packages()
    found = []
    for name in wrong:
        there = now.get(name)
        what = f"{there.version} ({there.state})" if there else "missing"
        found.append(f"{name} is {what} and was {body['packages'][name]['version']}")
    found += [f"{name} is there and was not" for name in extra]
    found += [f"files of {name} are missing or changed" for name in _damaged(list(body["packages"]))]
    unfinished = host.audit()
    if unfinished:
        found.append(f"dpkg --audit: {' '.join(unfinished.split())[:300]}")
    unmet = host.unmet()
    if unmet and not body["unmet"]:
        found.append(f"apt finds dependencies that are not met: {unmet[:300]}")
    held = {name for name, one in body["packages"].items() if one["held"]}
    for name in sorted(held ^ {one.name for one in host.ours(now).values() if one.held}):
        if name not in extra and name not in wrong:
            found.append(f"{name} {'was' if name in held else 'is'} held and {'is' if name in held else 'was'} not")
    for line in body["dkms"]:
        if line not in host.dkms():
            found.append(f"DKMS said {line!r} and does not now")
    return found
