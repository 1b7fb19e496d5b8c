"""Recorded hosts as file trees, and a check run over one: what tests of the file-reading checks share."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from validators.check import Context, load
from validators.probes.command import Ran
from validators.probes.sysfs import Files
from validators.schema import CheckRequest, Measurement, Plan, Record, Scalar, encode

TREES = Path(__file__).parent.parent / "fixtures" / "trees"
VM = "debian-12-vm-without-gpu"
H200 = "ubuntu-24.04-h200-x1-580.159.04"
H200_X4 = "ubuntu-24.04-h200-x4-580.159.04"


def tree(name: str) -> dict[str, Any]:
    """A recorded tree: path -> text, {"link": target} or {"hex": bytes}."""
    return dict(json.loads((TREES / f"{name}.json").read_text()))


def text(name: str) -> str:
    return (TREES / name).read_text()


def grow(root: Path, files: Mapping[str, Any]) -> Files:
    """The tree as files below `root`."""
    for path, content in files.items():
        place = root / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            place.write_text(content)
        elif "link" in content:
            place.symlink_to(content["link"])
        else:
            place.write_bytes(bytes.fromhex(content["hex"]))
    return Files(str(root))


def context(check: str, plan: Plan | None = None, **params: Scalar) -> tuple[Context, list[Record]]:
    """A context for a check, and the list that its records go to. Each record must pass the wire."""
    records: list[Record] = []

    def take(record: Record) -> None:
        encode(record)
        records.append(record)

    return Context(load(check).info, CheckRequest(check, 30.0, params), plan or Plan((), 60.0), take), records


class Measured:
    """Measurements to ask by metric."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.records = [one for one in records if isinstance(one, Measurement)]

    def all(self, metric: str, **labels: str) -> list[Measurement]:
        return [
            one
            for one in self.records
            if one.metric == metric and all(one.labels.get(key) == value for key, value in labels.items())
        ]

    def one(self, metric: str, **labels: str) -> Measurement:
        (found,) = self.all(metric, **labels)
        return found

    def value(self, metric: str, **labels: str) -> object:
        return self.one(metric, **labels).value


def measure(check: str, collect: Callable[..., None], *args: Any) -> Measured:
    ctx, records = context(check)
    collect(ctx, *args)
    return Measured(records)


def tools(**outputs: str) -> Callable[[Sequence[str]], Ran]:
    """Tools that answer with recorded output by name; every other one is not there."""

    def run(argv: Sequence[str]) -> Ran:
        name = argv[0].rpartition("/")[2].replace("-", "_")
        if name in outputs:
            return Ran(argv, 0, outputs[name], "", "")
        return Ran(argv, None, "", "", f"{argv[0]} is not there")

    return run
