"""The trainer's Unix socket: the server and the stub. No network, one user.

Both directions: one byte that says what it is, the length of the frame (`clients/trainer/frames.py`), the frame, and
with the first of them the descriptor of the file beside it. The gateway asks; it may have several connections, on each
of which one request is under way. A connection that ends is a trainer that has died.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import struct
import threading
import time
from queue import SimpleQueue
from typing import TYPE_CHECKING, Final, Protocol

from google.protobuf.message import DecodeError

from sovfed.clients.trainer.frames import Parts, frame_and_file, from_frame
from sovfed.federation.errors import ProtocolError, ServiceError, wire_code
from sovfed.federation.messages import Refusal, Reply, Request
from sovfed.federation.stored import MOST_SHIFT, Stored, handed_over
from sovfed.federation.wire.trainer_pb2 import HealthReply

if TYPE_CHECKING:
    from pathlib import Path

log = logging.getLogger(__name__)
NAME: Final = "trainer.sock"
MAX_PATH_BYTES: Final = 107  # of a Unix socket's address (unix(7))
MAX_FRAME_BYTES: Final = 1 << 20  # its long vectors are in a file beside it
MAX_CONNECTIONS: Final = 32
AGAIN_S: Final = 0.2  # after a connection could not be taken
ACCEPTED_S: Final = 5.0  # a call that fails later than this was taken by a trainer
RETRY_PAUSE_S: Final = (0.05, 1.0)  # first and longest
ANSWER, HEALTH, TOO_LONG = 1, 2, 3
_HEAD: Final = struct.Struct("<BI")
_FLAGS: Final = getattr(socket, "MSG_CMSG_CLOEXEC", 0)  # Linux


class Service(Protocol):
    """What stands behind the socket."""

    def answer(self, request: Request) -> Reply: ...

    def health(self) -> HealthReply: ...


def send(connection: socket.socket, kind: int, parts: Parts, stored: Stored | None = None) -> None:
    """Raises OSError if the other end is gone."""
    frame = b"".join(parts)
    head = _HEAD.pack(kind, len(frame))
    descriptors = [] if stored is None else [stored.descriptor]
    sent = socket.send_fds(connection, [head, frame], descriptors)
    if sent < len(head) + len(frame):
        connection.sendall((head + frame)[sent:])


def receive(connection: socket.socket, most_bytes: int) -> tuple[int, bytearray, Stored | None]:
    """What the other end sends next: its kind, the frame and the file beside it, of at most `most_bytes`.

    Raises EOFError if the other end is gone, ServiceError on a frame or file that is too long, ProtocolError on any
    other file than a sealed one.
    """
    head, descriptors, _, _ = socket.recv_fds(connection, _HEAD.size, 1, _FLAGS)
    stored = handed_over(descriptors[0], most_bytes) if descriptors else None
    head += _exactly(connection, _HEAD.size - len(head))
    kind, length = _HEAD.unpack(head)
    if length > MAX_FRAME_BYTES:
        raise ServiceError(f"a frame of {length} bytes, limit is {MAX_FRAME_BYTES}")
    return kind, _exactly(connection, length), stored


def _exactly(connection: socket.socket, length: int) -> bytearray:
    data = bytearray(length)
    view = memoryview(data)
    while view:
        if not (count := connection.recv_into(view)):
            raise EOFError("the other end is gone")
        view = view[count:]
    return data


def reply_to(service: Service, frame: bytes | bytearray, stored: Stored | None = None) -> Reply | Refusal:
    """What `service` answers to the request in `frame`; a refusal of one that does not fit."""
    try:
        request = from_frame(frame, stored)
    except ProtocolError as error:
        log.warning("refused a frame of %d bytes: %s", len(frame), error)
        return Refusal(reason=wire_code(error))
    if not isinstance(request, Request):
        log.warning("refused a %s: a trainer answers none", type(request).__name__)
        return Refusal(reason=ProtocolError.code)
    return service.answer(request)


class Server:
    """Answers at a listening socket until `stop`, each connection on a thread of its own.

    All threads are there from the start: one that had no memory to begin with would leave its connection unanswered
    for ever, and whoever began it waiting.
    """

    def __init__(self, listener: socket.socket, service: Service, most_bytes: int) -> None:
        self._listener, self._service, self._most_bytes = listener, service, most_bytes + MOST_SHIFT
        self._connections, self._lock = set[socket.socket](), threading.Lock()
        self._taken, self._stopping = SimpleQueue[socket.socket | None](), threading.Event()
        for _ in range(MAX_CONNECTIONS):
            threading.Thread(target=self._work, name="answer", daemon=True).start()
        self._accepting = threading.Thread(target=self._accept, name="socket", daemon=True)
        self._accepting.start()

    def stop(self, grace_s: float) -> None:
        """Take no further request; those in work have `grace_s`, and are asked again of the next trainer."""
        self._stopping.set()
        with contextlib.suppress(OSError):  # not on macOS, where the listener cannot be woken
            self._listener.shutdown(socket.SHUT_RDWR)
            self._accepting.join()
        self._listener.close()
        deadline = time.monotonic() + grace_s
        with self._lock:
            open_ = list(self._connections)
        for connection in open_:
            with contextlib.suppress(OSError):  # it has ended
                connection.shutdown(socket.SHUT_RD)
        while self._connections and time.monotonic() < deadline:
            time.sleep(0.01)
        for _ in range(MAX_CONNECTIONS):
            self._taken.put(None)

    def _accept(self) -> None:
        while not self._stopping.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError as error:
                if not self._stopping.is_set():  # no descriptor, say: who asks waits until there is one
                    log.warning("nobody can be heard now: %s", error)
                    self._stopping.wait(AGAIN_S)
                continue
            with self._lock:
                if len(self._connections) >= MAX_CONNECTIONS:
                    connection.close()
                    continue
                self._connections.add(connection)
            self._taken.put(connection)

    def _work(self) -> None:
        while (connection := self._taken.get()) is not None:
            self._serve(connection)

    def _serve(self, connection: socket.socket) -> None:
        try:
            while True:
                self._answer(connection)
        except (EOFError, OSError):
            pass  # the gateway has gone, or goes on to the next trainer
        except Exception:
            log.exception("a connection is closed")
        finally:
            with self._lock:
                self._connections.discard(connection)
            connection.close()

    def _answer(self, connection: socket.socket) -> None:
        try:
            kind, frame, stored = receive(connection, self._most_bytes)
        except (ServiceError, ProtocolError) as error:
            log.warning("refused what the gateway sent: %s", error)
            send(connection, TOO_LONG if isinstance(error, ServiceError) else ANSWER, _refusal(error))
            raise EOFError from error  # where the next begins is not known
        if kind == HEALTH:
            send(connection, HEALTH, [self._service.health().SerializeToString()])
        else:
            reply = reply_to(self._service, frame, stored)
            del frame, stored
            send(connection, ANSWER, *frame_and_file(reply))


def _refusal(error: ServiceError | ProtocolError) -> Parts:
    return frame_and_file(Refusal(reason=wire_code(error)))[0]


def serve(service: Service, path: Path, max_message_bytes: int) -> Server:
    """A started server of `service` on the Unix socket `path` (mode 0600), whose folder only this user may enter.

    A socket that a dead trainer left behind is replaced. Raises ServiceError.
    """
    _check_path(path)
    if path.parent.stat().st_mode & 0o077:
        raise ServiceError(f"{path.parent}: other users may enter it, expected mode 0700")
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listener.bind(str(path))
    except OSError as error:
        listener.close()
        raise ServiceError(f"{path}: cannot listen on it") from error
    finally:
        os.umask(before)
    listener.listen(MAX_CONNECTIONS)
    return Server(listener, service, max_message_bytes)


class TrainerStub:
    """The trainer behind its socket, as seen by the gateway. Safe for use from several threads."""

    def __init__(self, path: Path, max_message_bytes: int, timeout_s: float = 3600.0) -> None:
        """`timeout_s` is how long a trainer may be down, or starting again, before a request fails.

        An answer may take as long as it takes: a trainer that hangs is ended by its supervisor (`_overseer` of
        `clients/trainer/process.py`), and the request goes to the next.
        """
        _check_path(path)
        self._path, self._most_bytes, self._timeout_s = path, max_message_bytes, timeout_s
        self._idle: list[socket.socket] = []
        self._busy: set[socket.socket] = set()
        self._lock, self._closed = threading.Lock(), threading.Event()

    def answer(self, request: Request) -> Reply:
        """The trainer's reply, its values not judged. A trainer that dies on the way is asked again once it is back:
        repeats are harmless.

        Raises ServiceError when it was away for `timeout_s` or the transport fails, ProtocolError on a malformed reply.
        """
        try:
            parts, stored = frame_and_file(request)
            frame, file = self._insist(parts, stored)
        except OSError as error:
            raise ServiceError(f"{self._path}: {error.strerror or type(error).__name__}") from error
        reply = from_frame(frame, file, judged=False)
        if not isinstance(reply, Reply):
            raise ProtocolError(f"the trainer answered with a {type(reply).__name__}")
        return reply

    def _insist(self, parts: Parts, stored: Stored | None) -> tuple[bytearray, Stored | None]:
        """The frame of the answer and the file beside it, of whichever trainer gives it."""
        away, pause = time.monotonic(), RETRY_PAUSE_S[0]
        while True:
            asked = time.monotonic()
            try:
                return self._call(ANSWER, parts, stored)
            except (EOFError, ConnectionError, FileNotFoundError) as error:
                if time.monotonic() - asked > ACCEPTED_S:  # it was there, and at work
                    away, pause = time.monotonic(), RETRY_PAUSE_S[0]
                if time.monotonic() + pause - away > self._timeout_s:
                    raise ServiceError(f"{self._path}: no trainer for {self._timeout_s:g} s") from error
            if self._closed.wait(pause):
                raise ServiceError(f"{self._path}: closed while the trainer was away")
            pause = min(2 * pause, RETRY_PAUSE_S[1])

    def health(self, timeout_s: float = 5.0) -> HealthReply:
        """How the trainer is. Raises ServiceError if it does not answer."""
        try:
            frame, _ = self._call(HEALTH, [], None, timeout_s)
            return HealthReply.FromString(bytes(frame))
        except (EOFError, OSError, DecodeError) as error:
            raise ServiceError(f"{self._path}: {error}") from error

    def close(self) -> None:
        """Close all connections; a waiting `answer` fails."""
        self._closed.set()
        with self._lock:
            for connection in (*self._idle, *self._busy):
                with contextlib.suppress(OSError):  # the trainer has closed it
                    connection.shutdown(socket.SHUT_RDWR)
            for connection in self._idle:
                connection.close()
            self._idle.clear()

    def _call(
        self, kind: int, parts: Parts, stored: Stored | None, timeout_s: float | None = None
    ) -> tuple[bytearray, Stored | None]:
        connection = self._take()
        try:
            connection.settimeout(timeout_s)
            send(connection, kind, parts, stored)
            answered, frame, file = receive(connection, self._most_bytes)
        except BaseException:
            with self._lock:
                self._busy.discard(connection)
            connection.close()
            raise
        with self._lock:
            self._busy.discard(connection)
            self._idle.append(connection)
        if answered != kind:
            raise ServiceError(f"{self._path}: the trainer takes no message as long as this")
        return frame, file

    def _take(self) -> socket.socket:
        """A connection that nobody uses. Raises OSError where no trainer listens."""
        with self._lock:
            if self._closed.is_set():
                raise ServiceError(f"{self._path}: closed")
            if self._idle:
                connection = self._idle.pop()
                self._busy.add(connection)
                return connection
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(str(self._path))
        except OSError:
            connection.close()
            raise
        with self._lock:
            self._busy.add(connection)
        return connection


def _check_path(path: Path) -> None:
    if len(os.fsencode(path.absolute())) > MAX_PATH_BYTES:
        raise ServiceError(f"{path}: longer than a Unix socket's {MAX_PATH_BYTES} bytes; choose a shorter home folder")
