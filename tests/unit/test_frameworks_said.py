"""What of a framework's log is kept: the lines that say why, in one, bounded and without control characters."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from validators.frameworks import said


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        (
            "I0000 00:00:1795271972.548184   31196 dso_loader.cc:144] Could not load dynamic library 'libcuda.so.1'; "
            "dlerror: libcuda.so.1: cannot open shared object file: No such file or directory",
            "Could not load dynamic library 'libcuda.so.1'; dlerror: libcuda.so.1: cannot open shared object file: "
            "No such file or directory",
        ),
        (
            "E0000 00:00:1795271684.594627   27145 cuda_platform.cc:52] failed call to cuInit: INTERNAL: CUDA error: "
            "Failed call to cuInit: UNKNOWN ERROR (303)",
            "failed call to cuInit: INTERNAL: CUDA error: Failed call to cuInit: UNKNOWN ERROR (303)",
        ),
        (
            "2024-05-01 10:11:12.123456: I external/local_tsl/tsl/cuda/cudart_stub.cc:32] Could not find cuda drivers "
            "on your machine, GPU will not be used.",
            "Could not find cuda drivers on your machine, GPU will not be used.",
        ),
        (
            "NVIDIA GeForce GTX 1050 Ti with CUDA capability sm_61 is not compatible with the current PyTorch "
            "installation.",
            "NVIDIA GeForce GTX 1050 Ti with CUDA capability sm_61 is not compatible with the current PyTorch "
            "installation.",
        ),
        (
            "[14:40:19] ../src/imperative/./imperative_utils.h:93: GPU support is disabled. Compile MXNet with "
            "USE_CUDA=1 to enable GPU support.",
            "GPU support is disabled. Compile MXNet with USE_CUDA=1 to enable GPU support.",
        ),
        (
            "RuntimeError: Unable to load cuDNN. Is it installed?",
            "RuntimeError: Unable to load cuDNN. Is it installed?",
        ),
        ("I0000 00:00:1795271534.548093   26007 port.cc:153] oneDNN custom operations are on.", ""),
        ("I0000 00:00:1.5 1 dso_loader.cc:144] Could not load dynamic library 'libnvinfer.so.8'; dlerror: none", ""),
    ],
)
def test_a_line_that_says_why_is_kept_without_its_prefix(line: str, kept: str) -> None:
    assert said.why(f"noise\n{line}\nmore noise\n") == kept


def test_the_most_telling_line_comes_first_and_each_once() -> None:
    words = "Cannot dlopen some GPU libraries.\nCould not load dynamic library 'libcudnn.so.9'\n" * 50

    assert said.why(words) == "Could not load dynamic library 'libcudnn.so.9' | Cannot dlopen some GPU libraries."


def test_hostile_words_are_bounded_and_printable() -> None:
    words = "\n".join(f"\x1b[2J\u202e CUDA_ERROR_{n} \x00\x9b" + "x" * 100_000 for n in range(1000))

    kept = said.why(words)

    assert 0 < len(kept) <= said.MAX_WHY
    assert kept.isprintable()


def test_what_a_process_wrote_before_it_crashed_is_still_there() -> None:
    log = said.make()
    assert log >= 0
    body = (
        f"import os, sys; from validators.frameworks import said; said.take('/proc/{os.getpid()}/fd/{log}'); "
        "os.write(2, b'from C\\n'); print('from Python', file=sys.stderr); os.system('echo from a child >&2'); "
        "assert 'from a child' in said.text(); os.abort()"
    )

    ended = subprocess.run([sys.executable, "-c", body], check=False)

    assert ended.returncode == -6
    assert said.text(log).splitlines() == ["from C", "from Python", "from a child"]
    os.close(log)


def test_a_log_without_end_is_cut_and_costs_no_more_than_its_size() -> None:
    log = said.make()
    body = (
        f"import os; from validators.frameworks import said; said.take('/proc/{os.getpid()}/fd/{log}')\n"
        "try:\n    while True: os.write(2, b'x' * 65536)\nexcept OSError: pass\n"
    )

    subprocess.run([sys.executable, "-c", body], check=True, timeout=60)

    assert os.fstat(log).st_size == said.LIMIT_BYTES
    assert len(said.text(log)) == said.READ_BYTES
    os.close(log)


def test_without_such_a_file_nothing_is_lost_and_nothing_known() -> None:
    assert said.take("/proc/1/fd/999999") is False
    assert said.text(-1) == ""
