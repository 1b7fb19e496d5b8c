"""Record a host's packages before the driver is installed, and bring it back after an installation that failed.

argv[1] is {"do": "record" | "restore", "files": [...], "end": true | false}; `end`: what holds dpkg's lock is this
run's own, and is to be ended. The record lies in /var/lib/gpu-bringup. Standard library, Python 3.9.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from look import run

RECORD = Path("/var/lib/gpu-bringup/nvidia_driver_before.json")
LOCKS = ("/var/lib/dpkg/lock-frontend", "/var/lib/dpkg/lock")
FORCE = ["--force-depends", "--force-remove-reinstreq", "--force-confold", "--force-overwrite"]
APT = [
    "apt-get", "-q", "-y", "--no-install-recommends", "--allow-downgrades", "--allow-change-held-packages",
    "-o", "Dpkg::Options::=--force-confold", "-o", "DPkg::Lock::Timeout=60", "-o", "DPkg::Use-Pty=0",
]  # fmt: skip


def main():
    """Do it and print what came of it."""
    wish = json.loads(sys.argv[1])
    if wish["do"] == "record":
        RECORD.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        part = RECORD.with_suffix(".part")
        part.write_text(json.dumps(state(wish["files"])) + "\n")
        part.replace(RECORD)
        answer = {"restored": False, "left": []}
    else:
        if wish["end"]:
            end_what_hangs()
        answer = restore(json.loads(RECORD.read_text()))
    sys.stdout.write(json.dumps(answer) + "\n")


def packages():
    """Return name -> [version, state] of every package that dpkg knows."""
    said = run("dpkg-query", "-W", "-f", "${binary:Package}\\t${Version}\\t${db:Status-Abbrev}\\n")[1]
    rows = [line.split("\t") for line in said.splitlines() if line.count("\t") == 2]
    return {name: [version, status.strip()] for name, version, status in rows if status[1:2] != "n"}


def state(files):
    """Return what is brought back: packages, holds, marks, and the texts of files of ours."""
    return {
        "packages": packages(),
        "holds": run("apt-mark", "showhold")[1].split(),
        "automatic": run("apt-mark", "showauto")[1].split(),
        "files": {name: Path(name).read_text() if Path(name).is_file() else None for name in files},
    }


def restore(before):
    """Bring the packages, holds, marks and files back; `left` says what is not as it was."""
    now = packages()
    fresh = [name for name in now if name not in before["packages"]]
    # The first letter is the selection (a hold, say), which marks() brings back.
    there = {name: [version, status[1:]] for name, (version, status) in now.items()}
    was = {name: [version, status[1:]] for name, (version, status) in before["packages"].items() if status[1:2] == "i"}
    changed = [name for name, one in was.items() if there.get(name) != one]
    if fresh:
        purge(fresh)
    # apt refuses while dpkg is in the middle of something, and a script that hung would hang again.
    silence([name for name in changed if there.get(name, ["", ""])[1][:1] in "UFH"], "postinst")
    run("dpkg", "--force-confold", "--configure", "-a", timeout_s=600)
    if changed:
        words = [f"{name}={before['packages'][name][0]}" for name in changed]
        if run(*APT, "--reinstall", "install", *words, timeout_s=1800)[0]:
            run(*APT, "--fix-broken", "install", *words, timeout_s=1800)
    run("dpkg", "--force-confold", "--configure", "-a", timeout_s=600)
    now = packages()
    if fresh and any(name in now for name in fresh):
        purge([name for name in fresh if name in now])
    for name, content in before["files"].items():
        if content is None:
            Path(name).unlink(missing_ok=True)
        else:
            Path(name).write_text(content)
    holds = run("apt-mark", "showhold")[1].split()
    marks(before, holds)
    now = packages()
    left = [f"{name} is {now[name][0]} ({now[name][1]})" for name in now if name not in before["packages"]]
    for name, (version, status) in before["packages"].items():
        there = now.get(name, ["gone", ""])
        if [there[0], there[1][1:]] != [version, status[1:]]:
            left.append(f"{name} is {' '.join(there).strip()} and was {version}")
    if not left:
        RECORD.unlink(missing_ok=True)
    return {"restored": True, "left": left[:8], "back": sorted(set(fresh) | set(changed))}


def purge(names):
    """Remove packages in whatever state; a removal script that fails is put out of the way."""
    if run("dpkg", *FORCE, "--purge", *names, timeout_s=600)[0] == 0:
        return
    silence(names, "prerm", "postrm")
    run("dpkg", *FORCE, "--purge", *names, timeout_s=600)


def silence(names, *scripts):
    """Put scripts of packages out of the way; another version of a package brings its own."""
    for name in names:
        for script in scripts:
            path = Path("/var/lib/dpkg/info") / f"{name}.{script}"
            if path.is_file():
                path.write_text("#!/bin/sh\nexit 0\n")


def marks(before, holds):
    """Bring the holds and apt's marks back."""
    there = packages()
    automatic = run("apt-mark", "showauto")[1].split()
    for word, names in (
        ("unhold", [name for name in holds if name not in before["holds"]]),
        ("hold", [name for name in before["holds"] if name not in holds]),
        ("auto", [name for name in before["automatic"] if name not in automatic and name in there]),
        ("manual", [name for name in automatic if name not in before["automatic"] and name in there]),
    ):
        if names:
            run("apt-mark", word, *names)


def end_what_hangs():
    """End apt-get and dpkg with their children, where this run's deadline has left some behind."""
    for _ in range(20):
        pids = holders()
        if not pids:
            return
        for pid in pids:
            for one in [*children(pid), pid]:
                with contextlib.suppress(OSError):
                    os.kill(one, signal.SIGKILL)
        time.sleep(0.3)


def holders():
    """Return who holds dpkg's locks, by /proc/locks."""
    try:
        inodes = [Path(name).stat().st_ino for name in LOCKS]
        rows = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return []
    found = [int(row.split()[4]) for row in rows if any(f":{inode} " in row for inode in inodes)]
    return [pid for pid in found if pid > 1 and pid != os.getpid()]


def children(pid):
    """Return a process's children, theirs first."""
    said = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False).stdout
    direct = [int(word) for word in said.split()]
    return [one for child in direct for one in [*children(child), child]]
