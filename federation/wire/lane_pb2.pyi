from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class LaneNode(_message.Message):
    __slots__ = ("node_id", "node_key_digest", "token_sha256")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    NODE_KEY_DIGEST_FIELD_NUMBER: _ClassVar[int]
    TOKEN_SHA256_FIELD_NUMBER: _ClassVar[int]
    node_id: int
    node_key_digest: str
    token_sha256: bytes
    def __init__(self, node_id: _Optional[int] = ..., node_key_digest: _Optional[str] = ..., token_sha256: _Optional[bytes] = ...) -> None: ...

class LaneRun(_message.Message):
    __slots__ = ("run", "owner", "nodes", "over")
    RUN_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    OVER_FIELD_NUMBER: _ClassVar[int]
    run: str
    owner: bytes
    nodes: _containers.RepeatedCompositeFieldContainer[LaneNode]
    over: bool
    def __init__(self, run: _Optional[str] = ..., owner: _Optional[bytes] = ..., nodes: _Optional[_Iterable[_Union[LaneNode, _Mapping]]] = ..., over: _Optional[bool] = ...) -> None: ...

class LaneRunReply(_message.Message):
    __slots__ = ("known",)
    KNOWN_FIELD_NUMBER: _ClassVar[int]
    known: bool
    def __init__(self, known: _Optional[bool] = ...) -> None: ...
