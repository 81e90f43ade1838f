"""A run's order: all that the run may ask of an institution, and why; what people read and sign.

Its digest binds everything that the trainer can check of a message. So an order over 10 rounds covers no eleventh, and
none with another task, optimizer, noise, cohort or ring.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Final

import rfc8785

from sovfed.federation.archive.signing import Signature
from sovfed.federation.errors import BoundError, ProtocolError
from sovfed.federation.orders.beginning import Beginning, begins_otherwise, parted
from sovfed.federation.orders.candidates import is_ordered
from sovfed.federation.schema import bind, bounded, choice, named
from sovfed.federation.secagg.keys import encode_fields
from sovfed.federation.sums import FORMS, form_of, sums_of
from sovfed.federation.text import LAST_MOMENT, json_object, to_base64

if TYPE_CHECKING:
    from sovfed.federation.messages import LastRequest, Request, RunRequest
    from sovfed.federation.privacy.events import Event
    from sovfed.federation.secagg.terms import Terms

DOMAIN: Final = b"sovfed run order 1\0"  # of the signatures of people; another than that of archives
MAX_BYTES: Final = 65_536
MAX_APPROVALS: Final = 16
MAX_COHORT: Final = 512
MOST_EPSILON: Final = 1e6  # where no bound can be told
TIMES: Final = 4  # as many messages as a run needs, and SPARE more, are answered: for rounds that are repeated
SPARE: Final = 200
VARIES: Final = ("run", "version", "round", "rate_start", "rate_end", "evaluate")  # from one round to the next
KINDS: Final = ("train", "private", "evaluate")
LATER: Final = ("keys", "start", "start_from", "start_round", "form", "start_file")  # spelled where they are set
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class RunOrder:
    """What a run may ask of each institution. `work` is JSON: the settings that are the same in all its requests.

    `epsilon` is what the run may tell of a person at `delta`, by the accountant; both 0 where it has no privacy.
    `keys` are those of the cohort's certificates, one each (SHA-256, hex), where a cohort is named. `start` and what
    follows are as in `Beginning`; `form` is that of what institutions add up (`federation/sums.py`).
    """

    run: str = named(high=128)
    purpose: str = bounded(low=1, high=500)
    proposer: str = bounded(low=1, high=128)
    recipients: str = bounded(low=1, high=200)
    population: str = bounded(low=0, high=200)
    permit: str = named(low=0, high=64)
    cohort: tuple[str, ...] = bounded(low=1, high=63)
    proposed: int = bounded(low=0, high=LAST_MOMENT)
    expires: int = bounded(low=0, high=LAST_MOMENT)
    version: str = bounded(low=1, high=64)
    strategy: str = named()
    task: str = named()
    task_digest: str = bounded(low=64, high=64)
    kind: str = choice(MISSING, KINDS)
    work: str = bounded(low=2, high=16_384)
    rounds: int = bounded(low=1, high=1_000_000)
    epsilon: float = bounded(low=0.0, high=1e9)
    delta: float = bounded(low=0.0, high=1.0)
    parameters: int = bounded(low=0, high=2**40)
    sums: int = bounded(low=0, high=10**9)
    evaluations: int = bounded(low=0, high=10**9)
    min_cohort: int = bounded(low=1, high=100_000)
    masked: bool = bounded()
    bits: int = bounded(low=1, high=64)
    clip: float = bounded(low=1e-9, high=1e9)
    max_weight: int = bounded(low=1, high=2**53)
    keys: tuple[str, ...] = bounded((), 64, 64)
    start: str = bounded("", 0, 64)
    start_from: str = bounded("", 0, 300)
    start_round: int = bounded(0, 0, 1_000_000)
    form: str = bounded("", 0, 200)
    start_file: str = bounded("", 0, 64)

    def __post_init__(self) -> None:
        if any(digest and not _SHA256.fullmatch(digest) for digest in (self.start, self.start_file)):
            raise ValueError("a SHA-256 is 64 digits of 0-9 and a-f")
        if len(self.start) not in (0, 64) or bool(self.start) != bool(self.start_from):
            raise ValueError("the model that it begins with has a SHA-256 and words, or neither")
        if len(self.start_file) not in (0, 64) or (self.start_file and not self.start):
            raise ValueError("the file of the model that it begins with has a SHA-256, and only where there is a model")
        if self.start_file and parted(self.start_from)[1] not in ("", self.start_file):
            raise ValueError("the words of the model that it begins with name another file than the order does")
        if self.start_round and (not self.start or self.start_round >= self.rounds):
            raise ValueError(f"it begins after round {self.start_round} of {self.rounds}, with no model or no round")
        if self.expires <= self.proposed:
            raise ValueError("it expires before it was proposed")
        if len(self.cohort) > MAX_COHORT or len(set(self.cohort)) != len(self.cohort):
            raise ValueError(f"a cohort of more than {MAX_COHORT}, or with a name twice")
        if self.keys and len(self.keys) != len(self.cohort):
            raise ValueError(f"{len(self.keys)} keys of a cohort of {len(self.cohort)}")

    @cached_property
    def text(self) -> bytes:
        """Its one spelling (RFC 8785): what is signed."""
        return rfc8785.dumps(self.spelled)

    @property
    def spelled(self) -> dict[str, Any]:
        """Its fields as JSON has them."""
        values = {**asdict(self), "cohort": list(self.cohort), "keys": list(self.keys)}
        return {name: value for name, value in values.items() if name not in LATER or value}

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of its spelling: what it is called."""
        return hashlib.sha256(DOMAIN + self.text).hexdigest()

    @property
    def begins(self) -> Beginning:
        """The model that the run begins with, as far as the order names one."""
        return Beginning(self.start, self.start_from, self.start_round, self.start_file)

    def form_by(self, forms: Mapping[str, int] = FORMS) -> str:
        """The form of the run's sums in a version of sovfed with these `forms`. Raises ProtocolError."""
        asked = sums_of(self.kind, statistics=bool(self.statistics), candidates=bool(self.candidates))
        return form_of(asked, forms)

    @property
    def statistics(self) -> str:
        """The question that it asks of everybody's records; "" if it trains a model. Raises ProtocolError."""
        return str(self.settings.get("statistics", ""))

    @property
    def candidates(self) -> tuple[str, ...]:
        """The digests of the models that it scores; () if it trains or counts. Raises ProtocolError."""
        return tuple(filter(None, str(self.settings.get("candidates", "")).split(",")))

    @property
    def most_answers(self) -> int:
        """How many messages that touch records are answered under it, over all restarts and repeats."""
        return TIMES * max(self.sums, self.rounds) + SPARE

    @property
    def proposal_message(self) -> bytes:
        """What the agency's server signs to propose it."""
        return encode_fields("run order", bytes.fromhex(self.digest))

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        """What `work` spells. Raises ProtocolError."""
        return json_object(self.work, "order: its work", ProtocolError, MAX_BYTES)

    def lacks(self, request: RunRequest) -> str:
        """What of the whole run `request` is otherwise than ordered; "" if nothing. Raises ProtocolError."""
        from sovfed.federation.algorithms import FEDAVG

        asked = terms_of(request)
        if (self.kind == "evaluate" or self.candidates) and len(self.candidates) != self.rounds:
            return "candidates"  # or it would be for any model
        if self.kind == "evaluate" and self.settings.get("algorithm") != FEDAVG.local:
            return "algorithm"  # or institutions' own models would be scored in the place of those that are named
        return ", ".join(name for name, value in asked.items() if not _same(name, getattr(self, name), value))

    def forbids(self, request: Request) -> str:
        """What of one message of the run is otherwise than ordered; "" if nothing."""
        from sovfed.federation.messages import (  # not above: whoever reads an order of a release has no NumPy
            EvaluateRequest,
            PrivateRequest,
            ProfileRequest,
            ReleaseRequest,
            TrainRequest,
        )

        if isinstance(request, ReleaseRequest):
            return _differing(self.settings, request, ("task", "digest", "normalisation", "statistics"))
        if not isinstance(request, ProfileRequest | TrainRequest | EvaluateRequest | PrivateRequest):
            return ""
        under: dict[str, tuple[type, ...]] = {"private": (PrivateRequest,), "evaluate": (EvaluateRequest,)}
        if not isinstance(request, under.get(self.kind, (ProfileRequest, TrainRequest, EvaluateRequest))):
            return "a kind of message"
        if (request.begin.size > 0) != self.masked:
            return "masked"
        if not isinstance(request, ProfileRequest) and request.round > self.rounds:
            return f"round {request.round}"
        if isinstance(request, EvaluateRequest | PrivateRequest):
            if request.candidates != self.settings.get("candidates", ""):
                return "candidates"
            if not is_ordered(request):
                return "model"
        if isinstance(request, TrainRequest | PrivateRequest) and (other := begins_otherwise(self.begins, request)):
            return other
        return _differing(self.settings, request)

    def narrowed(self, terms: Terms) -> Terms:
        """`terms` of secure aggregation, as far as the order uses them: no offer of its run may differ from it.

        Raises PolicyError where the order is not within `terms`, which may be narrower than when it was signed.
        """
        if not self.masked:
            return terms
        least = max(self.min_cohort, terms.min_cohort)
        terms.check_parameters(bits=self.bits, clip=self.clip, max_weight=self.max_weight, min_cohort=least, size=0)
        allowed = set(self.cohort) & set(terms.members) if self.cohort and terms.members else set(self.cohort)
        if self.cohort and not allowed:
            raise BoundError("none of the order's cohort is among the members", "secure_aggregation.members")
        return replace(
            terms, bits=(self.bits,), min_clip=self.clip, max_clip=self.clip, max_weight=self.max_weight,
            least_max_weight=self.max_weight, min_cohort=least, members=tuple(sorted(allowed)) or terms.members,
            member_keys=(*map("=".join, zip(self.cohort, self.keys, strict=False)), *terms.member_keys),
        )  # fmt: skip


@dataclass(frozen=True)
class Proposal:
    """An order, who of the agency's people approved it, and the agency's server (certificate in DER) that proposes it.

    Bytes are in base64; those of the server are empty until it sends the order.
    """

    order: RunOrder
    approvals: tuple[Signature, ...] = ()
    certificate: str = bounded("", 0, 8192)
    signature: str = bounded("", 0, 128)

    def to_bytes(self) -> bytes:
        """Its one spelling."""
        approvals = [asdict(entry) for entry in self.approvals]
        return rfc8785.dumps({**asdict(self), "order": self.order.spelled, "approvals": approvals})

    def signed(self, certificate: bytes, signature: bytes) -> Proposal:
        """The proposal as the agency's server sends it."""
        return replace(self, certificate=to_base64(certificate), signature=to_base64(signature))

    @property
    def server(self) -> tuple[bytes, bytes]:
        """Certificate and signature of the agency's server. Raises ProtocolError."""
        try:
            return base64.b64decode(self.certificate, validate=True), base64.b64decode(self.signature, validate=True)
        except ValueError as error:
            raise ProtocolError("order: its server's signature is not base64") from error


def read_proposal(data: bytes, where: str = "order") -> Proposal:
    """The proposal that `data` spells. Raises ProtocolError if it is `to_bytes` of none."""
    proposal = bind(Proposal, json_object(data, where, ProtocolError, MAX_BYTES), where, ProtocolError)
    if len(proposal.approvals) > MAX_APPROVALS:
        raise ProtocolError(f"{where}: {len(proposal.approvals)} approvals, at most {MAX_APPROVALS} are read")
    if proposal.to_bytes() != data:
        raise ProtocolError(f"{where}: not in the spelling that is written")
    return proposal


def terms_of(request: RunRequest) -> dict[str, Any]:
    """The fields of an order that the whole run `request` decides. Raises ProtocolError."""
    from sovfed.federation.codec import encode, last_of
    from sovfed.federation.messages import PrivateRequest

    last = last_of(request)
    kind, scalars, _ = encode(last)
    asked = sums_of(
        kind, statistics=bool(scalars.get("statistics", "")), candidates=bool(scalars.get("candidates", ""))
    )
    fixed = {name: value for name, value in scalars.items() if name not in VARIES}
    return {
        "run": last.grant if isinstance(last, PrivateRequest) else last.keep,  # by which personal models and charges go
        "task": last.task, "task_digest": last.digest, "kind": kind, "work": json.dumps(fixed, sort_keys=True),
        "rounds": last.round, "parameters": request.parameters, "sums": request.sums,
        "evaluations": request.evaluations, "min_cohort": request.min_cohort, "masked": request.masked,
        "bits": request.bits, "clip": request.clip, "max_weight": request.max_weight, "form": form_of(asked),
        **_cost(last),
    }  # fmt: skip


def _cost(last: LastRequest) -> dict[str, float]:
    """ε and δ of all that a private run may release to one person's cost, by the accountant of the ledgers."""
    from sovfed.federation.messages import PrivateRequest
    from sovfed.federation.privacy.events import Event

    if not isinstance(last, PrivateRequest):
        return {"epsilon": 0.0, "delta": 0.0}
    whole = last.mechanism == "institution"
    noise = last.noise_multiplier / 2 if whole else last.noise_multiplier
    event = Event(noise, 1.0 if whole else last.sampling_rate, last.rounds * last.steps + last.spare)
    return {"epsilon": _epsilon(event, last.delta), "delta": last.delta}


@lru_cache(maxsize=64)
def _epsilon(event: Event, delta: float) -> float:
    """ε of `event`, a bound that stays finite, rounded to what a person reads."""
    from sovfed.federation.privacy.accounting import epsilon

    return round(min(epsilon([event], delta), MOST_EPSILON), 4)


def _same(name: str, value: Any, asked: Any) -> bool:
    """Whether a field is as ordered; ε as far as two machines that compute it agree."""
    if name == "epsilon":
        return math.isclose(value, asked, rel_tol=1e-3, abs_tol=1e-3)
    return bool(value == asked)


def _differing(settings: Mapping[str, Any], request: Request, names: tuple[str, ...] = ()) -> str:
    """The settings that `request` has otherwise than ordered."""
    from sovfed.federation.codec import unsaid

    values, ordered = vars(request), {**unsaid(request), **settings}
    asked = names or [name for name in ordered if name in values]
    return ", ".join(name for name in asked if values[name] != ordered.get(name, ""))
