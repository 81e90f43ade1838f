"""Trainers that hold what they answer to orders, and the agency that asks them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from tests.clients.orders.house import MODEL, House, planned, training, whole

from sovfed.clients.node.app import make_client_app
from sovfed.clients.orders.book import OrderBook
from sovfed.clients.orders.rules import OrderRules
from sovfed.clients.trainer.books import Books
from sovfed.clients.trainer.service import TrainerService, make_trainer
from sovfed.federation.config import ClientConfig, DataConfig
from sovfed.federation.errors import DeclinedError
from sovfed.federation.files import private_directory
from sovfed.federation.messages import ProfileRequest, Refusal, RunReply, TrainReply
from sovfed.federation.orders.answers import REFUSED, read_answer
from sovfed.federation.sums import FORMS
from sovfed.server.orders.making import Ordering, read_order
from sovfed.server.rounds import agreement
from sovfed.server.rounds.aggregation import PlainAggregation
from sovfed.server.rounds.loop import Rounds
from sovfed.server.strategies import make_optimizer
from sovfed.simulations.grid import InMemoryGrid

CONFIG = planned("secagg=none", "rounds=2", "order.wait_s=0")
NONE = np.zeros(0, np.uint8)


def trainer(house: House, name: str, rules: OrderRules, forms: Mapping[str, int] = FORMS) -> TrainerService:
    gate = house.gate(name, rules, forms=forms)
    return make_trainer(ClientConfig(device="cpu", data=DataConfig(site="3")), books=Books(orders=gate))


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


def test_once_nothing_is_asked_the_order_counts_what_has_left(tmp_path: Path) -> None:
    house = House(tmp_path)
    service = trainer(house, "h1", OrderRules())
    proposal = house.proposal(whole(CONFIG), CONFIG)
    service.answer(house.show(whole(CONFIG), proposal))
    assert isinstance(service.answer(training(CONFIG, begin=NONE)), TrainReply)

    def answered() -> dict[str, int]:
        return OrderBook(house.home("h1")).runs()[training(CONFIG).run].answered

    assert answered()["train"] > 1  # ahead of it, so that a crash forgets none
    service.settle()
    service.settle()
    assert answered() == {"train": 1}
    assert isinstance(service.answer(training(CONFIG, begin=NONE)), TrainReply)
    assert answered()["train"] > 1


def test_a_rule_that_forbids_an_order_is_told_by_its_name(tmp_path: Path) -> None:
    house = House(tmp_path)
    service = trainer(house, "h1", OrderRules(require_permit=True))
    reply = service.answer(house.show(whole(CONFIG), house.proposal(whole(CONFIG), CONFIG)))
    assert isinstance(reply, RunReply) and (reply.beyond, reply.order) == ("orders.require_permit", "")


def rounds(
    house: House, folder: Path, *rules: OrderRules, wait_s: float = 0.0, forms: Mapping[str, Mapping[str, int]] = {}
) -> Rounds:
    """The agency's rounds over institutions h1, h2, … with these rules; `forms` of who adds up in another, by name."""
    config = planned("secagg=none", "rounds=2", f"order.wait_s={wait_s}")
    names = {number: f"h{number}" for number in range(1, len(rules) + 1)}
    apps = {
        number: make_client_app(trainer(house, names[number], own, forms.get(names[number], FORMS)))
        for number, own in enumerate(rules, start=1)
    }
    grid = InMemoryGrid(apps, names)
    made = Rounds(config, "7", grid, make_optimizer(config.strategy), PlainAggregation(grid, 60.0))
    made.name, made.order = "study", Ordering(config, "study", folder, house.agency)
    return made


def test_why_an_officer_refused_is_told_of_a_run_that_nothing_comes_of(tmp_path: Path) -> None:
    """Seen: "birke: order", and nobody's word anywhere, with the reason that the command promises to tell."""
    house, said = House(tmp_path), dict[int, bytes]()
    folder = private_directory(tmp_path / "run")
    made = rounds(house, folder, *(house.required(name) for name in ("h1", "h2", "h3")))
    made.said = said.update
    with pytest.raises(DeclinedError):
        made.agree()  # nobody has signed yet, and the order is there now
    order = read_order(folder)
    assert order is not None
    house.answer("h1", order.order.digest)
    house.answer("h2", order.order.digest, REFUSED, reason="not for this purpose")
    with pytest.raises(DeclinedError, match=r"h2: order \(refused by ito on .* not for this purpose"):
        made.agree()
    words = {node: read_answer(data, "answer") for node, data in said.items()}
    assert words[1].decision == "signed" and words[2].reason.startswith("not for this purpose")


def test_an_officer_who_refuses_later_is_heard_with_the_reason(tmp_path: Path) -> None:
    house, said = House(tmp_path), dict[int, bytes]()
    folder = private_directory(tmp_path / "run")
    names = ("h1", "h2", "h3", "h4")
    made = rounds(house, folder, *(OrderRules() for _ in names[:3]), house.required("h4"))
    made.said = said.update
    with contextlib.suppress(DeclinedError):
        made.agree()
    order = read_order(folder)
    assert order is not None
    house.answer("h4", order.order.digest)
    made.agree()
    made.profile()
    house.answer("h4", order.order.digest, REFUSED, reason="stop")
    made.model = MODEL
    assert sorted(made.train(1).participants) == [1, 2, 3]
    assert read_answer(said[4], "answer").reason == "stop"
    assert 4 not in made.cohort()


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


def test_a_run_that_too_few_of_the_agency_have_approved_is_told_what_is_next(tmp_path: Path) -> None:
    asks = OrderRules(min_approvers=2, approvers=("agency",))
    made = rounds(House(tmp_path), private_directory(tmp_path / "run"), asks, asks, asks)
    with pytest.raises(DeclinedError, match=r"h1: orders\.min_approvers, .* `sovfed run propose`, `approve`"):
        made.agree()
