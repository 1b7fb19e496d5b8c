"""Hosts, as the inventory names them. Ansible's own code reads it, in a child: inventory_reader.py."""

from __future__ import annotations

import difflib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from provision.errors import InventoryError

_READ_TIMEOUT_S = 300
"""Dynamic inventories ask clouds; they may take their time, not for ever."""

_SSH_ARGS = ("ansible_ssh_common_args", "ansible_ssh_extra_args")
_SYNTAX = "inventory.example.ini shows the syntax; ansible-inventory --list -i FILE says what Ansible makes of a file"
_SECRET_VALUE = re.compile(r"""(\w*(?:pass|secret|token|key)\w*)\s*[=:]\s*("[^"]*"|'[^']*'|\S+)""", re.IGNORECASE)


@dataclass(frozen=True)
class Host:
    """One host and how to reach it. Plain data: it travels to threads, processes and clusters.

    `name` is the inventory's; `address` what to connect to. `variables` has `expect_*` and `bringup_*`
    of the inventory, and `ansible_port` where it is said there; nothing secret, and no vault's content.
    """

    name: str
    address: str = ""
    port: int = 22
    user: str = ""
    connection: Literal["ssh", "local"] = "ssh"
    private_key_file: str = ""
    ssh_args: str = ""
    """`ansible_ssh_common_args` and `ansible_ssh_extra_args`, joined: -J, -o ProxyJump=, -o ProxyCommand=, ..."""
    python: str = ""
    """`ansible_python_interpreter`, or empty: look for python3 on the host."""
    become: bool = False
    groups: tuple[str, ...] = ()
    variables: Mapping[str, object] = field(default_factory=dict)
    image: str = ""
    """The container image that the checks run in, on this host; empty: on the host itself."""
    withheld: tuple[str, ...] = ()
    """Variables of these that the inventory has and that hold a secret: the reader keeps them to itself."""


def local_host(name: str = "localhost") -> Host:
    """The machine that this runs on, without an inventory and without SSH."""
    return Host(name=name, address=name, connection="local")


def named_host(text: str) -> Host:
    """A host without an inventory, as ssh takes it: NAME, USER@NAME, NAME:PORT, ssh://USER@NAME:PORT.

    ~/.ssh/config says the rest. Raises InventoryError.
    """
    match = re.fullmatch(r"(?:ssh://)?(?:([^@\s]+)@)?(\[[^\]\s]+\]|[^:@/\s-][^:@/\s]*)(?::(\d{1,5}))?/?", text)
    if not match or (match[3] and not 0 < int(match[3]) < 65536):
        raise InventoryError(f'"{text}" is not a host', hint="NAME, USER@NAME or USER@NAME:PORT; or -i inventory.ini")
    user, name, port = match[1] or "", match[2].strip("[]"), match[3]
    return Host(
        name=name,
        address=name,
        user=user,
        port=int(port or 22),
        variables={"ansible_port": int(port)} if port else {},
    )


def read_inventory(sources: str | Path | Sequence[str | Path], limit: str = "") -> tuple[Host, ...]:
    """The hosts of an inventory, in Ansible's order, read by Ansible's own code.

    `sources`: files, directories, dynamic scripts, or a list of names with a comma ("box1,box2,").
    `limit`: a host pattern as `--limit` takes it (`web:!web3`, `gpu*`, `@retry`).
    Raises InventoryError for an inventory that is malformed (quoting the line) or selects no host.
    """
    given = [sources] if isinstance(sources, (str, Path)) else list(sources)
    names = [_checked(str(source)) for source in given]
    if not names:
        raise InventoryError("no inventory was named", hint="say -i inventory.ini (inventory.example.ini shows one)")
    answer = _ask_ansible(names, limit)
    error = answer.get("error")
    if isinstance(error, dict):
        raise _inventory_error(error)
    rows = answer.get("hosts")
    return tuple(_host(row) for row in rows) if isinstance(rows, list) else ()


def _checked(source: str) -> str:
    if "," in source:
        return source
    path = Path(source).expanduser()
    if not path.exists():
        raise InventoryError(
            f"the inventory {source} does not exist",
            hint="for names without a file, end the list with a comma: -i box1,",
        )
    if not os.access(path, os.R_OK):
        raise InventoryError(f"the inventory {source} cannot be read (permissions)")
    return str(path.absolute())


def _ask_ansible(names: list[str], limit: str) -> dict[str, object]:
    reader = Path(__file__).with_name("inventory_reader.py")
    if limit.startswith("@") or ",@" in limit or ":@" in limit:
        limit = re.sub(r"@~", f"@{Path.home()}", limit)
    argv = [sys.executable, "-P", str(reader), json.dumps({"sources": names, "limit": limit})]
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe) as child:
        try:
            said, complained = child.communicate(timeout=_READ_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            _end_with_its_scripts(child)
            raise InventoryError(
                f"the inventory {', '.join(names)} was not read within {_READ_TIMEOUT_S} s",
                hint="does a dynamic inventory script hang?",
            ) from None
        except KeyboardInterrupt:
            _end_with_its_scripts(child)
            raise
    try:
        answer: dict[str, object] = json.loads(said)
    except ValueError:
        last = complained.decode(errors="replace").strip().splitlines()[-3:]
        raise InventoryError(
            f"Ansible could not read the inventory {', '.join(names)}: {' '.join(last) or child.returncode}",
            hint="compare with: ansible-inventory --list -i " + shlex.join(names),
        ) from None
    return answer


def _end_with_its_scripts(child: subprocess.Popen[bytes]) -> None:
    """Kill the reader and what it started: a script of a dynamic inventory may wait for ever."""
    from provision.plays.process import descendants  # noqa: PLC0415 - it imports this module, and is seldom needed

    for pid in [*descendants(child.pid), child.pid]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _inventory_error(error: dict[str, object]) -> InventoryError:
    text, source = str(error.get("text", "")), str(error.get("source", ""))
    number = error.get("line")
    known = [str(name) for name in found] if isinstance(found := error.get("known"), list) else []
    if text == "selects no host":
        limit = str(error.get("limit", ""))
        if not limit:
            return InventoryError(
                f"the inventory {source} has no hosts", hint="a host is a line of its own: box1 ansible_host=192.0.2.7"
            )
        return InventoryError(
            f"--limit {limit} selects no host of {source}", hint=f"hosts there: {', '.join(known[:20])}"
        )
    pattern = str(error.get("pattern", ""))
    if pattern:
        close = difflib.get_close_matches(pattern.lstrip("!&"), known, n=3, cutoff=0.6)
        hint = f"did you mean {' or '.join(close)}?" if close else f"hosts and groups: {', '.join(known[:20])}"
        return InventoryError(text, hint=hint)
    if source and isinstance(number, int) and number > 0:
        return InventoryError(f"{source} line {number}: {_shorter(text, source)}{_quoted(source, number)}", _SYNTAX)
    return InventoryError(f"{source}: {_shorter(text, source)}" if source else text, _SYNTAX if source else "")


def _shorter(text: str, source: str) -> str:
    """Without the file and line that the caller puts in front."""
    return re.sub(rf"{re.escape(source)}:\d+:\s*", "", text)


def _quoted(source: str, number: int) -> str:
    """The line itself, with values of what sounds like a secret left out."""
    try:
        lines = Path(source).read_text(errors="replace").splitlines()
    except OSError:
        return ""
    if not 0 < number <= len(lines):
        return ""
    line = _SECRET_VALUE.sub(r"\1=...", lines[number - 1].strip())[:200]
    return f"\n    {number} | {line}"


def _host(row: dict[str, Any]) -> Host:
    name = str(row["name"])
    found: dict[str, Any] = row["variables"]

    def text(*names: str) -> str:
        return next((str(found[one]) for one in names if found.get(one) not in (None, "")), "")

    for said in (name, text("ansible_host", "ansible_ssh_host")):
        if not said.isprintable() or any(letter.isspace() for letter in said):
            raise InventoryError(f"{said[:80]!a} is not a host name", hint="is the inventory a text file?")
    connection = text("ansible_connection").rpartition(".")[2] or "ssh"
    if connection not in ("ssh", "local", "paramiko", "paramiko_ssh", "smart"):
        raise InventoryError(
            f"host {name}: ansible_connection={connection} is none that bringup has",
            hint="ssh (the default) and local are",
        )
    port = text("ansible_port", "ansible_ssh_port")
    if port and not (port.isdecimal() and 0 < int(port) < 65536):
        raise InventoryError(f"host {name}: ansible_port={port} is not a port (1 to 65535)")
    python = text("ansible_python_interpreter")
    kept = {key: value for key, value in found.items() if key.startswith(("expect_", "bringup_"))}
    if port:
        kept["ansible_port"] = int(port)  # said in the inventory, so ~/.ssh/config cannot change it
    return Host(
        name=name,
        address=text("ansible_host", "ansible_ssh_host") or name,
        port=int(port or 22),
        user=text("ansible_user", "ansible_ssh_user"),
        connection="local" if connection == "local" else "ssh",
        private_key_file=text("ansible_ssh_private_key_file", "ansible_private_key_file"),
        ssh_args=" ".join(part for one in _SSH_ARGS if (part := text(one))),
        python="" if python.startswith("auto") else python,
        become=text("ansible_become").lower() in ("1", "true", "yes", "on", "y", "t"),
        groups=tuple(row["groups"]),
        variables=kept,
        withheld=tuple(row["withheld"]),
    )
