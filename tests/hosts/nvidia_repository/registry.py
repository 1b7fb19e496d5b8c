"""A tiny container registry that wants a login: a stand-in for nvcr.io with one image.

It speaks as much of the distribution protocol as `docker login` and `docker pull NAME@DIGEST` need, with Basic
authentication. nvcr.io hands out tokens instead (WWW-Authenticate: Bearer); docker does that part by itself.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import io
import json
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

USER = "$oauthtoken"


@dataclass(frozen=True)
class Registry:
    """`address`: host:port, as it stands in an image's name. `image`: the one it has, by digest."""

    address: str
    image: str
    logins: list[str] = field(default_factory=list)
    """The user names of accepted logins, as they came."""


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _image() -> tuple[dict[str, tuple[str, bytes]], str]:
    """Return the blobs by digest with their types, and the manifest's digest."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        info = tarfile.TarInfo("hello")
        info.size = 5
        tar.addfile(info, io.BytesIO(b"hello"))
    layer = gzip.compress(buffer.getvalue(), mtime=0)
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [_digest(buffer.getvalue())]},
        }
    ).encode()
    kind = "application/vnd.docker"
    parts = {
        "config": (f"{kind}.container.image.v1+json", config),
        "layer": (f"{kind}.image.rootfs.diff.tar.gzip", layer),
    }
    entries = {
        name: {"mediaType": media, "size": len(data), "digest": _digest(data)} for name, (media, data) in parts.items()
    }
    manifest_type = f"{kind}.distribution.manifest.v2+json"
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": manifest_type,
            "config": entries["config"],
            "layers": [entries["layer"]],
        }
    ).encode()
    blobs = {_digest(data): (media, data) for media, data in [*parts.values(), (manifest_type, manifest)]}
    return blobs, _digest(manifest)


@contextlib.contextmanager
def registry(address: str, key: str) -> Iterator[Registry]:
    """Run one at an address of this machine that lets in whoever has the key."""
    blobs, digest = _image()
    logins: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            scheme, _, given = self.headers.get("Authorization", "").partition(" ")
            user, _, password = base64.b64decode(given).decode().partition(":") if scheme == "Basic" else ("", "", "")
            found = blobs.get(self.path.rpartition("/")[2])
            if password != key:
                self._answer(401, "application/json", b'{"errors":[{"code":"UNAUTHORIZED","message":"no"}]}')
            elif self.path == "/v2/":
                logins.append(user)
                self._answer(200, "application/json", b"{}")
            elif found is None:
                self._answer(404, "application/json", b"{}")
            else:
                self._answer(200, *found)

        def _answer(self, status: int, media: str, data: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", media)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Docker-Distribution-API-Version", "registry/2.0")
            if status == 401:
                self.send_header("WWW-Authenticate", 'Basic realm="a stand-in for nvcr.io"')
            if status == 200 and self.path != "/v2/":
                self.send_header("Docker-Content-Digest", _digest(data))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing."""

    with ThreadingHTTPServer((address, 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.2}, daemon=True)
        thread.start()
        at = f"{address}:{server.server_address[1]}"
        try:
            yield Registry(at, f"{at}/nvidia/cuda@{digest}", logins)
        finally:
            server.shutdown()
            thread.join(10)
