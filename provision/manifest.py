"""The manifest of a run: everything that judging it again needs, and nothing secret."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from provision.criteria.model import CriteriaFile
from provision.hosts import Host
from provision.typed import Misfit, fitted
from validators.schema import CheckInfo, Plan, encode_catalogue

FORMAT = 1
"""Version of manifest.json. A reader refuses any other."""

_KEPT = re.compile(r"^(expect|bringup)_")
_SECRET = re.compile(r"pass(word|wd|phrase)?|secret|token|credential|api[-_]?key|private", re.IGNORECASE)
_SECRET_IN_TEXT = re.compile(rf"({_SECRET.pattern})\w*['\"]?\s*[:=]", re.IGNORECASE)
_URL_LOGIN = re.compile(r"(?<=://)[^/\s@]+@")

HIDDEN = "***"
_COMMAND_OPTIONS = ("--drain", "--undrain")
_COMMANDS = ("bringup_drain_command", "bringup_undrain_command", "bringup_container_args")
"""A site's own commands: nobody can tell what of them is secret."""


@dataclass(frozen=True)
class Manifest:
    """What a run asked of whom, with which criteria. `created`: ISO 8601, UTC. `command`: without secrets.

    `hosts` keep their `expect_*` and `bringup_*` variables alone. `selection`: inventories and the host pattern.
    """

    version: str
    created: str
    python: str
    command: str
    hosts: tuple[Host, ...]
    catalogue: tuple[CheckInfo, ...]
    plans: Mapping[str, Plan]
    criteria: tuple[CriteriaFile, ...]
    bundle: str = ""
    run_id: str = ""
    selection: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    """Settings of the run worth keeping: host key policy, executor, ..."""


def without_secrets(argv: Sequence[str]) -> str:
    """A command line that may be kept: what follows an option or a variable with a secret's name is hidden."""
    kept: list[str] = []
    hide = False
    for word in argv:
        name, equals, _ = word.partition("=")
        if hide:
            kept.append(HIDDEN)
        elif equals and (_SECRET.search(name) or name in _COMMAND_OPTIONS):
            kept.append(f"{name}={HIDDEN}")
        elif _SECRET_IN_TEXT.search(word):
            kept.append(HIDDEN)
        else:
            kept.append(_URL_LOGIN.sub(f"{HIDDEN}@", word))
        secret = word in _COMMAND_OPTIONS or (bool(_SECRET.search(word)) and "ask" not in word)
        hide = not hide and not equals and word.startswith("-") and secret
    return " ".join(
        word if re.fullmatch(r"[\w@%+=:,./*-]+", word) else "'" + word.replace("'", "'\\''") + "'" for word in kept
    )


def public_host(host: Host) -> Host:
    """The host as a manifest may keep it."""
    variables = {
        name: value
        for name, value in host.variables.items()
        if _KEPT.match(name) and name not in _COMMANDS and not _SECRET.search(name) and _is_plain(value)
    }
    return Host(
        name=host.name,
        address=host.address,
        port=host.port,
        user=host.user,
        connection=host.connection,
        python=host.python,
        become=host.become,
        groups=tuple(host.groups),
        variables=variables,
        image=host.image,
    )


def encode_manifest(manifest: Manifest) -> str:
    """The manifest as JSON. Secrets are left out here, whoever made the manifest."""
    body: dict[str, Any] = {
        "format": FORMAT,
        "version": manifest.version,
        "created": manifest.created,
        "python": manifest.python,
        "command": manifest.command,
        "run_id": manifest.run_id,
        "bundle": manifest.bundle,
        "selection": list(manifest.selection),
        "notes": list(manifest.notes),
        "settings": dict(manifest.settings),
        "hosts": [_shown(public_host(host)) for host in manifest.hosts],
        "catalogue": json.loads(encode_catalogue(manifest.catalogue)),
        "plans": {name: asdict(plan) for name, plan in manifest.plans.items()},
        "criteria": [asdict(file) for file in manifest.criteria],
    }
    return json.dumps(body, indent=1, ensure_ascii=True) + "\n"


def decode_manifest(text: str) -> Manifest:
    """The manifest of such a JSON text. Raises ValueError, which says what is wrong with it."""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("not JSON; was it cut short?") from None
    if not isinstance(body, dict) or body.pop("format", None) != FORMAT:
        raise ValueError(f"not a manifest of format {FORMAT}; was it made by another version?")
    try:
        return fitted(Manifest, body, "manifest")
    except Misfit as problem:
        raise ValueError(f"not a manifest: {problem}") from None


def _shown(host: Host) -> dict[str, Any]:
    return {**asdict(host), "variables": dict(host.variables)}


def _is_plain(value: object) -> bool:
    if isinstance(value, (list, tuple)):
        return all(isinstance(one, (str, int, float, bool)) for one in value)
    return isinstance(value, (str, int, float, bool))
