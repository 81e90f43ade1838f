"""Signed notes: checkpoints of a log, and what others sign beneath them.

Source: C2SP signed-note (Ed25519, type 0x01), tlog-checkpoint and tlog-cosignature (timestamped Ed25519, type 0x04).
"""

from __future__ import annotations

import hashlib
import re
import struct
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from sovfed.federation.errors import EvidenceError
from sovfed.federation.text import from_base64, to_base64

LOG: Final = 1
COSIGNATURE: Final = 4
HASH_BYTES: Final = 32
MAX_BYTES: Final = 64 << 10
_NAME: Final = re.compile(r"[A-Za-z0-9._:/-]{1,300}", re.ASCII)
_SIZE: Final = re.compile(r"0|[1-9][0-9]{0,15}", re.ASCII)
_LINE: Final = re.compile(r"— ([^ ]+) ([A-Za-z0-9+/=]+)\n")


@dataclass(frozen=True)
class NoteKey:
    """A public key under a name; `kind` is what it signs: a log's checkpoints, or cosignatures of those of others."""

    name: str
    kind: int
    raw: bytes

    @property
    def key_id(self) -> bytes:
        """The four bytes that begin its signatures."""
        return hashlib.sha256(self.name.encode() + b"\n" + bytes([self.kind]) + self.raw).digest()[:4]

    def __str__(self) -> str:
        """Its verifier key, as the tools of transparency logs take it."""
        return f"{self.name}+{self.key_id.hex()}+{to_base64(bytes([self.kind]) + self.raw)}"


@dataclass(frozen=True)
class Checkpoint:
    """The head of a log: how many entries it has, and their root."""

    origin: str
    size: int
    root: bytes

    @property
    def body(self) -> bytes:
        """What is signed."""
        return f"{self.origin}\n{self.size}\n{to_base64(self.root)}\n".encode()


def read_key(text: str) -> NoteKey:
    """The key that `text` (`str` of a `NoteKey`) gives. Raises EvidenceError if it is none."""
    name, _, rest = text.partition("+")
    key_id, _, encoded = rest.partition("+")
    data = from_base64(encoded, "verifier key", EvidenceError)
    if not _NAME.fullmatch(name) or len(data) != 1 + HASH_BYTES or data[0] not in (LOG, COSIGNATURE):
        raise EvidenceError("verifier key: expected NAME+ID+KEY of Ed25519")
    key = NoteKey(name, data[0], data[1:])
    if key.key_id.hex() != key_id or str(key) != text:
        raise EvidenceError(f"verifier key of {name}: another id than its own")
    return key


def public(name: str, kind: int, key: Ed25519PrivateKey) -> NoteKey:
    """The public half of `key`."""
    return NoteKey(name, kind, key.public_key().public_bytes_raw())


def sign(checkpoint: Checkpoint, key: Ed25519PrivateKey) -> bytes:
    """The note of `checkpoint`, signed by the log's own `key`."""
    name = public(checkpoint.origin, LOG, key)
    return checkpoint.body + b"\n" + _signature_line(name, key.sign(checkpoint.body))


def cosign(checkpoint: Checkpoint, name: str, key: Ed25519PrivateKey, at: int) -> bytes:
    """The line by which `name` says: at `at` (Unix time), this was the newest head of that log that I had seen."""
    signature = struct.pack(">Q", at) + key.sign(_timed(checkpoint, at))
    return _signature_line(public(name, COSIGNATURE, key), signature)


def read_checkpoint(note: bytes) -> Checkpoint:
    """What `note` says, whoever signed it. Raises EvidenceError unless it is spelled as `sign` does."""
    if len(note) > MAX_BYTES:
        raise EvidenceError(f"checkpoint: {len(note)} bytes, at most {MAX_BYTES} are read")
    try:
        body, _, lines = note.decode().partition("\n\n")
        origin, size, root = body.split("\n")
    except ValueError as error:
        raise EvidenceError("checkpoint: expected origin, size and root on three lines") from error
    value = from_base64(root, "checkpoint", EvidenceError)
    if not _NAME.fullmatch(origin) or not _SIZE.fullmatch(size) or len(value) != HASH_BYTES:
        raise EvidenceError("checkpoint: expected origin, size and root on three lines")
    if "".join(match.group() for match in _LINE.finditer(lines)) != lines or not lines:
        raise EvidenceError(f"checkpoint of {origin}: lines beside its signatures, or none")
    return Checkpoint(origin, int(size), value)


def check_note(note: bytes, key: NoteKey) -> Checkpoint:
    """The checkpoint in `note`, which the log with `key` signed. Raises EvidenceError."""
    checkpoint = read_checkpoint(note)
    if checkpoint.origin != key.name or key.kind != LOG:
        raise EvidenceError(f"checkpoint of {checkpoint.origin}: not of the log {key.name}")
    _check(key, _signature(note, key), checkpoint.body)
    return checkpoint


def check_cosignature(note: bytes, key: NoteKey) -> int:
    """When the witness with `key` cosigned `note` (Unix time). Raises EvidenceError."""
    checkpoint, signature = read_checkpoint(note), _signature(note, key)
    if key.kind != COSIGNATURE or len(signature) != 72:
        raise EvidenceError(f"cosignature of {key.name}: not a timestamped one")
    at: int = struct.unpack(">Q", signature[:8])[0]
    _check(key, signature[8:], _timed(checkpoint, at))
    return at


def signers(note: bytes) -> list[str]:
    """The names on the signature lines of `note`, which is well spelled; nothing is checked."""
    return [match.group(1) for match in _LINE.finditer(note.decode().partition("\n\n")[2])]


def _timed(checkpoint: Checkpoint, at: int) -> bytes:
    return f"cosignature/v1\ntime {at}\n".encode() + checkpoint.body


def _signature(note: bytes, key: NoteKey) -> bytes:
    for match in _LINE.finditer(note.decode().partition("\n\n")[2]):
        data = from_base64(match.group(2), "signature", EvidenceError)
        if match.group(1) == key.name and data[:4] == key.key_id:
            return data[4:]
    raise EvidenceError(f"checkpoint: not signed by {key.name}")


def _check(key: NoteKey, signature: bytes, message: bytes) -> None:
    try:
        Ed25519PublicKey.from_public_bytes(key.raw).verify(signature, message)
    except (InvalidSignature, ValueError) as error:
        raise EvidenceError(f"checkpoint: the signature of {key.name} does not hold") from error


def _signature_line(key: NoteKey, signature: bytes) -> bytes:
    return f"— {key.name} {to_base64(key.key_id + signature)}\n".encode()
