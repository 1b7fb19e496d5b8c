"""Faults planted as checks of the tests' own, in an overlay of the bundle; and the wire run without a transport."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from provision.bundle import Bundle, build_bundle
from validators.schema import CheckRequest, Outcome, Plan, Record, decode, encode_plan

GOOD = "ctx.measure('n', 1)"
HANG = "ctx.measure('n', 1)\nimport time\ntime.sleep(600)"
SEGV = "ctx.measure('n', 1)\nimport ctypes\nctypes.string_at(0)"


def planted(bodies: dict[str, str], level: int = 1) -> dict[str, bytes]:
    """Overlay with one check for each name, whose function has this body."""
    return {
        f"validators/checks/{name}.py": (
            "from validators.check import Metric, Skip, check\n"
            f"@check(catches='planted', level={level}, timeout_s=20,\n"
            "       metrics=(Metric('n', 'count', 'n'), Metric('speed', 'GB/s', 's')))\n"
            f"def {name}(ctx):\n    '''Planted by a test.'''\n{textwrap.indent(body, '    ')}\n"
        ).encode()
        for name, body in bodies.items()
    }


def bundle_of(bodies: dict[str, str]) -> Bundle:
    return build_bundle(planted(bodies))


def plan_of(names: Sequence[str], timeout_s: float = 20.0, deadline_s: float = 60.0) -> Plan:
    return Plan(tuple(CheckRequest(name, timeout_s) for name in names), deadline_s)


def write_bundle(folder: Path, bundle: Bundle) -> Path:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / f"{bundle.sha256}.pyz"
    path.write_bytes(bundle.data)
    return path


@contextlib.contextmanager
def wire(
    folder: Path, bundle: Bundle, plan: Plan, *, python: str = sys.executable, words: Sequence[str] = ()
) -> Iterator[subprocess.Popen[bytes]]:
    """The wire, started with its plan on an open stdin; ended at the end of the `with`."""
    path = write_bundle(folder, bundle)
    process = subprocess.Popen(
        [python, "-I", "-S", str(path), "wire", bundle.sha256, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert process.stdin
        process.stdin.write(encode_plan(plan))
        process.stdin.flush()
        yield process
    finally:
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream:
                stream.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        if process.poll() is None:
            process.kill()
            process.wait()


def records_of(process: subprocess.Popen[bytes]) -> list[Record]:
    assert process.stdout
    return [decode(line) for line in process.stdout]


def run(folder: Path, bodies: dict[str, str], **kinds: float) -> list[Record]:
    """All records of a run of these planted checks."""
    with wire(folder, bundle_of(bodies), plan_of(list(bodies), **kinds)) as process:
        return records_of(process)


def outcomes(records: Sequence[Record]) -> dict[str, Outcome]:
    """Check -> its outcome for the host."""
    return {one.check: one for one in records if isinstance(one, Outcome) and one.subject == "host"}


def alive(pid: int) -> bool:
    """Whether the process lives; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def command_line(pid: str) -> bytes:
    """A process's command line, empty once it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def wait_until(condition: Callable[[], object], seconds: float = 20.0) -> bool:
    """Whether the condition came to hold in time; a generous bound, not a measurement."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return bool(condition())


def spawn_and_note(folder: Path) -> str:
    """Body of a check that starts a tree of processes, one of them in a session of its own, and notes their ids."""
    return textwrap.dedent(
        f"""
        import os, subprocess, sys, time
        def note(pid):
            with open({str(folder / "pids")!r}, "a") as file:
                file.write(f"{{pid}}\\n")
        note(os.getpid())
        note(subprocess.Popen(["sleep", "600"]).pid)
        note(subprocess.Popen(["sleep", "600"], start_new_session=True).pid)
        orphan = "import subprocess; print(subprocess.Popen(['sleep', '600'], start_new_session=True, stdout=2).pid)"
        note(int(subprocess.run([sys.executable, "-c", orphan], stdout=subprocess.PIPE).stdout))
        note("done")
        time.sleep(600)
        """
    )


def noted(folder: Path) -> list[int]:
    """The ids that the tree noted, once all are there."""
    path = folder / "pids"
    assert wait_until(lambda: path.exists() and "done" in path.read_text()), "the planted tree did not come up"
    return [int(line) for line in path.read_text().split() if line.isdigit()]


def own_python(version: str) -> str | None:
    """An interpreter of this version ("3.9"), from pyenv or the PATH; None where there is none that runs."""
    roots = [os.environ.get("PYENV_ROOT", ""), str(Path.home() / ".pyenv")]
    with contextlib.suppress(OSError):
        roots.append(subprocess.run(["pyenv", "root"], capture_output=True, text=True, check=False).stdout.strip())
    found = [str(path) for root in roots if root for path in Path(root).glob(f"versions/{version}.*/bin/python")]
    for candidate in [*sorted(found), f"python{version}"]:
        try:
            said = subprocess.run([candidate, "--version"], capture_output=True, text=True, timeout=20, check=False)
        except OSError:
            continue
        if f"Python {version}." in said.stdout + said.stderr:
            return candidate
    return None
