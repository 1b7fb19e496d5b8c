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
    "nothing": ("pass", ""),
}


@pytest.mark.parametrize("case", CASES)
def test_the_last_words_say_why(case: str) -> None:
    body, expected = CASES[case]
    source = f"import sys; sys.stdout = sys.stderr\n{body}"
    said = subprocess.run([sys.executable, "-c", source], capture_output=True, check=False).stderr

    assert last_words(said) == expected


def test_endless_words_are_cut() -> None:
    assert len(last_words(b"x" * 10_000)) < 600
