"""Which Python on this host has a framework: looked for without importing the framework.

An interpreter that the inventory names (`bringup_torch_python`) is the only one looked at: measuring
another one than the user named would be an answer to another question.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, List, Mapping, Optional, Sequence, Tuple

from validators.probes import command
from validators.schema import Plan

VENVS = "/opt/bringup/venvs"
"""Where the role `frameworks` puts one virtual environment per framework."""

FRAMEWORKS: Mapping[str, Sequence[str]] = {
    "torch": ("torch",),
    "tensorflow": ("tensorflow", "tensorflow-cpu", "tensorflow-gpu", "tf-nightly", "tensorflow-intel"),
    "keras": ("keras", "keras-nightly"),
    "jax": ("jax",),
    "mxnet": ("mxnet", "mxnet-cu117", "mxnet-cu112", "mxnet-cu110", "mxnet-cu102", "mxnet-cu101", "mxnet-mkl",
              "nvidia-mxnet"),
    "horovod": ("horovod", "nvidia-horovod"),
    "opencv": ("opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless",
               "opencv"),
}  # fmt: skip
"""Framework -> the distributions that bring it."""

_USUAL = ("*/bin/python3", "*/.venv/bin/python3", "*/venv/bin/python3", "bringup/venvs/*/bin/python3")
"""Below /opt: conda, cloud images, virtual environments."""

MAX_INTERPRETERS = 12

# Lists what is installed by reading the folders' names: works on every Python 3 and imports nothing heavy.
# The working directory is taken out of the path: a json.py in a home is not Python's.
_SCRIPT = """
import sys
sys.path[:] = [folder for folder in sys.path if folder]
import json, os
found = {}
for folder in sys.path:
    if not os.path.isdir(folder):
        continue
    for name in sorted(os.listdir(folder)):
        stem, kind = os.path.splitext(name)
        if kind not in ('.dist-info', '.egg-info') or '-' not in stem:
            continue
        parts = stem.split('-')
        found.setdefault(parts[0].lower().replace('_', '-').replace('.', '-'), parts[1])
wanted = json.loads(sys.argv[1])
print(json.dumps({'version': '.'.join(map(str, sys.version_info[:3])), 'prefix': sys.prefix,
                  'packages': {name: found[name] for name in wanted if name in found}}))
"""


@dataclass(frozen=True)
class Candidate:
    """An interpreter to look at, and why it is one."""

    path: str
    origin: str


@dataclass(frozen=True)
class Interpreter:
    """What an interpreter has: distribution name -> version. `problem` where it could not be asked."""

    path: str
    origin: str
    version: str = ""
    prefix: str = ""
    packages: Mapping[str, str] = field(default_factory=dict)
    problem: str = ""

    @property
    def too_old(self) -> bool:
        """Whether the workloads, which take Python 3.9, cannot run there."""
        return tuple(int(part) for part in self.version.split(".")[:2] if part.isdigit()) < (3, 9)

    def version_of(self, framework: str) -> str:
        """The framework's version there, or empty."""
        return next((self.packages[name] for name in FRAMEWORKS[framework] if name in self.packages), "")


def candidates(plan: Plan, framework: str, environ: Optional[Mapping[str, str]] = None) -> List[Candidate]:
    """The interpreters to look at for a framework, in order. A named one is the only one."""
    environ = os.environ if environ is None else environ
    named = plan.pythons.get(framework, "")
    if named:
        return [Candidate(named, f"named by bringup_{framework}_python")]
    return _distinct(
        [Candidate(path, f"named by bringup_{other}_python") for other, path in sorted(plan.pythons.items())]
        + [Candidate(f"{VENVS}/{framework}/bin/python3", "made by the frameworks role")]
        + [Candidate(f"{environ[name]}/bin/python3", f"${name}") for name in ("VIRTUAL_ENV",) if environ.get(name)]
        + [Candidate(sys.executable, "runs this bundle")]
        + [Candidate(f"{folder}/python3", "python3 on PATH") for folder in environ.get("PATH", "").split(":") if folder]
        + [Candidate(path, "a usual place") for path in _usual(environ.get("HOME", ""))]
    )


def _usual(home: str) -> List[str]:
    found = ["/usr/bin/python3", "/usr/local/bin/python3"]
    for pattern in _USUAL:
        found += [str(path) for path in sorted(Path("/opt").glob(pattern))]
    if home.startswith("/"):
        found += [f"{home}/{name}/bin/python3" for name in (".venv", "venv", "miniconda3", "anaconda3")]
    return found


def _distinct(wanted: Sequence[Candidate]) -> List[Candidate]:
    """Those that are there, each folder once (/bin is often a link to /usr/bin); a venv is its own folder."""
    found: Dict[Path, Candidate] = {}
    for one in wanted:
        path = Path(one.path)
        if path.is_absolute() and os.access(path, os.X_OK):
            found.setdefault(path.parent.resolve(), one)
    return list(found.values())[:MAX_INTERPRETERS]


def inspect(wanted: Sequence[Candidate], timeout_s: float = 5.0) -> List[Interpreter]:
    """Ask all interpreters at once, within `timeout_s` seconds; one that cannot answer has a `problem`."""
    names = json.dumps([name for distributions in FRAMEWORKS.values() for name in distributions])
    answers = command.run_all([(one.path, "-c", _SCRIPT, names) for one in wanted], timeout_s)
    return [_read(one, answer) for one, answer in zip(wanted, answers)]  # noqa: B905 - strict is 3.10+, the host may have 3.9


def _read(one: Candidate, answer: command.Ran) -> Interpreter:
    if not answer.ok:
        return Interpreter(one.path, one.origin, problem=answer.problem)
    try:
        body = json.loads(answer.stdout.strip().splitlines()[-1])
        packages = {str(name): str(version) for name, version in body["packages"].items()}
        return Interpreter(one.path, one.origin, str(body["version"]), str(body["prefix"]), packages)
    except (ValueError, LookupError, TypeError, AttributeError):
        return Interpreter(one.path, one.origin, problem=f"{one.path} answered something else than was asked")


def find_python(plan: Plan, framework: str) -> Optional[str]:
    """The first interpreter that has the framework installed, or None (then see `explain`)."""
    return look_for(plan, [framework])[framework][0]


def explain(plan: Plan, framework: str) -> str:
    """Why `find_python` gave None: each interpreter that was looked at, and how to name one."""
    return look_for(plan, [framework])[framework][1]


def look_for(plan: Plan, frameworks: Sequence[str]) -> Dict[str, Tuple[Optional[str], str]]:
    """What `find_python` gives for each framework, and what to say where that is None; asks each interpreter once."""
    wanted = {name: candidates(plan, name) for name in frameworks}
    every = {one.path: one for found in wanted.values() for one in found}
    answers = {one.path: one for one in inspect(list(every.values()))}
    found: Dict[str, Tuple[Optional[str], str]] = {}
    for name in frameworks:
        looked = [answers[one.path] for one in wanted[name]]
        fit = (one.path for one in looked if one.version_of(name) and (plan.pythons.get(name) or not one.too_old))
        found[name] = next(fit, None), _without(name, looked)
    return found


def _without(framework: str, looked: Sequence[Interpreter]) -> str:
    def has(one: Interpreter) -> str:
        return f"with {framework}, too old for the checks: 3.9" if one.version_of(framework) else f"without {framework}"

    each = [f"{one.path} ({one.origin}): {one.problem or f'Python {one.version} {has(one)}'}" for one in looked]
    return (
        f"no Python with {framework} on this host; looked at {'; '.join(each) or 'none: no python3 was found'}. "
        f"Set bringup_{framework}_python=/path/to/python3 in the inventory, "
        + (
            "of an environment of its own, with Python 3.9 (docs/preflight.md)"
            if framework in ("mxnet", "horovod")
            else "or install it: bringup provision --tags frameworks"
        )
    )
