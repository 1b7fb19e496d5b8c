"""~/.ssh/config and /etc/ssh/ssh_config, read once a process. paramiko parses; `Include` is resolved here."""

from __future__ import annotations

import glob
import re
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import paramiko

from provision.errors import ConnectError

_KEYWORD = re.compile(r"\s*(\w+)(?:\s*=\s*|\s+)(.+?)\s*$")
_DEPTH = 16
"""How deep OpenSSH lets files include files."""

UNSUPPORTED = {
    "proxyusefdpass": "use ProxyCommand without it, or ProxyJump",
    "knownhostscommand": "write the keys into a known_hosts file",
    "revokedhostkeys": "mark the keys @revoked in known_hosts",
}
"""Options that say how to connect or whom to trust, and that cannot be followed: refused, never skipped."""


class _Config(paramiko.SSHConfig):
    """Leaves %h, %p and %r in these to whoever knows the inventory's user and port; paramiko knows only the file's."""

    TOKENS_BY_CONFIG_KEY = {  # noqa: RUF012  (the stubs declare it for instances)
        key: tokens
        for key, tokens in paramiko.SSHConfig.TOKENS_BY_CONFIG_KEY.items()
        if key not in ("proxycommand", "proxyjump", "identityfile")
    }


_lock = threading.Lock()
_parsed: dict[tuple[str, str], paramiko.SSHConfig] = {}


def lookup(hostname: str, config_file: str = "") -> Mapping[str, object]:
    """The options for a host, keys in lower case; tokens in HostName are expanded. Raises ConnectError.

    `config_file` replaces both files, as ssh -F does; "none" reads nothing.
    """
    try:
        found: Mapping[str, object] = _config(config_file).lookup(hostname)
    except (paramiko.SSHException, ValueError, KeyError) as problem:
        raise ConnectError(
            f"{hostname}: the ssh configuration cannot be followed: {problem}", hint=f"compare with: ssh -G {hostname}"
        ) from None
    for option, instead in UNSUPPORTED.items():
        if str(found.get(option, "no")).lower() not in ("no", "none"):
            raise ConnectError(
                f"{hostname}: the ssh configuration sets {option}, which bringup cannot follow", hint=instead
            )
    return found


def _config(config_file: str) -> paramiko.SSHConfig:
    home = Path.home()
    with _lock:
        key = (str(home), config_file)
        if key not in _parsed:
            if config_file:
                files = [] if config_file == "none" else [Path(config_file).expanduser()]
                if files and not files[0].is_file():
                    raise ConnectError(f"ssh configuration {config_file} is not there (-F in ansible_ssh_*_args)")
            else:
                files = [home / ".ssh/config", Path("/etc/ssh/ssh_config")]
            lines: list[str] = []
            for path in files:
                lines += ["Host *", *_expand(path, path.parent, "Host *", 0)]
            try:
                _parsed[key] = _Config.from_text("\n".join(lines))
            except (paramiko.SSHException, ValueError) as problem:
                raise ConnectError(
                    f"the ssh configuration cannot be parsed ({', '.join(map(str, files))}): {problem}",
                    hint="ssh -G some-host says whether ssh itself can read it",
                ) from None
        return _parsed[key]


def _expand(path: Path, base: Path, block: str, depth: int) -> Iterator[str]:
    """The file's lines with included files in place; after each, the block that it stood in goes on."""
    if depth > _DEPTH:
        raise ConnectError(f"{path}: ssh configuration files include each other more than {_DEPTH} deep")
    try:
        text = path.read_text(errors="replace")
    except FileNotFoundError:
        return
    except OSError as problem:
        raise ConnectError(f"cannot read {path}: {problem.strerror}") from problem
    outer = block
    for line in text.splitlines():
        match = _KEYWORD.match(line)
        keyword = match[1].lower() if match else ""
        if match and keyword == "include":
            for pattern in match[2].replace('"', "").split():
                for name in sorted(glob.glob(str(base / Path(pattern).expanduser()))):  # noqa: PTH207  (may be absolute)
                    included = list(_expand(Path(name), base, block, depth + 1))
                    if block != "Host *" and any(re.match(r"\s*(host|match)\s", one, re.I) for one in included):
                        raise ConnectError(
                            f"{path}: `Include {pattern}` inside `{block}` brings Host blocks of its own, "
                            "which bringup cannot follow",
                            hint="move the Include to the top of the file",
                        )
                    yield from included
                    yield block
            continue
        if keyword in ("host", "match"):
            block = line.strip()
        yield line
    if depth and block != outer:
        yield outer
