"""The Flower edge of the codec: our messages as Flower `Message`s and back. One ConfigRecord, one ArrayRecord.

Flower carries each record, array and chunk of a message as an object, with requests of its own. A message without
vectors but short ones of bytes is therefore one ConfigRecord alone.
"""

from __future__ import annotations

import time
from collections import UserDict
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from flwr.app import Message as FlowerMessage
from flwr.app.message import make_message
from flwr.app.metadata import Metadata
from flwr.common.serde import recorddict_from_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict

from sovfed.federation.codec import check, decode, encode, vectors
from sovfed.federation.errors import WIRE_SENTENCES, ProtocolError
from sovfed.federation.messages import MAX_PARAMETERS, Message

RAW: Final = "sovfed.raw.le"  # serialisation type: the array's little-endian bytes, nothing else
SERVER_NODE_ID: Final = 1  # flwr.common.constant.SUPERLINK_NODE_ID, held by a contract test
TTL_S: Final = 12 * 3600.0
SHORT_BYTES: Final = 4096  # a vector of bytes up to this stands in the header
_DTYPES: Final[dict[str, np.dtype[Any]]] = {
    name: np.dtype(name).newbyteorder("<") for name in ("float32", "float64", "uint8", "uint64")
}
_SCALARS: Final = ("double", "sint64", "uint64", "bool", "string", "bytes")  # as Flower names them in its messages


def to_records(message: Message) -> RecordDict:
    """The RecordDict that carries `message`; vectors are serialised as raw little-endian bytes, uncopied.

    Whoever holds the vectors must not write into them any more. The records are made when somebody looks at them:
    within one process nobody does, and `from_records` takes the message itself, once it is checked.
    """
    records = RecordDict()
    records.__dict__["_data"] = _Carried(_read_only(message))
    return records


class _Carried(UserDict[str, Any]):
    """The records of a message, made at the first look, from when on they are what counts."""

    def __init__(self, message: Message) -> None:
        self._message, self._checked = message, False  # UserDict's own would set `data`

    @property
    def message(self) -> Message | None:
        """The message if nobody has looked at, or changed, its records."""
        return None if "data" in self.__dict__ else self._message

    def check(self) -> Message:
        """The message, as `decode` takes it. Raises ProtocolError."""
        if not self._checked:
            check(self._message)
            self._checked = True
        return self._message

    @cached_property
    def data(self) -> dict[str, Any]:  # type: ignore[override]
        values, parts = _split(self._message)
        arrays = ArrayRecord()
        for name, vector in parts.items():
            arrays[name] = _array(vector)
        header = ConfigRecord(values)
        return {"header": header, "vectors": arrays} if arrays else {"header": header}


class _Arrived(UserDict[str, Any]):
    """Records that came over a wire, made at the first look: `from_records` takes what came as it is.

    `views` are the bytes of all arrays in `proto`, in their order; in `proto` itself those of long ones are left out.
    """

    def __init__(self, proto: ProtoRecordDict, views: Sequence[bytes | memoryview]) -> None:
        self._proto, self._views = proto, views  # UserDict's own would set `data`

    @property
    def proto(self) -> ProtoRecordDict | None:
        """What came, if nobody has looked at, or changed, the records."""
        return None if "data" in self.__dict__ else self._proto

    @cached_property
    def data(self) -> dict[str, Any]:  # type: ignore[override]
        try:
            records = recorddict_from_proto(self._proto)
        except (ValueError, TypeError, AttributeError) as error:
            raise ProtocolError("records that Flower does not know") from error
        empty_arrays = arrays_of(records)
        if len(empty_arrays) != len(self._views):
            raise ProtocolError(f"{len(empty_arrays)} arrays with {len(self._views)} times data")
        for array, view in zip(empty_arrays, self._views, strict=True):
            array.data = view  # type: ignore[assignment]
        return dict(records)

    def split(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        """The header and the vectors, as `_split` made them. Raises ProtocolError on anything else."""
        values, vectors_, views = dict[str, Any](), dict[str, npt.NDArray[Any]](), iter(self._views)
        for item in self._proto.items:
            if item.key == "header" and item.HasField("config_record") and not values:
                for field in item.config_record.items:
                    kind = field.value.WhichOneof("value")
                    values[field.key] = getattr(field.value, kind) if kind in _SCALARS else None
            elif item.key == "vectors" and item.HasField("array_record") and not vectors_:
                for entry in item.array_record.items:
                    array = entry.value
                    if entry.key in vectors_:
                        raise ProtocolError(f"vector {entry.key[:40]!r} is there twice")
                    vectors_[entry.key] = _vector(entry.key, array.stype, array.dtype, array.shape, next(views))
            else:
                raise ProtocolError(f"a record {item.key[:40]!r}, expected one 'header' and at most one 'vectors'")
        return values, vectors_


def arrived(proto: ProtoRecordDict, views: Sequence[bytes | memoryview]) -> RecordDict:
    """The records in `proto`, the bytes of whose arrays are `views`.

    Raises ProtocolError if they are not as many, or one of the records is there twice: Flower would log its name as it
    came.
    """
    if len({item.key for item in proto.items}) != len(proto.items):
        raise ProtocolError("a record is there twice")
    count = sum(len(item.array_record.items) for item in proto.items if item.HasField("array_record"))
    if count != len(views):
        raise ProtocolError(f"{count} arrays with {len(views)} times data")
    records = RecordDict()
    records.__dict__["_data"] = _Arrived(proto, views)
    return records


def header_of(records: RecordDict) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]] | None:
    """Header and vectors of a message that goes out and whose records nobody has looked at yet, else None."""
    carried = _carried(records)
    return None if carried is None else _split(carried)


def refusal_in(records: RecordDict) -> str:
    """The reason of the refusal that `records` are, one of `WIRE_SENTENCES`; "" if they are none."""
    data = records.__dict__["_data"]
    try:
        if isinstance(data, _Arrived) and data.proto is not None:
            header: Any = data.split()[0] if len(data.proto.items) == 1 else {}  # a refusal has no vectors
        else:
            header = records.get("header") or {}
        reason = header.get("reason") if header.get("kind") == "refusal" else ""
    except (ProtocolError, AttributeError):
        return ""
    return reason if isinstance(reason, str) and reason in WIRE_SENTENCES else ""


def _split(message: Message) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    """What stands in the header, short vectors as bytes, and the other vectors."""
    kind, scalars, parts = encode(message)
    values: dict[str, Any] = {"kind": kind, **scalars}
    values |= {name: vector.tobytes() for name, vector in parts.items() if _is_short(vector)}
    return values, {name: vector for name, vector in parts.items() if name not in values}


def arrays_of(records: RecordDict) -> list[Array]:
    """All arrays in `records`.

    Not by `RecordDict.array_records`: what that makes refers to itself and to the records, and so keeps a model in
    memory until Python looks for such circles.
    """
    return [array for record in records.values() if isinstance(record, ArrayRecord) for array in record.values()]


def _carried(records: RecordDict) -> Message | None:
    """The message that `to_records` was given in this process, if its records were not made yet."""
    data = records.__dict__["_data"]
    return data.message if isinstance(data, _Carried) else None


def _read_only(message: Message) -> Message:
    """`message` with vectors that cannot be written into, as those that came over a wire."""
    views = {name: vector.view() for name, vector in vectors(message).items() if vector.flags.writeable}
    if not views:
        return message
    for view in views.values():
        view.flags.writeable = False
    protected: Message = object.__new__(type(message))  # as copy, without the way that pickles take
    vars(protected).update(vars(message) | views)
    return protected


def _is_short(vector: npt.NDArray[Any]) -> bool:
    return vector.dtype == np.uint8 and vector.size <= SHORT_BYTES


def _array(vector: npt.NDArray[Any]) -> Array:
    array = Array(dtype=str(vector.dtype), shape=vector.shape, stype=RAW, data=b"")
    array.data = raw(vector)  # type: ignore[assignment]
    return array


def raw(vector: npt.NDArray[Any]) -> bytes | memoryview:
    """The bytes of `vector`, little-endian, uncopied where they are so already."""
    little = np.ascontiguousarray(vector, vector.dtype.newbyteorder("<"))
    return little.data.cast("B").toreadonly() if little.size else b""


def from_records(records: RecordDict, *, judged: bool = True) -> Message:
    """The message that `records` carries. Raises ProtocolError on anything that does not fit exactly.

    What is not `judged` is only passed on, as `decode` has it.
    """
    data = records.__dict__["_data"]
    if isinstance(data, _Carried) and data.message is not None:
        return data.check()
    if isinstance(data, _Arrived) and data.proto is not None:
        return _message(*data.split(), judged=judged)
    if "header" not in records or not set(records) <= {"header", "vectors"}:
        raise ProtocolError(f"records {sorted(records)[:8]}, expected ['header', 'vectors']")
    header, arrays = records["header"], records.get("vectors", ArrayRecord())
    if not isinstance(header, ConfigRecord) or not isinstance(arrays, ArrayRecord):
        raise ProtocolError("records of the wrong type")
    parts = {name: _vector(name, a.stype, a.dtype, a.shape, a.data) for name, a in arrays.items()}
    return _message(dict(header), parts, judged=judged)


def _message(values: dict[str, Any], parts: dict[str, npt.NDArray[Any]], *, judged: bool) -> Message:
    """The message of which `_split` made these. Raises ProtocolError."""
    kind = values.pop("kind", None)
    if not isinstance(kind, str):
        raise ProtocolError("the header names no kind")
    short = {name: np.frombuffer(value, np.uint8) for name, value in values.items() if isinstance(value, bytes)}
    if twice := sorted(short.keys() & parts.keys()):
        raise ProtocolError(f"vectors that are there twice: {twice[:8]}")
    scalars = {name: value for name, value in values.items() if name not in short}
    return decode(kind, scalars, {**short, **parts}, judged=judged)


def _vector(name: str, stype: str, dtype_name: str, shape: Sequence[int], data: bytes | memoryview) -> npt.NDArray[Any]:
    dtype = _DTYPES.get(dtype_name)
    if stype != RAW or dtype is None:
        raise ProtocolError(f"vector {name[:40]!r}: serialised as {stype[:40]!r} of {dtype_name[:40]!r}")
    if len(shape) != 1 or not 0 <= shape[0] <= MAX_PARAMETERS:
        raise ProtocolError(f"vector {name[:40]!r}: shape {list(shape)[:8]}")
    if len(data) != shape[0] * dtype.itemsize:
        raise ProtocolError(f"vector {name[:40]!r}: {len(data)} bytes for shape {list(shape)} of {dtype}")
    return np.frombuffer(data, dtype=dtype)


def new_message(
    content: RecordDict, *, run_id: int, node_id: int, kind: str, group: str, ttl_s: float = TTL_S
) -> FlowerMessage:
    """A Flower message to node `node_id`; `kind` is Flower's type, such as "train", "evaluate" or "query.lane"."""
    metadata = Metadata(
        run_id=run_id, message_id="", src_node_id=SERVER_NODE_ID, dst_node_id=node_id, reply_to_message_id="",
        group_id=group, created_at=time.time(), ttl=ttl_s, message_type=kind,
    )  # fmt: skip
    return make_message(metadata=metadata, content=content)


def size_bytes(message: FlowerMessage) -> int:
    """Bytes of the vectors that `message` carries (an error carries none)."""
    if not message.has_content():
        return 0
    if (carried := _carried(message.content)) is not None:
        return sum(vector.nbytes for vector in vectors(carried).values())
    headers = (record for record in message.content.values() if isinstance(record, ConfigRecord))
    short = (value for header in headers for value in header.values() if isinstance(value, bytes))
    return sum(len(array.data) for array in arrays_of(message.content)) + sum(map(len, short))
