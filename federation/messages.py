"""The messages between the coordinator and an institution's trainer: all that may be said, and within what bounds.

A message is a frozen dataclass of scalars and flat vectors, which `federation/codec.py` takes apart and, once all of it
is checked, puts together again. Nothing is pickled and no message names code.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Final, TypeAlias

import numpy as np

from sovfed.federation import vectors as flat
from sovfed.federation.algorithms import FEDAVG, LOCAL
from sovfed.federation.errors import WIRE_SENTENCES
from sovfed.federation.plan import SGD, LocalPlan
from sovfed.federation.schema import bounded, choice, named

MAX_PARAMETERS: Final = flat.MAX_PARAMETERS
Vector: TypeAlias = flat.Vector
Sums: TypeAlias = flat.Sums
Bytes: TypeAlias = flat.Bytes
Words: TypeAlias = flat.Words
OWN: Final = "own"
NORMALISATIONS: Final = (OWN, "group")  # of a task's model: as it is built, or GroupNorm for BatchNorm
SEALS: Final = ("", "none", "own namespace", "seccomp", "own namespace + seccomp")  # "": not told, a simulation
ORDERS: Final = ("", "signed", "standing", "awaiting", "refused", "withdrawn")  # "": not asked for, a simulation
STEPS: Final = ("offer", "roster", "capsules", "confirmations", "reveal")


def _vector(dtype: str) -> Any:
    return dataclasses.field(metadata={"dtype": dtype})


def _empty(dtype: str) -> Any:
    return dataclasses.field(default_factory=lambda: np.zeros(0, dtype=dtype), metadata={"dtype": dtype})


LATER: Final = frozenset({"person_records", "rate_units", "hold", "base", "becomes", "change", "keep_state"})
"""Fields that messages were sent without at first. With their default they are in nothing that is sent, signed or
digested: so an older peer, an order signed before, and a plan that a ledger keeps still fit after an upgrade."""


def _digest() -> Any:
    """The digest of the task (`Task.digest`) as the coordinator has it, 64 hexadecimal digits."""
    return bounded("", 0, 64)


def _begin() -> Any:
    """M1 of a sum that is taken by secure aggregation; empty: the reply is the institution's own, in the clear."""
    return _empty("uint8")


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class LocalWork:
    """What a request says of local training beside epochs, batch size and learning rate; fields of `LocalPlan`."""

    optimizer: str = named(SGD)
    momentum: float = bounded(0.0, 0.0, 0.999999)
    nesterov: bool = bounded(False)
    beta_1: float = bounded(0.9, 0.0, 0.999999)
    beta_2: float = bounded(0.999, 0.0, 0.999999)
    epsilon: float = bounded(1e-8, 1e-12, 1.0)
    weight_decay: float = bounded(0.0, 0.0, 1e3)
    gradient_clip: float = bounded(0.0, 0.0, 1e6)
    accumulation: int = bounded(1, 1, 10_000)
    local_steps: int = bounded(0, 0, 1_000_000)

    def _plan(self, **more: Any) -> LocalPlan:
        return LocalPlan(**local_work(self), **more)


def local_work(request: LocalWork) -> dict[str, Any]:
    """What `request` says of local training, for another request."""
    return {name: getattr(request, name) for name in _LOCAL_WORK}


_LOCAL_WORK: Final = tuple(field.name for field in dataclasses.fields(LocalWork))


@dataclasses.dataclass(frozen=True, eq=False)
class ProfileRequest:
    """Ask for the feature totals that federated standardisation needs (no model yet)."""

    run: str = named()
    task: str = named()
    begin: Bytes = _begin()
    normalisation: str = choice(OWN, NORMALISATIONS)
    digest: str = _digest()


@dataclasses.dataclass(frozen=True, eq=False)
class ProfileReply:
    """`sums` = [present (f), Σu (f), Σu² (f)] over the training records (`Transform.profile`), shape [3f]."""

    sums: Sums = _vector("float64")


@dataclasses.dataclass(frozen=True, eq=False)
class TrainRequest(LocalWork):
    """Evaluate `model` on the held-out records, then train it locally on the training records.

    `model` is the flat parameter vector, shape [d]; `scale` is [mean (f), standard deviation (f)], shape [2f]. `keep`
    is the name under which the institution keeps what `algorithm` carries from round to round; a resumed run has the
    same. `control` is SCAFFOLD's c, shape [d], and empty for the others. `normalisation` is `TaskConfig`'s.
    `rate_start` and `rate_end` are the shares of `learning_rate` as the round begins and ends. Without `evaluate`
    nothing is evaluated, and zeros stand for it. With `rate_units` an update is sent in multiples of `LocalPlan.reach`.

    With `keep_state` the optimizer goes on with what the institution kept of it in the round before, and keeps it.

    With `hold` the institution holds `model` until the next round's is there, which may then come as a `change`
    (`federation/changes.py`) in its place: to the model whose digest (`hash_vector`, hex) is `base`, of which the one
    with the digest `becomes` comes. Before anything else looks at the request, it is put together again.
    """

    run: str = named()
    round: int = bounded(low=1, high=1_000_000)
    task: str = named()
    seed: int = bounded(low=0, high=2**63 - 1)
    local_epochs: int = bounded(low=1, high=10_000)
    batch_size: int = bounded(low=1, high=1_000_000)
    learning_rate: float = bounded(low=1e-9, high=1e3)
    proximal_mu: float = bounded(low=0.0, high=1e6)
    model: Vector = _vector("float32")
    scale: Sums = _vector("float64")
    begin: Bytes = _begin()
    algorithm: str = choice(FEDAVG.local, LOCAL)
    keep: str = named("", 0, 128)
    personal_lambda: float = bounded(0.0, 0.0, 1e6)
    control: Vector = _empty("float32")
    normalisation: str = choice(OWN, NORMALISATIONS)
    digest: str = _digest()
    rate_start: float = bounded(1.0, 0.0, 1.0)
    rate_end: float = bounded(1.0, 0.0, 1.0)
    evaluate: bool = bounded(True)
    rate_units: bool = bounded(False)
    keep_state: bool = bounded(False)
    hold: bool = bounded(False)
    base: str = bounded("", 0, 64)
    becomes: str = bounded("", 0, 64)
    change: Bytes = _empty("uint8")

    @property
    def units(self) -> LocalPlan | None:
        """The plan in whose reaches the update's trained values are sent; None: as they are."""
        return self.plan if self.rate_units else None

    @property
    def plan(self) -> LocalPlan:
        """The institution's work in this round."""
        return self._plan(
            local_epochs=self.local_epochs, batch_size=self.batch_size, proximal_mu=self.proximal_mu,
            learning_rate=self.rate_start * self.learning_rate, final_rate=self.rate_end * self.learning_rate,
        )  # fmt: skip

    @property
    def update_size(self) -> int:
        """Length of the update that answers this."""
        return self.model.size + self.control.size


@dataclasses.dataclass(frozen=True, eq=False)
class TrainReply:
    """`update` = local − global, shape [d]; `count` training records; `evaluation` sums of the model in use there.

    `steps` are the gradient steps taken. SCAFFOLD's update is [local − global, cᵢ⁺], shape [2d]; FedNova's is divided
    by `steps`; FedBN's is zero at the normalisation layers.
    """

    round: int = bounded(low=1, high=1_000_000)
    count: int = bounded(low=1, high=2**53)
    seconds: float = bounded(low=0.0, high=1e9)
    train_loss: float = bounded(low=-1e30, high=1e30)
    update: Vector = _vector("float32")
    evaluation: Sums = _vector("float64")
    steps: int = bounded(1, 1, 2**31 - 1)


@dataclasses.dataclass(frozen=True, eq=False)
class PrivateRequest(LocalWork):
    """Train `model` (shape [d]) under differential privacy; the reply is masked, and says nothing but its sum.

    With `statistics` persons are counted instead (`federation/statistics/question.py`), and only the length of `model`
    is used. With `candidates`, as in `EvaluateRequest`, the one at place `round` is scored on held-out records:
    `scores` is the length of its sums (`federation/statistics/scores.py`), `scale` as in `TrainRequest`, and else both
    are empty. Everything is a public constant of the run. The first round asks the institution's ledger for rounds ·
    steps + spare steps under the name `grant`, which a resumed run keeps.
    """

    run: str = named()
    grant: str = named(high=128)
    round: int = bounded(low=1, high=1_000_000)
    task: str = named()
    mechanism: str = choice(dataclasses.MISSING, ("distributed", "silo", "institution"))
    rounds: int = bounded(low=1, high=1_000_000)
    steps: int = bounded(low=1, high=10_000)
    spare: int = bounded(low=0, high=10_000)
    noise_multiplier: float = bounded(low=0.05, high=1e6)
    sampling_rate: float = bounded(low=1e-9, high=1.0)
    clip: float = bounded(low=1e-6, high=1e6)
    delta: float = bounded(low=1e-15, high=1e-2)
    honest: int = bounded(low=1, high=255)
    grid_bits: int = bounded(low=8, high=24)
    batch: float = bounded(low=1e-9, high=1e10)
    seed: int = bounded(low=0, high=2**63 - 1)
    local_epochs: int = bounded(low=1, high=10_000)
    batch_size: int = bounded(low=1, high=1_000_000)
    learning_rate: float = bounded(low=1e-9, high=1e3)
    model: Vector = _vector("float32")
    begin: Bytes = _begin()
    normalisation: str = choice(OWN, NORMALISATIONS)
    digest: str = _digest()
    statistics: str = bounded("", 0, 4096)
    candidates: str = bounded("", 0, 4096)
    scores: int = bounded(0, 0, 64)
    person_records: int = bounded(0, 0, 100_000)
    scale: Sums = _empty("float64")

    @property
    def width(self) -> int:
        """Length of the vector that answers it."""
        return self.scores if self.candidates else self.model.size

    @property
    def plan(self) -> LocalPlan:
        """The local training whose update is released; under `institution` only."""
        rate = self.learning_rate
        return self._plan(
            local_epochs=self.local_epochs, batch_size=self.batch_size, learning_rate=rate, final_rate=rate
        )


@dataclasses.dataclass(frozen=True, eq=False)
class EvaluateRequest:
    """Evaluate `model` (shape [d]) on the held-out records; `scale`, `algorithm` and `keep` as in `TrainRequest`.

    `candidates` are the digests of all models of a run that scores and does not train, this one's at place `round`,
    with commas (`federation/orders/candidates.py`).
    """

    run: str = named()
    round: int = bounded(low=0, high=1_000_000)
    task: str = named()
    model: Vector = _vector("float32")
    scale: Sums = _vector("float64")
    begin: Bytes = _begin()
    algorithm: str = choice(FEDAVG.local, LOCAL)
    keep: str = named("", 0, 128)
    normalisation: str = choice(OWN, NORMALISATIONS)
    digest: str = _digest()
    candidates: str = bounded("", 0, 4096)


@dataclasses.dataclass(frozen=True, eq=False)
class EvaluateReply:
    """`evaluation` = the task's metric sums over the held-out records (`federation/metrics.py`), shape [k]."""

    round: int = bounded(low=0, high=1_000_000)
    seconds: float = bounded(low=0.0, high=1e9)
    evaluation: Sums = _vector("float64")


@dataclasses.dataclass(frozen=True, eq=False)
class MaskedReply:
    """M2: what a request with `begin` is answered with. `message` and its `payload`, the masked words, shape [w].

    `seconds` of computing is the only thing that the institution tells about itself.
    """

    seconds: float = bounded(low=0.0, high=1e9)
    message: Bytes = _vector("uint8")
    payload: Words = _vector("uint64")


@dataclasses.dataclass(frozen=True, eq=False)
class PrivateReply:
    """M2 in answer to a `PrivateRequest`: without `seconds`, which depend on how many persons were sampled."""

    message: Bytes = _vector("uint8")
    payload: Words = _vector("uint64")


@dataclasses.dataclass(frozen=True, eq=False)
class RunRequest:
    """Ask, before anything else of a run, whether the policy would answer all of it; nothing is computed.

    `request` is JSON: the scalars of the last round's request (`codec.last_of`), of the kind `request_kind`. Beside it,
    what it cannot say without a model: its length, `masked` for secure aggregation under the ring `bits`, `clip`,
    `max_weight`, and how many sums and evaluations without privacy there will be at most. `order` is the run's proposal
    (`federation/orders/order.py`), by which the institution's officers know it.
    """

    run: str = named()
    request: Bytes = _vector("uint8")
    parameters: int = bounded(low=0, high=MAX_PARAMETERS)
    sums: int = bounded(low=0, high=10**9)
    evaluations: int = bounded(low=0, high=10**9)
    min_cohort: int = bounded(low=1, high=100_000)
    bits: int = bounded(low=1, high=64)
    clip: float = bounded(low=1e-9, high=1e9)
    max_weight: int = bounded(low=1, high=2**53)
    request_kind: str = choice("train", ("train", "private", "evaluate"))
    masked: bool = bounded(True)
    order: Bytes = _empty("uint8")


@dataclasses.dataclass(frozen=True, eq=False)
class RunReply:
    """`beyond` names the settings of the institution's policy that the run is beyond, with commas; empty: none.

    `order` is what became of the run's order here; `answer` the institution's signed word on it, if it gave one.
    """

    beyond: str = bounded("", 0, 1_024)
    order: str = choice("", ORDERS)
    answer: Bytes = _empty("uint8")


@dataclasses.dataclass(frozen=True, eq=False)
class SecaggRequest:
    """The other messages of secure aggregation: the steps of its setup, and M3 (`reveal`)."""

    run: str = named()
    body: Bytes = _vector("uint8")
    step: str = choice("offer", STEPS)


@dataclasses.dataclass(frozen=True, eq=False)
class SecaggReply:
    """The institution's answer to a `SecaggRequest`; empty where the step ends the setup.

    `seal` says, with the first step, what keeps the trainer from the network: the institution's own word.
    """

    body: Bytes = _vector("uint8")
    step: str = choice("offer", STEPS)
    seal: str = choice("", SEALS)


@dataclasses.dataclass(frozen=True, eq=False)
class LedgerRequest:
    """Ask where the institution's privacy ledger stands and, with a `head`, countersign entry `seq` of it for `run`.

    `head` is 32 bytes, or none; `own` the institution's signature that came with it (`told_head` of `secagg/keys.py`),
    and `signature` that of the coordinator's `certificate` (DER), over `countersigned_head`.
    """

    run: str = named()
    head: Bytes = _vector("uint8")
    own: Bytes = _vector("uint8")
    certificate: Bytes = _vector("uint8")
    signature: Bytes = _vector("uint8")
    seq: int = bounded(0, 0, 2**53)


@dataclasses.dataclass(frozen=True, eq=False)
class LedgerReply:
    """The newest entry of the institution's ledger: its head (32 bytes), with `signature` by `certificate` (DER)."""

    head: Bytes = _vector("uint8")
    certificate: Bytes = _vector("uint8")
    signature: Bytes = _vector("uint8")
    seq: int = bounded(0, 0, 2**53)


@dataclasses.dataclass(frozen=True, eq=False)
class ReleaseRequest:
    """The model that the run ended with, `model` (shape [d]) and its `scale` as in `TrainRequest`, for the institution.

    With `statistics` it is a table: `model` the noised sums and `scale` their noise's standard deviation, shape [1].
    `table` is a table as the agency signed it (`federation/release/sheet.py`), of statistics or of scores; with scores
    there is neither model nor scale.
    `round` is the one that it is of, `facts` JSON of the run it came of (`told` of `federation/models/facts.py`), and
    `sha256` the digest of the file that the agency published. Nothing is computed from records for it.
    """

    run: str = named()
    round: int = bounded(low=0, high=1_000_000)
    task: str = named()
    model: Vector = _vector("float32")
    scale: Sums = _vector("float64")
    facts: Bytes = _vector("uint8")
    sha256: str = bounded(low=64, high=64)
    normalisation: str = choice(OWN, NORMALISATIONS)
    digest: str = _digest()
    statistics: str = bounded("", 0, 4096)
    table: Bytes = _empty("uint8")

    @property
    def of_scores(self) -> bool:
        """Whether it is a table of scores: a signed one, and nothing beside it."""
        return bool(self.table.size) and not self.statistics


@dataclasses.dataclass(frozen=True)
class ReleaseReply:
    """The model has arrived: an acknowledgement, and nothing of records, disk or whether it was kept."""


@dataclasses.dataclass(frozen=True, eq=False)
class LaneOffer:
    """Asks the gateway to open the run's lane; `token` is spent by the first stream that shows it.

    `issued` is in ms of Unix time; `signature` (64 bytes) is by the agency's `certificate` (DER): `lane_offer.py`.
    """

    run: str = named()
    address: str = bounded(low=1, high=255)
    token: str = bounded(low=32, high=128)
    issued: int = bounded(low=0, high=2**53)
    certificate: Bytes = _vector("uint8")
    signature: Bytes = _vector("uint8")


@dataclasses.dataclass(frozen=True)
class LaneReply:
    """Whether the gateway will open the stream."""

    accepted: bool = False


@dataclasses.dataclass(frozen=True)
class Refusal:
    """A failure at the institution: a code and nothing else; `sentence` is fixed by the code."""

    reason: str = choice("failed", WIRE_SENTENCES)

    @property
    def sentence(self) -> str:
        return WIRE_SENTENCES[self.reason]


Message: TypeAlias = (
    RunRequest | RunReply
    | ProfileRequest | ProfileReply | TrainRequest | TrainReply | PrivateRequest | EvaluateRequest | EvaluateReply
    | MaskedReply | PrivateReply | SecaggRequest | SecaggReply | LedgerRequest | LedgerReply | ReleaseRequest
    | ReleaseReply | LaneOffer | LaneReply | Refusal
)  # fmt: skip
SumRequest: TypeAlias = ProfileRequest | TrainRequest | PrivateRequest | EvaluateRequest  # its replies are added up
LastRequest: TypeAlias = TrainRequest | PrivateRequest | EvaluateRequest  # by which a whole run is told
Request: TypeAlias = RunRequest | SumRequest | SecaggRequest | LedgerRequest | ReleaseRequest
MaskedSum: TypeAlias = MaskedReply | PrivateReply
Reply: TypeAlias = (
    RunReply
    | ProfileReply
    | TrainReply
    | EvaluateReply
    | MaskedSum
    | SecaggReply
    | LedgerReply
    | ReleaseReply
    | Refusal
)
KINDS: Final[dict[str, type[Any]]] = {
    "profile": ProfileRequest,
    "profile-reply": ProfileReply,
    "train": TrainRequest,
    "train-reply": TrainReply,
    "private": PrivateRequest,
    "evaluate": EvaluateRequest,
    "evaluate-reply": EvaluateReply,
    "masked-reply": MaskedReply,
    "private-reply": PrivateReply,
    "run": RunRequest,
    "run-reply": RunReply,
    "secagg": SecaggRequest,
    "secagg-reply": SecaggReply,
    "ledger": LedgerRequest,
    "ledger-reply": LedgerReply,
    "release": ReleaseRequest,
    "release-reply": ReleaseReply,
    "lane-offer": LaneOffer,
    "lane-reply": LaneReply,
    "refusal": Refusal,
}
