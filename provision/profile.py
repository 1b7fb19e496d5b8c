"""A profile: the software of a GPU host as a file, `profiles/*.toml`; read strictly."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast, get_args

from provision.compat.model import Module, Scope, Source, Wish
from provision.criteria.suggest import did_you_mean
from provision.errors import ProfileError

PROFILES = Path(__file__).resolve().parent.parent / "profiles"
"""Beside this package in a checkout and in site-packages alike."""

MAX_FILE_BYTES = 1 << 18
"""A profile is read whole; a larger file is something else."""

Docker = Literal["vendor", "distro", "none"]
Nvtop = Literal["auto", "package", "source", "none"]
FRAMEWORKS = ("torch", "tensorflow", "jax")
"""The frameworks that the resolver knows wheels of."""


@dataclass(frozen=True)
class Profile:
    """What a host should have. `wish` goes to the resolver; the rest goes to the roles as it is.

    `gpu_required`: false lets a host without an NVIDIA GPU go on without the GPU's parts (it says so). Where a driver
    branch is named, it is installed without a card too: images are built on machines without one.
    `docker`: vendor (Docker's own packages), distro, or none. `extras`: framework -> further pinned packages in its
    environment (keras, opencv). `nvtop`: auto, package, source or none. `images`: container images by digest.
    """

    name: str
    description: str = ""
    wish: Wish = field(default_factory=Wish)
    gpu_required: bool = True
    docker: Docker = "vendor"
    nvtop: Nvtop = "auto"
    extras: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    images: tuple[str, ...] = ()


def known_profiles() -> tuple[str, ...]:
    """The names of the profiles that come along, in the alphabet's order."""
    return tuple(sorted(path.stem for path in PROFILES.glob("*.toml")))


def load_profile(name_or_path: str | Path) -> Profile:
    """A profile that comes along, by name, or the user's own, by path (with a slash or .toml in it).

    Raises ProfileError, one sentence that names the file, the key and what is allowed there.
    """
    text = str(name_or_path)
    if isinstance(name_or_path, Path) or "/" in text or text.endswith(".toml"):
        return _parsed(Path(name_or_path))
    if text in known_profiles():
        return _parsed(PROFILES / f"{text}.toml")
    raise ProfileError(
        f'no profile is called "{text:.80}"{_guess(text, known_profiles())}',
        f"there are: {', '.join(known_profiles())}; your own is named by its path: --profile ./mine.toml",
    )


Reader = Callable[[object], object]
"""Takes a value of the file and returns the field's, or raises _Unfit with what is allowed."""


class _Unfit(ValueError):
    """The text says what is allowed."""


def _parsed(path: Path) -> Profile:
    body = _Section(_toml(path), str(path))
    body.only("name", "description", "gpu_required", "images", *_SECTIONS)
    driver, cuda, containers, fabric, nvtop, frameworks = (body.section(name) for name in _SECTIONS)
    driver.only("source", "branch", "module", "scope")
    cuda.only("toolkits")
    containers.only("docker", "toolkit")
    fabric.only("wanted")
    nvtop.only("from")
    frameworks.only(*FRAMEWORKS)
    wanted = {name: frameworks.section(name) for name in frameworks.body}
    for one in wanted.values():
        one.only("version", "extras")
    wish = Wish(
        source=cast(Source, driver.get("source", _one_of(get_args(Source)), "nvidia")),
        branch=cast(str, driver.get("branch", _BRANCH, "auto")),
        module=cast(Module, driver.get("module", _one_of(get_args(Module)), "auto")),
        scope=cast(Scope, driver.get("scope", _one_of(get_args(Scope)), "compute")),
        cuda=cast("tuple[str, ...]", cuda.get("toolkits", _list_of(_TOOLKIT), ())),
        fabric_manager=cast(bool, fabric.get("wanted", _truth, True)),
        container_toolkit=cast(bool, containers.get("toolkit", _truth, True)),
        frameworks={name: cast(str, one.get("version", _VERSION, "auto")) for name, one in wanted.items()},
    )
    extras = {name: cast("tuple[str, ...]", one.get("extras", _list_of(_PINNED), ())) for name, one in wanted.items()}
    return Profile(
        name=cast(str, body.get("name", _NAME, path.stem)),
        description=cast(str, body.get("description", _line, "")),
        wish=wish,
        gpu_required=cast(bool, body.get("gpu_required", _truth, True)),
        docker=cast(Docker, containers.get("docker", _one_of(get_args(Docker)), "vendor")),
        nvtop=cast(Nvtop, nvtop.get("from", _one_of(get_args(Nvtop)), "auto")),
        extras={name: found for name, found in extras.items() if found},
        images=cast("tuple[str, ...]", body.get("images", _list_of(_DIGEST), ())),
    )


def _toml(path: Path) -> Mapping[str, object]:
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise ProfileError(f"{path} is longer than {MAX_FILE_BYTES} bytes", "a profile is a small TOML file")
        return tomllib.loads(data.decode("utf-8"))
    except OSError as problem:
        raise ProfileError(
            f"the profile {path} cannot be read: {problem.strerror}",
            f"name a file, or one of those that come along: {', '.join(known_profiles())}",
        ) from None
    except UnicodeDecodeError as problem:
        raise ProfileError(f"{path} is not UTF-8 (byte {problem.start})", "TOML files are UTF-8") from None
    except tomllib.TOMLDecodeError as problem:
        raise ProfileError(f"{path} is not TOML: {str(problem)[:200]}", "mend that line") from None
    except RecursionError:
        raise ProfileError(f"{path} is not TOML: nested too deep") from None


@dataclass(frozen=True)
class _Section:
    """A table of the file. `where`: the file, and the table's name in brackets."""

    body: Mapping[str, object]
    where: str
    name: str = ""

    def only(self, *known: str) -> None:
        """Raise ProfileError for a key that is none of these."""
        for key in self.body:
            if key not in known:
                raise ProfileError(
                    f'{self.where}: unknown key "{key:.80}"{_guess(key, known)}',
                    f"keys here: {', '.join(known)}",
                )

    def section(self, name: str) -> _Section:
        """The table of this name, empty where it is missing."""
        full = f"{self.name}.{name}" if self.name else name
        body = self.body.get(name, {})
        if not isinstance(body, dict):
            raise ProfileError(f"{self.where}: {name} = {_shown(body)} is not a section; write [{full}] above its keys")
        return _Section(body, f"{self.where.partition(' [')[0]} [{full}]", full)

    def get(self, key: str, reader: Reader, default: object) -> object:
        """The value of a key, checked, or the default."""
        if key not in self.body:
            return default
        value = self.body[key]
        try:
            return reader(value)
        except _Unfit as problem:
            raise ProfileError(f"{self.where}: {key} = {_shown(value)} will not do: it has to be {problem}") from None


def _shown(value: object) -> str:
    text = f'"{value}"' if isinstance(value, str) else str(value)
    return {"True": "true", "False": "false"}.get(text, text)[:80]


def _truth(value: object) -> bool:
    if not isinstance(value, bool):
        raise _Unfit("true or false, without quotes")
    return value


def _line(value: object) -> str:
    if not isinstance(value, str) or not value.isprintable() or len(value) > 300:
        raise _Unfit("one line of text in quotes, of at most 300 characters")
    return value


def _one_of(choices: Sequence[str]) -> Reader:
    def read(value: object) -> str:
        if not isinstance(value, str) or value not in choices:
            raise _Unfit(f"one of {', '.join(choices)}, in quotes{_guess(value, choices)}")
        return value

    return read


def _guess(value: object, choices: Sequence[str]) -> str:
    """The nearest choice, if any is near; all of them are named elsewhere in the message."""
    guess = did_you_mean(value, choices) if isinstance(value, str) else ""
    return guess if guess.startswith("; did") else ""


def _text(pattern: str, allowed: str) -> Reader:
    def read(value: object) -> str:
        if not isinstance(value, str) or len(value) > 300 or not re.fullmatch(pattern, value, re.ASCII):
            raise _Unfit(allowed)
        return value

    return read


def _list_of(reader: Reader) -> Reader:
    def read(value: object) -> tuple[object, ...]:
        if not isinstance(value, list):
            raise _Unfit('a list in brackets, as ["..."]')
        found = []
        for item in value:
            try:
                found.append(reader(item))
            except _Unfit as problem:
                raise _Unfit(f"a list, and each entry is {problem} (not {_shown(item)})") from None
        if len(set(found)) < len(found):
            raise _Unfit("a list that names each entry once")
        return tuple(found)

    return read


_SECTIONS = ("driver", "cuda", "containers", "fabric_manager", "nvtop", "frameworks")
_NAME = _text(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", "letters, digits, dots and dashes, in quotes")
_BRANCH = _text(
    r"auto|\d{3}|\d{3}\.\d{1,3}(\.\d{1,3})?",
    'a branch as "580", a whole version as "580.159.04", or "auto"; in quotes',
)
_TOOLKIT = _text(r"auto|\d{1,2}\.\d{1,2}", 'a toolkit as "13.0", or "auto"; in quotes, else 12.10 would be 12.1')
_VERSION = _text(r"auto|\d+\.\d+(\.\d+)*", 'a version as "2.13.0", or "auto"; in quotes')
_PINNED = _text(
    r"[A-Za-z0-9][A-Za-z0-9._-]*(\[[A-Za-z0-9._,-]+\])?==[A-Za-z0-9][A-Za-z0-9.!+_-]*|/\S+\.whl|https?://[^\s@]+\.whl",
    'a package pinned as "keras==3.12.4", or the path or address of a wheel',
)
_DIGEST = _text(
    r"[a-z0-9][a-z0-9._:/-]*@sha256:[0-9a-f]{64}",
    'an image by digest, "registry/name@sha256:<64 hexadecimal digits>": a tag may point elsewhere tomorrow',
)
