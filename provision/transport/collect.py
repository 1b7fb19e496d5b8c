"""run() in terms of a started process: both streams collected up to a limit. The same for SSH and local."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from provision.errors import RemoteCommandError
from provision.transport.base import Completed, Process


def collect(name: str, argv: Sequence[str], process: Process, timeout_s: float, limit_bytes: int) -> Completed:
    """Drain `process` to its end and close it. Raises RemoteCommandError over `limit_bytes` of output in all."""
    kept: dict[str, list[bytes]] = {"stdout": [], "stderr": []}
    total = 0
    try:
        for stream, data in process.chunks(deadline_s=timeout_s, idle_s=timeout_s):
            total += len(data)
            if total > limit_bytes:
                raise RemoteCommandError(
                    f"{name}: `{shlex.join(argv)[:200]}` wrote more than {limit_bytes} bytes; it was stopped there"
                )
            kept[stream].append(data)
        return Completed(process.returncode, b"".join(kept["stdout"]), b"".join(kept["stderr"]))
    finally:
        process.close()
