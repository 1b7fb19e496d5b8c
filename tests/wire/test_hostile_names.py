"""Names that attack whoever reads them, through the whole command: a real run, then every rendering of it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pytest

from provision.console import say, show_error
from provision.errors import BringupError
from tests.wire.test_cli import environment

HOST = "<img/src=x/onerror=alert(1)>[bold]x[/bold]"
GPU = "<script>alert(1)</script>[red]H200[/red]\x1b]0;owned\x07\x1b[31m|`x`|"

PROGRAM = f"""
from provision import commands
from provision.bundle import build_bundle
from tests.doubles import overlay, result
bundle = build_bundle(overlay(1, {{"nvmlDeviceGetName(gpu0)": result({GPU!r})}}))
commands.build_bundle = lambda: bundle
from provision.cli import main
main()
"""


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run directory of a host whose own name and whose GPU's name are hostile; what the terminal got."""
    folder = tmp_path_factory.mktemp("attacked")
    hosts = {"all": {"hosts": [HOST]}, "_meta": {"hostvars": {HOST: {"ansible_connection": "local"}}}}
    script = folder / "hosts.sh"  # a cloud's inventory names hosts as it likes; a file's `[` would be a range
    script.write_text(f"#!/bin/sh\ncat <<'END'\n{json.dumps(hosts)}\nEND\n")
    script.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "validate", "-i", "hosts.sh", "--only", "system"],
        cwd=folder,
        env={**environment(), "FORCE_COLOR": "1", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode in (1, 3), done.stderr
    assert "Traceback" not in done.stderr
    run = next((folder / "runs").iterdir())
    report = json.loads((run / "report.json").read_text())
    assert [gpu["name"] for gpu in report["hosts"][0]["gpus"]] == [GPU], "the hostile card was measured"
    return run, done.stdout + done.stderr


def test_the_terminal_shows_them_and_obeys_nothing(attacked: tuple[Path, str]) -> None:
    _, said = attacked
    colours = re.compile(r"\x1b\[[0-9;]*m")
    assert "\x1b" not in colours.sub("", said)
    assert "\x07" not in said
    shown = colours.sub("", said)
    assert "[bold]x[/bold]" in shown
    assert "[red]H200[/red]" in shown


class _Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.bad: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "img") or any(name.startswith("on") for name, _ in attrs):
            self.bad.append(tag)


def test_the_html_has_no_element_of_theirs(attacked: tuple[Path, str]) -> None:
    text = (attacked[0] / "report.html").read_text()
    found = _Elements()
    found.feed(text)
    assert found.bad == []
    assert "&lt;script&gt;alert(1)" in text
    assert "\x1b" not in text


def test_markdown_and_junit_are_whole(attacked: tuple[Path, str]) -> None:
    markdown = (attacked[0] / "report.md").read_text()
    assert "<script>" not in markdown
    assert "<img" not in markdown
    assert "\x1b" not in markdown
    junit = (attacked[0] / "report.junit.xml").read_text()
    assert "\x1b" not in junit
    assert HOST in ET.tostring(ET.fromstring(junit), encoding="unicode", method="text") or "&lt;img" in junit  # noqa: S314 - our own file


def test_the_folders_stay_inside_the_run(attacked: tuple[Path, str]) -> None:
    (folder,) = (attacked[0] / "hosts").iterdir()
    assert re.fullmatch(r"[\w.-]+", folder.name)


def test_a_hosts_last_words_do_nothing_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    say("box: its last words: \x1b[2J\x1b]0;owned\x07\u202e")
    show_error(BringupError("box: \x1b[2J", "\x07"))
    said = capsys.readouterr().err
    assert not re.search("[\x00-\x09\x0b-\x1f\u202e]", said)
    assert "\\x1b[2J" in said
