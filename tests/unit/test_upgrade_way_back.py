"""What the way back decides, without a host; on real ones: tests/host/test_upgrade_way_back.py."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import yaml

from validators.probes import gpu_users

ROLES = Path(__file__).resolve().parents[2] / "playbooks/roles"
DRIVER = ROLES / "nvidia_driver"


def module(path: Path) -> ModuleType:
    """A host's program as a module of its own."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def test_the_plan_the_drain_and_the_installation_look_at_the_same_files_of_a_gpu() -> None:
    look = module(DRIVER / "files/driver/look.py")
    assert look.GPU_FILE.pattern == gpu_users._NODE.pattern
    # One program and one list for both: the drain has none of its own.
    assert "nvidia_driver_ignored_processes" in (DRIVER / "tasks/idle.yml").read_text()
    assert "nvidia_driver_ignored_processes" in (DRIVER / "vars/main.yml").read_text()
    (play,) = yaml.safe_load((ROLES.parent / "upgrade.yml").read_text())
    (idle,) = (task for task in play["tasks"] if task["name"] == "Idle")
    assert [task["ansible.builtin.include_role"]["tasks_from"] for task in idle["block"]] == ["idle"]
