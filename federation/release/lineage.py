"""What the agency's log says of a run, with the proof that it is in the log, and who has cosigned that log."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from cryptography import x509

from sovfed.federation.decoded import certificate_of
from sovfed.federation.errors import EvidenceError, IdentityError
from sovfed.federation.evidence import merkle
from sovfed.federation.evidence.entries import BEFORE, canonical, read_entry
from sovfed.federation.evidence.keys import AGENCY, INSTITUTION, read_voucher
from sovfed.federation.evidence.notes import check_cosignature, check_note, read_checkpoint
from sovfed.federation.evidence.store import LogReader
from sovfed.federation.evidence.witness import holding_cosignatures
from sovfed.federation.identity import issuer_of, load_roots
from sovfed.federation.revocation import crl_of, parse_crls
from sovfed.federation.text import to_base64

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime
    from pathlib import Path

    from sovfed.federation.evidence.keys import Voucher

HEAD: Final = "log/checkpoint"
KEYS: Final = "log/keys.json"
ENTRIES: Final = "log/entries.json"
COSIGNED: Final = "log/cosigned.json"
LISTS: Final = "revocation list"


@dataclass(frozen=True)
class Lineage:
    """What the log of `origin` says of a run; `cosigned` is how many entries of it each institution has cosigned."""

    origin: str
    size: int
    entries: tuple[dict[str, Any], ...]
    cosigned: dict[str, int]
    seqs: tuple[int, ...] = ()  # of each entry its place in the log
    root: bytes = b""
    times: dict[str, int] = field(default_factory=dict)  # when each has cosigned it, by its own clock (Unix time)

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        """The entries of that kind, in the log's order."""
        return [values for values in self.entries if values["kind"] == kind]

    @property
    def whole(self) -> list[str]:
        """Those who have cosigned the log with all of these entries."""
        least = self.seqs[-1] + 1 if self.seqs else self.size
        return sorted(name for name, size in self.cosigned.items() if size >= least)

    @property
    def unbroken(self) -> bool:
        """Whether each entry names the one of the run before it; a log of an older version's does not.

        Raises EvidenceError where an entry is left out between two of them, or before the first.
        """
        for before, seq, values in zip((-1, *self.seqs), self.seqs, self.entries, strict=False):
            if values.get(BEFORE, before) != before:
                raise EvidenceError(f"the log has an entry of the run before entry {seq} that is not shown")
        return all(BEFORE in values for values in self.entries)


def gather(home: Path, run: str) -> dict[str, bytes]:
    """The files that show what the log of `home` says of `run`, under its newest head."""
    return show(home, lambda _, values: bool(values.get("name") == run))


def require_kept(home: Path, run: str) -> None:
    """Raise EvidenceError where the log of `home` has no longer all that it said of `run`."""
    shown, reader = set[int](), LogReader(home)
    for seq, values in ((seq, json.loads(data)) for seq, data in reader.entries()):
        if values.get("name") == run:
            if (before := values.get(BEFORE, -1)) not in {-1, *shown}:
                raise EvidenceError(
                    f"what entry {before} of the log said of run '{run}' is no longer kept (log_retention_days): a "
                    "release that was made before has it, and none can be made anew"
                )
            shown.add(seq)


def show(home: Path, chosen: Callable[[int, dict[str, Any]], bool], size: int | None = None) -> dict[str, bytes]:
    """The files that show those entries of the log of `home` that are `chosen` by number and fields.

    They are under the head of `size`, or the newest.
    """
    log, held = LogReader(home), holding_cosignatures(home, load_roots(home / "identity" / "root.pem"))
    note = log.head(size)  # no older than what was cosigned, unless one was asked for
    size = read_checkpoint(note).size
    named = [(seq, data) for seq, data in log.entries(0, size) if chosen(seq, json.loads(data))]
    entries = [{"seq": seq, "entry": data.decode(), "proof": _texts(log.inclusion(seq, size))} for seq, data in named]
    cosigned = []
    for voucher, other in held:
        if (theirs := read_checkpoint(other).size) <= size:
            proof = _texts(log.consistency(theirs, size))
            cosigned.append({"keys": voucher.to_bytes().decode(), "note": other.decode(), "proof": proof})
    return {
        HEAD: note, KEYS: log.voucher.to_bytes(), ENTRIES: canonical(entries), COSIGNED: canonical(cosigned),
    }  # fmt: skip


def check(
    files: Mapping[str, bytes], roots: Sequence[x509.Certificate], of: str = AGENCY, revoked: bytes = b""
) -> Lineage:
    """What the files of `show` say, once every proof and signature in them holds. Raises EvidenceError.

    `of` is whose log it must be: an origin, or what it begins with up to a slash. The cosignature of who is on the
    lists `revoked` (PEM), or of whose root none is there, counts for nothing, and is in nobody's way.
    """
    voucher = read_voucher(files[KEYS])
    origin = voucher.check(roots)
    if origin != of and not (of.endswith("/") and origin.startswith(of)):
        raise EvidenceError(f"the log is that of {origin}, expected {of}")
    by = INSTITUTION if origin.startswith(AGENCY) else AGENCY
    head = check_note(files[HEAD], voucher.log_key)
    entries, seqs, seq = [], list[int](), -1
    for proven in _list(files[ENTRIES]):
        data, proof = proven["entry"].encode(), _hashes(proven["proof"])
        before, seq = seq, int(proven["seq"])
        if seq <= before:
            raise EvidenceError(f"entry {seq} comes twice, or after a later one")
        if not merkle.includes(merkle.leaf_hash(data), seq, head.size, proof, head.root):
            raise EvidenceError(f"entry {seq} is not in the log of {head.size} entries")
        entries.append(read_entry(data))
        seqs.append(seq)
    cosigned, times = dict[str, int](), dict[str, int]()
    for cosigning in _list(files[COSIGNED]):
        witness, note = read_voucher(cosigning["keys"].encode()), cosigning["note"].encode()
        name = witness.check(roots)
        other = check_note(note, voucher.log_key)
        at = check_cosignature(note, witness.witness_key)
        if other.size > head.size:
            raise EvidenceError(f"the log is behind what {name} has cosigned: {head.size} entries of {other.size}")
        if not name.startswith(by) or not merkle.consistent(
            other.size, other.root, head.size, head.root, _hashes(cosigning["proof"])
        ):
            raise EvidenceError(f"what {name} has cosigned is another log than this one")
        if not revoked or counts(witness, roots, revoked):
            cosigned[name.removeprefix(by)], times[name.removeprefix(by)] = other.size, at
    return Lineage(origin.removeprefix(AGENCY), head.size, tuple(entries), cosigned, tuple(seqs), head.root, times)


def counts(voucher: Voucher, roots: Sequence[x509.Certificate], pem: bytes) -> bool:
    """Whether the list in `pem` of the root that signed the voucher's certificate is there, and does not revoke it."""
    der = base64.b64decode(voucher.certificate, validate=True)
    return crl_of(issuer_of(der, roots), parse_crls(pem, LISTS)) is not None and revoked_at(der, roots, pem) is None


def revoked_at(der: bytes, roots: Sequence[x509.Certificate], pem: bytes) -> datetime | None:
    """When the list in `pem` of the root that signed the certificate `der` revoked that; None if it did not.

    Raises IdentityError without that list: one root's says nothing of whom the other certified.
    """
    crl = crl_of(issuer_of(der, roots), parse_crls(pem, LISTS))
    certificate = certificate_of(der)
    if crl is None:
        raise IdentityError(
            f"no revocation list of the authority that certified {certificate.subject.rfc4514_string()}: it is needed "
            "with whatever that one signed"
        )
    entry = crl.get_revoked_certificate_by_serial_number(certificate.serial_number)
    return None if entry is None else entry.revocation_date_utc


def ended_at(der: bytes, roots: Sequence[x509.Certificate], pem: bytes) -> datetime:
    """From when on the certificate `der` counts no more: `revoked_at`, or its end, after which no list names it."""
    end = certificate_of(der).not_valid_after_utc
    return min(revoked_at(der, roots, pem) or end, end)


def _list(data: bytes) -> list[dict[str, Any]]:
    values: Any = json.loads(data)
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise EvidenceError("the log's part of the release is not a list")
    if canonical(values) != data:
        raise EvidenceError("the log's part of the release is not spelled as it is written")
    return values


def _texts(hashes: Sequence[bytes]) -> list[str]:
    return [to_base64(value) for value in hashes]


def _hashes(texts: Sequence[str]) -> list[bytes]:
    return [base64.b64decode(text, validate=True) for text in texts]
