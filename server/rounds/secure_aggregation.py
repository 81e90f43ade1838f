"""Secure aggregation at the coordinator: sets up a roster, sends M1 with each request, and opens nothing but sums.

The protocol is `federation/secagg/`; here it meets the Grid. A roster is made anew (an epoch) when an institution has
come, or too few of its members are left to unmask. A sum has a number of its own, which is never used again once
holders were asked to reveal it; an attempt that too few joined is repeated under the same number. Once holders were
asked, institutions sum the same model over the same survivors only: where some of those are gone, the run goes on as a
new part, under a name of its own, and each institution's policy says whether it answers there. Where policies refuse
sums over almost the same institutions, the run keeps to those of its last sum.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np

from sovfed.federation.config import SecaggConfig
from sovfed.federation.errors import (
    CohortError,
    DeclinedError,
    IdentityError,
    LostError,
    ProtocolError,
    SovfedError,
    TrainingError,
)
from sovfed.federation.messages import (
    MaskedReply,
    MaskedSum,
    PrivateReply,
    PrivateRequest,
    ProfileRequest,
    SecaggReply,
    SecaggRequest,
    SumRequest,
    TrainRequest,
    Vector,
)
from sovfed.federation.secagg import setup, wire
from sovfed.federation.secagg.coordinator import Aggregate, Round, open_round
from sovfed.federation.secagg.keys import Identity, generate
from sovfed.federation.secagg.purpose import Purpose
from sovfed.federation.secagg.request import (
    SPOILT,
    TRAIN_METRICS,
    header_metrics,
    model_digest,
    narrow,
    purpose,
    run_bytes,
    subject,
    task_digest,
    update_size,
)
from sovfed.federation.secagg.ring import FRACTION_BITS, Ring
from sovfed.federation.secagg.roster import Roster, read_ad
from sovfed.federation.secagg.shares import MAX_HOLDERS
from sovfed.federation.wire.flower import StreamingGrid
from sovfed.server.rounds.aggregation import Total, ask, silent
from sovfed.server.rounds.patience import REST_S, Patience
from sovfed.server.rounds.refusals import FINAL as NO_REPEAT
from sovfed.server.rounds.refusals import told

log = logging.getLogger(__name__)
SETUP_TRIES: Final = 3  # epochs, each without those that failed in the last
SETUP_S: Final = 60.0  # longest wait for one step of the setup
CROWD_S: Final = 0.005  # replies closer together than this are added together; others at once, while nobody waits
REVEAL_S: Final = 15.0  # longest wait for one answer of the holders that are connected
FINAL: Final = ("identity", "malformed", "policy", "privacy", "protocol")  # refusals that no repeat changes
SILENT: Final = "no answer"
LOST: Final = {SILENT, "service", "protocol"}  # why one is left out that restarted in the middle of a setup
AGAIN_S: Final = 0.5  # between two times of asking the holders that have not answered
WAIT_S: Final = 60.0  # longest wait for holders that went away to come back, unless told otherwise
TOLD_ERROR: Final = 0.05  # share of the mean update that is rounding, above which every round says so
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


class SecureAggregation:
    """All sums of one run. `config_digest` (32 bytes) says in the offer what the run is configured to do."""

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
        wait_s: float = WAIT_S,
        sampled: bool = False,
        patience: Callable[[], Patience] = lambda: Patience(0),
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`sampled`: the nodes of a sum are a sample, and rosters are of all that are connected, if one takes them.

        `patience` makes one for each collection of uploads.
        """
        self._sampled, self._patience = sampled, patience
        self._grid, self._identity, self._config, self._run = grid, identity, config, run
        self._name, self._part, self._wait_s = run, 1, min(wait_s, deadline_s)
        self._answered = False  # whether a holder may have helped with the last sum that it was asked for
        self._mute: list[int] = []  # connected holders that did not answer when they were asked last
        self._steady: frozenset[int] = frozenset()  # nodes of the last sum without privacy
        self._strict = False  # institutions refuse sums over almost the same nodes
        self._asked: dict[tuple[Purpose, bytes], frozenset[int]] = {}  # nodes whose sum of a model never opened
        self._min_cohort, self._deadline_s, self._clock = min_cohort, deadline_s, clock
        self._max_size, self._config_digest = max_size, config_digest
        self._epoch: Epoch | None = None
        self._epochs = 0
        self._outside: dict[int, _Outside] = {}  # nodes that the last setup left out
        self._number, self._attempt = 1, 1
        self._ring_error: float | None = None  # of the last sum of updates
        self._seals: dict[int, str] = {}  # by node: what it says keeps its trainer from the network
        self._isolation: dict[str, str] = {}  # the same by institution, of all that were ever in a roster
        self._last: tuple[int, int, int] | None = None  # survivors, roster, threshold

    def collect(self, request: SumRequest, nodes: Sequence[int], width: int) -> Total:
        """As `Aggregation.collect`. Raises CohortError when no roster of the minimum cohort comes about."""
        start = time.monotonic()
        key = (purpose(request), model_digest(request))
        present = frozenset(nodes)
        if self._strict and key[0].without_privacy:
            present = self._await_steady(present)
        summed = self._again(key, present)
        epoch = self._ready(sorted(self._holders(present, nodes)))
        request = dataclasses.replace(request, run=self._run)
        members = {node: index for index, node in enumerate(epoch.nodes) if node in summed}
        total = Total(refused=self._refused_outside(nodes, epoch), sum_number=self._number)
        metrics = header_metrics(request, width)
        round_ = open_round(
            epoch.roster, self._identity.sign, epoch.upload_keys, number=self._number, attempt=self._attempt,
            purpose=key[0], cohort=list(members.values()), size=update_size(request), metrics=metrics,
            model=key[1], task=task_digest(request), subject=subject(request),
        )  # fmt: skip
        begun = dataclasses.replace(request, begin=np.frombuffer(round_.begin_bytes, np.uint8))
        self._upload(round_, begun, members, total)
        total.late = silent([*members, *(node for node in nodes if node not in epoch.nodes)], total)
        if key in self._asked and self._asked[key] != frozenset(total.participants):
            total.missing = "not all came of those whose sum of this model was asked for, and holders open no other"
            self._attempt += 1
            return total
        if len(total.participants) < self._min_cohort:
            self._attempt += 1  # nothing was revealed
            self._strict |= bool(self._steady) and "policy" in total.refused.values()
            return total
        self._number, self._attempt = self._number + 1, 1
        clock = time.monotonic()
        aggregate, total.missing = self._reveal(round_, members)
        total.seconds_aggregate += time.monotonic() - clock
        if aggregate is None:
            total.late += [node for node in self._mute if node not in total.late]
            log.warning("sum %d: %s; abandoned, no sum was opened", round_.begin.round, total.missing)
            if self._answered:
                self._asked = {key: frozenset(total.participants)}
            else:
                self._strict = True  # the holders' policies forbid these survivors
            return total
        if key[0].without_privacy:
            self._steady = frozenset(total.participants)
        self._last = (len(aggregate.survivors), len(epoch.nodes), epoch.roster.threshold)
        _fill(total, request, aggregate)
        if isinstance(request, TrainRequest):
            self._judge(total, request.round, len(members))
        log.debug("sum %d in %.3f s", round_.begin.round, time.monotonic() - start)
        return total

    def _judge(self, total: Total, number: int, cohort: int) -> None:
        """Note how much of the mean is rounding. Raises TrainingError where the run's first has too much to learn from.

        Updates become smaller as a run goes on, so a later round is told of, not refused.
        """
        config = self._config
        ring = Ring(config.bits, config.clip, config.max_weight, cohort)
        mean = total.mean if total.mean is not None else np.zeros(0, np.float32)
        error = total.ring_error = self._ring_error = ring.relative_error(mean, len(total.participants), total.count)
        if number == 1 and error > config.max_error:
            raise TrainingError(
                f"secure aggregation: rounding is {error:.0%} of the mean update of round 1, above secagg.max_error "
                f"{config.max_error:.0%}: with secagg.bits={config.bits} and secagg.clip={config.clip:g} a step of the "
                f"ring is {ring.step(total.count):.1e}, values are {_rms(mean):.1e}. Take secagg.bits=32, a clip "
                "nearer to the largest update, or a secagg.max_weight nearer to the institutions' records"
            )
        if error > TOLD_ERROR:
            log.warning("round %d: rounding in the ring is %.0f %% of the mean update", number, 100 * error)

    def _holders(self, summed: frozenset[int], nodes: Sequence[int]) -> frozenset[int]:
        """Whom a roster for sums over `summed` is of: of all that one takes, beside these."""
        wide = summed.union(nodes)
        connected = wide.union(self._grid.get_node_ids()) if self._sampled else wide
        return next((of for of in (connected, wide) if len(of) <= MAX_HOLDERS), summed)

    def _again(self, key: tuple[Purpose, bytes], nodes: frozenset[int]) -> frozenset[int]:
        """Those of `nodes` to sum the model of `key` over; a new part of the run if its earlier survivors are gone."""
        earlier = self._asked.get(key)
        if earlier is None:
            return nodes
        if earlier <= nodes:
            return earlier
        self._part += 1
        self._run, self._epoch, self._asked = f"{self._name}.{self._part}", None, {}
        log.warning(
            "of %d institutions whose sum was asked for, %d are gone for good: the run goes on as part %d, '%s'",
            len(earlier), len(earlier - nodes), self._part, self._run,
        )  # fmt: skip
        return nodes

    def _await_steady(self, connected: frozenset[int]) -> frozenset[int]:
        """The nodes of the last sum without privacy, once they are all here; `connected` if they do not come."""
        deadline = time.monotonic() + self._wait_s
        while not self._steady <= (present := frozenset(self._grid.get_node_ids())):
            if time.monotonic() > deadline:
                return connected
            time.sleep(min(AGAIN_S, self._wait_s))
        return self._steady & present or connected

    def describe(self) -> dict[str, Any]:
        survivors, members, threshold = self._last or (0, 0, 0)
        error = self._ring_error
        rounding = f", rounding {error:.0%} of the update" if error is not None and error > TOLD_ERROR else ""
        ring = {"bits": self._config.bits, "clip": self._config.clip, "max_weight": self._config.max_weight}
        ring |= {} if error is None else {"rounding": error}
        return {
            "secure_aggregation": True,
            "secure_aggregation_details": f"on, cohort {survivors} of {members}, threshold {threshold}{rounding}",
            "secure_aggregation_terms": {"cohort": survivors, "roster": members, "threshold": threshold, **ring},
            "isolation": self._isolation,
        }

    def _upload(self, round_: Round, request: SumRequest, members: Mapping[int, int], total: Total) -> None:
        """M1 with the request, and every M2 added to the masked sum; who sent what was not signed is refused."""
        group = "" if isinstance(request, ProfileRequest) else str(request.round)
        kind: type[MaskedSum] = PrivateReply if isinstance(request, PrivateRequest) else MaskedReply
        uploaded: dict[int, int] = {}
        since = time.monotonic()
        # Where institutions refuse sums over almost the same nodes, nothing is won by going on without one.
        patience = Patience(len(members)) if self._strict and purpose(request).without_privacy else self._patience()
        for answer in ask(self._grid, dict.fromkeys(members, request), kind, self._deadline_s, group, patience):
            clock, refusal = time.monotonic(), answer.refusal
            if answer.reply is not None:
                try:
                    if wire.Masked.decode(answer.reply.message.tobytes()).index != members[answer.node_id]:
                        raise IdentityError("an upload in another member's name")
                    uploaded[answer.node_id] = round_.take(answer.reply.message.tobytes(), answer.reply.payload)
                except SovfedError as error:
                    log.warning("node %d: upload refused: %s", answer.node_id, error)
                    refusal = "malformed"
                else:
                    patience.answered()
                    if clock - since > CROWD_S:
                        round_.settle()
                    if isinstance(answer.reply, MaskedReply):
                        total.seconds_compute = max(total.seconds_compute, answer.reply.seconds)
            if refusal:
                total.refused[answer.node_id] = refusal
            del answer  # with its payload, once that is settled
            since = time.monotonic()
            total.seconds_aggregate += since - clock
        clock = time.monotonic()
        round_.settle()
        for node, index in uploaded.items():
            if index in round_.refused:
                log.warning("node %d: upload refused: %s", node, round_.refused[index])
                total.refused[node] = "malformed"
            else:
                total.participants.append(node)
        total.seconds_aggregate += time.monotonic() - clock

    def _reveal(self, round_: Round, members: Mapping[int, int]) -> tuple[Aggregate | None, str]:
        """The sum, or why there is none. M3 goes to every holder that is connected, cohort or not.

        Holders that do not answer are asked again until a quorum has answered, or the wait is over.
        """
        asks, epoch = round_.ask(), self._epoch
        if epoch is None:
            raise ProtocolError("no roster")
        deadline = time.monotonic() + self._wait_s
        answered: set[int] = set()
        refused: dict[int, str] = {}
        present = set(self._grid.get_node_ids()) | set(members)
        aggregate: Aggregate | None = None
        reason = ""
        while True:
            open_ = [node for node in epoch.nodes if node not in answered and node not in refused]
            bodies = {node: asks[epoch.nodes.index(node)] for node in open_ if node in present}
            try:
                aggregate = self._ask_holders(round_, bodies, answered, refused)
            except ProtocolError as error:
                reason = str(error)
            possible = len(epoch.nodes) - len(refused) >= epoch.roster.threshold
            if aggregate is not None or reason or not possible or time.monotonic() > deadline:
                break
            time.sleep(min(AGAIN_S, self._wait_s))
            present = set(self._grid.get_node_ids())
        for lie in aggregate.lies if aggregate else round_.suspects():
            log.warning("sum %d: %s", round_.begin.round, lie)
        self._answered = bool(answered) or any(code != "policy" for code in refused.values()) or not refused
        return aggregate, "" if aggregate is not None else reason or _missing(epoch, answered, refused)

    def _ask_holders(
        self, round_: Round, bodies: Mapping[int, bytes], answered: set[int], refused: dict[int, str]
    ) -> Aggregate | None:
        """The sum, as soon as the shares that are in give it: `bodies` go to all, and who is slow is not waited for.

        Adds to `answered` and to `refused`. Raises ProtocolError as `Round.solve` does.
        """
        aggregate: Aggregate | None = None
        enough = Patience(1, grace_s=0.0)  # nothing more is waited for, once there is a sum
        for node, reply in self._answers("reveal", bodies, REVEAL_S, refused, enough):
            if aggregate is not None:
                continue  # it came in the meantime
            try:
                round_.answer(reply)
                answered.add(node)
            except SovfedError as error:
                log.warning("node %d: shares refused: %s", node, error)
                refused[node] = "malformed"
                continue
            aggregate = round_.solve()
            if aggregate is not None:
                enough.answered()
        self._mute = [node for node in bodies if node not in answered and node not in refused]
        for node in [node for node, code in refused.items() if code not in FINAL]:
            del refused[node]  # it is asked again
        return aggregate

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
        final = sum(code in NO_REPEAT for code in left_out.values())
        kind = LostError if set(left_out.values()) <= LOST else CohortError
        raise (DeclinedError if len(present) - final < self._min_cohort else kind)(
            f"secure aggregation: {len(candidates)} institutions agree on keys, minimum cohort is {self._min_cohort}; "
            f"refusals: {told(left_out.items(), names)}"
        )

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
        capsules = self._all("roster", dict.fromkeys(order, listing), refused)
        if capsules is None:
            return None, refused
        try:
            bodies = _by_node(order, setup.route_capsules(roster, dict(enumerate(capsules))))
            confirmations = self._all("capsules", bodies, refused)
            if confirmations is None:
                return None, refused
            bodies = _by_node(order, setup.route_confirmations(roster, dict(enumerate(confirmations))))
        except ProtocolError as error:
            log.warning("secure aggregation, epoch %d: %s", self._epochs, error)
            return None, refused
        if self._all("confirmations", bodies, refused) is None:
            return None, refused
        log.info(
            "secure aggregation: epoch %d of %d institutions, threshold %d", self._epochs, len(order), roster.threshold
        )
        self._isolation |= {name: self._seals[node] or "not told" for name, node in names.items() if node in order}
        return Epoch(roster, tuple(order), setup.upload_keys(roster, secret)), refused

    def _all(self, step: str, bodies: Mapping[int, bytes], refused: dict[int, str]) -> list[bytes] | None:
        """The replies in the order of `bodies`, or None if one is missing."""
        replies = self._step(step, bodies, SETUP_S, refused)
        for node in bodies:
            if node not in replies:
                refused.setdefault(node, SILENT)
        return [replies[node] for node in bodies] if len(replies) == len(bodies) else None

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


def _missing(epoch: Epoch, answered: Collection[int], refused: Mapping[int, str]) -> str:
    """Why a quorum did not come about: shares got and needed, who is gone, who refused with which code."""
    name = dict(zip(epoch.nodes, epoch.roster.names, strict=True))
    gone = ", ".join(name[node] for node in epoch.nodes if node not in answered and node not in refused)
    parts = [f"{len(answered)} of {epoch.roster.threshold} shares that unmask the sum"]
    parts += [f"{gone} gone"] if gone else []
    parts += [f"{name[node]} refused ({code})" for node, code in refused.items()]
    return "; ".join(parts)


def _by_node(order: Sequence[int], bodies: Mapping[int, bytes]) -> dict[int, bytes]:
    return {order[index]: body for index, body in bodies.items()}


def _fill(total: Total, request: SumRequest, aggregate: Aggregate) -> None:
    """Put the opened sum into `total`."""
    if isinstance(request, PrivateRequest):
        total.count, total.mean, total.integers = len(aggregate.survivors), aggregate.mean, aggregate.integers
        total.sums = aggregate.metrics  # none
        return
    total.spoilt, metrics = round(float(aggregate.metrics[0])), aggregate.metrics[SPOILT:]
    if isinstance(request, ProfileRequest):
        total.sums = narrow(metrics)
    elif isinstance(request, TrainRequest):
        total.count, total.mean = aggregate.weight, aggregate.mean
        total.loss, total.steps, cut = (float(value) for value in metrics[:TRAIN_METRICS])
        total.sums = metrics[TRAIN_METRICS:]
        if cut:
            log.warning(
                "round %d: %d values were beyond secagg.clip; the updates that they stood in were shrunk to it",
                request.round, int(cut),
            )  # fmt: skip
    else:
        total.sums = metrics


def _rms(values: Vector) -> float:
    """The root mean square of what is not zero."""
    return float(np.sqrt(np.dot(values, values) / max(1, np.count_nonzero(values))))
