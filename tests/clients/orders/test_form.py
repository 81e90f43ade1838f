"""An institution whose sums mean something else than the agency's is not added to the others: it refuses, and why."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from tests.clients.orders.house import CONFIG, MODEL, TASK, House, planned, training, whole
from tests.clients.orders.test_trainer import rounds, trainer

from sovfed.clients.orders.rules import OrderRules
from sovfed.federation.errors import BoundError, DeclinedError, OrderError
from sovfed.federation.files import private_directory
from sovfed.federation.messages import RunReply
from sovfed.federation.orders.order import Proposal
from sovfed.federation.sums import FORM, FORMS, METRICS, TABLE
from sovfed.server.orders.making import make_order
from sovfed.server.rounds.loop import whole_run
from sovfed.server.rounds.privacy import PrivacyPlan

OTHER = {**FORMS, METRICS: FORMS[METRICS] + 1}


def test_an_institution_of_another_version_is_in_no_sum(house: House, tmp_path: Path) -> None:
    folder = private_directory(tmp_path / "run")
    made = rounds(house, folder, *(OrderRules() for _ in range(4)), forms={"h4": OTHER})
    made.agree()
    made.model = MODEL
    assert made.profile() == [1, 2, 3]
    round_ = made.train(1)
    assert (sorted(round_.participants), round_.refused) == ([1, 2, 3], {4: "bound"})
    assert made.agreement is not None and made.agreement.beyond == {4: (FORM,)}


def test_a_run_that_too_few_can_be_added_up_for_says_so_before_round_1(house: House, tmp_path: Path) -> None:
    folder = private_directory(tmp_path / "run")
    made = rounds(house, folder, *(OrderRules() for _ in range(3)), forms={"h3": OTHER})
    with pytest.raises(DeclinedError, match=r"h3: order\.form; what they add up has another form .* update"):
        made.agree()


def test_its_own_log_says_which_form_is_asked_for(house: House) -> None:
    gate, proposal = house.gate("h1", OrderRules(), forms=OTHER), house.proposal(whole(CONFIG), CONFIG)
    with pytest.raises(BoundError, match=r"sums are of form 'metrics 2', .* of 'metrics 3': one of both sides"):
        gate.consider(house.show(whole(CONFIG), proposal))
    reply = trainer(house, "h2", OrderRules(), OTHER).answer(house.show(whole(CONFIG), proposal))
    assert isinstance(reply, RunReply) and (reply.beyond, reply.order) == (FORM, "")


def test_an_agency_of_before_whose_order_names_no_form_is_not_answered(house: House) -> None:
    """Such an order is spelled and named as it was; what it asks to add up is of the first form."""
    proposal = house.proposal(whole(CONFIG), CONFIG, form="")
    assert "form" not in proposal.order.spelled
    with pytest.raises(BoundError, match="of form '1'"):
        house.gate("h1", OrderRules()).consider(house.show(whole(CONFIG), proposal))


def test_an_update_in_the_middle_of_a_run_ends_its_part_there(house: House) -> None:
    """The trainer is started again by another version, and is asked for the next round under the same order."""
    proposal = house.proposal(whole(CONFIG), CONFIG)
    gate = house.gate("h1", OrderRules())
    gate.consider(house.show(whole(CONFIG), proposal))
    gate.require(training(CONFIG, number=1))
    with pytest.raises(OrderError, match="one of both sides has to be updated"):
        house.gate("h1", OrderRules(), forms=OTHER).require(training(CONFIG, number=2))
    house.gate("h1", OrderRules()).require(training(CONFIG, number=2))


def test_a_private_run_adds_up_nothing_of_another_form(house: House) -> None:
    """So its order is as it was, and institutions of both versions are in its sums."""
    config = planned("privacy=distributed", "privacy.epsilon=2")
    plan = PrivacyPlan.make(config, "study", TASK.parameters)
    request = whole_run(config, TASK, "7", "study", plan)
    order = make_order(config, "study", request, house.now)
    assert "form" not in order.spelled
    gate = house.gate("h1", OrderRules(), forms={**OTHER, TABLE: 2})
    assert gate.consider(house.show(request, Proposal(order)))[0] == "standing"
    asks = dataclasses.replace(plan.request("7", 1, MODEL), begin=np.ones(1, np.uint8))
    gate.require(asks)
