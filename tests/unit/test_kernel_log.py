"""The kernel's log is read whole or not at all, and never waits."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.unit.nvml_host import LOGS
from validators.probes import kernel_log
from validators.probes.kernel_log import KernelLog, Line, LogUnreadable, parse_kmsg, parse_text, read

DMESG = (LOGS / "dmesg-h200-x4-580.159.04.txt").read_text()
KMSG = (LOGS / "kmsg.txt").read_text()
JOURNAL = (
    "[    0.000000] gpu1 kernel: Linux version 6.8.0-45-generic (buildd@host) #45-Ubuntu SMP\n"
    "[    1.231565] gpu1 kernel: NVRM: loading NVIDIA UNIX Open Kernel Module for x86_64  580.159.04\n"
    "[  812.100002] gpu1 kernel: NVRM: Xid (PCI:0000:00:06): 79, pid=1122, GPU has fallen off the bus.\n"
)


def records(text: str) -> list[str]:
    """As /dev/kmsg gives them: a record with its continuation lines."""
    found: list[str] = []
    for line in text.splitlines(keepends=True):
        if line.startswith(" "):
            found[-1] += line
        else:
            found.append(line)
    return found


def test_kmsg_records_become_lines_without_their_attributes() -> None:
    log = parse_kmsg(records(KMSG))
    assert log.complete
    assert len(log.lines) == 4
    assert log.lines[-1] == Line(812.100002, "NVRM: Xid (PCI:0000:00:06): 79, pid=1122, GPU has fallen off the bus.")


def test_a_ring_that_has_lost_its_beginning_is_not_complete() -> None:
    assert not parse_kmsg(records(KMSG)[1:]).complete
    assert not parse_kmsg([]).complete


def test_dmesg_output_is_read_with_and_without_thread_ids() -> None:
    log = parse_text(DMESG, "dmesg")
    assert log.complete
    assert log.lines[0].text.startswith("Linux version")
    assert any("NVRM: loading NVIDIA UNIX Open Kernel Module" in line.text for line in log.lines)
    assert parse_text("[    5.100000][  T123] NVRM: hello\n", "dmesg").lines == (Line(5.1, "NVRM: hello"),)


def test_journal_output_loses_the_hosts_name() -> None:
    log = parse_text(JOURNAL, "journalctl")
    assert log.complete
    assert log.lines[2].text.startswith("NVRM: Xid (PCI:0000:00:06): 79")


@pytest.mark.parametrize("text", ["", "garbage\n\x00\xff", "[not a time] x", "6,x,y,-;z", DMESG[:100]])
def test_garbage_and_truncated_text_give_what_can_be_read_and_no_more(text: str) -> None:
    for source in ("dmesg", "journalctl"):
        assert len(parse_text(text, source).lines) <= 1
    assert parse_kmsg([text]).lines == ()


def test_a_fifo_that_never_ends_is_not_waited_for(tmp_path: Path) -> None:
    """Opened without blocking, as /dev/kmsg is: what is there now, and then the end."""
    fifo = tmp_path / "kmsg"
    os.mkfifo(fifo)
    writer = os.open(fifo, os.O_RDWR)
    try:
        os.write(writer, records(KMSG)[0].encode())
        assert read(str(fifo)).lines[0].text.startswith("Linux version")
    finally:
        os.close(writer)


def test_without_kmsg_the_journal_is_asked_and_then_dmesg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def command(argv: list[str]) -> str:
        asked.append(argv[0])
        if argv[0] == "journalctl":
            raise OSError(2, "No such file or directory")
        return DMESG

    monkeypatch.setattr(kernel_log, "_command", command)
    log = read(str(tmp_path / "none"))
    assert asked == ["journalctl", "dmesg"]
    assert log.source == "dmesg"


def test_a_ring_that_lost_its_beginning_is_replaced_by_the_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_log, "_kmsg", lambda path: records(KMSG)[2:])
    monkeypatch.setattr(kernel_log, "_command", lambda argv: JOURNAL)
    assert read("x") == KernelLog(parse_text(JOURNAL, "journalctl").lines, True, "journalctl")
    monkeypatch.setattr(kernel_log, "_command", lambda argv: "")
    kept = read("x")
    assert (kept.source, kept.complete, len(kept.lines)) == ("kmsg", False, 2)


def test_a_log_that_nobody_may_read_is_unreadable_and_every_reason_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def command(argv: list[str]) -> str:
        if argv[0] == "journalctl":
            return ""  # what an unprivileged user gets: no line, and success
        raise OSError(1, "read kernel buffer failed: Operation not permitted")

    monkeypatch.setattr(kernel_log, "_command", command)
    with pytest.raises(LogUnreadable) as problem:
        read(str(tmp_path / "none"))
    assert "No such file" in str(problem.value)
    assert "journalctl: gave no line" in str(problem.value)
    assert "dmesg: read kernel buffer failed" in str(problem.value)


def test_a_tool_that_fails_tells_its_last_line() -> None:
    with pytest.raises(OSError, match="last words"):
        kernel_log._command(["sh", "-c", "echo first >&2; echo last words >&2; exit 3"])
    with pytest.raises(FileNotFoundError):
        kernel_log._command(["no-such-tool-here"])


def test_a_tool_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_log, "COMMAND_TIMEOUT_S", 0.2)
    with pytest.raises(OSError, match="no answer"):
        kernel_log._command(["sleep", "60"])


def test_the_log_of_this_machine_can_be_read_or_says_why_not() -> None:
    try:
        log = read()
    except LogUnreadable as problem:
        assert "kmsg" in str(problem)
    else:
        assert log.lines
