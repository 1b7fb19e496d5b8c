"""Criteria files read: the defaults of this package, then the user's, entry by entry, each mistake with its place.

    [[criterion]]                        # a new one, or a default overridden by naming its check and id
    id = "throughput_bf16"
    check = "matmul"
    value = { fraction = 0.8, of = "peak:bf16_tensor" }
    because = "our acceptance contract"
    source = "contract 2026-11, section 4"

    disable = ["matmul.throughput_fp64"] # at the head of the file

An override takes what it does not state from the default, but always states its own `because` and `source`.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, get_args

from provision.criteria.expectations import from_hosts, parse_expectations
from provision.criteria.linter import lint
from provision.criteria.model import CriteriaFile, Criterion, Expectation, Fraction, Rule, Severity
from provision.criteria.suggest import did_you_mean
from provision.errors import CriteriaError
from provision.hosts import Host
from validators.schema import CheckInfo

MAX_FILE_BYTES = 1 << 20
"""A criteria file is read whole; a larger one is something else."""

_TEXTS = (
    "id",
    "check",
    "metric",
    "unit",
    "rule",
    "because",
    "source",
    "severity",
    "gpu",
    "host",
    "advice",
    "unknown",
    "not_applicable",
)
_KEYS = (*_TEXTS, "value", "labels")
_REQUIRED = ("id", "check", "metric", "unit", "rule", "value", "because", "source")
_CHOICES: Mapping[str, tuple[str, ...]] = {
    "rule": get_args(Rule),
    "severity": get_args(Severity),
    "unknown": ("ERROR", "SKIP"),
    "not_applicable": ("SKIP", "FAIL", "ERROR"),
}
_TOP = ("criterion", "disable", "informational")


@dataclass(frozen=True)
class Criteria:
    """The criteria in force. `informational`: check -> why nothing of it is judged. `files`: what they came from."""

    criteria: tuple[Criterion, ...] = ()
    files: tuple[CriteriaFile, ...] = ()
    informational: Mapping[str, str] = field(default_factory=dict)
    expectations: tuple[Expectation, ...] = ()

    def for_hosts(self, hosts: Sequence[Host], catalogue: Sequence[CheckInfo]) -> Criteria:
        """With the `expect_*` variables of these hosts as criteria. Raises CriteriaError naming host and variable."""
        stated = from_hosts(self.expectations, hosts)
        for entry, problem in lint(stated, catalogue, ignore_unknown=True):
            source = next(one for one in stated if f"{one.check}.{one.id}" == entry)
            raise CriteriaError(f"host {source.host}: {source.id}: {problem}", "mend the variable in the inventory")
        return replace(self, criteria=self.criteria + stated)


def load(paths: Sequence[Path | str], catalogue: Sequence[CheckInfo]) -> Criteria:
    """The defaults with the user's files laid over them, checked. Raises CriteriaError naming file and entry."""
    return load_files([*_package_files(), *(_read(Path(path)) for path in paths)], catalogue)


def load_files(sources: Sequence[CriteriaFile], catalogue: Sequence[CheckInfo]) -> Criteria:
    """The same from files that were read before: `bringup report` judges a run by the files kept with it."""
    found: dict[tuple[str, str], Criterion] = {}
    informational: dict[str, str] = {}
    expectations: list[Expectation] = []
    for source in sorted(sources, key=lambda one: one.kind == "user"):
        body = _parse(source)
        if source.kind == "expectations":
            expectations.extend(parse_expectations(body))
            continue
        for key in _disabled(body, source, found):
            del found[key]
        entries = _entries(body, source, found)
        _refuse(lint(entries.values(), catalogue, ignore_unknown=source.kind == "defaults"), source.name)
        found.update(entries)
        informational.update(_informational(body, source))
    return Criteria(tuple(found.values()), tuple(sources), informational, tuple(expectations))


def _package_files() -> Iterator[CriteriaFile]:
    package = files("provision.criteria")
    folder = package / "defaults"
    for entry in sorted(folder.iterdir(), key=lambda one: one.name) if folder.is_dir() else []:
        if entry.name.endswith(".toml"):
            yield _kept(f"defaults/{entry.name}", entry.read_bytes(), "defaults")
    expectations = package / "expectations.toml"
    if expectations.is_file():
        yield _kept("expectations.toml", expectations.read_bytes(), "expectations")


def _kept(name: str, data: bytes, kind: Literal["defaults", "user", "expectations"]) -> CriteriaFile:
    return CriteriaFile(name, hashlib.sha256(data).hexdigest(), data.decode("utf-8"), kind)


def _read(path: Path) -> CriteriaFile:
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
    except OSError as problem:
        raise CriteriaError(f"{path} cannot be read: {problem.strerror}", "name a file given by --criteria") from None
    if len(data) > MAX_FILE_BYTES:
        raise CriteriaError(f"{path} is longer than {MAX_FILE_BYTES} bytes", "a criteria file is a small TOML file")
    try:
        return _kept(str(path), data, "user")
    except UnicodeDecodeError as problem:
        raise CriteriaError(f"{path} is not UTF-8 (byte {problem.start})", "TOML files are UTF-8") from None


def _parse(source: CriteriaFile) -> dict[str, Any]:
    try:
        body = tomllib.loads(source.text)
    except tomllib.TOMLDecodeError as problem:
        match = re.search(r"\(at line (\d+), column \d+\)", str(problem))
        lines = source.text.splitlines()
        number = int(match.group(1)) if match else len(lines)
        text = lines[number - 1].strip() if 0 < number <= len(lines) else ""
        why = re.sub(r" \(at .*\)$", "", str(problem))
        raise CriteriaError(f"{source.name}:{number}: not TOML: {why}: {text[:120]}", "mend that line") from None
    except RecursionError:
        raise CriteriaError(f"{source.name}: not TOML: nested too deep") from None
    for key in body if source.kind != "expectations" else ():
        if key not in _TOP:
            raise CriteriaError(f'{source.name}: unknown key "{key}" at the head{did_you_mean(key, _TOP)}')
    return body


def _entries(
    body: Mapping[str, Any], source: CriteriaFile, base: Mapping[tuple[str, str], Criterion]
) -> dict[tuple[str, str], Criterion]:
    entries = body.get("criterion", [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise CriteriaError(f"{source.name}: write each criterion under [[criterion]]")
    found: dict[tuple[str, str], Criterion] = {}
    for number, entry in enumerate(entries, start=1):
        criterion = _entry(dict(entry), f"{source.name}: {_label(entry, number)}", base)
        key = criterion.check, criterion.id
        if key in found:
            raise CriteriaError(f"{source.name}: {_label(entry, number)}: the id is there twice; give each its own")
        found[key] = criterion
    return found


def _label(entry: Mapping[str, Any], number: int) -> str:
    return f'criterion "{entry["id"]}"' if isinstance(entry.get("id"), str) else f"criterion {number} (without an id)"


def _entry(entry: dict[str, Any], place: str, base: Mapping[tuple[str, str], Criterion]) -> Criterion:
    for key in entry:
        if key not in _KEYS:
            raise CriteriaError(f'{place}: unknown key "{key}"{did_you_mean(key, _KEYS)}')
    for key in _TEXTS:
        if key in entry and not isinstance(entry[key], str):
            raise CriteriaError(f'{place}: "{key}" is a text in quotes, not {entry[key]!r:.80}')
    for key, choices in _CHOICES.items():
        if key in entry and entry[key] not in choices:
            raise CriteriaError(
                f'{place}: {key} "{entry[key]}" is none of {", ".join(choices)}'
                f"{did_you_mean(entry[key], choices) if key == 'rule' else ''}"
            )
    if "check" not in entry and "." in entry.get("id", ""):
        entry["check"], entry["id"] = entry["id"].split(".", 1)
    overridden = base.get((entry.get("check", ""), entry.get("id", "")))
    if overridden is not None:
        entry = {**vars(overridden), "because": "", "source": "", **entry}
    missing = [key for key in _REQUIRED if entry.get(key, "") == ""]
    if missing:
        raise CriteriaError(f'{place}: without "{missing[0]}"', f"a criterion states {', '.join(_REQUIRED)}")
    value = _value(entry["value"], place)
    return Criterion(**{**entry, "value": value, "labels": _labels(entry.get("labels", {}), place)})


def _value(value: Any, place: str) -> Any:
    if isinstance(value, dict):
        if set(value) != {"fraction", "of"}:
            raise CriteriaError(f'{place}: a derived value is {{ fraction = 0.7, of = "peak:bf16_tensor" }}')
        fraction, of = value["fraction"], value["of"]
        if isinstance(fraction, bool) or not isinstance(fraction, (int, float)) or not isinstance(of, str):
            raise CriteriaError(f"{place}: the fraction is a number and `of` a text")
        return Fraction(float(fraction), of)
    if isinstance(value, list):
        value = tuple(value)
    for one in value if isinstance(value, tuple) else () if isinstance(value, Fraction) else (value,):
        if not isinstance(one, (bool, int, float, str)):
            raise CriteriaError(f"{place}: the value {one!r:.80} is no number, text or boolean")
    return value


def _labels(labels: Any, place: str) -> dict[str, str]:
    if not isinstance(labels, Mapping) or not all(isinstance(one, str) for one in labels.values()):
        raise CriteriaError(f'{place}: labels are texts, like {{ framework = "torch" }}')
    return dict(labels)


def _disabled(
    body: Mapping[str, Any], source: CriteriaFile, found: Mapping[tuple[str, str], Criterion]
) -> list[tuple[str, str]]:
    names = body.get("disable", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CriteriaError(f'{source.name}: disable is a list of texts like "matmul.throughput_fp64"')
    known = {f"{check}.{id_}": (check, id_) for check, id_ in found}
    for name in names:
        if name not in known:
            raise CriteriaError(f'{source.name}: disable: no criterion is named "{name}"{did_you_mean(name, known)}')
    return [known[name] for name in dict.fromkeys(names)]


def _informational(body: Mapping[str, Any], source: CriteriaFile) -> dict[str, str]:
    table = body.get("informational", {})
    if not isinstance(table, dict) or not all(isinstance(why, str) and why.strip() for why in table.values()):
        raise CriteriaError(f'{source.name}: [informational] holds lines like check = "why nothing of it is judged"')
    return dict(table)


def _refuse(problems: Iterable[tuple[str, str]], name: str) -> None:
    listed = [f'{name}: criterion "{entry}": {problem}' for entry, problem in problems]
    if listed:
        raise CriteriaError("\n".join(listed), "mend the entry; `bringup checks` lists checks, metrics and units")
