"""Datasets on this machine: the folder that the user names, else the cache; what of them a run sends to its hosts.

What a dataset is, with its MD5s, the bundle knows: it is asked (`python -I <bundle> dataset look NAME FOLDER`).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from provision.bundle import Bundle
from provision.errors import BringupError, UsageError
from validators.schema import CheckInfo, Plan

LOOK_S = 300.0
"""Seconds to unpack and check one dataset."""
FETCH_S = 600.0
"""Seconds to download one; the bundle itself gives up earlier."""


@dataclass(frozen=True)
class Offers:
    """What this machine has: dataset -> the paths of its files. `named`: those from the folder that the user named:
    they go before what a host's variables name. `notes`: what a report should say.
    """

    paths: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    named: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()

    def plan(self, plan: Plan) -> Plan:
        """The plan, without the host's own folders for what the user named."""
        return replace(plan, data={name: value for name, value in plan.data.items() if name not in self.named})

    def job(self, plan: Plan, catalogue: Sequence[CheckInfo]) -> dict[str, tuple[str, ...]]:
        """Job.data: what this plan's checks train on and its host has no folder of its own for."""
        return {name: self.paths.get(name, ()) for name in _trained_on(plan, catalogue) if name not in plan.data}


def datasets(catalogue: Iterable[CheckInfo]) -> tuple[str, ...]:
    """The datasets that there are."""
    return tuple(sorted({name for info in catalogue for name in info.data}))


def offers(bundle: Bundle, plans: Iterable[Plan], catalogue: Sequence[CheckInfo], folder: Path | None) -> Offers:
    """What this machine has of what the plans train on; every file's MD5 is checked.

    Raises UsageError where the named folder is not there, holds none of it, or holds something broken.
    """
    if folder is not None and not folder.is_dir():
        raise UsageError(f"--data {folder}: no such folder", "a folder with the files or archives of a dataset")
    wanted = sorted({name for plan in plans for name in _trained_on(plan, catalogue)})
    if not wanted:
        return Offers(notes=("--data was not needed: no planned check trains on data.",) if folder else ())
    found: dict[str, tuple[str, ...]] = {}
    named: set[str] = set()
    notes: list[str] = []
    for name in wanted:
        if folder is not None:
            answer = look(bundle, name, folder)
            if answer.trouble:
                raise UsageError(f"--data {folder}: {answer.trouble}")
            if answer.folder:
                found[name] = answer.paths
                named.add(name)
                continue
        answer = look(bundle, name)
        if answer.folder:
            found[name] = answer.paths
        if answer.trouble:
            notes.append(f"{name} on this machine was not used: {answer.trouble}.")
    if folder is not None and not named:
        raise UsageError(
            f"--data {folder} holds nothing of {', '.join(wanted)}",
            "CIFAR-10: cifar-10-binary.tar.gz or its .bin files; MNIST: its four idx files, packed or not",
        )
    return Offers(found, frozenset(named), tuple(notes))


def _trained_on(plan: Plan, catalogue: Sequence[CheckInfo]) -> tuple[str, ...]:
    planned = {request.name for request in plan.checks}
    return datasets(info for info in catalogue if info.name in planned)


@dataclass(frozen=True)
class Answer:
    """What the bundle says of a dataset here: the folder of the whole dataset or "", and what is wrong."""

    folder: str
    trouble: str
    files: Mapping[str, int] = field(default_factory=dict)
    """The dataset's files -> their sizes in bytes."""

    @property
    def paths(self) -> tuple[str, ...]:
        """Where its files are."""
        return tuple(str(Path(self.folder) / name) for name in self.files)


def look(bundle: Bundle, name: str, folder: Path | None = None) -> Answer:
    """The dataset in or below the folder, archives unpacked into the cache; without a folder, in the cache."""
    return _ask(bundle, LOOK_S, "look", name, *([str(folder.absolute())] if folder else []))


def fetch(bundle: Bundle, name: str) -> Answer:
    """Download the dataset into the cache, where it is not there already. It tells how far it is on stderr."""
    return _ask(bundle, FETCH_S, "fetch", name, loud=True)


def _ask(bundle: Bundle, timeout_s: float, *words: str, loud: bool = False) -> Answer:
    with tempfile.TemporaryDirectory(prefix="bringup-") as folder:
        path = Path(folder) / f"{bundle.sha256}.pyz"
        path.write_bytes(bundle.data)
        try:
            done = subprocess.run(
                [sys.executable, "-I", str(path), "dataset", *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=None if loud else subprocess.PIPE,
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return Answer("", f"no answer within {timeout_s:g} s")
    try:
        body = json.loads(done.stdout)
        return Answer(str(body["folder"]), str(body["trouble"]), dict(body["files"]))
    except (ValueError, KeyError, TypeError):
        last = (done.stderr or b"").decode("utf-8", "replace").strip().splitlines()[-1:]
        raise BringupError(f"the bundle does not look at datasets: {' '.join(last)[:300]}", "reinstall it") from None
