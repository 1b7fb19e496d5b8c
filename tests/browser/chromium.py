"""Headless Chromium as a tool: open a page, and say what it printed, asked the network for, and looks like."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.need import need

DEADLINE_S = 120
LIGHT, DARK = 1, 0
"""Blink's own numbers for preferredColorScheme."""


@dataclass(frozen=True)
class Opened:
    """What came of opening a page."""

    dom: str
    console: tuple[str, ...]
    requests: tuple[str, ...]
    """Each address that the page asked for, itself left out."""


def chromium() -> str:
    """The browser's path; skips (in CI: fails) where there is none."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    need(found is not None, "chromium (apt-get install chromium)")
    return str(found)


def _run(folder: Path, *flags: str, page: Path) -> subprocess.CompletedProcess[str]:
    profile = folder / "profile"
    command = [
        chromium(),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--disable-dev-shm-usage",
        "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",  # the browser's own errands end here too
        "--hide-scrollbars",
        f"--user-data-dir={profile}",
        *flags,
        page.as_uri(),
    ]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=True)
    finally:
        shutil.rmtree(profile, ignore_errors=True)


def open_page(page: Path, folder: Path, scheme: int = LIGHT) -> Opened:
    """Load the page, with its console and the browser's own log of network requests."""
    log = folder / "net.json"
    done = _run(
        folder,
        "--enable-logging=stderr",
        "--v=0",
        f"--log-net-log={log}",
        f"--blink-settings=preferredColorScheme={scheme}",
        "--virtual-time-budget=3000",
        "--dump-dom",
        page=page,
    )
    console = tuple(line for line in done.stderr.splitlines() if "CONSOLE" in line)
    return Opened(done.stdout, console, _requests(json.loads(log.read_text(encoding="utf-8"))))


def _requests(log: Mapping[str, object]) -> tuple[str, ...]:
    """Requests that a page initiated; the browser's own errands (its clock, its updates) have no origin."""
    found = []
    events = log["events"]
    assert isinstance(events, list)
    for event in events:
        params = event.get("params", {})
        if "url" in params and params.get("initiator", "not an origin") != "not an origin":
            found.append(str(params["url"]))
    return tuple(dict.fromkeys(found))


def screenshot(page: Path, folder: Path, scheme: int, width: int = 1280, height: int = 1600) -> bytes:
    """The page as a PNG."""
    picture = folder / f"{scheme}-{width}.png"
    _run(
        folder,
        f"--blink-settings=preferredColorScheme={scheme}",
        f"--window-size={width},{height}",
        f"--screenshot={picture}",
        page=page,
    )
    return picture.read_bytes()


def pdf_text(page: Path, folder: Path) -> str:
    """The page printed to PDF, as text."""
    need(shutil.which("pdftotext") is not None, "pdftotext (apt-get install poppler-utils)")
    paper = folder / "paper.pdf"
    _run(folder, "--no-pdf-header-footer", f"--print-to-pdf={paper}", page=page)
    done = subprocess.run(
        ["pdftotext", "-layout", str(paper), "-"], capture_output=True, text=True, timeout=DEADLINE_S, check=True
    )
    return done.stdout
