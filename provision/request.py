"""What is asked of a host: the user's choice and the host's variables, as the plan that goes over the wire."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

from provision.criteria.suggest import did_you_mean
from provision.errors import UsageError
from provision.hosts import Host
from validators.schema import CheckInfo, CheckRequest, Plan, Scalar

IDENTITY = "compute_capability"
"""Always planned: it names the GPUs that every other check is judged for."""

DEFAULT_LEVEL = 2
"""Checks up to this level run where neither the command line nor the host's variables say otherwise."""

FRAMEWORKS = ("torch", "tensorflow", "jax", "mxnet", "horovod")
"""Frameworks whose interpreter a host's variable may name: `bringup_torch_python` and so on."""

SPARE_S = 30.0
"""Seconds that a host's deadline leaves beyond those of its checks, for starting and ending them."""

MAX_TIMEOUT_S = 7 * 86400.0
"""A week: longer is a slip of the pen."""

SOAK = "soak"
"""The check whose duration the user chooses; the timeout that it declares is added to that duration."""

MAX_DURATION_S = 6 * 86400.0
"""So that with its timeout it stays within MAX_TIMEOUT_S."""

_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)d)?(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?")


@dataclass(frozen=True)
class Choice:
    """What the user asked for. `only`: these checks; else every check up to `level`.

    `level` None: the host's `bringup_level`, else DEFAULT_LEVEL. `device` "": its `bringup_device`, else "gpu".
    `timeout_s` 0: from the checks. `timeouts`: check -> seconds. `params`: check -> its settings. `share`: load GPUs
    that somebody uses, too. `duration_s`: of the soak, 0: the soak's own.
    """

    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    level: int | None = None
    device: str = ""
    timeout_s: float = 0.0
    timeouts: Mapping[str, float] = field(default_factory=dict)
    params: Mapping[str, Mapping[str, Scalar]] = field(default_factory=dict)
    share: bool = False
    duration_s: float = 0.0


def make_plan(host: Host, catalogue: Sequence[CheckInfo], choice: Choice) -> Plan:
    """The plan for one host. Its variables may say `bringup_only`, `bringup_skip`, `bringup_level`, `bringup_device`,
    `bringup_timeout_<check>`, `bringup_<framework>_python`, `bringup_data_<dataset>` and `bringup_data_url_<dataset>`;
    the command line goes before them.

    Raises UsageError for a check that does not exist, a value that cannot be meant, and an empty choice.
    """
    known = {info.name: info for info in catalogue}
    only = choice.only or _names(host, "bringup_only")
    skip = (*choice.skip, *_names(host, "bringup_skip"))
    for name in (*only, *skip, *choice.timeouts, *choice.params):
        if name not in known:
            raise UsageError(f'no check is named "{name}"{did_you_mean(name, known)}', "`bringup checks` lists them")
    for name, settings in choice.params.items():
        for key in settings:
            if key not in known[name].params:
                guess = did_you_mean(key, known[name].params)
                takes = ", ".join(known[name].params) or "none"
                raise UsageError(f'{name} has no setting "{key:.80}"{guess}', f"its settings: {takes}")
    if IDENTITY in skip:
        raise UsageError(f"{IDENTITY} names the GPUs that everything else is judged for; it cannot be left out")
    if contradiction := sorted(set(only) & set(skip)):
        raise UsageError(f'"{contradiction[0]}" is both asked for and left out')
    level = 0 if only else choice.level or _level(host)
    chosen = [
        info
        for info in sorted(catalogue, key=lambda one: (one.level, one.name != IDENTITY))
        if info.name not in skip and (info.name == IDENTITY or info.name in only or (not only and info.level <= level))
    ]
    if not chosen:
        raise UsageError(f"host {host.name}: no check is left to run")
    _see_to_the_soak(host, choice, known, [info.name for info in chosen])
    requests = tuple(CheckRequest(info.name, _timeout(host, info, choice), _settings(info, choice)) for info in chosen)
    device = choice.device or str(host.variables.get("bringup_device", "gpu"))
    if device not in ("gpu", "cpu"):
        raise UsageError(f'host {host.name}: device "{device:.40}" is neither gpu nor cpu')
    if not 0 <= choice.timeout_s <= MAX_TIMEOUT_S:
        raise UsageError(f"a timeout of {choice.timeout_s:g} s cannot be meant", "--timeout 600, or leave it out")
    deadline = choice.timeout_s or sum(request.timeout_s for request in requests) + SPARE_S
    return Plan(
        checks=requests,
        deadline_s=deadline,
        pythons=_pythons(host),
        device=device,
        share=choice.share,
        data=_data(host, chosen),
    )


def in_container(plan: Plan, catalogue: Sequence[CheckInfo]) -> Plan:
    """What of a plan is measured inside an image: the load checks. The host's own state is not a container's."""
    inside = {info.name for info in catalogue if info.level > 1 or info.name == IDENTITY}
    checks = tuple(request for request in plan.checks if request.name in inside)
    return replace(plan, checks=checks)


def left_out(
    hosts: Sequence[Host], plans: Mapping[str, Plan], catalogue: Sequence[CheckInfo], choice: Choice
) -> Iterator[str]:
    """What a report must not be silent about: checks that the level, --only, --skip or the inventory left out."""
    sentences: dict[str, list[str]] = {}
    for host in hosts:
        planned = {request.name for request in plans[host.name].checks}
        level = 0 if choice.only or _names(host, "bringup_only") else choice.level or _level(host)
        missing = [info for info in catalogue if info.name not in planned and not (host.image and info.level == 1)]
        above = [info.name for info in missing if level and info.level > level]
        asked = [info.name for info in missing if info.name not in above]
        if above:
            sentences.setdefault(f"Not run at level {level}{{where}}: {', '.join(above)}.", []).append(host.name)
        if asked:
            sentences.setdefault(f"Left out on request{{where}}: {', '.join(asked)}.", []).append(host.name)
    for sentence, names in sentences.items():
        yield sentence.format(where="" if len(names) == len(hosts) else f" on {', '.join(names)[:200]}")


def narrowed(host: Host, choice: Choice) -> Iterator[str]:
    """What the host's own variables leave out, in a sentence each: a report says what was not looked at."""
    for variable, words in (("bringup_only", "asks only for"), ("bringup_skip", "leaves out")):
        names = _names(host, variable)
        if names and not (variable == "bringup_only" and choice.only):
            yield f"{host.name}: its {variable} {words} {', '.join(names)}."


def parse_params(texts: Iterable[str]) -> dict[str, dict[str, Scalar]]:
    """Settings given as CHECK.KEY=VALUE. A value that reads as a boolean or a number is one. Raises UsageError."""
    found: dict[str, dict[str, Scalar]] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        check, dot, key = name.strip().partition(".")
        if not (equals and dot and check and key):
            raise UsageError(f'"{text[:80]}" is not CHECK.KEY=VALUE', "for example: --param matmul.seconds=5")
        found.setdefault(check, {})[key] = _scalar(value.strip())
    return found


def parse_duration(text: str) -> float:
    """Seconds of "24h", "90m", "1h30m", "2d" or "3600". Raises UsageError."""
    match = _DURATION.fullmatch(text.strip().lower())
    seconds = 0.0
    if match:
        days, hours, minutes, rest = (float(part or 0) for part in match.groups())
        seconds = days * 86400 + hours * 3600 + minutes * 60 + rest
    if not 0 < seconds <= MAX_DURATION_S:
        raise UsageError(f'"{text[:40]}" is not a duration of at most 6 days', "24h, 90m, 1h30m, or 3600 for seconds")
    return seconds


def _scalar(text: str) -> Scalar:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            number = kind(text)
        except ValueError:
            continue
        if abs(number) < 2**53:  # no NaN, no infinity: they cannot go over the wire
            return number
    return text


def _see_to_the_soak(host: Host, choice: Choice, known: Mapping[str, CheckInfo], chosen: Sequence[str]) -> None:
    """Raises UsageError for a duration that nothing would last."""
    if not choice.duration_s:
        return
    if SOAK not in known:
        raise UsageError("--duration is for the soak, and there is no check of that name in this version")
    by_its_own_wish = SOAK in _names(host, "bringup_skip") or (_names(host, "bringup_only") and not choice.only)
    if SOAK not in chosen and not by_its_own_wish:
        raise UsageError("--duration is for the soak, which is not asked for", "add --level 4, or --only soak")
    if "duration_s" in choice.params.get(SOAK, {}):
        raise UsageError("the soak's duration is given twice", "--duration, or --param soak.duration_s=SECONDS")


def _settings(info: CheckInfo, choice: Choice) -> dict[str, Scalar]:
    settings = dict(choice.params.get(info.name, {}))
    if info.name == SOAK and choice.duration_s:
        settings["duration_s"] = choice.duration_s
    return settings


def _timeout(host: Host, info: CheckInfo, choice: Choice) -> float:
    lasts = _settings(info, choice).get("duration_s", 0) if info.name == SOAK else 0
    if isinstance(lasts, bool) or not isinstance(lasts, (int, float)) or not 0 <= lasts <= MAX_DURATION_S:
        raise UsageError(f"soak.duration_s = {lasts!r:.40} is not a number of seconds up to 6 days")
    if info.name in choice.timeouts:
        seconds = choice.timeouts[info.name]
    else:
        seconds = _number(host, f"bringup_timeout_{info.name}", info.timeout_s + lasts)
    if not 0 < seconds <= MAX_TIMEOUT_S:
        raise UsageError(f"host {host.name}: a timeout of {seconds:g} s for {info.name} cannot be meant")
    seconds = min(seconds, choice.timeout_s) if choice.timeout_s else seconds
    if lasts and seconds < lasts:
        raise UsageError(f"host {host.name}: a timeout of {seconds:g} s ends the soak before its {lasts:g} s are over")
    return seconds


def _number(host: Host, variable: str, default: float) -> float:
    value = host.variables.get(variable, default)
    try:
        return float(cast("str | float", value))
    except (TypeError, ValueError):
        raise UsageError(f"host {host.name}: {variable} = {value!r:.80} is not a number") from None


def _level(host: Host) -> int:
    level = _number(host, "bringup_level", DEFAULT_LEVEL)
    if level not in (1, 2, 3, 4):
        raise UsageError(f"host {host.name}: bringup_level = {level:g} is none of 1 to 4")
    return int(level)


def _names(host: Host, variable: str) -> tuple[str, ...]:
    """A list of checks, as a YAML list or as "a, b" from an INI file."""
    value = host.variables.get(variable, ())
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    if not isinstance(value, (list, tuple)) or not all(isinstance(one, str) for one in value):
        raise UsageError(f"host {host.name}: {variable} = {value!r:.80} is not a list of checks")
    return tuple(value)


def _pythons(host: Host) -> dict[str, str]:
    found = {}
    for framework in FRAMEWORKS:
        value = host.variables.get(f"bringup_{framework}_python")
        if value is None or value == "":
            continue
        if not isinstance(value, str) or not value.startswith("/") or "\0" in value:
            raise UsageError(
                f"host {host.name}: bringup_{framework}_python = {value!r:.80} is not an absolute path",
                "name the interpreter that has the framework, for example /opt/torch/bin/python3",
            )
        found[framework] = value
    return found


def _data(host: Host, chosen: Sequence[CheckInfo]) -> dict[str, str]:
    """What the host's variables say of the datasets that these checks train on: see Plan.data."""
    found = {}
    for name in sorted({name for info in chosen for name in info.data}):
        folder = host.variables.get(f"bringup_data_{name}")
        if folder is not None and folder != "":
            if not isinstance(folder, str) or not folder.startswith("/") or "\0" in folder:
                raise UsageError(
                    f"host {host.name}: bringup_data_{name} = {folder!r:.80} is not an absolute path",
                    "name a folder on the host that holds the dataset's files, for example /srv/data",
                )
            found[name] = folder
        address = host.variables.get(f"bringup_data_url_{name}")
        if address is not None and address != "":
            if not isinstance(address, str) or not re.fullmatch(r"https?://[^\s/@]+(/[^\s@]*)?", address):
                raise UsageError(
                    f"host {host.name}: bringup_data_url_{name} is not an address that a host can download from",
                    "https://mirror.example/data, the folder of the archives; a login in it is not taken",
                )
            found[f"{name}_url"] = address
    return found
