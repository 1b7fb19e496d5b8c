"""The command that starts a container: what a shell makes of it with an engine that writes down its arguments."""

from __future__ import annotations

import html
import json
import os
import re
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from provision.bundle import Bundle
from provision.commands import CheckOptions, Selection, report, validate
from provision.errors import ConnectionLost, UsageError
from provision.hosts import Host, local_host
from provision.remote import container
from provision.remote.container import in_image
from provision.remote.staging import bundle_argv
from provision.remote.start import not_started, start_argv
from provision.report import FORMATS
from provision.store import RunDirectory, rejudge
from provision.transport import connect
from tests.unit.judging import answered, good
from tests.unit.test_store import manifest
from validators.schema import CheckRequest, Plan, encode

IMAGE = "nvcr.io/nvidia/pytorch:25.10-py3"
PROGRAM = ["python3", "-c", "print('a b')", "$(touch pwned)", "-v", "bringup-data=x", ""]


def engine(folder: Path, name: str = "docker", script: str = "") -> Path:
    """An engine in `folder` that writes its arguments, one a line, into ./arguments."""
    program = folder / name
    program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > "{folder}/arguments"\n{script}\n')
    program.chmod(0o755)
    return folder / "arguments"


def arguments(host: Host, folder: Path, data: dict[str, str] | None = None, *, gpu: bool = True) -> list[str]:
    """What the engine in `folder` is given; the host has no other."""
    argv = container.start(host, PROGRAM, data or {}, gpu=gpu)
    subprocess.run(["/bin/sh", *argv[1:]], env={"PATH": str(folder)}, cwd=folder, timeout=20, check=True)
    return (folder / "arguments").read_text().split("\n")[:-1]


def box(**variables: object) -> Host:
    return in_image(Host("box", "192.0.2.1", variables=variables, python="/opt/python3.12"), IMAGE)


def test_the_program_reaches_the_container_word_by_word_and_nothing_of_it_is_run(tmp_path: Path) -> None:
    engine(tmp_path)
    found = arguments(box(), tmp_path)
    assert found[-len(PROGRAM) - 1 :] == [IMAGE, *PROGRAM]
    assert found[:3] == ["run", "--rm", "-i"]
    assert {"--gpus=all", "--shm-size=8g", "memlock=-1", "stack=67108864"} <= set(found)
    assert not (tmp_path / "pwned").exists()


def test_folders_are_shown_read_only_and_one_that_the_host_lacks_is_not_made_there(tmp_path: Path) -> None:
    engine(tmp_path)
    odd = tmp_path / "-a b:c $(x)'é"
    odd.mkdir()
    found = arguments(box(), tmp_path, {"cifar10": str(odd), "mnist": str(tmp_path / "none")})
    mounts = [one for one in found if "mount" in one or "none" in one]
    assert mounts == [f"--mount=type=bind,src={odd},dst={odd},readonly"]
    assert "-v" not in found[: found.index(IMAGE)], "-v would make a folder that is not there"
    assert found[-len(PROGRAM) - 1 :] == [IMAGE, *PROGRAM]
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("folder", ["/data,readonly=false", '/da"ta', "/data\nx", "data"])
def test_a_folder_that_would_say_more_than_its_name_is_refused(folder: str) -> None:
    with pytest.raises(UsageError, match="cannot be shown to a container"):
        container.start(box(), PROGRAM, {"cifar10": folder})


@pytest.mark.parametrize("image", ["--privileged", "-v", "a b", "a;b", "$(x)", "a\nb", "", "a" * 300, "ä"])
def test_what_is_no_image_is_refused_before_any_host_is_touched(image: str) -> None:
    with pytest.raises(UsageError, match="is not an image"):
        in_image(Host("box", "box"), image)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("bringup_container_engine", "docker; rm -rf /"),
        ("bringup_container_engine", "/bin/sh"),
        ("bringup_container_gpus", "all"),
        ("bringup_container_shm_size", "8g --privileged"),
        ("bringup_container_shm_size", "-1"),
        ("bringup_container_args", "'unclosed"),
        ("bringup_container_args", ["a", 1]),
        ("bringup_container_args", 5),
        ("bringup_container_ulimits", ["a\0b"]),
    ],
)
def test_a_variable_that_cannot_be_meant_is_refused_by_name(variable: str, value: object) -> None:
    with pytest.raises(UsageError, match=variable):
        box(**{variable: value})


def test_the_inventorys_own_words_come_one_by_one(tmp_path: Path) -> None:
    engine(tmp_path)
    found = arguments(box(bringup_container_args='-e "A=b c" --network=host', bringup_container_ulimits=""), tmp_path)
    assert found[found.index("-e") + 1] == "A=b c"
    assert "--ulimit" not in found


def test_podman_gets_the_gpus_by_cdi_docker_by_its_runtime_and_a_cpu_run_none(tmp_path: Path) -> None:
    engine(tmp_path, "podman")
    assert "--device=nvidia.com/gpu=all" in arguments(box(), tmp_path)
    engine(tmp_path, "docker")
    assert "--gpus=all" in arguments(box(), tmp_path), "docker goes before podman"
    assert "--gpus=all" in arguments(box(bringup_container_gpus="gpus", bringup_container_engine="podman"), tmp_path)
    assert "--device=nvidia.com/gpu=all" in arguments(box(bringup_container_gpus="cdi"), tmp_path)
    for found in (arguments(box(), tmp_path, gpu=False), arguments(box(bringup_container_gpus="none"), tmp_path)):
        assert not [one for one in found if "gpu" in one]


def test_the_hosts_interpreter_is_for_the_host_and_the_images_for_the_image() -> None:
    bundle = Bundle(b"", "0" * 64)
    plan = Plan((CheckRequest("matmul", 30.0),), 60.0)
    assert "/opt/python3.12" not in start_argv(box(), bundle, plan, "mark", 60)
    assert bundle_argv(box(), bundle, "mark", 60, "data")[0] == "/opt/python3.12", "data comes to the host itself"
    kept = box(bringup_torch_python="/host/python", bringup_container_torch_python="/image/python", expect_gpus=8)
    assert kept.variables == {"bringup_torch_python": "/image/python"}


@pytest.mark.parametrize(
    ("status", "said", "told"),
    [
        (127, 'docker: exec: "python3": executable file not found in $PATH: unknown.', f"the image {IMAGE} has no pyt"),
        (127, "Error: crun: executable file `python3` not found in $PATH: No such file", f"the image {IMAGE} has no p"),
        (127, "/opt/nvidia/nvidia_entrypoint.sh: line 67: exec: python3: not found", f"the image {IMAGE} has no pyth"),
        (127, "python3: command not found", f"the image {IMAGE} has no python3"),
        (255, "exec /usr/bin/python3: exec format error", "for another kind of processor"),
        (125, "docker: failed to connect to the docker API at unix:///var/run/docker.sock", "daemon does not run"),
        (125, "docker: Error: failed to discover GPU vendor from CDI: no known GPU vendor found", "no GPUs"),
        (125, "Error: setting up CDI devices: unresolvable CDI devices nvidia.com/gpu=all", "no CDI description"),
        (2, "usage: server [-h]", "python3 did not start the checks; its exit status is 2"),
    ],
)
def test_what_an_engine_says_is_told_in_words(status: int, said: str, told: str) -> None:
    problem = not_started(box(), status, said.encode())
    assert told in problem.message
    assert "/opt/python3.12" not in problem.message
    assert problem.hint


def pulling(tmp_path: Path, *script: str, restore_signals: bool = True) -> subprocess.Popen[bytes]:
    engine(tmp_path, "docker", "\n".join(['case "$1" in image) exit 1;; esac', *script]))
    argv = ["/bin/sh", "-c", container._PULL, "sh", "auto", IMAGE]
    path = f"{tmp_path}:{os.environ['PATH']}"
    return subprocess.Popen(
        argv, env={"PATH": path}, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        start_new_session=True, restore_signals=restore_signals,
    )  # fmt: skip


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("ignored", [False, True], ids=["as sshd starts it", "SIGPIPE ignored"])
def test_a_pull_ends_when_nobody_reads_any_more(tmp_path: Path, *, ignored: bool) -> None:
    before = signal.signal(signal.SIGPIPE, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        process = pulling(tmp_path, f'echo $$ > "{tmp_path}/pid"', "exec sleep 60", restore_signals=not ignored)
    finally:
        signal.signal(signal.SIGPIPE, before)
    try:
        assert process.stdout
        assert process.stdout.readline() == b"missing\n"
        file = tmp_path / "pid"
        while not (file.exists() and file.read_text().strip()):
            time.sleep(0.05)
        pull = int(file.read_text())
        assert alive(pull)
        process.stdout.close()  # the connection is lost
        end = time.monotonic() + 10
        while alive(pull) and time.monotonic() < end:
            time.sleep(0.1)
        assert not alive(pull)
        process.wait(10)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_ctrl_c_ends_a_pull(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine(tmp_path, script='[ "$1" = image ] && exit 1; exec sleep 60')
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    began, told = time.monotonic(), []
    with connect(local_host()) as transport, pytest.raises(ConnectionLost, match="interrupted"):
        container.pull(box(), transport, told.append, lambda: time.monotonic() - began > 1)
    assert told == [f"pulling {IMAGE}"]
    assert time.monotonic() - began < 20


def test_a_pull_that_fails_gives_the_engines_status(tmp_path: Path) -> None:
    with pulling(tmp_path, "exit 7") as process:
        process.communicate(timeout=20)
    assert process.returncode == 7


def test_without_an_engine_nothing_is_run(tmp_path: Path) -> None:
    argv = container.start(box(), PROGRAM, {})
    done = subprocess.run(["/bin/sh", *argv[1:]], env={"PATH": str(tmp_path)}, capture_output=True, check=False)
    assert done.returncode == 127
    assert "no docker and no podman" in not_started(box(), 127, done.stderr).message


NAMES = ("box", f"box in {IMAGE}", f"box in {IMAGE}@sha256:{'0' * 64}")


def rendered(folder: Path, run: Path) -> dict[str, str]:
    """`bringup report` on the run, in every format."""
    found = {}
    for format in FORMATS:
        report(run, format, folder / format)
        found[format] = (folder / format).read_text(encoding="utf-8")
    return found


def test_a_run_with_containers_is_read_back_and_rendered_with_every_name_apart(tmp_path: Path) -> None:
    made = RunDirectory.create(tmp_path / "runs", manifest(*(Host(name, "192.0.2.1") for name in NAMES)))
    for name in NAMES:
        run = replace(answered(good()), host=name)
        made.records_path(name).write_bytes(b"".join(encode(record) for record in run.records))
        made.finish_host(run)
    folders = list((made.path / "hosts").iterdir())
    assert len(folders) == len(NAMES)
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+", one.name) for one in folders)
    assert [host.name for host in rejudge(RunDirectory.open(made.path)).hosts] == list(NAMES)
    found = rendered(tmp_path, made.path)
    anchors = re.findall(r'<article class="host [^"]*" id="([^"]*)"', found["html"])
    assert len(set(anchors)) == len(NAMES)
    assert all(re.fullmatch(r"[A-Za-z][\w.-]*", one) and f'href="#{one}"' in found["html"] for one in anchors)
    suites = ElementTree.fromstring(found["junit"]).iter("testsuite")  # noqa: S314 - written here
    assert [one.get("name") for one in suites] == list(NAMES)
    assert [one["name"] for one in json.loads(found["json"])["hosts"]] == list(NAMES)
    assert f"| {NAMES[1]} |" in html.unescape(found["md"])


def test_an_unreachable_host_and_its_container_are_errors_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("inventory.ini").write_text("box ansible_host=127.0.0.1 ansible_port=9 ansible_user=root\n")
    options = CheckOptions(only=("matmul",), image=IMAGE)
    code = validate(Selection(inventories=("inventory.ini",)), options, runs=tmp_path / "runs", as_json=True)
    hosts = json.loads(capsys.readouterr().out)["hosts"]
    assert code == 3
    assert [one["name"] for one in hosts] == ["box", f"box in {IMAGE}"]
    assert [one["status"] for one in hosts] == ["ERROR", "ERROR"]
    assert all("127.0.0.1 port 9" in one["headline"] for one in hosts)
    (run,) = (tmp_path / "runs").iterdir()
    assert set(rendered(tmp_path, run)) == set(FORMATS)
