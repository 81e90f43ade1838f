"""The order that a released model was made under, who approved it, and what each institution said to it.

All of it is signed by those whose word it is, so the agency can leave an answer out and can invent none; what is left
out is told as missing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from sovfed.federation.archive.signing import REVIEWER, certified, check_key
from sovfed.federation.certificates import ServerNames
from sovfed.federation.decoded import certificate_of
from sovfed.federation.errors import ConfigError, EvidenceError, SovfedError
from sovfed.federation.evidence.entries import canonical, listed
from sovfed.federation.identity import issuer_of, verify_lapsed, verify_signer
from sovfed.federation.orders.answers import CONSENTED, SIGNED, WITHDRAWN, read_answer
from sovfed.federation.orders.order import DOMAIN, read_proposal
from sovfed.federation.orders.shown import word
from sovfed.federation.release.lineage import ended_at
from sovfed.federation.secagg.keys import check_signature, public_key
from sovfed.federation.text import from_base64

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from sovfed.federation.archive.signing import Signature
    from sovfed.federation.orders.answers import Answer
    from sovfed.federation.orders.order import Proposal, RunOrder
    from sovfed.federation.release.lineage import Lineage

ORDER: Final = "orders/order.json"
ANSWERS: Final = "orders/answers.json"
LATE_S: Final = 86_400  # a round that was begun in time has ended by then
LOOSE: Final = 1e-3  # ε of the ledgers and of the order are rounded apart


@dataclass(frozen=True)
class Ordered:
    """An order that holds: who approved it, and the word of each institution; `missing` is told to whoever verifies."""

    order: RunOrder
    approvers: tuple[str, ...] = ()
    answers: dict[str, Answer] = field(default_factory=dict)
    missing: tuple[str, ...] = ()

    @property
    def holds(self) -> tuple[str, ...]:
        """What holds, in plain words."""
        order = self.order
        yes = sorted(name for name, answer in self.answers.items() if answer.decision in (SIGNED, CONSENTED))
        gone = [f"{name} has {word(self.answers[name])}" for name in self._said(WITHDRAWN)]
        approved = f", approved by {', '.join(self.approvers)}" if self.approvers else ""
        lines = [f"made under order {order.digest[:12]} of {order.proposer} for: {order.purpose}{approved}"]
        if order.start:
            lines.append(f"by the order the run begins with {order.begins.words}")
        if order.masked:
            lines.append(f"the order is for sums over at least {order.min_cohort} institutions, and for no others")
        officers = sorted(name for name in self._said(SIGNED))
        if officers:
            lines.append(f"the order is signed by an officer of {', '.join(officers)}")
        if standing := sorted(set(yes) - set(officers)):
            lines.append(
                f"the order is within the standing consent of {', '.join(standing)}: no person signed it there"
            )
        return (*lines, *gone)

    def _said(self, decision: str) -> list[str]:
        return sorted(name for name, answer in self.answers.items() if answer.decision == decision)


def files_of(
    proposal: Proposal, answers: Mapping[str, Any], institutions: Sequence[str], roots: Sequence[x509.Certificate]
) -> dict[str, bytes]:
    """The files of a release that show the order, and what those who took part said to it.

    Words of others, with their reasons, are nobody's business: the log has who they are. One that does not hold, as
    an institution may send, is left out, and so told as missing: it would keep the model from being released.
    """
    said = {name: answers[name] for name in sorted(holding(answers, roots).keys() & set(institutions))}
    return {ORDER: proposal.to_bytes(), ANSWERS: canonical(said)}


def summary_of(order: RunOrder) -> dict[str, Any]:
    """What the release states of the order."""
    return {
        "sha256": order.digest, "purpose": order.purpose, "proposer": order.proposer, "permit": order.permit,
        "recipients": order.recipients, "population": order.population, "expires": order.expires,
    }  # fmt: skip


def check_orders(
    files: Mapping[str, bytes],
    predicate: Mapping[str, Any],
    log: Lineage,
    roots: Sequence[x509.Certificate],
    revoked: bytes,
) -> Ordered | None:
    """The order in the release's `files`, once all signatures on it hold and it allows what the release says.

    None if the release has none. Raises EvidenceError.
    """
    stated = predicate["orders"]
    if ORDER not in files or ANSWERS not in files:
        if stated or ORDER in files or ANSWERS in files:
            raise EvidenceError("the release states an order and does not hold it, or holds one and does not state it")
        return None
    proposal = read_proposal(files[ORDER], ORDER)
    order = proposal.order
    if stated != [summary_of(order)]:
        raise EvidenceError(f"{ORDER}: another order than the statement has")
    _require_proposed(proposal, roots)
    _require_allows(order, predicate)
    _require_logged(order, log)
    _require_in_time(order, log)
    approvers, unproven = _approvers(proposal, log, roots, revoked)
    answers = _answers(files[ANSWERS], order, roots)
    unlogged = _require_answers_logged(files[ANSWERS], order, log)
    for name, answer in answers.items():
        _require_not_ended(name, answer, log, ended_at(answer.certificate, roots, revoked))
    missing = (*_missing(answers, predicate, order), *unproven, *unlogged, *_earlier(order, log))
    return Ordered(order, approvers, answers, missing)


def _require_proposed(proposal: Proposal, roots: Sequence[x509.Certificate]) -> None:
    certificate, signature = proposal.server
    if not isinstance(verify_lapsed(certificate, roots), ServerNames):
        raise EvidenceError(f"{ORDER}: not proposed by an agency")
    check_signature(public_key(certificate), proposal.order.proposal_message, signature, "the agency's proposal")


def _require_allows(order: RunOrder, predicate: Mapping[str, Any]) -> None:
    """Raise EvidenceError where the run that the statement tells of is beyond the order."""
    run, privacy, named = predicate["run"], predicate["privacy"], predicate["institutions"]
    limits = (
        (order.run == run["name"], "run"),
        ((order.task, order.task_digest) == (run["task"]["name"], run["task"]["digest"]), "task"),
        (order.strategy == run["strategy"], "strategy"),
        (run["rounds"] <= order.rounds, "rounds"),
        (order.masked == bool(predicate["secure_aggregation"]), "secure aggregation"),
        (_within(order, predicate["secure_aggregation_terms"]), "terms of secure aggregation"),
        ((order.kind == "private") == (privacy is not None), "privacy"),
        (privacy is None or privacy["epsilon"] <= order.epsilon * (1 + LOOSE) + LOOSE, "ε"),
        (order.begins.file == predicate.get("started_from", ""), "the model that it began with"),
        (not order.cohort or not isinstance(named, list) or set(named) <= set(order.cohort), "cohort"),
    )
    if beyond := [what for holds, what in limits if not holds]:
        raise EvidenceError(f"the run was otherwise than its order in: {', '.join(beyond)}")


def _within(order: RunOrder, terms: Mapping[str, Any]) -> bool:
    """Whether the stated `terms` of the sums, {} if there are none, are the order's."""
    same = all(terms[name] == getattr(order, name) for name in ("bits", "clip", "max_weight") if terms)
    return same and (not terms or terms["cohort"] >= order.min_cohort)


def _require_logged(order: RunOrder, log: Lineage) -> None:
    proposed = [values["order"] for values in log.of_kind("order") if values["event"] == "proposed"]
    if not proposed or proposed[-1] != order.digest:
        raise EvidenceError("the log names another order of the run than the release, or none")


def _require_in_time(order: RunOrder, log: Lineage) -> None:
    """Raise EvidenceError if a round was over long after the order."""
    if any(values["at"] > order.expires + LATE_S for values in log.of_kind("round")):
        raise EvidenceError("the log has rounds that were made after the order had ended")


def _earlier(order: RunOrder, log: Lineage) -> tuple[str, ...]:
    """What is missing where rounds were made before the order was proposed, under another or none."""
    proposed = ("order", "proposed", order.digest)
    begun = [(values["kind"], values.get("event"), values.get("order")) for values in log.entries].index(proposed)
    count = sum(values["kind"] == "round" for values in log.entries[:begun])
    return (f"the order of {count} rounds that were made before this one was proposed",) if count else ()


def _approvers(
    proposal: Proposal, log: Lineage, roots: Sequence[x509.Certificate], revoked: bytes
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Who approved the order; and what is missing, where the log has an approval only after its certificate ended.

    It may be by a key that was stolen since. One that the log has not, as it was given elsewhere, is of the release's
    day.
    """
    noted, gone = dict[str, int](), list[str]()
    for entry in log.of_kind("order"):
        if entry["event"] == "approved" and entry["order"] == proposal.order.digest:
            noted.setdefault(entry["by"], entry["at"])
    names = dict[str, None]()
    for approval in proposal.approvals:
        name = _approver(approval, proposal.order.text, roots)
        ended = ended_at(from_base64(approval.certificate, "approval of the order", ConfigError), roots, revoked)
        by = hashlib.sha256(approval.certificate.encode()).hexdigest()
        if ended.timestamp() < noted.get(by, log.of_kind("release")[-1]["at"]):
            gone.append(f"approval of the order by {name} from before their certificate was revoked or had ended")
        else:
            names[name] = None
    return tuple(names), tuple(gone)


def _approver(approval: Signature, text: bytes, roots: Sequence[x509.Certificate]) -> str:
    """The person whose approval it is, whether the certificate holds today or not. Raises SovfedError."""
    person, organisation = certified(approval, "approval of the order")
    check_key(approval, text, "approval of the order", domain=DOMAIN)
    der = from_base64(approval.certificate, "approval of the order", ConfigError)
    end = certificate_of(der).not_valid_after_utc
    verify_signer(der, issuer_of(der, roots), end - timedelta(seconds=1))
    if approval.role != REVIEWER:
        raise EvidenceError("approval of the order: a signature of another kind")
    return f"{person} of {organisation}"


def _answers(data: bytes, order: RunOrder, roots: Sequence[x509.Certificate]) -> dict[str, Answer]:
    """The institutions' words on this very order. Raises SovfedError if one of them is not by its institution."""
    values: Any = json.loads(data)
    if not isinstance(values, dict) or canonical(values) != data:
        raise EvidenceError(f"{ANSWERS}: not spelled as it is written")
    answers = {name: _answer_of(name, value, roots) for name, value in values.items()}
    return {name: answer for name, answer in answers.items() if answer.order == order.digest}


def _answer_of(name: str, value: Any, roots: Sequence[x509.Certificate]) -> Answer:
    """The word of institution `name` that `value` is. Raises SovfedError if it is not by it."""
    answer = read_answer(canonical(value), f"answer of {name}")
    if answer.institution != name:
        raise EvidenceError(f"{ANSWERS}: the answer of {answer.institution} as that of {name}")
    answer.check_origin(roots)
    return answer


def holding(answers: Mapping[str, Any], roots: Sequence[x509.Certificate]) -> dict[str, Answer]:
    """Those of the institutions' words, by name, that are by them."""
    held = {}
    for name, value in answers.items():
        with contextlib.suppress(SovfedError, ValueError, TypeError, UnsupportedAlgorithm):
            held[name] = _answer_of(name, value, roots)
    return held


def _require_answers_logged(data: bytes, order: RunOrder, log: Lineage) -> tuple[str, ...]:
    """Raise EvidenceError unless the log has these answers; what it cannot say of them."""
    noted = [entry for entry in log.of_kind("order") if entry["event"] == "answered" and entry["order"] == order.digest]
    logged = noted[-1]["answers"] if noted else {}
    if "bytes" in logged and "sha256" in logged:
        return ("the log's own word on each institution's answer: they were too many for an entry",)
    for name, value in json.loads(data).items():
        if logged.get(name) != hashlib.sha256(canonical(value)).hexdigest():
            raise EvidenceError(f"{ANSWERS}: the log has another answer of {name}, or none")
    return ()


def _require_not_ended(name: str, answer: Answer, log: Lineage, ended: datetime) -> None:
    """Raise EvidenceError if the log has the answer only after its institution's certificate had `ended`."""
    noted = [
        entry["at"] for entry in log.of_kind("order")
        if entry["event"] == "answered" and entry["order"] == answer.order
        and entry["answers"].get(name, "") in ("", hashlib.sha256(answer.to_bytes()).hexdigest())
    ]  # fmt: skip
    if not noted or ended.timestamp() < noted[0]:
        raise EvidenceError(
            f"{ANSWERS}: {name} was revoked, or its certificate had ended, before the log had its answer"
        )


def _missing(answers: Mapping[str, Answer], predicate: Mapping[str, Any], order: RunOrder) -> tuple[str, ...]:
    named = predicate["institutions"]
    agreed = {name for name, answer in answers.items() if answer.decision in (SIGNED, CONSENTED)}
    if not isinstance(named, list):
        return () if listed(agreed) == named else ("consent of some of the institutions that took part",)
    gone = {name for name, answer in answers.items() if answer.decision == WITHDRAWN}
    silent = sorted(set(named) - agreed - gone)
    return (f"consent to order {order.digest[:12]} of {', '.join(silent)}, which took part",) if silent else ()
