"""A program on a host: one SSH channel, both streams drained together, with deadlines."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import paramiko
from paramiko.common import MSG_CHANNEL_REQUEST

from provision.errors import ConnectionLost
from provision.transport.base import Stream
from provision.transport.local import timed_out
from provision.transport.quoting import Unmark

_PARAMIKO: Any = paramiko
"""For the two names that its stubs leave out."""

_CHUNK = 64 * 1024
_SEND_TIMEOUT_S = 30.0
_FULL_WINDOW_POLL_S = 0.02


class Connection(paramiko.Transport):
    """paramiko's, and it keeps the signal that ended a program (paramiko drops that message)."""

    def __init__(self, sock: Any) -> None:
        super().__init__(sock)
        self.exit_signals: dict[int, str] = {}

    @staticmethod
    def _on_request(channel: paramiko.Channel, message: paramiko.Message) -> None:
        at = message.packet.tell()
        if message.get_text() == "exit-signal":
            message.get_boolean()
            connection: Any = channel.transport
            connection.exit_signals[channel.chanid] = message.get_text()
            return
        message.packet.seek(at)
        _PARAMIKO.Channel._handle_request(channel, message)

    _channel_handler_table: ClassVar[dict[int, Callable[..., None]]] = {
        **_PARAMIKO.Transport._channel_handler_table,
        MSG_CHANNEL_REQUEST: _on_request,
    }


class _Wake(threading.Event):
    """What both buffers of a channel ring. It is cleared by the reader alone, so no ring is lost."""

    def clear(self) -> None:
        """Nothing: an emptied buffer must not silence the other one."""

    def reset(self) -> None:
        """Clear it: called before looking at the buffers."""
        super().clear()


class _Bounded(threading.Event):
    """The answer to a channel request, waited for with a limit: paramiko itself waits for ever."""

    limit_s = 30.0

    def wait(self, timeout: float | None = None) -> bool:
        """Wait; after the limit, count as closed."""
        if not super().wait(self.limit_s if timeout is None else timeout):
            self.set()
        return True


class SshProcess:
    """A program on a host. With `stdin` given it is sent whole, then closed, while the output is read."""

    def __init__(
        self, name: str, connection: Connection, line: str, timeout_s: float, stdin: bytes | None = None
    ) -> None:
        self._name = name
        self._connection = connection
        self._channel = connection.open_session(timeout=timeout_s)
        self._wake = _Wake()
        self._channel.in_buffer.set_event(self._wake)
        self._channel.in_stderr_buffer.set_event(self._wake)
        answer = _Bounded()
        answer.limit_s = timeout_s
        self._channel.event = answer
        self._channel.exec_command(line)
        self._channel.settimeout(_SEND_TIMEOUT_S)
        self._unsent = memoryview(stdin or b"")
        self._feeds = stdin is not None
        self._ended = False
        self._unmark = Unmark()

    def send(self, data: bytes) -> None:
        """Write to its stdin and leave that open."""
        try:
            self._channel.sendall(data)
        except TimeoutError:
            raise ConnectionLost(
                f"{self._name}: the program did not read its input for {_SEND_TIMEOUT_S:g} s"
            ) from None
        except (OSError, EOFError, paramiko.SSHException) as problem:
            raise ConnectionLost(f"{self._name}: the connection broke while sending: {problem}") from None

    def chunks(self, *, deadline_s: float, idle_s: float) -> Iterator[tuple[Stream, bytes]]:
        """Yield what it writes until the channel closes, without what the login shell said before it."""
        started = heard = time.monotonic()
        while True:
            self._wake.reset()
            closed = self._channel.closed  # read before the buffers: nothing can follow it
            progressed = self._feed() if self._feeds else False
            for stream, data in self._available():
                progressed, heard = True, time.monotonic()
                own = self._unmark.feed(stream, data)
                if own:
                    yield stream, own
            if progressed:
                continue
            if closed:
                break
            now = time.monotonic()
            left = min(started + deadline_s, heard + idle_s) - now
            if left <= 0:
                raise timed_out(self._name, deadline_s, idle_s, deadline=now >= started + deadline_s)
            # A window that opens rings nothing, so with input left it is looked at again soon.
            self._wake.wait(min(left, _FULL_WINDOW_POLL_S) if self._feeds else left)
        for stream in ("stdout", "stderr"):
            held = self._unmark.rest(stream)
            if held:
                yield stream, held
        self._check_ended_well()

    def _available(self) -> Iterator[tuple[Stream, bytes]]:
        if self._channel.recv_ready():
            yield "stdout", self._channel.recv(_CHUNK)
        if self._channel.recv_stderr_ready():
            yield "stderr", self._channel.recv_stderr(_CHUNK)

    def _feed(self) -> bool:
        """Send as much input as the host takes now; at the end of it, close. True where something was done."""
        try:
            if self._unsent:
                self._channel.settimeout(0.0)
                sent = self._channel.send(bytes(self._unsent[:_CHUNK]))
                self._unsent = self._unsent[sent:]
                return sent > 0
            self._channel.shutdown_write()
        except TimeoutError:
            return False
        except (OSError, EOFError, paramiko.SSHException):
            pass  # it does not want the rest, or the connection is gone: its end says which
        self._feeds = False
        return True

    def _check_ended_well(self) -> None:
        if self._signal() is None and self._channel.exit_status < 0:
            cause = self._connection.get_exception() if not self._connection.is_active() else None
            raise ConnectionLost(
                f"{self._name}: the connection was lost while the program ran" + (f" ({cause})" if cause else ""),
                hint="did the host reboot, or sshd end the session? journalctl -u ssh there",
            )
        if not self._channel.eof_received and not self._connection.is_active():
            raise ConnectionLost(f"{self._name}: the connection was lost before all output had come")
        self._ended = True

    def _signal(self) -> str | None:
        return self._connection.exit_signals.get(self._channel.chanid)

    @property
    def returncode(self) -> int:
        """Its exit status; negative for a signal."""
        if not self._ended:
            raise RuntimeError("the program has not ended: read chunks() to its end first")
        name = self._signal()
        if name is None:
            return self._channel.exit_status
        known = getattr(signal, f"SIG{name}", None)
        return -int(known) if isinstance(known, signal.Signals) else -int(signal.SIGTERM)

    def close(self) -> None:
        """Close its stdin, the end of the lease, and the channel."""
        with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
            self._channel.shutdown_write()
        with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
            self._channel.close()
