"""What a role says of itself: every variable typed, explained and given a default, and the page that shows it."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
ROLES = sorted(path for path in (ROOT / "playbooks/roles").iterdir() if path.is_dir())


@pytest.mark.parametrize("role", ROLES, ids=lambda path: path.name)
def test_each_default_of_a_role_is_typed_and_explained(role: Path) -> None:
    options = yaml.safe_load((role / "meta/argument_specs.yml").read_text())["argument_specs"]["main"].get(
        "options", {}
    )
    defaults = role / "defaults/main.yml"
    named = (yaml.safe_load(defaults.read_text()) or {}) if defaults.exists() else {}
    assert set(named) == {name for name, option in options.items() if not option.get("required")}
    assert all(option.get("description") and option.get("type") for option in options.values())
    assert all(name.startswith((role.name, "bringup_")) or name == "frameworks" for name in options)


@pytest.mark.parametrize("role", ROLES, ids=lambda path: path.name)
def test_a_role_uses_builtin_modules_alone(role: Path) -> None:
    for path in role.rglob("tasks/*.yml"):
        for task in _tasks(yaml.safe_load(path.read_text()) or []):
            used = [key for key in task if "." in key]
            assert all(key.startswith("ansible.builtin.") for key in used), (path.name, used)
            assert used or "block" in task, (path.name, task.get("name"))


def test_the_page_of_the_roles_is_what_the_generator_writes() -> None:
    page = runpy.run_path(str(ROOT / "docs/roles.py"))["page"]()
    assert (ROOT / "docs/roles.md").read_text() == page, "run: python docs/roles.py"


def _tasks(items: list[dict[str, object]]) -> list[dict[str, object]]:
    found = []
    for item in items:
        found.append(item)
        for part in ("block", "rescue", "always"):
            inner = item.get(part)
            if isinstance(inner, list):
                found += _tasks(inner)
    return found
