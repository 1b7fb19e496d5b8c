"""A Docker engine for the tests: the one that runs, or one of our own that leaves nothing behind.

`python -m tests.hosts.engine COMMAND...` runs a command with one, which all its processes then share.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.hosts.image import cache_directory

LABEL = "gpu-bringup-tests"
_own: list[Engine] = []
"""The private engine of this process, while there is one."""


@dataclass(frozen=True)
class Engine:
    """An engine at `socket`, or the one that the environment names where that is empty."""

    socket: str = ""

    def __call__(self, *args: str, stdin: bytes | None = None, timeout_s: float = 600) -> str:
        """Run `docker ARGS` and return what it prints. Raises CalledProcessError with its error text shown."""
        at = ["-H", f"unix://{self.socket}"] if self.socket else []
        # The classic builder: BuildKit's needs a plugin that Debian's package does not have.
        env = {**os.environ, "DOCKER_BUILDKIT": "0"}
        done = subprocess.run(
            ["docker", *at, *args], capture_output=True, input=stdin, timeout=timeout_s, env=env, check=False
        )
        if done.returncode:
            raise subprocess.CalledProcessError(done.returncode, ["docker", *args], done.stdout, done.stderr)
        return done.stdout.decode(errors="replace")

    def remove(self, label: str) -> None:
        """Remove the containers and networks with this label (`name` or `name=value`)."""
        for kind, end in ((("ps", "-aq"), ("rm", "-f", "-v")), (("network", "ls", "-q"), ("network", "rm"))):
            if found := self(*kind, "--filter", f"label={label}").split():
                self(*end, *found)

    def remove_leftovers(self) -> None:
        """Remove what runs that were killed left in this engine: the label's value is their process."""
        shown = '{{.Label "' + LABEL + '"}}'
        for kind in (("ps", "-a"), ("network", "ls")):
            for value in set(self(*kind, "--filter", f"label={LABEL}", "--format", shown).split()):
                if not Path(f"/proc/{value}").exists():
                    with contextlib.suppress(subprocess.CalledProcessError):  # another run may be at the same
                        self.remove(f"{LABEL}={value}")


def running_engine() -> Engine | None:
    """The user's own engine, if it answers."""
    if shutil.which("docker") is None:
        return None
    engine = Engine()
    try:
        engine("info", timeout_s=20)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        return None
    return engine


def can_start_engine() -> bool:
    """Whether one of our own could be started."""
    return os.geteuid() == 0 and all(map(_find, ("dockerd", "docker", "debootstrap", "iptables")))


def _find(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


@contextlib.contextmanager
def engine() -> Iterator[Engine]:
    """The running engine, or a private one for the time of this context (of the outermost, where they are nested)."""
    found = _own[0] if _own else running_engine()
    if found is not None:
        found.remove_leftovers()
        yield found
        return
    directory = cache_directory() / "engine"
    directory.mkdir(exist_ok=True)
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one run at a time: they share the images
        _stop(directory)
        process = _start(directory)
        _own.append(Engine(str(directory / "docker.sock")))
        try:
            yield _own[0]
        finally:
            with contextlib.suppress(subprocess.CalledProcessError):
                _own.pop().remove(LABEL)
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
            _stop(directory)


def _start(directory: Path) -> subprocess.Popen[bytes]:
    tools = directory / "bin"
    tools.mkdir(exist_ok=True)
    for name in ("iptables", "ip6tables"):
        legacy = _find(f"{name}-legacy") or _find(name)
        link = tools / name
        link.unlink(missing_ok=True)
        if legacy:
            link.symlink_to(legacy)
    # Files and not arguments of a shell: the engine's own words are what a failure is explained with.
    options = {
        "--data-root": directory / "data",
        "--exec-root": directory / "exec",
        "-p": directory / "dockerd.pid",
        "-H": f"unix://{directory / 'docker.sock'}",
        "--bridge": "none",
        "--config-file": directory / "none.json",
    }
    (directory / "none.json").write_text("{}")
    words = [str(word) for pair in options.items() for word in pair]
    env = {**os.environ, "PATH": f"{tools}:{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}
    with (directory / "dockerd.log").open("wb") as log:
        process = subprocess.Popen([_find("dockerd") or "dockerd", *words], stdout=log, stderr=log, env=env)
    for _ in range(120):
        if process.poll() is not None:
            break
        try:
            Engine(str(directory / "docker.sock"))("info", timeout_s=10)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
            time.sleep(0.5)
        else:
            Engine(str(directory / "docker.sock")).remove(LABEL)
            return process
    process.kill()
    raise RuntimeError(f"dockerd does not answer: {(directory / 'dockerd.log').read_text(errors='replace')[-2000:]}")


def _stop(directory: Path) -> None:
    """End an engine of an earlier run, and the containerd and shims that it started."""
    for path in (directory / "dockerd.pid", directory / "exec" / "containerd" / "containerd.pid"):
        with contextlib.suppress(OSError, ValueError):
            pid = int(path.read_text())
            if str(directory) in Path(f"/proc/{pid}/cmdline").read_text():
                os.kill(pid, signal.SIGTERM)
                for _ in range(100):
                    os.kill(pid, 0)
                    time.sleep(0.1)
                os.kill(pid, signal.SIGKILL)
        path.unlink(missing_ok=True)
    for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
        # A shim outlives its engine when that was killed; its address names our directory.
        with contextlib.suppress(OSError):
            words = cmdline.read_text()
            if "containerd-shim" in words and str(directory) in words:
                os.kill(int(cmdline.parent.name), signal.SIGKILL)


def main() -> int:
    """Run the command given with an engine in its environment; without one where none can be had."""
    if running_engine() is None and can_start_engine():
        with engine() as started:
            env = {**os.environ, "DOCKER_HOST": f"unix://{started.socket}"}
            return subprocess.run(sys.argv[1:], env=env, check=False).returncode
    return subprocess.run(sys.argv[1:], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
