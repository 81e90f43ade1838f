"""Masked sums, plain and private, under orders: what a signed order leaves is what the coordinator offers."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.clients.orders.house import TASK, House

from sovfed.clients.ledger.book import PrivacyLedger
from sovfed.clients.ledger.entries import Budget
from sovfed.clients.ledger.file import create_ledger
from sovfed.clients.node.app import make_client_app
from sovfed.clients.orders.rules import OrderRules
from sovfed.clients.trainer.books import Books
from sovfed.clients.trainer.masking import Masking
from sovfed.clients.trainer.service import TrainerService, make_trainer
from sovfed.federation.compose import compose
from sovfed.federation.config import ClientConfig, Config, DataConfig
from sovfed.federation.errors import CohortError, DeclinedError
from sovfed.federation.orders.order import read_proposal
from sovfed.federation.secagg.files import MemoryStore, load_identity
from sovfed.federation.secagg.keys import fingerprint, public_key
from sovfed.federation.secagg.terms import RECORD, Terms
from sovfed.federation.tasks import initial_vector
from sovfed.server.orders import making
from sovfed.server.orders.making import Ordering
from sovfed.server.rounds.loop import Rounds
from sovfed.server.rounds.privacy import PrivacyPlan
from sovfed.server.rounds.secure_aggregation import SecureAggregation
from sovfed.server.strategies import make_optimizer
from sovfed.simulations.grid import InMemoryGrid

TERMS = Terms(min_cohort=3, colluders=0, differencing=RECORD)
PRIVATE = ("privacy=distributed", "privacy.population=400", "privacy.delta=1e-6", "privacy.colluders=0")


class Unwitnessed(PrivacyLedger):
    """A ledger that pays without having been shown a head: what that is about is tested elsewhere."""

    def __init__(self, home: Path, budget: Budget) -> None:
        super().__init__(home, budget)
        self._shown["7"] = None


def rounds(house: House, config: Config, count: int = 3) -> Rounds:
    """A run over institutions with ledgers, whose trainers hold it to its order."""
    folder = house.folder / "study"
    folder.mkdir()
    names = {number: f"h{number}" for number in range(1, count + 1)}
    grid = InMemoryGrid({number: make_client_app(trainer(house, name)) for number, name in names.items()}, names)
    aggregation = SecureAggregation(
        grid, house.agency, config.secagg, run="7", min_cohort=3, deadline_s=60.0, max_size=TASK.parameters,
        config_digest=bytes(32), wait_s=0.3,
    )  # fmt: skip
    made = Rounds(config, "7", grid, make_optimizer(config.strategy), aggregation)
    made.name, made.order, made.model = (
        "study",
        Ordering(config, "study", folder, house.agency),
        initial_vector(TASK, 0),
    )
    return made


def trainer(house: House, name: str) -> TrainerService:
    home, gate = house.home(name), house.gate(name, OrderRules())
    identity, store = load_identity(home / "identity"), MemoryStore()
    create_ledger(home, Budget().population_name, house.now - 9)
    ledger = Unwitnessed(home, Budget(max_share_per_run=1.0))
    return make_trainer(
        ClientConfig(device="cpu", data=DataConfig(site=name[1:])), books=Books(lambda: ledger, orders=gate),
        masking=Masking(lambda: identity, lambda: store, TERMS, narrowed=gate.narrowed),
    )  # fmt: skip


@pytest.mark.parametrize("private", [False, True], ids=["plain", "private"])
def test_a_masked_run_is_answered_to_its_end_under_its_order(tmp_path: Path, private: bool) -> None:
    house = House(tmp_path)
    overrides = ("server.min_cohort=3", "rounds=2", "order.cohort=[h1,h2,h3]", *(PRIVATE if private else ()))
    made = rounds(house, compose(list(overrides)).config)
    if private:
        made.plan = PrivacyPlan.make(made.config, "study", TASK.parameters)
        made.scale = TASK.transform.public_scale
    made.agree()
    assert made.agreement is not None and not made.agreement.beyond
    order = read_proposal((tmp_path / "study" / "order.json").read_bytes()).order
    assert (order.kind, order.epsilon > 0) == (("private", True) if private else ("train", False))
    if not private:
        made.profile()
    for number in (1, 2):
        assert made.train(number).participants == [1, 2, 3]
    if not private:
        assert made.evaluate(2).sums is not None


@pytest.mark.parametrize("whose", ["h3", "h4"])
def test_a_roster_with_another_key_than_the_order_names_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whose: str
) -> None:
    """The order has the key of `whose` for h3."""
    house = House(tmp_path)
    certificates = {name: load_identity(house.home(name) / "identity").certificate for name in ("h1", "h2", "h3", "h4")}
    keys = tuple(fingerprint(public_key(certificates[name])) for name in ("h1", "h2", whose))
    monkeypatch.setattr(making, "keys_of", lambda home, cohort: keys)
    config = compose(["server.min_cohort=3", "rounds=2", "order.cohort=[h1,h2,h3]", "server.node_wait_s=0.1"]).config
    made = rounds(house, config)
    made.order = Ordering(config, "study", tmp_path / "study", house.agency, tmp_path / "agency-without-log")
    made.agree()
    if whose == "h3":
        made.profile()
        assert read_proposal((tmp_path / "study" / "order.json").read_bytes()).order.keys == keys
        return
    with pytest.raises((CohortError, DeclinedError)):
        made.profile()
