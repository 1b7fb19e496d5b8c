"""The HTML page: what it says, that it is safe and bounded, that it can be read; figures from numbers."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files
from xml.etree import ElementTree

import pytest
from jinja2 import UndefinedError
from markupsafe import Markup

from provision.report import page, render
from provision.report.as_html import _environment
from provision.report.model import Report
from provision.report.plots import Dot, bullet, thin, trace
from provision.report.view import MEANING
from tests.unit.report_examples import (
    EXAMPLES,
    HOSTILE,
    fleet,
    gpuless_host,
    healthy,
    healthy_host,
    hostile_host,
    mixed,
    report,
    slow_gpu_host,
    unreachable_host,
)
from tests.unit.report_parts import UUIDS, measurement

CSS = (files("provision.report") / "templates" / "report.css").read_text(encoding="utf-8")
VOID = {"meta", "link", "use", "path", "line", "circle", "polyline", "br", "img"}


class Outline(HTMLParser):
    """Elements, headings and text of a page; complains of what is not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[str] = []
        self.headings: list[int] = []
        self.ids: list[str] = []
        self.targets: list[str] = []
        self.words = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        found = dict(attrs)
        assert not [name for name in found if name.startswith("on")]
        if re.fullmatch(r"h\d", tag):
            self.headings.append(int(tag[1]))
        if found.get("id"):
            self.ids.append(str(found["id"]))
        if tag in ("a", "use"):
            self.targets.append(str(found["href"]))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "title"} & set(self.open[-1:]):
            self.words += f" {data}"


def words(made: Report) -> str:
    """What a reader sees."""
    return " ".join(Outline(render(made, "html")).words.split())


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_page_is_well_formed_and_its_headings_and_links_hold_together(name: str) -> None:
    outline = Outline(render(EXAMPLES[name](), "html"))
    assert outline.elements.count("h1") == 1
    assert outline.elements.count("table") == outline.elements.count("caption")
    assert all(after - before <= 1 for before, after in zip(outline.headings, outline.headings[1:], strict=False))
    assert len(outline.ids) == len(set(outline.ids))
    assert {target[1:] for target in outline.targets} <= set(outline.ids)
    assert "script" not in outline.elements


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_adds_no_element_to_the_page(text: str) -> None:
    tame = Outline(render(report(hostile_host("tame", "tame")), "html"))
    wild = Outline(render(report(hostile_host(text)), "html"))
    assert set(wild.elements) <= set(tame.elements)
    assert not re.search("[\u202a-\u202e\u2066-\u2069\u200b\x00-\x08\x1b]", render(report(hostile_host(text)), "html"))


def test_a_run_id_cannot_get_into_the_style_sheet() -> None:
    assert '"gpu-bringup"  " run 20261121-041100-h200"' in render(healthy(), "html")
    wild = render(replace(healthy(), run_id='x"; } body { display: none } </style><b>'), "html")
    assert "</style><b>" not in wild
    assert "run x" not in wild.split("</style>")[0].split("<style>")[1]


def test_a_failure_shows_measurement_requirement_reason_source_and_next_step() -> None:
    text = words(report(slow_gpu_host()))
    row = text[text.index("throughput bf16 matmul.throughput_bf16") :][:600]
    for part in (
        "558.2 TFLOP/s",
        "GPU 2",
        "at least 692.6 TFLOP/s",
        "19% under",
        "Because a healthy card",
        "Source: NVIDIA H200",
    ):
        assert part in row
    assert "Next nvidia-smi -q -d PERFORMANCE" in text
    assert 'title="558.2 TFLOP/s"' in render(report(slow_gpu_host()), "html")


def test_each_pass_shows_its_measurement_and_its_criterion() -> None:
    text = words(healthy())
    assert re.search(r"throughput fp8.*?GPU 0 1,462 TFLOP/s.*?GPU 3 1,436 TFLOP/s.*?at least 1385.2 TFLOP/s", text)
    assert re.search(r"pcie width.*?16 ?all 4 GPUs ?equals 16", text)


def test_every_verdict_of_every_status_is_on_the_page() -> None:
    host = slow_gpu_host()
    (section,) = page.sections(report(host))
    for status, rows in section.rows.items():
        shown = {(row.check, row.metric) for row in rows}
        assert shown == {(one.check, one.metric) for one in host.verdicts if one.status == status}


def test_failures_stand_above_what_passes_and_bad_hosts_above_good_ones() -> None:
    text = words(mixed())
    assert text.index("What does not pass") < text.index("What passes")
    names = re.findall(r"(?:FAIL|ERROR|WARN|SKIP|PASS) ?((?:h200-|cpu-)\w+)", text[text.index("worst first") :])
    assert names[:6] == ["h200-02", "h200-03", "h200-08", "h200-07", "h200-04", "cpu-box"]


def test_the_first_broken_link_is_named_with_what_mends_it() -> None:
    text = words(mixed())
    assert "The first broken link is “userspace version”" in text
    assert "To mend it reboot, or unload nvidia_uvm" in text
    assert text.count("not reached") >= 6


def test_an_unreachable_host_a_cpu_run_and_an_empty_run_say_so() -> None:
    assert "no route to 10.20.0.17 port 22 within 15 s" in words(report(unreachable_host()))
    assert "Ran on the CPU" in words(report(gpuless_host()))
    assert "No host was measured, so nothing passes." in words(report())
    assert "Nothing was judged on this host" in words(report(replace(healthy_host(), verdicts=())))


def test_the_run_is_identified_down_to_the_criteria_files_hash() -> None:
    made = healthy()
    text = words(made)
    for part in (made.run_id, made.created, made.judged, made.version, made.command, made.criteria_files[0][1]):
        assert part in text


def test_300_hosts_make_a_page_of_bounded_size_that_names_them_all() -> None:
    text = render(fleet(300), "html")
    assert len(text) < 3_000_000
    assert all(f"node-{at:04d}" in text for at in range(300))
    assert text.count('class="host ') == 300 - sum(host.status == "PASS" for host in fleet(300).hosts)


def test_a_fleet_of_failures_is_bounded_too_and_says_what_it_leaves_out() -> None:
    host = slow_gpu_host()
    text = render(report(*(replace(host, name=f"n{at}") for at in range(400))), "html")
    assert len(text) < 12_000_000
    assert text.count('class="host ') == page.DETAILED_HOSTS
    assert f"(up to {page.DETAILED_HOSTS})" in text


def test_a_template_that_names_what_is_not_there_fails() -> None:
    with pytest.raises(UndefinedError):
        _environment().from_string("{{ nothing }}").render()


def test_every_expression_of_a_template_goes_through_plain() -> None:
    made = _environment().from_string("{{ x }} {{ x|upper }} {{ safe }}").render(x="\u202e<b>", safe=Markup("<i>"))
    assert made == "\\u202e&lt;b&gt; \\u202e&lt;B&gt; <i>"


# Colours


def _tokens(block: str) -> dict[str, str]:
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block))


def _contrast(one: str, other: str) -> float:
    """WCAG 2.2 contrast ratio."""

    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


BLOCKS = re.findall(r":root \{(.*?)\}", CSS, re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=["light", "dark", "paper"])
def test_text_and_marks_have_the_contrast_that_wcag_aa_asks_for(block: str) -> None:
    colour = _tokens(block)
    for status in MEANING:
        assert _contrast(colour[status], colour["bg"]) >= 4.5
        assert _contrast(colour[status], colour[f"{status}-bg"]) >= 4.5
        assert _contrast(colour["ink"], colour[f"{status}-bg"]) >= 4.5
        assert _contrast(colour["soft"], colour[f"{status}-bg"]) >= 4.5
    for name in ("ink", "soft"):
        assert _contrast(colour[name], colour["bg"]) >= 4.5
        assert _contrast(colour[name], colour["panel"]) >= 4.5
    assert _contrast(colour["trace"], colour["bg"]) >= 3


# Figures


def _svg(text: str) -> ElementTree.Element:
    return ElementTree.fromstring(text)  # noqa: S314 - our own text


def test_a_bullet_chart_puts_dots_lines_and_numbers_where_they_belong() -> None:
    dots = [Dot("GPU 0", 80.0, True), Dot("GPU 1", 40.0, False)]
    svg = _svg(bullet("rate", "TFLOP/s", dots, sign="≥", bounds=[70.0], peak=100.0))
    (good,) = svg.findall("circle")
    (bad,) = svg.findall("path")
    (bound,) = svg.findall("line[@class='bound']")
    (peak,) = svg.findall("line[@class='peak']")
    x = {
        name: float(str(one.get(key)))
        for name, one, key in (("dot", good, "cx"), ("bound", bound, "x1"), ("peak", peak, "x1"))
    }
    left = 62.0
    assert (x["dot"] - left) / (x["peak"] - left) == pytest.approx(0.8, abs=0.01)
    assert (x["bound"] - left) / (x["peak"] - left) == pytest.approx(0.7, abs=0.01)
    assert bad.get("class") == "dot bad"
    texts = [one.text for one in svg.findall("text")]
    assert {"rate, TFLOP/s", "GPU 0", "80", "40", "≥ 70", "peak 100"} <= set(texts)
    assert svg.findtext("title") == "rate, TFLOP/s"
    assert "GPU 1 40, not good enough" in str(svg.findtext("desc"))


def test_a_trace_runs_from_zero_to_the_end_of_the_load() -> None:
    svg = _svg(
        trace("power", "W", [(0.0, 100.0), (5.0, 400.0), (10.0, 200.0)], low=0.0, high=400.0, end=10.0, about="GPU 0")
    )
    line = svg.find("polyline")
    assert line is not None
    points = [tuple(map(float, one.split(","))) for one in str(line.get("points")).split()]
    assert [x for x, _ in points] == [42.0, 145.0, 248.0]
    assert min(points, key=lambda point: point[1])[0] == 145.0
    assert "GPU 0: 100 to 400 W over 10 s, 3 samples" in str(svg.findtext("desc"))


def test_a_thinned_trace_keeps_its_spikes_and_its_order() -> None:
    points = [(float(at), 1.0) for at in range(5000)]
    points[2345] = (2345.0, 99.0)
    points[4001] = (4001.0, -5.0)
    few = thin(points)
    assert len(few) <= 120
    assert (2345.0, 99.0) in few
    assert (4001.0, -5.0) in few
    assert few == sorted(few)


@pytest.mark.parametrize("value", [0.0, 1e-9, 1e18])
def test_figures_of_extreme_values_are_still_figures(value: float) -> None:
    dots = [Dot("<b>", value, True)]
    assert "nan" not in bullet("<script>", "W", dots, sign="≤", bounds=[value], peak=None)
    _svg(trace("x", "W", [(0.0, value)], low=value, high=value, end=1e-6, about="<i>"))


def test_every_gpu_and_every_dtype_has_its_figure() -> None:
    (section,) = page.sections(report(healthy_host()))
    assert len([one for one in section.plots if "throughput" in one]) == 7
    assert [about for about, _ in section.traces] == [f"matmul, GPU {at}" for at in range(4)]
    assert all(len(figures) == 4 for _, figures in section.traces)


def test_gpus_with_the_very_same_value_share_a_line_and_others_do_not() -> None:
    host = replace(
        healthy_host(),
        verdicts=(),
        measurements=tuple(
            measurement("x", "m", value, "count", uuid) for uuid, value in zip(UUIDS, (1, 1, 2, 1), strict=True)
        ),
    )
    (section,) = page.sections(report(host))
    (row,) = section.facts["x"]
    assert [(one.subject, one.text) for one in row.values] == [("GPU 0, 1, 3", "1"), ("GPU 2", "2")]


def test_a_reason_that_repeats_the_row_is_not_written_twice() -> None:
    host = slow_gpu_host()
    fail = next(one for one in host.verdicts if one.status == "FAIL")
    because = fail.criterion.because if fail.criterion else ""
    said = replace(fail, reason=f"43.11 TFLOP/s; required: {fail.required}, because {because}")
    text = words(report(replace(host, verdicts=(said,))))
    assert text.count(because) == 1
    assert text.count(fail.required) == 1


def test_gpus_share_a_figure_though_their_labels_differ() -> None:
    host = healthy_host()
    before = page.bullets(host)
    labelled = tuple(
        replace(one, measurement=replace(one.measurement, labels={"products": str(number)}))
        if one.measurement is not None
        else one
        for number, one in enumerate(host.verdicts)
    )
    assert len(page.bullets(replace(host, verdicts=labelled))) == len(before)


def test_two_thresholds_of_a_metric_are_two_lines_and_one_row_a_gpu() -> None:
    host = healthy_host()
    throughput = next(one for one in host.verdicts if one.metric.startswith("throughput") and one.criterion)
    assert throughput.criterion is not None
    assert isinstance(throughput.required_value, float | int)
    lower = replace(
        throughput, criterion=replace(throughput.criterion, id="lower"), required_value=throughput.required_value / 2
    )
    (figure,) = page.bullets(replace(host, verdicts=(throughput, lower)))
    assert figure.count('class="bound"') == 2
    assert figure.count("GPU 0</text>") == 1
