"""An order has one spelling, and one that claims less than its run takes is not that run's."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.clients.orders.house import CONFIG, TASK, House, planned, whole

from sovfed.federation.errors import ConfigError, IdentityError, ProtocolError
from sovfed.federation.orders.answers import Answer, read_answer
from sovfed.federation.orders.order import MAX_BYTES, MAX_COHORT, Proposal, RunOrder, read_proposal
from sovfed.federation.text import LAST_MOMENT, day
from sovfed.server.orders.making import make_order
from sovfed.server.rounds.loop import whole_run
from sovfed.server.rounds.privacy import PrivacyPlan

NOW = 1_800_000_000.0


def order(**changes: Any) -> RunOrder:
    return dataclasses.replace(make_order(CONFIG, "study", whole(CONFIG), NOW), **changes)


def spelled(**changes: Any) -> bytes:
    """A proposal with raw values in its order, in the one spelling that JSON would have."""
    values = json.loads(Proposal(order()).to_bytes())
    values["order"] |= changes
    return json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def test_a_proposal_survives_its_spelling() -> None:
    proposal = Proposal(order(purpose="für die Forschung – 研究", cohort=("h1", "h2")))
    assert read_proposal(proposal.to_bytes()) == proposal
    assert read_proposal(proposal.to_bytes()).order.digest == proposal.order.digest


@pytest.mark.parametrize("moment", [LAST_MOMENT + 1, 2**40, -1])
def test_a_moment_that_no_calendar_has_is_refused_where_it_is_read(moment: int) -> None:
    with pytest.raises(ProtocolError):
        read_proposal(spelled(expires=moment))
    with pytest.raises(IdentityError):
        read_answer(json.dumps(dataclasses.asdict(Answer("0" * 64, "h1", at=moment))).encode(), "x")
    read_proposal(spelled(expires=LAST_MOMENT))


def test_a_moment_is_told_whatever_it_is() -> None:
    assert day(0) == "1970-01-01 00:00 UTC" and day(LAST_MOMENT, "%F") == "9999-12-31"
    for moment in (2**40, -(2.0**70), float("inf"), float("nan")):
        assert day(moment) == "on no day that there is"


def test_every_field_is_in_the_digest() -> None:
    base = order(cohort=("h2",), start="0" * 64, start_from="the model of run first", start_file="0" * 64)
    digests = {base.digest}
    for field in dataclasses.fields(RunOrder):
        value = getattr(base, field.name)
        changes: dict[type, Any] = {
            str: lambda text: text[:-1] + ("1" if text[-1:] != "1" else "2") if text else "x",
            tuple: lambda _: ("h1",), bool: lambda flag: not flag, int: lambda number: number + 1,
            float: lambda number: number + 0.25,
        }  # fmt: skip
        digests.add(dataclasses.replace(base, **{field.name: changes[type(value)](value)}).digest)
    assert len(digests) == 1 + len(dataclasses.fields(RunOrder))


@pytest.mark.parametrize(
    "data",
    [
        b"", b"[]", b"{", b"{}", b"null", b"[" * 5_000, b"x" * (MAX_BYTES + 1), Proposal(order()).to_bytes() + b" ",
        Proposal(order()).to_bytes().replace(b'"rounds":10', b'"rounds":10.0'),
        Proposal(order()).to_bytes().replace(b'"rounds":10', b'"rounds":10,"rounds":11'),
        Proposal(order()).to_bytes().replace(b"study", b"st\\u0075dy"),
    ],
    ids=range(11),
)  # fmt: skip
def test_an_order_that_is_not_in_its_one_spelling_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        read_proposal(data)


@pytest.mark.parametrize(
    "change",
    [
        {"purpose": "a\x1b[2J"}, {"purpose": "line\nline"}, {"purpose": "right\u202eleft"}, {"purpose": ""},
        {"purpose": "x" * 501}, {"run": "../../etc"}, {"run": "-rf"}, {"permit": "a/b"}, {"rounds": 0},
        {"rounds": True}, {"epsilon": -1.0}, {"expires": 0}, {"task_digest": "0" * 63}, {"kind": "secagg"},
        {"cohort": ["h1", "h1"]}, {"cohort": [f"h{number}" for number in range(MAX_COHORT + 1)]}, {"unknown": 1},
        {"cohort": "h1"}, {"masked": 1}, {"clip": float("1e300")}, {"work": ""},
    ],
    ids=lambda change: f"{next(iter(change.items()))!a}"[:30],
)  # fmt: skip
def test_odd_text_in_an_order_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        read_proposal(spelled(**change))


def test_an_order_that_claims_less_epsilon_than_its_run_costs_is_refused(tmp_path: Path) -> None:
    from sovfed.clients.orders.rules import OrderRules
    from sovfed.federation.errors import OrderError

    config = planned("privacy=distributed", "privacy.epsilon=2", "rounds=10")
    plan = PrivacyPlan.make(config, "study", TASK.parameters)
    request = whole_run(config, TASK, "7", "study", plan)
    house = House(tmp_path)
    honest = house.proposal(request, config)
    assert 1.9 < honest.order.epsilon <= 2.01 and honest.order.delta == config.privacy.delta
    gate = house.gate("h1", OrderRules())
    assert gate.consider(house.show(request, honest))[0] == "standing"
    for claim in (1.0, 0.0):
        lie = dataclasses.replace(honest, order=dataclasses.replace(honest.order, epsilon=claim))
        with pytest.raises(OrderError, match="epsilon"):
            gate.consider(house.show(request, lie))


def test_an_order_holds_a_run_to_settings_that_came_after_it(tmp_path: Path) -> None:
    """What it does not say is as it always was: an upgrade spoils no order, and opens none."""
    config = planned("privacy=distributed", "privacy.epsilon=2", "rounds=10")
    plan = PrivacyPlan.make(config, "study", TASK.parameters)
    order = House(tmp_path).proposal(whole_run(config, TASK, "7", "study", plan), config).order
    assert "person_records" not in order.settings
    asked = plan.request("7", 3, np.zeros(TASK.parameters, np.float32))
    begun = dataclasses.replace(asked, begin=np.ones(1, np.uint8))
    assert order.forbids(begun) == ""
    assert order.forbids(dataclasses.replace(begun, person_records=5)) == "person_records"


def test_a_run_is_held_to_what_was_approved(tmp_path: Path) -> None:
    """The coordinator sends no approved order for anything else, and none that has ended."""
    from sovfed.server.orders.making import Ordering, read_order, write_order

    house, request = House(tmp_path), whole(CONFIG)
    ordering = Ordering(CONFIG, "study", tmp_path, house.agency)
    first = read_proposal(ordering(request).tobytes())
    assert read_proposal(ordering(request).tobytes()).order == first.order  # a resumed run shows the same
    other = dataclasses.replace(request, sums=99)
    assert read_proposal(ordering(other).tobytes()).order.sums == 99  # nobody had approved the first
    ann = house.person("ann")
    from sovfed.federation.orders.approving import approve

    kept = read_order(tmp_path)
    assert kept is not None
    write_order(tmp_path, approve(approve(kept, ann), ann))
    assert len(read_proposal(ordering(other).tobytes()).approvals) == 1
    with pytest.raises(ConfigError, match="propose the run anew"):
        ordering(request)
