"""Messages as the trainer's socket carries them: a frame, and beside it a file in memory that holds its long vectors.

See `federation/wire/trainer.proto` for the frame.
"""

from __future__ import annotations

import dataclasses
import json
import struct
from typing import Any, Final, TypeVar, cast

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError

from sovfed.federation.codec import decode, dtype_name, encode
from sovfed.federation.codec import vectors as vectors_of
from sovfed.federation.errors import ProtocolError
from sovfed.federation.messages import Message
from sovfed.federation.stored import Stored, in_memory, origin
from sovfed.federation.wire.trainer_pb2 import Envelope, Vector

MAX_ENVELOPE_BYTES: Final = 64 * 1024
LONG_BYTES: Final = 64 * 1024  # of a vector; shorter ones are copied faster than handed over
_LENGTH: Final = struct.Struct("<I")
_ALIGNMENT: Final = 8
_DTYPES: Final[dict[str, np.dtype[Any]]] = {
    name: np.dtype(name).newbyteorder("<") for name in ("float32", "float64", "uint8", "uint64")
}
Parts = list[bytes | memoryview]
M = TypeVar("M", bound=Message)


def to_frame(message: Message) -> bytes:
    """The frame of `message`; its vectors are copied once."""
    return b"".join(frame_parts(message))


def frame_parts(message: Message) -> Parts:
    """What the frame of `message` consists of, one after the other, all vectors in it; they are not copied."""
    kind, scalars, vectors = encode(message)
    return _parts(kind, scalars, vectors, {})


def frame_and_file(message: Message) -> tuple[Parts, Stored | None]:
    """As `frame_parts`, and the sealed file beside it that holds the long vectors, if there are any.

    Raises OSError where there is no memory for it.
    """
    kind, scalars, vectors = encode(put_aside(message))
    stretches = {name: origin(vector) for name, vector in vectors.items() if vector.nbytes > LONG_BYTES}
    offsets = {name: stretch.offset for name, stretch in stretches.items() if stretch is not None}
    stored = next((stretch.stored for stretch in stretches.values() if stretch is not None), None)
    return _parts(kind, scalars, vectors, offsets), stored


def put_aside(message: M) -> M:
    """`message` with its long vectors in one sealed file, as it is where they lie in one already. Raises OSError."""
    long = {name: vector for name, vector in vectors_of(message).items() if vector.nbytes > LONG_BYTES}
    files = {id(stretch.stored) if (stretch := origin(vector)) else 0 for vector in long.values()}
    if len(files) <= 1 and 0 not in files:
        return message
    offsets, end = dict[str, int](), 0
    for name, vector in long.items():
        offsets[name], end = end, end + vector.nbytes + len(_padding(vector.nbytes))
    stored = in_memory(end)
    for name, vector in long.items():
        stored.write(offsets[name], np.ascontiguousarray(vector).data.cast("B"))
    stored.seal()
    view = stored.view()
    moved = {name: np.frombuffer(view, vector.dtype, vector.size, offsets[name]) for name, vector in long.items()}
    return cast("M", dataclasses.replace(cast("Any", message), **moved))


def _parts(kind: str, scalars: dict[str, Any], vectors: dict[str, npt.NDArray[Any]], offsets: dict[str, int]) -> Parts:
    envelope = Envelope(
        kind=kind,
        scalars=json.dumps(scalars),
        vectors=[
            Vector(name=name, dtype=dtype_name(vector.dtype), length=vector.size, offset=offsets.get(name))
            for name, vector in vectors.items()
        ],
    ).SerializeToString()
    parts: Parts = [_LENGTH.pack(len(envelope)), envelope, _padding(_LENGTH.size + len(envelope))]
    for name, vector in vectors.items():
        if name not in offsets:
            parts += [np.ascontiguousarray(vector).data.cast("B"), _padding(vector.nbytes)]
    return parts


def from_frame(frame: bytes | bytearray, stored: Stored | None = None, *, judged: bool = True) -> Message:
    """The message in `frame`, its vectors views of the frame and of the file beside it.

    Raises ProtocolError on anything that does not fit. What is not `judged` may hold values that are not finite.
    """
    if len(frame) < _LENGTH.size:
        raise ProtocolError(f"a frame of {len(frame)} bytes")
    (length,) = _LENGTH.unpack_from(frame)
    offset = _LENGTH.size + length
    if length > MAX_ENVELOPE_BYTES or offset > len(frame):
        raise ProtocolError(f"an envelope of {length} bytes in a frame of {len(frame)}")
    try:
        envelope = Envelope.FromString(bytes(frame[_LENGTH.size : offset]))
        scalars = json.loads(envelope.scalars)
    except (DecodeError, ValueError, RecursionError) as error:
        raise ProtocolError("the envelope is malformed") from error
    if not isinstance(scalars, dict):
        raise ProtocolError("the envelope's scalars are no JSON object")
    vectors = _vectors(envelope, frame, offset + len(_padding(offset)), stored)
    return decode(envelope.kind, scalars, vectors, judged=judged)


def _vectors(
    envelope: Envelope, frame: bytes | bytearray, offset: int, stored: Stored | None
) -> dict[str, npt.NDArray[Any]]:
    """The vectors that `envelope` describes, those without a place in `stored` from `offset` of the frame on."""
    vectors: dict[str, npt.NDArray[Any]] = {}
    beside, room = memoryview(b"") if stored is None else stored.view(), 0 if stored is None else stored.size
    for vector in envelope.vectors:
        dtype, away = _DTYPES.get(vector.dtype), vector.HasField("offset")
        buffer, start = (beside, vector.offset) if away else (memoryview(frame), offset)
        if dtype is None or vector.name in vectors or start + vector.length * dtype.itemsize > len(buffer):
            raise ProtocolError(f"vector {vector.name[:40]!r}: {vector.length} x {vector.dtype[:40]!r} does not fit")
        values = np.frombuffer(buffer, dtype, vector.length, start) if vector.length else np.empty(0, dtype)
        if away and not values.flags.aligned and (room := room - values.nbytes) < 0:
            raise ProtocolError("vectors over the same bytes, which would all be copied: longer than their file")
        vectors[vector.name] = values if values.flags.aligned else values.copy()
        offset += 0 if away else values.nbytes + len(_padding(values.nbytes))
    if offset != len(frame):
        raise ProtocolError(f"a frame of {len(frame)} bytes, its envelope describes {offset}")
    return vectors


def _padding(size: int) -> bytes:
    return bytes(-size % _ALIGNMENT)
