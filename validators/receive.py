"""The first program on a host: it finds the cached bundle or takes it from stdin, then becomes it.

provision.remote sends this text with `python3 -c`; nothing imports it. A marker stands before each answer, so
that what a MOTD or a shell profile prints cannot be taken for one.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import sys
import time

PART_S = 3600.0
OLD_S = 30 * 86400.0
"""Ages in seconds at which a broken upload, and a bundle, are cleared from the cache."""


def main(mark: str, sha256: str, size: int, answer_s: str, what: str) -> None:
    """Become `python3 -I -S <sha256>.pyz <what>`: the wire, or data; the plan or the request is next on stdin."""

    def say(status: str, text: str = "") -> None:
        answer = {"status": status, "text": text, "python": ".".join(map(str, sys.version_info[:3]))}
        os.write(1, ("\n" + mark + json.dumps(answer) + "\n").encode())

    try:
        path, trouble = os.path.join(cache_folder(), sha256 + ".pyz"), ""
    except OSError as problem:
        path, trouble = "", f"the cache folder cannot be used ({problem})"
    if path and is_ours(path, sha256, size):
        say("cached")
    else:
        say("send")
        data = take(size)
        if hashlib.sha256(data).hexdigest() != sha256:
            say("failed", "the bundle arrived damaged")
            sys.exit(74)
        if path:
            try:
                store(path, data)
            except OSError as problem:
                path, trouble = "", f"the bundle cannot be kept on the host ({problem})"
        if not path:
            try:
                path = in_memory(data)
            except OSError as problem:
                say("failed", f"{trouble}, and it does not fit into memory either ({problem})")
                sys.exit(74)
            trouble += "; it runs from memory"
        say("stored", trouble)
    os.execv(sys.executable, [sys.executable, "-I", "-S", path, what, sha256, answer_s])  # noqa: S606 - becoming the bundle is the point


def cache_folder() -> str:
    """The folder for bundles: made where it is missing, refused where others could write to it. Raises OSError."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    folder = os.path.join(base if base.startswith("/") else os.path.expanduser("~/.cache"), "gpu-bringup")
    os.makedirs(folder, mode=0o700, exist_ok=True)
    found = os.lstat(folder)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise PermissionError(f"{folder} is not only ours to write")
    return folder


def is_ours(path: str, sha256: str, size: int) -> bool:
    """Whether the cached file is a plain file of this user, writable by nobody else, with the right content."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    with open(fd, "rb") as file:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
            return False
        return found.st_size == size and hashlib.sha256(file.read(size + 1)).hexdigest() == sha256


def take(size: int) -> bytes:
    """Exactly `size` bytes of stdin; what lies behind them is the plan."""
    data = bytearray()
    while len(data) < size:
        more = os.read(0, min(size - len(data), 1 << 20))
        if not more:
            sys.exit(74)
        data += more
    return bytes(data)


def store(path: str, data: bytes) -> None:
    """Write to a name of its own, then rename: another session sees the whole file or none. Raises OSError."""
    clear(os.path.dirname(path))
    part = f"{path}.{os.getpid()}.part"
    try:
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with open(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(fd)
        os.rename(part, path)
    except OSError:
        if os.path.lexists(part):
            os.unlink(part)
        raise


def clear(folder: str) -> None:
    """Remove broken uploads and bundles of long ago, so that the cache stays small."""
    import shutil  # noqa: PLC0415 - late: only an upload needs it

    for entry in os.scandir(folder):
        age = time.time() - entry.stat(follow_symlinks=False).st_mtime
        if age > (PART_S if entry.name.endswith(".part") else OLD_S):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                os.unlink(entry.path)


def in_memory(data: bytes) -> str:
    """A file without a name, gone with the last process that has it open. Raises OSError."""
    try:
        fd = os.memfd_create("gpu-bringup", 0)
    except (AttributeError, OSError):  # a Python built for an old glibc, an old kernel
        fd = nameless("/dev/shm", "/tmp")  # noqa: S108 - made with O_EXCL and unlinked at once
    with open(fd, "wb", closefd=False) as file:
        file.write(data)
    os.set_inheritable(fd, True)
    return f"/proc/self/fd/{fd}"


def nameless(*folders: str) -> int:
    """A new file in the first folder that takes one, its name removed again. Raises OSError."""
    trouble = OSError("no folder for temporary files")
    for folder in folders:
        path = os.path.join(folder, ".gpu-bringup-" + os.urandom(16).hex())
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        except OSError as problem:
            trouble = problem
            continue
        os.unlink(path)
        return fd
    raise trouble


def words(argv: tuple[str, ...]) -> tuple[str, str, int, str, str]:
    """The arguments: marker, SHA-256, size in bytes, seconds within which the operator answers, what to become."""
    return argv[0], argv[1], int(argv[2]), argv[3], argv[4]


if __name__ == "__main__":
    main(*words(tuple(sys.argv[-5:])))
