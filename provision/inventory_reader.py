"""Run as a program: reads an inventory through Ansible's own code and prints it as JSON. See hosts.py.

In a process of its own, because Ansible configures itself from the environment at import, warns where this
project wants errors, and decrypts vaults: neither its global state nor a secret enters the operator's process.
Argument: one JSON object {"sources": [...], "limit": "..."}. Answer on stdout: {"hosts": [...]} or {"error": {...}}.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_CONNECTION = (
    "ansible_host", "ansible_ssh_host", "ansible_port", "ansible_ssh_port", "ansible_user", "ansible_ssh_user",
    "ansible_private_key_file", "ansible_ssh_private_key_file", "ansible_ssh_common_args", "ansible_ssh_extra_args",
    "ansible_become", "ansible_connection", "ansible_python_interpreter",
)  # fmt: skip
_KEPT = re.compile(r"(expect|bringup)_\w+")
_SECRET = re.compile(r"pass(word|wd|phrase)?(_|$)|secret|token|credential|private_key(?!_file)|api_?key", re.IGNORECASE)
_PARSE_WARNING = re.compile(r"skipping|unable to parse|failed to parse|expected a", re.IGNORECASE)
_YAML = (".yml", ".yaml", ".json")


class _Problem(Exception):
    """What is wrong with the inventory, as data for the answer."""

    def __init__(self, text: str, source: str = "", line: int = 0, **more: object) -> None:
        super().__init__(text)
        self.data = {"text": text, "source": source, "line": line, **more}


def main() -> int:
    """Answer the one request."""
    answer_fd = os.dup(1)
    os.dup2(2, 1)  # what Ansible or a plugin prints is no part of the answer
    os.environ["ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED"] = "True"
    os.environ["ANSIBLE_HOST_PATTERN_MISMATCH"] = "error"
    os.environ["ANSIBLE_DEPRECATION_WARNINGS"] = "False"
    request = json.loads(sys.argv[1])
    try:
        answer: dict[str, object] = {"hosts": _read(request["sources"], request["limit"])}
    except _Problem as problem:
        answer = {"error": problem.data}
    with os.fdopen(answer_fd, "w", encoding="utf-8") as out:
        json.dump(answer, out)
    return 0


def _read(sources: list[str], limit: str) -> list[dict[str, object]]:
    from ansible.errors import AnsibleError  # noqa: PLC0415  (after the environment is set)
    from ansible.inventory.manager import InventoryManager  # noqa: PLC0415
    from ansible.parsing.dataloader import DataLoader  # noqa: PLC0415
    from ansible.utils.display import Display  # noqa: PLC0415
    from ansible.vars.manager import VariableManager  # noqa: PLC0415

    loader = DataLoader()
    failures: list[_Failure] = []
    warnings: list[str] = []
    _record_failures(InventoryManager, failures)
    Display.warning = lambda self, msg, *_, **__: warnings.append(str(msg))
    try:
        _unlock_vaults(loader)
        inventory = InventoryManager(loader=loader, sources=sources)
    except AnsibleError as error:
        raise _worst(failures, error) from None
    misread = [one for one in failures if one.was_meant()]
    if misread:  # the right plugin refused it, and one for another format took it for its own
        raise misread[0].problem()
    for warning in warnings:
        if _PARSE_WARNING.search(warning):
            raise _warned(warning, sources)
    hosts = _select(inventory, limit, AnsibleError)
    if not hosts:
        raise _Problem("selects no host", ", ".join(sources), known=sorted(inventory.hosts)[:50], limit=limit)
    variables = VariableManager(loader=loader, inventory=inventory)
    return [_host(host, variables, loader, AnsibleError) for host in hosts]


@dataclass(frozen=True)
class _Failure:
    """One plugin's refusal of one source; `line` is where it stood, or 0."""

    source: str
    plugin: str
    error: BaseException
    line: int

    def was_meant(self) -> bool:
        """Whether this plugin is for the format that the file's author meant."""
        return self.plugin == _meant(self.source)

    def problem(self) -> _Problem:
        """It as an answer, with the line where it can be found."""
        text = _text(self.error)
        line = self.line if self.plugin == "ini" else _line_number(self.error, text)
        return _Problem(text, self.source, line or _line_naming(text, self.source))


def _worst(failures: list[_Failure], error: BaseException) -> _Problem:
    if not failures:
        return _Problem(_text(error))
    of_source = [one for one in failures if one.source == failures[-1].source]
    return next((one for one in of_source if one.was_meant()), of_source[-1]).problem()


def _record_failures(manager: Any, failures: list[_Failure]) -> None:
    """Every plugin's refusal, with its exception: Ansible keeps only text for people."""
    fetch = manager._fetch_inventory_plugins

    def recording(plugin: Any) -> Callable[..., object]:
        parse: Callable[..., object] = plugin.parse
        name = str(getattr(plugin, "_load_name", ""))

        def parse_and_record(inventory: object, loader: object, path: object, cache: bool = True) -> object:
            try:
                return parse(inventory, loader, path, cache=cache)
            except BaseException as error:
                failures.append(_Failure(str(path), name.rpartition(".")[2], error, _line_of(plugin)))
                raise

        return parse_and_record

    def fetch_and_wrap(self: object) -> Iterable[object]:
        for plugin in fetch(self):
            plugin.parse = recording(plugin)
            yield plugin

    manager._fetch_inventory_plugins = fetch_and_wrap


def _line_of(plugin: object) -> int:
    """Where the INI plugin stands: Ansible does not say it in the message."""
    number = getattr(getattr(plugin, "_origin", None), "line_num", 0) or getattr(plugin, "lineno", 0)
    return number if isinstance(number, int) else 0


def _unlock_vaults(loader: Any) -> None:
    from ansible import constants  # noqa: PLC0415

    if constants.DEFAULT_VAULT_PASSWORD_FILE or constants.DEFAULT_VAULT_IDENTITY_LIST:
        from ansible.cli import CLI  # noqa: PLC0415  (0.1 s, and seldom needed)

        loader.set_vault_secrets(CLI.setup_vault_secrets(loader, vault_ids=constants.DEFAULT_VAULT_IDENTITY_LIST))


def _meant(source: str) -> str:
    path = Path(source)
    if path.is_file() and os.access(path, os.X_OK):
        return "script"
    if path.suffix == ".toml":
        return "toml"
    if path.suffix in _YAML or _lines(source)[:1] == ["---"]:
        return "auto" if any(line.startswith("plugin:") for line in _lines(source)) else "yaml"
    return "ini"


def _line_number(error: BaseException, text: str) -> int:
    for holder in (error, error.__cause__):
        origin = getattr(holder, "obj", None)
        number = getattr(origin, "line_num", None) or (getattr(origin, "ansible_pos", None) or (0, 0))[1]
        if isinstance(number, int) and number > 0:
            return number
    found = re.search(r"(?:line |:)(\d+)\b", text)
    return int(found[1]) if found else 0


def _text(error: BaseException) -> str:
    """The message with its causes, without the excerpt of the file that newer Ansibles append."""
    parts: list[str] = []
    at: BaseException | None = error
    while at is not None and len(parts) < 4:
        part = str(getattr(at, "_original_message", "") or getattr(at, "message", "") or at).strip()
        if part and not any(part in other for other in parts):
            parts.append(part)
        at = at.__cause__
    return " ".join(": ".join(part.rstrip(".:") for part in parts).split())[:600]


def _warned(warning: str, sources: list[str]) -> _Problem:
    """A thing that Ansible would skip with a warning."""
    for source in sources:
        line = _line_naming(warning, source)
        if line:
            return _Problem(warning, source, line)
    return _Problem(warning, ", ".join(sources))


def _line_naming(text: str, source: str) -> int:
    """The first line that has a word which the message has in parentheses or quotes; 0 where none does."""
    for word in re.findall(r"[('\"]([\w.-]+)[)'\"]", text):
        for number, line in enumerate(_lines(source), 1):
            if re.search(rf"(?<![\w.-]){re.escape(word)}(?![\w.-])", line):
                return number
    return 0


def _lines(source: str) -> list[str]:
    try:
        return Path(source).read_text(errors="replace").splitlines()
    except OSError:
        return []


def _select(inventory: Any, limit: str, error_type: type[Exception]) -> list[Any]:
    try:
        if limit:
            inventory.subset(limit)
        return list(inventory.get_hosts())
    except error_type as error:
        text = _text(error)
        pattern = text.rpartition("ignoring: ")[2] if "ignoring: " in text else ""
        names = sorted({*inventory.hosts, *inventory.groups} - {"ungrouped"})
        raise _Problem(
            f"--limit {limit}: " + (f"no host or group matches {pattern!r}" if pattern else text),
            pattern=pattern,
            known=names,
        ) from None


def _host(host: Any, variables: Any, loader: Any, error_type: type[Exception]) -> dict[str, object]:
    from ansible.template import Templar  # noqa: PLC0415

    raw: Mapping[str, Any] = variables.get_vars(host=host)
    templar = Templar(loader=loader, variables=raw)
    wanted = {name: value for name, value in raw.items() if name in _CONNECTION or _KEPT.fullmatch(name)}
    found: dict[str, object] = {}
    for name, value in wanted.items():
        if _is_secret(name, value):
            continue
        try:
            found[name] = _plain(templar.template(value))
        except error_type as error:
            raise _Problem(f"host {host.name}: the variable {name} cannot be worked out: {_text(error)}") from None
    hidden = _secrets(raw, templar, error_type) if any(isinstance(value, str) for value in found.values()) else []
    kept = {
        name: value
        for name, value in found.items()
        if name in _CONNECTION or not any(secret in json.dumps(value) for secret in hidden)
    }
    groups = [group.name for group in host.get_groups() if group.name not in ("all", "ungrouped")]
    return {"name": str(host.name), "groups": groups, "variables": kept}


def _is_secret(name: str, value: object) -> bool:
    return bool(_SECRET.search(name)) or type(value).__name__ in ("EncryptedString", "AnsibleVaultEncryptedUnicode")


def _secrets(raw: Mapping[str, Any], templar: Any, error_type: type[Exception]) -> list[str]:
    """The values of secret variables as they would stand in JSON: nothing that contains one is handed on."""
    values: list[str] = []
    for name, value in raw.items():
        if isinstance(value, (str, bytes)) or type(value).__name__ == "EncryptedString":
            if not _is_secret(name, value):
                continue
            try:
                text = str(templar.template(value))
            except error_type:
                continue  # a vault without its password: nothing could have used it either
            if len(text) >= 4:
                values.append(json.dumps(text)[1:-1])
    return values


def _plain(value: object) -> object:
    """JSON's own types, without Ansible's tagged subclasses. Floats that JSON has no word for become text."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if value == value and abs(value) != float("inf") else str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [_plain(one) for one in value]
    return str(value)


if __name__ == "__main__":
    sys.exit(main())
