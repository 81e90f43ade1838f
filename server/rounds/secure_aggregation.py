"""Secure aggregation at the coordinator: sends M1 with each request to a roster, and opens nothing but sums.

The protocol is `federation/secagg/`; here it meets the Grid, over the rosters of `epochs.py`. A sum has a number of its
own, which is never used again once holders were asked to reveal it; an attempt that too few joined is repeated under
the same number. Once holders were asked, institutions sum the same model over the same survivors only: where some of
those are gone, the run goes on as a new part, under a name of its own, and each institution's policy says whether it
answers there. Where policies refuse sums over almost the same institutions, the run keeps to those of its last sum.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final

import numpy as np

from sovfed.federation.config import SecaggConfig
from sovfed.federation.errors import (
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
    SumRequest,
    TrainRequest,
    Vector,
)
from sovfed.federation.secagg.coordinator import Aggregate, Round, open_round
from sovfed.federation.secagg.keys import Identity
from sovfed.federation.secagg.purpose import Purpose
from sovfed.federation.secagg.request import (
    SPOILT,
    TRAIN_METRICS,
    header_metrics,
    model_digest,
    narrow,
    purpose,
    subject,
    task_digest,
    update_size,
)
from sovfed.federation.secagg.ring import Ring
from sovfed.federation.secagg.shares import MAX_HOLDERS
from sovfed.federation.wire.grids import StreamingGrid
from sovfed.server.rounds.aggregation import Total, ask, silent
from sovfed.server.rounds.downlink import WHOLE, Downlink
from sovfed.server.rounds.epochs import Epoch, Epochs, accused
from sovfed.server.rounds.patience import Patience

log = logging.getLogger(__name__)
CROWD_S: Final = 0.005  # replies closer together than this are added together; others at once, while nobody waits
REVEAL_S: Final = 15.0  # longest wait for one answer of the holders that are connected
FINAL: Final = ("identity", "malformed", "policy", "privacy", "protocol")  # refusals that no repeat changes
AGAIN_S: Final = 0.5  # between two times of asking the holders that have not answered
WAIT_S: Final = 60.0  # longest wait for holders that went away to come back, unless told otherwise
TOLD_ERROR: Final = 0.05  # share of the mean update that is rounding, above which every round says so


class SecureAggregation(Epochs):
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
        downlink: Downlink = WHOLE,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`sampled`: the nodes of a sum are a sample, and rosters are of all that are connected, if one takes them.

        `patience` makes one for each collection of uploads.
        """
        super().__init__(
            grid, identity, config, run=run, min_cohort=min_cohort, deadline_s=deadline_s, max_size=max_size,
            config_digest=config_digest, patience=patience, clock=clock,
        )  # fmt: skip
        self._sampled, self._name, self._part, self._downlink = sampled, run, 1, downlink
        self._wait_s = min(wait_s, deadline_s)
        self._answered = False  # whether a holder may have helped with the last sum that it was asked for
        self._mute: list[int] = []  # connected holders that did not answer when they were asked last
        self._steady: frozenset[int] = frozenset()  # nodes of the last sum without privacy
        self._told = Counter[str]()  # how often each kind of thing was to be said of a round
        self._strict = False  # institutions refuse sums over almost the same nodes
        self._asked: dict[tuple[Purpose, bytes], frozenset[int]] = {}  # nodes whose sum of a model never opened
        self._ring_error: float | None = None  # of the last sum of updates
        self._last: tuple[int, int, int] | None = None  # survivors, roster, threshold

    def collect(self, request: SumRequest, nodes: Sequence[int], width: int) -> Total:
        """As `Aggregation.collect`. Raises CohortError when no roster of the minimum cohort comes about."""
        start = time.monotonic()
        key = (purpose(request), model_digest(request))
        present = frozenset(nodes)
        if self._strict and key[0].tells_apart:
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
        if key[0].tells_apart:
            self._steady = frozenset(total.participants)
        self._last = (len(aggregate.survivors), len(epoch.nodes), epoch.roster.threshold)
        cut = _fill(total, request, aggregate)
        if isinstance(request, TrainRequest):
            if cut:
                self._tell(
                    "clip", request.round,
                    f"{cut} values were beyond secagg.clip; the updates that they stood in were shrunk to it. Where it "
                    "goes on, a smaller strategy.gradient_scale or learning rate, or a larger clip",
                )  # fmt: skip
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
                "nearer to the largest update, or a secagg.max_weight nearer to the institutions' records; with adamw "
                "or muon and task.local_steps also strategy.rate_units=true"
            )
        if error > TOLD_ERROR:
            self._tell("ring", number, f"rounding in the ring is {error:.0%} of the mean update")

    def _tell(self, kind: str, number: int, what: str) -> None:
        """Log what is to be said of a round, of one kind at its 1st, 2nd, 4th, 8th … time and not every round."""
        self._told[kind] += 1
        times = self._told[kind]
        if times.bit_count() == 1:
            log.warning("round %d: %s%s", number, what, f" ({times} times so far)" if times > 2 else "")

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
        patience = Patience(len(members)) if self._strict and purpose(request).tells_apart else self._patience()
        requests = self._downlink.requests(request, list(members))
        for answer in ask(self._grid, requests, kind, self._deadline_s, group, patience, request):
            clock, refusal = time.monotonic(), answer.refusal
            if answer.reply is not None:
                try:
                    message, index = answer.reply.message.tobytes(), members[answer.node_id]
                    uploaded[answer.node_id] = round_.take(message, answer.reply.payload, index)
                except SovfedError as error:
                    log.warning("node %d: upload refused: %s", answer.node_id, error)
                    refusal = "malformed"
                else:
                    patience.answered()
                    self._downlink.took(request, answer.node_id)
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
                aggregate = self._ask_holders(round_, epoch.nodes, bodies, answered, refused)
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
        self, round_: Round, nodes: Sequence[int], bodies: Mapping[int, bytes], answered: set[int],
        refused: dict[int, str],
    ) -> Aggregate | None:  # fmt: skip
        """The sum, as soon as the shares that are in give it: `bodies` go to all, and who is slow is not waited for.

        `nodes` are those of the roster, in its order.

        Adds to `answered` and to `refused`. Raises ProtocolError as `Round.solve` does.
        """
        aggregate: Aggregate | None = None
        enough = Patience(1, grace_s=0.0)  # nothing more is waited for, once there is a sum
        for node, reply in self._answers("reveal", bodies, REVEAL_S, refused, enough):
            if aggregate is not None:
                continue  # it came in the meantime
            if accused(nodes, node, reply) is not None:
                refused[node] = "identity"
                continue
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


def _missing(epoch: Epoch, answered: Collection[int], refused: Mapping[int, str]) -> str:
    """Why a quorum did not come about: shares got and needed, who is gone, who refused with which code."""
    name = dict(zip(epoch.nodes, epoch.roster.names, strict=True))
    gone = ", ".join(name[node] for node in epoch.nodes if node not in answered and node not in refused)
    parts = [f"{len(answered)} of {epoch.roster.threshold} shares that unmask the sum"]
    parts += [f"{gone} gone"] if gone else []
    parts += [f"{name[node]} refused ({code})" for node, code in refused.items()]
    return "; ".join(parts)


def _fill(total: Total, request: SumRequest, aggregate: Aggregate) -> int:
    """Put the opened sum into `total`; how many values were beyond the clip."""
    if isinstance(request, PrivateRequest):
        total.count, total.mean, total.integers = len(aggregate.survivors), aggregate.mean, aggregate.integers
        total.sums = aggregate.metrics  # none
        return 0
    total.spoilt, metrics = round(float(aggregate.metrics[0])), aggregate.metrics[SPOILT:]
    if isinstance(request, ProfileRequest):
        total.sums = narrow(metrics)
    elif isinstance(request, TrainRequest):
        total.count, total.mean = aggregate.weight, aggregate.mean
        total.loss, total.steps, cut = (float(value) for value in metrics[:TRAIN_METRICS])
        total.sums = metrics[TRAIN_METRICS:]
        return int(cut)
    else:
        total.sums = metrics
    return 0


def _rms(values: Vector) -> float:
    """The root mean square of what is not zero."""
    return float(np.sqrt(np.dot(values, values) / max(1, np.count_nonzero(values))))
