"""What goes wrong on a host, and what a person is told: each on a real container host."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from provision.errors import InventoryError, PlayError, UsageError
from provision.hosts import Host
from provision.plays import PlayResult, run_play
from tests.hosts.containers import ContainerHost, available
from tests.hosts.containers import container_hosts as start
from tests.hosts.image import CAREFUL_USER, SUDO_PASSWORD
from tests.need import need

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def box() -> Iterator[ContainerHost]:
    need(available(), "no Docker engine runs, and root with docker.io, debootstrap and iptables could start one")
    with start(1) as (host,):
        yield host


def preflight(host: Host, artifacts: Path, **variables: object) -> PlayResult:
    """Preflight alone, without the package lists: they are not what these tests are about."""
    given = {"preflight_update_cache": False, **variables}
    return run_play(
        "site.yml", [host], artifact_dir=artifacts, extra_vars=given, tags=["preflight"], skip_tags=["host_python"]
    )


@contextlib.contextmanager
def replaced(box: ContainerHost, path: str, content: str) -> Iterator[None]:
    box.sh(
        f"cp --remove-destination $(readlink -f {path}) {path}.kept; cat >{path}.new; mv {path}.new {path}",
        stdin=content.encode(),
    )
    try:
        yield
    finally:
        box.sh(f"mv {path}.kept {path}")


def test_a_sound_host_passes(box: ContainerHost, tmp_path: Path) -> None:
    result = preflight(box.host(), tmp_path)
    assert result.ok
    assert result.changed == 0


def test_an_operating_system_that_is_not_supported_is_named(box: ContainerHost, tmp_path: Path) -> None:
    with replaced(box, "/etc/os-release", 'ID="almalinux"\nVERSION_ID="9.4"\n'):
        result = preflight(box.host(), tmp_path)
    (failure,) = result.failures
    assert "this host runs almalinux 9.4" in failure.message
    assert "debian 12" in failure.message
    assert failure.host == box.name


def test_sudo_that_needs_a_password_is_said_with_the_next_step(box: ContainerHost, tmp_path: Path) -> None:
    (failure,) = preflight(box.host(user=CAREFUL_USER), tmp_path).failures
    assert "sudo does not work" in failure.message
    assert "--ask-become-pass" in failure.hint
    assert "Traceback" not in failure.message


def test_a_wrong_sudo_password_is_said(box: ContainerHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRINGUP_BECOME_PASSWORD", "not-that-one")
    (failure,) = preflight(box.host(user=CAREFUL_USER), tmp_path).failures
    assert "password" in failure.hint
    assert "not-that-one" not in "".join(path.read_text() for path in tmp_path.iterdir())


def test_the_sudo_password_of_the_environment_is_used_and_kept_nowhere(
    box: ContainerHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BRINGUP_BECOME_PASSWORD", SUDO_PASSWORD)
    book = tmp_path / "look.yml"
    tell = "{{ lookup('pipe', 'cat /proc/*/cmdline /proc/self/environ 2>/dev/null | tr -d \"\\\\000\" | base64 -w0') }}"
    book.write_text(
        json.dumps(
            [
                {
                    "hosts": "all",
                    "gather_facts": False,
                    "become": True,
                    "tasks": [
                        {"ansible.builtin.raw": "id -u"},
                        {"ansible.builtin.copy": {"dest": str(tmp_path / "seen"), "content": tell},
                         "delegate_to": "localhost", "become": False, "connection": "local"},
                        {"ansible.builtin.fail": {"msg": "the key is {{ ngc_api_key }} and {{ planted }}"}},
                    ],
                }
            ]
        )
    )  # fmt: skip
    result = run_play(
        str(book),
        [box.host(user=CAREFUL_USER)],
        artifact_dir=tmp_path / "plays",
        extra_vars={"ngc_api_key": "nvapi-planted-secret", "planted": "seen"},
        diff=True,
    )
    (failure,) = result.failures
    assert failure.message == "the key is ******** and seen"
    import base64

    running = base64.b64decode((tmp_path / "seen").read_bytes())
    assert b"ansible" in running
    assert SUDO_PASSWORD.encode() not in running
    assert b"nvapi-planted-secret" not in running
    kept = "".join(path.read_text() for path in (tmp_path / "plays").rglob("*") if path.is_file())
    assert SUDO_PASSWORD not in kept
    assert "nvapi-planted-secret" not in kept
    assert "PRIVATE KEY" not in kept
    assert "id -u" not in kept or "TASK" not in kept


def hold_apt_lock(box: ContainerHost, seconds: int, lock: str = "/var/lib/dpkg/lock-frontend") -> None:
    """Take the lock as apt does, with fcntl, in a process of its own."""
    program = (
        f"import fcntl, sys, time; f = open('{lock}', 'w'); fcntl.lockf(f, fcntl.LOCK_EX); "
        "open('/run/held', 'w'); time.sleep(float(sys.argv[1]))"
    )
    box.sh("rm -f /run/held")
    box.docker("exec", "-d", box.name, "python3", "-c", program, str(seconds))
    box.sh("for i in $(seq 100); do [ -e /run/held ] && exit 0; sleep 0.1; done; exit 1")


def let_go(box: ContainerHost) -> None:
    """End whoever holds a lock for these tests."""
    box.sh("for f in /proc/[0-9]*; do grep -qF fcntl.LOCK''_EX $f/cmdline && kill ${f#/proc/}; done; true")


def test_an_apt_lock_that_is_let_go_is_waited_for(box: ContainerHost, tmp_path: Path) -> None:
    hold_apt_lock(box, 8)
    assert preflight(box.host(), tmp_path, preflight_apt_lock_timeout_s=120).ok


def test_an_apt_lock_that_is_not_let_go_names_its_holder(box: ContainerHost, tmp_path: Path) -> None:
    hold_apt_lock(box, 600)
    try:
        (failure,) = preflight(box.host(), tmp_path, preflight_apt_lock_timeout_s=2).failures
    finally:
        let_go(box)
    assert "another program holds the apt lock" in failure.message
    assert "held by process" in failure.message
    assert "preflight_apt_lock_timeout_s" in failure.message


LISTS = "/var/lib/apt/lists/lock"


def test_the_lock_of_the_package_lists_is_waited_for_too(box: ContainerHost, tmp_path: Path) -> None:
    hold_apt_lock(box, 15, LISTS)
    box.sh("rm -f /run/bringup-package-lists")
    assert preflight(box.host(), tmp_path, preflight_update_cache=True, preflight_apt_lock_timeout_s=120).ok
    box.sh("test -e /run/bringup-package-lists")


def test_a_lock_of_the_lists_that_is_not_let_go_names_its_holder(box: ContainerHost, tmp_path: Path) -> None:
    hold_apt_lock(box, 600, LISTS)
    given = {"preflight_update_cache": True, "preflight_update_max_age_s": 0, "preflight_apt_lock_timeout_s": 3}
    try:
        (failure,) = preflight(box.host(), tmp_path, **given).failures
    finally:
        let_go(box)
    assert "another program holds the apt lock" in failure.message
    assert f"Could not get lock {LISTS}. It is held by process" in failure.message
    assert "did not let go in 3 s" in failure.message
    assert "\n" not in failure.message.strip()


def test_a_disk_that_is_too_small_is_named_with_both_figures(box: ContainerHost, tmp_path: Path) -> None:
    (failure,) = preflight(box.host(), tmp_path, preflight_free_mib={"/run": 99999999}).failures
    assert "/run has" in failure.message
    assert "99999999 MiB are needed" in failure.message


def test_repositories_that_do_not_answer_are_named(box: ContainerHost, tmp_path: Path) -> None:
    with replaced(box, "/etc/apt/sources.list", "deb http://127.0.0.1:9/debian bookworm main\n"):
        (failure,) = preflight(
            box.host(), tmp_path, preflight_update_cache=True, preflight_update_tries=1, preflight_update_timeout_s=60
        ).failures
    assert "does not reach its package repositories" in failure.message
    assert "127.0.0.1:9" in failure.message


def test_a_host_that_is_off_is_unreachable_and_the_others_go_on(box: ContainerHost, tmp_path: Path) -> None:
    off = box.host(name="off", address=f"{box.address.rpartition('.')[0]}.250")
    result = run_play(
        "site.yml",
        [box.host(), off],
        artifact_dir=tmp_path,
        extra_vars={"preflight_update_cache": False},
        tags=["preflight"],
        skip_tags=["host_python"],
    )
    (failure,) = result.failures
    assert not result.ok
    assert failure.unreachable
    assert failure.sentence().startswith("off: not reached over SSH")
    assert failure.hint
    assert result.hosts[box.name].good


def test_an_unknown_host_key_is_refused_unless_new_ones_are_accepted(box: ContainerHost, tmp_path: Path) -> None:
    stranger = box.host(ssh_args="-F none -o IdentitiesOnly=yes")
    known = tmp_path / "known_hosts"
    given = {"preflight_update_cache": False}

    def play(name: str, host_keys: str) -> PlayResult:
        return run_play(
            "site.yml",
            [stranger],
            artifact_dir=tmp_path / name,
            extra_vars=given,
            tags=["preflight"],
            skip_tags=["host_python"],
            known_hosts=known,
            host_keys="strict" if host_keys == "strict" else "accept-new",
        )

    (failure,) = play("strict", "strict").failures
    assert "accept-new" in failure.hint
    assert play("new", "accept-new").ok
    assert play("again", "strict").ok


def test_a_failing_task_shows_module_message_and_host(box: ContainerHost, tmp_path: Path) -> None:
    book = tmp_path / "broken.yml"
    task = {"name": "Install it", "ansible.builtin.apt": {"name": "no-such-package-anywhere"}}
    book.write_text(json.dumps([{"hosts": "all", "become": True, "tasks": [task]}]))
    (failure,) = run_play(str(book), [box.host()], artifact_dir=tmp_path / "plays").failures
    assert failure.sentence() == (
        f"{box.name}: Install it (ansible.builtin.apt): No package matching 'no-such-package-anywhere' is available"
    )


def test_a_host_without_python_gets_one_and_a_check_says_so_first(box: ContainerHost, tmp_path: Path) -> None:
    box.sh("apt-get -q -y purge 'python3*' 'libpython3*' lsb-release >/dev/null 2>&1; ! command -v python3")

    def play(*, check: bool) -> PlayResult:
        return run_play("site.yml", [box.host()], artifact_dir=tmp_path, check=check, tags=["host_python"])

    foretold = play(check=True)
    assert foretold.ok
    assert foretold.changed == 1
    assert "missing" in box.sh("command -v python3 || echo missing")
    assert play(check=False).ok
    assert box.sh("python3 -c 'import apt, debian, venv, sys; print(sys.version_info >= (3, 9))'").strip() == "True"
    assert play(check=False).changed == 0


def test_a_check_without_apt_s_bindings_says_so_and_a_run_brings_them_and_the_certificates(
    box: ContainerHost, tmp_path: Path
) -> None:
    box.sh("apt-get -q -y purge python3-apt ca-certificates >/dev/null 2>&1; ! python3 -c 'import apt'")

    def play(*, check: bool) -> PlayResult:
        return run_play("site.yml", [box.host()], artifact_dir=tmp_path, check=check, tags=["host_python"])

    foretold = play(check=True)
    assert foretold.ok, [failure.sentence() for failure in foretold.failures]
    assert foretold.changed == 1
    box.sh("! python3 -c 'import apt' 2>/dev/null")
    assert play(check=False).ok
    box.sh("python3 -c 'import apt'; test -s /etc/ssl/certs/ca-certificates.crt")
    assert play(check=False).changed == 0


def test_ctrl_c_leaves_no_process_and_keeps_the_events(box: ContainerHost, tmp_path: Path) -> None:
    book = tmp_path / "sleep.yml"
    tasks = [{"name": "Sleep", "ansible.builtin.command": "sleep 250"}]
    book.write_text(json.dumps([{"hosts": "all", "gather_facts": False, "tasks": tasks}]))
    host = box.host()
    program = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from pathlib import Path; from provision.hosts import Host; from provision.plays import run_play\n"
        f"host = Host(name={host.name!r}, address={host.address!r}, user={host.user!r}, "
        f"private_key_file={host.private_key_file!r}, ssh_args={host.ssh_args!r})\n"
        "try: run_play(sys.argv[1], [host], artifact_dir=Path(sys.argv[2]), "
        "on_event=lambda e: print(e.kind, e.task, flush=True))\n"
        "except KeyboardInterrupt: print('interrupted', flush=True); sys.exit(130)\n"
    )
    with tempfile.TemporaryDirectory(prefix="cc-", dir="/tmp") as marker:
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(book), str(tmp_path / "plays")],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "TMPDIR": marker},
        )
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("start Sleep"):
                break
        time.sleep(2)  # into the task, with its SSH connection open
        assert running_with(marker)
        process.send_signal(signal.SIGINT)
        said = process.stdout.read()
        assert process.wait(60) == 130
        assert "interrupted" in said
        assert running_with(marker) == []
        assert list(Path(marker).iterdir()) == []
    assert json.loads((tmp_path / "plays" / "sleep.json").read_text())["status"] == "cancelled"
    assert "Sleep" in (tmp_path / "plays" / "sleep.jsonl").read_text()


def running_with(marker: str) -> list[str]:
    """The command lines of Ansible's and SSH's processes that have this temporary directory in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"TMPDIR={marker}" in (path / "environ").read_text(errors="replace"):
                words = (path / "cmdline").read_text(errors="replace").replace("\0", " ")
                if "ansible" in words or words.startswith("ssh"):
                    found.append(words)
    return found


def test_a_playbook_that_is_not_there_lists_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        run_play("sight.yml", [Host("a")], artifact_dir=tmp_path)
    assert "site.yml" in caught.value.hint


def test_a_playbook_that_ansible_cannot_read_is_quoted(box: ContainerHost, tmp_path: Path) -> None:
    book = tmp_path / "odd.yml"
    book.write_text("- hosts: all\n  tasks: [{ no.such.module: {} }]\n")
    with pytest.raises(PlayError, match=r"no\.such\.module"):
        run_play(str(book), [box.host()], artifact_dir=tmp_path / "plays")


def test_a_limit_that_selects_nobody_is_an_error(box: ContainerHost, tmp_path: Path) -> None:
    with pytest.raises(InventoryError, match="nosuchhost"):
        run_play("site.yml", [box.host()], limit="nosuchhost", artifact_dir=tmp_path)
