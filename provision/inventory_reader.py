"""Run as a program: reads an inventory through Ansible's own code and prints it as JSON. See hosts.py.

In a process of its own, because Ansible configures itself from the environment at import, warns where this
project wants errors, and decrypts vaults: neither its global state nor a secret enters the operator's process.
Argument: one JSON object {"sources": [...], "limit": "..."}. Answer on stdout: {"hosts": [...]} or {"error": {...}}.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
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
    error_type = _ansible("errors").AnsibleError
    manager = _ansible("inventory.manager").InventoryManager
    loader = _ansible("parsing.dataloader").DataLoader()
    failures: list[_Failure] = []
    warnings: list[str] = []
    _record_failures(manager, failures)
    _ansible("utils.display").Display.warning = lambda self, msg, *_, **__: warnings.append(str(msg))
    try:
        _unlock_vaults(loader)
        inventory = manager(loader=loader, sources=sources)
    except error_type as error:
        raise _worst(failures, error) from None
    misread = [one for one in failures if one.was_meant()]
    if misread:  # the right plugin refused it, and one for another format took it for its own
        raise _worst(misread)
    for warning in warnings:
        if _PARSE_WARNING.search(warning):
            raise _warned(warning, sources)
    hosts = _select(inventory, limit, error_type)
    if not hosts:
        raise _Problem("selects no host", ", ".join(sources), known=sorted(inventory.hosts)[:50], limit=limit)
    variables = _ansible("vars.manager").VariableManager(loader=loader, inventory=inventory)
    return [_host(host, variables, loader, error_type) for host in hosts]


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


def _worst(failures: list[_Failure], error: BaseException | None = None) -> _Problem:
    """The refusal that its author should read. Other plugins' refusals of the file may know the line better."""
    if not failures:
        return _Problem(_text(error) if error is not None else "no plugin could read it")
    of_source = [one for one in failures if one.source == failures[-1].source]
    chosen = next((one for one in of_source if one.was_meant()), of_source[-1])
    text = _text(chosen.error)
    if chosen.plugin == "script":  # what the script wrote to stderr says more than its exit status
        text += " " + " ".join(str(getattr(chosen.error, "_help_text", None) or "").split())[:400]
    line = chosen.line
    if chosen.plugin in ("yaml", "auto"):
        line = next((found for one in of_source if (found := _line_of(one.error))), 0)
    if not line and chosen.plugin != "script":
        line = _line_naming(text, chosen.source)
    return _Problem(text, chosen.source, line)


def _ansible(module: str) -> Any:
    """One of its modules: untyped, and imported only once the environment says what is wanted."""
    return importlib.import_module(f"ansible.{module}")


def _record_failures(manager: Any, failures: list[_Failure]) -> None:
    """Every plugin's refusal, with its exception and line: Ansible keeps text for people, for INI without a line."""
    fetch = manager._fetch_inventory_plugins

    def recording(plugin: Any) -> Callable[..., object]:
        parse: Callable[..., object] = plugin.parse
        name = str(getattr(plugin, "_load_name", "")).rpartition(".")[2]
        at = [0]
        if name == "ini":
            plugin._parse = _counting(plugin._parse, at)
            plugin._parse_host_definition = _not_empty(plugin._parse_host_definition)

        def parse_and_record(inventory: object, loader: object, path: object, cache: bool = True) -> object:
            try:
                return parse(inventory, loader, path, cache=cache)
            except BaseException as error:
                failures.append(_Failure(str(path), name, error, at[0]))
                raise

        return parse_and_record

    def fetch_and_wrap(self: object) -> Iterable[object]:
        for plugin in fetch(self):
            plugin.parse = recording(plugin)
            yield plugin

    manager._fetch_inventory_plugins = fetch_and_wrap


def _counting(parse: Callable[..., object], at: list[int]) -> Callable[..., object]:
    """The INI plugin's line loop, with the number of the line in hand kept in `at` (0 once all are read)."""

    def count(lines: Iterable[object]) -> Iterator[object]:
        for at[0], line in enumerate(lines, 1):
            yield line
        at[0] = 0

    return lambda *arguments: parse(*arguments[:-1], count(arguments[-1]))


def _unlock_vaults(loader: Any) -> None:
    constants = _ansible("constants")
    if constants.DEFAULT_VAULT_PASSWORD_FILE or constants.DEFAULT_VAULT_IDENTITY_LIST:
        cli = _ansible("cli").CLI  # 0.1 s, and seldom needed
        loader.set_vault_secrets(cli.setup_vault_secrets(loader, vault_ids=constants.DEFAULT_VAULT_IDENTITY_LIST))


def _meant(source: str) -> str:
    path = Path(source)
    if path.is_file() and os.access(path, os.X_OK) and path.read_bytes()[:2] in (b"#!", b"\x7fE"):
        return "script"  # a text file may be executable by accident, or by its file system
    if path.suffix == ".toml":
        return "toml"
    if path.suffix in _YAML or _lines(source)[:1] == ["---"]:
        return "auto" if any(line.startswith("plugin:") for line in _lines(source)) else "yaml"
    return "ini"


def _not_empty(parse: Callable[[str], tuple[Any, ...]]) -> Callable[[str], tuple[Any, ...]]:
    """The INI plugin's reading of a host line: a range that runs backwards names nobody, which Ansible lets pass."""

    def check(line: str) -> tuple[Any, ...]:
        found = parse(line)
        if not found[0]:
            raise ValueError(f"a range that names no host: {line.split(maxsplit=1)[0]}")
        return found

    return check


def _line_of(error: BaseException) -> int:
    """The line that an error of the YAML loader carries; 0 where it carries none."""
    for holder in (error, error.__cause__):
        origin = getattr(holder, "obj", None)
        number = getattr(origin, "line_num", None) or (getattr(origin, "ansible_pos", None) or (0, 0))[1]
        if isinstance(number, int) and number > 0:
            return number
        mark = getattr(holder, "problem_mark", None)
        if mark is not None:
            return int(mark.line) + 1
    return 0


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
    for word in re.findall(r"[('\"\[]([\w.:-]+)[)'\"\]]", text):
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
    raw: Mapping[str, Any] = variables.get_vars(host=host)
    templar = _ansible("template").Templar(loader=loader, variables=raw)
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
    withheld = sorted(name for name in wanted if name not in kept)
    return {"name": str(host.name), "groups": groups, "variables": kept, "withheld": withheld}


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
        return float(value) if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [_plain(one) for one in value]
    return str(value)


if __name__ == "__main__":
    sys.exit(main())
