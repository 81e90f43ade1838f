"""Enrolment at the agency: invitations, signing requests and certificates, kept in registry/enrolment.db (SQLite).

    invite ──▶ token ──▶ submit (spends it) ──▶ requests/NAME.csr ──▶ the authority signs ──▶ accept_certificate

The agency only relays: it holds no key that could certify anybody. Of a token it keeps the SHA-256. One transaction
spends a token, so two requests cannot both have it; the same request again is answered again. The registry's
process and the `sovfed server` commands may work on the file at the same time.
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from sovfed.federation.addresses import host_port
from sovfed.federation.certificates import (
    InstitutionNames,
    certificate_fingerprint,
    check_csr,
    check_institution_name,
    key_fingerprint,
    same_issuer,
    to_der,
    to_pem,
)
from sovfed.federation.database import writing
from sovfed.federation.errors import IdentityError, InvitationError, ServiceError
from sovfed.federation.evidence.keys import INSTITUTION
from sovfed.federation.evidence.store import record
from sovfed.federation.evidence.witness import forget
from sovfed.federation.files import private_directory, read_bounded, write_atomic
from sovfed.federation.identity import (
    PeerIdentity,
    Trust,
    issuer_of,
    load_roots,
    node_key_bytes,
    node_key_digest,
    parse_certificate,
)
from sovfed.federation.renewal import make_renewal, read_renewal
from sovfed.federation.wire.enrolment import Invitation

if TYPE_CHECKING:
    from cryptography import x509

INVITATION_DAYS: Final = 7
RENEWAL: Final = ".renewal"  # of a request's file: endorsed, so that the authority signs it by itself
_ADDED: Final = {"renewal": "BLOB", "since": "INTEGER NOT NULL DEFAULT 0"}  # columns that the first version lacks
TOKEN_BYTES: Final = 32
_BUSY_TIMEOUT_S: Final = 10.0
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS institutions (
    name TEXT PRIMARY KEY,
    token TEXT NOT NULL UNIQUE,          -- SHA-256 of the token
    expires INTEGER NOT NULL,            -- of the token, Unix time
    csr BLOB,                            -- the request that spent the token, or the renewal that followed
    waiting INTEGER NOT NULL DEFAULT 0,  -- 1 while `csr` has no certificate yet
    node_key BLOB,
    node_key_digest TEXT UNIQUE,
    node_id TEXT,                        -- Flower's, an unsigned 64-bit number
    certificate BLOB
) STRICT
"""


@dataclass(frozen=True)
class Member:
    """An enrolled institution: Flower's node id and the certificate (PEM) that was accepted last."""

    institution: str
    node_id: int
    certificate: bytes


def invite(home: Path, name: str, address: str | None = None, *, now: float | None = None) -> Invitation:
    """A fresh invitation for `name`; one that was not used is void from now on.

    `address` is the enrolment port's; by default the one in the agency's settings, whose smallest cohort is told too.
    Raises IdentityError if the institution has already sent its request: `remove` it first.
    """
    from sovfed.server.home import load_settings

    min_cohort = 0
    if address is None:
        server = load_settings(home).server
        address, min_cohort = host_port(server.certificate_names[0], server.enrolment_port), server.min_cohort
    check_institution_name(name)
    token, expires = secrets.token_hex(TOKEN_BYTES), int(now or time.time()) + INVITATION_DAYS * 86_400
    identity = home / "identity"
    own = to_der(parse_certificate(read_bounded(identity / "cert.pem"), "server's certificate"))
    root = to_pem(issuer_of(own, load_roots(identity / "root.pem"))).decode("ascii")  # that the server can show now
    with _transaction(home) as db:
        db.execute("DELETE FROM institutions WHERE name = ? AND csr IS NULL", (name,))
        try:
            db.execute(
                "INSERT INTO institutions (name, token, expires) VALUES (?, ?, ?)", (name, _sha256(token), expires)
            )
        except sqlite3.IntegrityError as error:
            raise IdentityError(f"institution {name!r}: already enrolled, or its request is waiting") from error
    return Invitation(name, address, root, token, expires, min_cohort)


def submit(
    home: Path, token: str, csr: bytes, node_key: bytes, node_signature: bytes, *, now: float | None = None
) -> bytes | None:
    """Take in a request and spend its token; the certificate (PEM) once there is one, None until then.

    Raises IdentityError unless the token is known, unexpired and unspent (or spent by this very request), the request
    is sound and for the institution that was invited, and the sender holds the node key that the request names.
    """
    with _transaction(home) as db:
        row = db.execute("SELECT * FROM institutions WHERE token = ?", (_sha256(token),)).fetchone()
        if row is None:
            raise IdentityError("enrolment: unknown token")  # said to nobody who has none
        name = row["name"]
        if row["csr"] is None:
            if (now or time.time()) >= row["expires"]:
                raise InvitationError(f"the invitation of {name!r} has expired; ask the agency for a new one")
            digest = _check_request(name, csr, node_key, node_signature)
            try:
                db.execute(
                    "UPDATE institutions SET csr = ?, waiting = 1, since = ?, node_key = ?, node_key_digest = ? "
                    "WHERE name = ?",
                    (csr, int(time.time()), node_key, digest, name),
                )
            except sqlite3.IntegrityError as error:
                raise IdentityError(f"enrolment of {name!r}: another institution has this node key") from error
        elif (row["csr"], row["node_key"]) != (csr, node_key):
            raise InvitationError(
                f"the invitation of {name!r} was used by another home already; if that was not you, tell the agency"
            )
    return _answer(home, name, csr)


def renew(
    home: Path, peer: PeerIdentity, csr: bytes, certificate: bytes = b"", endorsement: bytes = b""
) -> bytes | None:
    """Take in the renewal request of `peer`, for the same names; its certificate (PEM) once there is one.

    `certificate` (PEM) is the one that the peer showed. If its key endorsed the request, the authority can sign it
    without asking anybody, and the request may be for another key.
    """
    names, key = check_csr(csr)
    if names != InstitutionNames(peer.institution, peer.node_key_digest):
        raise IdentityError(f"renewal of {peer.institution!r}: the request is for other names")
    with _transaction(home) as db:
        row = db.execute("SELECT * FROM institutions WHERE name = ?", (peer.institution,)).fetchone()
        if row is None or row["certificate"] is None or row["node_key_digest"] != peer.node_key_digest:
            raise IdentityError(f"renewal of {peer.institution!r}: not enrolled here")
        renewal = make_renewal(csr, certificate, endorsement).to_json() if endorsement else None
        if renewal is None and parse_certificate(row["certificate"], "enrolled certificate").public_key() != key:
            raise IdentityError(f"renewal of {peer.institution!r}: the request is for another key")
        if row["csr"] != csr:
            values = (csr, renewal, int(time.time()), peer.institution)
            db.execute("UPDATE institutions SET csr = ?, renewal = ?, waiting = 1, since = ? WHERE name = ?", values)
    return _answer(home, peer.institution, csr)


def accept_certificate(
    home: Path, cert_pem: bytes, register: Callable[[bytes, str], int] | None = None, *, trust: Trust | None = None
) -> str:
    """Put in the certificate that the authority has signed; the institution's name.

    The SuperNode key is registered with Flower through `register` (public key, name → node id), by default with the
    running superlink. Raises IdentityError unless the certificate holds and answers the waiting request.
    """
    certificate = parse_certificate(cert_pem, "certificate")
    peer = (trust or Trust(home / "identity")).verify(to_der(certificate))
    with _transaction(home) as db:
        row = db.execute("SELECT * FROM institutions WHERE name = ?", (peer.institution,)).fetchone()
    if row is None or not row["waiting"]:
        raise IdentityError(f"certificate of {peer.institution!r}: no request is waiting")
    _, key = check_csr(row["csr"])
    if certificate.public_key() != key or peer.node_key_digest != row["node_key_digest"]:
        raise IdentityError(f"certificate of {peer.institution!r}: for another key than the request's")
    if row["certificate"] is not None:
        former = parse_certificate(row["certificate"], "former certificate")
        later = certificate.not_valid_after_utc > former.not_valid_after_utc
        if same_issuer(certificate, former) and not later and not (certificate == former and _has_lost(row, former)):
            raise IdentityError(f"certificate of {peer.institution!r}: ends no later than the one it would replace")
    if register is None:
        register = partial(_register_with_flower, home=home)
    node_id = row["node_id"] or str(register(row["node_key"], peer.institution))
    with _transaction(home) as db:
        updated = db.execute(
            "UPDATE institutions SET certificate = ?, node_id = ?, waiting = 0, renewal = NULL "
            "WHERE name = ? AND csr = ?",
            (cert_pem, node_id, peer.institution, row["csr"]),
        )
        if updated.rowcount != 1:
            raise IdentityError(f"certificate of {peer.institution!r}: its request changed meanwhile")
        if row["certificate"] is None:  # a home that is new has a log that is
            forget(home, INSTITUTION + peer.institution)
        fields = {"institution": peer.institution, "certificate": peer.fingerprint, "node": str(node_id)}
        record(home, "admission", **fields, renewal=row["certificate"] is not None)
    _forget_request(home, peer.institution)
    return peer.institution


def _has_lost(row: sqlite3.Row, certificate: x509.Certificate) -> bool:
    """Whether the institution asked for a renewal by another certificate than `certificate`, which it had got."""
    if row["renewal"] is None:
        return False
    shown = read_renewal(row["renewal"]).certificate
    return parse_certificate(shown.encode(), "renewal's certificate") != certificate


def remove(home: Path, name: str) -> int | None:
    """Forget `name`, so that it can be invited anew; the Flower node id to unregister, if it had one.

    This does not revoke its certificate: the authority does.
    """
    with _transaction(home) as db:
        row = db.execute("DELETE FROM institutions WHERE name = ? RETURNING node_id", (name,)).fetchone()
    if row is None:
        raise IdentityError(f"institution {name[:80]!r}: not known here")
    record(home, "removal", institution=name)
    _forget_request(home, name)
    return int(row["node_id"]) if row["node_id"] else None


def members(home: Path) -> list[Member]:
    """The enrolled institutions by name. Their certificates may have expired or been revoked since."""
    with _transaction(home) as db:
        rows = db.execute("SELECT * FROM institutions WHERE certificate IS NOT NULL ORDER BY name").fetchall()
    return [Member(row["name"], int(row["node_id"]), row["certificate"]) for row in rows]


def standing(home: Path, name: str) -> tuple[int, str]:
    """Flower's id of the enrolled institution `name`, and what the superlink says of it; "" if it cannot be asked."""
    from sovfed.server.home import load_settings
    from sovfed.server.runs.control import ControlClient

    member = next((member for member in members(home) if member.institution == name), None)
    if member is None:
        raise IdentityError(f"institution {name!r}: not enrolled here")
    try:
        with ControlClient(home, load_settings(home).server.control_port) as control:
            nodes = {node.node_id: node.status for node in control.list_nodes()}
    except ServiceError:
        return member.node_id, ""
    return member.node_id, nodes.get(member.node_id, "unregistered")


@dataclass(frozen=True)
class Waiting:
    """An institution that is not in yet, or whose renewal waits; `key` is the fingerprint of its request's key."""

    name: str
    state: Literal["invited", "waiting", "renewal"]
    since: float  # Unix time; of an invitation, when it ends
    key: str
    path: Path | None


def waiting(home: Path) -> list[Waiting]:
    """The invitations that are open and the requests without a certificate, by name."""
    with _transaction(home) as db:
        rows = db.execute("SELECT * FROM institutions WHERE waiting = 1 OR csr IS NULL ORDER BY name").fetchall()
    return [_waiting(home, row) for row in rows]


def invited_until(home: Path, name: str) -> float | None:
    """When the open invitation of `name` ends (Unix time); None if there is none."""
    return next((entry.since for entry in waiting(home) if entry.name == name and entry.state == "invited"), None)


def _waiting(home: Path, row: sqlite3.Row) -> Waiting:
    if row["csr"] is None:
        return Waiting(row["name"], "invited", row["expires"], "", None)
    path, key = _request_path(home, row["name"]), key_fingerprint(check_csr(row["csr"])[1])
    return Waiting(row["name"], "waiting" if row["certificate"] is None else "renewal", row["since"], key, path)


def waiting_requests(home: Path) -> list[Path]:
    """The requests that wait for the authority's signature, by name."""
    return sorted((home / "registry" / "requests").glob("*.csr"))


def wait_for_request(home: Path, name: str, timeout_s: float) -> bytes:
    """The signing request (PEM) of `name` once it has come in; ServiceError after `timeout_s`."""
    deadline, path = time.monotonic() + timeout_s, _request_path(home, check_institution_name(name))
    while not path.exists():
        if time.monotonic() >= deadline:
            raise ServiceError(f"institution {name!r}: no signing request within {timeout_s:g} s")
        time.sleep(0.05)
    return path.read_bytes()


def _check_request(name: str, csr: bytes, node_key: bytes, node_signature: bytes) -> str:
    """The node key's digest, once request, node key and the node key's signature over the request go together."""
    names, _ = check_csr(csr)
    if not isinstance(names, InstitutionNames) or names.institution != name:
        raise IdentityError(f"enrolment of {name!r}: the request is for other names")
    try:
        key = serialization.load_pem_public_key(node_key)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise IdentityError(f"enrolment of {name!r}: node key not readable") from error
    if (
        not isinstance(key, ec.EllipticCurvePublicKey)
        or key.curve.name != "secp384r1"
        or node_key_bytes(key) != node_key
    ):
        raise IdentityError(f"enrolment of {name!r}: node key is not P-384 in Flower's form")
    if node_key_digest(key) != names.node_key_digest:
        raise IdentityError(f"enrolment of {name!r}: the request names another node key than the one sent")
    try:
        key.verify(node_signature, csr, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as error:
        raise IdentityError(f"enrolment of {name!r}: the request is not signed by the node key") from error
    return names.node_key_digest


def _answer(home: Path, name: str, csr: bytes) -> bytes | None:
    """The certificate for `csr`; while there is none, the request lies where the authority's courier looks."""
    with _transaction(home) as db:
        row = db.execute("SELECT * FROM institutions WHERE name = ? AND csr = ?", (name, csr)).fetchone()
        if row is None:
            raise IdentityError(f"institution {name!r}: its request changed meanwhile")
        files = {".csr": csr, RENEWAL: row["renewal"]} if row["waiting"] else {}
        for suffix, request in files.items():
            path = _request_path(home, name).with_suffix(suffix)
            if request is not None and not (path.exists() and path.read_bytes() == request):
                private_directory(path.parent)
                write_atomic(path, request)
        certificate: bytes | None = None if row["waiting"] else row["certificate"]
    return certificate


def _request_path(home: Path, name: str) -> Path:
    return home / "registry" / "requests" / f"{name}.csr"


def _forget_request(home: Path, name: str) -> None:
    for suffix in (".csr", RENEWAL):
        _request_path(home, name).with_suffix(suffix).unlink(missing_ok=True)


def _register_with_flower(public_key: bytes, name: str, home: Path) -> int:
    """The node id at the running superlink; a key that a broken-off acceptance had registered keeps its id."""
    from sovfed.server.home import load_settings
    from sovfed.server.runs.control import ControlClient

    with ControlClient(home, load_settings(home).server.control_port) as control:
        for node in control.list_nodes():
            if node.public_key == public_key and node.status != "unregistered":
                return node.node_id
        return control.register_node(public_key, name)


def register_lost(home: Path, port: int) -> list[str]:
    """Register the nodes of enrolled institutions that the superlink at the loopback `port` does not know; whose.

    Its database was lost, or put back from a copy: nobody need be admitted anew for that. Raises ServiceError.
    """
    from sovfed.server.runs.control import ControlClient

    if not (home / "registry" / "enrolment.db").exists():
        return []
    with _transaction(home) as db:
        rows = db.execute("SELECT * FROM institutions WHERE certificate IS NOT NULL ORDER BY name").fetchall()
    lost = list[str]()
    with ControlClient(home, port) as control:
        known = {node.public_key: node.node_id for node in control.list_nodes() if node.status != "unregistered"}
        for row in rows:
            node_id = known.get(row["node_key"])
            if node_id is None:
                node_id = control.register_node(row["node_key"], row["name"])
            if str(node_id) != row["node_id"]:
                _renumber(home, row, str(node_id))
                lost.append(row["name"])
    return lost


def _renumber(home: Path, row: sqlite3.Row, node_id: str) -> None:
    with _transaction(home) as db:
        values = (node_id, row["name"], row["node_key"])
        db.execute("UPDATE institutions SET node_id = ? WHERE name = ? AND node_key = ?", values)
    certificate = certificate_fingerprint(parse_certificate(row["certificate"], row["name"]))
    record(home, "admission", institution=row["name"], certificate=certificate, node=node_id, renewal=True)


def _sha256(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


@contextlib.contextmanager
def _transaction(home: Path) -> Iterator[sqlite3.Connection]:
    """One write transaction on the database, durable once this returns."""
    path = private_directory(home / "registry") / "enrolment.db"
    with writing(path, _SCHEMA, _BUSY_TIMEOUT_S) as db:
        db.row_factory = sqlite3.Row
        _add_columns(db)
        yield db


def _add_columns(db: sqlite3.Connection) -> None:
    """Give a database of an earlier version the columns that came since."""
    present = {row["name"] for row in db.execute("PRAGMA table_info(institutions)")}
    for name, kind in _ADDED.items():
        if name not in present:
            db.execute(f"ALTER TABLE institutions ADD COLUMN {name} {kind}")
