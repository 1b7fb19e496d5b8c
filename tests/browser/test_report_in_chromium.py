"""The HTML report in a real browser: quiet console, no network, light, dark, narrow and on paper."""

from __future__ import annotations

import struct
import zlib
from html.parser import HTMLParser
from pathlib import Path

import pytest

from provision.report import render
from tests.browser.chromium import DARK, LIGHT, open_page, pdf_text, screenshot
from tests.unit.report_examples import EXAMPLES, healthy, hostile, mixed


def _page(folder: Path, name: str) -> Path:
    page = folder / f"{name}.html"
    page.write_text(render(EXAMPLES[name](), "html"), encoding="utf-8")
    return page


@pytest.mark.parametrize("name", sorted(EXAMPLES))
@pytest.mark.parametrize("scheme", [LIGHT, DARK])
def test_the_report_opens_without_a_console_message_or_a_request(tmp_path: Path, name: str, scheme: int) -> None:
    opened = open_page(_page(tmp_path, name), tmp_path, scheme)
    assert opened.console == ()
    assert opened.requests == ()
    assert "<h1>" in opened.dom


def test_a_page_that_asks_and_complains_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "control.html"
    page.write_text('<!doctype html><script>console.error("boo")</script><img src="http://127.0.0.1:9/x.png">')
    opened = open_page(page, tmp_path)
    assert len(opened.console) == 1
    assert opened.requests == ("http://127.0.0.1:9/x.png",)


def test_the_policy_in_the_page_stops_what_slipped_in(tmp_path: Path) -> None:
    page = tmp_path / "leak.html"
    leak = '<img src="http://127.0.0.1:9/x.png"><script>document.title = "owned"</script><h1>'
    page.write_text(render(healthy(), "html").replace("<h1>", leak, 1), encoding="utf-8")
    opened = open_page(page, tmp_path)
    assert opened.requests == ()
    assert "<title>owned" not in opened.dom
    assert opened.console, "the browser reports what it blocked"


class _Elements(HTMLParser):
    """The elements and attributes of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: set[str] = set()
        self.attributes: set[str] = set()
        self.addresses: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.addresses |= {str(value) for name, value in attrs if name in ("href", "src")}


def test_hostile_names_build_no_element_attribute_or_link(tmp_path: Path) -> None:
    tame, wild = _Elements(), _Elements()
    tame.feed(open_page(_page(tmp_path, "mixed"), tmp_path).dom)
    wild.feed(open_page(_page(tmp_path, "hostile"), tmp_path).dom)
    assert wild.elements <= tame.elements
    assert wild.attributes <= tame.attributes
    assert all(address.startswith("#") or address == "data:," for address in wild.addresses)


@pytest.mark.parametrize("name", ["hostile", "mixed"])
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_sticks_out_at_the_side(tmp_path: Path, name: str, width: int) -> None:
    page = tmp_path / "measured.html"
    text = render(EXAMPLES[name](), "html")
    text = text.replace("default-src 'none';", "default-src 'none'; script-src 'unsafe-inline';", 1)
    text = text.replace("<details", "<details open")
    script = "<script>parent.postMessage(`${innerWidth} ${document.documentElement.scrollWidth}`, '*')</script></body>"
    page.write_text(text.replace("</body>", script), encoding="utf-8")
    frame = tmp_path / "frame.html"  # the browser's own window is never narrower than 500
    frame.write_text(
        "<!doctype html><script>onmessage = (said) => { document.title = said.data }</script>"
        f'<iframe src="measured.html" style="width:{width}px;height:900px;border:0"></iframe>'
    )
    assert f"<title>{width} {width}</title>" in open_page(frame, tmp_path).dom


def test_light_and_dark_differ_and_each_has_its_background(tmp_path: Path) -> None:
    page = _page(tmp_path, "healthy")
    corners = {scheme: _corner(screenshot(page, tmp_path, scheme, 1280, 800)) for scheme in (LIGHT, DARK)}
    assert corners == {LIGHT: (255, 255, 255), DARK: (0x11, 0x14, 0x18)}


def test_paper_has_the_verdict_and_what_the_screen_folds_away(tmp_path: Path) -> None:
    text = pdf_text(_page(tmp_path, "mixed"), tmp_path)
    words = " ".join(text.split())
    assert "Failed" in words
    assert "3 of 12 hosts fail" in words
    assert "60303ae22b998861bce3b28f33eec1be758a213c86c93c076dbe9f558c11c752" in text.replace("\n", "").replace(" ", "")
    for host in mixed().hosts:
        assert host.name in words
    assert "ecc uncorrected volatile" in words, "verdicts that pass are printed"
    assert "deadline connect" in words, "deadlines are printed"
    assert "Signature" in words


def test_a_hostile_report_prints(tmp_path: Path) -> None:
    assert hostile().hosts
    assert "Failed" in pdf_text(_page(tmp_path, "hostile"), tmp_path)


def _corner(png: bytes) -> tuple[int, int, int]:
    """The colour of the top left pixel of an 8-bit RGB or RGBA PNG."""
    assert png.startswith(b"\x89PNG")
    data, at = b"", 8
    while at < len(png):
        size, kind = struct.unpack(">I4s", png[at : at + 8])
        if kind == b"IDAT":
            data += png[at + 8 : at + 8 + size]
        at += size + 12
    first = zlib.decompress(data)[1:4]
    return (first[0], first[1], first[2])
