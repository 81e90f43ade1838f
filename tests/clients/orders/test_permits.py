"""What an order needs beside the institution's own word: a permit, and people of the agency."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime

import pytest
from tests.clients.orders.house import CONFIG, House, training, whole
from tests.clients.orders.test_gate import shown

from sovfed.clients.orders.book import OrderBook
from sovfed.clients.orders.rules import DataPermit, OrderRules
from sovfed.federation.errors import BoundError, IdentityError, OrderError
from sovfed.federation.orders.answers import CONSENTED
from sovfed.federation.orders.order import Proposal


def approved(house: House, proposal: Proposal, *people: str, organisation: str = "agency") -> Proposal:
    from sovfed.federation.orders.approving import approve

    for person in people:
        proposal = approve(proposal, house.person(person, organisation))
    return proposal


def test_an_order_needs_the_persons_that_the_policy_asks_for(house: House) -> None:
    gate = house.gate("h1", OrderRules(min_approvers=2, approvers=("agency",)))
    request = whole(CONFIG)
    proposal = house.proposal(request, CONFIG)
    with pytest.raises(BoundError, match="approved by nobody"):
        gate.consider(house.show(request, proposal))
    once = approved(house, proposal, "ann")
    with pytest.raises(BoundError, match="approved by ann@agency"):
        gate.consider(house.show(request, once))
    assert gate.consider(house.show(request, approved(house, once, "bob")))[0] == CONSENTED


def test_one_person_does_not_count_twice_nor_a_stranger_at_all(house: House) -> None:
    from sovfed.federation.archive.signing import sign
    from sovfed.federation.orders.order import DOMAIN

    gate = house.gate("h1", OrderRules(min_approvers=2, approvers=("agency",)))
    request = whole(CONFIG)
    proposal = house.proposal(request, CONFIG)
    ann = house.person("ann")
    twice = sign(proposal.order.text, "reviewer", ann.certificate, ann.key, domain=DOMAIN)
    pub = sign(proposal.order.text, "publisher", ann.certificate, ann.key, domain=DOMAIN)
    other = house.person("ann2")  # another person of the agency, but signing in the domain of archives
    wrong_domain = sign(proposal.order.text, "reviewer", other.certificate, other.key)
    outside = house.person("eve", "clinic")
    stranger = sign(proposal.order.text, "reviewer", outside.certificate, outside.key, domain=DOMAIN)
    for approvals in ((twice, twice), (twice, pub), (twice, stranger), (twice, wrong_domain)):
        shown_ = house.show(request, dataclasses.replace(proposal, approvals=approvals))
        with pytest.raises((BoundError, IdentityError)):
            gate.consider(shown_)
    another = house.proposal(request, CONFIG, purpose="another")
    replayed = dataclasses.replace(another, approvals=approved(house, proposal, "bob", "cid").approvals)
    with pytest.raises(IdentityError):
        gate.consider(house.show(request, replayed))


def test_min_approvers_without_names_is_no_policy() -> None:
    with pytest.raises(ValueError, match="name the agency's people"):
        OrderRules(min_approvers=2)


def test_a_permit_bounds_purpose_persons_tasks_and_time(house: House) -> None:
    good = DataPermit(
        purpose="to train the task's model", persons=("the agency",), tasks=("breast_cancer",), without_privacy=True,
        expires="2999-12-31",
    )  # fmt: skip
    request, _ = shown(house, permit="p-1")
    assert house.gate("h1", OrderRules(), {"p-1": good}).consider(request)[0] == CONSENTED
    for name, change in {
        "h2": {"purpose": "other"}, "h3": {"persons": ("eve",)}, "h4": {"tasks": ("heart",)},
        "h5": {"without_privacy": False}, "h6": {"expires": "2020-01-01"},
    }.items():  # fmt: skip
        with pytest.raises(BoundError, match="permit 'p-1'"):
            house.gate(name, OrderRules(), {"p-1": dataclasses.replace(good, **change)}).consider(request)  # type: ignore[arg-type]
    with pytest.raises(BoundError, match="not in the policy's permits"):
        house.gate("h7", OrderRules()).consider(request)
    with pytest.raises(BoundError, match="require_permit"):
        house.gate("h8", OrderRules(require_permit=True)).consider(shown(house)[0])


def test_no_round_is_answered_after_the_permit_has_ended(house: House) -> None:

    day = datetime.fromtimestamp(house.now, UTC).date().isoformat()
    gate = house.gate("h1", OrderRules(), {"p-1": DataPermit(without_privacy=True, expires=day)})
    gate.consider(shown(house, permit="p-1")[0])
    gate.require(training(CONFIG))
    house.now += 86_400
    with pytest.raises(OrderError, match="it ended on"):
        gate.require(training(CONFIG))


def test_the_runs_under_a_permit_share_its_epsilon(house: House) -> None:
    order = dataclasses.replace(house.proposal(whole(CONFIG), CONFIG).order, kind="private", epsilon=1.0)
    permit = DataPermit(epsilon=1.5)
    assert permit.why_not(order, 0.5, house.now) == ""
    assert "ε 0.6 + 1" in permit.why_not(order, 0.6, house.now)


def test_a_run_under_an_order_takes_no_other_so_that_what_a_permit_has_cost_is_kept(house: House) -> None:
    """Showing another order on the same run of Flower's made the first one, its ε and its answers be forgotten."""
    permits = {"p-1": DataPermit(without_privacy=True)}
    gate = house.gate("h1", OrderRules(), permits)
    under, digest = shown(house, permit="p-1")
    gate.consider(under)
    gate.require(training(CONFIG))
    other, _ = shown(house, purpose="another")
    with pytest.raises(OrderError, match="can be under no other"):
        gate.consider(other)
    assert OrderBook(house.home("h1")).runs()["7"].order == digest
    gate.consider(dataclasses.replace(other, run="8"))
    gate.consider(dataclasses.replace(under, run="9"))
    bound = OrderBook(house.home("h1")).runs()["9"]
    assert bound.answered and bound.permit == "p-1" and bound.earlier == ("7",)
