"""A table that the agency has signed: a DSSE envelope over an in-toto statement that has the whole table in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sovfed.federation.errors import EvidenceError
from sovfed.federation.release import sealed
from sovfed.federation.release.checking import read_statement, signers
from sovfed.federation.release.holding import holding
from sovfed.federation.statistics.shown import lines_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from cryptography import x509

KIND: Final = "urn:sovfed:table:v1"
MAX_BYTES: Final = 64 << 20


@dataclass(frozen=True)
class Sheet:
    """A table that holds: what is stated with it, and which agency signed."""

    predicate: dict[str, Any]
    agency: str

    def lines(self) -> Iterator[str]:
        """What holds, and the table, for people."""
        run, privacy = self.predicate["run"], self.predicate["privacy"]
        yield f"✓ signed by the agency {self.agency}"
        yield (
            f"✓ of run {run['name']}, task {run['task']['name']} {run['task']['digest'][:12]}…, order "
            f"{self.predicate['order'][:12]}…, {len(self.predicate['institutions'])} institutions"
        )
        if privacy is None:
            yield "✓ no differential privacy: exact sums over all of these institutions' held-out records"
        else:
            yield f"✓ the agency states ε = {privacy['epsilon']:.3f} at δ = {privacy['delta']:g} for each person"
        yield from lines_of(self.predicate["table"])


def make_sheet(predicate: Mapping[str, Any], digests: Mapping[str, str], home: Path) -> bytes:
    """The table in `predicate`, signed by the certificate of `home`; `digests` are of the files that it came from."""
    payload = sealed.statement(digests, predicate, KIND)
    return sealed.Envelope(payload, (sealed.sign(payload, home),)).to_bytes()


def is_sheet(data: bytes) -> bool:
    """Whether `data` is meant as one: a release is an archive."""
    return data.startswith(b"{")


def check_sheet(data: bytes, roots: Sequence[x509.Certificate]) -> Sheet:
    """What the table `data` says, once all of it holds. Raises EvidenceError, and nothing else, if any does not."""
    if len(data) > MAX_BYTES:
        raise EvidenceError(f"a table of {len(data)} bytes, at most {MAX_BYTES}")
    with holding("the table"):
        return _checked(data, roots)


def _checked(data: bytes, roots: Sequence[x509.Certificate]) -> Sheet:
    envelope = sealed.read_envelope(data)
    predicate = read_statement(envelope.payload, KIND, "a table")["predicate"]
    hosts, others = signers(envelope, roots, predicate["revoked"].encode())
    if others:
        raise EvidenceError("a table is signed by the agency alone")
    sheet = Sheet(predicate, hosts[0])
    tuple(sheet.lines())  # or it cannot be shown
    return sheet
