"""The site's own commands that take a host out of service and put it back. They run on the operator's machine."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

from provision.errors import UsageError
from provision.hosts import Host
from provision.report.text import plain
from provision.upgrade.model import Result


def command_of(host: Host, variable: str, given: str) -> list[str]:
    """The words of the command for a host: its own variable's, else those given. Raises UsageError."""
    text = host.variables.get(variable, given)
    try:
        words = shlex.split(text) if isinstance(text, str) else []
    except ValueError as problem:
        raise UsageError(f"host {host.name}: {variable} is not a command line: {problem}") from None
    if words and shutil.which(words[0]) is None:
        raise UsageError(
            f"host {host.name}: the command {plain(words[0], 80)} is not on this machine",
            "a drain command runs here; it finds the host in BRINGUP_HOST and BRINGUP_ADDRESS",
        )
    return words


def run_hooks(commands: Mapping[str, tuple[Host, list[str]]], timeout_s: float) -> dict[str, Result]:
    """Run each host's command, at most 16 at once. `timeout_s`: for each of them."""

    def one(item: tuple[Host, list[str]]) -> Result:
        return _run(*item, timeout_s)

    return _map(one, commands)


def _map(
    work: Callable[[tuple[Host, list[str]]], Result], commands: Mapping[str, tuple[Host, list[str]]]
) -> dict[str, Result]:
    names: Iterable[str] = list(commands)
    with ThreadPoolExecutor(16, thread_name_prefix="drain") as pool:
        return dict(zip(names, pool.map(work, commands.values()), strict=True))


def _run(host: Host, words: list[str], timeout_s: float) -> Result:
    environment = {**os.environ, "BRINGUP_HOST": host.name, "BRINGUP_ADDRESS": host.address}
    name = plain(words[0], 80)
    try:
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Result(False, f"{name} did not end within {timeout_s:.0f} s")
    except OSError as problem:
        return Result(False, f"{name} cannot be run: {problem.strerror}")
    if done.returncode == 0:
        return Result(True)
    said = plain(done.stdout.decode("utf-8", "replace").strip()[-300:]) or "it said nothing"
    return Result(False, f"{name} ended with {done.returncode}: {said}")
