"""Orders that are forged, changed, replayed, expired or not signed, before a trainer's gate."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.clients.orders.house import CONFIG, House, training, whole

from sovfed.clients.orders.book import MAX_WAITING, OrderBook
from sovfed.clients.orders.rules import OrderRules, Standing
from sovfed.federation.errors import BoundError, IdentityError, OrderError, ProtocolError, SovfedError
from sovfed.federation.messages import (
    EvaluateRequest,
    LedgerRequest,
    PrivateRequest,
    ProfileRequest,
    ReleaseRequest,
    Request,
    RunRequest,
    SecaggRequest,
)
from sovfed.federation.orders.answers import CONSENTED, REFUSED, SIGNED
from sovfed.federation.secagg.files import load_identity
from sovfed.federation.secagg.keys import HYBRID
from sovfed.federation.secagg.terms import Terms

BYTES = np.ones(1, np.uint8)


def shown(house: House, run: str = "7", **changes: Any) -> tuple[RunRequest, str]:
    """The question about a whole run with its order, and the order's digest."""
    request = whole(CONFIG, run)
    proposal = house.proposal(request, CONFIG, **changes)
    return house.show(request, proposal), proposal.order.digest


def every_message(run: str = "7") -> list[Request]:
    """One of each kind that a run may send, but for the one that shows the order."""
    train = training(CONFIG, run)
    common = {"run": run, "task": train.task, "digest": train.digest, "normalisation": train.normalisation}
    model = {"model": train.model, "scale": train.scale}
    return [
        ProfileRequest(begin=BYTES, **common),
        train,
        EvaluateRequest(round=1, begin=BYTES, keep="study", **common, **model),  # type: ignore[arg-type]
        ReleaseRequest(round=1, facts=BYTES, sha256="0" * 64, **common, **model),  # type: ignore[arg-type]
        SecaggRequest(run, BYTES, "reveal"),
        LedgerRequest(run, BYTES, BYTES, BYTES, BYTES),
    ]


def test_no_message_of_a_run_is_answered_before_its_order_is_signed_here(house: House) -> None:
    gate = house.gate("h1", house.required("h1"))
    request, digest = shown(house)
    for message in every_message():
        with pytest.raises(OrderError, match="under no order"):
            gate.require(message)
    assert gate.consider(request) == ("awaiting", None)
    for message in every_message():
        with pytest.raises(OrderError, match="under no order"):
            gate.require(message)
    house.answer("h1", digest)
    assert gate.consider(request)[0] == SIGNED
    for message in every_message():
        gate.require(message)


def test_a_run_without_an_order_is_refused(house: House) -> None:
    for rules in (house.required("h1"), OrderRules()):
        with pytest.raises(OrderError, match="no order"):
            house.gate("h1", rules).consider(whole(CONFIG))


def test_a_consent_in_advance_is_signed_by_the_node_and_says_what_it_is(house: House) -> None:
    gate = house.gate("h1", OrderRules())
    request, digest = shown(house)
    state, answer = gate.consider(request)
    assert state == CONSENTED and answer is not None
    assert (answer.order, answer.institution, answer.officer) == (digest, "h1", "")
    answer.check_node()
    with pytest.raises(IdentityError):
        dataclasses.replace(answer, institution="h2").check_node()
    for message in every_message():
        gate.require(message)


@pytest.mark.parametrize(
    ("standing", "why"),
    [
        (Standing(proposers=("ministry",)), "proposer"), (Standing(purposes=("to train the model",)), "purpose"),
        (Standing(tasks=("heart",)), "task"), (Standing(max_rounds=9), "rounds"),
        (Standing(until="2020-01-01"), "ended"),
    ],
)  # fmt: skip
def test_what_exceeds_the_standing_consent_waits_for_a_person(house: House, standing: Standing, why: str) -> None:
    rules = dataclasses.replace(house.required("h1"), mode="standing", standing=standing)
    gate = house.gate("h1", rules)
    request, digest = shown(house)
    proposal = house.proposal(whole(CONFIG), CONFIG)
    assert why in standing.why_not(proposal.order, house.now)
    assert gate.consider(request)[0] == "awaiting"
    house.answer("h1", digest)
    assert gate.consider(request)[0] == SIGNED


def test_an_epsilon_beyond_the_standing_consent_waits_for_a_person(house: House) -> None:
    order = house.proposal(whole(CONFIG), CONFIG).order
    private = dataclasses.replace(order, kind="private", epsilon=1.5)
    assert "ε 1.5 above 1" in Standing(max_epsilon=1.0).why_not(private, house.now)


@pytest.mark.parametrize(
    "change",
    [
        {"round": 11}, {"learning_rate": 0.5}, {"local_epochs": 3}, {"batch_size": 9}, {"seed": 1}, {"keep": "other"},
        {"digest": "0" * 64}, {"task": "heart"}, {"normalisation": "group"}, {"begin": np.zeros(0, np.uint8)},
        {"optimizer": "adamw"}, {"proximal_mu": 0.5}, {"local_steps": 5},
    ],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_a_message_beyond_the_signed_order_is_refused(house: House, change: dict[str, Any]) -> None:
    """Ten rounds are no eleventh; no other task, setting or secure aggregation was signed."""
    gate = house.gate("h1", OrderRules())
    gate.consider(shown(house)[0])
    gate.require(training(CONFIG, number=10, rate_start=0.5, evaluate=False))
    with pytest.raises(OrderError, match="otherwise than its order"):
        gate.require(training(CONFIG, **change))


def test_a_private_request_under_an_order_for_plain_sums_is_refused(house: House) -> None:
    gate = house.gate("h1", OrderRules())
    gate.consider(shown(house)[0])
    train = training(CONFIG)
    private = PrivateRequest(
        "7", "g", 1, train.task, "silo", 10, 5, 2, 1.1, 0.1, 1.0, 1e-6, 3, 16, 25.0, 7, 1, 16, 0.1, train.model, BYTES,
        digest=train.digest,
    )  # fmt: skip
    with pytest.raises(OrderError, match="a kind of message"):
        gate.require(private)


@pytest.mark.parametrize(
    "change",
    [
        {"sums": 99}, {"evaluations": 9}, {"min_cohort": 2}, {"bits": 12}, {"clip": 1.0}, {"max_weight": 5},
        {"masked": False}, {"parameters": 1},
    ],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_a_run_that_asks_otherwise_than_its_order_is_refused(house: House, change: dict[str, Any]) -> None:
    gate = house.gate("h1", OrderRules())
    request, _ = shown(house)
    with pytest.raises(OrderError, match=f"otherwise than its order in: .*{next(iter(change))}"):
        gate.consider(dataclasses.replace(request, **change))


def test_fields_of_an_order_that_were_changed_after_signing_do_not_hold(house: House) -> None:
    """By the agency after the officer, or by anybody after the agency."""
    gate = house.gate("h1", house.required("h1"))
    request, digest = shown(house)
    house.answer("h1", digest)
    for change in ({"purpose": "another"}, {"recipients": "everybody"}, {"expires": int(house.now) + 99}):
        changed, other = shown(house, **change)
        assert other != digest
        assert gate.consider(changed)[0] == "awaiting"  # signed by the agency anew, but by no officer
        values = json.loads(request.order.tobytes())
        values["order"] |= change
        forged = np.frombuffer(json.dumps(values, sort_keys=True, separators=(",", ":")).encode(), np.uint8)
        with pytest.raises((IdentityError, ProtocolError)):
            gate.consider(dataclasses.replace(request, order=forged))


def test_an_order_that_no_agency_of_our_authority_proposes_is_refused(house: House, tmp_path: Path) -> None:
    gate, request = house.gate("h1", OrderRules()), whole(CONFIG)
    proposal = house.proposal(request, CONFIG)
    institution = load_identity(house.home("h2") / "identity")
    (tmp_path / "strangers").mkdir()
    stranger = House(tmp_path / "strangers").agency
    for identity in (institution, stranger):
        with pytest.raises(IdentityError):
            gate.consider(house.show(request, proposal, identity))
    signed = house.show(request, house.proposal(request, CONFIG, name="other"))
    other = json.loads(signed.order.tobytes())
    forged = dataclasses.replace(proposal, certificate=other["certificate"], signature=other["signature"])
    replayed = dataclasses.replace(request, order=np.frombuffer(forged.to_bytes(), np.uint8))
    with pytest.raises(IdentityError):  # its signature under another order
        gate.consider(replayed)


def test_the_signature_of_another_institution_s_officer_or_order_is_none(house: House) -> None:
    gate = house.gate("h1", house.required("h1"))
    request, digest = shown(house)
    _, other = shown(house, purpose="another")
    house.answer("h1", digest, institution="h2")
    assert gate.consider(request)[0] == "awaiting"
    signed = house.answer("h1", other)
    OrderBook(house.home("h1")).write_answer(dataclasses.replace(signed, order=digest))  # moved to this order
    assert gate.consider(request)[0] == "awaiting"
    OrderBook(house.home("h1")).write_answer(house.answer("h2", digest))  # another house's officer, of the same name
    assert gate.consider(request)[0] == "awaiting"
    house.answer("h1", digest, officer="nobody")
    assert gate.consider(request)[0] == "awaiting"
    house.answer("h1", digest)
    assert gate.consider(request)[0] == SIGNED


def test_an_answer_that_cannot_be_read_is_no_consent(house: House) -> None:
    """Also where the institution would have consented in advance: somebody had something to say."""
    gate = house.gate("h1", OrderRules())
    request, digest = shown(house)
    path = house.home("h1") / "orders" / "answers" / f"{digest}.json"
    for content in (b"", b"[]", b"{", b"{}", b'"' + b"x" * 20_000 + b'"'):
        path.write_bytes(content)
        assert gate.consider(request)[0] == "awaiting"
        with pytest.raises(OrderError):
            gate.require(training(CONFIG))
    path.unlink()
    path.mkdir()
    assert gate.consider(request)[0] == "awaiting"


def test_a_refusal_after_signing_ends_the_run_with_the_next_message(house: House) -> None:
    for rules in (house.required("h1"), dataclasses.replace(house.required("h1"), mode="standing")):
        gate = house.gate("h1", rules)
        request, digest = shown(house)
        house.answer("h1", digest)
        gate.consider(request)
        gate.require(training(CONFIG))
        house.answer("h1", digest, REFUSED)
        with pytest.raises(OrderError, match="is refused here"):
            gate.require(training(CONFIG))
        assert gate.consider(request)[0] == REFUSED


@pytest.mark.parametrize(("days", "limit"), [(31, "orders.expired"), (-1, "orders.clock")])
def test_an_order_holds_neither_before_nor_after_its_time(house: House, days: int, limit: str) -> None:
    gate = house.gate("h1", OrderRules())
    request, _ = shown(house)
    gate.consider(request)
    gate.require(training(CONFIG))
    house.now += days * 86_400
    with pytest.raises(BoundError) as refused:
        gate.consider(request)
    assert refused.value.limit == limit
    with pytest.raises(OrderError):  # nor a round of a run that had begun
        gate.require(training(CONFIG))


def test_an_order_for_longer_than_the_policy_lets_one_last_is_refused(house: House) -> None:
    gate = house.gate("h1", OrderRules(max_days=29))
    with pytest.raises(BoundError, match="max_days 29"):
        gate.consider(shown(house)[0])


def test_an_order_for_others_is_refused(house: House) -> None:
    gate = house.gate("h1", OrderRules())
    with pytest.raises(BoundError, match="the order is for h2, h3"):
        gate.consider(shown(house, cohort=("h2", "h3"))[0])
    assert gate.consider(shown(house, cohort=("h1", "h2", "h3"))[0])[0] == CONSENTED


def test_secure_aggregation_is_as_narrow_as_the_order(house: House) -> None:
    gate, terms = house.gate("h1", OrderRules()), Terms(min_cohort=3, colluders=0)
    assert gate.narrowed("7", terms) == terms
    gate.consider(shown(house, cohort=("h1", "h2", "h3"))[0])
    narrow = gate.narrowed("7.2", terms)  # a part of the run, after somebody dropped out for good
    assert narrow.members == ("h1", "h2", "h3")
    assert (narrow.bits, narrow.min_clip, narrow.max_clip) == ((32,), 8.0, 8.0)
    assert (narrow.least_max_weight, narrow.max_weight, narrow.min_cohort) == (10_000, 10_000, 3)
    with pytest.raises(SovfedError, match="h4"):
        narrow.check_roster(["h1", "h2", "h3", "h4"], HYBRID)


def test_an_order_serves_one_run_at_a_time_and_no_more_than_it_needs(house: House) -> None:
    """A run that is taken up has another number of Flower's; an agency may not run the same order for ever."""
    gate = house.gate("h1", OrderRules())
    request, _ = shown(house)
    gate.consider(request)
    gate.require(training(CONFIG))
    gate.consider(dataclasses.replace(request, run="8"))
    with pytest.raises(OrderError, match="run 7 is under no order"):
        gate.require(training(CONFIG))
    for number in range(4 * 13 + 200 - 1):
        if number % 10 == 0:
            gate.consider(dataclasses.replace(request, run=f"{number + 10}"))
        gate.require(training(CONFIG, f"{number // 10 * 10 + 10}", number % 10 + 1))
    with pytest.raises(OrderError, match="more than its order can need"):
        gate.require(training(CONFIG, "260", 1))


def test_a_run_goes_on_after_a_restart_and_what_was_answered_stays_counted(house: House) -> None:
    rules = house.required("h1")
    gate = house.gate("h1", rules)
    request, digest = shown(house)
    house.answer("h1", digest)
    gate.consider(request)
    gate.require(training(CONFIG))
    again = house.gate("h1", rules)
    again.require(training(CONFIG, number=2))
    house.answer("h1", digest, REFUSED)
    with pytest.raises(OrderError, match="refused"):
        house.gate("h1", rules).require(training(CONFIG))
    house.answer("h1", digest)
    narrower = dataclasses.replace(rules, officers=())
    with pytest.raises(OrderError, match="awaiting"):  # the policy was changed meanwhile
        house.gate("h1", narrower).require(training(CONFIG))
    approved_only = dataclasses.replace(rules, min_approvers=1, approvers=("agency",))
    with pytest.raises(OrderError, match="min_approvers"):
        house.gate("h1", approved_only).require(training(CONFIG))
    path = house.home("h1") / "orders" / "state" / "proposed" / f"{digest}.json"
    path.write_bytes(path.read_bytes().replace(b"the agency", b"thy agency"))
    with pytest.raises(OrderError, match="not kept here"):
        house.gate("h1", rules).require(training(CONFIG))


def test_damaged_records_of_runs_let_nothing_start(house: House) -> None:
    house.gate("h1", OrderRules())
    (house.home("h1") / "orders" / "state" / "runs.json").write_bytes(b"{")
    with pytest.raises(OrderError, match="cannot be read"):
        house.gate("h1", OrderRules())


def test_a_flood_of_orders_pushes_none_out_that_waits(house: House) -> None:
    gate = house.gate("h1", house.required("h1"))
    request = whole(CONFIG)
    wanted = house.proposal(request, CONFIG)
    gate.consider(house.show(request, wanted))
    for number in range(MAX_WAITING - 1):
        gate.consider(house.show(request, house.proposal(request, CONFIG, purpose=f"flood {number}")))
    with pytest.raises(OrderError, match="wait for an officer already"):
        gate.consider(house.show(request, house.proposal(request, CONFIG, purpose="one more")))
    assert OrderBook(house.home("h1")).named(wanted.order.digest[:12]) is not None


def test_orders_that_ended_unanswered_do_not_keep_others_out(house: House) -> None:
    """An officer who left 64 runs unanswered, over the years, was asked nothing any more."""
    gate, request = house.gate("h1", house.required("h1")), whole(CONFIG)
    for number in range(MAX_WAITING):
        gate.consider(house.show(request, house.proposal(request, CONFIG, purpose=f"old {number}")))
    house.now += 366 * 86_400
    later = house.proposal(request, CONFIG, purpose="new")
    assert gate.consider(house.show(request, later)) == ("awaiting", None)
    assert [kept.order.purpose for kept in OrderBook(house.home("h1")).proposals()] == ["new"]


def test_orders_that_wait_keep_out_none_that_is_consented_to(house: House) -> None:
    gate, request = house.gate("h1", OrderRules(standing=Standing(purposes=("known",)))), whole(CONFIG)
    for number in range(MAX_WAITING):
        gate.consider(house.show(request, house.proposal(request, CONFIG, purpose=f"unknown {number}")))
    assert gate.consider(house.show(request, house.proposal(request, CONFIG, purpose="known")))[0] == CONSENTED


def test_an_order_names_the_run_whose_personal_models_and_charges_it_is_for(house: House) -> None:
    request = whole(CONFIG)
    with pytest.raises(OrderError, match="run"):
        house.gate("h1", OrderRules()).consider(house.show(request, house.proposal(request, CONFIG, run="other")))


def test_a_run_has_only_such_parts_as_a_purge_looks_for(house: House) -> None:
    gate = house.gate("h1", OrderRules())
    gate.consider(shown(house)[0])
    gate.require(training(CONFIG, "7.64"))
    for part in ("7.65", "7.1", "7.x", "7.02", "7."):
        with pytest.raises(OrderError, match="no part of a run"):
            gate.require(training(CONFIG, part))


@pytest.mark.parametrize(
    "change", [{"max_clip": 4.0}, {"bits": (16,)}, {"max_weight": 5_000}, {"members": ("h4", "h5", "h6")}]
)
def test_terms_that_were_narrowed_after_signing_hold_for_the_run_too(house: House, change: dict[str, Any]) -> None:
    """After a restart with a stricter policy the order's own ring, clip and weight were taken for the policy's."""
    house.gate("h1", OrderRules()).consider(shown(house, cohort=("h1", "h2", "h3"))[0])
    gate = house.gate("h1", OrderRules())
    gate.require(training(CONFIG))
    with pytest.raises(BoundError, match=r"institution's terms|among the members"):
        gate.narrowed("7", dataclasses.replace(Terms(min_cohort=3, colluders=0), **change))


def test_no_round_is_answered_after_the_standing_consent_has_ended(house: House) -> None:
    """It ended for new runs and after a restart, but not for a run on its way."""
    last = datetime.fromtimestamp(house.now + 86_400, UTC).date().isoformat()
    gate = house.gate("h1", OrderRules(standing=Standing(until=last)))
    gate.consider(shown(house)[0])
    gate.require(training(CONFIG))
    house.now += 3 * 86_400
    with pytest.raises(OrderError, match="does not hold any more"):
        gate.require(training(CONFIG, number=2))
