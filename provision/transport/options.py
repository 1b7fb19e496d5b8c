"""Where and how to connect: the inventory, its ssh arguments and ~/.ssh/config resolved into one Endpoint."""

from __future__ import annotations

import getpass
import re
import shlex
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from provision.errors import ConnectError
from provision.hosts import Host
from provision.transport import ssh_config

_FLAGS_WITHOUT_EFFECT = set("AaCkKnqTvxXY")
_VALUE_FLAGS = {"i": "identityfile", "l": "user", "p": "port", "J": "proxyjump", "F": "configfile"}
_HONOURED = {
    "addressfamily", "connecttimeout", "hostkeyalias", "hostname", "identitiesonly", "identityagent", "identityfile",
    "port", "proxycommand", "proxyjump", "serveraliveinterval", "stricthostkeychecking", "user", "userknownhostsfile",
    "globalknownhostsfile", "configfile",
}  # fmt: skip
_WITHOUT_EFFECT = {
    "addkeystoagent", "batchmode", "challengeresponseauthentication", "checkhostip", "compression",
    "connectionattempts", "controlmaster", "controlpath", "controlpersist", "escapechar", "forwardagent",
    "forwardx11", "forwardx11trusted", "gssapiauthentication", "gssapidelegatecredentials", "hashknownhosts", "ipqos",
    "kbdinteractiveauthentication", "loglevel", "numberofpasswordprompts", "passwordauthentication",
    "preferredauthentications", "pubkeyauthentication", "requesttty", "sendenv", "serveralivecountmax",
    "tcpkeepalive", "updatehostkeys", "verifyhostkeydns", "visualhostkey",
}  # fmt: skip
"""Options about things that bringup does not do (multiplexing, forwarding, passwords), or about ssh's own output."""

_SAFE_NAME = re.compile(r"[\w.:%\[\]-]+")
_MAX_HOPS = 8


@dataclass(frozen=True)
class Endpoint:
    """One machine to open an SSH connection to, with everything that decides how. Times are seconds."""

    who: str
    """As messages name it: the inventory's name, or "jump host bastion of gpu01"."""
    hostname: str
    port: int
    user: str
    identity_files: tuple[Path, ...]
    """Named keys, first choice first; empty: the usual names in ~/.ssh."""
    identities_only: bool
    identity_agent: str
    known_as: str
    """The name in known_hosts, without the port."""
    user_known_hosts: tuple[Path, ...]
    system_known_hosts: tuple[Path, ...]
    strict_checking: str
    """What StrictHostKeyChecking says. It never loosens --host-keys; "yes" tightens it."""
    connect_timeout_s: float | None
    keepalive_s: int
    family: int
    jumps: tuple[str, ...]
    proxy_command: str
    config_file: str
    hops: int


def resolve(host: Host) -> Endpoint:
    """The endpoint of an inventory's host. Raises ConnectError for an option that cannot be followed."""
    options = parse_ssh_args(host.name, host.ssh_args)
    if host.user:
        options["user"] = [host.user]  # Ansible puts -o User= before the common args
    if host.private_key_file:
        options.setdefault("identityfile", []).insert(0, host.private_key_file)
    if host.port != 22 or "ansible_port" in host.variables:
        options["port"] = [str(host.port)]
    return _endpoint(host.name, host.address or host.name, options, hops=0)


def resolve_jump(target: Endpoint) -> Endpoint:
    """The last jump host of `target`: it is reached through those before it."""
    if target.hops >= _MAX_HOPS:
        raise ConnectError(f"{target.who}: more than {_MAX_HOPS} jump hosts; does ProxyJump lead in a circle?")
    *before, last = target.jumps
    user, hostname, port = _split_destination(target.who, last)
    options: dict[str, list[str]] = {"configfile": [target.config_file]} if target.config_file else {}
    if user:
        options["user"] = [user]
    if port:
        options["port"] = [port]
    if before:
        options["proxyjump"] = [",".join(before)]
    first = target.who.rpartition(" of ")[2]
    return _endpoint(f"jump host {hostname} of {first}", hostname, options, hops=target.hops + 1)


def parse_ssh_args(who: str, text: str) -> dict[str, list[str]]:
    """`ansible_ssh_common_args` as options, keys in lower case. Raises ConnectError for one that is not followed.

    A silently skipped option could mean another host, another user, or less verification than was asked for.
    """
    try:
        words = shlex.split(text)
    except ValueError as problem:
        raise ConnectError(f"{who}: ansible_ssh_*_args cannot be split: {problem}: {text!r}") from None
    found: dict[str, list[str]] = {}
    while words:
        word = words.pop(0)
        if not word.startswith("-") or len(word) < 2:
            raise ConnectError(f"{who}: `{word}` in ansible_ssh_*_args is not an option of ssh")
        flag, value = word[1], word[2:]
        if flag in "46":
            found.setdefault("addressfamily", ["inet" if flag == "4" else "inet6"])
            words[:0] = [f"-{value}"] if value else []
        elif flag in _FLAGS_WITHOUT_EFFECT:
            words[:0] = [f"-{value}"] if value else []
        elif flag == "o" or flag in _VALUE_FLAGS:
            if not value:
                if not words:
                    raise ConnectError(f"{who}: -{flag} at the end of ansible_ssh_*_args has no value")
                value = words.pop(0)
            if flag == "o":
                _add_option(who, value, found)
            else:
                found.setdefault(_VALUE_FLAGS[flag], []).append(value)
        else:
            raise _refused(who, f"-{flag}")
    return found


def _add_option(who: str, text: str, found: dict[str, list[str]]) -> None:
    name, _, value = re.sub(r"^\s*(\w+)\s*=?\s*", r"\1=", text).partition("=")
    key, value = name.lower(), value.strip().strip('"')
    if key in _HONOURED:
        found.setdefault(key, []).append(value)
    elif key not in _WITHOUT_EFFECT:
        raise _refused(who, f"-o {name}")


def _refused(who: str, option: str) -> ConnectError:
    return ConnectError(
        f"{who}: `{option}` in ansible_ssh_common_args or ansible_ssh_extra_args is nothing that bringup can follow",
        hint="-J, -i, -l, -p, -F and -o with ProxyJump, ProxyCommand, IdentityFile, IdentitiesOnly, User, Port, "
        "HostName, HostKeyAlias, UserKnownHostsFile, ConnectTimeout are followed; what only ansible needs can stand "
        "in ssh_args of ansible.cfg",
    )


def _endpoint(who: str, destination: str, given: Mapping[str, list[str]], *, hops: int) -> Endpoint:
    """First value wins, given options before the configuration files, as in ssh."""
    config_file = given.get("configfile", [""])[0]
    config = ssh_config.lookup(destination, config_file)

    def option(name: str, default: str = "") -> str:
        value = given[name][0] if name in given else config.get(name)
        return str(value) if value is not None else default

    hostname = option("hostname", destination)
    user = option("user") or getpass.getuser()
    port = _number(who, "Port", option("port", "22"))
    identities = [*given.get("identityfile", []), *_texts(config.get("identityfile"))]
    jump, command = _proxy(given, config)
    tokens = {"h": hostname, "p": str(port), "r": user, "n": destination}
    jump, command = _expand(who, jump, tokens), _expand(who, command, tokens)
    home = str(Path.home())
    timeout = option("connecttimeout")
    families = {"inet": socket.AF_INET, "inet6": socket.AF_INET6}
    return Endpoint(
        who=who,
        hostname=hostname,
        port=port,
        user=user,
        identity_files=tuple(_path(name, hostname, user) for name in identities if name.lower() != "none"),
        identities_only=option("identitiesonly", "no").lower() == "yes",
        identity_agent=option("identityagent"),
        known_as=option("hostkeyalias", hostname),
        user_known_hosts=_paths(option("userknownhostsfile", f"{home}/.ssh/known_hosts {home}/.ssh/known_hosts2")),
        system_known_hosts=_paths(
            option("globalknownhostsfile", "/etc/ssh/ssh_known_hosts /etc/ssh/ssh_known_hosts2"),
        ),
        strict_checking=option("stricthostkeychecking").lower(),
        connect_timeout_s=float(_number(who, "ConnectTimeout", timeout)) if timeout not in ("", "none") else None,
        keepalive_s=_number(who, "ServerAliveInterval", option("serveraliveinterval", "0")) or 15,
        family=families.get(option("addressfamily", "any").lower(), socket.AF_UNSPEC),
        jumps=tuple(part.strip() for part in jump.split(",")) if jump else (),
        proxy_command=command,
        config_file=config_file,
        hops=hops,
    )


def _proxy(given: Mapping[str, list[str]], config: Mapping[str, object]) -> tuple[str, str]:
    """(ProxyJump, ProxyCommand): whichever is said first, and "none" switches either off."""
    for source in (given, config):
        for name in ("proxyjump", "proxycommand"):
            if name in source:
                value = source[name]
                text = str(value[0] if isinstance(value, list) else value or "none")
                if text.lower() == "none":
                    return "", ""
                return (text, "") if name == "proxyjump" else ("", text)
    return "", ""


def _expand(who: str, text: str, tokens: Mapping[str, str]) -> str:
    """ProxyCommand and ProxyJump, tokens filled in. The first goes through a shell, so no odd names may go in."""

    def token(match: re.Match[str]) -> str:
        if match[1] == "%":
            return "%"
        if match[1] not in tokens:
            raise ConnectError(
                f"{who}: ProxyCommand or ProxyJump has the token %{match[1]}, which bringup does not know"
            )
        value = tokens[match[1]]
        if not _SAFE_NAME.fullmatch(value) or value.startswith("-"):
            raise ConnectError(
                f"{who}: {value!r} cannot go into ProxyCommand or ProxyJump: a shell could read it as a command"
            )
        return value

    return re.sub(r"%(.)", token, text)


def _split_destination(who: str, text: str) -> tuple[str, str, str]:
    match = re.fullmatch(r"(?:ssh://)?(?:(.+)@)?(?:\[([^\]]+)\]|([^:@\[\]]+))(?::(\d+))?/?", text)
    if match is None:
        raise ConnectError(f"{who}: {text!r} in ProxyJump is not [user@]host[:port]")
    return match[1] or "", match[2] or match[3], match[4] or ""


def _number(who: str, option: str, text: str) -> int:
    if not text.isdecimal():
        raise ConnectError(f"{who}: {option} {text!r} is not a number")
    return int(text)


def _texts(value: object) -> list[str]:
    return [str(one) for one in value] if isinstance(value, list) else []


def _path(text: str, hostname: str = "", user: str = "") -> Path:
    tokens = {"%d": str(Path.home()), "%h": hostname, "%r": user, "%u": getpass.getuser(), "%%": "%"}
    return Path(re.sub(r"%[dhru%]", lambda match: tokens[match[0]], text)).expanduser()


def _paths(text: str) -> tuple[Path, ...]:
    return tuple(_path(one) for one in shlex.split(text) if one.lower() != "none")
