"""One root of the authority takes over from another: both are trusted for a time, and the old one vouches for the new.

The statement is signed by the former root's key, so that whoever pins that root can take the new one from anybody. From
`until` on the former root is trusted no more, and whatever it signed with it.
"""

from __future__ import annotations

import base64
import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from sovfed.federation.certificates import to_der, to_pem
from sovfed.federation.errors import IdentityError
from sovfed.federation.files import read_bounded, write_atomic
from sovfed.federation.identity import issuer_of, load_roots, parse_certificate
from sovfed.federation.schema import bind, bounded
from sovfed.federation.text import json_object, to_base64

if TYPE_CHECKING:
    from pathlib import Path

LABEL: Final = b"sovfed handover 1\n"
FILE: Final = "handover.json"  # in identity/, and in the authority's home
MAX_BYTES: Final = 32_768


@dataclass(frozen=True)
class Handover:
    """From `since` on `root` is trusted too, from `until` on it alone; signed by the key of `former`."""

    former: str = bounded(low=1, high=8192, lines=True, doc="PEM")
    root: str = bounded(low=1, high=8192, lines=True, doc="PEM")
    since: str = bounded(low=1, high=40, doc="ISO 8601")
    until: str = bounded(low=1, high=40, doc="ISO 8601")
    signature: str = bounded(low=1, high=512, doc="base64, ECDSA with SHA-256")

    def to_json(self) -> bytes:
        """The file's text."""
        return json.dumps(asdict(self), indent=2).encode() + b"\n"

    @property
    def ends(self) -> datetime:
        """When the former root's trust ends."""
        return datetime.fromisoformat(self.until)

    def share(self, now: datetime) -> float:
        """Which part of the overlap is over at `now`."""
        since = datetime.fromisoformat(self.since)
        return (now - since) / (self.ends - since)


def make_handover(
    key: ec.EllipticCurvePrivateKey, former: x509.Certificate, root: x509.Certificate, since: datetime, until: datetime
) -> Handover:
    """The statement that `root` takes over from `former`, whose key is `key`."""
    dates = (since.isoformat(timespec="microseconds"), until.isoformat(timespec="microseconds"))
    signature = key.sign(_signed(former, root, *dates), ec.ECDSA(hashes.SHA256()))
    return Handover(to_pem(former).decode(), to_pem(root).decode(), *dates, to_base64(signature))


def read_handover(data: bytes) -> Handover:
    """The handover in `data`, signed by the root that it calls former. Raises IdentityError."""
    where = "handover of roots"
    handover = bind(Handover, json_object(data, where, IdentityError, MAX_BYTES), where, IdentityError)
    former, root = (parse_certificate(pem.encode(), "handover of roots") for pem in (handover.former, handover.root))
    key = former.public_key()
    try:
        sound = isinstance(key, ec.EllipticCurvePublicKey) and handover.share(handover.ends) == 1
        signature = base64.b64decode(handover.signature, validate=True)
        if sound and isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, _signed(former, root, handover.since, handover.until), ec.ECDSA(hashes.SHA256()))
    except (ValueError, TypeError, ZeroDivisionError, InvalidSignature) as error:
        raise IdentityError("handover of roots: not signed by the former root") from error
    if not sound:
        raise IdentityError("handover of roots: not signed by the former root")
    return handover


def handed_over(root: x509.Certificate, data: bytes) -> tuple[x509.Certificate, ...]:
    """The root that `data` hands over to from `root`; nothing if `data` is empty. Raises IdentityError."""
    if not data:
        return ()
    handover = read_handover(data)
    former, new = (parse_certificate(pem.encode(), "handover") for pem in (handover.former, handover.root))
    if root == new:
        return ()
    if root != former:
        raise IdentityError("handover of roots: not from the root that is trusted here")
    return (new,)


def adopt(identity: Path, data: bytes) -> bool:
    """Trust the root that `data` hands over to, beside the one that is trusted here; whether that is new.

    Raises IdentityError unless the root that is pinned here signed it.
    """
    handover, roots = read_handover(data), load_roots(identity / "root.pem")
    if not handed_over(roots[0], data):
        return False
    write_atomic(identity / FILE, data)
    write_atomic(identity / "root.pem", handover.root.encode() + to_pem(roots[0]))
    return True


def retire(identity: Path, now: datetime | None = None) -> bool:
    """Trust the former root no more once the handover's time is over; whether that is new."""
    path = identity / FILE
    if not path.exists():
        return False
    handover = read_handover(read_bounded(path))
    if (now or datetime.now(UTC)) < handover.ends or len(load_roots(identity / "root.pem")) == 1:
        return False
    write_atomic(identity / "root.pem", handover.root.encode())
    return True


def is_of_former_root(identity: Path, certificate: x509.Certificate, share: float, now: datetime | None = None) -> bool:
    """Whether `certificate` is still the former root's though `share` of the overlap is over."""
    path = identity / FILE
    if not path.exists() or read_handover(read_bounded(path)).share(now or datetime.now(UTC)) < share:
        return False
    roots = load_roots(identity / "root.pem")
    return len(roots) > 1 and issuer_of(to_der(certificate), roots) != roots[0]


def _signed(former: x509.Certificate, root: x509.Certificate, since: str, until: str) -> bytes:
    return LABEL + b"\n".join(
        (to_der(former).hex().encode(), to_der(root).hex().encode(), since.encode(), until.encode())
    )
