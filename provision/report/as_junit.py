"""JUnit XML for CI: each verdict a test case. FAIL: failure, ERROR: error, SKIP: skipped, WARN: a pass with a note."""

from __future__ import annotations

import re
from collections import Counter
from datetime import UTC, datetime
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from provision.report.model import HostReport, Report, Verdict
from provision.report.numbers import measured
from provision.report.text import plain
from provision.report.view import labels_text

_ILLEGAL = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 cannot hold, even escaped."""


def render(report: Report) -> str:
    """One <testsuite> per host. No host, or a host without verdicts, is an error, never an empty pass."""
    root = Element("testsuites", name=_clean(f"gpu-bringup {report.run_id}"))
    for host in report.hosts:
        _suite(root, host)
    if not report.hosts:
        suite = SubElement(root, "testsuite", name="run", tests="1", failures="0", errors="1", skipped="0", time="0")
        case = SubElement(suite, "testcase", classname="run", name="hosts", time="0")
        SubElement(case, "error", message="no host was measured", type="ERROR")
    for key in ("tests", "failures", "errors", "skipped"):
        root.set(key, str(sum(int(suite.get(key, "0")) for suite in root)))
    root.set("time", f"{sum(host.duration_s for host in report.hosts):.3f}")
    indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + tostring(root, encoding="unicode") + "\n"


def _suite(root: Element, host: HostReport) -> None:
    suite = SubElement(root, "testsuite", name=_clean(host.name), hostname=_clean(host.address or host.name))
    if host.started_unix > 0:
        suite.set("timestamp", datetime.fromtimestamp(host.started_unix, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"))
    seen: Counter[str] = Counter()
    for verdict in host.verdicts or (_nothing(host),):
        name = " ".join(filter(None, (verdict.subject, verdict.metric, _labels(verdict))))
        key = f"{verdict.check}\n{name}"
        seen[key] += 1
        if seen[key] > 1:  # two criteria on one metric; a name twice is one test to most readers
            name += f" [{verdict.criterion.id if verdict.criterion else seen[key]}]"
        case = SubElement(
            suite, "testcase", classname=_clean(f"{host.name}.{verdict.check}"), name=_clean(name), time="0"
        )
        _ending(case, verdict)
    found = Counter(child.tag for case in suite for child in case)
    suite.set("tests", str(len(suite)))
    for key, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(key, str(found[tag]))
    suite.set("time", f"{host.duration_s:.3f}")


def _nothing(host: HostReport) -> Verdict:
    """A host that was planned and has no verdict at all."""
    return Verdict("ERROR", "run", "host", "verdicts", f"nothing was judged here: {host.headline}")


def _ending(case: Element, verdict: Verdict) -> None:
    note = _note(verdict)
    if verdict.status == "FAIL":
        SubElement(case, "failure", message=_clean(verdict.reason), type="FAIL").text = note
    elif verdict.status == "ERROR":
        SubElement(case, "error", message=_clean(verdict.reason), type="ERROR").text = note
    elif verdict.status == "SKIP":
        SubElement(case, "skipped", message=_clean(verdict.reason))
    elif verdict.status == "WARN":
        SubElement(case, "system-out").text = f"WARN: {note}"


def _note(verdict: Verdict) -> str:
    criterion = verdict.criterion
    lines = [
        ("", verdict.reason),
        ("measured: ", measured(verdict.measurement) if verdict.measurement else ""),
        ("note: ", verdict.measurement.note if verdict.measurement else ""),
        ("required: ", verdict.required),
        ("because: ", criterion.because if criterion else ""),
        ("source: ", criterion.source if criterion else ""),
        ("next: ", verdict.next_step),
    ]
    return "\n".join(head + _clean(text, lines=True) for head, text in lines if text)


def _labels(verdict: Verdict) -> str:
    text = labels_text(verdict.measurement)
    return f"({text})" if text else ""


def _clean(text: str, lines: bool = False) -> str:
    return _ILLEGAL.sub("\ufffd", plain(text, limit=1000, lines=lines))
