"""What a host sent is inert, numbers read well, and the terminal shows both."""

from __future__ import annotations

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from provision.report.model import Report
from provision.report.numbers import duration, exact, number, quantity
from provision.report.terminal import MAX_PROBLEMS, render_chain, render_terminal
from provision.report.text import plain
from tests.unit.report_examples import (
    EXAMPLES,
    HOSTILE,
    fleet,
    gpuless_host,
    healthy,
    hostile_host,
    mixed,
    report,
    slow_gpu_host,
    unreachable_host,
)

BIDI = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f"


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        ("NVIDIA H200", "NVIDIA H200"),
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("\x1b[2J", "\\x1b[2J"),
        ("\x9b2J", "\\x9b2J"),
        ("gpu\u202egnp.exe", "gpu\\u202egnp.exe"),
        ("a\u200bb\ufeff", "a\\u200bb\\ufeff"),
        ("a\nb\r\nc\td", "a b c d"),
        ("a\u2028b", "a\\u2028b"),
        ("\ud800", "\\ud800"),
        ("\U000e0041", "\\U000e0041"),
        ("Grüße, 漢字, ≥ °C", "Grüße, 漢字, ≥ °C"),
        ("<b>[red]", "<b>[red]"),
    ],
)
def test_plain_spells_out_what_could_mislead(sent: str, shown: str) -> None:
    assert plain(sent) == shown


def test_plain_keeps_lines_only_where_asked() -> None:
    assert plain("a\r\nb\rc", lines=True) == "a\nb\\x0dc"


def test_plain_clips_and_says_how_much_there_was() -> None:
    assert plain("A" * 4096, 10) == "AAAAAAAAAA… (4,096 characters)"
    assert plain("A" * 10, 10) == "A" * 10
    assert plain("\u202e" * 10, 10) == "\\u202e\\u20… (10 characters)"


def test_plain_stops_a_tower_of_accents() -> None:
    shown = plain("Z" + "\u0301" * 50)
    assert shown.count("\u0301") == 3
    assert shown.count("\\u0301") == 47


@given(st.text(alphabet=st.characters(codec=None)))
def test_plain_leaves_nothing_invisible(text: str) -> None:
    shown = plain(text)
    shown.encode("utf-8")
    assert shown.isprintable() or all(char.isprintable() or char.isspace() for char in shown)
    assert not set(shown) & set("\x1b\x9b\n\r" + BIDI)


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [
        (0, "count", "0"),
        (4211, "count", "4,211"),
        (2063721, "MiB", "2,063,721 MiB"),
        (0.98765, "ratio", "0.988"),
        (43.1113, "TFLOP/s", "43.11 TFLOP/s"),
        (786.249, "TFLOP/s", "786.2 TFLOP/s"),
        (1038.02, "TFLOP/s", "1,038 TFLOP/s"),
        (700.0, "W", "700 W"),
        (34, "celsius", "34 °C"),
        (1.0, "percent", "1 %"),
        (True, "bool", "true"),
        (0.0000123, "s", "1.23e-05 s"),
        (0.21874, "TFLOP/s", "0.219 TFLOP/s"),
        (-3.25, "celsius", "-3.25 °C"),
        ("580.159.04", "version", "580.159.04"),
        (1e18, "GB/s", "1e+18 GB/s"),
    ],
)
def test_quantities_have_three_or_four_digits_and_a_unit(
    value: bool | int | float | str, unit: str, shown: str
) -> None:
    assert quantity(value, unit) == shown


def test_the_exact_value_stays_at_hand() -> None:
    assert exact(786.24913, "TFLOP/s") == "786.24913 TFLOP/s"


@given(st.floats(allow_nan=False, allow_infinity=False, min_value=-(2.0**64), max_value=2.0**64))
def test_a_number_shown_is_within_half_a_percent(value: float) -> None:
    assert float(number(value).replace(",", "")) == pytest.approx(value, rel=5e-3)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.061, "0.06 s"), (15.002, "15 s"), (94.3, "1 min 34 s"), (600, "10 min"), (7500, "2 h 5 min")],
)
def test_durations_read_as_people_say_them(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


# The terminal


def _terminal(made: Report, width: int = 120, colour: bool = False) -> str:
    out = io.StringIO()
    render_terminal(
        made, Console(file=out, width=width, force_terminal=colour, color_system="standard" if colour else None)
    )
    return out.getvalue()


def test_the_terminal_shows_verdict_broken_link_and_next_step() -> None:
    text = _terminal(mixed())
    assert text.startswith("Failed  3 of 12 hosts fail")
    for words in (
        "The first broken link is “userspace version”",
        "To mend it: reboot",
        "43.11 TFLOP/s",
        "→ nvidia-smi",
    ):
        assert words in text


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_does_nothing_to_the_terminal(text: str) -> None:
    shown = _terminal(report(hostile_host(text)), colour=True)
    codes = re.sub(r"\x1b\[[0-9;]*m", "", shown)
    assert "\x1b" not in codes, "only Rich's own colours are escape sequences"
    assert not set(codes) & set("\x07\x9b\r\u2028" + BIDI)
    if text.startswith("[bold red]"):
        assert "[bold red]not red[/]" in codes.replace("\n", "")
    assert "\x1b]8" not in shown, "no hyperlink"


def test_the_terminal_stays_readable_with_300_hosts() -> None:
    text = _terminal(fleet(300))
    assert len(text.splitlines()) < 3000
    assert "more: " in text


def test_the_terminal_counts_the_problems_that_it_leaves_out() -> None:
    host = slow_gpu_host()
    many = report(type(host)(**{**vars(host), "verdicts": host.verdicts * 3}))
    problems = 3 * sum(one.status in ("FAIL", "ERROR", "WARN") for one in host.verdicts)
    assert f"{problems - MAX_PROBLEMS} more like these" in _terminal(many)


def test_a_run_on_the_cpu_says_so_on_the_terminal() -> None:
    assert "Ran on the CPU" in _terminal(report(gpuless_host()))


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_terminal_renders_every_example(name: str) -> None:
    assert _terminal(EXAMPLES[name](), width=60).strip()


def test_the_chain_of_a_host_that_was_not_reached_says_why() -> None:
    out = io.StringIO()
    console = Console(file=out, width=120)
    console.print(render_chain(unreachable_host()))
    console.print(render_chain(healthy().hosts[0]))
    assert "no route to 10.20.0.17 port 22" in out.getvalue()
    assert "All 12 links hold." in out.getvalue()
