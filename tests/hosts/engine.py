"""A Docker engine for the tests: the one that runs, or one of our own that leaves nothing behind."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.hosts.image import cache_directory

LABEL = "gpu-bringup-tests"
SESSION = f"{LABEL}-{os.getpid()}"
"""What this process's containers and networks are called: several runs may share one engine."""


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

    def remove_own(self) -> None:
        """Remove this process's containers and networks, and those of runs that were killed."""
        shown = '{{.ID}} {{.Label "' + LABEL + '"}}'
        for kind, end in ((("ps", "-a"), ("rm", "-f", "-v")), (("network", "ls"), ("network", "rm"))):
            lines = self(*kind, "--filter", f"label={LABEL}", "--format", shown).splitlines()
            if found := [line.split()[0] for line in lines if _is_over(line.partition(" ")[2])]:
                self(*end, *found)


def _is_over(pid: str) -> bool:
    return not pid.isdecimal() or int(pid) == os.getpid() or not Path(f"/proc/{pid}").exists()


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
    """The running engine, or a private one for the time of this context."""
    found = running_engine()
    if found is not None:
        found.remove_own()
        try:
            yield found
        finally:
            found.remove_own()
        return
    directory = cache_directory() / "engine"
    directory.mkdir(exist_ok=True)
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one run at a time: they share the images
        _stop(directory)
        process = _start(directory)
        try:
            yield Engine(str(directory / "docker.sock"))
        finally:
            with contextlib.suppress(subprocess.CalledProcessError):
                Engine(str(directory / "docker.sock")).remove_own()
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
            Engine(str(directory / "docker.sock")).remove_own()
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
