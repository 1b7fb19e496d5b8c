"""Which processes hold the GPU's device nodes open. Another user's are seen by root alone."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import List, Tuple

from validators.probes.sysfs import Files

_NODE = re.compile(r"/dev/(nvidia(\d+|ctl|-uvm|-uvm-tools|-modeset)|nvidia-caps/\S+|nvidia-nvswitch\S*)")
_MAX_FDS = 4096
_MAX_PROCESSES = 65536


@dataclass(frozen=True)
class User:
    """A process that has a device node open, and which ones."""

    pid: int
    program: str
    nodes: Tuple[str, ...]


def users(files: Files) -> Tuple[List[User], int]:
    """The processes found, and how many could not be looked into; at least 1 where /proc hides those of others."""
    names = files.names("/proc")[:_MAX_PROCESSES]
    found, hidden = [], int("1" not in names)  # mounted with hidepid=2, not even PID 1 is shown
    for name in names:
        if not name.isdecimal():
            continue
        folder = f"{files.root}/proc/{name}/fd"
        try:
            fds = os.listdir(folder)[:_MAX_FDS]
        except FileNotFoundError:
            continue  # it ended meanwhile, or is the kernel's own
        except OSError:
            hidden += bool(files.data(f"/proc/{name}/cmdline", 1))  # the kernel's own threads have none
            continue
        nodes = set()
        for fd in fds:
            try:
                target = os.readlink(f"{folder}/{fd}")
            except OSError:
                continue
            if _NODE.fullmatch(target):
                nodes.add(target)
        if nodes:
            program = files.text(f"/proc/{name}/comm", 64) or ""
            found.append(User(int(name), program, tuple(sorted(nodes))))
    return found, hidden
