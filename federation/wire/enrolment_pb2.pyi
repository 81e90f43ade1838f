from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class EnrolRequest(_message.Message):
    __slots__ = ("token", "csr", "node_public_key", "node_signature")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    CSR_FIELD_NUMBER: _ClassVar[int]
    NODE_PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    NODE_SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    token: str
    csr: bytes
    node_public_key: bytes
    node_signature: bytes
    def __init__(self, token: _Optional[str] = ..., csr: _Optional[bytes] = ..., node_public_key: _Optional[bytes] = ..., node_signature: _Optional[bytes] = ...) -> None: ...

class RenewRequest(_message.Message):
    __slots__ = ("csr", "endorsement")
    CSR_FIELD_NUMBER: _ClassVar[int]
    ENDORSEMENT_FIELD_NUMBER: _ClassVar[int]
    csr: bytes
    endorsement: bytes
    def __init__(self, csr: _Optional[bytes] = ..., endorsement: _Optional[bytes] = ...) -> None: ...

class EnrolReply(_message.Message):
    __slots__ = ("certificate", "crl", "fleet_address", "lane_address", "roots")
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    CRL_FIELD_NUMBER: _ClassVar[int]
    FLEET_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    LANE_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    ROOTS_FIELD_NUMBER: _ClassVar[int]
    certificate: bytes
    crl: bytes
    fleet_address: str
    lane_address: str
    roots: bytes
    def __init__(self, certificate: _Optional[bytes] = ..., crl: _Optional[bytes] = ..., fleet_address: _Optional[str] = ..., lane_address: _Optional[str] = ..., roots: _Optional[bytes] = ...) -> None: ...

class Empty(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Member(_message.Message):
    __slots__ = ("institution", "node_id", "certificate")
    INSTITUTION_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    institution: str
    node_id: int
    certificate: bytes
    def __init__(self, institution: _Optional[str] = ..., node_id: _Optional[int] = ..., certificate: _Optional[bytes] = ...) -> None: ...

class RosterReply(_message.Message):
    __slots__ = ("members",)
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    members: _containers.RepeatedCompositeFieldContainer[Member]
    def __init__(self, members: _Optional[_Iterable[_Union[Member, _Mapping]]] = ...) -> None: ...

class HealthReply(_message.Message):
    __slots__ = ("serving", "enrolment_address", "lane_address")
    SERVING_FIELD_NUMBER: _ClassVar[int]
    ENROLMENT_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    LANE_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    serving: bool
    enrolment_address: str
    lane_address: str
    def __init__(self, serving: _Optional[bool] = ..., enrolment_address: _Optional[str] = ..., lane_address: _Optional[str] = ...) -> None: ...

class CrlReply(_message.Message):
    __slots__ = ("crl", "roots")
    CRL_FIELD_NUMBER: _ClassVar[int]
    ROOTS_FIELD_NUMBER: _ClassVar[int]
    crl: bytes
    roots: bytes
    def __init__(self, crl: _Optional[bytes] = ..., roots: _Optional[bytes] = ...) -> None: ...

class ProbeRequest(_message.Message):
    __slots__ = ("echo",)
    ECHO_FIELD_NUMBER: _ClassVar[int]
    echo: bytes
    def __init__(self, echo: _Optional[bytes] = ...) -> None: ...

class ProbeReply(_message.Message):
    __slots__ = ("echo", "institution", "node_id", "fleet")
    ECHO_FIELD_NUMBER: _ClassVar[int]
    INSTITUTION_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    FLEET_FIELD_NUMBER: _ClassVar[int]
    echo: bytes
    institution: str
    node_id: int
    fleet: str
    def __init__(self, echo: _Optional[bytes] = ..., institution: _Optional[str] = ..., node_id: _Optional[int] = ..., fleet: _Optional[str] = ...) -> None: ...

class HeadsRequest(_message.Message):
    __slots__ = ("keys", "head", "proof", "old", "seen", "cosigned")
    KEYS_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    OLD_FIELD_NUMBER: _ClassVar[int]
    SEEN_FIELD_NUMBER: _ClassVar[int]
    COSIGNED_FIELD_NUMBER: _ClassVar[int]
    keys: bytes
    head: bytes
    proof: _containers.RepeatedScalarFieldContainer[bytes]
    old: int
    seen: int
    cosigned: bytes
    def __init__(self, keys: _Optional[bytes] = ..., head: _Optional[bytes] = ..., proof: _Optional[_Iterable[bytes]] = ..., old: _Optional[int] = ..., seen: _Optional[int] = ..., cosigned: _Optional[bytes] = ...) -> None: ...

class CosignedHead(_message.Message):
    __slots__ = ("keys", "note", "proof")
    KEYS_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    keys: bytes
    note: bytes
    proof: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, keys: _Optional[bytes] = ..., note: _Optional[bytes] = ..., proof: _Optional[_Iterable[bytes]] = ...) -> None: ...

class HeadsReply(_message.Message):
    __slots__ = ("keys", "head", "proof", "old", "cosigned", "problem", "others")
    KEYS_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    OLD_FIELD_NUMBER: _ClassVar[int]
    COSIGNED_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    OTHERS_FIELD_NUMBER: _ClassVar[int]
    keys: bytes
    head: bytes
    proof: _containers.RepeatedScalarFieldContainer[bytes]
    old: int
    cosigned: bytes
    problem: str
    others: _containers.RepeatedCompositeFieldContainer[CosignedHead]
    def __init__(self, keys: _Optional[bytes] = ..., head: _Optional[bytes] = ..., proof: _Optional[_Iterable[bytes]] = ..., old: _Optional[int] = ..., cosigned: _Optional[bytes] = ..., problem: _Optional[str] = ..., others: _Optional[_Iterable[_Union[CosignedHead, _Mapping]]] = ...) -> None: ...
