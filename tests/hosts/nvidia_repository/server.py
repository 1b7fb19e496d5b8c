"""The stub repository over HTTP, with a mirror's faults on request."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import BinaryIO


class _Handler(SimpleHTTPRequestHandler):
    """`dies_in`: a file with that in its name ends in its middle, and the connection with it."""

    protocol_version = "HTTP/1.1"
    dies_in = ""

    def copyfile(self, source: BinaryIO, outputfile: BinaryIO) -> None:  # type: ignore[override]  # bytes both
        if self.dies_in and self.dies_in in self.path:
            data = source.read()
            outputfile.write(data[: len(data) // 2])
            outputfile.flush()
            self.close_connection = True
            return
        super().copyfile(source, outputfile)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: a test's output is not a web server's log."""


@contextlib.contextmanager
def serve_directory(path: Path, address: str = "127.0.0.1", *, dies_in: str = "", port: int = 0) -> Iterator[str]:
    """Serve a directory until the end of the `with`; yields its URL, with a slash at the end."""
    handler = partial(type("Handler", (_Handler,), {"dies_in": dies_in}), directory=str(path))
    with ThreadingHTTPServer((address, port), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.2}, daemon=True)
        thread.start()
        try:
            yield f"http://{address}:{server.server_address[1]}/"
        finally:
            server.shutdown()
            thread.join(10)
