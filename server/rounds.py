"""The round loop: ask the cohort, fold each reply as it arrives and free it, step the server optimizer.

Everything here is transport-free: it drives a `StreamingGrid` and cannot tell a simulation from a deployment.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

import numpy as np
from flwr.app import Message as FlowerMessage

from sovfed.federation.config import Config
from sovfed.federation.errors import CohortError, ProtocolError
from sovfed.federation.flower import StreamingGrid, from_records, new_message, to_records
from sovfed.federation.messages import (
    EvaluateReply,
    EvaluateRequest,
    ProfileReply,
    ProfileRequest,
    Refusal,
    Request,
    Sums,
    TrainReply,
    TrainRequest,
    Vector,
)
from sovfed.server.strategies import ServerOptimizer

log = logging.getLogger(__name__)
MAX_ATTEMPTS: Final = 5  # of one round, before the run stops and waits for `sovfed run resume`
FOLD_CHUNK: Final = 1 << 15  # parameters folded at a time: 256 KiB of float64 stay in the cache
STD_FLOOR: Final = 1e-6
TYPES: Final = {ProfileRequest: "query.profile", TrainRequest: "train", EvaluateRequest: "evaluate"}
R = TypeVar("R", ProfileReply, TrainReply, EvaluateReply)


@dataclass(frozen=True)
class Answer:
    """What one node sent back: a reply of the expected type, or the code of its refusal."""

    node_id: int
    reply: ProfileReply | TrainReply | EvaluateReply | None
    refusal: str = ""


@dataclass
class Round:
    """What is told of a round. Seconds are wall-clock; `evaluation` sums belong to the model the round began with."""

    number: int
    participants: list[int] = field(default_factory=list)
    refused: dict[int, str] = field(default_factory=dict)
    count: int = 0
    train_loss: float = 0.0
    evaluation: Sums | None = None
    seconds: float = 0.0
    seconds_compute: float = 0.0  # the slowest institution's own
    seconds_aggregate: float = 0.0
    bytes_down: int = 0
    bytes_up: int = 0
    attempts: int = 1

    @property
    def overhead_seconds(self) -> float:
        """Round wall-clock less the slowest institution's compute: what the federation itself costs."""
        return max(0.0, self.seconds - self.seconds_compute)


class Fold:
    """A running weighted sum of updates in float64; one reply is held at a time."""

    def __init__(self, parameters: int) -> None:
        self.total = np.empty(parameters, dtype=np.float64)
        self.count = 0

    def add(self, update: Vector, count: int) -> None:
        """Add count · update (shape [d]). The products are exact in float64 below 2^29 records."""
        for start in range(0, update.size, FOLD_CHUNK):
            part = slice(start, start + FOLD_CHUNK)
            if self.count:
                self.total[part] += np.multiply(update[part], count, dtype=np.float64)
            else:
                np.multiply(update[part], count, out=self.total[part], dtype=np.float64)
        self.count += count

    def mean(self) -> Vector:
        """Σ countᵢ·updateᵢ / Σ countᵢ, shape [d], in float32 (FedAvg, arXiv:1602.05629, Algorithm 1)."""
        return np.divide(self.total, self.count, out=self.total).astype(np.float32)


def ask(
    grid: StreamingGrid, nodes: Sequence[int], request: Request, kind: type[R], timeout_s: float
) -> Iterator[Answer]:
    """Send `request` to `nodes` and yield each answer as it arrives; a malformed answer is a refusal, not an error.

    Answers are told apart by the message they reply to, never by the sender that they name.
    """
    content = to_records(request)  # once: every node's message shares the same bytes
    group = str(getattr(request, "round", 0))
    messages = [
        new_message(content, run_id=grid.run.run_id, node_id=node, kind=TYPES[type(request)], group=group)
        for node in nodes
    ]
    del content
    for message in grid.replies(messages, timeout_s):
        node = next((m.metadata.dst_node_id for m in messages if m.metadata.message_id == _parent(message)), None)
        if node is not None:
            yield _answer(node, message, kind)


def _parent(message: FlowerMessage) -> str:
    return message.metadata.reply_to_message_id


def _answer(node: int, message: FlowerMessage, kind: type[R]) -> Answer:
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


def exact_sum(vectors: Sequence[Sums]) -> Sums:
    """Σ of `vectors` (each shape [k]), correctly rounded and so the same in whatever order they came."""
    return np.array([math.fsum(column) for column in zip(*vectors, strict=True)])


def standardisation(profile: Sums) -> Sums:
    """[mean (f), standard deviation (f)] of a profile [n, Σx (f), Σx² (f)]."""
    total, squares = np.split(profile[1:] / max(profile[0], 1.0), 2)
    return np.concatenate([total, np.sqrt(np.maximum(squares - total**2, STD_FLOOR**2))])


class Rounds:
    """The state of a run between rounds and the verbs that advance it."""

    def __init__(self, config: Config, run: str, grid: StreamingGrid, optimizer: ServerOptimizer) -> None:
        self.config, self.run, self.grid, self.optimizer = config, run, grid, optimizer
        self.model: Vector = np.zeros(0, dtype=np.float32)
        self.scale: Sums = np.zeros(0, dtype=np.float64)
        self.sums = 0  # length of the task's evaluation vector
        self.features = 0  # of the task; 0 if it is not standardised

    def cohort(self) -> list[int]:
        """The nodes that are here now, in ascending order; waits up to `server.node_wait_s` for the minimum cohort."""
        wanted, patience = self.config.server.min_cohort, self.config.server.node_wait_s
        deadline = time.monotonic() + patience
        while True:
            nodes = sorted(self.grid.get_node_ids())
            if len(nodes) >= wanted:
                return nodes
            if time.monotonic() > deadline:
                raise CohortError(
                    f"{len(nodes)} institutions are connected after {patience:g} s, minimum cohort is {wanted}"
                )
            time.sleep(0.2)

    def profile(self) -> None:
        """Set `scale` from federated sums: mean and standard deviation of each feature over all training records.

        Σx and Σx² are added over institutions, so no institution's own mean is used or kept.
        """
        request = ProfileRequest(run=self.run, task=self.config.task.name)
        profiles: dict[int, Sums] = {}
        for answer in ask(self.grid, self.cohort(), request, ProfileReply, self.config.server.round_deadline_s):
            if isinstance(answer.reply, ProfileReply) and answer.reply.sums.size == 1 + 2 * self.features:
                profiles[answer.node_id] = answer.reply.sums
            else:
                log.warning("node %d gave no profile: %s", answer.node_id, answer.refusal or "other features")
        if len(profiles) < self.config.server.min_cohort:
            raise CohortError(
                f"{len(profiles)} institutions gave a profile, minimum cohort is {self.config.server.min_cohort}"
            )
        self.scale = standardisation(exact_sum(list(profiles.values())))

    def train(self, number: int) -> Round:
        """Run round `number`, retrying while too few institutions answer. Raises CohortError after MAX_ATTEMPTS."""
        start, down, up = time.monotonic(), self.grid.bytes_down, self.grid.bytes_up
        for attempt in range(1, MAX_ATTEMPTS + 1):
            found = Round(number, attempts=attempt)
            fold = Fold(self.model.size)
            losses = 0.0
            for answer in self._ask_training(number):
                reply = answer.reply
                if not isinstance(reply, TrainReply) or not self._fits(reply, number):
                    found.refused[answer.node_id] = answer.refusal or "malformed"
                    continue
                found.participants.append(answer.node_id)
                found.seconds_compute = max(found.seconds_compute, reply.seconds)
                clock = time.monotonic()
                fold.add(reply.update, reply.count)
                losses += reply.train_loss * reply.count
                found.evaluation = reply.evaluation if found.evaluation is None else found.evaluation + reply.evaluation
                found.seconds_aggregate += time.monotonic() - clock
            if len(found.participants) >= self.config.server.min_cohort:
                break
            log.warning(
                "round %d, attempt %d: %d updates, minimum cohort is %d; refused: %s",
                number, attempt, len(found.participants), self.config.server.min_cohort, found.refused,
            )  # fmt: skip
        else:
            raise CohortError(
                f"round {number}: {len(found.participants)} updates in {MAX_ATTEMPTS} attempts, "
                f"minimum cohort is {self.config.server.min_cohort}; refusals: {sorted(set(found.refused.values()))}"
            )
        clock = time.monotonic()
        self.model = self.optimizer.step(number, self.model, fold.mean())
        found.seconds_aggregate += time.monotonic() - clock
        found.count, found.train_loss = fold.count, losses / fold.count
        found.bytes_down, found.bytes_up = self.grid.bytes_down - down, self.grid.bytes_up - up
        found.seconds = time.monotonic() - start
        return found

    def _ask_training(self, number: int) -> Iterable[Answer]:
        task, strategy = self.config.task, self.config.strategy
        request = TrainRequest(
            run=self.run, round=number, task=task.name, seed=self.config.seed, local_epochs=task.local_epochs,
            batch_size=task.batch_size, learning_rate=task.learning_rate, proximal_mu=strategy.proximal_mu,
            model=self.model, scale=self.scale,
        )  # fmt: skip
        return ask(self.grid, self.cohort(), request, TrainReply, self.config.server.round_deadline_s)

    def _fits(self, reply: TrainReply, number: int) -> bool:
        """Whether the update has this round's number and the model's shape, and the sums the task's length."""
        return (
            reply.round == number and reply.update.shape == self.model.shape and reply.evaluation.shape == (self.sums,)
        )

    def evaluate(self, number: int) -> dict[int, Sums]:
        """Each institution's metric sums of the model after round `number`, by node id."""
        request = EvaluateRequest(
            run=self.run, round=number, task=self.config.task.name, model=self.model, scale=self.scale
        )
        answers = ask(self.grid, self.cohort(), request, EvaluateReply, self.config.server.round_deadline_s)
        return {
            answer.node_id: answer.reply.evaluation
            for answer in answers
            if isinstance(answer.reply, EvaluateReply) and answer.reply.evaluation.shape == (self.sums,)
        }
