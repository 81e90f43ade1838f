"""Rosters of a run's secure aggregation: institutions agree on keys, step by step, and those that do not are left out.

A roster is made anew (an epoch) when an institution has come, or too few of its members are left to unmask, or its keys
expire.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Final

import numpy as np

from sovfed.federation.config import SecaggConfig
from sovfed.federation.errors import CohortError, LostError, NoRosterError, ProtocolError, SovfedError
from sovfed.federation.messages import SecaggReply, SecaggRequest
from sovfed.federation.secagg import setup, wire
from sovfed.federation.secagg.keys import Identity, generate
from sovfed.federation.secagg.request import run_bytes
from sovfed.federation.secagg.ring import FRACTION_BITS
from sovfed.federation.secagg.roster import Roster, read_ad
from sovfed.federation.secagg.shares import MAX_HOLDERS
from sovfed.federation.wire.grids import StreamingGrid
from sovfed.server.rounds.aggregation import ask
from sovfed.server.rounds.patience import REST_S, Patience
from sovfed.server.rounds.refusals import told

log = logging.getLogger(__name__)
SETUP_TRIES: Final = 3  # epochs, each without those that failed in the last
SETUP_S: Final = 60.0  # longest wait for one step of the setup
SILENT: Final = "no answer"
ACCUSED: Final = "accused"
BEHIND: Final = "classical"  # has no ML-KEM-768, where others do and do not take less
LOST: Final = {SILENT, "service", "protocol"}  # why one is left out that restarted in the middle of a setup
LIFETIME_S: Final = 7 * 86400  # of a roster's keys


@dataclasses.dataclass(frozen=True)
class _Outside:
    """Why a setup left a node out, and until when (monotonic) no other is made for its sake."""

    why: str
    pause_s: float
    until: float


@dataclasses.dataclass(frozen=True)
class Epoch:
    """A roster, the node behind each member, and the keys that authenticate their payloads."""

    roster: Roster
    nodes: tuple[int, ...]
    upload_keys: tuple[bytes, ...]


class Epochs:
    """The epochs of one run, one after the other. `config_digest` (32 bytes) says what the run is configured to do."""

    def __init__(
        self,
        grid: StreamingGrid,
        identity: Identity,
        config: SecaggConfig,
        *,
        run: str,
        min_cohort: int,
        deadline_s: float,
        max_size: int,
        config_digest: bytes,
        patience: Callable[[], Patience],
        clock: Callable[[], float],
    ) -> None:
        self._grid, self._identity, self._config, self._run = grid, identity, config, run
        self._min_cohort, self._deadline_s, self._clock, self._patience = min_cohort, deadline_s, clock, patience
        self._max_size, self._config_digest = max_size, config_digest
        self._epoch: Epoch | None = None
        self._epochs = 0
        self._number, self._attempt = 1, 1  # of the next sum
        self._outside: dict[int, _Outside] = {}  # nodes that the last setup left out
        self._seals: dict[int, str] = {}  # by node: what it says keeps its trainer from the network
        self._isolation: dict[str, str] = {}  # the same by institution, of all that were ever in a roster

    def _ready(self, nodes: Sequence[int]) -> Epoch:
        """The epoch in force, or a new one where an institution has come or too few holders are left."""
        present = frozenset(nodes)
        epoch = self._epoch
        if epoch is not None:
            holders = present & set(epoch.nodes)
            self._outside = {node: left for node, left in self._outside.items() if node in present}
            waiting = {node for node, left in self._outside.items() if time.monotonic() < left.until}
            come = present - set(epoch.nodes) - waiting
            enough = len(holders) >= max(epoch.roster.threshold, self._min_cohort)
            if enough and not come and self._clock() < epoch.roster.offer.expires - self._deadline_s:
                return epoch
        candidates, left_out = present, dict[int, str]()
        for _ in range(SETUP_TRIES):
            if len(candidates) > MAX_HOLDERS:
                raise CohortError(
                    f"{len(candidates)} institutions; one secure sum takes up to {MAX_HOLDERS}, and "
                    "privacy.mechanism 'distributed' is over all"
                )
            new_epoch, failed = self._set_up(sorted(candidates))
            left_out |= failed
            if new_epoch is not None:
                self._epoch = new_epoch
                self._outside = {node: self._left(node, why) for node, why in left_out.items()}
                self._number, self._attempt = self._number + 1, 1
                return new_epoch
            candidates -= set(failed)
            if len(candidates) < self._min_cohort:
                break
        names = {node.node_id: node.name or str(node.node_id) for node in self._grid.get_nodes()}
        why = (
            f"secure aggregation: {len(candidates)} institutions agree on keys, minimum cohort is {self._min_cohort}; "
            f"refusals: {told(left_out.items(), names)}"
        )
        raise LostError(why) if set(left_out.values()) <= LOST else NoRosterError(why, left_out)

    def _left(self, node: int, why: str) -> _Outside:
        """That a setup left `node` out; it is tried again after a pause, which doubles."""
        earlier = self._outside.get(node)
        pause = REST_S[0] if earlier is None else min(2 * earlier.pause_s, REST_S[1])
        return _Outside(why, pause, time.monotonic() + pause)

    def _refused_outside(self, nodes: Sequence[int], epoch: Epoch) -> dict[int, str]:
        """By node that the setup left out, why; those that did not answer are late, not unwilling."""
        outside = {node: self._outside.get(node) for node in nodes if node not in epoch.nodes}
        return {
            node: "not in the roster" if left is None else left.why
            for node, left in outside.items()
            if left is None or left.why != SILENT
        }

    def _set_up(self, nodes: Sequence[int]) -> tuple[Epoch | None, dict[int, str]]:
        """One epoch with `nodes`: the new one, or None and why which nodes failed."""
        self._epochs += 1
        secret = generate(os.urandom, post_quantum=False)
        expires, config = int(self._clock()) + LIFETIME_S, self._config
        offer = setup.make_offer(
            wire.Offer(
                b"", run_bytes(self._run), self._epochs, self._config_digest, config.bits, config.clip,
                config.max_weight, FRACTION_BITS, self._min_cohort, self._max_size, wire.MAX_HEADER - 2, expires,
                secret.exchange_public, self._identity.certificate,
            ),
            self._identity.sign,
        )  # fmt: skip
        refused: dict[int, str] = {}
        ads = self._step("offer", dict.fromkeys(nodes, offer), SETUP_S, refused)
        refused |= {node: SILENT for node in nodes if node not in ads and node not in refused}
        names: dict[str, int] = {}
        used_keys: set[bytes] = set()
        for node, ad in ads.items():
            try:
                member = read_ad(offer, ad, self._identity.verify, self._clock())
            except SovfedError as error:
                log.warning("node %d: keys refused: %s", node, error)
                refused[node] = "identity"
                continue
            own = {member.ad.exchange, member.ad.kem, member.ad.nonce} - {b""}
            if used_keys.isdisjoint(own):
                names.setdefault(member.name, node)
            used_keys |= own
        order = [names[name] for name in sorted(names)]
        refused |= {node: "twice" for node in ads if node not in order and node not in refused}
        if len(order) < self._min_cohort:
            return None, refused
        roster, listing = setup.gather(offer, [ads[node] for node in order], self._identity.verify, self._clock())
        unwilling: dict[int, str] = {}
        capsules = self._all("roster", dict.fromkeys(order, listing), unwilling)
        if capsules is None:
            return None, refused | (_behind(roster, order, unwilling) or unwilling)
        if malformed := _malformed(roster, order, capsules, setup.read_capsules):
            return None, refused | malformed
        bodies = _by_node(order, setup.route_capsules(roster, dict(enumerate(capsules))))
        confirmations = self._all("capsules", bodies, refused)
        if confirmations is None:
            return None, refused
        if malformed := _malformed(roster, order, confirmations, setup.read_confirmations):
            return None, refused | malformed
        bodies = _by_node(order, setup.route_confirmations(roster, dict(enumerate(confirmations))))
        if self._all("confirmations", bodies, refused) is None:
            return None, refused
        log.info(
            "secure aggregation: epoch %d of %d institutions, threshold %d", self._epochs, len(order), roster.threshold
        )
        self._isolation |= {name: self._seals[node] or "not told" for name, node in names.items() if node in order}
        return Epoch(roster, tuple(order), setup.upload_keys(roster, secret)), refused

    def _all(self, step: str, bodies: Mapping[int, bytes], refused: dict[int, str]) -> list[bytes] | None:
        """The replies in the order of `bodies`, or None if one is missing, or complains of another."""
        replies = self._step(step, bodies, SETUP_S, refused)
        blamed = _blamed(list(bodies), replies)
        refused |= blamed
        for node in bodies:
            if node not in replies:
                refused.setdefault(node, SILENT)
        return [replies[node] for node in bodies] if len(replies) == len(bodies) and not blamed else None

    def _step(
        self, step: str, bodies: Mapping[int, bytes], timeout_s: float, refused: dict[int, str] | None = None
    ) -> dict[int, bytes]:
        """Send each node its `body` and return the replies' bodies by node; `refused` is told of the others."""
        replies, patience = dict[int, bytes](), self._patience()
        for node, body in self._answers(step, bodies, timeout_s, {} if refused is None else refused, patience):
            replies[node] = body
            patience.answered()
        return replies

    def _answers(
        self,
        step: str,
        bodies: Mapping[int, bytes],
        timeout_s: float,
        refused: dict[int, str],
        patience: Patience | None = None,
    ) -> Iterator[tuple[int, bytes]]:
        """As `_step`, each body as it comes, until `patience` ends."""
        by_body: dict[int, SecaggRequest] = {}  # by the identity of the body, which nodes may share
        for body in bodies.values():
            by_body.setdefault(id(body), SecaggRequest(run=self._run, step=step, body=np.frombuffer(body, np.uint8)))
        requests = {node: by_body[id(body)] for node, body in bodies.items()}
        for answer in ask(self._grid, requests, SecaggReply, timeout_s, "secagg", patience) if requests else ():
            if answer.reply is not None and answer.reply.step == step:
                if step == "offer":
                    self._seals[answer.node_id] = answer.reply.seal
                yield answer.node_id, answer.reply.body.tobytes()
                continue
            log.warning("node %d refused the step '%s': %s", answer.node_id, step, answer.refusal or "malformed")
            refused[answer.node_id] = answer.refusal or "malformed"


def _by_node(order: Sequence[int], bodies: Mapping[int, bytes]) -> dict[int, bytes]:
    return {order[index]: body for index, body in bodies.items()}


def _malformed(
    roster: Roster, order: Sequence[int], replies: Sequence[bytes], read: Callable[[Roster, int, bytes], object]
) -> dict[int, str]:
    """The nodes whose replies to a step are none: they alone are left out."""
    wrong: dict[int, str] = {}
    for index, reply in enumerate(replies):
        try:
            read(roster, index, reply)
        except ProtocolError as error:
            log.warning("node %d: %s", order[index], error)
            wrong[order[index]] = "malformed"
    return wrong


def _blamed(order: Sequence[int], replies: Mapping[int, bytes]) -> dict[int, str]:
    """The nodes that are left out for the complaints in `replies`: who has part in most of them, until none is left.

    Of two that stand alone against each other it is the one that complains.
    """
    complaints = [(node, peer) for node, body in replies.items() if (peer := accused(order, node, body)) is not None]
    accusers, blamed = {node for node, _ in complaints}, dict[int, str]()
    while complaints:
        parts = Counter(chain.from_iterable(complaints))
        worst = max(parts, key=lambda node: (parts[node], node in accusers))
        blamed[worst] = "identity" if parts[worst] == 1 else ACCUSED
        complaints = [pair for pair in complaints if worst not in pair]
    return blamed


def accused(order: Sequence[int], node: int, body: bytes) -> int | None:
    """The node that `node` complains of in its reply, which is logged; `order` is that of the roster."""
    try:
        complaint = wire.Complaint.decode(body)
    except ProtocolError:
        return None
    if not complaint.index == order.index(node) != complaint.peer < len(order):
        return None
    log.warning("node %d complains that a key or share of node %d does not hold", node, order[complaint.peer])
    return order[complaint.peer]


def _behind(roster: Roster, order: Sequence[int], unwilling: Mapping[int, str]) -> dict[int, str]:
    """Where policies forbid the roster and some members have lesser keys than others: these, in the others' place."""
    suites = [member.ad.suite for member in roster.members]
    if "policy" not in unwilling.values():
        return {}
    return {node: BEHIND for node, suite in zip(order, suites, strict=True) if suite < max(suites)}
