"""The binary messages of secure aggregation: fixed layouts, big-endian, one decoder each.

Every message starts with `svsa`, a version and a kind. A decoder copies slices of its input and nothing else, so it
never allocates more than it was given, and refuses: another kind or version, more bytes than the kind's limit, a
field out of range, and bytes left over. `encode(decode(x)) == x` for every x that is accepted.

`signed()` is what the sender's signature covers, itself a labelled digest.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar, Final, Self

from sovfed.federation.errors import IdentityError, ProtocolError
from sovfed.federation.secagg.keys import (
    CLASSICAL,
    HYBRID,
    KEM_CIPHERTEXT_BYTES,
    KEM_PUBLIC_BYTES,
    SIGNATURE_BYTES,
    Signer,
    digest,
)
from sovfed.federation.secagg.shares import MAX_HOLDERS

MAGIC: Final = b"svsa"
VERSION: Final = 1
CERTIFICATE_LIMIT: Final = 4096
HASH: Final = 32
RUN_BYTES: Final = 16
BITMAP: Final = 32
SEALED: Final = 48  # a 32-byte share and the tag
TAG: Final = 16
COMMITMENT: Final = 16
MAX_HEADER: Final = 4096  # words


class Reader:
    """Takes fields off a message; raises ProtocolError when the message does not hold what it should."""

    def __init__(self, data: bytes, kind: int, limit: int, name: str) -> None:
        self._data, self._name = data, name
        self._at = 6
        if len(data) > limit:
            raise ProtocolError(f"{name}: {len(data)} bytes, limit {limit}")
        if data[:6] != MAGIC + bytes((VERSION, kind)):
            raise ProtocolError(f"{name}: starts with {data[:6].hex()}, expected version {VERSION} and kind {kind}")

    def take(self, size: int) -> bytes:
        if self._at + size > len(self._data):
            raise ProtocolError(f"{self._name}: truncated at byte {len(self._data)}")
        self._at += size
        return bytes(self._data[self._at - size : self._at])

    def number(self, size: int, low: int = 0, high: int | None = None) -> int:
        value = int.from_bytes(self.take(size), "big")
        self.require(value >= low and (high is None or value <= high), f"number {value} out of range")
        return value

    def real(self) -> float:
        return float(struct.unpack(">d", self.take(8))[0])

    def variable(self, limit: int) -> bytes:
        return self.take(self.number(2, 0, limit))

    def members(self) -> tuple[int, ...]:
        bitmap = int.from_bytes(self.take(BITMAP), "big")
        members = tuple(member for member in range(bitmap.bit_length()) if bitmap >> member & 1)
        self.require(not members or members[-1] < MAX_HOLDERS, "member out of range")
        return members

    def require(self, holds: bool, otherwise: str) -> None:
        if not holds:
            raise ProtocolError(f"{self._name}: {otherwise}")

    def end(self) -> None:
        self.require(self._at == len(self._data), f"{len(self._data) - self._at} bytes too many")


def number(value: int, size: int) -> bytes:
    return value.to_bytes(size, "big")


def variable(data: bytes) -> bytes:
    return number(len(data), 2) + data


def bitmap(members: Iterable[int]) -> bytes:
    """32 bytes, bit i from the right set for member i."""
    return number(sum(1 << member for member in members), BITMAP)


class Wire(ABC):
    """A message: `encode` gives head and body, `decode` takes them apart again."""

    __slots__ = ()
    KIND: ClassVar[int]
    LIMIT: ClassVar[int]

    @abstractmethod
    def body(self) -> bytes: ...

    @classmethod
    @abstractmethod
    def read(cls, reader: Reader) -> Self: ...

    def encode(self) -> bytes:
        return MAGIC + bytes((VERSION, self.KIND)) + self.body()

    @classmethod
    def decode(cls, data: bytes) -> Self:
        reader = Reader(data, cls.KIND, cls.LIMIT, cls.__name__)
        message = cls.read(reader)
        reader.end()
        return message


@dataclass(frozen=True)
class Signed(Wire):
    """A message whose last field is the sender's signature over everything before it."""

    signature: bytes

    @abstractmethod
    def content(self) -> bytes: ...

    def body(self) -> bytes:
        return self.content() + self.signature

    def signed(self) -> bytes:
        return digest(type(self).__name__, self.content())

    def sign(self, signer: Signer) -> Self:
        return replace(self, signature=signer(self.signed()))


@dataclass(frozen=True)
class Offer(Signed):
    """Coordinator to all: the parameters of a run's secure aggregation. `expires` in Unix seconds.

    `exchange` is the coordinator's X25519 key, from which the keys that authenticate payloads come.
    """

    KIND, LIMIT = 1, 256 + CERTIFICATE_LIMIT
    run: bytes
    epoch: int
    config: bytes
    bits: int
    clip: float
    max_weight: int
    fraction_bits: int
    min_cohort: int
    max_size: int
    max_metrics: int
    expires: int
    exchange: bytes
    certificate: bytes

    def content(self) -> bytes:
        return b"".join((
            self.run, number(self.epoch, 4), self.config, number(self.bits, 1), struct.pack(">d", self.clip),
            number(self.max_weight, 8), number(self.fraction_bits, 1), number(self.min_cohort, 2),
            number(self.max_size, 8), number(self.max_metrics, 2), number(self.expires, 8), self.exchange,
            variable(self.certificate),
        ))  # fmt: skip

    @classmethod
    def read(cls, reader: Reader) -> Self:
        run, epoch = reader.take(RUN_BYTES), reader.number(4)
        config, bits = reader.take(HASH), reader.number(1)
        clip, max_weight, fraction_bits = reader.real(), reader.number(8, 1, 2**48), reader.number(1, 0, 48)
        min_cohort, max_size = reader.number(2, 1, MAX_HOLDERS), reader.number(8, 0, 2**40)
        max_metrics, expires = reader.number(2, 0, MAX_HEADER - 2), reader.number(8)
        exchange, certificate = reader.take(32), reader.variable(CERTIFICATE_LIMIT)
        return cls(
            reader.take(SIGNATURE_BYTES), run, epoch, config, bits, clip, max_weight, fraction_bits, min_cohort,
            max_size, max_metrics, expires, exchange, certificate,
        )  # fmt: skip


@dataclass(frozen=True)
class KeyAd(Signed):
    """Institution to coordinator, and on to all: its keys for this run, under its certificate."""

    KIND, LIMIT = 2, 512 + KEM_PUBLIC_BYTES + CERTIFICATE_LIMIT
    offer: bytes
    suite: int
    exchange: bytes
    kem: bytes
    nonce: bytes
    expires: int
    certificate: bytes

    def content(self) -> bytes:
        return b"".join((
            self.offer, number(self.suite, 1), self.exchange, self.kem, self.nonce, number(self.expires, 8),
            variable(self.certificate),
        ))  # fmt: skip

    @classmethod
    def read(cls, reader: Reader) -> Self:
        offer, suite = reader.take(HASH), reader.number(1, CLASSICAL, HYBRID)
        exchange, kem = reader.take(32), reader.take(KEM_PUBLIC_BYTES if suite == HYBRID else 0)
        nonce, expires, certificate = reader.take(32), reader.number(8), reader.variable(CERTIFICATE_LIMIT)
        return cls(reader.take(SIGNATURE_BYTES), offer, suite, exchange, kem, nonce, expires, certificate)


@dataclass(frozen=True)
class RosterList(Wire):
    """Coordinator to all: every key advertisement, in the order of the institutions' names."""

    KIND, LIMIT = 3, 16 + MAX_HOLDERS * (KeyAd.LIMIT + 2)
    ads: tuple[bytes, ...]

    def body(self) -> bytes:
        return number(len(self.ads), 1) + b"".join(variable(ad) for ad in self.ads)

    @classmethod
    def read(cls, reader: Reader) -> Self:
        return cls(tuple(reader.variable(KeyAd.LIMIT) for _ in range(reader.number(1, 1, MAX_HOLDERS))))


@dataclass(frozen=True)
class Capsule:
    """What the lower of two members sends the higher: ML-KEM ciphertext (empty if classical), MAC, signature."""

    ciphertext: bytes
    mac: bytes
    signature: bytes


@dataclass(frozen=True)
class Capsules(Wire):
    """Member `index`'s capsules to all members above it. `roster` is R."""

    KIND, LIMIT = 4, 64 + MAX_HOLDERS * (KEM_CIPHERTEXT_BYTES + HASH + SIGNATURE_BYTES)
    roster: bytes
    index: int
    suite: int
    items: tuple[Capsule, ...]

    def body(self) -> bytes:
        head = self.roster + bytes((self.index, self.suite, len(self.items)))
        return head + b"".join(item.ciphertext + item.mac + item.signature for item in self.items)

    @classmethod
    def read(cls, reader: Reader) -> Self:
        roster, index = reader.take(HASH), reader.number(1, 0, MAX_HOLDERS - 1)
        suite, count = reader.number(1, CLASSICAL, HYBRID), reader.number(1, 0, MAX_HOLDERS)
        size = KEM_CIPHERTEXT_BYTES if suite == HYBRID else 0
        items = tuple(Capsule(reader.take(size), reader.take(HASH), reader.take(SIGNATURE_BYTES)) for _ in range(count))
        return cls(roster, index, suite, items)


@dataclass(frozen=True)
class CapsulesFor(Capsules):
    """Coordinator to member `index`: the capsules of all members below it, in order."""

    KIND = 5


@dataclass(frozen=True)
class Confirmations(Wire):
    """Member `index`'s MACs to all members below it."""

    KIND, LIMIT = 6, 64 + MAX_HOLDERS * HASH
    roster: bytes
    index: int
    macs: tuple[bytes, ...]

    def body(self) -> bytes:
        return self.roster + bytes((self.index, len(self.macs))) + b"".join(self.macs)

    @classmethod
    def read(cls, reader: Reader) -> Self:
        roster, index = reader.take(HASH), reader.number(1, 0, MAX_HOLDERS - 1)
        return cls(roster, index, tuple(reader.take(HASH) for _ in range(reader.number(1, 0, MAX_HOLDERS))))


@dataclass(frozen=True)
class ConfirmationsFor(Confirmations):
    """Coordinator to member `index`: the MACs of all members above it, in order."""

    KIND = 7


@dataclass(frozen=True)
class Complaint(Wire):
    """Member `index` to the coordinator, in the place of an answer: a key or share of `peer` does not hold."""

    KIND, LIMIT = 16, 16
    index: int
    peer: int

    def body(self) -> bytes:
        return bytes((self.index, self.peer))

    @classmethod
    def read(cls, reader: Reader) -> Self:
        return cls(reader.number(1, 0, MAX_HOLDERS - 1), reader.number(1, 0, MAX_HOLDERS - 1))


class PeerError(IdentityError):
    """A peer has not shown the key that it should hold; `complaint` tells the coordinator of whom, and no more."""

    def __init__(self, message: str, complaint: Complaint) -> None:
        super().__init__(message)
        self.complaint = complaint


class ShareError(ProtocolError):
    """A dealer's share does not open; `complaint` tells the coordinator of whom, and no more."""

    def __init__(self, message: str, complaint: Complaint) -> None:
        super().__init__(message)
        self.complaint = complaint


@dataclass(frozen=True)
class Begin(Signed):
    """M1, with the model: an attempt at a round.

    `model`, `task` (the rest of the request) and `subject` (the records it is about) are digests that each member
    computes itself.
    """

    KIND, LIMIT = 8, 512
    roster: bytes
    round: int
    attempt: int
    purpose: int
    cohort: tuple[int, ...]
    size: int
    metrics: int
    model: bytes
    task: bytes
    subject: bytes

    def content(self) -> bytes:
        return b"".join((
            self.roster, number(self.round, 4), number(self.attempt, 2), number(self.purpose, 1), bitmap(self.cohort),
            number(self.size, 8), number(self.metrics, 2), self.model, self.task, self.subject,
        ))  # fmt: skip

    @classmethod
    def read(cls, reader: Reader) -> Self:
        roster, number_, attempt, purpose = reader.take(HASH), reader.number(4), reader.number(2), reader.number(1)
        cohort, size, metrics = reader.members(), reader.number(8, 0, 2**40), reader.number(2, 0, MAX_HEADER - 2)
        model, task, subject = reader.take(HASH), reader.take(HASH), reader.take(HASH)
        signature = reader.take(SIGNATURE_BYTES)
        return cls(signature, roster, number_, attempt, purpose, cohort, size, metrics, model, task, subject)


@dataclass(frozen=True)
class Masked(Wire):
    """M2 without its payload, which travels beside it as a vector of words.

    `sealed_self[h]` and `sealed_pairs[h]` are holder h's shares of this member's own seed and of its pairwise seeds.
    """

    KIND = 9
    LIMIT = 1024 + 8 * MAX_HEADER + MAX_HOLDERS * (COMMITMENT + SEALED + 32 * MAX_HOLDERS + TAG)
    ctx: bytes
    index: int
    header: bytes
    payload: bytes
    commit_self: bytes
    commit_pairs: tuple[bytes, ...]
    sealed_self: tuple[bytes, ...]
    sealed_pairs: tuple[bytes, ...]
    signature: bytes

    def body(self) -> bytes:
        return b"".join((
            self.ctx, number(self.index, 1), number(len(self.header) // 8, 2), self.header, self.payload,
            self.commit_self, number(len(self.commit_pairs), 1), *self.commit_pairs,
            number(len(self.sealed_self), 1), *self.sealed_self, *self.sealed_pairs, self.signature,
        ))  # fmt: skip

    @classmethod
    def read(cls, reader: Reader) -> Self:
        ctx, index = reader.take(HASH), reader.number(1, 0, MAX_HOLDERS - 1)
        header, payload = reader.take(8 * reader.number(2, 8, MAX_HEADER)), reader.take(HASH)
        commit_self, peers = reader.take(HASH), reader.number(1)
        commit_pairs = tuple(reader.take(COMMITMENT) for _ in range(peers))
        holders = reader.number(1, 1, MAX_HOLDERS)
        sealed_self = tuple(reader.take(SEALED) for _ in range(holders))
        sealed_pairs = tuple(reader.take(32 * peers + TAG) for _ in range(holders))
        signature = reader.take(SIGNATURE_BYTES)
        return cls(ctx, index, header, payload, commit_self, commit_pairs, sealed_self, sealed_pairs, signature)


@dataclass(frozen=True)
class Survivor:
    """What holder h is told of one survivor: the digest of its commitments, and h's own sealed shares."""

    commitments: bytes
    sealed_self: bytes
    sealed_pairs: bytes


@dataclass(frozen=True)
class Ask(Signed):
    """M3, to every holder: `begin` again, the survivors, and their sealed shares for this holder."""

    KIND = 10
    LIMIT = 1024 + Begin.LIMIT + MAX_HOLDERS * (HASH + SEALED + 32 * MAX_HOLDERS + TAG)
    begin: bytes
    holder: int
    survivors: tuple[int, ...]
    items: tuple[Survivor, ...]

    def content(self) -> bytes:
        size = len(self.items[0].sealed_pairs) if self.items else 0
        head = variable(self.begin) + number(self.holder, 1) + bitmap(self.survivors) + number(size, 2)
        return head + b"".join(item.commitments + item.sealed_self + item.sealed_pairs for item in self.items)

    @classmethod
    def read(cls, reader: Reader) -> Self:
        begin, holder = reader.variable(Begin.LIMIT), reader.number(1, 0, MAX_HOLDERS - 1)
        survivors, size = reader.members(), reader.number(2, 0, 32 * MAX_HOLDERS + TAG)
        reader.require(bool(survivors), "no survivors")
        items = tuple(Survivor(reader.take(HASH), reader.take(SEALED), reader.take(size)) for _ in survivors)
        return cls(reader.take(SIGNATURE_BYTES), begin, holder, survivors, items)


@dataclass(frozen=True)
class Reveal(Signed):
    """M4: a holder's shares of every survivor's own seed, then of each survivor's seeds with each dropped member."""

    KIND, LIMIT = 11, 256 + 32 * MAX_HOLDERS * (MAX_HOLDERS + 1)
    ctx: bytes
    chosen: bytes
    holder: int
    shares: bytes

    def content(self) -> bytes:
        return self.ctx + self.chosen + number(self.holder, 1) + number(len(self.shares) // 32, 2) + self.shares

    @classmethod
    def read(cls, reader: Reader) -> Self:
        ctx, chosen, holder = reader.take(HASH), reader.take(HASH), reader.number(1, 0, MAX_HOLDERS - 1)
        shares = reader.take(32 * reader.number(2, 1, MAX_HOLDERS * MAX_HOLDERS))
        return cls(reader.take(SIGNATURE_BYTES), ctx, chosen, holder, shares)
