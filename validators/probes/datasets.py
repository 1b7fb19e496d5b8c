"""The datasets that checks train on: where they are on a host, with the MD5 of every file checked each time.

CIFAR-10 is the official binary version, MNIST the four idx files. What is packed is unpacked into the cache.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import stat
import tarfile
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO, Any, Callable, Dict, Iterable, List, Mapping, Protocol, Tuple, cast

from validators.check import Context
from validators.probes.download import DOWNLOAD_S, Download
from validators.receive import cache_folder

SLACK_BYTES = 32 << 20
"""How much larger than the files themselves what is read for them may be."""
LOOK_IN = 500
"""Folders below a named one that are looked through."""
_PIECE = 1 << 20


@dataclass(frozen=True)
class File:
    """A file of a dataset: its size in bytes, its MD5 in hex, and the archive that it comes in."""

    name: str
    size: int
    md5: str
    archive: str


@dataclass(frozen=True)
class Known:
    """A dataset: its files, and the address of the folder that its archives are downloaded from."""

    address: str
    files: Tuple[File, ...]


def _cifar(name: str, md5: str) -> File:
    return File(name, 10_000 * 3073, md5, "cifar-10-binary.tar.gz")


KNOWN: Mapping[str, Known] = {
    "cifar10": Known(
        "https://www.cs.toronto.edu/~kriz/",
        (
            _cifar("data_batch_1.bin", "5dd7e06a14cb22eb9f671a540d1b7c25"),
            _cifar("data_batch_2.bin", "5ea93a67294ea407fff1d09f752e9692"),
            _cifar("data_batch_3.bin", "942cd6a4bcdd0dd3c604fbe906cb4421"),
            _cifar("data_batch_4.bin", "ae636b3ba5c66a11e91e8cb52e771fcb"),
            _cifar("data_batch_5.bin", "53f37980c15c3d472c316c40844f3f0d"),
            _cifar("test_batch.bin", "803d5f7f4d78ea53de84dbe85f74fb6d"),
        ),
    ),
    "mnist": Known(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        (
            File("train-images-idx3-ubyte", 47040016, "6bbc9ace898e44ae57da46a324031adb", "train-images-idx3-ubyte.gz"),
            File("train-labels-idx1-ubyte", 60008, "a25bea736e30d166cdddb491f175f624", "train-labels-idx1-ubyte.gz"),
            File("t10k-images-idx3-ubyte", 7840016, "2646ac647ad5339dbf082846283269ea", "t10k-images-idx3-ubyte.gz"),
            File("t10k-labels-idx1-ubyte", 10008, "27ae3e4e09519cfbb04c329615203637", "t10k-labels-idx1-ubyte.gz"),
        ),
    ),
}
"""The files in the archives of the CIFAR-10 page, and those of the mirror of MNIST that torchvision uses (the site of
its authors refuses downloads). Computed from the unpacked official archives."""


@dataclass(frozen=True)
class Dataset:
    """A whole dataset: the folder of its files, and in words where it came from."""

    folder: str
    origin: str


class NoData(Exception):
    """This host has no such dataset and cannot get it; the text says why, and how to give it."""


class DamagedData(Exception):
    """The folder that somebody named does not hold the dataset as published; the text names file and MD5s."""


class Readable(Protocol):
    """Whatever bytes are read from."""

    def read(self, size: int = ..., /) -> bytes:
        """At most `size` bytes; none at the end."""


def find(ctx: Context, name: str) -> Dataset:
    """The dataset on this host: the folder that the operator named, else the host's cache, else the download.

    Raises NoData where there is none, DamagedData where the named folder is not what was published.
    """
    named = ctx.plan.data.get(name, "")
    if named:
        folder = taken(named, name)
        if not folder:
            raise DamagedData(f"{named} on the host holds no {name}: none of its files, none of its archives")
        return Dataset(folder, f"{named} on the host")
    address = ctx.plan.data.get(f"{name}_url", "") or KNOWN[name].address
    why: List[str] = []
    try:
        folder = cache(name)
        wrong = damage(folder, name)
        if not wrong:
            _keep(folder)
            return Dataset(folder, "the host's cache")
        if os.listdir(folder):
            why.append(f"its cache {folder} is damaged ({'; '.join(wrong[:3])})")
        download(name, address, folder, ctx.progress)
        return Dataset(folder, f"downloaded from {address}" + "".join(f"; {one}" for one in why))
    except (OSError, ValueError) as problem:
        why.append(str(problem))
    raise NoData(
        f"no {name} on this host: {'; '.join(why)}. Give it with `bringup validate --data DIR`, or name a folder of "
        f"the host: bringup_data_{name}=/path"
    )


def cache(name: str) -> str:
    """The folder for this dataset in the user's cache; made where it is missing. Raises OSError where others could
    write to it, or where it is a link to elsewhere.
    """
    return _own(os.path.join(_own(os.path.join(cache_folder(), "data")), name))


def _own(folder: str) -> str:
    os.makedirs(folder, mode=0o700, exist_ok=True)
    found = os.lstat(folder)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise PermissionError(f"{folder} is not only ours to write")
    return folder


def _keep(folder: str) -> None:
    """What is in use is not of long ago: validators.receive clears its folder of what is."""
    with contextlib.suppress(OSError):
        os.utime(os.path.dirname(folder))


def damage(folder: str, name: str) -> Tuple[str, ...]:
    """What is wrong with each file of the dataset that is not as published; nothing where all are."""
    files = KNOWN[name].files
    with ThreadPoolExecutor(len(files)) as threads:  # 0.1 s for CIFAR-10 where one thread takes 0.3 s
        return tuple(said for said in threads.map(lambda file: _wrong(folder, file), files) if said)


def _wrong(folder: str, file: File) -> str:
    try:
        with open(os.path.join(folder, file.name), "rb", opener=_at_once) as opened:
            found = os.fstat(opened.fileno())
            if not stat.S_ISREG(found.st_mode):
                return f"{file.name} is not a file"
            if found.st_size != file.size:
                return f"{file.name} has {found.st_size} bytes where {file.size} are expected"
            digest = _md5()
            for piece in _pieces(opened, file.size):
                digest.update(piece)
    except FileNotFoundError:
        return f"{file.name} is missing"
    except OSError as problem:
        return f"{file.name} cannot be read ({problem.strerror})"
    return "" if digest.hexdigest() == file.md5 else f"{file.name}: MD5 {digest.hexdigest()}, expected {file.md5}"


def _at_once(path: str, flags: int) -> int:
    """A pipe of a file's name is not waited for."""
    return os.open(path, flags | os.O_NONBLOCK)


def _md5() -> Any:
    return hashlib.md5(usedforsecurity=False)  # as published; FIPS hosts allow it for this


def _pieces(source: Readable, limit: int) -> Iterable[bytes]:
    """What can be read, a MiB at a time: at most `limit` bytes and one more, which tells that there is too much."""
    left = limit + 1
    while left > 0:
        piece = source.read(min(left, _PIECE))
        if not piece:
            return
        left -= len(piece)
        yield piece


def taken(named: str, name: str) -> str:
    """The folder of the dataset's files in or below `named`; archives found there are unpacked into the cache.
    "" where there is nothing of this dataset.

    Raises DamagedData, with file and MD5s, for what is broken or incomplete.
    """
    files = KNOWN[name].files
    loose, packed = _most(named, {file.name for file in files}), _most(named, {file.archive for file in files})
    advice = f"copy it again, or take the official one from {KNOWN[name].address}"
    if loose:
        wrong = damage(loose, name)
        if not wrong:
            return loose
        if not packed:
            raise DamagedData(f"{loose} is not {name} as published: {'; '.join(wrong)}; {advice}")
    if not packed:
        return ""
    try:
        folder = cache(name)
        missing = lacking(folder, name)
        for archive in dict.fromkeys(file.archive for file in missing):
            with open(os.path.join(packed, archive), "rb", opener=_at_once) as stream:
                unpack(stream, archive, [file for file in missing if file.archive == archive], folder)
    except (OSError, ValueError) as problem:
        raise DamagedData(f"{name} in {packed}: {problem}; {advice}") from None
    return folder


def _most(top: str, names: Iterable[str]) -> str:
    """The folder at or below `top` that has most of these names; "" where none has any. Raises DamagedData where
    `top` may not be looked into.
    """

    def unseen(problem: OSError) -> None:
        if isinstance(problem, PermissionError) and problem.filename == top:
            raise DamagedData(f"{top} cannot be read ({problem.strerror})")

    wanted, best, where = set(names), 0, ""
    for links in (False, True):  # what is really there first: a linked tree may have no end
        for count, (folder, _, files) in enumerate(os.walk(top, onerror=unseen, followlinks=links)):
            if len(wanted & set(files)) > best:
                best, where = len(wanted & set(files)), folder
            if count > LOOK_IN:
                break
        if where:
            break
    return where


def lacking(folder: str, name: str) -> List[File]:
    """The files of the dataset that are not in the folder as published."""
    return [file for file in KNOWN[name].files if _wrong(folder, file)]


def download(name: str, address: str, folder: str, tell: Callable[[str, float], None]) -> None:
    """Fetch what the folder lacks of the dataset, within DOWNLOAD_S. `tell`: words and fraction, for a progress bar.

    Raises OSError or ValueError, whose text says what did not work.
    """
    end = time.monotonic() + DOWNLOAD_S
    missing = lacking(folder, name)
    for archive in dict.fromkeys(file.archive for file in missing):
        wanted = [file for file in missing if file.archive == archive]
        url = f"{address.rstrip('/')}/{archive}"
        limit = sum(file.size for file in wanted) + SLACK_BYTES
        with contextlib.closing(Download(url, limit, end, tell)) as answer:
            unpack(answer, archive, wanted, folder)


def unpack(stream: Readable, archive: str, wanted: Iterable[File], folder: str) -> None:
    """Write the wanted files of an archive into the folder: no other member, no byte beyond a file's size.

    Raises ValueError for a broken archive, or one whose files are not those published; OSError as the system does.
    """
    left: Dict[str, File] = {file.name: file for file in wanted}
    try:
        if archive.endswith(".tar.gz"):
            with tarfile.open(fileobj=cast(IO[bytes], stream), mode="r|gz") as tar:
                for member in tar:
                    file = left.get(os.path.basename(member.name))
                    if file and member.isreg():
                        store(cast(Readable, tar.extractfile(member)), left.pop(file.name), folder)
        else:
            (file,) = left.values()
            with gzip.GzipFile(fileobj=cast(IO[bytes], stream)) as plain:
                store(plain, left.pop(file.name), folder)
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as problem:
        raise ValueError(f"{archive} is broken ({problem})") from None
    if left:
        raise ValueError(f"{archive} has no {', '.join(left)}")


def store(source: Readable, file: File, folder: str) -> None:
    """Write a file under a name of its own, then rename: nobody sees it before its MD5 is right.

    Raises ValueError for other content than what was published, OSError as the system does.
    """
    path = os.path.join(folder, file.name)
    part = f"{path}.{os.getpid()}.part"
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        digest = _md5()
        with open(fd, "wb") as target:
            for piece in _pieces(source, file.size):
                digest.update(piece)
                target.write(piece)
        if digest.hexdigest() != file.md5:
            raise ValueError(f"{file.name}: MD5 {digest.hexdigest()}, expected {file.md5}")
        os.rename(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(part)
        raise
