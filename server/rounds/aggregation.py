"""One exchange with the cohort, and what its replies add up to: in the clear, or by secure aggregation.

Both give the same `Total`. `PlainAggregation` sees every institution's reply; `SecureAggregation`
(`server/rounds/secure_aggregation.py`) sees sums only.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Generic, Protocol, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
from flwr.app import Message as FlowerMessage

from sovfed.federation.errors import ConfigError, ProtocolError, WholeModelError
from sovfed.federation.messages import (
    EvaluateReply,
    EvaluateRequest,
    LedgerRequest,
    Message,
    PrivateRequest,
    ProfileReply,
    ProfileRequest,
    Refusal,
    ReleaseRequest,
    Request,
    RunRequest,
    SecaggRequest,
    SumRequest,
    Sums,
    TrainReply,
    TrainRequest,
    Vector,
)
from sovfed.federation.stored import Pieces
from sovfed.federation.wire.flower import TTL_S, from_records, new_message, to_records
from sovfed.federation.wire.grids import StreamingGrid
from sovfed.server.rounds.downlink import WHOLE, Downlink
from sovfed.server.rounds.patience import Patience

log = logging.getLogger(__name__)
FOLD_CHUNK: Final = 1 << 15  # parameters folded at a time: 256 KiB of float64 stay in the cache
EXACT: Final = 2.0**53  # float64 adds whole numbers below it without rounding
MOST_SUM: Final = 1e100  # of an institution: squares, and sums over all institutions, stay finite
TYPES: Final = {
    ProfileRequest: "query.profile",
    PrivateRequest: "train.private",
    TrainRequest: "train",
    EvaluateRequest: "evaluate",
    RunRequest: "query.run",
    SecaggRequest: "query.secagg",
    LedgerRequest: "query.ledger",
    ReleaseRequest: "query.release",
}
SumReply: TypeAlias = ProfileReply | TrainReply | EvaluateReply
KINDS: Final[dict[type[SumRequest], type[SumReply]]] = {
    ProfileRequest: ProfileReply,
    TrainRequest: TrainReply,
    EvaluateRequest: EvaluateReply,
}
R = TypeVar("R", bound=Message)


@dataclass(frozen=True)
class Answer(Generic[R]):
    """What one node sent back: a reply of the expected type, or the code of its refusal."""

    node_id: int
    reply: R | None
    refusal: str = ""


@dataclass(frozen=True)
class Update:
    """One institution's reply to a TrainRequest, kept for a strategy that compares them."""

    node_id: int
    count: int
    loss: float
    update: Vector


@dataclass
class Total:
    """What the institutions' replies to one request add up to; `sums` is None while too few have been added.

    `mean` is Σ countᵢ·updateᵢ / Σ countᵢ, shape [d]; of a private step `integers`, the noised sum in units, stands in
    its place. `sums` are the profile's or the evaluation's, shape [k]; `loss` is Σ countᵢ·lossᵢ, and `steps`
    Σ countᵢ·stepsᵢ. `spoilt` is how many contributions were cut or left out because values were not finite or out of
    range, which only a sum without noise tells. `by_node`, each
    institution's own sums, is empty under secure aggregation; so is `updates`, and unless they are asked for.
    """

    participants: list[int] = field(default_factory=list)
    refused: dict[int, str] = field(default_factory=dict)
    late: list[int] = field(default_factory=list)  # who was asked and had not answered when waiting ended
    sum_number: int = 0  # of secure aggregation; another one is another release of what is private
    missing: str = ""  # why no sum came out although enough took part
    count: int = 0
    mean: Vector | None = None
    integers: npt.NDArray[np.int64] | None = None
    loss: float = 0.0
    steps: float = 0.0
    spoilt: int | None = None
    ring_error: float | None = None  # share of the mean that the ring's rounding is, about; None: no ring, or private
    sums: Sums | None = None
    by_node: dict[int, Sums] = field(default_factory=dict)
    updates: list[Update] = field(default_factory=list)
    seconds_compute: float = 0.0  # the slowest institution's own
    seconds_aggregate: float = 0.0


class Aggregation(Protocol):
    """How replies become a `Total`."""

    def collect(self, request: SumRequest, nodes: Sequence[int], width: int) -> Total:
        """Send `request` to `nodes`; `width` is the length k that their sums must have."""

    def describe(self) -> dict[str, Any]:
        """What the run's summary says of it."""


def silent(nodes: Iterable[int], total: Total) -> list[int]:
    """Those of `nodes` that neither took part nor refused."""
    answered = {*total.participants, *total.refused}
    return [node for node in nodes if node not in answered]


def ask(
    grid: StreamingGrid,
    requests: Mapping[int, Request],
    kind: type[R],
    timeout_s: float,
    group: str = "",
    patience: Patience | None = None,
    whole: Request | None = None,
) -> Iterator[Answer[R]]:
    """Send each node its request and yield each answer as it arrives; a malformed one is a refusal, not an error.

    It ends when all have answered, after `timeout_s`, or with `patience`, which the caller tells who answered.
    Answers are told apart by the message they reply to, never by the sender that they name. Who lacks the model that
    its request changes is asked again, once, with `whole`.
    """
    deadline, lacking = time.monotonic() + timeout_s, list[int]()
    for answer in _ask(grid, requests, kind, timeout_s, group, patience):
        if whole is not None and answer.refusal == WholeModelError.code and requests[answer.node_id] is not whole:
            lacking.append(answer.node_id)
        else:
            yield answer
        del answer
    if lacking and whole is not None:
        log.info("%d institutions lack the model before, and are sent the whole one", len(lacking))
        left_s = max(0.0, deadline - time.monotonic())
        yield from _ask(grid, dict.fromkeys(lacking, whole), kind, left_s, group, patience)


def _ask(
    grid: StreamingGrid,
    requests: Mapping[int, Request],
    kind: type[R],
    timeout_s: float,
    group: str,
    patience: Patience | None,
) -> Iterator[Answer[R]]:
    shared = {id(request): request for request in requests.values()}  # most nodes are asked the same
    contents = {key: to_records(request) for key, request in shared.items()}
    messages = [
        new_message(
            contents[id(request)],
            run_id=grid.run.run_id,
            node_id=node,
            kind=TYPES[type(request)],
            group=group,
            ttl_s=max(TTL_S, timeout_s),
        )
        for node, request in requests.items()
    ]
    del contents
    nodes: dict[str, int] = {}  # by the message's id, which the Grid gives it
    replies = grid.replies(messages, timeout_s, patience.remaining_s) if patience else grid.replies(messages, timeout_s)
    for message in replies:
        parent, answer = message.metadata.reply_to_message_id, None
        if parent not in nodes:
            nodes = {sent.metadata.message_id: sent.metadata.dst_node_id for sent in messages}
        if parent in nodes:
            answer = _answer(nodes[parent], message, kind)
        del message  # so that a long one is gone when the next is waited for
        if answer is not None:
            yield answer
        del answer


def _answer(node: int, message: FlowerMessage, kind: type[R]) -> Answer[R]:
    if message.has_error():
        return Answer(node, None, f"flower-{message.error.code}")
    try:
        reply = from_records(message.content)
    except ProtocolError as error:
        log.warning("node %d: malformed reply: %s", node, error)
        return Answer(node, None, "malformed")
    if isinstance(reply, Refusal):
        return Answer(node, None, reply.reason)
    if not isinstance(reply, kind):
        log.warning("node %d: got %s, expected %s", node, type(reply).__name__, kind.__name__)
        return Answer(node, None, "malformed")
    return Answer(node, reply)


class Fold:
    """A running weighted sum of updates in float64; one reply is held at a time."""

    def __init__(self, parameters: int) -> None:
        self.total = np.empty(parameters, dtype=np.float64)
        self.count = 0
        self._product = np.empty(FOLD_CHUNK, dtype=np.float64)

    def add(self, update: Vector, count: int) -> None:
        """Add count · update (shape [d]). The products are exact in float64 below 2^29 records."""
        pieces = Pieces(update)
        for start in range(0, update.size, FOLD_CHUNK):
            block, total = pieces[start : start + FOLD_CHUNK], self.total[start : start + FOLD_CHUNK]
            product = self._product[: block.size] if self.count else total
            product[:] = block  # converted first, which is faster than `multiply` with a dtype
            product *= float(count)
            if self.count:
                total += product
        self.count += count

    def mean(self) -> Vector:
        """Σ countᵢ·updateᵢ / Σ countᵢ, shape [d], in float32 (FedAvg, arXiv:1602.05629, Algorithm 1).

        It takes the place of the sum, whose other half is given back: each block of it ends before the next block of
        the sum begins. To be called once, at the end.
        """
        size, total = self.total.size, self.total
        for start in range(0, size, FOLD_CHUNK):
            quotient = total[start : start + FOLD_CHUNK] / self.count
            total.view(np.float32)[start : start + quotient.size] = quotient
        total.resize(-(-size // 2), refcheck=False)  # no view of it is left
        return total.view(np.float32)[:size]


def exact_sum(vectors: Sequence[Sums]) -> Sums:
    """Σ of `vectors` (each shape [k]), correctly rounded and so the same in whatever order they came."""
    table = np.stack(vectors)
    total: Sums = table.sum(0)
    uneven = (table != np.rint(table)).any(0)
    if np.abs(table).max(initial=0.0) * len(table) >= EXACT:  # else whole numbers add up the same in any order
        uneven[:] = True
    for column in np.flatnonzero(uneven):
        total[column] = math.fsum(table[:, column])
    return total


class PlainAggregation:
    """Replies are folded as they arrive and freed. Whoever runs the server can see each of them."""

    def __init__(
        self,
        grid: StreamingGrid,
        deadline_s: float,
        *,
        keep: bool = False,
        patience: Callable[[], Patience] = lambda: Patience(0),
        downlink: Downlink = WHOLE,
    ) -> None:
        """With `keep` a round's updates are held until it ends: memory of cohort · d. `patience` makes one of each."""
        self._grid, self._deadline_s, self._keep, self._patience = grid, deadline_s, keep, patience
        self._downlink = downlink

    def collect(self, request: SumRequest, nodes: Sequence[int], width: int) -> Total:
        if isinstance(request, PrivateRequest):
            raise ConfigError("a private run needs secure aggregation")
        total = Total()
        fold = Fold(request.update_size) if isinstance(request, TrainRequest) else None
        kind = KINDS[type(request)]
        group = "" if isinstance(request, ProfileRequest) else str(request.round)
        patience = self._patience()
        requests = self._downlink.requests(request, nodes)
        for answer in ask(self._grid, requests, kind, self._deadline_s, group, patience, request):
            reply = answer.reply
            if reply is None or not _fits(reply, request, width):
                total.refused[answer.node_id] = answer.refusal or "malformed"
                continue
            clock = time.monotonic()
            patience.answered()
            total.participants.append(answer.node_id)
            self._downlink.took(request, answer.node_id)
            if isinstance(reply, ProfileReply):
                total.by_node[answer.node_id] = reply.sums
                continue
            total.by_node[answer.node_id] = reply.evaluation.copy()  # or all of the reply would stay
            total.seconds_compute = max(total.seconds_compute, reply.seconds)
            if isinstance(reply, TrainReply) and fold is not None:
                fold.add(reply.update, reply.count)
                if self._keep:
                    total.updates.append(Update(answer.node_id, reply.count, reply.train_loss, reply.update))
                total.loss += reply.train_loss * reply.count
                total.steps += float(reply.steps * reply.count)
            total.seconds_aggregate += time.monotonic() - clock
            del answer, reply
        total.late = silent(nodes, total)
        if total.by_node:
            total.sums = exact_sum(list(total.by_node.values()))
        if fold is not None and fold.count:
            total.count, total.mean = fold.count, fold.mean()
        return total

    def describe(self) -> dict[str, Any]:
        return {"secure_aggregation": False}


def _fits(reply: SumReply, request: SumRequest, width: int) -> bool:
    """Whether the reply has the request's round, the model's shape and sums of the task's length that can be added."""
    if isinstance(reply, ProfileReply) or isinstance(request, ProfileRequest):
        return isinstance(reply, ProfileReply) and _can_be_added(reply.sums, width)
    if isinstance(request, TrainRequest) and (
        not isinstance(reply, TrainReply) or reply.update.shape != (request.update_size,)
    ):
        return False
    return reply.round == request.round and _can_be_added(reply.evaluation, width)


def _can_be_added(sums: Sums, width: int) -> bool:
    """Whether `sums` are as many as they should be, and no sum of them over institutions is beyond a float's reach."""
    return sums.shape == (width,) and float(np.abs(sums).max(initial=0.0)) <= MOST_SUM
