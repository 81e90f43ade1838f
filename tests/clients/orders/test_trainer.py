"""Trainers that hold what they answer to orders, and the agency that asks them."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from tests.clients.orders.house import MODEL, House, planned, training, whole

from sovfed.clients.node.app import make_client_app
from sovfed.clients.orders.rules import OrderRules
from sovfed.clients.trainer.service import TrainerService, make_trainer
from sovfed.federation.config import ClientConfig, DataConfig
from sovfed.federation.errors import DeclinedError
from sovfed.federation.messages import ProfileRequest, Refusal, RunReply, TrainReply
from sovfed.federation.orders.answers import REFUSED, read_answer
from sovfed.server.orders.making import Ordering, read_order
from sovfed.server.rounds import agreement
from sovfed.server.rounds.aggregation import PlainAggregation
from sovfed.server.rounds.loop import Rounds
from sovfed.server.strategies import make_optimizer
from sovfed.simulations.grid import InMemoryGrid

CONFIG = planned("secagg=none", "rounds=2", "order.wait_s=0")
NONE = np.zeros(0, np.uint8)


def trainer(house: House, name: str, rules: OrderRules) -> TrainerService:
    return make_trainer(ClientConfig(device="cpu", data=DataConfig(site="3")), orders=house.gate(name, rules))


def test_a_trainer_answers_nothing_that_is_under_no_order(tmp_path: Path) -> None:
    house = House(tmp_path)
    service = trainer(house, "h1", house.required("h1"))
    profile = ProfileRequest(run="7", task="breast_cancer", digest=training(CONFIG).digest)
    assert service.answer(profile) == Refusal("order")
    assert service.answer(training(CONFIG, begin=NONE)) == Refusal("order")
    assert service.answer(whole(CONFIG)) == Refusal("order")  # it shows none
    proposal = house.proposal(whole(CONFIG), CONFIG)
    question = house.show(whole(CONFIG), proposal)
    reply = service.answer(question)
    assert isinstance(reply, RunReply) and (reply.order, reply.beyond, reply.answer.size) == ("awaiting", "", 0)
    assert service.answer(training(CONFIG, begin=NONE)) == Refusal("order")
    house.answer("h1", proposal.order.digest)
    reply = service.answer(question)
    assert isinstance(reply, RunReply) and reply.order == "signed"
    assert read_answer(reply.answer.tobytes(), "h1").officer == "ito"
    assert isinstance(service.answer(training(CONFIG, begin=NONE)), TrainReply)
    assert service.answer(training(CONFIG, number=3, begin=NONE)) == Refusal("order")
    assert service.answer(training(CONFIG, run="8", begin=NONE)) == Refusal("order")
    house.answer("h1", proposal.order.digest, REFUSED)
    assert service.answer(training(CONFIG, begin=NONE)) == Refusal("order")  # though it was answered before


def test_a_rule_that_forbids_an_order_is_told_by_its_name(tmp_path: Path) -> None:
    house = House(tmp_path)
    service = trainer(house, "h1", OrderRules(require_permit=True))
    reply = service.answer(house.show(whole(CONFIG), house.proposal(whole(CONFIG), CONFIG)))
    assert isinstance(reply, RunReply) and (reply.beyond, reply.order) == ("orders.require_permit", "")


def rounds(house: House, folder: Path, *rules: OrderRules, wait_s: float = 0.0) -> Rounds:
    """The agency's rounds over institutions h1, h2, … with these rules."""
    config = planned("secagg=none", "rounds=2", f"order.wait_s={wait_s}")
    names = {number: f"h{number}" for number in range(1, len(rules) + 1)}
    apps = {
        number: make_client_app(trainer(house, names[number], own)) for number, own in enumerate(rules, start=1)
    }  # fmt: skip
    grid = InMemoryGrid(apps, names)
    made = Rounds(config, "7", grid, make_optimizer(config.strategy), PlainAggregation(grid, 60.0))
    made.name, made.order = "study", Ordering(config, "study", folder, house.agency)
    return made


def test_who_refuses_or_has_not_signed_is_not_in_the_cohort(tmp_path: Path) -> None:
    house, folder = House(tmp_path), tmp_path / "study"
    folder.mkdir()
    open_, refusing, silent = OrderRules(), house.required("h4"), house.required("h5")
    made = rounds(house, folder, open_, open_, open_, refusing, silent)
    made.agree()
    proposal = read_order(folder)
    assert proposal is not None
    house.answer("h4", proposal.order.digest, REFUSED)
    made.agree()
    assert made.cohort() == [1, 2, 3] and made.agreement is not None
    assert made.agreement.beyond == {4: ("order",)} and made.agreement.awaiting == {5}
    assert sorted(made.agreement.answers) == [1, 2, 3, 4]
    assert [read_answer(made.agreement.answers[node], "").decision for node in (1, 4)] == ["standing", "refused"]
    made.model = MODEL
    made.profile()
    assert made.train(1).participants == [1, 2, 3]


def test_too_few_signatures_are_told_by_name(tmp_path: Path) -> None:
    house, folder = House(tmp_path), tmp_path / "study"
    folder.mkdir()
    made = rounds(house, folder, OrderRules(), OrderRules(), house.required("h3"))
    with pytest.raises(DeclinedError, match=r"1 of 3 .* h3: its data officer has not signed"):
        made.agree()


def test_a_run_waits_for_its_officers_and_takes_in_who_signs_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agreement, "AGAIN_S", 0.0)
    monkeypatch.setattr(agreement, "LATER_S", 0.0)
    house, folder = House(tmp_path), tmp_path / "study"
    folder.mkdir()
    made = rounds(house, folder, OrderRules(), OrderRules(), house.required("h3"), wait_s=300.0)
    waiting = threading.Thread(target=made.agree)
    waiting.start()
    while (proposal := read_order(folder)) is None or not (house.home("h3") / "orders/state/proposed").exists():
        waiting.join(0.05)
    waiting.join(1.0)
    assert waiting.is_alive()
    house.answer("h3", proposal.order.digest)
    waiting.join(60.0)
    assert not waiting.is_alive() and made.cohort() == [1, 2, 3]
