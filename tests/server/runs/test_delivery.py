"""The end of a run: its model reaches every institution once, also of a private run, and none of them can spoil it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from flwr.clientapp import ClientApp

from sovfed.clients.models.received import ReceivedModels
from sovfed.clients.node.app import make_client_app
from sovfed.clients.trainer.books import Books
from sovfed.clients.trainer.loaded import RecordSource, Runtime
from sovfed.clients.trainer.masking import Masking
from sovfed.clients.trainer.service import TrainerService
from sovfed.federation.compose import compose
from sovfed.federation.config import Config
from sovfed.federation.messages import Refusal, ReleaseReply, ReleaseRequest, Reply, Request
from sovfed.federation.models.saved import load_model
from sovfed.federation.models.stored import MODEL
from sovfed.federation.secagg.files import MemoryStore
from sovfed.federation.secagg.local import Authority
from sovfed.federation.secagg.terms import RECORD, Terms
from sovfed.server.rounds.coordinator import Outcome, coordinate
from sovfed.server.runs.release import SUMMARY, deliver
from sovfed.simulations.grid import InMemoryGrid
from sovfed.simulations.population import Institution, make_population

NAMES = {1: "north", 2: "east", 3: "south", 4: "west"}
SMALL = ("task=breast_cancer", "rounds=2", "server.min_cohort=3", "simulation.institutions=4")
PRIVATE = ("privacy=distributed", "privacy.population=400", "privacy.epsilon=8", "privacy.colluders=0")
REQUEST = ReleaseRequest(
    "1", 1, "heart", np.zeros(2, np.float32), np.ones(2), np.zeros(0, np.uint8), "0" * 64, digest="0" * 64
)


class Watched:
    """A trainer that notes what it is asked, and answers a model with `instead`."""

    def __init__(self, trainer: TrainerService, instead: Callable[[], Reply] | None = None) -> None:
        self._trainer, self._instead, self.asked = trainer, instead, list[Request]()

    def answer(self, request: Request) -> Reply:
        self.asked.append(request)
        if self._instead is not None and isinstance(request, ReleaseRequest):
            return self._instead()
        return self._trainer.answer(request)


def broken() -> Reply:
    raise RuntimeError("the institution's own words")


class Federation:
    """Four institutions in this process that keep what they receive, below `folder`."""

    def __init__(self, config: Config, folder: Path, instead: dict[int, Callable[[], Reply]] | None = None) -> None:
        self.config, self.folder, self.authority = config, folder, Authority()
        self.shelves = {node: ReceivedModels(folder / name) for node, name in NAMES.items()}
        population = make_population(config)
        self.trainers = {
            node: Watched(self._trainer(node, population[node - 1]), (instead or {}).get(node)) for node in NAMES
        }

    def _trainer(self, node: int, one: Institution) -> TrainerService:
        identity, store = self.authority.institution(NAMES[node]), MemoryStore()
        terms = Terms(min_cohort=3, colluders=0, differencing=RECORD)
        return TrainerService(
            RecordSource(one.load, one.site), Runtime("cpu"), books=Books(received=self.shelves[node]),
            masking=Masking(lambda: identity, lambda: store, terms),
        )  # fmt: skip

    def run(self, transport: str = "lane") -> Outcome:
        apps = {node: make_client_app(trainer) for node, trainer in self.trainers.items()}
        run = self.folder / "study-1"
        run.mkdir()
        return coordinate(
            InMemoryGrid(apps, NAMES), self.config, run="1", folder=run, transport=transport,
            identity=self.authority.server("agency"),
        )  # fmt: skip

    def releases(self) -> list[int]:
        return [sum(isinstance(each, ReleaseRequest) for each in trainer.asked) for trainer in self.trainers.values()]


@pytest.mark.parametrize("overrides", [(), PRIVATE])
def test_every_institution_is_sent_the_published_model_once(overrides: tuple[str, ...], tmp_path: Path) -> None:
    federation = Federation(compose([*SMALL, *overrides]).config, tmp_path)
    outcome = federation.run()
    assert federation.releases() == [1, 1, 1, 1]
    assert outcome.summary["delivered_to"] == sorted(NAMES.values())
    assert json.loads((tmp_path / "study-1" / SUMMARY).read_text())["delivered_to"] == sorted(NAMES.values())
    published = (tmp_path / "study-1" / MODEL).read_bytes()
    for shelf in federation.shelves.values():
        kept = shelf.find("study-1")
        assert kept.same and (kept.path / MODEL).read_bytes() == published
        np.testing.assert_array_equal(load_model(kept.path).vector, outcome.model)
        assert (kept.facts.run.privacy is not None) == bool(overrides)
        assert kept.plan.get("batch_size") == (None if overrides else federation.config.task.batch_size)


def test_one_that_refuses_or_breaks_is_left_out_and_the_run_is_finished(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = compose([*SMALL, "secagg=none"]).config
    federation = Federation(config, tmp_path, {2: lambda: Refusal("policy"), 4: broken})
    assert federation.run().summary["delivered_to"] == ["north", "south"]
    assert "east: has not taken the model: policy" in caplog.text
    assert "west: has not taken the model: failed" in caplog.text


def test_a_simulation_delivers_nothing(tmp_path: Path) -> None:
    federation = Federation(compose([*SMALL, "secagg=none"]).config, tmp_path)
    assert federation.run("in-memory").summary["delivered_to"] == []
    assert federation.releases() == [0, 0, 0, 0]


class Silent(InMemoryGrid):
    """A network in which nobody answers, or that breaks."""

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__(dict.fromkeys(NAMES, ClientApp()), NAMES)
        self.error, self.waited = error, list[float]()

    def replies(self, messages: object, timeout_s: float) -> object:  # type: ignore[override]
        self.waited.append(timeout_s)
        if self.error is not None:
            raise self.error
        return iter(())


@pytest.mark.parametrize(("patience", "waited"), [(5.0, 5.0), (3600.0, 60.0)])
def test_nobody_is_waited_for_longer_than_a_minute(patience: float, waited: float) -> None:
    grid, start = Silent(), time.monotonic()
    assert deliver(grid, REQUEST, patience) == []
    assert grid.waited == [waited] and time.monotonic() - start < 5


def test_a_broken_network_fails_no_run(caplog: pytest.LogCaptureFixture) -> None:
    assert deliver(Silent(OSError("no route")), REQUEST, 5.0) == []
    assert "north: has not taken the model" in caplog.text


def test_an_acknowledgement_says_nothing() -> None:
    assert vars(ReleaseReply()) == {}
