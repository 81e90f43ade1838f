"""Rounded models follow those that the steps alone come to, and changes lead institutions to the same ones."""

from __future__ import annotations

import numpy as np
import pytest

from sovfed.federation.changes import changed
from sovfed.federation.config import StrategyConfig
from sovfed.federation.errors import ConfigError, TrainingError
from sovfed.federation.secagg.mask import hash_vector
from sovfed.server.strategies import Averaging, make_optimizer
from sovfed.server.strategies.rounded import OWED, Rounded

SIZE = 5_000


def updates(count: int) -> list[np.ndarray]:
    """Small beside the model, and one value that is large beside the others: their rounding is the coarsest."""
    generator = np.random.default_rng(1)
    made = (1e-5 * generator.normal(size=(count, SIZE)) + 1e-6).astype(np.float32)
    made[:, 0] = 1.0
    return list(made)


def test_rounding_does_not_add_up_over_rounds() -> None:
    model = held = np.zeros(SIZE, np.float32)
    optimizer, exact = Rounded(Averaging()), np.zeros(SIZE)
    for number, update in enumerate(updates(300), start=1):
        model = optimizer.step(number, model, update)
        exact += update
        assert optimizer.change is not None
        assert optimizer.change.base == hash_vector(held).hex()
        held = changed(held, optimizer.change.values)
        assert held.tobytes() == model.tobytes()
        assert optimizer.change.becomes == hash_vector(held).hex()
    step = 2.0**-14  # of a block whose largest value is 1
    assert np.abs(model[1:] - exact[1:])[:4095].max() <= step
    assert np.abs(model[4096:] - exact[4096:]).max() < 1e-6  # a block by itself
    alone = np.zeros(SIZE, np.float32)
    for update in updates(300):  # the same without what is carried on
        alone = Rounded(Averaging()).step(1, alone, update)
    assert np.abs(alone[1:] - exact[1:]).max() > 4 * step


def test_it_goes_on_from_a_checkpoint_to_the_bit() -> None:
    config = StrategyConfig(name="fedavgm", server_momentum=0.9)
    model, optimizer = np.zeros(SIZE, np.float32), Rounded(make_optimizer(config))
    again = Rounded(make_optimizer(config))
    for number, update in enumerate(updates(6), start=1):
        if number == 4:
            again.restore(optimizer.slots())
            assert again.change is None  # whom could it be of use to
            other = model
        model = optimizer.step(number, model, update.copy())
        if number >= 4:
            other = again.step(number, other, update.copy())
            assert other.tobytes() == model.tobytes()


def test_what_is_no_number_and_no_checkpoint_is_refused() -> None:
    optimizer, model = Rounded(Averaging()), np.zeros(2, np.float32)
    with pytest.raises(TrainingError, match="not finite"):
        optimizer.step(1, model, np.array([np.inf, 0], np.float32))
    with pytest.raises(ConfigError, match="remainder"):
        optimizer.restore({OWED: np.array([np.nan])})
    with pytest.raises(ConfigError, match="keeps none"):
        optimizer.restore({"momentum": model})
