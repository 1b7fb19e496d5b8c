"""make demo: this machine, validated over a real SSH connection, with a report at the end.

A throw-away sshd on loopback stands in for the network; everything else is what a user runs: an inventory, the
commands, a run directory. Without an NVIDIA GPU it says so first, and measures matmul on the CPU as a reference.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.hosts.sshd import find_sshd, sshd  # noqa: E402 - the checkout is put on the path first

NVIDIA = "0x10de"


def gpus() -> int:
    """NVIDIA display controllers on the PCI bus, driver or not."""
    found = 0
    for device in Path("/sys/bus/pci/devices").glob("*"):
        vendor, kind = (device / "vendor").read_text().strip(), (device / "class").read_text().strip()
        found += vendor == NVIDIA and kind.startswith("0x03")
    return found


def bringup(*arguments: str) -> int:
    """Run a command as a user would, shown first; its exit code."""
    print(f"\n$ bringup {shlex.join(arguments)}", flush=True)
    command = Path(sys.executable).with_name("bringup")
    return subprocess.run([str(command), *arguments], cwd=ROOT, check=False).returncode


def main() -> int:
    """The demo; its exit code is about the demo, not about this machine."""
    count = gpus()
    if count:
        print(f"This machine has {count} NVIDIA GPU{'s' if count > 1 else ''}: everything runs for real.")
    else:
        print("This machine has no NVIDIA GPU: the verdict cannot be PASS, and matmul runs on the CPU as a reference.")
    with tempfile.TemporaryDirectory(prefix="bringup-demo-") as folder:
        over_ssh = find_sshd() is not None
        with sshd(Path(folder)) if over_ssh else nullcontext() as server:
            inventory = Path(folder) / "inventory.ini"
            line = server.inventory_line("thismachine") if server else "thismachine ansible_connection=local"
            inventory.write_text(f"[demo]\n{line} bringup_torch_python={sys.executable}\n")
            if server:
                print(f"A throw-away sshd listens on 127.0.0.1 port {server.port}; the inventory names it:")
            else:
                print("There is no sshd here (`make deps` installs one), so the connection is local; the inventory:")
            print(inventory.read_text().replace(folder, "$DEMO"), end="")
            chosen = ["-i", str(inventory)]
            if os.geteuid() == 0:
                bringup("provision", *chosen, "--check", "--tags", "preflight")
            bringup("doctor", *chosen)
            code = bringup("validate", *chosen, "--level", "2", *([] if count else ["--device", "cpu"]))
    report = max((ROOT / "runs").glob("*/report.html"), key=lambda path: path.stat().st_mtime, default=None)
    if code not in (0, 1, 3) or report is None:
        print(f"\nThe demo itself went wrong: bringup validate ended with {code}.")
        return 1
    meaning = {0: "PASS", 1: "FAIL: measured, and not good enough", 3: "not everything could be judged"}[code]
    print(f"\nThe verdict is {meaning} (exit code {code}). Why is in the report:\n{report.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
