"""Inventories of every kind that Ansible reads, and every kind of mistake in them."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from provision.errors import InventoryError
from provision.hosts import Host, local_host, read_inventory

ROOT = Path(__file__).parents[2]


def write(directory: Path, text: str, name: str = "inventory.ini") -> Path:
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def one(path: Path, limit: str = "") -> Host:
    (host,) = read_inventory(path, limit)
    return host


def wrong(path: Path | str, limit: str = "") -> InventoryError:
    with pytest.raises(InventoryError) as caught:
        read_inventory(path, limit)
    return caught.value


def names(path: Path, limit: str) -> list[str]:
    return [host.name for host in read_inventory(path, limit)]


def test_every_connection_variable_arrives_in_its_field(tmp_path: Path) -> None:
    host = one(
        write(
            tmp_path,
            "[gpu]\nbox ansible_host=192.0.2.7 ansible_port=2222 ansible_user=me ansible_ssh_private_key_file=~/k "
            "ansible_ssh_common_args='-J bastion' ansible_ssh_extra_args='-o Port=1' ansible_become=yes "
            "ansible_python_interpreter=/opt/py/bin/python3\n[all:vars]\nexpect_gpu_count=8\n",
        )
    )
    assert host == Host(
        name="box",
        address="192.0.2.7",
        port=2222,
        user="me",
        private_key_file="~/k",
        ssh_args="-J bastion -o Port=1",
        python="/opt/py/bin/python3",
        become=True,
        groups=("gpu",),
        variables={"expect_gpu_count": 8, "ansible_port": 2222},
    )


def test_what_is_not_said_is_left_to_ssh(tmp_path: Path) -> None:
    assert one(write(tmp_path, "box ansible_python_interpreter=auto_silent\n")) == Host("box", address="box")


def test_expect_variables_keep_their_types(tmp_path: Path) -> None:
    text = (
        "box expect_a=8 expect_b=True expect_c='NVIDIA H200' expect_d=1.5 bringup_x=yes other=1\n"
        '[all:vars]\nexpect_e="12.10"\nexpect_f=[1, "a"]\nexpect_g=NVIDIA H200\n'
    )
    assert one(write(tmp_path, text)).variables == {
        "expect_a": 8, "expect_b": True, "expect_c": "NVIDIA H200", "expect_d": 1.5, "bringup_x": "yes",
        "expect_e": "12.10", "expect_f": [1, "a"], "expect_g": "NVIDIA H200",
    }  # fmt: skip


def test_a_local_connection_is_local_and_any_other_is_an_error(tmp_path: Path) -> None:
    assert one(write(tmp_path, "me ansible_connection=local\n")).connection == "local"
    assert local_host().connection == "local"
    for kind in ("docker", "winrm"):
        assert f"ansible_connection={kind}" in wrong(write(tmp_path, f"me ansible_connection={kind}\n")).message


def test_ranges_yaml_and_version_6_addresses(tmp_path: Path) -> None:
    assert names(write(tmp_path, "gpu[01:03].example\n"), "") == [f"gpu0{n}.example" for n in (1, 2, 3)]
    path = write(tmp_path, "all:\n  hosts:\n    six:\n      ansible_host: 'fe80::1'\n      expect_on: true\n", "a.yml")
    host = one(path)
    assert (host.address, host.variables) == ("fe80::1", {"expect_on": True})
    assert one(write(tmp_path, "six ansible_host=::1\n")).address == "::1"


def test_templates_are_worked_out_and_one_that_cannot_be_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path, 'b ansible_host="{{ inventory_hostname }}.{{ zone }}"\n[all:vars]\nzone=example.net\n')
    assert one(path).address == "b.example.net"
    error = wrong(write(tmp_path, 'b ansible_host="{{ nowhere }}"\n'))
    assert "host b: the variable ansible_host cannot be worked out" in error.message
    assert "nowhere" in error.message


def test_group_and_host_variables_beside_the_inventory_count(tmp_path: Path) -> None:
    write(tmp_path, "expect_gpu_count: 8\nansible_user: group\n", "group_vars/gpu/parts.yml")
    write(tmp_path, "ansible_user: host\n", "host_vars/box.yml")
    host = one(write(tmp_path, "[gpu]\nbox\n"))
    assert (host.user, host.variables) == ("host", {"expect_gpu_count": 8})


def test_a_directory_and_several_sources_are_one_inventory(tmp_path: Path) -> None:
    write(tmp_path, "[a]\none\n", "dir/01.ini")
    write(tmp_path, "b:\n  hosts:\n    two:\n", "dir/02.yml")
    other = write(tmp_path, "three\n")
    assert {host.name for host in read_inventory([tmp_path / "dir", other])} == {"one", "two", "three"}
    assert [host.name for host in read_inventory("x1,x2,")] == ["x1", "x2"]


def test_limit_patterns_are_ansibles(tmp_path: Path) -> None:
    path = write(tmp_path, "[a]\na1\na2\nboth\n[b]\nboth\nb1\n")
    assert names(path, "a:!a2") == ["a1", "both"]
    assert names(path, "a:&b") == ["both"]
    assert set(names(path, "b*,a1")) == {"both", "b1", "a1"}
    assert names(path, "~a[12]$") == ["a1", "a2"]
    retry = write(tmp_path, "a2\nb1\n", "retry")
    assert names(path, f"@{retry}") == ["a2", "b1"]


@pytest.mark.parametrize("limit", ["gpu01", "servers:gpu01", "servers:!gpu01", "servers:&gpu01"])
def test_an_unknown_pattern_names_the_close_match(tmp_path: Path, limit: str) -> None:
    """In an exclusion too: a typo there would silently include the host."""
    error = wrong(write(tmp_path, "[servers]\ngpu1\ngpu-10\nother\n"), limit)
    assert "no host or group matches 'gpu01'" in error.message
    assert "did you mean" in error.hint
    assert "gpu1" in error.hint


def test_a_limit_that_leaves_nothing_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path, "[a]\nx\n[b]\ny\n")
    assert "--limit a:&b selects no host" in wrong(path, "a:&b").message
    assert "limit file" in wrong(path, "@/nowhere/retry").message


@pytest.mark.parametrize(
    ("name", "text", "line", "quoted"),
    [
        ("i.ini", "[gpu]\n# comment\n\nbox1 ansible_host\n", 4, "box1 ansible_host"),
        ("i.ini", "[gpu]\nbox\n[gpu:vras]\nx=1\n", 3, "[gpu:vras]"),
        ("i.ini", "[a b]\nbox\n", 1, "[a b]"),
        ("i.ini", "box\n[gpu:vars]\nexpect_gpu_count\n", 3, "expect_gpu_count"),
        ("i.ini", "box\n[nogroup:vars]\nx=1\n", 2, "[nogroup:vars]"),
        ("i.ini", "box ansible_user='me\n", 1, "box ansible_user='me"),
        ("hosts", "ok\nbox[3:1]\n", 2, "box[3:1]"),
        ("hosts", "[g]\nok\nbox[1:\n", 3, "box[1:"),
        ("i.yml", "all:\n  hosts:\n    box: {ansible_host: 1\n    two:\n", 4, "two:"),
        ("i.yml", "all:\n  hsots:\n    box:\n", 2, "hsots:"),
        ("i.yml", "all:\n  hosts: [box]\n", 2, "hosts: [box]"),
        ("i.yml", "all:\n\thosts:\n", 2, "hosts:"),
    ],
)
def test_a_malformed_inventory_quotes_the_line(tmp_path: Path, name: str, text: str, line: int, quoted: str) -> None:
    path = write(tmp_path, text, name)
    error = wrong(path)
    assert f"{path} line {line}: " in error.message
    assert error.message.endswith(f"\n    {line} | {quoted}")


def test_a_yaml_file_is_never_taken_for_an_ini_file(tmp_path: Path) -> None:
    """Ansible tries the next format: a broken YAML file can turn into hosts of strange names."""
    assert "i.yml" in wrong(write(tmp_path, "box: [\n", "i.yml")).message
    assert "i.yml" in wrong(write(tmp_path, "box1\nbox2\n", "i.yml")).message


def test_an_ini_file_that_is_executable_by_accident_is_read(tmp_path: Path) -> None:
    path = write(tmp_path, "box\n")
    path.chmod(0o755)
    assert one(path).name == "box"


def test_one_broken_file_of_a_directory_is_an_error_though_the_others_have_hosts(tmp_path: Path) -> None:
    write(tmp_path, "good\n", "dir/01.ini")
    bad = write(tmp_path, "bad nonsense\n", "dir/02.ini")
    assert f"{bad} line 1" in wrong(tmp_path / "dir").message


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment\n", "[gpu]\n"])
def test_an_empty_inventory_is_an_error(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, text)
    assert wrong(path).message == f"the inventory {path} has no hosts"


def test_a_missing_inventory_is_an_error(tmp_path: Path) -> None:
    assert "does not exist" in wrong(tmp_path / "nowhere.ini").message
    with pytest.raises(InventoryError, match="no inventory was named"):
        read_inventory([])


def test_a_binary_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "inventory.ini"
    path.write_bytes(b"\x00\xff\xfe" * 100)
    assert "is not a host name" in wrong(path).message
    assert "box name" in wrong(write(tmp_path, "x ansible_host='box name'\n")).message


def test_a_dynamic_inventory_is_run(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        '#!/bin/sh\necho \'{"gpu": {"hosts": ["dyn1"]}, '
        '"_meta": {"hostvars": {"dyn1": {"ansible_host": "192.0.2.9", "expect_gpu_count": 4}}}}\'\n',
        "dynamic",
    )
    path.chmod(0o755)
    host = one(path)
    assert (host.name, host.address, host.variables) == ("dyn1", "192.0.2.9", {"expect_gpu_count": 4})


def test_a_dynamic_inventory_that_fails_says_what_it_said(tmp_path: Path) -> None:
    path = write(tmp_path, "#!/bin/sh\necho 'no credentials for the cloud' >&2\nexit 3\n", "dynamic")
    path.chmod(0o755)
    error = wrong(path)
    assert "exit code 3" in error.message
    assert "no credentials for the cloud" in error.message
    path.write_text("#!/bin/sh\necho not json\n")
    assert str(path) in wrong(path).message


@pytest.mark.parametrize("port", ["ssh", "0", "70000", "-1", "2.5"])
def test_a_port_that_is_none_is_an_error(tmp_path: Path, port: str) -> None:
    assert f"host box: ansible_port={port}" in wrong(write(tmp_path, f"box ansible_port={port}\n")).message


SECRETS = (
    "box ansible_password=hunter2-a ansible_become_password=hunter2-b ansible_ssh_pass=hunter2-c "
    "bringup_token=hunter2-d expect_api_key=hunter2-e db_password=hunter2-f "
    'bringup_url="https://{{ db_password }}@x" expect_gpu_count=1\n'
)


def test_no_secret_stays_in_a_host(tmp_path: Path) -> None:
    host = one(write(tmp_path, SECRETS))
    assert "hunter2" not in repr(host)
    assert host.variables == {"expect_gpu_count": 1}


def test_a_quoted_line_hides_what_sounds_secret(tmp_path: Path) -> None:
    error = wrong(write(tmp_path, "box ansible_password=hunter2 ansible_become_pass='a hunter2' nonsense\n"))
    assert "hunter2" not in error.message
    assert "nonsense" in error.message


def test_a_vaults_content_is_used_by_ansible_and_never_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    password = write(tmp_path, "vault-password\n", "pw")
    monkeypatch.setenv("ANSIBLE_VAULT_PASSWORD_FILE", str(password))
    tool = Path(sys.executable).with_name("ansible-vault")
    sealed = subprocess.run(
        [tool, "encrypt_string", "hunter2-vault", "--name", "bringup_note"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    write(tmp_path, f"{sealed}\nexpect_copy: 'x {{{{ bringup_note }}}} y'\nexpect_gpu_count: 2\n", "group_vars/all.yml")
    path = write(tmp_path, "box ansible_host={{bringup_note}}.example\n")
    host = one(path)
    assert host.address == "hunter2-vault.example"  # Ansible's meaning: the vault was opened
    assert host.variables == {"expect_gpu_count": 2}
    monkeypatch.setenv("ANSIBLE_VAULT_PASSWORD_FILE", "")
    assert "hunter2" not in wrong(path).message


def test_a_whole_encrypted_file_without_its_password_is_an_error_about_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ANSIBLE_VAULT_PASSWORD_FILE", raising=False)
    path = write(tmp_path, "box\n")
    write(tmp_path, "$ANSIBLE_VAULT;1.1;AES256\n6162\n", "group_vars/all.yml")
    assert "vault" in wrong(path).message.lower()


def test_the_users_ansible_configuration_does_not_turn_errors_into_warnings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write(
        tmp_path, "[defaults]\nhost_pattern_mismatch=ignore\n[inventory]\nany_unparsed_is_failed=False\n", "ansible.cfg"
    )
    monkeypatch.setenv("ANSIBLE_CONFIG", str(config))
    path = write(tmp_path, "box\n")
    assert wrong(path, "bux").hint == "did you mean box?"
    assert "line 1" in wrong(write(tmp_path, "box nonsense\n")).message


def test_reading_hosts_does_not_import_ansible_here() -> None:
    code = (
        "import sys, provision.hosts, provision.transport; "
        "print([name for name in sys.modules if name in ('ansible', 'paramiko')])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_example_inventory_is_read_and_names_only_what_exists() -> None:
    hosts = {host.name: host for host in read_inventory(ROOT / "inventory.example.ini")}
    assert set(hosts) == {"newbox", "thisbox", "server1", "server2", "server3", "gpu-a", "gpu-b"}
    assert hosts["server1"].address == "server1.example.net"
    assert hosts["server1"].variables["expect_os_version"] == "24.04"
    assert hosts["server1"].variables["expect_gpu_model"] == "NVIDIA H200"
    assert hosts["server3"].variables["expect_memory_total"] == 1000000
    assert hosts["gpu-a"].ssh_args == "-J ec2-user@bastion.example.net"
    assert hosts["gpu-a"].become
    assert hosts["thisbox"].connection == "local"
    known = tomllib.loads((ROOT / "provision/criteria/expectations.toml").read_text())
    used = {name for host in hosts.values() for name in host.variables if name.startswith("expect_")}
    assert used <= set(known)
    assert not re.search(r"password\s*=", (ROOT / "inventory.example.ini").read_text())
