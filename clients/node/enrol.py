"""Enrolment at the institution: keys made here, a certificate from the authority, and keeping both fresh.

Neither private key leaves `identity/`. What is sent is a signing request, the Flower node's public key and the
invitation's token, over TLS pinned to the invitation's root; what comes back is used only if it certifies the very key
that lies here. `enrol` may be interrupted and repeated: keys and request are on disk before anyone sees the token.
institution.json is written last, and its presence says that the institution is enrolled.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from sovfed.federation.certificates import (
    InstitutionNames,
    check_csr,
    check_institution_name,
    create_csr,
    create_key,
    key_fingerprint,
    key_from_pem,
    key_to_pem,
    to_der,
    to_pem,
)
from sovfed.federation.errors import IdentityError, ServiceError, SovfedError
from sovfed.federation.files import private_directory, read_bounded, read_private, write_atomic, write_private
from sovfed.federation.identity import (
    certificate_fingerprint,
    install_crl,
    load_certificate,
    node_key_bytes,
    node_key_digest,
    parse_certificate,
    parse_crl,
    verify_peer,
)
from sovfed.federation.schema import bind, bounded
from sovfed.federation.secagg.files import create_journal
from sovfed.federation.wire import enrolment_pb2 as pb
from sovfed.federation.wire.enrolment import (
    ENROLMENT_SERVICE,
    MAX_ENROLMENT_BYTES,
    MAX_REGISTRY_BYTES,
    REGISTRY_SERVICE,
    Invitation,
)

log = logging.getLogger(__name__)
FIRST_POLL_S: Final = 0.1
LONGEST_POLL_S: Final = 10.0
CALL_TIMEOUT_S: Final = 10.0
INSTITUTION_FILE: Final = "institution.json"
_RETRIED: Final = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
)


@dataclass(frozen=True)
class Institution:
    """Who this institution is, and where the agency is: identity/institution.json."""

    name: str = bounded(low=1, high=63)
    fleet_address: str = bounded(low=3, high=262, doc="host:port of the agency's Fleet port")
    lane_address: str = bounded(low=3, high=262, doc="host:port of the registry's lane port")


@dataclass(frozen=True)
class Fingerprints:
    """What the institution and the authority compare by telephone before the authority signs; SHA-256, hex."""

    root: str
    key: str


def enrol(
    home: Path,
    invitation: Invitation,
    timeout_s: float,
    *,
    authority: str | None = None,
    announce: Callable[[Fingerprints], None] = lambda _: None,
) -> Institution:
    """Ask for a certificate with `invitation` and wait for it at most `timeout_s`; who we then are.

    `authority` is the root's fingerprint as the authority itself gave it; with it, an invitation with another root is
    refused. `announce` is told both fingerprints before the wait. Raises IdentityError if anything does not hold or
    the agency refuses, ServiceError when the time is over: call again, the same request goes on waiting.
    """
    root = parse_certificate(invitation.root.encode(), "invitation's root")
    if authority is not None and certificate_fingerprint(root) != authority.strip().lower():
        raise IdentityError(f"invitation's root has fingerprint {certificate_fingerprint(root)}, expected {authority}")
    name = check_institution_name(invitation.institution)
    identity = private_directory(private_directory(home) / "identity")
    if (identity / INSTITUTION_FILE).exists():
        raise IdentityError(f"{home}: already enrolled as {load_institution(home).name!r}")
    key, node_key = _own_key(identity), _node_key(identity)
    names = InstitutionNames(name, node_key_digest(node_key.public_key()))
    csr = _request(identity / "request.csr", key, names)
    announce(Fingerprints(certificate_fingerprint(root), key_fingerprint(key.public_key())))
    request = pb.EnrolRequest(
        token=invitation.token,
        csr=csr,
        node_public_key=node_key_bytes(node_key.public_key()),
        node_signature=node_key.sign(csr, ec.ECDSA(hashes.SHA256())),
    )
    credentials = grpc.ssl_channel_credentials(to_pem(root))
    with _channel(invitation.address, credentials, MAX_ENROLMENT_BYTES) as channel:
        reply = _poll(channel, f"/{ENROLMENT_SERVICE}/Enrol", request, timeout_s, f"enrolment at {invitation.address}")
    crl = parse_crl(reply.crl, "revocation list received")
    _check_certificate(reply.certificate, root, crl, key, names)
    institution = bind(
        Institution,
        {"name": name, "fleet_address": reply.fleet_address, "lane_address": reply.lane_address},
        "enrolment reply",
        IdentityError,
    )
    write_atomic(identity / "root.pem", to_pem(root))
    install_crl(identity, reply.crl)
    write_atomic(identity / "cert.pem", reply.certificate)
    create_journal(home)
    write_atomic(identity / INSTITUTION_FILE, json.dumps(asdict(institution), indent=2).encode() + b"\n")
    (identity / "request.csr").unlink()
    return institution


def renew(home: Path, timeout_s: float, *, announce: Callable[[Fingerprints], None] = lambda _: None) -> datetime:
    """Have the same key certified for longer, and take in the newest revocation list; until when it now holds.

    The key stays: cert.pem alone is replaced, in one step. For a new key, enrol anew. Errors as with `enrol`.
    """
    identity, lane_address = home / "identity", load_institution(home).lane_address
    root, former = load_certificate(identity / "root.pem"), load_certificate(identity / "cert.pem")
    key, node_key = _own_key(identity), _node_key(identity)
    names = InstitutionNames(load_institution(home).name, node_key_digest(node_key.public_key()))
    request = pb.RenewRequest(csr=_request(identity / "renewal.csr", key, names))
    announce(Fingerprints(certificate_fingerprint(root), key_fingerprint(key.public_key())))
    with _mutual_channel(identity, lane_address) as channel:
        reply = _poll(channel, f"/{REGISTRY_SERVICE}/Renew", request, timeout_s, f"renewal at {lane_address}")
    renewed = _check_certificate(reply.certificate, root, parse_crl(reply.crl, "revocation list received"), key, names)
    if renewed.not_valid_after_utc <= former.not_valid_after_utc:
        raise IdentityError("renewal: the certificate received ends no later than the one in place")
    install_crl(identity, reply.crl)
    write_atomic(identity / "cert.pem", reply.certificate)
    (identity / "renewal.csr").unlink()
    return renewed.not_valid_after_utc


def refresh_crl(home: Path) -> int:
    """Fetch the revocation list in force at the agency and put it in place if it holds; its number."""
    identity, address = home / "identity", load_institution(home).lane_address
    with _mutual_channel(identity, address) as channel:
        call = channel.unary_unary(f"/{REGISTRY_SERVICE}/Crl", _serialise, pb.CrlReply.FromString)
        try:
            reply = call(pb.Empty(), timeout=CALL_TIMEOUT_S)
        except grpc.RpcError as error:
            raise _translated(error, f"revocation list from {address}") from error
    return install_crl(identity, reply.crl)


def keep_crl_fresh(home: Path, every_s: float, stop: threading.Event) -> None:
    """`refresh_crl` now and every `every_s` until `stop`; while that fails, the list held counts until it is stale."""
    while True:
        try:
            refresh_crl(home)
        except (SovfedError, OSError) as error:
            log.warning("the revocation list was not refreshed: %s", error)
        if stop.wait(every_s):
            return


def load_institution(home: Path) -> Institution:
    """What enrolment wrote; ServiceError if the institution is not enrolled."""
    path = home / "identity" / INSTITUTION_FILE
    if not path.exists():
        raise ServiceError(f"{home}: not enrolled; `sovfed client enrol` does it with the agency's invitation")
    return bind(Institution, json.loads(path.read_text(encoding="utf-8")), str(path), IdentityError)


def _own_key(identity: Path) -> ec.EllipticCurvePrivateKey:
    path = identity / "key.pem"
    if not path.exists():
        write_private(path, key_to_pem(create_key()))
    return key_from_pem(read_private(path), str(path))


def _node_key(identity: Path) -> ec.EllipticCurvePrivateKey:
    """Flower's node key: P-384, in the OpenSSH format that the SuperNode reads."""
    path = identity / "node_key"
    if not path.exists():
        fresh = ec.generate_private_key(ec.SECP384R1())
        form, plain = serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
        write_private(path, fresh.private_bytes(serialization.Encoding.PEM, form, plain))
    try:
        key = serialization.load_ssh_private_key(read_private(path), None)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise IdentityError(f"{path}: no readable OpenSSH private key") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name != "secp384r1":
        raise IdentityError(f"{path}: not a P-384 key")
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    write_atomic(identity / "node_key.pub", public + b"\n")
    return key


def _request(path: Path, key: ec.EllipticCurvePrivateKey, names: InstitutionNames) -> bytes:
    """The signing request in `path`, made once: the token is good for one request, byte for byte."""
    if path.exists():
        pem = read_bounded(path)
        if check_csr(pem) == (names, key.public_key()):
            return pem
    pem = to_pem(create_csr(key, names))
    write_atomic(path, pem)
    return pem


def _check_certificate(
    pem: bytes,
    root: x509.Certificate,
    crl: x509.CertificateRevocationList,
    key: ec.EllipticCurvePrivateKey,
    names: InstitutionNames,
) -> x509.Certificate:
    """The certificate in `pem`, if it holds and certifies exactly our key under our names."""
    certificate = parse_certificate(pem, "certificate received")
    peer = verify_peer(to_der(certificate), root, crl, datetime.now(UTC))
    if certificate.public_key() != key.public_key():
        raise IdentityError("certificate received: for another key than ours")
    if InstitutionNames(peer.institution, peer.node_key_digest) != names:
        raise IdentityError(f"certificate received: for {peer.institution!r}, expected {names.institution!r}")
    return certificate


def _poll(channel: grpc.Channel, method: str, request: Any, timeout_s: float, action: str) -> pb.EnrolReply:
    """The reply that carries the certificate, asked for again until it comes; the waits grow."""
    call = channel.unary_unary(method, _serialise, pb.EnrolReply.FromString)
    deadline, wait_s, last = time.monotonic() + timeout_s, FIRST_POLL_S, "the authority has not signed yet"
    while True:
        try:
            reply: pb.EnrolReply = call(request, timeout=CALL_TIMEOUT_S)
            if reply.certificate:
                return reply
            last = "the authority has not signed yet"
        except grpc.RpcError as error:
            if error.code() not in _RETRIED:
                raise _translated(error, action) from error
            last = f"{error.code().name}: {error.details()}"
        if time.monotonic() + wait_s > deadline:
            raise ServiceError(f"{action}: not done within {timeout_s:g} s ({last}); call again to go on waiting")
        time.sleep(wait_s)
        wait_s = min(wait_s * 1.5, LONGEST_POLL_S)


def _translated(error: grpc.RpcError, action: str) -> IdentityError | ServiceError:
    """A refusal as IdentityError, anything else as ServiceError."""
    code = error.code()
    if code is grpc.StatusCode.PERMISSION_DENIED:
        return IdentityError(f"{action}: refused; the reason stands in the agency's log")
    return ServiceError(f"{action}: {code.name}: {error.details()}")


def _mutual_channel(identity: Path, address: str) -> grpc.Channel:
    key, certificate = read_private(identity / "key.pem"), read_bounded(identity / "cert.pem")
    root = read_bounded(identity / "root.pem")
    return _channel(address, grpc.ssl_channel_credentials(root, key, certificate), MAX_REGISTRY_BYTES)


def _channel(address: str, credentials: grpc.ChannelCredentials, max_bytes: int) -> grpc.Channel:
    options = (("grpc.enable_http_proxy", 0), ("grpc.max_receive_message_length", max_bytes))
    return grpc.secure_channel(address, credentials, options)


def _serialise(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return data
