"""The catalogue of checks, asked of the bundle itself: `provision` may not import what runs on a host.

The bundle is run once (`python -I <bundle> describe`); the answer is kept under its SHA-256.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from provision.bundle import Bundle
from provision.errors import BringupError
from validators.schema import CheckInfo, SchemaError, decode_catalogue

TIMEOUT_S = 60.0
"""Seconds for the bundle to describe itself; it takes a fraction of one."""


def load_catalogue(bundle: Bundle, cache: Path | None = None) -> tuple[CheckInfo, ...]:
    """What this bundle can check. `cache`: a folder, by default the user's; one that cannot be written is done without.

    Raises BringupError where the bundle does not describe itself: a broken installation.
    """
    kept = (cache or _cache_folder()) / f"catalogue-{bundle.sha256}.json"
    with contextlib.suppress(OSError, UnicodeDecodeError, SchemaError):
        return decode_catalogue(kept.read_text(encoding="utf-8"))
    text = _describe(bundle)
    try:
        catalogue = decode_catalogue(text)
    except SchemaError as problem:
        raise _broken(str(problem)) from None
    with contextlib.suppress(OSError):
        kept.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        part = kept.with_suffix(f".{os.getpid()}.part")
        part.write_text(text, encoding="utf-8")
        part.replace(kept)
    return catalogue


def _describe(bundle: Bundle) -> str:
    with tempfile.TemporaryDirectory(prefix="bringup-") as folder:
        path = Path(folder) / f"{bundle.sha256}.pyz"
        path.write_bytes(bundle.data)
        try:
            done = subprocess.run(
                [sys.executable, "-I", str(path), "describe"],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise _broken(f"no answer within {TIMEOUT_S:g} s") from None
    if done.returncode != 0:
        last = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:] or ["no message"]
        raise _broken(f"exit status {done.returncode}: {last[0][:300]}")
    return done.stdout.decode("utf-8", "replace")


def _broken(why: str) -> BringupError:
    return BringupError(f"the checks' bundle does not describe itself: {why}", "reinstall gpu-bringup")


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "gpu-bringup"
