"""How the bundle is started on a host, and what it means when it does not start."""

from __future__ import annotations

import base64
import importlib.resources
import signal
import zlib
from dataclasses import replace

from provision.bundle import Bundle
from provision.errors import HostError, RemoteCommandError
from provision.hosts import Host
from provision.remote import container
from provision.remote.sudo import as_asked
from validators.schema import Plan

END = b"end\n"
LEASE_LOST = 75
_NOT_FOUND = 127
_PRELUDE = (
    "import sys;sys.path[:]=[p for p in sys.path if p];"
    "sys.version_info<(3,9)and(sys.stdout.write('\\n'+sys.argv[2]+"
    '\'{"status":"old","text":"","python":"%d.%d.%d"}\\n\'%sys.version_info[:3]),sys.exit(78));'
    "import base64,zlib;exec(zlib.decompress(base64.b64decode(sys.argv[1])))"
)
"""Parses on Python 2.7 too. The working directory is taken out of the path: a random.py there is not Python's."""


def python_of(host: Host) -> str:
    """The interpreter's name; Ansible's `auto...` values ask for a search, which the host's PATH does here."""
    return "python3" if not host.python or host.python.startswith("auto") else host.python


def _inside(host: Host) -> Host:
    """The inventory's interpreter is the host's; an image has its own."""
    return replace(host, python="") if host.image else host


def start_argv(host: Host, bundle: Bundle, plan: Plan, mark: str, answer_s: int) -> list[str]:
    """The command that becomes the wire. `mark` stands before its answers, `answer_s` is the lease in seconds."""
    argv = bundle_argv(_inside(host), bundle, mark, answer_s, "wire")
    if host.image:
        folders = {name: value for name, value in plan.data.items() if value.startswith("/")}  # not an address
        argv = container.start(host, argv, folders, gpu=plan.device == "gpu")
    return as_asked(host, argv)


def bundle_argv(host: Host, bundle: Bundle, mark: str, answer_s: int, what: str) -> list[str]:
    """The command that becomes the bundle's `wire` or `data`, as the user who connects."""
    text = importlib.resources.files("validators").joinpath("receive.py").read_bytes()
    program = base64.b64encode(zlib.compress(text, 9)).decode()
    size, sha256 = str(len(bundle.data)), bundle.sha256
    # Not -I, which Python 2.7 does not know: it should come to the sentence that names its version.
    return [python_of(host), "-E", "-s", "-S", "-c", _PRELUDE, program, mark, sha256, size, str(answer_s), what]


def not_started(host: Host, status: int, tail: bytes) -> HostError:
    """The error of a program that ended before its first answer."""
    said = last_line(tail)
    if host.image and (known := container.explain(host, tail)):
        return known
    if host.become and b"sudo:" in tail:
        if b"password is required" in tail:
            return RemoteCommandError(
                f"{host.name}: sudo on the host asks for a password",
                "allow the user NOPASSWD in sudoers for this, or set ansible_become=false",
            )
        return RemoteCommandError(f"{host.name}: sudo does not work on the host: {said}", "try `sudo -n true` there")
    if status == _NOT_FOUND and host.image:
        return RemoteCommandError(
            f"{host.name}: the image {host.image} has no python3 ({said})", "name an image with Python 3.9 or newer"
        )
    if status == _NOT_FOUND:
        return RemoteCommandError(
            f"{host.name}: no {python_of(host)} on the host ({said})",
            "install it (`bringup provision` does), or set ansible_python_interpreter to a Python 3.9 or newer",
        )
    return RemoteCommandError(
        f"{host.name}: {python_of(_inside(host))} did not start the checks; {how_it_ended(status, tail)}",
        f"try on the host: docker run --rm {host.image} python3 -c 'print(1)'; where its entrypoint is a program, "
        "bringup_container_args='--entrypoint=' takes it out"
        if host.image
        else "try `python3 -c 'print(1)'` over ssh on the host",
    )


def how_it_ended(status: int, tail: bytes) -> str:
    """How a program ended, in words, with the last line of its stderr."""
    number = -status if status < 0 else status - 128
    try:
        how = f"it was ended by {signal.Signals(number).name}"
    except ValueError:
        how = f"its exit status is {status}"
    said = last_line(tail)
    return f"{how}; its last words: {said}" if said else how


def last_line(tail: bytes) -> str:
    """The last line that it wrote to stderr."""
    lines = tail.decode("utf-8", "replace").strip().splitlines()
    return lines[-1][:500] if lines else "it said nothing"
