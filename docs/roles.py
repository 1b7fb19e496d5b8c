"""Write docs/roles.md from the roles' argument_specs and defaults: `python docs/roles.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
HEAD = """# The roles and their variables

Made by `python docs/roles.py` from each role's `meta/argument_specs.yml` and `defaults/main.yml`; a test holds it to
them. "from the plan" means: what `bringup plan` chose for the host, unless the inventory sets the variable itself.
"""


def page() -> str:
    """The whole page, one section a role, in the order of site.yml."""
    names = sorted(path.parent.parent.name for path in (ROOT / "playbooks/roles").glob("*/meta/argument_specs.yml"))
    order = (ROOT / "playbooks/site.yml").read_text(encoding="utf-8")
    names.sort(key=lambda name: (order.find(f": {name}\n") % (1 << 30), name))
    return HEAD + "".join(section(name) for name in names)


def section(name: str) -> str:
    """One role: what it is for, and a table of its variables."""
    role = ROOT / "playbooks/roles" / name
    specs: dict[str, Any] = yaml.safe_load((role / "meta/argument_specs.yml").read_text(encoding="utf-8"))
    defaults: dict[str, Any] = {}
    if (role / "defaults/main.yml").exists():
        defaults = yaml.safe_load((role / "defaults/main.yml").read_text(encoding="utf-8")) or {}
    main = specs["argument_specs"]["main"]
    lines = [f"\n## {name}", f"{text(main['short_description'])}.", *map(text, listed(main.get("description", [])))]
    options: dict[str, Any] = main.get("options", {})
    if options:
        lines += ["", "| variable | type | default | what for |", "|---|---|---|---|"]
        lines += [row(key, option, defaults) for key, option in options.items()]
    return "\n".join(lines) + "\n"


def row(key: str, option: dict[str, Any], defaults: dict[str, Any]) -> str:
    """One variable."""
    kind = option.get("type", "str") + (f" of {option['elements']}" if "elements" in option else "")
    if "choices" in option:
        kind = ", ".join(map(str, option["choices"]))
    what = " ".join(map(text, listed(option.get("description", ""))))
    return f"| `{key}` | {kind} | {shown(defaults[key]) if key in defaults else ''} | {what} |"


def shown(value: object) -> str:
    """A default as a reader would set it; what a plan chooses, and long lists, in words."""
    if isinstance(value, str) and "bringup_plan" in value:
        return "from the plan"
    if isinstance(value, (list, dict)) and len(str(value)) > 60:
        return f"{len(value)} entries"
    written = yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("\n").removesuffix("\n...")
    return f"`{text(written)}`"


def listed(value: object) -> list[str]:
    """Ansible takes one sentence or a list of them."""
    return [str(one) for one in value] if isinstance(value, list) else [str(value)]


def text(value: object) -> str:
    """One line that cannot end a table's cell."""
    return " ".join(str(value).split()).replace("|", "\\|")


if __name__ == "__main__":
    (ROOT / "docs/roles.md").write_text(page(), encoding="utf-8")
