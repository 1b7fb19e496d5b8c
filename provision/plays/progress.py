"""What a play says while it runs and at its end, as plain data. ansible-runner's dictionaries stop here."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

EventKind = Literal[
    "play",
    "task",
    "start",
    "ok",
    "note",
    "changed",
    "failed",
    "ignored",
    "unreachable",
    "skipped",
    "retry",
    "warning",
    "stats",
]
Status = Literal["successful", "failed", "cancelled", "timeout"]

MESSAGE_LIMIT = 2000
"""Characters kept of a message. A host decides how much it sends."""

_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-_])")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_KINDS: Mapping[str, EventKind] = {
    "playbook_on_play_start": "play",
    "playbook_on_task_start": "task",
    "playbook_on_handler_task_start": "task",
    "runner_on_start": "start",
    "runner_on_ok": "ok",
    "runner_on_failed": "failed",
    "runner_on_unreachable": "unreachable",
    "runner_on_skipped": "skipped",
    "runner_retry": "retry",
    "warning": "warning",
    "playbook_on_stats": "stats",
}
_SECRET_NAME = re.compile(
    r"pass(word|wd|phrase)?$|secret|token|api_?key|private_?key(?!_file)|credential", re.IGNORECASE
)
SUDO_HINT = (
    "run again with --ask-become-pass, or set BRINGUP_BECOME_PASSWORD, "
    "or let that user run sudo without a password (NOPASSWD in /etc/sudoers.d)"
)
_HINTS = (
    (
        re.compile(r"missing sudo password|password is required|terminal is required to read the password", re.I),
        SUDO_HINT,
    ),
    (re.compile(r"incorrect sudo password|sorry, try again", re.I), "the password given for sudo is not that user's"),
    (re.compile(r"not in the sudoers file|may not run sudo", re.I), "add the user to the group sudo on that host"),
    (
        re.compile(r"host key verification failed|remote host identification has changed", re.I),
        "look at the host's key: ssh-keygen -F ADDRESS; a new host is taken with --host-keys accept-new",
    ),
    (re.compile(r"permission denied \(", re.I), "the host took none of the keys: check ansible_user and the key file"),
    (re.compile(r"could not resolve|name or service not known", re.I), "check ansible_host in the inventory"),
    (re.compile(r"timed out|no route to host|connection refused", re.I), "is it on, and is its SSH port open to you?"),
    (
        re.compile(r"(/bin/sh|bash).*python3?: (not found|no such file)", re.I),
        "run the whole of site.yml: it brings python3",
    ),
)


@dataclass(frozen=True)
class PlayEvent:
    """One step of a play, for a progress view. `host` is empty for what concerns them all."""

    kind: EventKind
    host: str = ""
    task: str = ""
    role: str = ""
    module: str = ""
    message: str = ""
    play: str = ""
    diff: str = ""
    time: str = ""
    """UTC, ISO 8601, by ansible-runner."""
    path: str = ""
    """`file:line` of the task, the file below `roles` or the playbook's own name."""

    @property
    def changed(self) -> bool:
        """Whether the task changed something there (or would, under --check)."""
        return self.kind == "changed"


@dataclass(frozen=True)
class TaskFailure:
    """The task that ended a host's play. `hint` is the next step, where one is known."""

    host: str
    task: str
    role: str
    module: str
    message: str
    hint: str = ""
    path: str = ""
    unreachable: bool = False

    def sentence(self) -> str:
        """Return it in words for a person."""
        if self.unreachable:
            return f"{self.host}: not reached over SSH: {self.message}"
        where = f"{self.role}: {self.task}" if self.role else self.task
        return f"{self.host}: {where} ({self.module}): {self.message}"


@dataclass(frozen=True)
class HostResult:
    """How many tasks ended how on one host, and the failure that ended it."""

    host: str
    ok: int = 0
    changed: int = 0
    failed: int = 0
    unreachable: int = 0
    skipped: int = 0
    rescued: int = 0
    ignored: int = 0
    failure: TaskFailure | None = None

    @property
    def good(self) -> bool:
        """Whether the play went through there."""
        return not self.failed and not self.unreachable and self.ok > 0


def clean(text: object) -> str:
    """Return text without ANSI and control characters, cut to MESSAGE_LIMIT in its middle."""
    plain = _CONTROL.sub("", _ANSI.sub("", str(text)).replace("\r\n", "\n").replace("\r", "\n")).strip()
    if len(plain) <= MESSAGE_LIMIT:
        return plain
    half = MESSAGE_LIMIT // 2
    return f"{plain[:half]}\n[... {len(plain) - 2 * half} characters ...]\n{plain[-half:]}"


def secrets_in(value: object, name: str = "") -> set[str]:
    """Return the texts below `value` whose variable's name says that they are secret."""
    if isinstance(value, Mapping):
        return {found for key, below in value.items() for found in secrets_in(below, str(key))}
    if isinstance(value, (list, tuple)):
        return {found for below in value for found in secrets_in(below, name)}
    text = "" if value is None or isinstance(value, bool) else str(value)
    return {text} if _SECRET_NAME.search(name) and len(text) > 3 else set()


def hint_for(message: str) -> str:
    """Return the next step for a failure's text, or nothing."""
    return next((hint for pattern, hint in _HINTS if pattern.search(message)), "")


def _message(res: Mapping[str, object]) -> str:
    """Return what a task's result says, in the order of use to a reader: its words, then the tool's own."""
    if "censored" in res:
        return "the task's output is hidden (no_log)"
    items = res.get("results")
    if isinstance(items, Sequence) and not isinstance(items, str):
        failed = [
            item for item in items if isinstance(item, Mapping) and (item.get("failed") or item.get("unreachable"))
        ]
        if failed:
            return clean("\n".join(f"{_label(item)}{_message(item)}" for item in failed))
    said = [str(res[key]) for key in ("msg", "reason") if res.get(key)]
    for key in ("stderr", "module_stderr", "stdout", "module_stdout"):
        text = str(res.get(key) or "").strip()
        if text and not any(text in known for known in said):
            said.append("\n".join(text.splitlines()[-8:]))
            break
    return clean("\n".join(said))


def _label(item: Mapping[str, object]) -> str:
    label = item.get("_ansible_item_label", item.get("item"))
    return f"{label}: " if isinstance(label, (str, int)) else ""


def _diff(res: Mapping[str, object]) -> str:
    raw = res.get("diff")
    pieces = raw if isinstance(raw, list) else [raw]
    texts: list[str] = []
    for piece in pieces:
        if not isinstance(piece, Mapping):
            continue
        if piece.get("prepared"):
            texts.append(str(piece["prepared"]))
        elif "before" in piece or "after" in piece:
            before, after = (str(piece.get(key) or "").splitlines() for key in ("before", "after"))
            names = (str(piece.get("before_header", "before")), str(piece.get("after_header", "after")))
            texts.append("\n".join(difflib.unified_diff(before, after, *names, lineterm="")))
    return clean("\n".join(text for text in texts if text.strip()))


def _short_path(path: str) -> str:
    _, found, tail = path.rpartition("/roles/")
    return f"roles/{tail}" if found else path.rpartition("/")[2]


def parse_event(raw: Mapping[str, object]) -> PlayEvent | None:
    """Turn an event of ansible-runner into ours, or None where nobody wants to know."""
    kind = _KINDS.get(str(raw.get("event")))
    data = raw.get("event_data")
    data = data if isinstance(data, Mapping) else {}
    if kind is None:
        return None
    if kind == "warning":
        return PlayEvent("warning", message=clean(raw.get("stdout", "")), time=str(raw.get("created", "")))
    res = data.get("res")
    res = res if isinstance(res, Mapping) else {}
    if kind == "ok" and res.get("changed"):
        kind = "changed"
    if kind == "failed" and data.get("ignore_errors"):
        kind = "ignored"
    module = clean(data.get("resolved_action") or data.get("task_action") or "")
    if kind == "ok" and module.rpartition(".")[2] == "debug" and res.get("msg"):
        kind = "note"  # what a role has to say to a person
    speaks = kind in {"failed", "ignored", "unreachable", "retry", "note"}
    reason = str(res.get("skip_reason", "")) if kind == "skipped" else ""
    return PlayEvent(
        kind,
        host=clean(data.get("host") or ""),
        task=clean(data.get("task") or ""),
        role=clean(data.get("role") or ""),
        module=module,
        message=_message(res) if speaks else clean(reason),
        play=clean(data.get("play") or ""),
        diff=_diff(res) if kind in {"ok", "changed"} else "",
        time=str(raw.get("created", "")),
        path=_short_path(str(data.get("task_path") or "")),
    )


@dataclass
class Tally:
    """Counts per host while the events come in; `stats` replaces the counts when Ansible gives its own."""

    hosts: dict[str, HostResult] = field(default_factory=dict)
    stats_seen: bool = False

    def add(self, event: PlayEvent) -> None:
        """Count one event."""
        names: Mapping[EventKind, tuple[str, ...]] = {
            "ok": ("ok",),
            "note": ("ok",),
            "changed": ("ok", "changed"),
            "failed": ("failed",),
            "ignored": ("ok", "ignored"),
            "unreachable": ("unreachable",),
            "skipped": ("skipped",),
        }
        if not event.host or event.kind not in names:
            return
        before = self.hosts.get(event.host, HostResult(event.host))
        after = replace(before, **{name: getattr(before, name) + 1 for name in names[event.kind]})
        if event.kind in {"failed", "unreachable"}:
            failure = TaskFailure(
                event.host,
                event.task,
                event.role,
                event.module,
                event.message or "it gave no reason",
                hint_for(event.message),
                event.path,
                unreachable=event.kind == "unreachable",
            )
            after = replace(after, failure=failure)
        self.hosts[event.host] = after

    def take_stats(self, data: Mapping[str, object]) -> None:
        """Take Ansible's own counts, which know of rescued failures."""
        self.stats_seen = True
        columns = {
            "ok": "ok",
            "changed": "changed",
            "failures": "failed",
            "dark": "unreachable",
            "skipped": "skipped",
            "rescued": "rescued",
            "ignored": "ignored",
        }
        tables: dict[str, Mapping[str, int]] = {}
        for theirs, ours in columns.items():
            table = data.get(theirs)
            tables[ours] = table if isinstance(table, Mapping) else {}
        processed = data.get("processed")
        for host in {str(name) for name in processed} if isinstance(processed, Mapping) else set():
            before = self.hosts.get(host, HostResult(host))
            counts = {ours: int(tables[ours].get(host, 0)) for ours in columns.values()}
            ended = counts["failed"] or counts["unreachable"]
            self.hosts[host] = HostResult(host=host, **counts, failure=before.failure if ended else None)
