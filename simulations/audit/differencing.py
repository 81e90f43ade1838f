"""Can a malicious agency subtract opened sums from each other? Every way that we know, against real trainers.

The agency chooses cohorts, numbers, attempts, epochs, runs and which holders it asks; up to c holders side with it:
they forget what they answered and answer everything. The institutions are the shipped trainers with the default
policy for differencing, real keys, ledgers on disk, and an in-memory Grid. Counted are, of each private release that
left an institution, the opened sums that hold it and the charge in the ledger, and of sums without privacy those that
opened although their institutions were almost those of an earlier one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final
from unittest.mock import patch

import numpy as np

from sovfed.clients.ledger.book import PrivacyLedger, replay
from sovfed.clients.ledger.entries import Budget
from sovfed.clients.ledger.file import create_ledger, read_ledger
from sovfed.clients.node.app import make_client_app
from sovfed.clients.trainer.admission import sums_width
from sovfed.clients.trainer.books import Books
from sovfed.clients.trainer.masking import Maskable, Masking, PrivateUpdate
from sovfed.clients.trainer.service import TrainerService, make_trainer
from sovfed.clients.training.private import PrivateTraining, SumNumber
from sovfed.federation.compose import compose
from sovfed.federation.config import DataConfig
from sovfed.federation.errors import CohortError
from sovfed.federation.files import private_directory
from sovfed.federation.messages import (
    EvaluateRequest,
    MaskedSum,
    PrivateRequest,
    ProfileRequest,
    Reply,
    Request,
    SecaggRequest,
    SumRequest,
    TrainRequest,
    Vector,
)
from sovfed.federation.secagg import client
from sovfed.federation.secagg.client import Permit
from sovfed.federation.secagg.coordinator import Aggregate, Round
from sovfed.federation.secagg.files import MemoryStore
from sovfed.federation.secagg.history import History
from sovfed.federation.secagg.local import Authority
from sovfed.federation.secagg.terms import RECORD, REFUSE, Terms, colluders_tolerated, threshold
from sovfed.federation.tasks import initial_vector
from sovfed.federation.tasks.registry import get_task
from sovfed.server.rounds.aggregation import Total
from sovfed.server.rounds.epochs import Epoch
from sovfed.server.rounds.ledger_heads import LedgerHeads
from sovfed.server.rounds.patience import Patience
from sovfed.server.rounds.privacy import PrivacyPlan
from sovfed.server.rounds.secure_aggregation import SecureAggregation
from sovfed.simulations.grid import InMemoryGrid

if TYPE_CHECKING:
    from flwr.clientapp import ClientApp

TASK: Final = "digits_linear"
SAME_COLUMNS: Final = "digits"  # another task over the same records
SOURCE: Final = "digits"
BUDGET: Final = Budget(epsilon=1e3, annual_epsilon=1e3, max_share_per_run=1.0)  # charges are looked at, not limits
SPARE: Final = 20  # repeats that the plans grant, so that a refusal is the protocol's and not the budget's


@dataclass(frozen=True)
class DifferencingAudit:
    """One way, with `colluders` holders on the agency's side: what came of it."""

    way: str
    institutions: int
    colluders: int
    opened: int
    sums_per_release: int
    uncharged: int
    near_answered: int


@dataclass
class Releases:
    """Which private release went under which context, at each institution, and which contexts opened over whom."""

    masked: dict[tuple[int, bytes], str] = field(default_factory=dict)
    opened: list[tuple[bytes, tuple[int, ...]]] = field(default_factory=list)

    def distinct(self, node: int) -> set[str]:
        return {release for (at, _), release in self.masked.items() if at == node}

    def most_sums(self) -> int:
        """The most opened sums that hold one release."""
        counts: Counter[tuple[int, str]] = Counter()
        for ctx, nodes in self.opened:
            counts.update((node, self.masked[node, ctx]) for node in nodes if (node, ctx) in self.masked)
        return max(counts.values(), default=0)


class Watched(Masking):
    """An institution's masking that notes which release it masks under which context."""

    node = 0
    releases = Releases()

    def mask(
        self, run: str, permit: Permit, reply: Maskable, seconds: Callable[[], float], spoilt: bool = False
    ) -> MaskedSum:
        if isinstance(reply, PrivateUpdate):
            digest = hashlib.sha256(reply.vector.tobytes()).hexdigest()
            self.releases.masked[self.node, permit.ctx] = digest
        return super().mask(run, permit, reply, seconds, spoilt)


class Agency(SecureAggregation):
    """A coordinator that asks whom it likes, under any number, and never gives up a cohort."""

    holders: Collection[int] | None = None
    opened: tuple[bytes, tuple[int, ...]] | None = None

    def set_up(self, nodes: Collection[int]) -> None:
        """A new epoch over `nodes`."""
        self._epoch = None
        super()._ready(sorted(nodes))

    def take_opened(self) -> tuple[bytes, tuple[int, ...]] | None:
        """Context and nodes of the sum that opened since this was called last."""
        last_opened, self.opened = self.opened, None
        return last_opened

    def again(self) -> None:
        """Let the next sum be another attempt at the last number."""
        self._number -= 1
        self._attempt = 2

    def _ready(self, nodes: Sequence[int]) -> Epoch:
        return self._epoch or super()._ready(nodes)

    def _again(self, key: object, nodes: frozenset[int]) -> frozenset[int]:
        return nodes

    def _await_steady(self, here: frozenset[int]) -> frozenset[int]:
        return here

    def _answers(
        self,
        step: str,
        bodies: Mapping[int, bytes],
        timeout_s: float,
        refused: dict[int, str],
        patience: Patience | None = None,
    ) -> Iterator[tuple[int, bytes]]:
        if step == "reveal" and self.holders is not None:
            bodies = {node: body for node, body in bodies.items() if node in self.holders}
        return super()._answers(step, bodies, timeout_s, refused, patience)

    def _reveal(self, round_: Round, members: Mapping[int, int]) -> tuple[Aggregate | None, str]:
        aggregate, missing = super()._reveal(round_, members)
        nodes = tuple(node for node, index in members.items() if round_.roster.names[index] in round_.survivors)
        self.opened = (round_.ctx, nodes) if aggregate is not None else None
        return aggregate, missing


class World:
    """`count` institutions of which the last `colluders` side with the agency."""

    def __init__(self, count: int, colluders: int, folder: Path, *, differencing: str = REFUSE) -> None:
        self.count, self.folder, self.releases = count, folder, Releases()
        self.nodes = list(range(1, count + 1))
        self.colluders = self.nodes[count - colluders :]
        self.least = max(1, colluders) + 3
        self.authority = Authority()
        self.apps: dict[int, ClientApp] = {}
        self.trainers: dict[int, TrainerService] = {}
        self.stores: dict[int, MemoryStore] = {}
        self.config = compose(
            [
                f"task={TASK}", "privacy=distributed", "privacy.population=2000", "privacy.sampling_rate=1.0",
                f"privacy.colluders={self.least - 3}", f"server.min_cohort={self.least}", "rounds=20",
                f"privacy.spare_steps={SPARE}",
            ]
        ).config  # fmt: skip
        self.terms = Terms(min_cohort=self.least, colluders=self.least - 3, differencing=differencing)
        self.task, self.grid = get_task(TASK), InMemoryGrid(self.apps)
        self.model: Vector = initial_vector(self.task, 0)
        for node in self.nodes:
            self._add(node)
        self.sums = 0

    def _add(self, node: int) -> None:
        identity, store = self.authority.institution(f"hospital-{node:02d}"), MemoryStore()
        masking = Watched(lambda: identity, lambda: store, self.terms)
        masking.node, masking.releases = node, self.releases
        home = self.folder / str(node)
        home.mkdir(mode=0o700)
        create_ledger(home, BUDGET.population_name, time.time())
        ledger = PrivacyLedger(home, BUDGET)
        data = DataConfig(source=SOURCE, site=str(node - 1), sites=self.count)
        config = dataclasses.replace(self.config.client, data=data)
        self.trainers[node] = make_trainer(config, books=Books(lambda: ledger), masking=masking)
        self.apps[node], self.stores[node] = make_client_app(self.trainers[node]), store

    def agency(self, run: str) -> Agency:
        """The same agency in a run of that name, in which it has shown what it knows of the ledgers."""
        identity = self.authority.server("agency.test")
        names = {node: f"hospital-{node:02d}" for node in self.nodes}
        LedgerHeads(private_directory(self.folder / "agency"), identity).countersign(self.grid, run, names)
        return Agency(
            self.grid, identity, self.config.secagg, run=run, min_cohort=self.least,
            deadline_s=60.0, wait_s=0.0, max_size=get_task(SAME_COLUMNS).parameters, config_digest=bytes(32),
        )  # fmt: skip

    def plan(self, mechanism: str) -> PrivacyPlan:
        privacy = dataclasses.replace(self.config.privacy, mechanism=mechanism, local_steps=1)
        config = dataclasses.replace(self.config, privacy=privacy)
        return PrivacyPlan.make(config, f"grant-{mechanism}", self.task.parameters)

    def collect(
        self, agency: Agency, request: SumRequest, nodes: Collection[int], holders: Collection[int] | None = None
    ) -> Total | None:
        """Ask `nodes`, then `holders` and all colluders; None where no sum comes out."""
        self.forget()
        agency.holders = None if holders is None else {*holders, *self.colluders}
        total = None
        with suppress(CohortError):
            total = agency.collect(request, sorted(nodes), sums_width(request, get_task(request.task)))
        opened = agency.take_opened()
        if opened is None:
            return None
        self.sums += 1
        self.releases.opened.append(opened)
        return total

    def forget(self) -> None:
        """The colluders forget what they answered."""
        for node in self.colluders:
            history = History()
            history.epochs, history.rosters = self.stores[node].history.epochs, self.stores[node].history.rosters
            self.stores[node].history = history

    def uncharged(self) -> int:
        """Releases that left an institution beyond those that its ledger shows."""
        return sum(
            max(0, len(self.releases.distinct(node)) - self._spends(node))
            for node in self.nodes
            if node not in self.colluders
        )

    def _spends(self, node: int) -> int:
        return len(replay(read_ledger(self.folder / str(node), BUDGET.population_name)[0]).spends)

    def train(self, run: str, *, model: Vector | None = None, task: str = TASK) -> TrainRequest:
        definition = get_task(task)
        start = initial_vector(definition, 0) if model is None else model
        return TrainRequest(
            run=run, round=1, task=task, seed=0, local_epochs=1, batch_size=64, learning_rate=0.1, proximal_mu=0.0,
            model=start, scale=definition.transform.public_scale, algorithm="sgd", keep="audit",
            digest=definition.digest,
        )  # fmt: skip

    def evaluate(self, run: str) -> EvaluateRequest:
        return EvaluateRequest(
            run=run, round=1, task=TASK, model=self.model, scale=self.task.transform.public_scale, algorithm="sgd",
            keep="audit", digest=self.task.digest,
        )  # fmt: skip


def two_cohorts(world: World, mechanism: str) -> None:
    """The same private request over two cohorts that share some, by quorums that share as few holders as they can."""
    agency, plan = world.agency("two-cohorts"), world.plan(mechanism)
    agency.set_up(world.nodes)
    honest = [node for node in world.nodes if node not in world.colluders]
    cohorts = world.nodes[: world.least], world.nodes[world.least - 1 : 2 * world.least - 1]
    for cohort, holders in zip(cohorts, (honest, honest[::-1]), strict=True):
        needed = threshold(world.count) - len(world.colluders)
        world.collect(agency, plan.request("two-cohorts", 1, world.model), cohort, holders[:needed])


def three_sums(world: World, mechanism: str) -> None:
    """S1 = A ∪ B ∪ {v}, S2 = A, S3 = B: together they isolate v, where no two of them do."""
    agency, plan = world.agency("three-sums"), world.plan(mechanism)
    agency.set_up(world.nodes)
    honest = [node for node in world.nodes if node not in world.colluders]
    a, b = world.nodes[: world.least], world.nodes[world.least : 2 * world.least]
    needed, third = threshold(world.count) - len(world.colluders), len(honest) // 3
    turns = honest, honest[third:] + honest[:third], honest[::-1]
    for cohort, holders in zip(([*a, *b, world.nodes[2 * world.least]], a, b), turns, strict=True):
        world.collect(agency, plan.request("three-sums", 1, world.model), cohort, holders[:needed])


def attempt_after_a_reveal(world: World, mechanism: str) -> None:
    """A sum is asked of too few holders, then another attempt at it, with fewer institutions, of the others.

    The holders are then at odds, and nothing more opens of this model: that agency only harms its own run.
    """
    agency, plan = world.agency("attempts"), world.plan(mechanism)
    agency.set_up(world.nodes)
    honest = [node for node in world.nodes if node not in world.colluders]
    half = threshold(world.count) - len(world.colluders) - 1
    request = plan.request("attempts", 1, world.model)
    world.collect(agency, request, world.nodes, honest[:half])
    agency.again()
    world.collect(agency, request, world.nodes[1:], honest[half:])
    agency.again()
    world.collect(agency, request, world.nodes, honest)
    world.collect(agency, request, world.nodes)  # and under another number


def two_epochs(world: World, mechanism: str) -> None:
    """The same request under a second roster, of which the first one's quorum knows as little as possible."""
    agency, plan = world.agency("epochs"), world.plan(mechanism)
    request = plan.request("epochs", 1, world.model)
    agency.set_up(world.nodes)
    honest = [node for node in world.nodes if node not in world.colluders]
    world.collect(agency, request, world.nodes, honest[: threshold(world.count) - len(world.colluders)])
    with suppress(CohortError):
        agency.set_up(world.nodes[1:])
        world.collect(agency, request, world.nodes[1:])


RELEASED: Final = (two_cohorts, three_sums, attempt_after_a_reveal, two_epochs)


def near_repeats(world: World) -> Iterator[tuple[str, int]]:
    """Each way to have two sums without privacy over almost the same institutions, and how many of them opened.

    What opens first is over all, what must not open is over all but the first, which drops out or is not asked.
    """
    everybody, fewer = world.nodes, world.nodes[1:]
    bit = world.model.copy()
    bit[0] = np.nextafter(bit[0], np.float32(9))
    ways: list[tuple[str, Callable[[str], SumRequest], Callable[[str], SumRequest], bool]] = [
        ("two runs, PROFILE", _profile, _profile, True),
        ("two runs, TRAIN", world.train, world.train, True),
        ("two runs, EVALUATE", world.evaluate, world.evaluate, True),
        ("one changed bit", world.train, lambda run: world.train(run, model=bit), False),
        ("PROFILE − TRAIN", _profile, world.train, False),
        ("EVALUATE − TRAIN", world.evaluate, world.train, False),
        ("another task, same columns", world.train, lambda run: world.train(run, task=SAME_COLUMNS), False),
    ]
    for index, (name, first, second, new_run) in enumerate(ways):
        run = f"near-{index}"
        agency = world.agency(run)
        agency.set_up(everybody)
        if world.collect(agency, first(run), everybody) is None:
            raise CohortError(f"{name}: the sum over all institutions did not open, so nothing was tried")
        if new_run:
            run = f"{run}-again"
            agency = world.agency(run)
            agency.set_up(everybody)
        answered = int(world.collect(agency, second(run), fewer) is not None)  # announced
        agency.set_up(everybody)
        with _deaf(world, everybody[0]):
            answered += int(world.collect(agency, second(run), everybody) is not None)  # drops out
        with suppress(CohortError):
            agency = world.agency(f"{run}-fewer")
            agency.set_up(fewer)
            answered += int(world.collect(agency, second(f"{run}-fewer"), fewer) is not None)  # another roster
        yield name, answered


def _profile(run: str) -> ProfileRequest:
    return ProfileRequest(run=run, task=TASK, digest=get_task(TASK).digest)


@contextmanager
def _deaf(world: World, node: int) -> Iterator[None]:
    """The institution at `node` has joined and then gives no upload."""
    app = world.apps[node]
    world.apps[node] = make_client_app(_Lost(world.trainers[node]))
    try:
        yield
    finally:
        world.apps[node] = app


class _Lost:
    """A trainer whose answers to everything but secure aggregation's own steps are lost."""

    def __init__(self, trainer: TrainerService) -> None:
        self._trainer = trainer

    def answer(self, request: Request) -> Reply:
        if isinstance(request, SecaggRequest):
            return self._trainer.answer(request)
        raise ConnectionError("lost")


def audit_releases(
    count: int, colluders: int, *, broken: bool = False, mechanisms: Sequence[str] = ("distributed", "silo")
) -> list[DifferencingAudit]:
    """Every way to have a private release in two sums; `broken`: against institutions without the rules."""
    audits = []
    for mechanism in mechanisms:
        for release in RELEASED:
            with tempfile.TemporaryDirectory() as folder, _quiet(), _rules_off() if broken else nullcontext():
                world = World(count, colluders, Path(folder))
                if release is three_sums and 2 * world.least >= count:
                    continue
                release(world, mechanism)
                audits.append(
                    DifferencingAudit(
                        f"{release.__name__.replace('_', ' ')}, {mechanism}", count, colluders, world.sums,
                        world.releases.most_sums(), world.uncharged(), 0,
                    )
                )  # fmt: skip
    return audits


def audit_near(count: int, colluders: int, *, differencing: str = REFUSE) -> list[DifferencingAudit]:
    """Every way to have two sums without privacy that differ by one institution, under the policy `differencing`."""
    with tempfile.TemporaryDirectory() as folder, _quiet():
        world = World(count, colluders, Path(folder), differencing=differencing)
        return [
            DifferencingAudit(name, count, colluders, world.sums, 0, 0, answered)
            for name, answered in near_repeats(world)
        ]


def recorded(count: int) -> int:
    """How many sums an institution whose policy says "record" names, of one run that lost an institution."""
    with tempfile.TemporaryDirectory() as folder, _quiet():
        world = World(count, 0, Path(folder), differencing=RECORD)
        agency = world.agency("record")
        agency.set_up(world.nodes)
        world.collect(agency, _profile("record"), world.nodes)
        world.collect(agency, world.train("record"), world.nodes[1:])
        return len(world.stores[2].history.near)


@contextmanager
def _rules_off() -> Iterator[None]:
    """Any second cohort opens, the last release is given again to whoever asks, and nothing is charged."""
    usual = PrivateTraining.update

    def same_again(
        self: PrivateTraining, request: PrivateRequest, room: int, number: SumNumber | None = None
    ) -> PrivateUpdate:
        return usual(self, request, room, (b"", 0))

    with (
        patch.object(client, "check_once"), patch.object(client, "check_rosters"),
        patch.object(PrivateTraining, "update", same_again), patch.object(PrivateTraining, "_spend"),
    ):  # fmt: skip
        yield


@contextmanager
def _quiet() -> Iterator[None]:
    """Refusals are what is looked for here: their tracebacks are not shown."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def bearable(count: int) -> range:
    """The numbers of colluding holders that `count` institutions bear, given their smallest cohort."""
    return range(min(colluders_tolerated(count), count - 3) + 1)
