"""ansible-runner's events, as ansible-core 2.19 sends them, into ours."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from provision.errors import InventoryError
from provision.hosts import Host
from provision.plays import PLAYBOOKS, playbook_path
from provision.plays.progress import MESSAGE_LIMIT, PlayEvent, Tally, clean, hint_for, parse_event, secrets_in
from provision.plays.record import PlayRecord, PlayResult
from provision.plays.settings import arguments, environment, inventory_of


def runner_event(kind: str, **data: object) -> dict[str, object]:
    base = {
        "host": "box",
        "task": "Install it",
        "role": "docker",
        "resolved_action": "ansible.builtin.apt",
        "play": "P",
    }
    return {"event": kind, "created": "2026-11-21T04:00:00+00:00", "event_data": {**base, **data}}


def parsed(kind: str, **data: object) -> PlayEvent:
    event = parse_event(runner_event(kind, **data))
    assert event is not None
    return event


def test_an_ok_that_changed_something_is_a_change() -> None:
    assert parsed("runner_on_ok", res={"changed": True}).changed
    assert parsed("runner_on_ok", res={"changed": False}).kind == "ok"


def test_what_a_role_has_to_say_reaches_the_reader() -> None:
    words = "a reboot is needed: driver 580 is loaded"
    said = parsed("runner_on_ok", resolved_action="ansible.builtin.debug", res={"msg": words, "changed": False})
    assert (said.kind, said.message) == ("note", words)
    tally = Tally()
    tally.add(said)
    assert tally.hosts["box"].good
    assert parsed("runner_on_ok", res={"msg": "of another module", "changed": False}).message == ""


def test_a_failure_that_the_play_ignores_does_not_count_as_one() -> None:
    tally = Tally()
    tally.add(parsed("runner_on_failed", res={"msg": "no"}, ignore_errors=True))
    assert tally.hosts["box"].failed == 0
    assert tally.hosts["box"].good


def test_a_rescued_failure_leaves_no_failure_behind() -> None:
    tally = Tally()
    tally.add(parsed("runner_on_failed", res={"msg": "no"}))
    assert tally.hosts["box"].failure is not None
    tally.take_stats({"processed": {"box": 1}, "ok": {"box": 3}, "rescued": {"box": 1}})
    assert tally.hosts["box"].failure is None
    assert tally.hosts["box"].good


def test_a_host_that_only_skipped_is_not_good() -> None:
    tally = Tally()
    tally.take_stats({"processed": {"box": 1}, "skipped": {"box": 4}})
    assert not tally.hosts["box"].good


def test_the_tools_own_last_words_follow_the_module_s() -> None:
    event = parsed("runner_on_failed", res={"msg": "non-zero return code", "stderr": "one\ntwo\ncc: not found\n"})
    assert event.message == "non-zero return code\none\ntwo\ncc: not found"


def test_a_failed_loop_names_the_items_that_failed() -> None:
    results = [{"item": "/var", "msg": "fine"}, {"item": "/opt", "failed": True, "msg": "full"}]
    assert parsed("runner_on_failed", res={"msg": "items failed", "results": results}).message == "/opt: full"


def test_a_hidden_result_stays_hidden() -> None:
    res = {"censored": "hidden", "msg": "the key is nvapi-1"}
    assert parsed("runner_on_failed", res=res).message == "the task's output is hidden (no_log)"


def test_what_a_host_says_is_bounded_and_has_no_escape_sequences() -> None:
    text = clean("\x1b[31mred\x1b]0;title\x07\x9b2J\x00 " + "x" * 10_000_000)
    assert text.startswith("red")
    assert "\x1b" not in text
    assert "\x9b" not in text
    assert len(text) < MESSAGE_LIMIT + 100


@pytest.mark.parametrize(
    ("said", "step"),
    [
        ("Task failed: Missing sudo password", "--ask-become-pass"),
        ("sudo: a password is required", "BRINGUP_BECOME_PASSWORD"),
        ("Host key verification failed.", "accept-new"),
        ("op@10.0.0.9: Permission denied (publickey).", "ansible_user"),
        ("ssh: Could not resolve hostname nowhere", "ansible_host"),
        ("connect to host 10.0.0.9 port 22: Connection timed out", "port"),
    ],
)
def test_a_known_failure_has_its_next_step(said: str, step: str) -> None:
    assert step in hint_for(said)


def test_an_unknown_failure_has_no_invented_step() -> None:
    assert hint_for("the moon is full") == ""


def test_a_diff_is_a_unified_one() -> None:
    res = {"changed": True, "diff": [{"before": "a\nb\n", "after": "a\nc\n", "before_header": "/etc/x"}]}
    assert "-b\n+c" in parsed("runner_on_ok", res=res).diff


def test_events_that_nobody_wants_are_dropped() -> None:
    assert parse_event({"event": "verbose", "stdout": "x"}) is None
    assert parse_event({}) is None
    assert parse_event({"event": "runner_on_ok", "event_data": None}) == PlayEvent("ok")


def test_secrets_are_known_by_their_variables_names() -> None:
    given = {"ngc_api_key": "nvapi-12345", "deep": {"db": [{"password": "hunter22"}]}, "ansible_become_pass": "sesame"}
    assert secrets_in(given) == {"nvapi-12345", "hunter22", "sesame"}
    assert secrets_in({"ansible_ssh_private_key_file": "/keys/id", "port": 22, "token": True}) == set()


def test_a_secret_is_in_no_file_that_a_play_leaves(tmp_path: Path) -> None:
    with PlayRecord(tmp_path, "site", {"hunter22"}) as record:
        event = record.take(runner_event("runner_on_failed", res={"msg": "login as hunter22 refused"}))
        record.finish(PlayResult("site.yml", "failed", record.tally.hosts))
    assert event is not None
    assert event.message == "login as ******** refused"
    kept = "".join(path.read_text() for path in tmp_path.iterdir())
    assert "refused" in kept
    assert "hunter22" not in kept


def test_each_event_is_on_disk_before_the_next_one(tmp_path: Path) -> None:
    with PlayRecord(tmp_path, "site", set()) as record:
        record.take(runner_event("runner_on_ok", res={}))
        (line,) = (tmp_path / "site.jsonl").read_text().splitlines()
        assert json.loads(line)["host"] == "box"


def test_a_second_play_of_a_run_does_not_overwrite_the_first(tmp_path: Path) -> None:
    for _ in range(2):
        with PlayRecord(tmp_path, "site", set()) as record:
            record.finish(PlayResult("site.yml", "failed"))
    assert {path.name for path in tmp_path.iterdir()} == {"site.json", "site.jsonl", "site-2.json", "site-2.jsonl"}


def test_a_play_over_no_host_is_not_ok() -> None:
    assert not PlayResult("site.yml", "successful").ok


def words(private: Path, **given: object) -> list[str]:
    usual: dict[str, object] = {
        "limit": "", "extra_vars": None, "tags": (), "skip_tags": (), "check": False, "diff": False, "forks": 5,
        "ask_become": False,
    }  # fmt: skip
    return arguments(private, [Host("box", "10.0.0.9")], **{**usual, **given})  # type: ignore[arg-type]  # as typed there


def test_variables_never_go_on_the_command_line(tmp_path: Path) -> None:
    given = words(tmp_path, extra_vars={"ngc_api_key": "nvapi-12345"}, check=True)
    assert "nvapi-12345" not in " ".join(given)
    path = next(Path(word[1:]) for word in given if word.startswith("@"))
    assert json.loads(path.read_text()) == {"ngc_api_key": "nvapi-12345"}
    assert path.stat().st_mode & 0o077 == 0
    assert "--check" in given
    assert "--diff" not in given


def test_no_hosts_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InventoryError):
        arguments(tmp_path, [], limit="", extra_vars=None, tags=(), skip_tags=(), check=False, diff=False, forks=1,
                  ask_become=False)  # fmt: skip


def test_a_host_becomes_the_inventory_entry_that_means_the_same() -> None:
    host = Host(
        "box", "10.0.0.9", 2222, "op", private_key_file="/k", groups=("gpu",), variables={"docker_source": "distro"}
    )
    local = Host("localhost", connection="local")
    body = inventory_of([host, local])
    assert body["hosts"] == {
        "box": {
            "docker_source": "distro",
            "ansible_host": "10.0.0.9",
            "ansible_port": 2222,
            "ansible_user": "op",
            "ansible_connection": "ssh",
            "ansible_ssh_private_key_file": "/k",
        },
        "localhost": {"ansible_connection": "local"},
    }
    assert body["children"] == {"gpu": {"hosts": {"box": {}}}}


def test_host_keys_are_checked_unless_new_ones_are_accepted(tmp_path: Path) -> None:
    assert "StrictHostKeyChecking=yes" in environment(tmp_path, "strict", None)["ANSIBLE_SSH_ARGS"]
    assert "StrictHostKeyChecking=accept-new" in environment(tmp_path, "accept-new", None)["ANSIBLE_SSH_ARGS"]
    with pytest.raises(KeyError):
        environment(tmp_path, "no", None)


def test_our_playbooks_are_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert playbook_path("site.yml") == PLAYBOOKS / "site.yml"
    assert playbook_path("site") == PLAYBOOKS / "site.yml"
