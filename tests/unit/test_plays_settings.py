"""How Ansible is started."""

from __future__ import annotations

from pathlib import Path

import pytest

from provision.plays import run_play


def test_names_with_a_comma_are_hosts_and_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`-i box1,`: real Ansible, which runs in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    book = tmp_path / "book.yml"
    book.write_text(
        "- hosts: all\n  connection: local\n  gather_facts: false\n  tasks: [{ansible.builtin.debug: {msg: here}}]\n"
    )
    result = run_play(str(book), [Path("box1,box2")], artifact_dir=tmp_path / "plays")
    assert result.ok and set(result.hosts) == {"box1", "box2"}
