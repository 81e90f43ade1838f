"""A coordinator and its institutions, whose messages a test may lose, change or hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from functools import partial

from flwr.app import Message as FlowerMessage
from flwr.clientapp import ClientApp

from sovfed.clients.ledger.book import PrivacyLedger
from sovfed.clients.node.app import make_client_app
from sovfed.clients.trainer.books import Books
from sovfed.clients.trainer.masking import Masking, Store
from sovfed.clients.trainer.rules import Rules
from sovfed.clients.trainer.service import TrainerService, make_trainer
from sovfed.federation.compose import compose
from sovfed.federation.config import DataConfig
from sovfed.federation.messages import (
    Reply,
    Request,
    SecaggRequest,
)
from sovfed.federation.secagg.files import MemoryStore
from sovfed.federation.secagg.local import Authority
from sovfed.federation.secagg.terms import RECORD, Terms
from sovfed.federation.tasks import initial_vector
from sovfed.federation.tasks.registry import get_task
from sovfed.federation.wire.grids import LeftS, for_ever
from sovfed.server.rounds.aggregation import PlainAggregation
from sovfed.server.rounds.loop import Rounds
from sovfed.server.rounds.privacy import PrivacyPlan
from sovfed.server.rounds.secure_aggregation import SecureAggregation
from sovfed.server.strategies import make_optimizer
from sovfed.simulations.grid import InMemoryGrid

TASK = get_task("breast_cancer")


RECORDING = Terms(min_cohort=3, colluders=0, differencing=RECORD)


Hook = Callable[[Request], None]


class Place:
    """An institution whose `before` may fail a request, as a crash would; `replies` is what left it."""

    def __init__(self, trainer: TrainerService) -> None:
        self.trainer = trainer
        self.before: Hook = lambda request: None
        self.replies: list[Reply] = []

    def answer(self, request: Request) -> Reply:
        self.before(request)
        self.replies.append(self.trainer.answer(request))
        return self.replies[-1]


class QuietGrid(InMemoryGrid):
    """One on which some nodes are connected, and silent."""

    def __init__(self, apps: dict[int, ClientApp]) -> None:
        super().__init__(apps)
        self.silent, self.heard_at = set[int](), float("-inf")

    def replies(
        self, messages: Iterable[FlowerMessage], timeout_s: float, left_s: LeftS = for_ever
    ) -> Iterator[FlowerMessage]:
        for reply in super().replies(messages, timeout_s, left_s):
            if reply.metadata.src_node_id not in self.silent:
                yield reply

    def heard(self, node_id: int) -> float:
        return self.heard_at


class World:
    """`count` institutions with real records, and the round loop over them."""

    def __init__(self, count: int, *overrides: str, terms: Terms | None = None, stores: list[Store] | None = None):
        self.config = compose(["server.min_cohort=3", "server.node_wait_s=0.3", *overrides]).config
        self.authority = Authority()
        self.terms = terms or RECORDING
        self.places: dict[int, Place] = {}
        self.apps: dict[int, ClientApp] = {}
        self.grid = QuietGrid(self.apps)
        for node in range(1, count + 1):
            self.add(node, stores[node - 1] if stores else MemoryStore())
        self.rounds = self.another_run("7")

    def another_run(self, run: str) -> Rounds:
        """The round loop of a run of its own, with the same institutions."""
        aggregation = (
            SecureAggregation(
                self.grid, self.authority.server("agency.test"), self.config.secagg, run=run,
                min_cohort=self.config.server.min_cohort, deadline_s=60.0, max_size=TASK.parameters,
                config_digest=bytes(32), wait_s=0.3,
            )
            if self.config.secagg.enabled
            else PlainAggregation(self.grid, 60.0)
        )  # fmt: skip
        rounds = Rounds(self.config, run, self.grid, make_optimizer(self.config.strategy), aggregation)
        rounds.model = initial_vector(TASK, 0)
        return rounds

    def add(self, node: int, store: Store, authority: Authority | None = None) -> Place:
        identity = (authority or self.authority).institution(f"hospital-{node}")
        masking = Masking(lambda: identity, lambda: store, self.terms)
        config = dataclasses.replace(self.config.client, data=DataConfig(site=str(node % 4)))
        self.places[node] = Place(
            make_trainer(config, Rules(reproducible=True), Books(partial(self.ledger_of, node)), masking)
        )
        self.apps[node] = make_client_app(self.places[node])
        return self.places[node]

    def ledger_of(self, _node: int) -> PrivacyLedger | None:
        """None: these institutions have none."""
        return None

    def remove(self, node: int) -> None:
        del self.apps[node]


def fail(kind: type[Request], times: int = 1, step: str = "") -> Hook:
    """Fail the next `times` requests of `kind` (of secure aggregation: of `step`)."""
    left = [times]

    def hook(request: Request) -> None:
        if isinstance(request, kind) and (not isinstance(request, SecaggRequest) or request.step == step) and left[0]:
            left[0] -= 1
            raise ConnectionError("the trainer was killed")

    return hook


def trained(world: World, rounds: int = 2) -> World:
    world.rounds.profile()
    for number in range(1, rounds + 1):
        world.rounds.train(number)
    return world


PRIVATE = ("privacy=distributed", "privacy.population=400", "privacy.delta=1e-6", "privacy.colluders=0")


def private(world: World) -> World:
    world.rounds.plan = PrivacyPlan.make(world.config, "trial", TASK.parameters)
    world.rounds.scale = TASK.transform.public_scale
    return world
