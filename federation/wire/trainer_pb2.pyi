from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Vector(_message.Message):
    __slots__ = ("name", "dtype", "length", "offset")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    name: str
    dtype: str
    length: int
    offset: int
    def __init__(self, name: _Optional[str] = ..., dtype: _Optional[str] = ..., length: _Optional[int] = ..., offset: _Optional[int] = ...) -> None: ...

class Envelope(_message.Message):
    __slots__ = ("kind", "scalars", "vectors")
    KIND_FIELD_NUMBER: _ClassVar[int]
    SCALARS_FIELD_NUMBER: _ClassVar[int]
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    kind: str
    scalars: str
    vectors: _containers.RepeatedCompositeFieldContainer[Vector]
    def __init__(self, kind: _Optional[str] = ..., scalars: _Optional[str] = ..., vectors: _Optional[_Iterable[_Union[Vector, _Mapping]]] = ...) -> None: ...

class HealthReply(_message.Message):
    __slots__ = ("ready", "device", "precision", "reason", "answered", "isolation")
    READY_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ANSWERED_FIELD_NUMBER: _ClassVar[int]
    ISOLATION_FIELD_NUMBER: _ClassVar[int]
    ready: bool
    device: str
    precision: str
    reason: str
    answered: int
    isolation: str
    def __init__(self, ready: _Optional[bool] = ..., device: _Optional[str] = ..., precision: _Optional[str] = ..., reason: _Optional[str] = ..., answered: _Optional[int] = ..., isolation: _Optional[str] = ...) -> None: ...
