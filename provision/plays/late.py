"""What is known only after Ansible was started: it takes a second and a half to start, in which hosts can be surveyed.

Its variables come through a named pipe, at which it waits; its --limit is a file that is written before the pipe is.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Late:
    """The hosts to run on, by name, and variables beside those that run_play was given."""

    hosts: Sequence[str]
    extra_vars: Mapping[str, object] = field(default_factory=dict)


class Door:
    """The pipe and the file in a play's private directory."""

    def __init__(self, private: Path) -> None:
        self._pipe = private / "late_vars.json"
        self._limit = private / "limit"
        os.mkfifo(self._pipe, 0o600)
        self.words = ["-e", f"@{self._pipe}", "--limit", f"@{self._limit}"]

    def hand_over(self, late: Late, alive: Callable[[], bool]) -> None:
        """Let Ansible go on with these; without it (it ended before: its own words say why) this does nothing."""
        with os.fdopen(
            os.open(self._limit, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8"
        ) as file:
            file.write("\n".join(late.hosts) + "\n")
        while alive():
            try:
                descriptor = os.open(self._pipe, os.O_WRONLY | os.O_NONBLOCK)
            except OSError as problem:
                if problem.errno != errno.ENXIO:  # nobody reads yet
                    raise
                time.sleep(0.02)
                continue
            os.set_blocking(descriptor, True)
            with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
                json.dump(late.extra_vars, stream)
            return
