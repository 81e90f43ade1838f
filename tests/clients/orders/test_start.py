"""A run begins with the model that its order names, or institutions answer nothing of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.clients.orders.house import CONFIG, MODEL, SCALE, TASK, House, planned, training, whole
from tests.clients.orders.test_trainer import rounds

from sovfed.clients.orders.rules import OrderRules
from sovfed.federation.config import Config
from sovfed.federation.errors import ConfigError, DeclinedError, OrderError, ProtocolError
from sovfed.federation.files import private_directory
from sovfed.federation.messages import Vector
from sovfed.federation.models.facts import RunFacts
from sovfed.federation.models.saved import save_model
from sovfed.federation.orders.approving import approve
from sovfed.federation.orders.beginning import Beginning, start_digest
from sovfed.federation.orders.order import Proposal, RunOrder, read_proposal
from sovfed.federation.orders.shown import asked
from sovfed.server.orders.beginning import beginning
from sovfed.server.orders.making import Ordering, make_order, read_order, write_order
from sovfed.server.rounds.loop import whole_run
from sovfed.server.rounds.privacy import PrivacyPlan

LAST_YEARS = np.linspace(-1, 1, TASK.parameters).astype(np.float32)
OTHER = LAST_YEARS * np.float32(1.0001)
BEGINS = Beginning(start_digest(LAST_YEARS), "the model of run heart-2026")


def further(tmp_path: Path, vector: Vector = LAST_YEARS, *more: str) -> Config:
    """The settings of a run that trains the model with these parameters further."""
    folder = tmp_path / "last-year"
    folder.mkdir(parents=True, exist_ok=True)
    save_model(folder, TASK, vector, SCALE, RunFacts("last-year"))
    return planned("secagg=none", "rounds=2", "order.wait_s=0", f"task.start={folder / 'model.safetensors'}", *more)


def begun(house: House, name: str, order: RunOrder, run: str = "7") -> Callable[..., None]:
    """What the gate of institution `name` makes of a round under `order`."""
    gate = house.gate(name, OrderRules())
    gate.consider(house.show(whole(CONFIG, run), Proposal(order)))
    return lambda number, model: gate.require(training(CONFIG, run, number=number, model=model))


def made(house: House, begins: Beginning, run: str = "study") -> RunOrder:
    return make_order(CONFIG, run, whole(CONFIG), house.now, (), begins)


def test_a_trainer_begins_with_the_ordered_model_and_with_no_other(house: House) -> None:
    require = begun(house, "h1", made(house, BEGINS))
    for model in (OTHER, MODEL, LAST_YEARS[:-1], -LAST_YEARS):
        with pytest.raises(OrderError, match="the model that it begins with"):
            require(1, model)
    require(1, LAST_YEARS)
    require(1, LAST_YEARS)  # repeated
    require(2, OTHER)  # as others have trained it
    with pytest.raises(OrderError, match="the model that it begins with"):
        require(1, OTHER)


def test_a_run_made_anew_goes_on_from_the_ordered_model(house: House) -> None:
    after = Beginning(start_digest(LAST_YEARS), "the model of run study after its round 4", 4)
    require = begun(house, "h1", made(house, after))
    for number in (1, 4):
        with pytest.raises(OrderError, match=f"round {number}, which was before it begins"):
            require(number, LAST_YEARS)
    with pytest.raises(OrderError, match="the model that it begins with"):
        require(5, OTHER)
    require(5, LAST_YEARS)
    require(6, OTHER)


def test_an_order_of_before_says_nothing_and_is_held_as_it_was(house: House) -> None:
    require = begun(house, "h1", made(house, Beginning()))
    require(1, OTHER)
    assert not any(line.startswith("begins") for line in asked(made(house, Beginning())))


def test_a_private_run_begins_with_the_ordered_model_too(house: House) -> None:
    config = planned("privacy=distributed", "privacy.epsilon=2")
    plan = PrivacyPlan.make(config, "study", TASK.parameters)
    order = make_order(config, "study", whole_run(config, TASK, "7", "study", plan), house.now, (), BEGINS)
    for model, says in ((OTHER, "the model that it begins with"), (LAST_YEARS, "")):
        asks = dataclasses.replace(plan.request("7", 1, model), begin=np.ones(1, np.uint8))
        assert order.forbids(asks) == says


def test_an_agency_that_omits_what_a_run_begins_with_shows_another_order(house: House) -> None:
    """The officer signed the one that names the model: under any other nothing is answered."""
    gate = house.gate("h1", house.required("h1"))
    order = made(house, BEGINS)
    house.answer("h1", order.digest)
    assert gate.consider(house.show(whole(CONFIG), Proposal(order)))[0] == "signed"
    silent = dataclasses.replace(order, start="", start_from="")
    assert gate.consider(house.show(whole(CONFIG, "8"), Proposal(silent)))[0] == "awaiting"
    with pytest.raises(OrderError):
        gate.require(training(CONFIG, "8", number=1, model=OTHER))
    with pytest.raises(OrderError, match="the model that it begins with"):
        gate.require(training(CONFIG, number=1, model=OTHER))


def test_institutions_give_nothing_to_a_run_that_begins_with_another_model(house: House, tmp_path: Path) -> None:
    """Trainers of three institutions, and an agency that is honest, or sends another model than it has ordered."""
    folder, config = private_directory(tmp_path / "run"), further(tmp_path)
    for sent in (OTHER, LAST_YEARS):
        made = rounds(house, folder, OrderRules(), OrderRules(), OrderRules())
        made.order = Ordering(config, "study", folder, house.agency)
        made.agree()
        order = read_order(folder)
        assert order is not None and order.order.start == start_digest(LAST_YEARS)
        made.model, made.scale = sent.copy(), SCALE
        if sent is OTHER:
            with pytest.raises(DeclinedError, match="order"):
                made.train(1)
        else:
            assert sorted(made.train(1).participants) == [1, 2, 3]
            assert not np.array_equal(made.model, sent)
            assert sorted(made.train(2).participants) == [1, 2, 3]  # with what the first round has made


def test_the_coordinator_shows_no_approved_order_for_another_beginning(house: House, tmp_path: Path) -> None:
    """Neither one that omits it, nor one of a model that was exchanged since."""
    folder, config = private_directory(tmp_path / "run"), further(tmp_path)
    request, person = whole(config), house.person("ann")
    approved = approve(Proposal(make_order(config, "study", request, house.now, (), beginning(config))), person)
    write_order(folder, approved)
    shown = read_proposal(Ordering(config, "study", folder, house.agency)(request).tobytes())
    assert shown.order == approved.order and shown.order.start_from == "the model in last-year"
    named = f"the model in last-year, file SHA-256 {shown.order.start_file}"
    assert any(shown.order.start in line and named in line for line in asked(shown.order))
    silent = approve(Proposal(make_order(config, "study", request, house.now)), person)
    write_order(folder, silent)
    with pytest.raises(ConfigError, match="begins with another model"):
        Ordering(config, "study", folder, house.agency)(request)
    write_order(folder, approved)
    with pytest.raises(ConfigError, match="begins with another model"):
        Ordering(further(tmp_path / "other", OTHER), "study", folder, house.agency)(request)
    unstarted = dataclasses.replace(config, task=dataclasses.replace(config.task, start=None))
    with pytest.raises(ConfigError, match="begins with another model"):
        Ordering(unstarted, "study", folder, house.agency)(request)


@pytest.mark.parametrize(
    "changes",
    [
        {"start": ""}, {"start_from": ""}, {"start": "ab"}, {"start": "", "start_from": "", "start_round": 3},
        {"start": "", "start_from": "", "start_file": "ab" * 32}, {"start_file": "ab"},
        {"start_from": f"the model of run x, file SHA-256 {'cd' * 32}", "start_file": "ab" * 32},
        {"start_file": "0" * 63 + "x"}, {"start_file": "AB" * 32},
    ],
)  # fmt: skip
def test_half_a_beginning_is_none(house: House, changes: dict[str, str]) -> None:
    order = made(house, BEGINS)
    with pytest.raises(ValueError, match=r"begins|a-f"):
        dataclasses.replace(order, **changes)  # type: ignore[arg-type]
    whole_ = Proposal(order).to_bytes()
    with pytest.raises(ProtocolError):
        read_proposal(whole_.replace(b'"start_from":"the model of run heart-2026",', b""))


def test_an_order_from_before_the_file_had_a_field_is_read_as_it_is_meant(house: House) -> None:
    words = f"the model of run heart-2026, file SHA-256 {'ab' * 32}"
    old = dataclasses.replace(made(house, BEGINS), start_from=words)
    new = dataclasses.replace(old, start_from="the model of run heart-2026", start_file="ab" * 32)
    assert "start_file" not in old.spelled and old.begins.file == new.begins.file == "ab" * 32
    assert old.begins.words == new.begins.words == words
    again = read_proposal(Proposal(old).to_bytes()).order
    assert again.digest == old.digest != new.digest


def test_an_order_without_a_beginning_is_spelled_as_before(house: House) -> None:
    assert not {"start", "start_from", "start_round", "start_file", "keys"} & made(house, Beginning()).spelled.keys()
    assert {"start", "start_from"} <= made(house, BEGINS).spelled.keys()
