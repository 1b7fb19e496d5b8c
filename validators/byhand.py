"""The bundle by hand, on the host itself: `run`, `describe` and the help."""

from __future__ import annotations

import difflib
import json
import math
import os
import sys
from typing import Dict, List, Mapping, Optional, Tuple

from validators import check as checks
from validators import lease
from validators.processes import bundle_root
from validators.runner import Runner
from validators.schema import (
    ERROR,
    HOST,
    RAN,
    CheckRequest,
    Measurement,
    Outcome,
    Plan,
    Record,
    Scalar,
    encode,
    encode_catalogue,
)
from validators.wire import end_on_signals

HELP = """usage: python3 validators.pyz run (--all | CHECK...) [--device cpu] [--timeout SECONDS] [--json] [--share]
                                  [--param CHECK.KEY=VALUE]... [--data NAME=FOLDER]...
       python3 validators.pyz describe

Measures this machine. It does not judge: the operator's `bringup validate` and `bringup judge` do.
  run        run checks; --device cpu lets load checks run on the CPU; --json prints the records as JSON Lines;
             --share loads GPUs that are in use, too; --param sets what a check takes; --data says where a dataset is
  describe   the catalogue of checks as JSON
  wire       spoken by `bringup`: a plan on stdin, records on stdout

Examples:
  python3 validators.pyz run system gpu_health
  python3 validators.pyz run matmul --param matmul.dtypes=bf16

Exit status: 0 every check ran or does not apply here, 2 wrong usage, 3 a check could not measure.
"""


OPTIONS = ("--all", "--json", "--device", "--timeout", "--share", "--param", "--data")


def command(argv: List[str]) -> int:
    """Do what a person typed; returns the exit status."""
    if not argv or argv[:1] in (["-h"], ["--help"], ["help"]) or argv[1:] in (["-h"], ["--help"]):
        sys.stdout.write(HELP + "\nChecks: " + ", ".join(checks.names()) + "\n")
        return 0
    if argv == ["describe"]:
        sys.stdout.write(encode_catalogue(checks.catalogue()) + "\n")
        return 0
    if argv[:1] != ["run"]:
        return _wrong(f"no such command: {argv[0]!r}")
    try:
        plan, as_json = _plan(argv[1:])
    except ValueError as problem:
        return _wrong(str(problem))
    return _run(plan, as_json)


def _wrong(why: str) -> int:
    sys.stderr.write(f"{why}\nTry: python3 validators.pyz --help\n")
    return 2


def _plan(words: List[str]) -> Tuple[Plan, bool]:
    """The plan that the words ask for. Raises ValueError, which says what is wrong with them."""
    names: List[str] = []
    device, as_json, share, timeout_s = "gpu", False, False, None
    params: Dict[str, Dict[str, Scalar]] = {}
    data: Dict[str, str] = {}
    known = checks.names()
    words = list(words)
    while words:
        word = words.pop(0)
        if word == "--all":
            names += known
        elif word == "--json":
            as_json = True
        elif word == "--share":
            share = True
        elif word == "--param" and words:
            check, key, value = _setting(words.pop(0))
            params.setdefault(check, {})[key] = value
        elif word == "--data" and words:
            name, _, folder = words.pop(0).partition("=")
            data[name] = folder
        elif word == "--device" and words and words[0] in ("cpu", "gpu"):
            device = words.pop(0)
        elif word == "--timeout" and words:
            timeout_s = _seconds(words.pop(0))
        elif word in known:
            names.append(word)
        else:
            near = difflib.get_close_matches(word, [*known, *OPTIONS], 1)
            raise ValueError(f"no such check or option: {word!r}" + (f" (did you mean {near[0]}?)" if near else ""))
    if not names:
        raise ValueError("say which checks to run, or --all")
    requests = tuple(
        CheckRequest(name, timeout_s or _timeout(name, params.get(name, {})), params.get(name, {}))
        for name in dict.fromkeys(names)
    )
    deadline_s = sum(one.timeout_s for one in requests) + 30.0
    return Plan(requests, deadline_s, device=device, share=share, data=data), as_json


def _setting(text: str) -> Tuple[str, str, Scalar]:
    """CHECK.KEY=VALUE; a value that JSON reads as a number or a boolean is one. Raises ValueError."""
    name, equals, value = text.partition("=")
    check, dot, key = name.partition(".")
    if not (equals and dot and check in checks.names() and key in checks.load(check).info.params):
        raise ValueError(f"not CHECK.KEY=VALUE of a check's settings: {text!r}")
    try:
        read = json.loads(value)
    except ValueError:
        read = value
    if isinstance(read, float) and not math.isfinite(read):
        raise ValueError(f"not a number that can be measured with: {text!r}")
    return check, key, read if isinstance(read, (bool, int, float)) else value


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < 1e6:
        raise ValueError(f"not a number of seconds: {text!r}")
    return seconds


def _timeout(name: str, params: Mapping[str, Scalar]) -> float:
    """The check's own; a soak's is added to its duration, as in `bringup validate`. Raises ValueError."""
    lasts = params.get("duration_s", 0.0)
    if isinstance(lasts, (bool, str)) or not 0 <= lasts < 1e6:
        raise ValueError(f"not a number of seconds: {name}.duration_s={lasts!r}")
    return checks.load(name).info.timeout_s + lasts


def _run(plan: Plan, as_json: bool) -> int:
    out = os.dup(1)
    os.dup2(2, 1)
    family = lease.Family()
    end_on_signals(family)
    family.adopt_orphans()
    statuses: Dict[str, str] = {}

    def emit(record: Record) -> None:
        if isinstance(record, Outcome):
            statuses[record.check + record.subject] = record.status
        text = encode(record) if as_json else _line(record)
        if text:
            lease.write_all(out, text)

    try:
        Runner(plan, emit, family, bundle_root()).run()
    except BrokenPipeError:  # the reader has seen enough: `| head`
        family.end_all()
    family.end_all()
    return 3 if ERROR in statuses.values() else 0


def _line(record: Record) -> Optional[bytes]:
    """A record as a line for a person; what came from outside is printed without control characters."""
    if isinstance(record, Measurement):
        value = f"({record.absence})" if record.value is None else f"{record.value}"
        unit = "" if record.unit in ("text", "version", "bool", "count") else f" {record.unit}"
        labels = "".join(f" {key}={text}" for key, text in sorted(record.labels.items()))
        where = "" if record.subject == HOST else f" {record.subject}"
        note = f"  # {record.note}" if record.note else ""
        text = f"  {record.check}.{record.metric}{where} = {value}{unit}{labels}{note}"
    elif isinstance(record, Outcome):
        where = "" if record.subject == HOST else f" {record.subject}"
        how = record.status if record.status == RAN else f"{record.status.upper()}: {record.detail}"
        text = f"{record.check}{where}: {how} ({record.duration_s:.2f} s)"
    else:
        return None
    return ("".join(c if c.isprintable() else "?" for c in text) + "\n").encode("utf-8", "replace")
