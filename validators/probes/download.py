"""A download with bounds: on its size, on the time it takes, and on the wait for a first answer."""

from __future__ import annotations

import http.client
import queue
import socket
import threading
import time
import urllib.error
import urllib.request
from typing import Callable, Union, cast

DOWNLOAD_S = 180.0
"""Seconds that the download of one dataset may take: 170 MB at 8 Mbit/s."""
ANSWER_S = 15.0
"""Seconds for the first answer: a host without a way out often drops packets instead of refusing."""
_PIECE = 1 << 20


class Download:
    """The body of an answer over HTTP, to be read; proxies as the environment says (http_proxy, https_proxy).

    Raises OSError or ValueError, with the address and what did not work: at once where nothing answers, and from
    `read` where more than `limit` bytes come or the time is past `end` (of time.monotonic).
    """

    def __init__(self, url: str, limit: int, end: float, tell: Callable[[str, float], None]) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"{url:.200} is not an address that starts with https:// or http://")
        self._url, self._limit, self._end, self._tell = url, limit, end, tell
        self._done, self._told = 0, 0.0
        self._answer = _answer(url)
        self._expected = int(getattr(self._answer, "length", 0) or 0)

    def read(self, size: int = _PIECE) -> bytes:
        """The next bytes; none at the end."""
        now = time.monotonic()
        so_far = f"{self._done / 1e6:.0f} MB"
        if now > self._end:
            raise TimeoutError(f"{self._url}: {so_far} had come when the time was up ({DOWNLOAD_S:g} s)")
        try:
            # read1: what has come. read() waits for all of it, past `end`, as long as a byte comes now and then.
            data = self._answer.read1(min(size, _PIECE) if size >= 0 else _PIECE)
        except (OSError, http.client.HTTPException) as problem:
            raise OSError(f"{self._url} broke off after {so_far} ({problem})") from None
        self._done += len(data)
        if self._done > self._limit:
            raise ValueError(f"{self._url} is larger than the dataset")
        if now - self._told > 1:
            self._told = now
            self._tell(f"downloading {self._url}: {so_far}", self._done / self._expected if self._expected else -1.0)
        return data

    def close(self) -> None:
        """End it."""
        self._answer.close()


def _answer(url: str) -> http.client.HTTPResponse:
    """The open answer. In a thread of its own, since no timeout ends a resolver that waits."""
    box: queue.Queue[Union[http.client.HTTPResponse, Exception]] = queue.Queue()

    def ask() -> None:
        try:
            opened = urllib.request.urlopen(url, timeout=ANSWER_S)  # noqa: S310 - http or https, see Download
            box.put(cast(http.client.HTTPResponse, opened))
        except Exception as problem:  # noqa: BLE001 - handed on
            box.put(problem)

    threading.Thread(target=ask, daemon=True).start()
    got: Union[http.client.HTTPResponse, Exception]
    try:
        got = box.get(timeout=ANSWER_S)
    except queue.Empty:
        got = TimeoutError()
    if isinstance(got, urllib.error.HTTPError):
        raise OSError(f"{url} answers {got.code} {got.reason}")
    why = getattr(got, "reason", got)
    if isinstance(why, (TimeoutError, socket.timeout)):  # the opener's own deadline, or ours: whichever came first
        raise TimeoutError(f"{url} did not answer within {ANSWER_S:g} s")
    if isinstance(got, Exception):
        raise OSError(f"{url} cannot be reached ({why})")
    return got
