"""Flower `Message`s as the lane carries them: serialised `flwr.proto.Message`s, made without copying an array.

Flower's own serialisation copies each array at every level that it is nested in, 0.36 s for 40 MB. Here the levels
above an array are written and read by hand (tag, length, value; protobuf's wire format) and the array's bytes are only
referred to. Tests hold that the result is what Flower's own code makes and reads.
"""

from __future__ import annotations

from typing import Any, Final, TypeAlias

from flwr.app import ArrayRecord, Error, RecordDict
from flwr.app import Message as FlowerMessage
from flwr.common.serde import message_from_proto, recorddict_to_proto
from flwr.common.serde_utils import error_to_proto, metadata_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.recorddict_pb2 import Array as ProtoArray
from flwr.proto.recorddict_pb2 import ArrayRecord as ProtoArrayRecord
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from google.protobuf.message import DecodeError

from sovfed.federation.errors import ProtocolError
from sovfed.federation.stored import origin
from sovfed.federation.wire.flower import arrays_of
from sovfed.federation.wire.lane import Buffer, Outgoing, length_of

Parts: TypeAlias = tuple[Buffer, ...]
_LENGTH_DELIMITED: Final = 2  # wire type
_DATA: Final = (  # from a message down to the bytes of its arrays
    ProtoMessage.CONTENT_FIELD_NUMBER, ProtoRecordDict.ITEMS_FIELD_NUMBER,
    ProtoRecordDict.Item.ARRAY_RECORD_FIELD_NUMBER, ProtoArrayRecord.ITEMS_FIELD_NUMBER,
    ProtoArrayRecord.Item.VALUE_FIELD_NUMBER, ProtoArray.DATA_FIELD_NUMBER,
)  # fmt: skip


def content_parts(records: RecordDict) -> Parts:
    """`records` serialised, in pieces; they serve all the messages that carry them."""
    parts: list[Buffer] = []
    for name, record in records.items():
        if isinstance(record, ArrayRecord):
            value = _nested(ProtoRecordDict.Item.ARRAY_RECORD_FIELD_NUMBER, _array_record_parts(record))
            item = (ProtoRecordDict.Item(key=name).SerializeToString(), *value)
            parts += _nested(ProtoRecordDict.ITEMS_FIELD_NUMBER, item)
        else:
            parts.append(recorddict_to_proto(RecordDict({name: record})).SerializeToString())
    return tuple(parts)


def _array_record_parts(record: ArrayRecord) -> Parts:
    parts: list[Buffer] = []
    for name, array in record.items():
        head = ProtoArray(dtype=array.dtype, shape=array.shape, stype=array.stype).SerializeToString()
        data: Any = array.data  # bytes, says Flower; from our own records and wire, a view
        stretch = origin(data) if isinstance(data, memoryview) else None
        value = (head, *_nested(ProtoArray.DATA_FIELD_NUMBER, (stretch or data,)))
        key = ProtoArrayRecord.Item(key=name).SerializeToString()
        item = (key, *_nested(ProtoArrayRecord.Item.VALUE_FIELD_NUMBER, value))
        parts += _nested(ProtoArrayRecord.ITEMS_FIELD_NUMBER, item)
    return tuple(parts)


def pack(message: FlowerMessage, content: Parts | None = None) -> Outgoing:
    """`message` ready to send; `content` is `content_parts(message.content)`, if that is already known."""
    head = ProtoMessage(metadata=metadata_to_proto(message.metadata))
    if not message.has_content():
        head.error.CopyFrom(error_to_proto(message.error))
        return Outgoing((head.SerializeToString(),))
    parts = content_parts(message.content) if content is None else content
    return Outgoing((head.SerializeToString(), *_nested(ProtoMessage.CONTENT_FIELD_NUMBER, parts)))


def unpack(data: bytearray | memoryview) -> FlowerMessage:
    """The message in `data`; its arrays' bytes are views of `data`.

    Raises ProtocolError if there is none, or it carries not one of content and error.
    """
    values: list[memoryview] = []
    try:
        message = message_from_proto(ProtoMessage.FromString(_lift(memoryview(data).toreadonly(), _DATA, values)))
    except (DecodeError, ValueError, TypeError) as error:
        raise ProtocolError(f"{len(data)} bytes that are no Flower message") from error
    empty_arrays = arrays_of(message.content) if message.has_content() else []
    if len(empty_arrays) != len(values):
        raise ProtocolError(f"{len(empty_arrays)} arrays with {len(values)} times data")
    for array, view in zip(empty_arrays, values, strict=True):
        array.data = view  # type: ignore[assignment]
    return message


def _lift(view: memoryview, path: tuple[int, ...], values: list[memoryview]) -> bytes:
    """The protobuf message in `view` without the values of the fields at `path`, which go to `values`, uncopied."""
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
        if key != path[0] << 3 | _LENGTH_DELIMITED:
            parts.append(view[start:position])
        elif len(path) == 1:
            values.append(view[position - length : position])
        else:
            parts += _nested(path[0], (_lift(view[position - length : position], path[1:], values),))
    return b"".join(parts)


def shift_of(head: memoryview) -> int:
    """How far a message that begins with `head` must be moved for the array that goes on beyond it to begin at a
    multiple of 8.
    """
    try:
        return -(_beyond(head, 0, len(head), _DATA) or 0) % 8
    except DecodeError:
        return 0


def _beyond(head: memoryview, position: int, end: int, path: tuple[int, ...]) -> int | None:
    """Where the value of the field at `path` begins that ends beyond `head`."""
    while position < min(end, len(head)):
        key, position = _read_varint(head, position)
        if key & 7 != _LENGTH_DELIMITED:
            raise DecodeError(f"wire type {key & 7}")  # above an array, Flower's messages have no other
        length, position = _read_varint(head, position)
        if key == path[0] << 3 | _LENGTH_DELIMITED:
            if len(path) == 1 and position + length > len(head):
                return position
            if len(path) > 1 and (start := _beyond(head, position, position + length, path[1:])) is not None:
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
