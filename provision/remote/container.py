"""The same bundle inside an image: the command that starts it there, the image's pull, and what may go wrong.

The container gets the GPUs, the memory settings that NVIDIA's images ask for, and nothing of the host but its data
sets (read-only). It lives as long as its stdin: with the lease it ends, and nothing of it stays (`--rm`).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from provision.errors import ConnectionLost, HostError, RemoteCommandError, UsageError
from provision.hosts import Host
from provision.remote.sudo import as_asked
from provision.transport.base import Transport

PULL_S = 3600.0
"""Seconds that pulling an image may take: NVIDIA's have 10 GB and more."""
SHM_SIZE = "8g"
"""Shared memory for a loader's processes; Docker's default of 64 MB ends them with a bus error."""
LIMITS = ("memlock=-1", "stack=67108864")
"""As NVIDIA's images ask for: locked memory for GPU transfers, and a stack that deep recursion needs."""

_FOLDER = re.compile(r'/[^,"\x00-\x1f\x7f]*')
"""What --mount can name: its fields are comma-separated."""
_IMAGE = re.compile(r"[A-Za-z0-9][\w.:/@-]{0,254}", re.ASCII)
_SIZE = re.compile(r"\d{1,6}[kmgKMG]?")
_ENGINES = ("auto", "docker", "podman")
_GPUS = ("auto", "gpus", "cdi", "none")

_FIND = """engine=$1
if [ "$engine" = auto ]; then
  for one in docker podman; do command -v "$one" >/dev/null 2>&1 && engine=$one && break; done
fi
command -v "$engine" >/dev/null 2>&1 || { echo 'bringup: no container engine' >&2; exit 127; }
"""
_RUN = (
    _FIND
    + """gpus=$2; folders=$3; shift 3
left=$#
while [ "$left" -gt 0 ]; do
  one=$1; shift; left=$((left - 1))
  if [ "$folders" -gt 0 ]; then
    folders=$((folders - 1))
    [ -d "$one" ] || continue
    one="--mount=type=bind,src=$one,dst=$one,readonly"
  fi
  set -- "$@" "$one"
done
cdi=no; for one in /etc/cdi/*nvidia* /var/run/cdi/*nvidia*; do [ -e "$one" ] && cdi=yes; done
if [ "$gpus" = auto ]; then
  gpus=gpus
  [ "$engine" = podman ] && gpus=cdi
  command -v nvidia-container-runtime-hook >/dev/null 2>&1 || { [ $cdi = yes ] && gpus=cdi; }
fi
case $gpus in gpus) set -- --gpus=all "$@";; cdi) set -- --device=nvidia.com/gpu=all "$@";; esac
exec "$engine" run --rm -i "$@"
"""
)
"""The folders come first among the arguments. One that the host lacks is left out, as on the host itself: `docker run
-v` would make it there, as root's."""
_PULL = (
    _FIND
    + """"$engine" image inspect "$2" >/dev/null 2>&1 && exit 0
echo missing
"$engine" pull -q "$2" >/dev/null & pull=$!
trap 'kill "$pull" 2>/dev/null; exit 1' HUP INT PIPE TERM
while kill -0 "$pull" 2>/dev/null; do
  sleep 2
  echo 2>/dev/null || { kill "$pull" 2>/dev/null; exit 1; }
done
wait "$pull"
"""
)
"""Nobody reads the echo once the connection is gone; the pull ends then, too."""


def in_image(host: Host, image: str) -> Host:
    """The host's container as a host of its own: its report stands beside the host's. Raises UsageError.

    What the inventory expects of the host (`expect_*`) is asked of the host alone, and its interpreters are not the
    image's; `bringup_container_<framework>_python` names those of the image.
    """
    if not _IMAGE.fullmatch(image):
        raise UsageError(f'"{image[:80]}" is not an image', "for example nvcr.io/nvidia/pytorch:25.10-py3")
    kept = {
        name: value
        for name, value in host.variables.items()
        if not name.startswith("expect_") and not re.fullmatch(r"bringup_(?!container_)\w+_python", name)
    }
    for name in list(kept):
        if match := re.fullmatch(r"bringup_container_(\w+_python)", name):
            kept[f"bringup_{match[1]}"] = kept.pop(name)
    made = replace(host, name=f"{host.name} in {image}", image=image, variables=kept)
    start(made, (), {})  # what its variables ask for is seen to be wrong before any host is touched
    return made


def host_of(made: Host) -> str:
    """The name of the host whose container `in_image` made."""
    return made.name.removesuffix(f" in {made.image}")


def start(host: Host, program: Sequence[str], data: Mapping[str, str], *, gpu: bool = True) -> list[str]:
    """The command, for the host's shell, that runs `program` in the host's image. `data`: folders to show it.

    Raises UsageError for a variable that cannot be meant.
    """
    gpus = _one_of(host, "bringup_container_gpus", _GPUS) if gpu else "none"
    size = str(host.variables.get("bringup_container_shm_size", SHM_SIZE))
    if not _SIZE.fullmatch(size):
        raise UsageError(
            f'host {host.name}: bringup_container_shm_size = "{size:.40}" is not a size', "8g, for example"
        )
    folders = list(dict.fromkeys(data.values()))
    for folder in folders:
        if not _FOLDER.fullmatch(folder):
            raise UsageError(
                f"host {host.name}: the folder {folder!r:.80} cannot be shown to a container",
                "an absolute path without a comma, a quotation mark or a line's end in it",
            )
    limits = [word for limit in _words(host, "bringup_container_ulimits", LIMITS) for word in ("--ulimit", limit)]
    options = [f"--shm-size={size}", *limits, *_words(host, "bringup_container_args", ())]
    return ["sh", "-c", _RUN, "sh", _engine(host), gpus, str(len(folders)), *folders, *options, host.image, *program]


def pull(host: Host, transport: Transport, tell: Callable[[str], None], stopped: Callable[[], bool]) -> None:
    """Pull the image where the host hasn't it. `tell` is called once where it takes its time, `stopped` is asked every
    two seconds: the user's Ctrl-C. Raises HostError, ConnectionLost.
    """
    argv = ["sh", "-c", _PULL, "sh", _engine(host), host.image]
    process = transport.start(as_asked(host, argv))
    words = b""
    try:
        for stream, data in process.chunks(deadline_s=PULL_S, idle_s=60.0):
            if stopped():
                raise ConnectionLost(f"{host.name}: interrupted")
            if stream == "stdout" and b"missing" in data:
                tell(f"pulling {host.image}")
            elif stream == "stderr":
                words = (words + data)[-8192:]
        if process.returncode:
            raise explain(host, words) or RemoteCommandError(
                f"{host.name}: the image was not pulled: {_last(words)}", f"try on the host: docker pull {host.image}"
            )
    finally:
        process.close()


def explain(host: Host, words: bytes) -> HostError | None:
    """The error in a container engine's words, where it is one that we know."""
    text = words.decode("utf-8", "replace")
    for known, said, hint in _KNOWN:
        if known in text:
            return RemoteCommandError(f"{host.name}: {said.format(image=host.image)}", hint)
    return None


_TOOLKIT = "`bringup provision --tags container_toolkit`"
_LOGIN = "the role ngc logs in: bringup provision --tags ngc"
_KNOWN = (
    (
        "bringup: no container engine",
        "there is no docker and no podman on this host",
        "`bringup provision` installs it",
    ),
    ("permission denied while trying to connect", "this user may not use Docker", "add it to the group docker"),
    ("Cannot connect to the Docker daemon", "the Docker daemon does not run", "journalctl -u docker says why"),
    ("failed to connect to the docker API", "the Docker daemon does not run", "journalctl -u docker says why"),
    ("could not select device driver", "Docker gives containers no GPUs: the container toolkit is missing", _TOOLKIT),
    ("no known GPU vendor found", "Docker gives containers no GPUs: the container toolkit is missing", _TOOLKIT),
    ("unresolvable CDI devices", "the engine finds no CDI description of the GPUs", _TOOLKIT),
    ("nvidia-container-cli", "the container toolkit could not give the GPUs to a container", "see `bringup doctor`"),
    ("not found in $PATH", "the image {image} has no python3", "name an image with Python 3.9 or newer"),
    ("exec: python3: not found", "the image {image} has no python3", "name an image with Python 3.9 or newer"),
    ("exec format error", "the image {image} is for another kind of processor", "name one for this host's"),
    ("no matching manifest", "the image {image} is not there for this host's processor", "name one that is"),
    ("pull access denied", "the image {image} does not exist, or needs a login", f"check its name; {_LOGIN}"),
    ("manifest unknown", "there is no image {image}: no such tag", "check its tag"),
    ("unauthorized", "the registry of {image} wants a login", _LOGIN),
    ("no such host", "the registry of {image} is not known to this host", "check the image's name, and the host's DNS"),
    ("error setting rlimit", "the engine may not raise this container's limits", "set bringup_container_ulimits=''"),
    ("no space left on device", "no space is left for the image {image}", "docker system df shows what uses it"),
)
"""Words of docker, podman or the container toolkit; what they mean; what to do."""


def _engine(host: Host) -> str:
    return _one_of(host, "bringup_container_engine", _ENGINES)


def _one_of(host: Host, variable: str, choices: Sequence[str]) -> str:
    value = str(host.variables.get(variable, choices[0]))
    if value not in choices:
        raise UsageError(f'host {host.name}: {variable} = "{value:.40}" is none of {", ".join(choices)}')
    return value


def _words(host: Host, variable: str, default: Sequence[str]) -> list[str]:
    """Words for `run`. In the inventory a list, or one string as a shell would take it apart."""
    value = host.variables.get(variable, default)
    try:
        words = shlex.split(value) if isinstance(value, str) else value
    except ValueError as problem:
        raise UsageError(f"host {host.name}: {variable} cannot be taken apart: {problem}") from None
    if not isinstance(words, (list, tuple)) or not all(isinstance(one, str) and "\0" not in one for one in words):
        raise UsageError(f"host {host.name}: {variable} is not a list of words", 'as in "-v /data:/data:ro"')
    return list(words)


def _last(words: bytes) -> str:
    lines = words.decode("utf-8", "replace").strip().splitlines()
    return lines[-1][:500] if lines else "it said nothing"
