"""What the plays have brought from the hosts: a snapshot's description, and what a way back did. Hostile input."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from provision.upgrade.journal import HostState

MAX_BYTES = 8 << 20
"""A description has some 100 bytes for each package of the host."""


@dataclass(frozen=True)
class Notes:
    """Reads them. `folder`: below the run directory."""

    folder: Path

    def snapshot(self, host: str) -> Mapping[str, object]:
        """The description of the host's snapshot, or nothing."""
        return self._read(f"{quote(host, safe='')}.json")

    def restored(self, host: str) -> Mapping[str, object]:
        """What the way back did there, or nothing."""
        return self._read(f"{quote(host, safe='')}.restored.json")

    def boot_before(self, state: HostState) -> str:
        """The boot that the host was in before its newest step, a reboot."""
        back = state.last is not None and state.last.phase == "reboot_back"
        return str((self.restored(state.name) if back else self.snapshot(state.name)).get("boot_id") or "")

    def snapshot_driver(self, host: str) -> str:
        """The driver's version by the snapshot that was brought back."""
        return str(self.restored(host).get("wanted_driver") or "")

    def _read(self, name: str) -> Mapping[str, object]:
        try:
            with (self.folder / name).open("rb") as file:
                body = json.loads(file.read(MAX_BYTES))
        except (OSError, ValueError, RecursionError):
            return {}
        return body if isinstance(body, dict) else {}
