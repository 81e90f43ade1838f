"""An institution's signed word on an order, by one of its officers or by its node where it consented in advance.

What is signed names the institution and the order, so no answer stands for another's, or for another run.
"""

from __future__ import annotations

import base64
import json
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import rfc8785
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from sovfed.federation.errors import ConfigError, IdentityError
from sovfed.federation.files import create_private, read_private
from sovfed.federation.identity import verify_lapsed
from sovfed.federation.schema import bind, bounded, choice
from sovfed.federation.secagg.keys import check_signature, encode_fields, public_key
from sovfed.federation.text import LAST_MOMENT, json_object, to_base64

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from cryptography import x509

    from sovfed.federation.secagg.keys import Identity

SIGNED: Final = "signed"
REFUSED: Final = "refused"
CONSENTED: Final = "standing"
WITHDRAWN: Final = "withdrawn"  # refused from now on, and the run's model is to be made anew without the institution
UNREADABLE: Final = "unreadable"  # never written or sent: what a damaged answer is shown as
MAX_BYTES: Final = 16_384
ADDED: Final = ("node", "vouched")
_SEALED: Final = b"ENCRYPTED"  # in the first line of such a PEM file


@dataclass(frozen=True)
class Answer:
    """The word of `institution` on an `order` (its digest). Of its node's own `officer` is empty, `key` a certificate.

    An officer's key is known to the institution alone. So its node `vouched` for that, by the certificate `node`.
    """

    order: str = bounded(low=64, high=64)
    institution: str = bounded(low=1, high=63)
    decision: str = choice(REFUSED, (SIGNED, REFUSED, CONSENTED, WITHDRAWN))
    officer: str = bounded("", 0, 128)
    reason: str = bounded("", 0, 500)
    at: int = bounded(0, 0, LAST_MOMENT)
    key: str = bounded("", 0, 8192)
    signature: str = bounded("", 0, 128)
    node: str = bounded("", 0, 8192)
    vouched: str = bounded("", 0, 128)

    @property
    def message(self) -> bytes:
        """What is signed: all but the signature, and what the node adds."""
        values = {name: value for name, value in asdict(replace(self, signature="")).items() if name not in ADDED}
        return encode_fields("order answer", rfc8785.dumps(values))

    @property
    def is_of_node(self) -> bool:
        """Whether it is the node's own word, and no officer's."""
        return not self.officer

    def signed(self, sign: Callable[[bytes], bytes]) -> Answer:
        return replace(self, signature=to_base64(sign(self.message)))

    def to_bytes(self) -> bytes:
        return rfc8785.dumps(asdict(self))

    def check_officer(self, key: str) -> None:
        """Raise IdentityError unless the officer with the public `key` (base64) signed this."""
        if self.key != key or self.decision == CONSENTED or self.is_of_node:
            raise IdentityError(f"answer of {self.officer!r}: signed with another key than the policy names")
        check_signature(_public(key), self.message, _bytes(self.signature), f"officer {self.officer!r}")

    def check_node(self) -> None:
        """Raise IdentityError unless the node whose certificate is shown signed this; who certified it is not asked."""
        check_signature(public_key(_bytes(self.key)), self.message, _bytes(self.signature), "node's word")

    def by_node(self, identity: Identity) -> Answer:
        """The answer as the node of `identity` signs it in its own name."""
        return replace(self, key=to_base64(identity.certificate)).signed(identity.sign)

    def vouched_by(self, identity: Identity) -> Answer:
        """An officer's answer as the institution's node passes it on."""
        return replace(self, node=to_base64(identity.certificate), vouched=to_base64(identity.sign(self._voucher)))

    def check_origin(self, roots: Sequence[x509.Certificate]) -> None:
        """Raise IdentityError unless `institution`, as one of `roots` certified it, has said this, by whomever."""
        names = verify_lapsed(self.certificate, roots)
        if getattr(names, "institution", "") != self.institution:
            raise IdentityError(f"answer of {self.institution!r}: its certificate is another's")
        if self.is_of_node:
            self.check_node()
            return
        self.check_officer(self.key)
        node = public_key(self.certificate)
        check_signature(node, self._voucher, _bytes(self.vouched), f"node of {self.institution}")

    @property
    def certificate(self) -> bytes:
        """That of the institution's node (DER), which has said this or passed it on. Raises IdentityError."""
        return _bytes(self.key if self.is_of_node else self.node)

    @property
    def _voucher(self) -> bytes:
        return encode_fields("officer of the institution", self.message, self.signature.encode())


def make_answer(**values: Any) -> Answer:
    """The answer with `values`, not signed yet. Raises ConfigError if it could not be read again."""
    answer = bind(Answer, values, "answer", ConfigError)
    try:
        answer.to_bytes()
    except ValueError as error:  # bytes of a command line that are no text
        raise ConfigError("answer: it cannot be written as text") from error
    return answer


def read_answer(data: bytes, where: str) -> Answer:
    """The answer that `data` spells. Raises IdentityError."""
    return bind(Answer, json_object(data, where, IdentityError, MAX_BYTES), where, IdentityError)


def is_answer(data: bytes) -> bool:
    """Whether `data` is meant as one."""
    try:
        return len(data) <= MAX_BYTES and "decision" in json.loads(data)
    except (ValueError, TypeError, RecursionError):
        return False


def decision_in(data: bytes) -> str:
    """The decision that `data` spells, UNREADABLE if it is no answer."""
    try:
        return read_answer(data, "answer").decision
    except IdentityError:
        return UNREADABLE


def create_officer(path: Path, passphrase: bytes = b"") -> str:
    """Make an officer's key in the new file `path`; the public key (base64). Raises ConfigError if it is there."""
    key = ed25519.Ed25519PrivateKey.generate()
    sealed = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    with create_private(path) as file:
        file.write(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, sealed))
    return to_base64(key.public_key().public_bytes_raw())


def is_sealed(path: Path) -> bool:
    """Whether the officer's key in `path` needs a passphrase. Raises IdentityError where this user cannot read it."""
    return _SEALED in read_private(path)


def load_officer(path: Path, passphrase: Callable[[], bytes]) -> tuple[str, Callable[[bytes], bytes]]:
    """The public key (base64) in `path` and its signer; `passphrase` is asked for where it is sealed.

    Raises IdentityError.
    """
    data = read_private(path)
    try:
        key = serialization.load_pem_private_key(data, passphrase() if _SEALED in data else None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise IdentityError(f"{path}: no readable key, or another passphrase") from error
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise IdentityError(f"{path}: not an officer's key (Ed25519)")
    return to_base64(key.public_key().public_bytes_raw()), key.sign


def _public(key: str) -> ed25519.Ed25519PublicKey:
    try:
        return ed25519.Ed25519PublicKey.from_public_bytes(_bytes(key))
    except ValueError as error:
        raise ConfigError("officers: not an Ed25519 public key in base64") from error


def _bytes(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise IdentityError("answer: not base64") from error
