"""Flower `Message`s as the lane carries them: serialised `flwr.proto.Message`s, made without copying an array.

Flower's own serialisation copies each array at every level that it is nested in, 0.36 s for 40 MB. Here the levels
above an array are written and read by hand (tag, length, value; protobuf's wire format) and the array's bytes are only
referred to. Tests hold that the result is what Flower's own code makes and reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, TypeAlias

import numpy.typing as npt
from flwr.app import ArrayRecord, Error, RecordDict
from flwr.app import Message as FlowerMessage
from flwr.app.message import make_message
from flwr.common.serde import recorddict_to_proto
from flwr.common.serde_utils import error_from_proto, error_to_proto, metadata_from_proto, metadata_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.recorddict_pb2 import Array as ProtoArray
from flwr.proto.recorddict_pb2 import ArrayRecord as ProtoArrayRecord
from flwr.proto.recorddict_pb2 import ConfigRecord as ProtoConfigRecord
from flwr.proto.recorddict_pb2 import ConfigRecordValue as ProtoConfigRecordValue
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from google.protobuf.message import DecodeError

from sovfed.federation.codec import dtype_name
from sovfed.federation.errors import ProtocolError
from sovfed.federation.stored import origin
from sovfed.federation.wire.flower import RAW, arrived, header_of, raw
from sovfed.federation.wire.lane import Buffer, Outgoing, length_of

Parts: TypeAlias = tuple[Buffer, ...]
SHORT_BYTES: Final = 1 << 16  # of a message
MAX_FIELDS: Final = 1 << 16  # of a long message, from its own down to its arrays'
MAX_REST_BYTES: Final = 1 << 20  # of a long message, beside its arrays' data
MAX_LOOKED: Final = 1 << 12  # fields among which the one that a first chunk ends in is looked for
_LENGTH_DELIMITED: Final = 2  # wire type
_ARRAY_VALUE: Final = ProtoArrayRecord.Item.VALUE_FIELD_NUMBER
_FIELDS: Final = {bool: "bool", int: "sint64", float: "double", str: "string", bytes: "bytes"}  # of a header's value
_DATA: Final = (  # from a message down to the bytes of its arrays
    ProtoMessage.CONTENT_FIELD_NUMBER, ProtoRecordDict.ITEMS_FIELD_NUMBER,
    ProtoRecordDict.Item.ARRAY_RECORD_FIELD_NUMBER, ProtoArrayRecord.ITEMS_FIELD_NUMBER,
    _ARRAY_VALUE, ProtoArray.DATA_FIELD_NUMBER,
)  # fmt: skip


def content_parts(records: RecordDict) -> Parts:
    """`records` serialised, in pieces; they serve all the messages that carry them."""
    if (split := header_of(records)) is not None:
        return _message_parts(*split)
    parts: list[Buffer] = []
    for name, record in records.items():
        if isinstance(record, ArrayRecord):
            parts += _record_parts(name, _array_record_parts(record))
        else:
            parts.append(recorddict_to_proto(RecordDict({name: record})).SerializeToString())
    return tuple(parts)


def _message_parts(header: dict[str, Any], vectors: dict[str, npt.NDArray[Any]]) -> Parts:
    """The same of one of our messages, without making records of it: half of the time that a short one takes."""
    values = [ProtoConfigRecord.Item(key=name, value=_value(value)) for name, value in header.items()]
    item = ProtoRecordDict.Item(key="header", config_record=ProtoConfigRecord(items=values))
    parts: Parts = (ProtoRecordDict(items=[item]).SerializeToString(),)
    if not vectors:
        return parts
    arrays: list[Buffer] = []
    for name, vector in vectors.items():
        arrays += _array_parts(name, dtype_name(vector.dtype), vector.shape, RAW, raw(vector))
    return (*parts, *_record_parts("vectors", tuple(arrays)))


def _value(value: Any) -> ProtoConfigRecordValue:
    kind = "uint64" if type(value) is int and value >> 63 > 0 else _FIELDS[type(value)]
    return ProtoConfigRecordValue(**{kind: value})


def _array_record_parts(record: ArrayRecord) -> Parts:
    parts: list[Buffer] = []
    for name, array in record.items():
        parts += _array_parts(name, array.dtype, array.shape, array.stype, array.data)
    return tuple(parts)


def _record_parts(name: str, arrays: Parts) -> Parts:
    value = _nested(ProtoRecordDict.Item.ARRAY_RECORD_FIELD_NUMBER, arrays)
    return _nested(ProtoRecordDict.ITEMS_FIELD_NUMBER, (ProtoRecordDict.Item(key=name).SerializeToString(), *value))


def _array_parts(name: str, dtype: str, shape: Sequence[int], stype: str, data: bytes | memoryview) -> Parts:
    """`data`: bytes, says Flower; from our own records and wire, a view."""
    head = ProtoArray(dtype=dtype, shape=shape, stype=stype).SerializeToString()
    stretch = origin(data) if isinstance(data, memoryview) else None
    value = (head, *_nested(ProtoArray.DATA_FIELD_NUMBER, (stretch or data,)))
    key = ProtoArrayRecord.Item(key=name).SerializeToString()
    return _nested(ProtoArrayRecord.ITEMS_FIELD_NUMBER, (key, *_nested(_ARRAY_VALUE, value)))


def pack(message: FlowerMessage, content: Parts | None = None) -> Outgoing:
    """`message` ready to send; `content` is `content_parts(message.content)`, if that is already known."""
    head = ProtoMessage(metadata=metadata_to_proto(message.metadata))
    if not message.has_content():
        head.error.CopyFrom(error_to_proto(message.error))
        return Outgoing((head.SerializeToString(),))
    parts = content_parts(message.content) if content is None else content
    return Outgoing((head.SerializeToString(), *_nested(ProtoMessage.CONTENT_FIELD_NUMBER, parts)))


def unpack(data: bytearray | memoryview) -> FlowerMessage:
    """The message in `data`; its arrays' bytes are views of `data` if it is long.

    Raises ProtocolError if there is none, or it carries not one of content and error.
    """
    try:
        proto, values = _parsed(memoryview(data).toreadonly())
        content = arrived(proto.content, values) if proto.HasField("content") else None
        error = error_from_proto(proto.error) if proto.HasField("error") else None
        return make_message(metadata=metadata_from_proto(proto.metadata), content=content, error=error)
    except (DecodeError, ValueError, TypeError) as problem:
        raise ProtocolError(f"{len(data)} bytes that are no Flower message") from problem


def _parsed(data: memoryview) -> tuple[ProtoMessage, Sequence[bytes | memoryview]]:
    """The message in `data` and its arrays' bytes. To copy those of a short one is quicker than to look for them."""
    if len(data) > SHORT_BYTES or origin(data) is not None:
        lifter = _Lifter()
        return ProtoMessage.FromString(lifter.lift(data)), lifter.values
    proto = ProtoMessage.FromString(bytes(data))
    arrays = (entry.value for item in proto.content.items for entry in item.array_record.items)
    return proto, [array.data for array in arrays]


class _Lifter:
    """Takes the arrays' bytes out of a long message, uncopied: they go to `values`.

    What else is in it is bounded before anything is made of it: a field of two bytes takes a hundred times as much.
    """

    def __init__(self) -> None:
        self.values: list[bytes | memoryview] = []
        self._fields, self._rest_bytes = MAX_FIELDS, MAX_REST_BYTES

    def lift(self, view: memoryview, path: tuple[int, ...] = _DATA) -> bytes:
        """The protobuf message in `view` without the values of the fields at `path`. Raises DecodeError."""
        parts: list[Any] = []  # buffers in memory
        position = 0
        while position < len(view):
            start = position
            key, position = _read_varint(view, position)
            length = 0
            match key & 7:
                case 0:
                    _, position = _read_varint(view, position)
                case 1 | 5:
                    position += 8 if key & 7 == 1 else 4
                case 2:
                    length, position = _read_varint(view, position)
                    position += length
                case other:
                    raise DecodeError(f"wire type {other}")
            if position > len(view):
                raise DecodeError("a field beyond the end")
            self._fields -= 1
            above = key == path[0] << 3 | _LENGTH_DELIMITED
            self._rest_bytes -= 0 if above else position - start
            if self._fields < 0 or self._rest_bytes < 0:
                raise DecodeError(f"more than {MAX_FIELDS} fields, or {MAX_REST_BYTES} bytes beside arrays")
            if not above:
                parts.append(view[start:position])
            elif len(path) == 1:
                self.values.append(view[position - length : position])
            else:
                parts += _nested(path[0], (self.lift(view[position - length : position], path[1:]),))
        return b"".join(parts)


def shift_of(head: memoryview) -> int:
    """How far a message that begins with `head` must be moved for the array that goes on beyond it to begin at a
    multiple of 8.
    """
    try:
        return -(_beyond(head, 0, len(head), _DATA, iter(range(MAX_LOOKED))) or 0) % 8
    except DecodeError:
        return 0


def _beyond(head: memoryview, position: int, end: int, path: tuple[int, ...], looks: Iterator[int]) -> int | None:
    """Where the value of the field at `path` begins that ends beyond `head`, if that is among the next `looks`."""
    while position < min(end, len(head)) and next(looks, None) is not None:
        key, position = _read_varint(head, position)
        if key & 7 != _LENGTH_DELIMITED:
            raise DecodeError(f"wire type {key & 7}")  # above an array, Flower's messages have no other
        length, position = _read_varint(head, position)
        if key == path[0] << 3 | _LENGTH_DELIMITED:
            if len(path) == 1 and position + length > len(head):
                return position
            if len(path) > 1 and (start := _beyond(head, position, position + length, path[1:], looks)) is not None:
                return start
        position += length
    return None


def _read_varint(view: memoryview, position: int) -> tuple[int, int]:
    """The number that begins at `position` and the position behind it."""
    number = 0
    for index, byte in enumerate(view[position : position + 10]):
        number |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return number, position + index + 1
    raise DecodeError("a number without an end")


def error_reply(code: int, reason: str, message: FlowerMessage) -> FlowerMessage:
    """The reply that tells the sender of `message` of a failure by a code and a fixed sentence."""
    return FlowerMessage(Error(code=code, reason=reason), reply_to=message)


def _nested(field: int, parts: Parts) -> Parts:
    """`parts` as the value of the length-delimited field number `field`."""
    return (_varint(field << 3 | _LENGTH_DELIMITED) + _varint(sum(map(length_of, parts))), *parts)


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
