"""The tests that the documents name are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NAMED = re.compile(r"`((?:unit|wire|host|ssh|gpu)/test_\w+)?(?:::)?(test_\w+)?")
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])


def named(text: str) -> list[tuple[str, str]]:
    """Files with the start of a test's name, "" for the whole file; a name without a file is of the file before it."""
    found: list[tuple[str, str]] = []
    for line in text.splitlines():
        file = ""
        for where, name in NAMED.findall(line):
            file = where or file
            if file and (where or name):
                found.append((file, name))
    return found


def test_names_are_found_with_and_without_their_file() -> None:
    line = "| x | `unit/test_a::test_b_...`, `test_c`; `wire/test_d` | `--only` |"
    assert named(line) == [("unit/test_a", "test_b_"), ("unit/test_a", "test_c"), ("wire/test_d", "")]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_test_that_a_document_names_is_there(document: Path) -> None:
    lost = []
    for file, name in named(document.read_text()):
        path = ROOT / "tests" / f"{file}.py"
        if not path.is_file() or f"def {name}" not in path.read_text():
            lost.append(f"{file}::{name}")
    assert not lost
