"""Hosts, as the inventory names them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Host:
    """One host and how to reach it. Plain data: it travels to threads, processes and clusters.

    `name` is the inventory's; `address` what to connect to. `variables` are the inventory's own
    (`expect_*`, `bringup_*` and the rest), without those that hold secrets.
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
