"""~/.ssh/config, ssh arguments of the inventory, jump hosts and proxy commands, over real servers."""

from __future__ import annotations

import getpass
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from provision.errors import AuthenticationError, ConnectError, HostKeyError
from provision.hosts import Host
from provision.transport import connect
from provision.transport.options import parse_ssh_args, resolve, resolve_jump
from tests.hosts.sshd import Sshd, sshd
from tests.ssh.waiting import eventually
from tests.wire.planting import command_line

RELAY = """
import os, select, socket, sys
s = socket.create_connection((sys.argv[1], int(sys.argv[2])))
while True:
    ready, _, _ = select.select([0, s], [], [])
    data = os.read(0, 65536) if 0 in ready else s.recv(65536)
    if not data: break
    s.sendall(data) if 0 in ready else os.write(1, data)
"""


@pytest.fixture(scope="module")
def bastion(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    """A second server, with another host key and another user key, on another address."""
    with sshd(tmp_path_factory.mktemp("bastion"), addresses=("127.0.0.3",)) as running:
        yield running


@pytest.fixture
def known(server: Sshd, bastion: Sshd, tmp_path: Path) -> Path:
    file = tmp_path / "known_hosts"
    file.write_text(server.known_hosts.read_text() + bastion.known_hosts.read_text())
    return file


def configure(home: Path, text: str) -> None:
    (home / ".ssh/config").write_text(text)


def sees(host: Host, known: Path | None) -> str:
    """The address of whoever connects to the target, as the target sees it."""
    with connect(host, known_hosts=known) as transport:
        return transport.run(["sh", "-c", "echo $SSH_CONNECTION"]).stdout.decode()


def test_the_users_configuration_says_where_how_and_as_whom(server: Sshd, home: Path) -> None:
    configure(
        home,
        f"Host gpu-*\n  HostName 127.0.0.1\n  Port {server.port}\n  User {server.user}\n"
        f"  IdentityFile {server.key}\n  UserKnownHostsFile {server.known_hosts}\n",
    )
    assert sees(Host("gpu-1"), None)


def test_included_files_count_and_their_blocks_end_with_them(server: Sshd, home: Path) -> None:
    (home / ".ssh/conf.d").mkdir()
    (home / ".ssh/conf.d/one.conf").write_text(f"Host box1\n  HostName 127.0.0.1\n  Port {server.port}\n")
    (home / ".ssh/conf.d/two.conf").write_text("Host unrelated\n  Port 1\n")
    configure(home, f"Include conf.d/*.conf nothing-here\nIdentityFile {server.key}\nHost box*\n  User {server.user}\n")
    endpoint = resolve(Host("box1"))
    assert (endpoint.hostname, endpoint.port, endpoint.identity_files) == ("127.0.0.1", server.port, (server.key,))


def test_an_include_inside_a_block_holds_for_that_block(home: Path) -> None:
    (home / ".ssh/extra").write_text("Port 2200\n")
    configure(home, "Host a\n  Include extra\n  User ua\nHost b\n  User ub\n")
    assert (resolve(Host("a")).port, resolve(Host("a")).user) == (2200, "ua")
    assert (resolve(Host("b")).port, resolve(Host("b")).user) == (22, "ub")


def test_an_include_that_cannot_be_followed_is_an_error(home: Path) -> None:
    (home / ".ssh/extra").write_text("Host z\n  Port 2200\n")
    configure(home, "Host a\n  Include extra\n")
    with pytest.raises(ConnectError, match="Host blocks of its own"):
        resolve(Host("a"))
    configure(home, "Include config\n")
    (home / ".ssh/config2").write_text("Include config2\n")
    with pytest.raises(ConnectError, match="16 deep"):
        resolve(Host("a", ssh_args=f"-F {home}/.ssh/config2"))


@pytest.mark.parametrize("line", ["ProxyUseFdpass yes", "KnownHostsCommand /bin/x", "RevokedHostKeys /etc/revoked"])
def test_an_option_about_trust_or_route_that_is_not_followed_is_refused(home: Path, line: str) -> None:
    configure(home, f"Host a\n  {line}\n")
    with pytest.raises(ConnectError, match=line.split(maxsplit=1)[0].lower()):
        resolve(Host("a"))
    assert resolve(Host("b"))


def test_a_configuration_that_cannot_be_parsed_is_an_error(home: Path) -> None:
    configure(home, "Host a\n  !!!\n")
    with pytest.raises(ConnectError, match="cannot be parsed"):
        resolve(Host("a"))


def test_tokens_of_the_configuration_take_the_inventorys_user_and_port(home: Path) -> None:
    configure(
        home, "Host a\n  ProxyCommand relay %h %p %r %% %n\n  IdentityFile ~/keys/%r@%h\nHost b\n  ProxyJump j-%h\n"
    )
    endpoint = resolve(Host("x", address="a", user="me", port=2200))
    assert endpoint.proxy_command == "relay a 2200 me % a"
    assert endpoint.identity_files == (home / "keys/me@a",)
    assert resolve(Host("b")).jumps == ("j-b",)
    with pytest.raises(ConnectError, match="token %C"):
        resolve(Host("b", ssh_args="-o 'ProxyCommand=x %C'"))


def test_the_inventory_wins_over_the_configuration(home: Path) -> None:
    configure(home, "Host a\n  Port 2200\n  User config\n  HostName real.example\n")
    plain = resolve(Host("a"))
    assert (plain.hostname, plain.port, plain.user) == ("real.example", 2200, "config")
    told = resolve(Host("x", address="a", user="inventory", port=22, variables={"ansible_port": 22}))
    assert (told.hostname, told.port, told.user) == ("real.example", 22, "inventory")
    assert resolve(Host("b")).user == getpass.getuser()


def test_ssh_arguments_are_read_as_ssh_reads_them() -> None:
    found = parse_ssh_args(
        "x", "-J u@b:2 -oPort=24 -o 'User me' -i k1 -ik2 -4 -q -C -oControlMaster=auto -vvv -l other"
    )
    assert found == {
        "proxyjump": ["u@b:2"], "port": ["24"], "user": ["me", "other"], "identityfile": ["k1", "k2"],
        "addressfamily": ["inet"],
    }  # fmt: skip


@pytest.mark.parametrize(
    "args", ["-o Ciphers=none", "-W a:1", "-L 1:b:2", "-oLocalCommand=x", "-w 0", "host", "-J", "-o 'Port", "-", "-R 1"]
)
def test_an_argument_that_is_not_followed_is_an_error_that_names_it(args: str) -> None:
    with pytest.raises(ConnectError, match="box") as caught:
        parse_ssh_args("box", args)
    assert args.replace("-o ", "").replace("-o", "").partition("=")[0].split()[0].strip("'") in caught.value.message


@pytest.mark.parametrize("form", ["-J {d}", "-o ProxyJump={d}", "-oProxyJump=ssh://{d}", "config"])
def test_a_jump_host_is_gone_through(server: Sshd, bastion: Sshd, known: Path, home: Path, form: str) -> None:
    destination = f"{bastion.user}@127.0.0.3:{bastion.port}"
    hop = f"Host 127.0.0.3\n  IdentityFile {bastion.key}\n"
    if form == "config":
        configure(home, f"{hop}Host 127.0.0.1\n  ProxyJump {destination}\n")
        host = server.host(ssh_args="")
    else:
        configure(home, hop)
        host = server.host(ssh_args=form.format(d=destination))
    before = bastion.log().count("Accepted publickey")
    assert sees(host, known)
    assert bastion.log().count("Accepted publickey") == before + 1


def test_two_jump_hosts_in_a_row(server: Sshd, bastion: Sshd, known: Path, home: Path) -> None:
    configure(
        home,
        f"Host first\n  HostName 127.0.0.3\n  Port {bastion.port}\n  IdentityFile {bastion.key}\n"
        f"Host second\n  HostName 127.0.0.2\n  Port {server.port}\n  IdentityFile {server.key}\n",
    )
    first, second_logins = bastion.log().count("Accepted publickey"), server.log().count("Accepted publickey")
    assert sees(server.host(ssh_args="-J first,second"), known)
    assert bastion.log().count("Accepted publickey") == first + 1
    assert server.log().count("Accepted publickey") == second_logins + 2  # as the second hop, and as the target
    target = resolve(server.host(ssh_args="-J first,second"))
    second = resolve_jump(target)
    assert (second.who, second.jumps) == ("jump host second of box", ("first",))
    assert resolve_jump(second).who == "jump host first of box"


def test_the_host_key_of_a_jump_host_is_verified_too(server: Sshd, bastion: Sshd, home: Path) -> None:
    configure(home, f"Host 127.0.0.3\n  IdentityFile {bastion.key}\n")
    host = server.host(ssh_args=f"-J 127.0.0.3:{bastion.port}")
    with pytest.raises(HostKeyError, match=r"jump host 127\.0\.0\.3 of box: its host key is not known"):
        sees(host, server.known_hosts)


def test_a_jump_host_that_refuses_the_key_is_the_one_named(
    server: Sshd, bastion: Sshd, known: Path, home: Path
) -> None:
    with pytest.raises(AuthenticationError, match=r"jump host 127\.0\.0\.3 of box"):
        sees(server.host(ssh_args=f"-J 127.0.0.3:{bastion.port}"), known)


def test_a_target_that_the_jump_host_cannot_reach_says_so(server: Sshd, bastion: Sshd, known: Path, home: Path) -> None:
    configure(home, f"Host 127.0.0.3\n  IdentityFile {bastion.key}\n")
    with pytest.raises(ConnectError, match=r"the jump host .* cannot reach 127\.0\.0\.1 port 1"):
        sees(server.host(port=1, ssh_args=f"-J 127.0.0.3:{bastion.port}"), known)


def test_jump_hosts_in_a_circle_end(home: Path) -> None:
    configure(home, "Host a\n  ProxyJump b\nHost b\n  ProxyJump a\n")
    endpoint = resolve(Host("a"))
    with pytest.raises(ConnectError, match="circle"):
        for _ in range(20):
            endpoint = resolve_jump(endpoint)


def test_a_jump_written_wrongly_is_an_error(home: Path) -> None:
    with pytest.raises(ConnectError, match="is not"):
        resolve_jump(resolve(Host("a", ssh_args="-J u@@b:x:y")))


@pytest.mark.parametrize("where", ["args", "config"])
def test_a_proxy_command_carries_the_connection_and_ends_with_it(
    server: Sshd, home: Path, tmp_path: Path, where: str
) -> None:
    relay = tmp_path / "relay.py"
    relay.write_text(RELAY)
    command = f"sh -c '{sys.executable} {relay} %h %p; sleep 600'"  # outlives its socket, unless it is ended
    if where == "config":
        configure(home, f"Host 127.0.0.1\n  ProxyCommand {command}\n")
        host = server.host(ssh_args="")
    else:
        host = server.host(ssh_args=f'-F none -o ProxyCommand="{command}"')

    def relays() -> list[str]:
        lines = (command_line(path.name) for path in Path("/proc").glob("[0-9]*"))
        return [line.decode(errors="replace") for line in lines if str(relay).encode() in line]

    with connect(host, known_hosts=server.known_hosts) as transport:
        assert transport.run(["echo", "x"]).stdout == b"x\n"
        assert relays()
    assert eventually(lambda: not relays())


def test_a_proxy_command_that_ends_at_once_is_an_error(server: Sshd) -> None:
    with pytest.raises(ConnectError, match="closed the connection before it said SSH"):
        sees(server.host(ssh_args="-F none -o ProxyCommand=false"), server.known_hosts)


@pytest.mark.parametrize("name", ["$(touch x)", "a;b", "`id`", "a b", "-oProxyCommand=x"])
def test_a_host_name_never_becomes_a_shell_command(name: str, home: Path) -> None:
    with pytest.raises(ConnectError):
        resolve(Host("box", address=name, ssh_args="-F none -o 'ProxyCommand=nc %h %p'"))


def test_none_switches_a_proxy_off(server: Sshd, home: Path) -> None:
    configure(home, "Host *\n  ProxyJump nowhere.invalid\n")
    assert resolve(server.host(ssh_args="")).jumps == ("nowhere.invalid",)
    assert sees(server.host(ssh_args=f"-o ProxyJump=none -o UserKnownHostsFile={server.known_hosts}"), None)


def test_an_address_of_version_6_and_a_jump_with_brackets_are_split_rightly() -> None:
    jump = resolve_jump(resolve(Host("x", address="::1", ssh_args="-F none -J me@[fe80::1]:2200")))
    assert (jump.hostname, jump.port, jump.user) == ("fe80::1", 2200, "me")
