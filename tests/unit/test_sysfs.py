from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.host_tree import grow
from validators.probes.sysfs import Files


def test_absolute_links_stay_below_the_root(tmp_path: Path):
    files = grow(
        tmp_path,
        {
            "/usr/local/cuda": {"link": "/etc/alternatives/cuda"},
            "/etc/alternatives/cuda": {"link": "/usr/local/cuda-13.0"},
            "/usr/local/cuda-13.0/version.txt": "13\n",
            "/outside": {"link": "../../../../etc/alternatives/cuda"},
        },
    )

    assert files.real("/usr/local/cuda") == "/usr/local/cuda-13.0"
    assert files.text("/usr/local/cuda/version.txt") == "13"
    assert files.real("/outside") == "/usr/local/cuda-13.0"


def test_links_in_a_circle_end(tmp_path: Path):
    files = grow(tmp_path, {"/a": {"link": "/b"}, "/b": {"link": "/a"}})

    assert files.text("/a") is None
    assert not files.exists("/a")


def test_what_is_absent_has_no_value_and_a_reason(tmp_path: Path):
    files = grow(tmp_path, {"/empty": "\n"})

    assert files.text("/nothing") is None
    assert files.text("/empty") is None
    assert files.number("/empty") is None
    assert files.names("/nothing") == []
    assert files.why("/nothing") == "/nothing: No such file or directory"
    assert "empty" in files.why("/empty")


@pytest.mark.parametrize(("text", "base", "number"), [("0x10de\n", 16, 0x10DE), ("42\n", 10, 42), ("x", 10, None)])
def test_numbers_are_read_in_their_base(tmp_path: Path, text: str, base: int, number: int | None):
    assert grow(tmp_path, {"/n": text}).number("/n", base) == number


def test_a_long_file_is_cut(tmp_path: Path):
    assert grow(tmp_path, {"/long": "x" * 100}).text("/long", 10) == "x" * 10


def test_the_live_root_reads_procfs():
    assert Files().text("/proc/sys/kernel/osrelease")
    assert Files().is_device("/dev/null")
    assert not Files().is_device("/etc/passwd")
