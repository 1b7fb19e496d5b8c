"""The words with which a process ended."""

from __future__ import annotations

import subprocess
import sys

import pytest

from validators.processes import last_words

CASES = {
    "the last line, where nothing was raised": ("print('one'); print('no such GPU')", "; its last words: no such GPU"),
    "an exception": ("raise RuntimeError('card on fire')", "; its last words: RuntimeError: card on fire"),
    "a message of several lines, its cause in the first": (
        "raise RuntimeError('UnknownError: NCCL: unhandled\\n\\t [[{{node while/sgd}}]] [Op:run]')",
        "; its last words: RuntimeError: UnknownError: NCCL: unhandled [[{{node while/sgd}}]] [Op:run]",
    ),
    "the last of chained ones": (
        "try:\n    1 / 0\nexcept ZeroDivisionError as e:\n    raise MemoryError('no room') from e",
        "; its last words: MemoryError: no room",
    ),
    "what torch writes of a rank": (
        'print(\'[rank0]: Traceback (most recent call last):\\n[rank0]:   File "x", line 1\\n'
        "[rank0]: DistBackendError: NCCL error\\n[rank0]: Last error: none')",
        "; its last words: DistBackendError: NCCL error Last error: none",
    ),
    "not what fails as it ends": (
        "class Broken:\n    def __del__(self):\n        raise TypeError('late')\n"
        "kept = Broken()\nraise RuntimeError('fire')",
        "; its last words: RuntimeError: fire",
    ),
    "nothing": ("pass", ""),
}


@pytest.mark.parametrize("case", CASES)
def test_the_last_words_say_why(case: str) -> None:
    body, expected = CASES[case]
    source = f"import sys; sys.stdout = sys.stderr\n{body}"
    said = subprocess.run([sys.executable, "-c", source], capture_output=True, check=False).stderr

    assert last_words(said) == expected


def test_of_endless_words_both_ends_are_told() -> None:
    told = last_words(b"Traceback (most recent call last):\nRuntimeError: the cause" + b"x" * 10_000 + b"the end")
    assert len(told) < 600
    assert "RuntimeError: the cause" in told
    assert told.endswith("the end")
