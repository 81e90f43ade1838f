"""A withdrawn consent: of the run nothing more is answered, and no other of its task is consented to."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from tests.clients.orders.house import CONFIG, TASK, House, training, whole

from sovfed.clients.home.folder import create
from sovfed.clients.home.policy import Policy
from sovfed.clients.orders.book import OrderBook
from sovfed.clients.orders.leaving import withdraw
from sovfed.clients.orders.rules import OrderRules
from sovfed.federation.config import ClientConfig
from sovfed.federation.errors import IdentityError, OrderError
from sovfed.federation.orders.answers import Answer
from sovfed.federation.secagg.files import load_identity


@pytest.mark.parametrize("officer", [True, False])
def test_who_withdrew_answers_nothing_more_of_the_run_and_consents_to_no_other_of_its_task(
    tmp_path: Path, officer: bool
) -> None:
    """By its officer's word, or by the node's where it has none; also after a restart."""
    house = House(tmp_path)
    home, rules = house.home("h1"), house.required("h1") if officer else OrderRules()
    create(home, ClientConfig(), Policy((TASK.name,), orders=rules))
    request, other = whole(CONFIG), whole(CONFIG, "8")
    proposal = house.proposal(request, CONFIG)
    gate = house.gate("h1", rules)
    if officer:
        house.answer("h1", proposal.order.digest)
    assert gate.consider(house.show(request, proposal))[0] == ("signed" if officer else "standing")
    gate.require(training(CONFIG))

    said = withdraw(OrderBook(home), proposal.order, lambda: house.officer("h1"), "", "", int(house.now))

    said.check_origin((house.authority.root,))
    for now in (gate, house.gate("h1", rules)):
        with pytest.raises(OrderError, match="withdrawn here"):
            now.require(training(CONFIG))
    state, answer = house.gate("h1", rules).consider(house.show(request, proposal))
    assert (state, answer and answer.decision) == ("withdrawn", "withdrawn")
    again = house.proposal(other, CONFIG, purpose="again, without asking")
    assert gate.consider(house.show(other, again)) == ("awaiting", None)


def test_a_withdrawal_said_twice_is_one_and_what_a_trainer_writes_is_none(tmp_path: Path) -> None:
    """A trainer that was taken over wrote "withdrawn" among its own words, so that nobody could withdraw."""
    house = House(tmp_path)
    home, request = house.home("h1"), whole(CONFIG)
    house.gate("h1", OrderRules())
    create(home, ClientConfig(home=str(home)), Policy())
    order, book = house.proposal(request, CONFIG).order, OrderBook(home)
    identity = load_identity(home / "identity")
    with pytest.raises(IdentityError, match="no officer"):  # nor does the node sign for one whom nobody names any more
        withdraw(book, order, lambda: house.officer("h1"), "ito", "", int(house.now))
    book.write_consent(Answer(order.digest, "h1", "withdrawn", at=1).by_node(identity))
    first = withdraw(book, order, lambda: house.officer("h1"), "", "", int(house.now))
    assert book.answer(order.digest) == first and book.withdrawn_tasks() == {order.task_digest}
    assert first.at == int(house.now), "it is said now: what the trainer wrote is not the statement"
    assert withdraw(book, order, lambda: house.officer("h1"), "", "again", int(house.now) + 9) == first
    book.write_answer(dataclasses.replace(first, reason="changed"))  # it holds no more
    assert withdraw(book, order, lambda: house.officer("h1"), "", "anew", int(house.now)).reason == "anew"


def test_a_list_of_withdrawals_that_cannot_be_read_consents_to_nothing(tmp_path: Path) -> None:
    house = House(tmp_path)
    gate = house.gate("h1", OrderRules())
    (house.home("h1") / "orders" / "withdrawn.json").write_bytes(b"[")
    with pytest.raises(OrderError, match="cannot be read"):
        gate.consider(house.show(whole(CONFIG), house.proposal(whole(CONFIG), CONFIG)))
