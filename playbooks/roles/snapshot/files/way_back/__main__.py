"""By hand, at a console without a network: sudo python3 /var/lib/gpu-bringup/way_back restore [SNAPSHOT]."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

import host
import lock
import owner
import restore
import take


def main(argv: Sequence[str]) -> int:
    """Do what is asked and print the result as one line of JSON. 0: done. 1: not, and `failure` says why."""
    parser = argparse.ArgumentParser(prog="way_back")
    parser.add_argument("--check", action="store_true", help="say what would be done")
    parser.add_argument("--run", help="the operator's run that this belongs to; empty: a play by hand")
    parser.add_argument("--who", default="somebody", help="who began it")
    parser.add_argument("--wait", type=float, default=2700.0, help="for another of us at work here, in seconds")
    commands = parser.add_subparsers(dest="command", required=True)
    taking = commands.add_parser("take")
    taking.add_argument("name")
    taking.add_argument("--keep", type=int, default=3)
    taking.add_argument("--without-way-back", action="store_true")
    restoring = commands.add_parser("restore")
    restoring.add_argument("name", nargs="?", default="")
    restoring.add_argument("--patience", type=float, default=600.0)
    commands.add_parser("look")
    commands.add_parser("mine", help="whether the host is still the run's")
    commands.add_parser("release", help="it is nobody's again")
    settling = commands.add_parser("settle")
    settling.add_argument("--patience", type=float, default=600.0)
    given = parser.parse_args(argv)
    if os.geteuid() != 0:
        sys.stdout.write(json.dumps({"failure": "this must run as root: sudo python3 ..."}) + "\n")
        return 1
    try:
        result = _do(given)
    except host.Refused as problem:
        result = {"failure": str(problem), "changed": False}
    sys.stdout.write(json.dumps(result) + "\n")
    return 1 if result.get("failure") else 0


def _do(given: argparse.Namespace) -> dict[str, Any]:
    if given.command == "look":
        return look()
    if given.command == "settle":
        left = lock.settle(given.patience)
        if left:
            raise host.Refused(f"what an earlier attempt began still runs: {left}")
        return {"changed": False}
    if given.command == "release":
        if not given.check:
            owner.release(given.run or "")
        return {"changed": False}
    if given.check:
        return _alone(given)
    what = f"{given.command} {getattr(given, 'name', '')}".strip() + (f" of the run {given.run}" if given.run else "")
    with lock.alone(what, given.wait):
        return _alone(given)


def _alone(given: argparse.Namespace) -> dict[str, Any]:
    """What one of us does at a time. At the console (no --run) nobody is asked whose the host is."""
    run = given.run or ""
    if given.command == "mine":
        owner.refuse_lost(run)
        return {"changed": False}
    if given.command == "take":
        return _take(given, run)
    name = given.name or _way_from_here()
    if not name:
        raise host.Refused(f"there is no snapshot in {host.BASE}")
    if given.check:
        return restore.restore(name, run=run, patience_s=given.patience, check=True)
    if given.run is not None:
        owner.claim(run, given.who)
    try:
        result = restore.restore(name, run=run, patience_s=given.patience, check=False)
        if result["problems"]:
            result["failure"] = f"the host is not as in its snapshot: {'; '.join(result['problems'][:6])}"
        elif given.run is not None:
            owner.restored(run)
            return result
    except host.Refused:
        owner.release(run)  # its run ends here: nothing follows a way back that failed
        raise
    owner.release(run)
    return result


def _way_from_here() -> str:
    """The newest snapshot that is not the host as it is: an upgrade that was refused leaves one of those as well."""
    names = take.newest_first()
    return next((name for name in names if restore.differences(take.load(host.BASE / name))), (names or [""])[0])


def _take(given: argparse.Namespace, run: str) -> dict[str, Any]:
    if given.check:
        owner.refuse_another(run)
        return take.take(given.name, keep=given.keep, without_way_back=given.without_way_back, check=True)
    new = owner.claim(run, given.who)
    try:
        return take.take(given.name, keep=given.keep, without_way_back=given.without_way_back, check=False)
    except host.Refused:
        if new:
            owner.release(run)
        raise


def look() -> dict[str, Any]:
    """Where the host is: for an operator who comes back to it."""
    found = host.packages()
    return {
        "changed": False,
        "boot_id": host.boot_id(),
        "driver": host.installed_driver(found),
        "unfinished": [
            f"{one.name} ({one.state})" for one in found.values() if one.state[1:].strip() not in ("i", "c")
        ],
        "owner": owner.read(),
        "snapshots": [path.name for path in take.taken()],
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
