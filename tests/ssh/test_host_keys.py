"""known_hosts against a real sshd: strict, accept-new, changed, hashed, revoked, and parsed only once."""

from __future__ import annotations

import subprocess
import threading
from pathlib import Path

import pytest

from provision.errors import ConnectError, HostKeyError
from provision.transport import connect, known_hosts
from tests.hosts.sshd import Sshd, make_key, public_key, sshd


def can_connect(server: Sshd, file: Path, **options: object) -> bool:
    with connect(server.host(), known_hosts=file, **options) as transport:  # type: ignore[arg-type]  # test options
        return transport.run(["true"]).returncode == 0


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def test_an_unknown_key_is_refused_with_its_fingerprint_and_the_way_on(server: Sshd, tmp_path: Path) -> None:
    listing = subprocess.run(
        ["ssh-keygen", "-lf", f"{server.host_keys[0]}.pub"], capture_output=True, text=True, check=True
    ).stdout
    with pytest.raises(HostKeyError) as caught:
        can_connect(server, tmp_path / "none")
    assert listing.split()[1] in caught.value.message
    assert f"[127.0.0.1]:{server.port}" in caught.value.message
    assert "--host-keys accept-new" in caught.value.hint
    assert not (tmp_path / "none").exists()


def test_accept_new_adds_the_key_and_strict_takes_it_from_then_on(server: Sshd, tmp_path: Path) -> None:
    file = tmp_path / "new" / "known_hosts"
    assert can_connect(server, file, host_keys="accept-new")
    assert file.read_text() == f"[127.0.0.1]:{server.port} {public_key(server.host_keys[0])}\n"
    assert can_connect(server, file)
    assert subprocess.run(
        ["ssh-keygen", "-F", f"[127.0.0.1]:{server.port}", "-f", str(file)], capture_output=True, check=False
    ).stdout


def test_accept_new_does_not_glue_its_line_to_one_without_a_newline(server: Sshd, tmp_path: Path) -> None:
    file = tmp_path / "known_hosts"
    file.write_text(f"other {public_key(server.key)}")
    assert can_connect(server, file, host_keys="accept-new")
    assert file.read_text().count("\n") == 2
    assert can_connect(server, file)


@pytest.mark.parametrize("policy", ["strict", "accept-new"])
def test_a_changed_key_names_line_and_both_fingerprints(server: Sshd, tmp_path: Path, policy: str) -> None:
    other = make_key(tmp_path / "other")
    file = write(tmp_path / "known_hosts", "# a comment", f"[127.0.0.1]:{server.port} {public_key(other)}")
    before = file.read_text()
    with pytest.raises(HostKeyError, match="CHANGED") as caught:
        can_connect(server, file, host_keys=policy)
    assert f"{file} line 2" in caught.value.message
    for key in (other, server.host_keys[0]):
        listing = subprocess.run(["ssh-keygen", "-lf", f"{key}.pub"], capture_output=True, text=True, check=True)
        assert listing.stdout.split()[1] in caught.value.message
    assert f"ssh-keygen -R '[127.0.0.1]:{server.port}' -f {file}" in caught.value.hint
    assert file.read_text() == before


@pytest.mark.parametrize("policy", ["strict", "accept-new"])
def test_a_host_known_by_another_type_of_key_counts_as_changed(server: Sshd, tmp_path: Path, policy: str) -> None:
    other = make_key(tmp_path / "other", "ecdsa")
    file = write(tmp_path / "known_hosts", f"[127.0.0.1]:{server.port} {public_key(other)}")
    with pytest.raises(HostKeyError, match="CHANGED"):
        can_connect(server, file, host_keys=policy)


def test_hashed_names_are_found_and_a_changed_one_too(server: Sshd, tmp_path: Path) -> None:
    file = write(tmp_path / "known_hosts", f"[127.0.0.1]:{server.port} {public_key(server.host_keys[0])}")
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", str(file)], check=True, capture_output=True)
    assert "127.0.0.1" not in file.read_text()
    assert can_connect(server, file)
    other = make_key(tmp_path / "other")
    write(file, f"[127.0.0.1]:{server.port} {public_key(other)}")
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", str(file)], check=True, capture_output=True)
    with pytest.raises(HostKeyError, match="CHANGED"):
        can_connect(server, file)


def test_a_revoked_key_is_refused_even_where_another_line_trusts_it(server: Sshd, tmp_path: Path) -> None:
    key = public_key(server.host_keys[0])
    file = write(tmp_path / "known_hosts", f"[127.0.0.1]:{server.port} {key}", f"@revoked * {key}")
    for policy in ("strict", "accept-new"):
        with pytest.raises(HostKeyError, match=r"revoked .*line 2"):
            can_connect(server, file, host_keys=policy)


def test_a_certificate_authority_is_said_to_be_unsupported(server: Sshd, tmp_path: Path) -> None:
    file = write(tmp_path / "known_hosts", f"@cert-authority * {public_key(server.key)}")
    for policy in ("strict", "accept-new"):
        with pytest.raises(HostKeyError, match="certificate authority"):
            can_connect(server, file, host_keys=policy)


def test_patterns_and_several_names_match_as_openssh_does(server: Sshd, tmp_path: Path) -> None:
    key = public_key(server.host_keys[0])
    file = tmp_path / "known_hosts"
    for names in (f"gpu1,[127.0.0.1]:{server.port}", "[127.0.0.*]:*", "127.0.0.1", "*,!10.*"):
        assert can_connect(server, write(file, f"{names} {key}"))
    for names in (f"*,![127.0.0.1]:{server.port},!127.*", "[127.0.0.1]:1", "127.0.0.11"):
        with pytest.raises(HostKeyError, match="not known"):
            can_connect(server, write(file, f"{names} {key}"))


def test_damaged_lines_are_skipped_and_say_nothing_about_a_host(server: Sshd, tmp_path: Path) -> None:
    file = write(
        tmp_path / "known_hosts", "|1|x", "short", f"|1|!!|?? {public_key(server.key)}",
        f"[127.0.0.1]:{server.port} ssh-ed25519 ****", "\ufffd",
        f"[127.0.0.1]:{server.port} {public_key(server.host_keys[0])} comment",
    )  # fmt: skip
    assert can_connect(server, file)


def test_the_type_of_key_that_is_known_is_the_one_asked_for(tmp_path: Path) -> None:
    """A host with three keys and only its RSA key known: asking for the usual first choice would look unknown."""
    with sshd(tmp_path / "sshd", key_kinds=("ed25519", "ecdsa", "rsa")) as server:
        for key in server.host_keys:
            file = write(tmp_path / "known_hosts", f"[127.0.0.1]:{server.port} {public_key(key)}")
            assert can_connect(server, file)


def test_a_large_known_hosts_is_parsed_once_for_many_connections(
    server: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "known_hosts"
    write(file, *(f"host{n} {public_key(server.key)}" for n in range(1100)), server.known_hosts.read_text())
    parsed: list[int] = []
    parse = known_hosts._entry
    monkeypatch.setattr(known_hosts, "_entry", lambda *where: parsed.append(1) or parse(*where))  # type: ignore[func-returns-value]  # append
    for _ in range(3):
        assert can_connect(server, file)
    assert len(parsed) < 1200
    write(file, server.known_hosts.read_text())  # and a change is noticed
    assert can_connect(server, file)
    assert len(parsed) < 1210


def test_many_threads_that_accept_new_keys_write_whole_lines(tmp_path: Path) -> None:
    file = tmp_path / "known_hosts"
    blob = b"key" * 40
    threads = [
        threading.Thread(target=known_hosts.remember, args=([file], f"host{n}", "ssh-ed25519", blob)) for n in range(40)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = file.read_text().splitlines()
    assert sorted(line.split()[0] for line in lines) == sorted(f"host{n}" for n in range(40))
    assert all(known_hosts.lookup([file], f"host{n}")[0].blob == blob for n in range(40))


def test_a_host_reached_twice_at_once_is_added_once_and_only_with_one_key(tmp_path: Path) -> None:
    file = tmp_path / "known_hosts"
    known_hosts.remember([file], "bastion", "ssh-ed25519", b"first")
    known_hosts.remember([file], "bastion", "ssh-ed25519", b"first")
    with pytest.raises(HostKeyError, match="two host keys at once"):
        known_hosts.remember([file], "bastion", "ssh-ed25519", b"another")
    assert len(file.read_text().splitlines()) == 1


def test_a_key_that_another_program_adds_meanwhile_is_not_missed(tmp_path: Path) -> None:
    file = write(tmp_path / "known_hosts", "a ssh-ed25519 QUFBQQ==")
    assert known_hosts.lookup([file], "a")
    with file.open("a") as other:
        other.write("b ssh-ed25519 QkJCQg==\n")
    known_hosts.remember([file], "c", "ssh-ed25519", b"CCCC")
    assert [bool(known_hosts.lookup([file], name)) for name in "abc"] == [True, True, True]


def test_a_known_hosts_that_cannot_be_written_is_an_error_not_a_silent_trust(server: Sshd, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConnectError, match=r"cannot (add a host key|read)"):
        can_connect(server, tmp_path / "file" / "known_hosts", host_keys="accept-new")


def test_strict_host_key_checking_no_in_the_inventory_never_loosens(server: Sshd, home: Path) -> None:
    host = server.host(ssh_args=f"{server.host().ssh_args} -o StrictHostKeyChecking=no")
    with pytest.raises(HostKeyError) as caught, connect(host):
        pass
    assert "StrictHostKeyChecking=no is for ssh" in caught.value.hint


def test_strict_host_key_checking_yes_in_the_inventory_tightens(server: Sshd, home: Path) -> None:
    host = server.host(ssh_args=f"{server.host().ssh_args} -o StrictHostKeyChecking=yes")
    with pytest.raises(HostKeyError, match="not known"), connect(host, host_keys="accept-new"):
        pass


def test_without_a_known_hosts_of_the_users_own_a_new_key_is_refused_and_nothing_is_written(
    server: Sshd, tmp_path: Path
) -> None:
    everybodys = write(tmp_path / "everybodys")
    options = f"{server.host().ssh_args} -o UserKnownHostsFile=none -o GlobalKnownHostsFile={everybodys}"
    with pytest.raises(HostKeyError, match="not known"), connect(server.host(ssh_args=options), host_keys="accept-new"):
        pass
    assert everybodys.read_text() == ""
