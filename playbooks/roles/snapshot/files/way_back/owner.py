"""Whose the host is: one run has it from its snapshot to its end, so that two operators do not undo each other."""

from __future__ import annotations

import json
import time
from pathlib import Path

import host
from host import Refused

_FILE = Path("/var/lib/gpu-bringup/owner.json")


def read() -> dict[str, str]:
    """The run that has the host, who began it and when; empty: nobody. It ends with the reboot after its way back."""
    mark = _read()
    return {} if mark.get("restored_in") not in (None, host.boot_id()) else mark


def _read() -> dict[str, str]:
    try:
        found = json.loads(_FILE.read_text())
        return {**{name: str(value) for name, value in found.items()}, "run": str(found["run"])}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # a disk that was full, or somebody's hand
        return {"run": "(unreadable)"}


def refuse_another(run: str) -> None:
    """Raise Refused where another run has the host."""
    mark = read()
    if mark and mark["run"] != run:
        since = f"{mark.get('who', 'somebody')} has this host since {mark.get('since', 'some time')}"
        raise Refused(
            f"the run {mark['run']} of {since}. Let it end, or go on with it there: bringup resume. If it is given up, "
            "take the host from it, there: sudo python3 /var/lib/gpu-bringup/way_back release"
        )


def claim(run: str, who: str) -> bool:
    """Give the host to the run; whether it was not the run's before. Raises Refused. A play by hand has no run."""
    refuse_another(run)
    new = bool(run) and not read()
    if new:
        _write({"run": run, "who": who, "since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())})
    return new


def refuse_lost(run: str) -> None:
    """Raise Refused where the host is another run's, or where this run had it and has it no more."""
    refuse_another(run)
    if run and _read().get("run") != run and (host.BASE / run).is_dir():
        raise Refused(
            f"the run {run} has this host no more: somebody has released it, or brought it back at its console"
        )


def release(run: str) -> None:
    """Nobody's again; empty: whoever has it."""
    if not run or _read().get("run") == run:
        _FILE.unlink(missing_ok=True)


def restored(run: str) -> None:
    """It has its snapshot back: what is left is a reboot, and with that the run is over."""
    mark = read()
    if run and mark:
        _write({**mark, "restored_in": host.boot_id()})


def _write(mark: dict[str, str]) -> None:
    _FILE.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = _FILE.with_suffix(".part")
    part.write_text(json.dumps(mark) + "\n")
    part.replace(_FILE)
