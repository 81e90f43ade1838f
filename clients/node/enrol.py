"""Enrolment at the institution: keys made here, a certificate from the authority, and keeping both fresh.

Neither private key leaves `identity/`. What is sent is a signing request, the Flower node's public key and the
invitation's token, over TLS pinned to the invitation's root; what comes back is used only if it certifies the very key
that lies here. `enrol` may be interrupted and repeated: keys and request are on disk before anyone sees the token.
institution.json is written last, and its presence says that the institution is enrolled.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from sovfed.clients.home.folder import NODE_ID
from sovfed.clients.node.agency import open_channel, poll, why_not
from sovfed.federation.certificates import (
    InstitutionNames,
    certificate_fingerprint,
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
from sovfed.federation.errors import IdentityError, ServiceError
from sovfed.federation.files import private_directory, read_bounded, read_private, write_atomic, write_private
from sovfed.federation.identity import (
    PeerIdentity,
    install_crl,
    issuer_of,
    load_certificate,
    node_key_bytes,
    node_key_digest,
    parse_certificate,
    verify_peer,
)
from sovfed.federation.revocation import lists_of
from sovfed.federation.roots import adopt, handed_over
from sovfed.federation.schema import bind, bounded
from sovfed.federation.secagg.files import create_journal
from sovfed.federation.wire import enrolment_pb2 as pb
from sovfed.federation.wire.enrolment import (
    ENROLMENT_SERVICE,
    MAX_ENROLMENT_BYTES,
    Invitation,
)

INSTITUTION_FILE: Final = "institution.json"


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
    told: Callable[[str], None] = lambda _: None,
    proxy: str | None = None,
) -> Institution:
    """Ask for a certificate with `invitation` and wait for it at most `timeout_s`; who we then are.

    `authority` is the root's fingerprint as the authority itself gave it; with it, an invitation with another root is
    refused. `announce` is told both fingerprints before the wait, `told` what is waited for; `proxy` is `client.proxy`.
    Raises IdentityError if anything does not hold or
    the agency refuses, ServiceError when the time is over: call again, the same request goes on waiting.

    A home whose certificate has ended, since it was off for longer than that lasts, is enrolled anew as the same
    institution: its key, ledger and journal stay. Its node's key is made anew, since Flower registers none twice.
    """
    root = parse_certificate(invitation.root.encode(), "invitation's root")
    if authority is not None and certificate_fingerprint(root) != plain_fingerprint(authority):
        raise IdentityError(f"invitation's root has fingerprint {certificate_fingerprint(root)}, expected {authority}")
    name = check_institution_name(invitation.institution)
    identity = private_directory(private_directory(home) / "identity")
    if (identity / INSTITUTION_FILE).exists():
        known = load_institution(home).name
        if known != name or not has_ended(identity):
            raise IdentityError(f"{home}: already enrolled as {known!r}")
        if not (identity / "request.csr").exists():
            for path in (identity / "node_key", home / NODE_ID):
                path.unlink(missing_ok=True)
    key, node_key = own_key(identity), own_node_key(identity)
    names = InstitutionNames(name, node_key_digest(node_key.public_key()))
    csr = signing_request(identity / "request.csr", key, names)
    announce(Fingerprints(certificate_fingerprint(root), key_fingerprint(key.public_key())))
    request = pb.EnrolRequest(
        token=invitation.token,
        csr=csr,
        node_public_key=node_key_bytes(node_key.public_key()),
        node_signature=node_key.sign(csr, ec.ECDSA(hashes.SHA256())),
    )
    address, action = invitation.address, f"enrolment at {invitation.address}"
    credentials = grpc.ssl_channel_credentials(to_pem(root))
    reason = partial(why_not, home, address, to_pem(root), proxy)
    with open_channel(home, address, credentials, MAX_ENROLMENT_BYTES, proxy) as channel:
        reply = poll(channel, f"/{ENROLMENT_SERVICE}/Enrol", request, timeout_s, action, reason, told)
    roots = (root, *handed_over(root, reply.roots))
    lists = lists_of(reply.crl, roots, datetime.now(UTC))

    def verify(der: bytes) -> PeerIdentity:
        issuer = issuer_of(der, roots)
        crl = lists.get(certificate_fingerprint(issuer))
        if crl is None:
            raise IdentityError("certificate received: of a root whose revocation list was not")
        return verify_peer(der, issuer, crl, datetime.now(UTC))

    check_certificate(reply.certificate, verify, key, names)
    institution = bind(
        Institution,
        {"name": name, "fleet_address": reply.fleet_address, "lane_address": reply.lane_address},
        "enrolment reply",
        IdentityError,
    )
    write_atomic(identity / "root.pem", to_pem(root))
    if reply.roots:
        adopt(identity, reply.roots)
    install_crl(identity, reply.crl)
    write_atomic(identity / "cert.pem", reply.certificate)
    create_journal(home)
    write_atomic(identity / INSTITUTION_FILE, json.dumps(asdict(institution), indent=2).encode() + b"\n")
    (identity / "request.csr").unlink()
    return institution


def has_ended(identity: Path, now: datetime | None = None) -> bool:
    """Whether the certificate in `identity/` has ended: it renews nothing any more. Raises IdentityError."""
    return load_certificate(identity / "cert.pem").not_valid_after_utc <= (now or datetime.now(UTC))


def plain_fingerprint(text: str) -> str:
    """A fingerprint as it is compared: in lower case, without the colons and spaces that make it readable."""
    return text.translate(str.maketrans("", "", ": -\n\t")).lower()


def load_institution(home: Path) -> Institution:
    """What enrolment wrote; ServiceError if the institution is not enrolled."""
    path = home / "identity" / INSTITUTION_FILE
    if not path.exists():
        raise ServiceError(f"{home}: not enrolled; `sovfed client enrol` does it with the agency's invitation")
    return bind(Institution, json.loads(path.read_text(encoding="utf-8")), str(path), IdentityError)


def lane_of(home: Path, chosen: str | None) -> str:
    """host:port of the agency's lane, where lists and renewals come from too: what client.yaml has `chosen`, if any.

    Raises ServiceError if the institution is not enrolled.
    """
    return chosen or load_institution(home).lane_address


def own_key(identity: Path, name: str = "key.pem") -> ec.EllipticCurvePrivateKey:
    """The private key in `identity/`, made if there is none."""
    path = identity / name
    if not path.exists():
        write_private(path, key_to_pem(create_key()))
    return key_from_pem(read_private(path), str(path))


def own_node_key(identity: Path) -> ec.EllipticCurvePrivateKey:
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


def signing_request(path: Path, key: ec.EllipticCurvePrivateKey, names: InstitutionNames) -> bytes:
    """The signing request in `path`, made once: the token is good for one request, byte for byte."""
    if path.exists():
        pem = read_bounded(path)
        if check_csr(pem) == (names, key.public_key()):
            return pem
    pem = to_pem(create_csr(key, names))
    write_atomic(path, pem)
    return pem


def check_certificate(
    pem: bytes,
    verify: Callable[[bytes], PeerIdentity],
    key: ec.EllipticCurvePrivateKey,
    names: InstitutionNames,
) -> x509.Certificate:
    """The certificate in `pem`, if it holds and certifies exactly our key under our names."""
    certificate = parse_certificate(pem, "certificate received")
    peer = verify(to_der(certificate))
    if certificate.public_key() != key.public_key():
        raise IdentityError("certificate received: for another key than ours")
    if InstitutionNames(peer.institution, peer.node_key_digest) != names:
        raise IdentityError(f"certificate received: for {peer.institution!r}, expected {names.institution!r}")
    return certificate
