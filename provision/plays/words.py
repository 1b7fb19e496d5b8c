"""What a person says of a play on the command line: tags and variables, checked before anything starts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from provision.criteria.suggest import did_you_mean
from provision.errors import UsageError
from provision.plays import playbook_path


def check_tags(tags: Sequence[str]) -> None:
    """Refuse a tag that no role has: Ansible would run preflight alone and call it a success. Raises UsageError."""
    known = _tags() if tags else set()
    for tag in (one for text in tags for one in text.split(",")):
        if tag not in known:
            raise UsageError(
                f'no role has the tag "{tag:.80}"{did_you_mean(tag, known)}', f"tags: {', '.join(sorted(known))}"
            )


def _tags() -> set[str]:
    """The tags that site.yml has, of roles and tasks."""
    import yaml  # noqa: PLC0415 - comes with ansible-core; only some options need it

    found = {"all"}
    for play in yaml.safe_load(playbook_path("site.yml").read_text(encoding="utf-8")):
        for entry in (*play.get("roles", ()), *play.get("tasks", ())):
            tags = entry.get("tags", ())
            found |= {tags} if isinstance(tags, str) else set(tags)
    return found - {"always", "never"}


def parse_extra_vars(texts: Sequence[str]) -> dict[str, object]:
    """KEY=VALUE (the value as YAML reads it), or @file.yml. Raises UsageError."""
    import yaml  # noqa: PLC0415 - comes with ansible-core; only some options need it

    found: dict[str, object] = {}
    for text in texts:
        try:
            if text.startswith("@"):
                body = yaml.safe_load(Path(text[1:]).read_text(encoding="utf-8")) or {}
                if not isinstance(body, dict):
                    raise UsageError(f"{text[1:]} does not hold variables", "a YAML mapping: name: value")
                found.update({str(name): value for name, value in body.items()})
                continue
            name, equals, value = text.partition("=")
            if not equals or not name.isidentifier():
                raise UsageError(f'"{text}" is not KEY=VALUE', "-e docker_source=distro, or -e @vars.yml")
            found[name] = yaml.safe_load(value)
        except (OSError, UnicodeDecodeError) as problem:
            raise UsageError(f"{text[1:]} cannot be read: {problem}", "name a YAML file: -e @vars.yml") from None
        except yaml.YAMLError as problem:
            raise UsageError(f"{text[:60]} is not YAML: {str(problem)[:300]}") from None
    return found
