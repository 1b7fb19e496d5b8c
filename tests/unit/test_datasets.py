"""Datasets on a host: found, downloaded, and refused where one byte is not as published."""

from __future__ import annotations

import functools
import gzip
import http.server
import io
import os
import tarfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from provision.bundle import build_bundle
from provision.catalogue import load_catalogue
from provision.data import Offers, offers
from provision.errors import UsageError
from tests.data import cifar10_folder, mnist_folder
from validators.check import Context
from validators.probes import datasets, download
from validators.probes.datasets import DamagedData, File, NoData, find
from validators.schema import CheckInfo, CheckRequest, Plan

NOWHERE = {"mnist_url": "http://127.0.0.1:9/mnist", "cifar10_url": "http://127.0.0.1:9/cifar"}
IMAGES, LABELS = "train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"
MD5 = "27ae3e4e09519cfbb04c329615203637"
CHECK = CheckInfo("cifar", "", "", (), 3, 1.0, 60.0, False, (), data=("cifar10", "mnist"))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own; what is in it by default: nothing."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gpu-bringup" / "data"


def context(**data: str) -> Context:
    request = CheckRequest("cifar", 60.0)
    return Context(CHECK, request, Plan((request,), 60.0, data={**NOWHERE, **data}), lambda record: None)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """MNIST somewhere below a folder of the user's."""
    folder = tmp_path / "given" / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for file in mnist_folder().iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_real_cifar10_and_mnist_have_the_published_md5s() -> None:
    assert datasets.damage(str(cifar10_folder()), "cifar10") == ()
    assert datasets.damage(str(mnist_folder()), "mnist") == ()


def test_a_named_folder_is_used_where_it_is_and_its_subfolders_are_looked_through(copy: Path) -> None:
    found = find(context(mnist=str(copy.parents[1])), "mnist")
    assert found == datasets.Dataset(str(copy), f"{copy.parents[1]} on the host")


def test_a_folder_behind_a_link_is_found_and_a_pipe_in_it_is_not_waited_for(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "mnist").symlink_to(copy)
    linked = tmp_path / "linked" / "mnist"
    assert find(context(mnist=str(tmp_path / "linked")), "mnist").folder == str(linked)
    (copy / IMAGES).unlink()
    os.mkfifo(copy / IMAGES)
    with pytest.raises(DamagedData, match=f"{IMAGES} is not a file"):
        find(context(mnist=str(copy)), "mnist")


def test_one_flipped_byte_in_a_named_folder_is_an_error_that_names_file_and_md5s(copy: Path) -> None:
    flip(copy / LABELS)
    with pytest.raises(DamagedData, match=rf"{LABELS}: MD5 [0-9a-f]{{32}}, expected {MD5}; copy it again"):
        find(context(mnist=str(copy)), "mnist")


def test_a_half_copied_folder_names_what_is_short_and_what_is_missing(copy: Path) -> None:
    (copy / IMAGES).write_bytes((copy / IMAGES).read_bytes()[:1000])
    (copy / LABELS).unlink()
    with pytest.raises(DamagedData, match=f"{IMAGES} has 1000 bytes where 47040016 are expected; {LABELS} is missing"):
        find(context(mnist=str(copy)), "mnist")


def test_a_named_folder_with_nothing_of_it_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DamagedData, match="holds no mnist"):
        find(context(mnist=str(tmp_path)), "mnist")
    (tmp_path / LABELS).mkdir()
    with pytest.raises(DamagedData, match="holds no mnist"):
        find(context(mnist=str(tmp_path)), "mnist")


def test_without_data_and_network_the_reason_says_how_to_give_it() -> None:
    with pytest.raises(NoData, match=r"127\.0\.0\.1:9.* cannot be reached .*--data DIR.* bringup_data_mnist=/path"):
        find(context(), "mnist")


def test_a_home_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(NoData, match=r"no mnist on this host: .*cache"):
        find(context(), "mnist")


def test_a_link_in_the_cache_is_not_followed(cache: Path, copy: Path) -> None:
    cache.mkdir(parents=True, mode=0o700)
    cache.parent.chmod(0o700)
    (cache / "mnist").symlink_to(copy)
    with pytest.raises(NoData, match="is not only ours to write"):
        find(context(), "mnist")


class Server(http.server.SimpleHTTPRequestHandler):
    """Files of a folder; what is asked for is counted."""

    asked: list[str]
    files: Mapping[str, bytes]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path.endswith("slow.gz"):
            time.sleep(5)
        body = self.files.get(self.path.rpartition("/")[2])
        self.send_response(200 if body is not None else 404)
        self.end_headers()
        if body is not None:
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def mirror() -> Iterator[tuple[str, dict[str, bytes], list[str]]]:
    """An address, the files that it serves, and what was asked of it."""
    files: dict[str, bytes] = {}
    asked: list[str] = []
    handler = type("Handler", (Server,), {"files": files, "asked": asked})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/data/", files, asked
        server.shutdown()


Mirror = tuple[str, dict[str, bytes], list[str]]


@functools.cache
def packed() -> Mapping[str, bytes]:
    return {f"{file.name}.gz": gzip.compress(file.read_bytes(), 1) for file in mnist_folder().iterdir()}


def test_what_is_nowhere_is_downloaded_once_and_found_in_the_cache_from_then_on(mirror: Mirror, cache: Path) -> None:
    address, files, asked = mirror
    files.update(packed())
    first = find(context(mnist_url=address), "mnist")
    assert first == datasets.Dataset(str(cache / "mnist"), f"downloaded from {address}")
    assert find(context(), "mnist").origin == "the host's cache"
    assert len(asked) == 4
    assert {file.name for file in (cache / "mnist").iterdir()} == {file.name for file in mnist_folder().iterdir()}


def test_a_flipped_byte_in_the_cache_is_said_and_that_file_alone_downloaded_again(mirror: Mirror, cache: Path) -> None:
    address, files, asked = mirror
    files.update(packed())
    find(context(mnist_url=address), "mnist")
    flip(cache / "mnist" / LABELS)
    with pytest.raises(NoData, match=f"is damaged .{LABELS}: MD5 .*expected {MD5}"):
        find(context(), "mnist")
    asked.clear()
    again = find(context(mnist_url=address), "mnist")
    assert "is damaged" in again.origin
    assert asked == [f"/data/{LABELS}.gz"]


def test_a_broken_mirror_leaves_nothing_that_would_be_used(mirror: Mirror, cache: Path) -> None:
    address, files, _ = mirror
    files.update(packed())
    for broken, said in (
        (gzip.compress(b"another file"), "expected 6bbc9ace"),
        (files[f"{IMAGES}.gz"][:5000], "is broken"),
        (b"<html>Log in to the hotel's network", "is broken"),
    ):
        files[f"{IMAGES}.gz"] = broken
        with pytest.raises(NoData, match=said):
            find(context(mnist_url=address), "mnist")
        assert IMAGES not in {file.name for file in (cache / "mnist").iterdir()}
        assert not list((cache / "mnist").glob("*.part"))


@pytest.mark.parametrize("first", ["the opener's deadline", "ours"])
def test_a_slow_mirror_ends_at_the_deadline(first: str, mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "ANSWER_S", 0.5)
    real = urllib.request.urlopen
    own = 0.1 if first != "ours" else 9.0
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: real(url, timeout=own))
    with pytest.raises(TimeoutError, match="did not answer within"):
        download.Download(f"{mirror[0]}slow.gz", 100, time.monotonic() + 9, lambda words, fraction: None)


class Endless:
    """What a hostile archive unpacks to."""

    left = 100

    def read(self, size: int = -1) -> bytes:
        self.left -= size
        assert self.left > 0, "more was read than the file can have"
        return bytes(size)


def test_only_the_wanted_members_of_an_archive_are_written_and_no_more_than_their_size(tmp_path: Path) -> None:
    (tmp_path / "into").mkdir()
    wanted = File("good.bin", 4, "098f6bcd4621d373cade4e832627b4f6", "some.tar.gz")  # MD5 of "test"
    huge = File("huge.bin", 4, "098f6bcd4621d373cade4e832627b4f6", "some.tar.gz")

    def tar(*members: tuple[str, bytes, bytes]) -> io.BytesIO:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
            for name, kind, content in members:
                info = tarfile.TarInfo(name)
                info.type, info.size, info.linkname = kind, len(content), "/etc/passwd"
                archive.addfile(info, io.BytesIO(content))
        buffer.seek(0)
        return buffer

    evil = tar(
        ("../evil.bin", tarfile.REGTYPE, b"evil"),
        ("a/good.bin", tarfile.SYMTYPE, b""),
        ("../../good.bin", tarfile.REGTYPE, b"test"),
    )
    datasets.unpack(evil, "some.tar.gz", [wanted], str(tmp_path / "into"))
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.bin")] == ["into/good.bin"]
    assert not (tmp_path / "into" / "good.bin").is_symlink()
    with pytest.raises(ValueError, match=r"huge\.bin: MD5"):
        datasets.store(Endless(), huge, str(tmp_path / "into"))
    with pytest.raises(ValueError, match=r"some\.tar\.gz has no huge\.bin"):
        datasets.unpack(tar(), "some.tar.gz", [huge], str(tmp_path / "into"))


def offered(folder: Path | None, *names: str) -> Offers:
    catalogue = [CheckInfo("cifar", "", "", (), 3, 1.0, 60.0, False, (), data=names)]
    return offers(build_bundle(), [Plan((CheckRequest("cifar", 60.0),), 60.0)], catalogue, folder)


def folders(made: Offers) -> dict[str, Path]:
    """Dataset -> the one folder of its offered files, all of them."""
    for name, paths in made.paths.items():
        assert {Path(path).name for path in paths} == {file.name for file in datasets.KNOWN[name].files}
    return {name: folder for name, paths in made.paths.items() for folder in {Path(path).parent for path in paths}}


def test_the_operators_folder_may_hold_archives_and_what_is_loose_goes_before_them(tmp_path: Path, cache: Path) -> None:
    archives = tmp_path / "archives"
    archives.mkdir()
    for name, data in packed().items():
        (archives / name).write_bytes(data)
    made = offered(archives, "cifar10", "mnist")
    assert (folders(made), made.named, made.notes) == ({"mnist": cache / "mnist"}, frozenset({"mnist"}), ())
    assert folders(offered(mnist_folder(), "mnist")) == {"mnist": mnist_folder()}
    assert folders(offered(None, "mnist")) == {"mnist": cache / "mnist"}


def test_the_official_archive_of_cifar10_is_unpacked(tmp_path: Path, cache: Path) -> None:
    with tarfile.open(tmp_path / "cifar-10-binary.tar.gz", "w:gz", compresslevel=0) as archive:
        archive.add(cifar10_folder(), "cifar-10-batches-bin")
    assert folders(offered(tmp_path, "cifar10")) == {"cifar10": cache / "cifar10"}
    assert datasets.damage(str(cache / "cifar10"), "cifar10") == ()


def test_a_broken_folder_of_the_operators_is_an_error_before_any_host(copy: Path, tmp_path: Path) -> None:
    flip(copy / LABELS)
    with pytest.raises(UsageError, match=f"--data .*{LABELS}: MD5 .*expected {MD5}"):
        offered(copy, "mnist")
    with pytest.raises(UsageError, match="no such folder"):
        offered(tmp_path / "nowhere", "mnist")
    with pytest.raises(UsageError, match="holds nothing of cifar10"):
        offered(tmp_path, "cifar10")
    assert offered(None, "cifar10") == Offers()


def test_a_named_folder_goes_before_what_a_hosts_variable_names() -> None:
    catalogue = [CHECK]
    plan = Plan((CheckRequest("cifar", 60.0),), 60.0, data={"mnist": "/srv/mnist", "mnist_url": "http://m"})
    kept = Offers({"mnist": ("/here/a",)})
    assert kept.job(kept.plan(plan), catalogue) == {"cifar10": ()}
    named = Offers({"mnist": ("/here/a",)}, frozenset({"mnist"}))
    assert named.job(named.plan(plan), catalogue) == {"cifar10": (), "mnist": ("/here/a",)}
    assert named.plan(plan).data == {"mnist_url": "http://m"}


def test_data_that_nothing_trains_on_is_said() -> None:
    assert "was not needed" in offered(mnist_folder()).notes[0]


def test_every_dataset_that_a_check_declares_is_known() -> None:
    declared = {name for info in load_catalogue(build_bundle()) for name in info.data}
    assert declared <= set(datasets.KNOWN)
