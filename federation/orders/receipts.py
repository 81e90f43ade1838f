"""An institution's signed word on what it erased of a permit's runs, which anybody checks by the authority's root."""

from __future__ import annotations

import base64
import json
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from sovfed.federation.certificates import ServerNames
from sovfed.federation.errors import EvidenceError, IdentityError
from sovfed.federation.evidence.entries import canonical
from sovfed.federation.evidence.keys import AGENCY
from sovfed.federation.identity import verify_lapsed
from sovfed.federation.schema import bind, bounded, named
from sovfed.federation.secagg.keys import check_signature, encode_fields, public_key
from sovfed.federation.text import LAST_MOMENT, day, json_object, to_base64

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cryptography import x509

    from sovfed.federation.secagg.keys import Identity

MAX_BYTES: Final = 1 << 20
REMAINS: Final = (
    "the privacy ledger and its heads: what was learnt stays learnt",
    "the secure-aggregation journal, without keys: which sums were answered",
    "the orders of the permit and this institution's answers to them",
    "models and tables that were released (received/), and the logs",
    "what the agency and other institutions hold",
)


@dataclass(frozen=True)
class Receipt:
    """What `institution`, or an agency by the origin of its log, erased of a permit's runs, as files of its home.

    `certificate` (DER) is base64.
    """

    permit: str = named()
    institution: str = bounded(low=1, high=300)
    at: int = bounded(low=0, high=LAST_MOMENT)
    runs: tuple[str, ...] = ()
    erased: tuple[str, ...] = ()
    remains: tuple[str, ...] = REMAINS
    certificate: str = bounded("", 0, 8192)
    signature: str = bounded("", 0, 128)

    @property
    def message(self) -> bytes:
        """What is signed: all but the signature."""
        values = asdict(replace(self, signature=""))
        return encode_fields("purge receipt", canonical({name: _plain(value) for name, value in values.items()}))

    def signed(self, identity: Identity) -> Receipt:
        """It as the node of `identity` gives it away."""
        shown = replace(self, certificate=to_base64(identity.certificate))
        return replace(shown, signature=to_base64(identity.sign(shown.message)))

    def check(self, roots: Sequence[x509.Certificate]) -> None:
        """Raise IdentityError unless the institution, or agency, as one of `roots` certified it, has signed this."""
        try:
            der, signature = (base64.b64decode(text, validate=True) for text in (self.certificate, self.signature))
        except ValueError as error:
            raise IdentityError("receipt: not base64") from error
        names = verify_lapsed(der, roots)
        holder = AGENCY + names.hosts[0] if isinstance(names, ServerNames) else getattr(names, "institution", "")
        if holder != self.institution:
            raise IdentityError(f"receipt of {self.institution}: its certificate is another's")
        check_signature(public_key(der), self.message, signature, f"receipt of {self.institution}")

    def lines(self) -> Iterator[str]:
        """What it says, for people."""
        yield f"✓ signed by {self.institution} on {day(self.at)}: erased of permit {self.permit}, by its own word"
        yield f"  runs     {', '.join(self.runs)}"
        yield from (f"  erased   {name}" for name in self.erased or ("nothing was left",))
        yield from (f"  remains  {name}" for name in self.remains)


def is_receipt(data: bytes) -> bool:
    """Whether `data` is meant as one."""
    try:
        return len(data) <= MAX_BYTES and "permit" in json.loads(data)
    except (ValueError, TypeError, RecursionError):
        return False


def read_receipt(data: bytes, roots: Sequence[x509.Certificate]) -> Receipt:
    """The receipt that `data` spells, once its institution's signature holds. Raises EvidenceError."""
    try:
        receipt = bind(Receipt, json_object(data, "receipt", EvidenceError, MAX_BYTES), "receipt", EvidenceError)
        receipt.check(roots)
    except (ValueError, TypeError, AttributeError, RecursionError, IdentityError) as error:
        raise EvidenceError(f"the receipt does not hold: {error}") from error
    return receipt


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
