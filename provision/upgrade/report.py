"""The report of an upgrade: for each host what was before, what was tried, what is now. upgrade.{json,md,html}."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from provision.upgrade.journal import RunState

NAMES = {"json": "upgrade.json", "md": "upgrade.md", "html": "upgrade.html"}


def write(folder: Path, state: RunState) -> None:
    """Write the report in every format."""
    texts: Mapping[str, str] = {"json": json.dumps(asdict(state), indent=1)}
    for format, text in texts.items():
        path = folder / NAMES[format]
        part = path.with_name(path.name + ".part")
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "w") as file:
            file.write(text)
        part.replace(path)
