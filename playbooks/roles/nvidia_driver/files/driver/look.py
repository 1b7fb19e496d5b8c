"""Read a host, changing nothing: its modules, libraries, processes, Secure Boot. Standard library, Python 3.9."""

import contextlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

GPU_FILE = re.compile(r"/dev/(nvidia(\d+|ctl|-uvm|-uvm-tools|-modeset)|nvidia-caps/\S+|nvidia-nvswitch\S*)")
ENGLISH = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}


def run(*words, timeout_s=60):
    """Return (exit status, output) of a command; 127 where there is none, 124 where it took too long."""
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, errors="replace", timeout=timeout_s, env=ENGLISH, check=False
        )
    except OSError as error:
        return 127, str(error)
    except subprocess.TimeoutExpired:
        return 124, f"{words[0]} took more than {timeout_s} s"
    return done.returncode, (done.stdout + done.stderr).strip()


def text(path):
    """Return a file's text, or the empty text where it cannot be read."""
    try:
        return Path(path).read_text(errors="replace").strip()
    except OSError:
        return ""


def modules(kernel):
    """Return the driver's module file for a kernel: name, file, version, license. Debian calls it nvidia-current."""
    for name in ("nvidia", "nvidia-current"):
        status, version = run("modinfo", "-k", kernel, "-F", "version", name)
        if status == 0:
            found = {"name": name, "version": version.split("\n")[0]}
            for field in ("filename", "license"):
                found[field] = run("modinfo", "-k", kernel, "-F", field, name)[1].split("\n")[0]
            return found
    return {}


def library(name):
    """Return the version in a library's file name, as the loader finds it."""
    for line in run("ldconfig", "-p")[1].splitlines():
        if line.strip().startswith(f"{name} ") and "=>" in line:
            return Path(line.rpartition("=> ")[2]).resolve().name.partition(".so.")[2]
    for folder in ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64"):
        path = Path(folder) / name
        if path.exists():
            return path.resolve().name.partition(".so.")[2]
    return ""


def processes(ignored):
    """Return the processes that hold a file of a GPU open, but for those of the ignored names."""
    found = {}
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            target = str(link.readlink())
        except OSError:
            continue
        if GPU_FILE.fullmatch(target.removesuffix(" (deleted)")):
            pid = link.parts[2]
            found[pid] = text(f"/proc/{pid}/comm") or "?"
    ours = {name[:15] for name in ignored}  # the kernel keeps that much of a name
    return [f"{name} ({pid})" for pid, name in sorted(found.items(), key=lambda one: int(one[0])) if name not in ours]


def where():
    """Return what kind of host this is: a container, WSL, its Secure Boot and its GPUs."""
    container = ""
    if Path("/.dockerenv").exists():
        container = "docker"
    container = text("/run/systemd/container") or container
    if not container:
        status, said = run("systemd-detect-virt", "-c")
        container = said if status == 0 else ""
    status, said = run("mokutil", "--sb-state")
    secure = {"SecureBoot enabled": True, "SecureBoot disabled": False}.get(said.split("\n")[0].strip())
    if secure is None:
        for path in Path("/sys/firmware/efi/efivars").glob("SecureBoot-*"):
            with contextlib.suppress(OSError):
                secure = path.read_bytes()[-1:] == b"\x01"
    gpus = 0
    for path in Path("/sys/bus/pci/devices").glob("*/vendor"):
        gpus += text(path) == "0x10de" and text(path.with_name("class")).startswith("0x03")
    return {
        "container": container,
        "wsl": "microsoft" in text("/proc/version").lower(),
        "secure_boot": bool(secure),
        "key": signing_key() if secure else {},
        "gpus": gpus,
    }


def signing_key():
    """Return DKMS's signing key and whether the firmware trusts it."""
    for path in ("/var/lib/shim-signed/mok/MOK.der", "/var/lib/dkms/mok.pub"):
        if Path(path).exists():
            said = run("mokutil", "--test-key", path)[1]
            return {"path": path, "enrolled": "is already enrolled" in said, "said": said[:200]}
    return {"path": "", "enrolled": False, "said": ""}


def run_file():
    """Return the command that removes a driver of NVIDIA's .run installer, or the empty text where there is none."""
    for name in ("/usr/bin/nvidia-uninstall", "/usr/bin/nvidia-installer"):
        if Path(name).exists() and run("dpkg", "-S", name)[0] != 0:
            return "sudo nvidia-uninstall" if name.endswith("uninstall") else "sudo nvidia-installer --uninstall"
    if Path("/var/log/nvidia-installer.log").exists():
        for folder in ("/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib"):
            path = Path(folder) / "libcuda.so.1"
            if path.exists() and run("dpkg", "-S", str(path.resolve()))[0] != 0:
                return "sudo nvidia-uninstall (or the .run file itself with --uninstall)"
    return ""


def smi():
    """Return what nvidia-smi answers: its exit status, a sentence of it, the driver's version where it knows one."""
    status, said = run("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", timeout_s=120)
    line = said.split("\n")[0][:300]
    if status == 127:
        line = ""
    return {"status": status, "said": line, "version": line.strip() if status == 0 else ""}


def unit():
    """Return what nvidia-persistenced's unit is like, but for our own part of it."""
    status, said = run("systemctl", "cat", "nvidia-persistenced.service")
    theirs = said.partition("# /etc/systemd/system/nvidia-persistenced.service.d/bringup.conf")[0]
    lazy = "--no-persistence-mode" in theirs or "StopWhenUnneeded=true" in theirs or "WantedBy=" not in theirs
    return {
        "there": status == 0,
        "lazy": status == 0 and lazy,
        "enabled": status == 0 and run("systemctl", "is-enabled", "nvidia-persistenced.service")[0] == 0,
        "active": status == 0 and run("systemctl", "is-active", "nvidia-persistenced.service")[0] == 0,
    }


def unlike(contents):
    """Return those of the files (path -> text, empty: no such file) that are not as they should be."""
    found = []
    for path, given in contents.items():
        # Ansible makes null of a template that comes out empty.
        content = given or ""
        there = Path(path).is_file()
        if there != bool(content.strip()) or (there and text(path) != content.strip()):
            found.append(path)
    return found


if __name__ == "__main__":  # tasks/idle.yml sends this file alone
    sys.stdout.write(json.dumps(processes(sys.argv[1:])) + "\n")
