"""Entry points of the bundle: `wire`, `data`, `run`, `describe`; `dataset`, `child`, `workload` are inner ones."""

# ruff: noqa: PLC0415 - late imports: start-up time is paid on every host

from __future__ import annotations

import sys
from typing import List


def main(argv: List[str]) -> int:
    """Do what the words ask; returns the exit status. Imports are late: start-up time is paid on every host."""
    what = argv[0] if argv else "--help"
    if what == "wire":
        from validators.unpack import load_unpacked

        load_unpacked(*argv[1:2])
        from validators.wire import serve

        return serve(argv[1:])
    if what == "data":
        from validators.staging import serve as serve_data

        return serve_data()
    if what == "dataset" and len(argv) > 2:
        from validators.staging import look

        return look(argv[1:])
    if what == "child" and len(argv) == 2:
        from validators.child import run_check

        return run_check(argv[1])
    if what == "workload" and len(argv) == 3:
        from validators.child import run_workload

        return run_workload(argv[1], int(argv[2]))
    from validators.byhand import command

    return command(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
