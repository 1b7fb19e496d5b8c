"""The arrows of docs/architecture.md, proved by reading the imports."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import validators

ROOT = Path(__file__).parents[1]
FRAMEWORKS = {"torch", "tensorflow", "keras", "jax", "mxnet", "horovod", "jaxlib", "numpy", "cv2"}
IO_MODULES = {
    "asyncio",
    "concurrent",
    "http",
    "io",
    "multiprocessing",
    "os",
    "paramiko",
    "pathlib",
    "random",
    "select",
    "shutil",
    "signal",
    "socket",
    "sqlite3",
    "subprocess",
    "tempfile",
    "threading",
    "time",
    "urllib",
}


def imports(path: Path) -> Iterator[str]:
    """Dotted names of everything a file imports, late imports and importlib.import_module("...") too."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), path.name)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node.args[0].value


def files(folder: str) -> list[Path]:
    found = sorted((ROOT / folder).rglob("*.py"))
    assert found
    return found


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", files("provision"), ids=named)
def test_the_operators_side_imports_the_schema_and_nothing_else_of_the_hosts(path: Path) -> None:
    theirs = {name for name in imports(path) if name.split(".")[0] == "validators"}
    assert all(name == "validators.schema" or name.startswith("validators.schema.") for name in theirs), theirs


@pytest.mark.parametrize("path", files("validators"), ids=named)
def test_the_hosts_side_imports_itself_and_the_standard_library(path: Path) -> None:
    allowed = {"validators", *sys.stdlib_module_names}
    if path.parent.name in ("frameworks", "workloads"):
        allowed |= FRAMEWORKS
    if path.name == "nvml.py" and path.parent.name == "probes":
        allowed |= {"pynvml"}
    foreign = {name for name in imports(path) if name.split(".")[0] not in allowed}
    assert not foreign


PURE = ("verdict", "doctor", "compat", "host_plan")


@pytest.mark.parametrize("path", [path for room in PURE for path in files(f"provision/{room}")], ids=named)
def test_judging_does_no_input_or_output(path: Path) -> None:
    used = {name.split(".")[0] for name in imports(path)}
    assert not used & IO_MODULES
    calls = {node.func.id for node in ast.walk(ast.parse(path.read_text())) if _is_named_call(node)}
    assert not calls & {"open", "print", "input"}


def _is_named_call(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name)


@pytest.mark.parametrize("path", files("validators/checks"), ids=named)
def test_a_check_does_not_judge(path: Path) -> None:
    assert not {name for name in imports(path) if "verdict" in name or "criteria" in name}


def test_the_validators_that_are_imported_are_ours_and_not_the_package_of_that_name_on_pypi() -> None:
    assert validators.__file__ is not None
    assert Path(validators.__file__) == ROOT / "validators" / "__init__.py"


def test_the_reader_of_imports_sees_every_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / "pack").mkdir()
    path = tmp_path / "pack" / "some.py"
    path.write_text(
        "import os.path\nfrom . import near\nfrom .near import thing\n"
        "def f():\n    from torch import nn\n    importlib.import_module('jax')\n"
    )
    assert set(imports(path)) == {"os.path", "pack.near", "pack.near.thing", "torch.nn", "jax"}
