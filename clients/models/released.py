"""A release that this institution took part in, with its own signature."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sovfed.clients.models.compared import differences
from sovfed.federation.errors import EvidenceError, PolicyError
from sovfed.federation.evidence.keys import INSTITUTION, own_origin
from sovfed.federation.evidence.store import record
from sovfed.federation.identity import load_roots
from sovfed.federation.release import sealed
from sovfed.federation.release.checking import check_release, read_release, with_signature

if TYPE_CHECKING:
    from pathlib import Path


def signed_release(home: Path, data: bytes) -> bytes:
    """The release `data` with the signature of the institution in `home`, which is in its log.

    Raises EvidenceError if the release does not hold, or says of this institution what its own books do not, and
    PolicyError if it says nothing of it.
    """
    roots = load_roots(home / "identity" / "root.pem")
    verdict, name = check_release(data, roots), own_origin(home).removeprefix(INSTITUTION)
    if isinstance(verdict.predicate["institutions"], list) and name not in verdict.predicate["institutions"]:
        raise PolicyError(f"the release does not name {name} among those that took part")
    if said := differences(home, verdict):
        raise EvidenceError("; ".join(said))
    _, envelope, _ = read_release(data)
    signed = with_signature(data, sealed.sign(envelope.payload, home))
    record(home, "release", name=verdict.predicate["run"]["name"], sha256=verdict.predicate["model"]["sha256"])
    return signed
