"""The trainer's Unix socket: the frame, the server and the stub. gRPC, no network, one user.

See `federation/wire/trainer.proto` for the frame.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, Protocol

import grpc
import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError

from sovfed.federation.codec import decode, encode
from sovfed.federation.errors import ProtocolError, ServiceError, wire_code
from sovfed.federation.messages import Message, Refusal, Reply, Request
from sovfed.federation.wire.trainer_pb2 import Envelope, HealthReply, HealthRequest, Vector

if TYPE_CHECKING:
    from pathlib import Path

log = logging.getLogger(__name__)
NAME: Final = "trainer.sock"
SERVICE: Final = "sovfed.v1.Trainer"
MAX_ENVELOPE_BYTES: Final = 64 * 1024
MAX_PATH_BYTES: Final = 107  # of a Unix socket's address (unix(7))
ACCEPTED_S: Final = 5.0  # a call that fails later than this was taken by a trainer
RETRY_PAUSE_S: Final = (0.05, 1.0)  # first and longest
_LENGTH: Final = struct.Struct("<I")
_ALIGNMENT: Final = 8
_DTYPES: Final[dict[str, np.dtype[Any]]] = {
    name: np.dtype(name).newbyteorder("<") for name in ("float32", "float64", "uint8", "uint64")
}


class Service(Protocol):
    """What stands behind the socket."""

    def answer(self, request: Request) -> Reply: ...

    def health(self) -> HealthReply: ...


def to_frame(message: Message) -> bytes:
    """The frame of `message`; its vectors are copied once."""
    return b"".join(frame_parts(message))


def frame_parts(message: Message) -> list[bytes | memoryview]:
    """What the frame of `message` consists of, one after the other; its vectors are not copied."""
    kind, scalars, vectors = encode(message)
    envelope = Envelope(
        kind=kind,
        scalars=json.dumps(scalars),
        vectors=[Vector(name=name, dtype=str(vector.dtype), length=vector.size) for name, vector in vectors.items()],
    ).SerializeToString()
    parts: list[bytes | memoryview] = [_LENGTH.pack(len(envelope)), envelope, _padding(_LENGTH.size + len(envelope))]
    for vector in vectors.values():
        parts += [np.ascontiguousarray(vector).data.cast("B"), _padding(vector.nbytes)]
    return parts


def from_frame(frame: bytes) -> Message:
    """The message in `frame`, its vectors views of the frame. Raises ProtocolError on anything that does not fit."""
    if len(frame) < _LENGTH.size:
        raise ProtocolError(f"a frame of {len(frame)} bytes")
    (length,) = _LENGTH.unpack_from(frame)
    offset = _LENGTH.size + length
    if length > MAX_ENVELOPE_BYTES or offset > len(frame):
        raise ProtocolError(f"an envelope of {length} bytes in a frame of {len(frame)}")
    try:
        envelope = Envelope.FromString(frame[_LENGTH.size : offset])
        scalars = json.loads(envelope.scalars)
    except (DecodeError, ValueError, RecursionError) as error:
        raise ProtocolError("the envelope is malformed") from error
    if not isinstance(scalars, dict):
        raise ProtocolError("the envelope's scalars are no JSON object")
    offset += len(_padding(offset))
    vectors: dict[str, npt.NDArray[Any]] = {}
    for vector in envelope.vectors:
        dtype = _DTYPES.get(vector.dtype)
        if dtype is None or vector.name in vectors or offset + vector.length * dtype.itemsize > len(frame):
            raise ProtocolError(f"vector {vector.name[:40]!r}: {vector.length} x {vector.dtype[:40]!r} does not fit")
        vectors[vector.name] = np.frombuffer(frame, dtype, vector.length, offset)
        offset += vectors[vector.name].nbytes + len(_padding(vectors[vector.name].nbytes))
    if offset != len(frame):
        raise ProtocolError(f"a frame of {len(frame)} bytes, its envelope describes {offset}")
    return decode(envelope.kind, scalars, vectors)


def _padding(size: int) -> bytes:
    return bytes(-size % _ALIGNMENT)


def serve(service: Service, path: Path, max_message_bytes: int) -> grpc.Server:
    """A started server of `service` on the Unix socket `path` (mode 0600), whose folder only this user may enter.

    A socket that a dead trainer left behind is replaced. Raises ServiceError.
    """
    _check_path(path)
    if path.parent.stat().st_mode & 0o077:
        raise ServiceError(f"{path.parent}: other users may enter it, expected mode 0700")
    with contextlib.suppress(FileNotFoundError):
        path.unlink()

    handlers = {
        "Answer": grpc.unary_unary_rpc_method_handler(lambda frame, _: b"".join(to_reply_frame(service, frame))),
        "Health": grpc.unary_unary_rpc_method_handler(
            lambda _request, _: service.health(), HealthRequest.FromString, HealthReply.SerializeToString
        ),
    }
    pool = ThreadPoolExecutor(max_workers=4, thread_name_prefix="socket")
    server = grpc.server(pool, options=_options(max_message_bytes))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    before = os.umask(0o177)
    try:
        server.add_insecure_port(f"unix:{path}")
    except RuntimeError as error:
        raise ServiceError(f"{path}: cannot listen on it") from error
    finally:
        os.umask(before)
    server.start()
    return server


def to_reply_frame(service: Service, frame: bytes) -> list[bytes | memoryview]:
    """What the frame of `service`'s reply to the request in `frame` consists of; a refusal of one that does not fit."""
    try:
        request = from_frame(frame)
    except ProtocolError as error:
        log.warning("refused a frame of %d bytes: %s", len(frame), error)
        return frame_parts(Refusal(reason=wire_code(error)))
    if not isinstance(request, Request):
        log.warning("refused a %s: a trainer answers none", type(request).__name__)
        return frame_parts(Refusal(reason=ProtocolError.code))
    return frame_parts(service.answer(request))


class TrainerStub:
    """The trainer behind its socket, as seen by the gateway. Safe for use from several threads."""

    def __init__(self, path: Path, max_message_bytes: int, timeout_s: float = 3600.0) -> None:
        """`timeout_s` is how long a trainer may be down, or starting again, before a request fails.

        An answer may take as long as it takes: a trainer that hangs is ended by its supervisor (`_overseer` of
        `clients/trainer/process.py`), and the request goes to the next.
        """
        _check_path(path)
        self._path, self._timeout_s = path, timeout_s
        self._channel = grpc.insecure_channel(f"unix:{path}", options=_options(max_message_bytes))
        self._answer = self._channel.unary_unary(f"/{SERVICE}/Answer", bytes, bytes)
        self._health = self._channel.unary_unary(
            f"/{SERVICE}/Health", HealthRequest.SerializeToString, HealthReply.FromString
        )
        self._closed = threading.Event()

    def answer(self, request: Request) -> Reply:
        """The trainer's reply. A trainer that dies on the way is asked again once it is back: repeats are harmless.

        Raises ServiceError when it was away for `timeout_s` or the transport fails, ProtocolError on a malformed reply.
        """
        frame = to_frame(request)
        away, pause = time.monotonic(), RETRY_PAUSE_S[0]
        while True:
            asked = time.monotonic()
            try:
                reply = from_frame(self._answer(frame))
                break
            except grpc.RpcError as error:
                if time.monotonic() - asked > ACCEPTED_S:  # it was there, and at work
                    away, pause = time.monotonic(), RETRY_PAUSE_S[0]
                gone = time.monotonic() + pause - away > self._timeout_s
                if error.code() is not grpc.StatusCode.UNAVAILABLE or gone:
                    raise ServiceError(f"{self._path}: {error.code().name}") from error
            if self._closed.wait(pause):
                raise ServiceError(f"{self._path}: closed while the trainer was away")
            pause = min(2 * pause, RETRY_PAUSE_S[1])
        if not isinstance(reply, Reply):
            raise ProtocolError(f"the trainer answered with a {type(reply).__name__}")
        return reply

    def health(self, timeout_s: float = 5.0) -> HealthReply:
        """How the trainer is. Raises ServiceError if it does not answer."""
        try:
            reply: HealthReply = self._health(HealthRequest(), timeout=timeout_s)
        except grpc.RpcError as error:
            raise ServiceError(f"{self._path}: {error.code().name}") from error
        return reply

    def close(self) -> None:
        """Close the channel; a waiting `answer` fails."""
        self._closed.set()
        self._channel.close()


def _options(max_message_bytes: int) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", min(max_message_bytes, 2**31 - 1)),
        ("grpc.max_send_message_length", min(max_message_bytes, 2**31 - 1)),
        ("grpc.enable_http_proxy", 0),
        ("grpc.enable_retries", 0),
        ("grpc.min_reconnect_backoff_ms", 50),
        ("grpc.initial_reconnect_backoff_ms", 50),
        ("grpc.max_reconnect_backoff_ms", 500),
    ]


def _check_path(path: Path) -> None:
    if len(os.fsencode(path.absolute())) > MAX_PATH_BYTES:
        raise ServiceError(f"{path}: longer than a Unix socket's {MAX_PATH_BYTES} bytes; choose a shorter home folder")
