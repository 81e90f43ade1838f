"""Whether a release holds: every byte of it, by the authority's root alone, and what is missing."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from cryptography import x509

from sovfed.federation.archive import zipped
from sovfed.federation.certificates import InstitutionNames, ServerNames
from sovfed.federation.decoded import certificate_of
from sovfed.federation.errors import ConfigError, EvidenceError, IdentityError
from sovfed.federation.evidence.entries import canonical, listed
from sovfed.federation.identity import verify_lapsed
from sovfed.federation.release import lineage, sealed
from sovfed.federation.release.agreement import (
    BILL,
    FACTS,
    MODEL,
    PROMISE,
    require_agreement,
    require_audits_logged,
)
from sovfed.federation.release.content import CONTENT, check_content
from sovfed.federation.release.holding import holding
from sovfed.federation.release.ordered import ANSWERS, ORDER, check_orders
from sovfed.federation.revocation import parse_crls
from sovfed.federation.text import visible

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sovfed.federation.release.lineage import Lineage

ENVELOPE: Final = "release.dsse.json"
SIGNATURE: Final = "model.sig"
PUBLIC_KEY: Final = "agency.pub"
REVOKED: Final = "crl.pem"
NEEDED: Final = (
    MODEL, FACTS, SIGNATURE, PUBLIC_KEY, REVOKED, BILL, lineage.HEAD, lineage.KEYS, lineage.ENTRIES, lineage.COSIGNED,
)  # fmt: skip
OTHERS: Final = (ENVELOPE, "model/model.html", PROMISE, "privacy.html", ORDER, ANSWERS, CONTENT)
MAX_BYTES: Final = 2 << 30
MAX_TEXT_BYTES: Final = 128 << 20  # 100,000 rounds' entries with their proofs
LARGEST: Final = MAX_BYTES + (4 << 20)  # with the names of its files
SKEW: Final = timedelta(minutes=10)  # by which clocks of authority and agency may differ
LATER: Final = {  # by the statement's field
    "orders": "orders: no institution's consent to the run is in it",
    "training_content": "a summary of the training content",
    "audits": "audits of memorisation",
}


@dataclass(frozen=True)
class Verdict:
    """A release that holds: what it says, who signed it, and what is missing, in plain words."""

    predicate: dict[str, Any]
    agency: str
    institutions: tuple[str, ...]
    log: Lineage
    holds: tuple[str, ...] = ()
    missing: tuple[str, ...] = field(default=())

    @property
    def signed_by_all(self) -> bool:
        """Whether all who took part have signed it."""
        took_part: bool = listed(self.institutions) == self.predicate["institutions"]
        return took_part


def read_release(data: bytes) -> tuple[dict[str, bytes], sealed.Envelope, dict[str, Any]]:
    """Files, signatures and statement of a release, whose spelling holds, and each digest. Raises EvidenceError."""
    try:
        files = zipped.read(data, most=MAX_BYTES, what="archive of a release")
    except ConfigError as error:
        raise EvidenceError(str(error)) from error
    if missing := [name for name in (*NEEDED, ENVELOPE) if name not in files]:
        raise EvidenceError(f"the release lacks {', '.join(missing)}")
    if strange := sorted(files.keys() - {*NEEDED, *OTHERS}):
        raise EvidenceError(f"the release holds {strange[0]}, and no release has such a file")
    require_short(files)
    envelope = sealed.read_envelope(files[ENVELOPE])
    statement = read_statement(envelope.payload, sealed.PREDICATE, "a release")
    digests = {entry["name"]: entry["digest"]["sha256"] for entry in statement["subject"]}
    if digests.keys() != files.keys() - {ENVELOPE}:
        raise EvidenceError("the release holds other files than those that were signed")
    for name, digest in digests.items():
        if hashlib.sha256(files[name]).hexdigest() != digest:
            raise EvidenceError(f"{name}: not the file that was signed")
    return files, envelope, statement


def require_short(files: Mapping[str, bytes]) -> None:
    """Raise EvidenceError for a file, but for the model, that would take many times its length as it is read."""
    for name, content in files.items():
        if name != MODEL and len(content) > MAX_TEXT_BYTES:
            raise EvidenceError(f"{name}: {len(content)} bytes, at most {MAX_TEXT_BYTES} are read")


def check_release(data: bytes, roots: Sequence[x509.Certificate]) -> Verdict:
    """What the release `data` says, once all of it holds. Raises EvidenceError, and nothing else, if any does not."""
    with holding("the release"):
        return _checked(data, roots)


def _checked(data: bytes, roots: Sequence[x509.Certificate]) -> Verdict:
    files, envelope, statement = read_release(data)
    hosts, institutions = signers(envelope, roots, files[REVOKED])
    if files[PUBLIC_KEY] != sealed.public_pem(envelope.signatures[0].certificate):
        raise EvidenceError(f"{PUBLIC_KEY}: not the key that signed the release")
    log, predicate = lineage.check(files, roots, revoked=files[REVOKED]), statement["predicate"]
    agency = log.origin  # which its first certificate named first; a later one may name another of its hosts first
    if agency not in hosts:
        raise EvidenceError(f"signed by {hosts[0]}, and the log is that of {agency}")
    require_agreement(files, predicate, log, hashlib.sha256(files[MODEL]).hexdigest())
    _require_took_part(predicate, institutions)
    require_of_its_day(envelope, files[REVOKED], log)
    ordered = check_orders(files, predicate, log, roots, files[REVOKED])
    declared, undeclared = check_content(files, predicate, roots, files[REVOKED])
    audited = require_audits_logged(predicate, log)
    folder = f"{MODEL.partition('/')[0]}/"
    models = {name.removeprefix(folder): content for name, content in files.items() if name.startswith(folder)}
    sealed.check_model_signature(files[SIGNATURE], models, envelope.signatures[0].certificate)
    holds = [
        *_holding(predicate, agency, institutions, log, len(files)),
        *(ordered.holds if ordered else ()),
        *audited,
        *declared,
    ]
    missing = [*_missing(predicate, institutions, log), *(ordered.missing if ordered else ()), *undeclared]
    return Verdict(predicate, agency, institutions, log, tuple(map(visible, holds)), tuple(map(visible, missing)))


def with_signature(data: bytes, signed: sealed.Signed) -> bytes:
    """The release `data` with one more signature of its statement. Raises EvidenceError if it is there already."""
    files, envelope, _ = read_release(data)
    if any(
        sealed.public_pem(other.certificate) == sealed.public_pem(signed.certificate) for other in envelope.signatures
    ):
        raise EvidenceError("this key has signed the release already")
    more = sealed.Envelope(envelope.payload, (*envelope.signatures, signed))
    return zipped.write({**files, ENVELOPE: more.to_bytes()}, most=MAX_BYTES)


def read_statement(payload: bytes, kind: str, what: str) -> dict[str, Any]:
    """The statement that `payload` spells. Raises EvidenceError unless it is one of this `kind`, which is `what`."""
    statement: Any = json.loads(payload)
    if not isinstance(statement, dict) or canonical(statement) != payload:
        raise EvidenceError("the statement is not spelled as it is written")
    if (statement["_type"], statement["predicateType"]) != (sealed.STATEMENT, kind):
        raise EvidenceError(f"the statement is not that of {what}")
    return statement


def signers(
    envelope: sealed.Envelope, roots: Sequence[x509.Certificate], revoked: bytes
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Who signed: the agency, first, by its hosts, and the institutions. Raises EvidenceError."""
    names = []
    for signed in envelope.signatures:
        holder = verify_lapsed(signed.certificate, roots)
        name = holder.hosts[0] if isinstance(holder, ServerNames) else getattr(holder, "institution", "")
        sealed.check(envelope.payload, signed, name)
        _require_not_revoked(signed.certificate, roots, revoked, name)
        names.append(holder)
    if not names or not isinstance(names[0], ServerNames):
        raise EvidenceError("the release is not signed by an agency")
    institutions = tuple(name.institution for name in names[1:] if isinstance(name, InstitutionNames))
    if len(institutions) != len(names) - 1 or len(set(institutions)) != len(institutions):
        raise EvidenceError("the release is signed by two agencies, or by an institution twice")
    return names[0].hosts, institutions


def _require_not_revoked(der: bytes, roots: Sequence[x509.Certificate], pem: bytes, name: str) -> None:
    """Raise EvidenceError if the list that came with the release, which is as old as it, revokes the certificate."""
    if lineage.revoked_at(der, roots, pem) is not None:
        raise IdentityError(f"the certificate of {name} was revoked when the release was made")


def require_of_its_day(envelope: sealed.Envelope, revoked: bytes, log: Lineage) -> None:
    """Raise EvidenceError unless list and certificates held on the day of the release, which cosigners have seen."""
    day = released_on(log)
    for crl in parse_crls(revoked, REVOKED):
        if day < crl.last_update_utc - SKEW or (crl.next_update_utc is not None and day > crl.next_update_utc + SKEW):
            raise EvidenceError(f"{REVOKED}: not the list that was in force when the log says that it was released")
    for signed in envelope.signatures:
        end = certificate_of(signed.certificate).not_valid_after_utc
        if end < day - SKEW:
            raise EvidenceError(f"a certificate that signed the release had ended before, on {end:%F}")


def released_on(log: Lineage) -> datetime:
    """When the agency's log says that the model was released."""
    return datetime.fromtimestamp(log.of_kind("release")[-1]["at"], UTC)


def _require_took_part(predicate: Mapping[str, Any], institutions: Sequence[str]) -> None:
    """Raise EvidenceError if somebody has signed whom the statement does not name; of too many, it names none."""
    named = predicate["institutions"]
    if isinstance(named, list) and (others := sorted(set(institutions) - set(named))):
        raise EvidenceError(f"signed by {', '.join(others)}, which did not take part")


def _holding(
    predicate: Mapping[str, Any], agency: str, institutions: Sequence[str], log: Lineage, count: int
) -> tuple[str, ...]:
    run, privacy = predicate["run"], predicate["privacy"]
    rounds = {values["round"] for values in log.of_kind("round")}
    promise = (
        f"the agency states differential privacy for each {privacy['unit']}: ε = {privacy['epsilon']:.3f}, "
        f"δ = {privacy['delta']:g}, {privacy['mechanism']}; assumed: {privacy['assumed']}"
        if privacy
        else "no differential privacy: the model may tell whether a person's records were used"
    )
    sums = predicate["secure_aggregation"]
    lines = [
        f"signed by the agency {agency}" + (f" and by {', '.join(institutions)}" if institutions else ""),
        f"each of its {count} files is the one that was signed",
        f"the model is that of round {predicate['model']['round']} of run {run['name']}, task {run['task']['name']} "
        f"{run['task']['digest'][:12]}…, as the agency's log says",
        f"the log has its {len(rounds)} rounds among {log.size} entries"
        + (", and no other entry of it up to its release" if log.unbroken else ""),
        f"released on {released_on(log):%F}, by the log",
        *([f"the log with all of it is cosigned by {', '.join(log.whole)}"] if log.whole else []),
        f"the agency states secure aggregation: {sums}"
        if sums
        else "no secure aggregation: the agency saw each institution's update",
        promise,
        *_further(predicate.get("started_from")),
        *_unlearnt(predicate.get("unlearning")),
    ]
    return tuple(lines)


def _further(started_from: object) -> tuple[str, ...]:
    """What a run that trained a model further says nothing of."""
    if not started_from:
        return ()
    return (
        f"trained further from the model with SHA-256 {str(started_from)[:64]}: whoever is in that model is in this "
        "one, and neither ε nor rounds told here are of it",
    )


def _unlearnt(made: Mapping[str, Any] | None) -> tuple[str, ...]:
    """What a run that was made anew without somebody is, and what that does not undo."""
    if not made:
        return ()
    gone, begins = made["withdrawn"], made["from_round"]
    names = ", ".join(gone) if isinstance(gone, list) else f"{gone['count']} institutions"
    start = f"from the model after round {begins}, before their first" if begins else "from the beginning"
    return (
        f"made anew without {names}, which withdrew from run {made['of']}: {start}; nothing of theirs is in its rounds",
        "not undone by that: models given away before, sums opened before, ε charged before, and settings that were "
        "chosen after seeing the earlier run",
    )


def _missing(predicate: Mapping[str, Any], institutions: Sequence[str], log: Lineage) -> tuple[str, ...]:
    named, lines = predicate["institutions"], list[str]()
    if not isinstance(named, list):
        if listed(institutions) != named:
            lines.append(f"signatures of some of the {named['count']} institutions that took part")
    else:
        if unsigned := sorted(set(named) - set(institutions)):
            lines.append(f"signatures of {', '.join(unsigned)}, which took part")
        if unseen := sorted(set(named) - set(log.whole)):
            lines.append(f"cosignatures of the log by {', '.join(unseen)}")
    lines += [
        f"consent of {values['institution']}, which withdrew after the model was made with it"
        for values in log.of_kind("withdrawal") if values["rounds"]
    ]  # fmt: skip
    if not log.unbroken:
        lines.append("whether the log has more of the run than is shown: it is of a version that did not say")
    lines += [sentence for what, sentence in LATER.items() if not predicate.get(what)]
    return tuple(lines)
