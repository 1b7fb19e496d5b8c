"""`bringup upgrade` as a process of its own, to be killed: python -m tests.host.upgrade_operator (upgrade|resume) JSON.

It differs from the command line in what measures (the double's bundle) and in the plan (the stub repository).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from provision.commands import Selection
from provision.hosts import Host
from provision.typed import fitted
from provision.upgrade import command
from provision.upgrade.model import Means, Options, Prepared
from tests.host.upgrade_hosts import PLAIN, bundle_with_double


def main() -> int:
    """Do what the words say."""
    action, words = sys.argv[1], json.loads(sys.argv[2])
    means = Means(bundle_with_double(), roles=(PLAIN,), tell=lambda line: print(line, flush=True), settle_s=0)
    if action == "resume":
        return command.resume(Path(words["run"]), max_fail=words.get("max_fail"), means=means)

    def planner(hosts: tuple[Host, ...]) -> Prepared:
        return Prepared({host.name: words["variables"] for host in hosts})

    return command.upgrade(
        Selection((words["inventory"],)),
        fitted(Options, words["options"], "options"),
        runs=Path(words["runs"]),
        planner=planner,  # type: ignore[arg-type]  # hosts come as a tuple
        means=means,
    )


if __name__ == "__main__":
    sys.exit(main())
