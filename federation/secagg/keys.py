"""Hashing, signatures, key agreement and share encryption, each under its own versioned label.

`digest` is SHA-256 over the label and the fields, each prefixed by its length as a 64-bit big-endian integer, so
that no two lists of fields collide. A pairwise key comes from X25519 and, where the library has it, ML-KEM-768.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Final, Protocol, TypeAlias

from cryptography.exceptions import InvalidSignature, InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mlkem, utils, x25519
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from sovfed.federation.decoded import certificate_of
from sovfed.federation.errors import IdentityError, ProtocolError

LABEL: Final = b"sovfed/secagg/1/"
KEY_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
KEM_PUBLIC_BYTES: Final = 1184
KEM_CIPHERTEXT_BYTES: Final = 1088
CLASSICAL: Final = 1  # suite: X25519
HYBRID: Final = 2  # suite: X25519 and ML-KEM-768
SUITES: Final = {CLASSICAL: "X25519", HYBRID: "X25519 + ML-KEM-768"}

Entropy: TypeAlias = Callable[[int], bytes]  # os.urandom; a fixed stream only in known-answer tests
Signer: TypeAlias = Callable[[bytes], bytes]
PublicKey: TypeAlias = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey
PrivateKey: TypeAlias = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


class Named(Protocol):
    """What the verification of a certificate tells of its holder."""

    @property
    def institution(self) -> str: ...


@dataclass(frozen=True)
class Identity:
    """An institution's own certificate (DER) and signer, and how it judges those of others.

    `verify` returns the institution of a certificate and `verify_server` accepts the coordinator's; both check chain,
    dates and revocation against this institution's own pinned root, and raise IdentityError.
    """

    certificate: bytes
    sign: Signer
    verify: Callable[[bytes], Named]
    verify_server: Callable[[bytes], object]
    former: tuple[bytes, ...] = ()  # certificates of keys that it had before: what they signed is its own too


def encode_fields(label: str, *fields: bytes) -> bytes:
    """The unambiguous encoding of `label` and `fields` that everything here hashes."""
    return _labelled(label) + encode_more(*fields)


def encode_more(*fields: bytes) -> bytes:
    """What more `fields` add to the end of `encode_fields`."""
    return b"".join([part for field in fields for part in (len(field).to_bytes(8, "big"), field)])


@cache
def _labelled(label: str) -> bytes:
    text = LABEL + label.encode()
    return len(text).to_bytes(8, "big") + text


def digest(label: str, *fields: bytes) -> bytes:
    """SHA-256 of `encode_fields`, 32 bytes."""
    return hashlib.sha256(encode_fields(label, *fields)).digest()


def u16(value: int) -> bytes:
    return value.to_bytes(2, "big")


def expand(key: bytes, label: str, *fields: bytes) -> bytes:
    """HKDF-Expand with SHA-256 to 32 bytes: one block, HMAC(key, info ‖ 0x01). Source: RFC 5869, section 2.3."""
    return expand_encoded(key, encode_fields(label, *fields))


def expand_encoded(key: bytes, info: bytes) -> bytes:
    """`expand`, its label and fields encoded already."""
    return hmac.digest(key, info + b"\x01", "sha256")


def signer(key: PrivateKey) -> Signer:
    """A signer of 64-byte signatures: ECDSA P-256 with SHA-256 as r ‖ s, or Ed25519."""
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key.sign

    def sign(message: bytes) -> bytes:
        r, s = utils.decode_dss_signature(key.sign(message, ec.ECDSA(hashes.SHA256())))
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")

    return sign


def public_key(certificate: bytes) -> PublicKey:
    """The signature key of a certificate (DER) that has been verified already."""
    key = certificate_of(certificate).public_key()
    if isinstance(key, ed25519.Ed25519PublicKey):
        return key
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        return key
    raise IdentityError("certificate: its key is neither P-256 nor Ed25519")


def told_head(seq: int, head: bytes) -> bytes:
    """What an institution signs to tell that entry `seq` of its privacy ledger has `head` (32 bytes)."""
    return encode_fields("told ledger head", seq.to_bytes(8, "big"), head)


def countersigned_head(run: str, seq: int, head: bytes) -> bytes:
    """What the coordinator of `run` signs: it knows of no newer entry of that ledger than `seq` with `head`."""
    return encode_fields("countersigned ledger head", run.encode(), seq.to_bytes(8, "big"), head)


def fingerprint(key: PublicKey) -> str:
    """SHA-256 (hex) of the key, as people compare it."""
    info = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(info).hexdigest()


def check_signature(key: PublicKey, message: bytes, signature: bytes, author: str) -> None:
    """Raise IdentityError, naming `author`, unless `signature` (64 bytes) on `message` is by `key`."""
    try:
        if isinstance(key, ed25519.Ed25519PublicKey):
            key.verify(signature, message)
        else:
            r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
            key.verify(utils.encode_dss_signature(r, s), message, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as error:
        raise IdentityError(f"{author}: the signature does not hold") from error


@dataclass(frozen=True)
class Ephemeral:
    """One run's secret keys of one institution; `kem` is None where the library has no ML-KEM. Never stored."""

    exchange: x25519.X25519PrivateKey
    kem: mlkem.MLKEM768PrivateKey | None

    @property
    def exchange_public(self) -> bytes:
        return self.exchange.public_key().public_bytes_raw()

    @property
    def kem_public(self) -> bytes:
        return self.kem.public_key().public_bytes_raw() if self.kem else b""

    @property
    def suite(self) -> int:
        return HYBRID if self.kem else CLASSICAL


def generate(entropy: Entropy, *, post_quantum: bool = True) -> Ephemeral:
    """Fresh keys for one run, of the best suite that the installed library offers."""
    exchange = x25519.X25519PrivateKey.from_private_bytes(entropy(32))
    if not post_quantum:
        return Ephemeral(exchange, None)
    try:
        return Ephemeral(exchange, mlkem.MLKEM768PrivateKey.from_seed_bytes(entropy(64)))
    except UnsupportedAlgorithm:
        return Ephemeral(exchange, None)


def check_public(exchange: bytes, kem: bytes) -> None:
    """Raise ProtocolError for public keys with which nobody can agree on one; `kem` may be b""."""
    try:
        x25519.X25519PrivateKey.generate().exchange(x25519.X25519PublicKey.from_public_bytes(exchange))
        if kem:
            mlkem.MLKEM768PublicKey.from_public_bytes(kem)
    except ValueError as error:  # a point of small order, or no key
        raise ProtocolError("X25519 or ML-KEM-768 public key refused") from error
    except UnsupportedAlgorithm:  # an old library, which agrees by X25519 alone
        return


def encapsulate(kem_public: bytes) -> tuple[bytes, bytes]:
    """(shared secret, ciphertext) for a peer's ML-KEM-768 key."""
    try:
        return mlkem.MLKEM768PublicKey.from_public_bytes(kem_public).encapsulate()
    except ValueError as error:
        raise ProtocolError("ML-KEM-768 public key: malformed") from error


def decapsulate(own: Ephemeral, ciphertext: bytes) -> bytes:
    """The secret within `ciphertext`; a forged one gives another secret (FIPS 203), which key confirmation shows."""
    if own.kem is None:
        raise ProtocolError("a ciphertext for ML-KEM-768, which is not available here")
    return own.kem.decapsulate(ciphertext)


def pair_key(
    own: Ephemeral, peer_exchange: bytes, kem_secret: bytes, ciphertext: bytes, roster: bytes, low: int, high: int
) -> bytes:
    """K_ij, 32 bytes: HKDF(X25519 ‖ ML-KEM secret; salt = roster digest, info = low ‖ high ‖ H(ciphertext)).

    The ciphertext is in `info`, so that the two ends agree on a key only if they saw the same one.
    """
    try:
        shared = own.exchange.exchange(x25519.X25519PublicKey.from_public_bytes(peer_exchange))
    except ValueError as error:  # a point of small order
        raise ProtocolError(f"members {low} and {high}: X25519 public key refused") from error
    info = encode_fields("pair", u16(low), u16(high), hashlib.sha256(ciphertext).digest())
    return HKDF(hashes.SHA256(), KEY_BYTES, roster, info).derive(shared + kem_secret)


def upload_key(own: Ephemeral, other_exchange: bytes, roster: bytes, index: int) -> bytes:
    """The key, 32 bytes, by which member `index` authenticates its payloads to the coordinator, at either end."""
    try:
        shared = own.exchange.exchange(x25519.X25519PublicKey.from_public_bytes(other_exchange))
    except ValueError as error:
        raise ProtocolError(f"member {index} and coordinator: X25519 public key refused") from error
    return HKDF(hashes.SHA256(), KEY_BYTES, roster, encode_fields("upload", u16(index))).derive(shared)


def confirmation(key: bytes, roster: bytes, sender: int, recipient: int) -> bytes:
    """The MAC by which `sender` shows `recipient` that it holds their pairwise key."""
    return expand(key, "confirm", roster, u16(sender), u16(recipient))


def seal(key: bytes, plaintext: bytes, associated: bytes) -> bytes:
    """AES-256-GCM under a key that is used once only, hence the constant nonce; 16 bytes longer."""
    return AESGCM(key).encrypt(bytes(12), plaintext, associated)


def unseal(key: bytes, ciphertext: bytes, associated: bytes, dealer: str) -> bytes:
    """The plaintext of `seal`; raises ProtocolError, naming `dealer`, if anything differs."""
    try:
        return AESGCM(key).decrypt(bytes(12), ciphertext, associated)
    except InvalidTag as error:
        raise ProtocolError(f"{dealer}: a sealed share does not open") from error
