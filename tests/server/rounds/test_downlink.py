"""Half the bytes down: who holds the last model gets what has changed of it, everybody else the whole one."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from tests.server.rounds.secure_world import TASK, World

from sovfed.federation.changes import change_of, change_size, changed
from sovfed.federation.messages import Refusal, Request, TrainRequest
from sovfed.federation.secagg.files import MemoryStore
from sovfed.federation.secagg.mask import hash_vector
from sovfed.server.rounds.downlink import Downlink
from sovfed.server.rounds.loop import Rounds
from sovfed.server.strategies import optimizer_of, rounded_of

WHOLE, CHANGE = 4 * TASK.parameters, change_size(TASK.parameters)


class Down:
    """A world whose models go down as changes, and what each institution was sent of models."""

    def __init__(self, *overrides: str, count: int = 4) -> None:
        self.world = World(count, "strategy.down_bits=16", "task.batch_size=8", *overrides)
        self.rounds = self.world.rounds
        self.rounds.optimizer = optimizer_of(self.world.config, TASK)
        self.rounds.aggregation._downlink = Downlink(rounded_of(self.rounds.optimizer))  # type: ignore[attr-defined]
        self.rounds.scale = TASK.transform.public_scale
        self.sent: dict[int, list[int]] = {}
        for node in self.world.places:
            self.listen(node)

    def listen(self, node: int) -> None:
        def heard(request: Request) -> None:
            if isinstance(request, TrainRequest):
                self.sent.setdefault(node, []).append(request.model.nbytes + request.change.nbytes)

        self.world.places[node].before = heard

    def restart(self, node: int) -> None:
        """The trainer starts anew, with the home that it had."""
        masking = self.world.places[node].trainer._masking
        self.world.add(node, MemoryStore())
        self.world.places[node].trainer._masking = masking
        self.listen(node)

    def train(self, number: int, rounds: Rounds | None = None) -> list[int]:
        """Who took part in round `number`."""
        self.sent.clear()
        return sorted((rounds or self.rounds).train(number).participants)


SECAGG = pytest.mark.parametrize("secagg", ["secagg=full", "secagg=none"])


@SECAGG
def test_after_the_first_round_a_change_goes_down_to_everybody(secagg: str) -> None:
    down = Down(secagg)
    assert down.train(1) == [1, 2, 3, 4]
    assert down.sent == {node: [WHOLE] for node in range(1, 5)}
    for number in (2, 3):
        assert down.train(number) == [1, 2, 3, 4]
        assert down.sent == {node: [CHANGE] for node in range(1, 5)}


@SECAGG
def test_who_missed_a_round_or_was_started_anew_is_in_the_next_with_the_whole_model(secagg: str) -> None:
    down = Down(secagg)
    down.train(1)
    down.restart(2)
    assert down.train(2) == [1, 2, 3, 4]
    assert down.sent == {1: [CHANGE], 2: [CHANGE, WHOLE], 3: [CHANGE], 4: [CHANGE]}
    app = down.world.apps.pop(3)
    assert down.train(3) == [1, 2, 4]
    assert down.sent == {1: [CHANGE], 2: [CHANGE], 4: [CHANGE]}
    down.world.apps[3] = app
    assert down.train(4) == [1, 2, 3, 4]
    assert down.sent == {1: [CHANGE], 2: [CHANGE], 3: [WHOLE], 4: [CHANGE]}


@SECAGG
def test_a_run_that_is_taken_up_begins_with_the_whole_model_and_goes_on_where_it_was(secagg: str) -> None:
    """To the bit in the clear; masked sums are rounded at random."""
    straight, broken = Down(secagg), Down(secagg)
    for down in (straight, broken):
        down.train(1)
        down.train(2)
    again = broken.world.another_run("8")
    again.name, again.scale, again.model = "7", broken.rounds.scale, broken.rounds.model.copy()
    again.optimizer = optimizer_of(broken.world.config, TASK)
    again.optimizer.restore(broken.rounds.optimizer.slots())
    again.aggregation._downlink = Downlink(rounded_of(again.optimizer))  # type: ignore[attr-defined]
    broken.train(3, again)
    assert broken.sent == {node: [WHOLE] for node in range(1, 5)}
    straight.train(3)
    tolerance = 0.0 if secagg == "secagg=none" else 1e-4
    np.testing.assert_allclose(again.model, straight.rounds.model, rtol=0, atol=tolerance)
    broken.train(4, again)
    assert broken.sent == {node: [CHANGE] for node in range(1, 5)}


def test_an_agency_that_changes_one_institutions_model_otherwise_gets_no_sum_of_it() -> None:
    """The change fits its own digest; M1, which all have, names another model."""
    down = Down("secagg=full")
    down.train(1)
    place = down.world.places[2]
    answered = place.trainer.answer

    def otherwise(request: Request) -> object:
        if isinstance(request, TrainRequest) and request.change.size:
            crafted = change_of(np.full(TASK.parameters, 3, np.float32))
            model = changed(place.trainer._held._held["7"].values, crafted)
            request = dataclasses.replace(request, change=crafted, becomes=hash_vector(model).hex())
        return answered(request)

    place.trainer.answer = otherwise  # type: ignore[method-assign, assignment]
    assert down.train(2) == [1, 3, 4]
    assert Refusal("protocol") in place.replies


def test_without_the_setting_every_round_brings_the_whole_model() -> None:
    world = World(3)
    world.rounds.scale = TASK.transform.public_scale
    sent: list[tuple[int, bool]] = []

    def heard(request: Request) -> None:
        if isinstance(request, TrainRequest):
            sent.append((request.model.nbytes, request.hold))

    world.places[1].before = heard
    for number in (1, 2):
        world.rounds.train(number)
    assert sent == [(WHOLE, False)] * 2
