"""The site's own commands that take a host out of service and put it back. They run on the operator's machine."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from secrets import token_hex

from provision.errors import UsageError
from provision.hosts import Host
from provision.manifest import HIDDEN
from provision.plays.progress import secrets_in
from provision.report.text import plain
from provision.upgrade.model import DRAIN_VARIABLE, UNDRAIN_VARIABLE, Hooks, Result

_VARIABLES = {"drain": DRAIN_VARIABLE, "undrain": UNDRAIN_VARIABLE}
_WORD = 6
"""Letters from which on a word of a command may be a secret."""


def text_of(host: Host, variable: str, given: str) -> str:
    """The command for a host: its own variable's, else the one given. Raises UsageError."""
    if variable in host.withheld:
        raise UsageError(
            f"host {host.name}: {variable} holds a secret (from a vault, or of another variable), and no secret leaves "
            "the inventory",
            "let the command read it where it runs: from a file, or from its environment",
        )
    text = host.variables.get(variable, given)
    if not isinstance(text, str):
        raise UsageError(f"host {host.name}: {variable} is not a text", "one line, as for a shell; empty for none")
    return text


def command_of(host: Host, variable: str, given: str) -> list[str]:
    """The words of that command. Raises UsageError."""
    try:
        words = shlex.split(text_of(host, variable, given))
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
    said = _without(words, done.stdout.decode("utf-8", "replace")).strip()[-300:]
    return Result(False, f"{name} ended with {done.returncode}: {plain(said) or 'it said nothing'}")


def _without(words: Sequence[str], text: str) -> str:
    """What a command said, without the longer words that it was given and the environment's secrets: it is kept."""
    parts = [part for word in words[1:] for part in re.split(r"[\s'\"]+", word)]
    parts += [part for one in parts for part in re.split(r"[=:@,;/]+", one)]
    secrets = {part for part in parts if len(part) >= _WORD} | secrets_in(dict(os.environ))
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return text


def seals(hosts: Iterable[Host], hooks: Hooks) -> dict[str, dict[str, str]]:
    """By host, a salted hash of each command that it has: `bringup resume` knows by it whether they are the same."""
    return {
        host.name: {name: _seal(text, token_hex(8)) for name, text in _texts(host, hooks).items()} for host in hosts
    }


def check_seals(kept: Mapping[str, Mapping[str, str]], hosts: Iterable[Host], hooks: Hooks) -> None:
    """Raises UsageError where a host's commands are not those that the run began with."""
    for host in hosts:
        texts, before = _texts(host, hooks), kept.get(host.name, {})
        for name in _VARIABLES:
            text, seal = texts.get(name, ""), before.get(name, "")
            if bool(text) != bool(seal) or (seal and _seal(text, seal.partition(":")[0]) != seal):
                how = "is another" if text and seal else "is new" if text else "is missing"
                raise UsageError(
                    f"host {host.name}: its {name} command {how}; a run keeps no copy of it, since it may hold secrets",
                    f"give it as at first: --{name} CMD, or the inventory; or say that it is meant so: --other-hooks",
                )


def _texts(host: Host, hooks: Hooks) -> dict[str, str]:
    given = {"drain": hooks.drain, "undrain": hooks.undrain}
    texts = {name: text_of(host, variable, given[name]) for name, variable in _VARIABLES.items()}
    return {name: text for name, text in texts.items() if text}


def _seal(text: str, salt: str) -> str:
    return f"{salt}:{hashlib.sha256(f'{salt}:{text}'.encode()).hexdigest()}"
