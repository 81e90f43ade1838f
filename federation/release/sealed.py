"""Signatures over a release: an in-toto statement in a DSSE envelope, and the form that OpenSSF model-signing reads.

Sources: in-toto Attestation Framework, Statement v1; secure-systems-lab DSSE v1.0.0; model-signing v1.0's predicate in
a Sigstore bundle v0.3. All are ECDSA P-256 with SHA-256 by the key of a certificate of the authority.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from cryptography.hazmat.primitives import serialization

from sovfed.federation.decoded import certificate_of
from sovfed.federation.errors import EvidenceError, IdentityError
from sovfed.federation.evidence.entries import canonical
from sovfed.federation.evidence.keys import check_ecdsa, sign_ecdsa
from sovfed.federation.text import to_base64

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
STATEMENT: Final = "https://in-toto.io/Statement/v1"
PREDICATE: Final = "urn:sovfed:release:v1"
MODEL_PREDICATE: Final = "https://model_signing/signature/v1.0"
SIGSTORE: Final = "application/vnd.dev.sigstore.bundle.v0.3+json"
MAX_SIGNATURES: Final = 1_000


@dataclass(frozen=True)
class Signed:
    """A signature: its bytes, and the certificate (DER) of whoever made it."""

    signature: bytes
    certificate: bytes


@dataclass(frozen=True)
class Envelope:
    """A payload and who signed it."""

    payload: bytes
    signatures: tuple[Signed, ...]

    def to_bytes(self) -> bytes:
        """Its one spelling."""
        signatures = [
            {
                "cert": to_base64(signed.certificate),
                "keyid": _key_id(signed.certificate),
                "sig": to_base64(signed.signature),
            }
            for signed in self.signatures
        ]
        return canonical({"payload": to_base64(self.payload), "payloadType": PAYLOAD_TYPE, "signatures": signatures})


def read_envelope(data: bytes) -> Envelope:
    """The envelope that `data` spells. Raises EvidenceError if it is `to_bytes` of none."""
    try:
        values: Any = json.loads(data)
        signatures = tuple(Signed(_bytes(entry["sig"]), _bytes(entry["cert"])) for entry in values["signatures"])
        envelope = Envelope(_bytes(values["payload"]), signatures)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise EvidenceError("the release's signatures cannot be read") from error
    if len(signatures) > MAX_SIGNATURES or envelope.to_bytes() != data:
        raise EvidenceError("the release's signatures are not spelled as they are written")
    return envelope


def sign(payload: bytes, home: Path) -> Signed:
    """The signature of `payload` by the certificate of `home`; equal ones for equal arguments."""
    return Signed(*sign_ecdsa(home, pre_authentication(payload)))


def check(payload: bytes, signed: Signed, whose: str) -> None:
    """Raise EvidenceError, naming `whose`, unless the certificate's key has signed `payload`."""
    check_ecdsa(signed.certificate, signed.signature, pre_authentication(payload), whose)


def pre_authentication(payload: bytes) -> bytes:
    """What DSSE signs of `payload`."""
    return b"DSSEv1 %d %s %d %s" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(payload), payload)


def statement(digests: Mapping[str, str], predicate: Mapping[str, Any], kind: str = PREDICATE) -> bytes:
    """The statement that files of these SHA-256 (hex) by name are what `predicate`, of that `kind`, says."""
    subject = [{"name": name, "digest": {"sha256": value}} for name, value in sorted(digests.items())]
    return canonical({"_type": STATEMENT, "predicateType": kind, "subject": subject, "predicate": predicate})


def model_signature(files: Mapping[str, bytes], home: Path) -> bytes:
    """`model.sig` of a folder of `files`, as OpenSSF model-signing 1.1 reads it with the home's public key."""
    payload = _model_payload(files)
    return _sigstore(payload, sign(payload, home))


def check_model_signature(data: bytes, files: Mapping[str, bytes], certificate: bytes) -> None:
    """Raise EvidenceError unless `data` is the `model_signature` of `files` by the key of `certificate` (DER)."""
    payload = _model_payload(files)
    signed = Signed(_bytes(json.loads(data)["dsseEnvelope"]["signatures"][0]["sig"]), certificate)
    if _sigstore(payload, signed) != data:
        raise EvidenceError("the model's own signature is of other files, or spelled otherwise than it is written")
    check(payload, signed, "the model's own signature")


def _model_payload(files: Mapping[str, bytes]) -> bytes:
    digests = {name: hashlib.sha256(data).digest() for name, data in sorted(files.items())}
    whole = hashlib.sha256(b"".join(digests.values())).hexdigest()
    return canonical(
        {
            "_type": STATEMENT, "predicateType": MODEL_PREDICATE,
            "subject": [{"name": "model", "digest": {"sha256": whole}}],
            "predicate": {
                "serialization": {
                    "method": "files", "hash_type": "sha256", "allow_symlinks": False, "ignore_paths": [],
                },
                "resources": [
                    {"name": name, "algorithm": "sha256", "digest": value.hex()} for name, value in digests.items()
                ],
            },
        }
    )  # fmt: skip


def _sigstore(payload: bytes, signed: Signed) -> bytes:
    hint = hashlib.sha256(public_pem(signed.certificate)).hexdigest()
    envelope = {
        "payload": to_base64(payload), "payloadType": PAYLOAD_TYPE,
        "signatures": [{"keyid": "", "sig": to_base64(signed.signature)}],
    }  # fmt: skip
    material = {"publicKey": {"hint": hint}, "tlogEntries": []}
    return canonical({"mediaType": SIGSTORE, "verificationMaterial": material, "dsseEnvelope": envelope})


def public_pem(certificate: bytes) -> bytes:
    """The public key of a certificate (DER), as PEM."""
    key = certificate_of(certificate).public_key()
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def _key_id(certificate: bytes) -> str:
    try:
        return hashlib.sha256(public_pem(certificate)).hexdigest()
    except IdentityError as error:
        raise EvidenceError("a certificate of the release cannot be read") from error


def _bytes(text: Any) -> bytes:
    if not isinstance(text, str):
        raise TypeError("not text")
    return base64.b64decode(text, validate=True)
