"""What a model was trained on, as each institution declares it of its own records, signed; no record or count is in it.

It is the material for the summary that providers of general models owe the public (EU AI Act, Article 53(1)(d)): nobody
but the institution has seen its records, so nobody else can say.
"""

from __future__ import annotations

import base64
import json
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from sovfed.federation.content import ContentConfig
from sovfed.federation.errors import EvidenceError, IdentityError
from sovfed.federation.evidence.entries import canonical
from sovfed.federation.identity import verify_lapsed
from sovfed.federation.release.lineage import ended_at
from sovfed.federation.schema import bind, bounded, named
from sovfed.federation.secagg.keys import check_signature, encode_fields, public_key
from sovfed.federation.text import LAST_MOMENT, json_object, to_base64

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cryptography import x509

    from sovfed.federation.secagg.keys import Identity

CONTENT: Final = "content/declarations.json"
MAX_BYTES: Final = 16_384


@dataclass(frozen=True)
class Declaration:
    """What `institution` trained on in the run under `order` (its digest)."""

    institution: str = bounded(low=1, high=63)
    order: str = bounded(low=64, high=64)
    run: str = named(high=128)
    at: int = bounded(low=0, high=LAST_MOMENT)
    content: ContentConfig = field(default_factory=ContentConfig)
    certificate: str = bounded("", 0, 8192)
    signature: str = bounded("", 0, 128)

    @property
    def message(self) -> bytes:
        """What is signed: all but the signature."""
        return encode_fields("training content", canonical(asdict(replace(self, signature=""))))

    def signed(self, identity: Identity) -> Declaration:
        """The declaration as the institution of `identity` gives it away."""
        shown = replace(self, certificate=to_base64(identity.certificate))
        return replace(shown, signature=to_base64(identity.sign(shown.message)))

    def to_bytes(self) -> bytes:
        """Its one spelling."""
        return canonical(asdict(self))

    def check(self, roots: Sequence[x509.Certificate]) -> None:
        """Raise IdentityError unless the institution, as one of `roots` certified it, has signed this."""
        try:
            der, signature = (base64.b64decode(text, validate=True) for text in (self.certificate, self.signature))
        except ValueError as error:
            raise IdentityError("declaration: not base64") from error
        if getattr(verify_lapsed(der, roots), "institution", "") != self.institution:
            raise IdentityError(f"declaration of {self.institution}: its certificate is another's")
        check_signature(public_key(der), self.message, signature, f"declaration of {self.institution}")

    def told(self) -> str:
        """It in plain words."""
        values = asdict(self.content)
        said = [f"{name} {value}" for name, value in values.items() if value]
        return f"{self.institution} declares: {'; '.join(said)}"


def read_declaration(data: bytes, where: str) -> Declaration:
    """The declaration that `data` spells. Raises IdentityError."""
    return bind(Declaration, json_object(data, where, IdentityError, MAX_BYTES), where, IdentityError)


def check_content(
    files: Mapping[str, bytes], predicate: Mapping[str, Any], roots: Sequence[x509.Certificate], revoked: bytes
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What holds of the declarations in a release, and what is missing, in plain words. Raises EvidenceError."""
    stated = predicate["training_content"] or []
    values = json.loads(files[CONTENT]) if CONTENT in files else {}
    spelled = CONTENT not in files or canonical(values) == files[CONTENT]
    if not isinstance(values, dict) or sorted(values) != stated or not spelled:
        raise EvidenceError(f"{CONTENT}: other declarations than the statement names")
    named_, orders = predicate["institutions"], {order["sha256"] for order in predicate["orders"]}
    holds = []
    for name, value in values.items():
        declaration = read_declaration(canonical(value), f"declaration of {name}")
        declaration.check(roots)
        if ended_at(base64.b64decode(declaration.certificate), roots, revoked).timestamp() < declaration.at:
            raise EvidenceError(f"{CONTENT}: {name} was revoked before it declared anything")
        if declaration.institution != name or declaration.order not in orders:
            raise EvidenceError(f"{CONTENT}: the declaration of {name} is another's, or of another run")
        if isinstance(named_, list) and name not in named_:
            raise EvidenceError(f"{CONTENT}: {name} did not take part")
        holds.append(declaration.told())
    silent = sorted(set(named_) - values.keys()) if isinstance(named_, list) and values else []
    return tuple(holds), ((f"a declaration of training content by {', '.join(silent)}",) if silent else ())
