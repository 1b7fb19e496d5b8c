"""Datasets on their way to a host over SSH: sent once, checked there, and never used where they are not whole."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from provision.bundle import Bundle, build_bundle
from provision.hosts import Host
from provision.remote import HostRun, container, validate_host
from provision.remote.staging import stage
from provision.transport.base import Transport
from tests.data import cifar10_folder, mnist_folder
from tests.need import need
from tests.wire.conftest import Box
from tests.wire.planting import bundle_of, outcomes, plan_of, wait_until
from tests.wire.test_cli import COMMAND, environment
from validators.probes import datasets
from validators.schema import Measurement

pytestmark = pytest.mark.timeout(120)
FIND = """
from validators.probes import datasets
try:
    found = datasets.find(ctx, "mnist")
    ctx.measure("n", 1, note=f"{found.folder} | {found.origin}")
except datasets.NoData as problem:
    ctx.measure("n", 0, note=str(problem))
"""
NOWHERE = {"mnist_url": "http://127.0.0.1:9/mnist"}
"""No download in a test: nothing listens on that port."""
IMAGES, LABELS = "train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return bundle_of({"x_find": FIND})


def measured(box: Box, bundle: Bundle, source: Path | None) -> HostRun:
    """A run of a check that looks for MNIST; `source`: where this machine has it."""
    paths = tuple(str(source / file.name) for file in datasets.KNOWN["mnist"].files) if source else ()
    plan = replace(plan_of(["x_find"]), data=NOWHERE)
    run = validate_host(box.host(), replace(box.job(bundle, plan), data={"mnist": paths}))
    assert run.failure is None
    assert outcomes(run.records)["x_find"].status == "ran", outcomes(run.records)["x_find"].detail
    return run


def said(run: HostRun) -> str:
    (one,) = [record for record in run.records if isinstance(record, Measurement)]
    return one.note


@pytest.fixture
def kept(box: Box) -> Path:
    return box.cache / "data" / "mnist"


def fill(kept: Path) -> None:
    """The whole dataset in the host's cache."""
    kept.mkdir(parents=True)
    for folder in (kept.parents[1], kept.parent, kept):
        folder.chmod(0o700)
    for file in mnist_folder().iterdir():
        shutil.copy(file, kept)


def test_it_is_sent_once_and_not_twice(box: Box, bundle: Bundle, kept: Path) -> None:
    run = measured(box, bundle, mnist_folder())
    assert said(run).endswith("| the host's cache")
    assert run.notes == ()
    assert datasets.damage(str(kept), "mnist") == ()
    assert {file.stat().st_mode & 0o777 for file in kept.iterdir()} == {0o600}
    before = {file.name: file.stat().st_mtime_ns for file in kept.iterdir()}
    again = measured(box, bundle, mnist_folder())
    assert said(again).endswith("| the host's cache")
    assert not again.notes
    assert {file.name: file.stat().st_mtime_ns for file in kept.iterdir()} == before


def test_a_cache_that_is_half_copied_or_has_a_flipped_byte_gets_what_it_lacks(
    box: Box, bundle: Bundle, kept: Path
) -> None:
    fill(kept)
    (kept / IMAGES).write_bytes((kept / IMAGES).read_bytes()[:100_000])
    labels = bytearray((kept / LABELS).read_bytes())
    labels[5000] ^= 16
    (kept / LABELS).write_bytes(labels)
    (kept / f"{IMAGES}.99.part").write_bytes(b"an upload that broke off long ago")
    os.utime(kept / f"{IMAGES}.99.part", (0, 0))
    untouched = (kept / "t10k-images-idx3-ubyte").stat().st_mtime_ns
    refused = measured(box, bundle, None)
    assert "is damaged" in said(refused) and LABELS in said(refused) and "--data DIR" in said(refused)
    run = measured(box, bundle, mnist_folder())
    assert said(run).endswith("| the host's cache")
    assert run.notes == (f"mnist in the host's cache was not whole: {IMAGES}, {LABELS}; it is sent again",)
    assert (kept / "t10k-images-idx3-ubyte").stat().st_mtime_ns == untouched
    assert not list(kept.glob("*.part"))


def test_links_that_somebody_left_in_the_cache_are_replaced_and_not_followed(
    box: Box, bundle: Bundle, kept: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "precious"
    mine.write_text("precious")
    kept.mkdir(parents=True)
    for folder in (box.cache, kept.parent, kept):
        folder.chmod(0o700)
    (kept / LABELS).symlink_to(mine)
    assert said(measured(box, bundle, mnist_folder())).endswith("| the host's cache")
    assert mine.read_text() == "precious"
    assert not (kept / LABELS).is_symlink()


@pytest.mark.parametrize("what", ["a link", "open to others", "a file"])
def test_a_cache_that_is_not_ours_alone_is_not_used_and_the_report_says_so(
    box: Box, bundle: Bundle, kept: Path, tmp_path: Path, what: str
) -> None:
    kept.parent.mkdir(parents=True)
    for folder in (box.cache, kept.parent):
        folder.chmod(0o700)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    if what == "a link":
        kept.symlink_to(elsewhere)
    elif what == "open to others":
        kept.mkdir()
        kept.chmod(0o777)
    else:
        kept.write_text("")
    run = measured(box, bundle, mnist_folder())
    assert run.notes[0].startswith("mnist was not brought to the host: the cache cannot be used (")
    assert "no mnist on this host" in said(run)
    assert not list(elsewhere.iterdir())


def test_a_full_disk_is_said_and_the_run_goes_on(box: Box, bundle: Bundle, kept: Path) -> None:
    kept.mkdir(parents=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=9m,mode=700", "none", str(kept)], capture_output=True, check=False
    )
    need(mounted.returncode == 0, "a small file system, which only root can mount", installable=False)
    try:
        for folder in (box.cache, kept.parent):
            folder.chmod(0o700)
        run = measured(box, bundle, mnist_folder())
        assert run.notes == (
            f"mnist was not brought to the host: {IMAGES} was not kept ([Errno 28] No space left on device)",
        )
        assert "no mnist on this host" in said(run)
        assert not list(kept.glob("*.part"))
    finally:
        subprocess.run(["umount", str(kept)], check=True)


def test_a_file_that_changed_on_this_machine_meanwhile_is_not_kept(
    box: Box, bundle: Bundle, kept: Path, tmp_path: Path
) -> None:
    for file in mnist_folder().iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / IMAGES).unlink()
    (tmp_path / IMAGES).write_bytes(bytes(47040016))
    run = measured(box, bundle, tmp_path)
    assert run.notes[0].startswith(f"mnist was not brought to the host: {IMAGES} was not kept ({IMAGES}: MD5 ")
    assert not (kept / IMAGES).exists()


def test_without_a_dataset_here_nothing_is_asked_or_sent(box: Box, bundle: Bundle, kept: Path) -> None:
    run = measured(box, bundle, None)
    assert "data" not in run.timings
    assert "no mnist on this host" in said(run)


SLOWLY = """
import pathlib, sys, time
from provision.remote import staging
on_the_wire = staging._on_the_wire
def slowly(path):
    for number, piece in enumerate(on_the_wire(path)):
        yield piece
        if number == 20:
            pathlib.Path("sending").touch()
            time.sleep(60)
staging._on_the_wire = slowly
from provision.cli import main
main()
"""


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL])
def test_an_operator_who_goes_in_the_middle_leaves_no_file_that_would_be_used(
    box: Box, kept: Path, tmp_path: Path, ending: signal.Signals
) -> None:
    (tmp_path / "inventory.ini").write_text(box.server.inventory_line("box") + "\n")
    process = subprocess.Popen(
        [sys.executable, "-c", SLOWLY, *f"validate -i inventory.ini --only cifar --data {cifar10_folder()}".split()],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    folder = kept.parent / "cifar10"
    try:
        assert wait_until((tmp_path / "sending").exists, 60)
        assert wait_until(lambda: list(folder.glob("*.part")))
        os.kill(process.pid, ending)
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    if ending == signal.SIGINT:
        assert process.returncode == 130, output
        assert b"Traceback" not in output
    assert wait_until(lambda: not list(folder.iterdir())), list(folder.iterdir())


def test_a_container_is_shown_what_its_host_has(
    box: Box, bundle: Bundle, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(kept)
    shown: dict[str, str] = {}

    def start(host: Host, program: Sequence[str], data: Mapping[str, str], *, gpu: bool = True) -> list[str]:
        shown.update(data)
        return list(program)

    monkeypatch.setattr(container, "pull", lambda *_: None)
    monkeypatch.setattr(container, "start", start)
    plan = replace(plan_of(["x_find"]), data=NOWHERE)
    run = validate_host(box.host(image="image"), replace(box.job(bundle, plan), data={"mnist": ()}))
    assert {name: Path(folder).resolve() for name, folder in shown.items()} == {"mnist": kept.resolve()}
    assert said(run) == f"{shown['mnist']} | {shown['mnist']} on the host"


def bringup(*words: str, cache: Path) -> subprocess.CompletedProcess[str]:
    env = {**environment(), "XDG_CACHE_HOME": str(cache)}
    return subprocess.run([*COMMAND, *words], env=env, capture_output=True, text=True, timeout=100, check=False)


def test_what_is_on_this_machine_is_shown(tmp_path: Path) -> None:
    done = bringup("data", "show", "cifar10", cache=tmp_path)
    assert (done.returncode, done.stdout) == (
        1,
        "cifar10 (184 MB): not here; `bringup data fetch` downloads it\n",
    )
    folder = tmp_path / "gpu-bringup" / "data" / "cifar10"
    for file in cifar10_folder().iterdir():
        shutil.copy(file, folder)
    assert bringup("data", "show", "cifar10", cache=tmp_path).stdout == f"cifar10 (184 MB): {folder}\n"
    (folder / "test_batch.bin").write_bytes(b"short")
    broken = bringup("data", "show", "cifar10", cache=tmp_path)
    assert "test_batch.bin has 5 bytes where 30730000 are expected" in broken.stdout
    wrong = bringup("data", "show", "cifar100", cache=tmp_path)
    assert (wrong.returncode, wrong.stderr.splitlines()[0]) == (
        2,
        'error: no dataset is named "cifar100"; did you mean "cifar10"?',
    )


def test_the_catalogue_says_per_level_what_it_is_and_how_long_it_takes(tmp_path: Path) -> None:
    lines = bringup("checks", cache=tmp_path).stdout.splitlines()
    levels = [[cell.strip() for cell in line.split("│")[1:5]] for line in lines if "--level" in line]
    assert [cells[:2] for cells in levels] == [[f"--level {level}", str(level)] for level in (1, 2, 3, 4)]
    assert all(re.fullmatch(r"[\d.]+ (s|min|h)", cells[2]) for cells in levels)
    assert "no load: the audit" in levels[0][3]


def test_a_hostile_host_gets_no_other_file_of_the_users_and_none_twice(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (tmp_path / LABELS).write_text("labels")
    sent: list[bytes] = []

    class Hostile:
        """A host that asks for what it should not have, again and again."""

        returncode = 0

        def send(self, data: bytes) -> None:
            sent.append(data)

        def chunks(self, **_: float) -> Iterator[tuple[str, bytes]]:
            yield "stdout", f'\n{mark()}{{"status":"cached","text":"","python":"3.9.1"}}\n'.encode()
            wants = ["secret", "../secret", str(tmp_path / "secret"), LABELS]
            asked = json.dumps({"name": "mnist", "folder": "", "wants": wants, "trouble": "", "damaged": []}) + "\n"
            yield "stdout", asked.encode()
            yield "stdout", asked.encode()
            yield "stdout", b'{"done": true}\n'

        def close(self) -> None:
            pass

    class Way:
        def start(self, argv: Sequence[str]) -> Hostile:
            self.argv = argv
            return Hostile()

    way = Way()

    def mark() -> str:
        return next(word for word in way.argv if word.startswith("<bringup "))

    stage(
        Host("box"), cast(Transport, way), build_bundle(), {"mnist": (str(tmp_path / LABELS),)},
        tell=lambda _: None, stopped=lambda: False,
    )  # fmt: skip
    assert b"secret" not in b"".join(sent)
    assert b"".join(sent).count(b"labels") == 1
