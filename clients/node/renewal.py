"""Keeping an identity fresh while the node runs: the certificate, its key, the revocation list, the authority's roots.

Certificates are short (30 days) and renewed from half of their life on, without anybody: the key that is certified now
endorses the request (`federation/renewal.py`). Whoever reads `identity/` later reads the new one; nothing restarts.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Final

from sovfed.clients.home.folder import NEXT_CERTIFICATE
from sovfed.clients.node.agency import ask, mutual_channel, poll, why_not
from sovfed.clients.node.enrol import (
    Fingerprints,
    check_certificate,
    lane_of,
    load_institution,
    own_key,
    own_node_key,
    signing_request,
)
from sovfed.federation.certificates import InstitutionNames, certificate_fingerprint, key_fingerprint, same_issuer
from sovfed.federation.errors import IdentityError, SovfedError
from sovfed.federation.files import read_bounded, read_private, write_atomic, write_private
from sovfed.federation.identity import Trust, install_crl, load_certificate, load_roots, node_key_digest
from sovfed.federation.renewal import due_at, endorse, is_due, is_old
from sovfed.federation.roots import adopt, is_of_former_root, retire
from sovfed.federation.secagg.files import FORMER
from sovfed.federation.wire import enrolment_pb2 as pb
from sovfed.federation.wire.enrolment import REGISTRY_SERVICE

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric import ec

log = logging.getLogger(__name__)
CONTACT: Final = "state/agency.json"
WAITING_S: Final = 5.0  # the least between looks, as while a renewal waits for its signature
MOVE_SHARE: Final = 0.2  # of a rotation: from when on the authority signs renewals by its new root
NEXT_KEY: Final = "next_key.pem"
REQUEST: Final = "renewal.csr"


@dataclass(frozen=True)
class Contact:
    """When the gateway last tried to reach the agency (Unix time), and what went wrong; "" if nothing did."""

    when: float
    problem: str


def renew(
    home: Path,
    timeout_s: float,
    *,
    announce: Callable[[Fingerprints], None] = lambda _: None,
    proxy: str | None = None,
    lane: str | None = None,
    new_key: bool = False,
) -> datetime:
    """Have the key, or a `new_key`, certified for longer, and wait for it at most `timeout_s`; until when it now holds.

    `proxy` and `lane` are, here and below, client.yaml's `proxy` and `lane_address`.
    Errors as with `enrol`. Interrupted, it goes on with the same request.
    """
    identity, address = home / "identity", lane_of(home, lane)
    key = _key(identity, new_key)
    request = _request(identity, load_institution(home).name, key)
    root = load_roots(identity / "root.pem")[0]
    announce(Fingerprints(certificate_fingerprint(root), key_fingerprint(key.public_key())))
    reason = partial(why_not, home, address, read_bounded(identity / "root.pem"), proxy)
    with mutual_channel(home, address, proxy) as channel:
        reply = poll(channel, f"/{REGISTRY_SERVICE}/Renew", request, timeout_s, f"renewal at {address}", reason)
    return _install(identity, key, reply)


def renew_if_due(
    home: Path, proxy: str | None = None, lane: str | None = None, now: datetime | None = None
) -> datetime | None:
    """Ask once for a renewal if half of the certificate's life is over; until when it then holds, None if it waits."""
    identity = home / "identity"
    certificate = load_certificate(identity / "cert.pem")
    if not is_due(certificate, now) and not is_of_former_root(identity, certificate, MOVE_SHARE, now):
        return None
    name, address = load_institution(home).name, lane_of(home, lane)
    made = datetime.fromtimestamp((identity / "key.pem").stat().st_mtime, UTC)
    key = _key(identity, is_old(made, now))
    with mutual_channel(home, address, proxy) as channel:
        request, action = _request(identity, name, key), f"renewal at {address}"
        reply = ask(channel, f"/{REGISTRY_SERVICE}/Renew", request, pb.EnrolReply, action)
    return _install(identity, key, reply) if reply.certificate else None


def refresh_crl(home: Path, proxy: str | None = None, lane: str | None = None) -> int:
    """Fetch the revocation list in force at the agency and put it in place if it holds; its number."""
    address = lane_of(home, lane)
    with mutual_channel(home, address, proxy) as channel:
        action = f"revocation list from {address}"
        reply = ask(channel, f"/{REGISTRY_SERVICE}/Crl", pb.Empty(), pb.CrlReply, action)
    _follow_roots(home / "identity", reply.roots)
    return install_crl(home / "identity", reply.crl)


def keep_fresh(
    home: Path, every_s: float, stop: threading.Event, proxy: str | None = None, lane: str | None = None
) -> None:
    """Refresh list and certificate now and every `every_s` until `stop`; what is held counts until it ends."""
    while True:
        problem = ""
        for refresh in (refresh_crl, renew_if_due):
            try:
                refreshed = refresh(home, proxy, lane)
            except Exception as error:  # of whatever kind: no answer of the agency's ends it
                problem = str(error)
                what = "revocation list" if refresh is refresh_crl else "certificate"
                expected = isinstance(error, SovfedError | OSError)
                log.warning("the %s was not refreshed: %s", what, error, exc_info=not expected)
            else:
                if isinstance(refreshed, datetime):
                    log.info("the certificate was renewed, and is good until %s", f"{refreshed:%F %R} UTC")
        _tell(home, Contact(time.time(), problem))
        if stop.wait(min(every_s, max(WAITING_S, _due_in(home)))):
            return


def _due_in(home: Path) -> float:
    """Seconds until half of the certificate's life is over; negative once a renewal is due, or waits."""
    try:
        return (due_at(load_certificate(home / "identity" / "cert.pem")) - datetime.now(UTC)).total_seconds()
    except SovfedError:
        return 0.0


def _follow_roots(identity: Path, roots: bytes) -> None:
    """Trust a new root that the one in place has handed over to, and give that up when its time is over."""
    if roots and adopt(identity, roots):
        log.info("the authority has a new root, which is trusted beside the former one from now on")
    if retire(identity):
        log.info("the authority's former root is not trusted any more")


def last_contact(home: Path) -> Contact | None:
    """What the gateway last wrote; None if it has not tried yet."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        return Contact(**json.loads((home / CONTACT).read_text(encoding="utf-8")))
    return None


def _tell(home: Path, contact: Contact) -> None:
    try:
        write_atomic(home / CONTACT, json.dumps(asdict(contact)).encode(), 0o600, durable=False)
    except OSError as error:
        log.warning("%s cannot be written: %s", CONTACT, error)


def _key(identity: Path, new: bool) -> ec.EllipticCurvePrivateKey:
    """The key to have certified: the one in force, or the next one where a `new` one is due or asked for already."""
    return own_key(identity, NEXT_KEY if new or (identity / NEXT_KEY).exists() else "key.pem")


def _request(identity: Path, name: str, key: ec.EllipticCurvePrivateKey) -> pb.RenewRequest:
    csr = signing_request(identity / REQUEST, key, _names(identity, name))
    return pb.RenewRequest(csr=csr, endorsement=endorse(own_key(identity), csr))


def _install(identity: Path, key: ec.EllipticCurvePrivateKey, reply: pb.EnrolReply) -> datetime:
    """Put the certificate of `reply`, and the next key if it is for that one, in place, once they hold."""
    former = load_certificate(identity / "cert.pem")
    _follow_roots(identity, reply.roots)
    install_crl(identity, reply.crl)
    names = _names(identity, load_institution(identity.parent).name)
    renewed = check_certificate(reply.certificate, Trust(identity).verify, key, names)
    if same_issuer(renewed, former) and renewed.not_valid_after_utc <= former.not_valid_after_utc:
        raise IdentityError("renewal: the certificate received ends no later than the one in place")
    write_atomic(identity / NEXT_CERTIFICATE, reply.certificate)
    complete(identity)
    return renewed.not_valid_after_utc


def complete(identity: Path) -> None:
    """Put a renewed certificate, and its key if that is new, in place; also what an interruption left half done."""
    if not (identity / NEXT_CERTIFICATE).exists():
        return
    former, pem = read_bounded(identity / "cert.pem"), read_bounded(identity / NEXT_CERTIFICATE)
    if (identity / NEXT_KEY).exists():
        _remember(identity, former)
        write_private(identity / "key.pem", read_private(identity / NEXT_KEY))
    write_atomic(identity / "cert.pem", pem)
    for name in (REQUEST, NEXT_KEY, NEXT_CERTIFICATE):
        (identity / name).unlink(missing_ok=True)


def _remember(identity: Path, certificate: bytes) -> None:
    path = identity / FORMER
    known = read_bounded(path) if path.exists() else b""
    if certificate not in known:
        write_atomic(path, known + certificate)


def _names(identity: Path, name: str) -> InstitutionNames:
    return InstitutionNames(name, node_key_digest(own_node_key(identity).public_key()))
