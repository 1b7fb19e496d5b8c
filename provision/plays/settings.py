"""How Ansible is started: its arguments, its inventory where hosts are given as data, its environment."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from provision.errors import InventoryError
from provision.hosts import Host


def arguments(
    private: Path,
    inventory: Sequence[Host] | Sequence[Path],
    *,
    limit: str,
    extra_vars: Mapping[str, object] | None,
    tags: Sequence[str],
    skip_tags: Sequence[str],
    check: bool,
    diff: bool,
    forks: int,
    ask_become: bool,
) -> list[str]:
    """Return ansible-playbook's arguments. Variables go through a file: a command line is everybody's to read."""
    if not inventory:
        raise InventoryError("no host to run the play on", hint="give an inventory with -i, or localhost")
    hosts = [item for item in inventory if isinstance(item, Host)]
    paths = [_source(str(item)) for item in inventory if not isinstance(item, Host)]
    if hosts:
        path = private / "inventory.json"
        _write_private(path, {"all": inventory_of(hosts)})
        paths.append(str(path))
    found = [word for path in paths for word in ("-i", path)]
    if extra_vars:
        _write_private(private / "extra_vars.json", extra_vars)
        found += ["-e", f"@{private / 'extra_vars.json'}"]
    for option, value in (("--limit", limit), ("--tags", ",".join(tags)), ("--skip-tags", ",".join(skip_tags))):
        if value:
            found += [option, value]
    flags = {"--check": check, "--diff": diff, "--ask-become-pass": ask_become}
    return [*found, "--forks", str(forks), *(flag for flag, wanted in flags.items() if wanted)]


def _source(named: str) -> str:
    """An inventory as Ansible takes it from any folder: a path, or names with a comma ("box1,")."""
    return named if "," in named else str(Path(named).resolve())


def inventory_of(hosts: Sequence[Host]) -> dict[str, object]:
    """Return hosts as the body of an Ansible group, with their own groups below it."""
    entries: dict[str, object] = {}
    groups: dict[str, dict[str, dict[str, object]]] = {}
    for host in hosts:
        named = {
            "ansible_host": host.address,
            "ansible_port": host.port,
            "ansible_user": host.user,
            "ansible_connection": host.connection,
            "ansible_ssh_private_key_file": host.private_key_file,
            "ansible_ssh_common_args": host.ssh_args,
            "ansible_python_interpreter": host.python,
        }
        if host.connection == "local":
            named = {"ansible_connection": "local", "ansible_python_interpreter": host.python}
        entries[host.name] = {**host.variables, **{key: value for key, value in named.items() if value}}
        for group in host.groups:
            if group not in {"all", "ungrouped"}:
                groups.setdefault(group, {"hosts": {}})["hosts"][host.name] = {}
    return {"hosts": entries, "children": groups}


def _write_private(path: Path, content: object) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        json.dump(content, file)


def environment(private: Path, host_keys: str, known_hosts: Path | None) -> dict[str, str]:
    """Return the settings of Ansible that a user's own ansible.cfg shall not change under us."""
    checking = {"strict": "yes", "accept-new": "accept-new"}[host_keys]
    ssh = ["-o", "ControlMaster=auto", "-o", "ControlPersist=60s", "-o", f"StrictHostKeyChecking={checking}"]
    ssh += ["-o", "BatchMode=yes", "-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=4"]
    if known_hosts is not None:
        ssh += ["-o", f"UserKnownHostsFile={known_hosts}"]
    return {
        "ANSIBLE_SSH_ARGS": " ".join(ssh),
        "ANSIBLE_SSH_CONTROL_PATH_DIR": str(private / "cp"),
        "ANSIBLE_HOST_KEY_CHECKING": "True",
        "ANSIBLE_PIPELINING": "True",
        # The distribution's own: it has the bindings of apt. Looking for it takes half a second a host.
        "ANSIBLE_PYTHON_INTERPRETER": "/usr/bin/python3",
        "ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED": "True",
        "ANSIBLE_LOCAL_TEMP": str(private / "tmp"),
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_DEPRECATION_WARNINGS": "False",
        "ANSIBLE_RETRY_FILES_ENABLED": "False",
        "ANSIBLE_HOST_PATTERN_MISMATCH": "ignore",
        "ANSIBLE_GATHERING": "smart",
        "PYTHONUNBUFFERED": "1",
    }
