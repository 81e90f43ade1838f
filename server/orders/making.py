"""A run's order at the agency: made of its configuration, kept in its folder, signed by the agency's server."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from sovfed import __version__
from sovfed.federation.certificates import to_der
from sovfed.federation.errors import ConfigError, EvidenceError
from sovfed.federation.evidence.entries import canonical
from sovfed.federation.files import read_object, write_private
from sovfed.federation.identity import parse_certificate
from sovfed.federation.orders.beginning import Beginning
from sovfed.federation.orders.events import OrderEvent, tell
from sovfed.federation.orders.order import Proposal, RunOrder, read_proposal, terms_of
from sovfed.federation.schema import bind
from sovfed.federation.secagg.keys import fingerprint, public_key
from sovfed.server.orders.approved import require_approved
from sovfed.server.orders.beginning import beginning
from sovfed.server.registry.enrolment import members

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from sovfed.federation.config import Config
    from sovfed.federation.messages import Bytes, RunRequest
    from sovfed.federation.secagg.keys import Identity

log = logging.getLogger(__name__)
FILE: Final = "order.json"  # in the run's folder
ANSWERS: Final = "answers.json"
DAY_S: Final = 86_400
NEW: Final = Beginning()  # with a model of the task's own


def make_order(
    config: Config, name: str, request: RunRequest, now: float, keys: tuple[str, ...] = (),
    begins: Beginning = NEW,
) -> RunOrder:  # fmt: skip
    """The order of run `name`, which asks for what `request` does, of a cohort with these `keys`, if it names one.

    It `begins` with that model.
    """
    order, proposed = config.order, int(now)
    values: dict[str, Any] = {
        "run": name, "purpose": order.purpose, "proposer": order.proposer, "recipients": order.recipients,
        "population": order.population, "permit": order.permit, "cohort": order.cohort, "proposed": proposed,
        "expires": proposed + order.valid_days * DAY_S, "version": __version__, "strategy": config.strategy.name,
        "keys": keys, **asdict(begins),
    }  # fmt: skip
    return bind(RunOrder, {**terms_of(request), **values}, "order")


def keys_of(home: Path, cohort: Sequence[str]) -> tuple[str, ...]:
    """The key of each of `cohort` as it is certified now; none if one of them is not enrolled here."""
    if not cohort:
        return ()
    certified = {member.institution: member.certificate for member in members(home)}
    if set(cohort) - certified.keys():
        return ()
    return tuple(fingerprint(public_key(to_der(parse_certificate(certified[name], name)))) for name in cohort)


def read_order(folder: Path) -> Proposal | None:
    """The proposal in a run's folder; None if there is none. Raises ProtocolError if it is damaged."""
    path = folder / FILE
    return read_proposal(path.read_bytes(), str(path)) if path.exists() else None


def write_order(folder: Path, proposal: Proposal) -> None:
    write_private(folder / FILE, proposal.to_bytes())


def write_answers(folder: Path, answers: Mapping[str, bytes]) -> dict[str, bytes]:
    """Keep what the institutions answered, by name, beside the order; as kept, each in its one spelling.

    What is no JSON object is left out.
    """
    kept, spelled = {}, dict[str, bytes]()
    for name, data in answers.items():
        with contextlib.suppress(ValueError, RecursionError, EvidenceError):
            value = json.loads(data)
            if isinstance(value, dict):
                spelled[name] = canonical(value)
                kept[name] = value
    write_private(folder / ANSWERS, json.dumps(kept, indent=1, sort_keys=True).encode())
    return spelled


def read_answers(folder: Path) -> dict[str, Any]:
    """The institutions' words on the order of the run in `folder`, by name; nothing before it has begun.

    Raises ConfigError if the file is damaged.
    """
    path = folder / ANSWERS
    return read_object(path) if path.exists() else {}


@dataclass(frozen=True)
class Ordering:
    """What the coordinator of the run in `folder` shows the institutions before anything else."""

    config: Config
    name: str
    folder: Path
    identity: Identity
    home: Path | None = None  # whose log it is entered into

    def __call__(self, request: RunRequest) -> Bytes:
        """The run's proposal, signed, as bytes: what was proposed and approved, else one that is made now.

        Raises ConfigError if the run asks for something else than was approved, or later; PolicyError if the agency is
        bound to its people's approvals and they are missing.
        """
        now, kept = time.time(), read_order(self.folder)
        anew = kept is not None and kept.order.start_round > 0  # from a checkpoint, which later ones have replaced
        begins = kept.order.begins if kept is not None and anew else beginning(self.config)
        if kept is not None and (reason := self._void(kept.order, request, begins, now)):
            if kept.approvals:
                raise ConfigError(f"{self.folder / FILE}: {reason}; propose the run anew")
            log.warning("the order is made anew, for the same purpose, %r: %s", self.config.order.purpose, reason)
            kept = None
        if self.home is not None:
            require_approved(self.home, self.folder.name, kept, self.config.server.min_approvers)
        if kept is None:
            keys = keys_of(self.home, self.config.order.cohort) if self.home else ()
            kept = Proposal(make_order(self.config, self.name, request, now, keys, begins))
            tell(self.home, OrderEvent("proposed", kept.order.digest, self.name))
        identity = self.identity
        signed = kept.signed(identity.certificate, identity.sign(kept.order.proposal_message))
        write_order(self.folder, signed)
        return np.frombuffer(signed.to_bytes(), np.uint8)

    def _void(self, order: RunOrder, request: RunRequest, begins: Beginning, now: float) -> str:
        """Why the run, which `begins` so, cannot go on under `order`; "" if it can."""
        if lacking := order.lacks(request):
            return f"the order is for another run, in: {lacking}"
        if order.strategy != (strategy := self.config.strategy.name):  # no request tells it
            return f"the order is for strategy {order.strategy}, the run's is {strategy}"
        if order.start != begins.start:
            return "the order is for a run that begins with another model"
        return "the order has ended" if now >= order.expires else ""
