"""With 16 bits a value on the way down a run learns what it learns with 32, and half as much goes down."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sovfed.federation.errors import ConfigError
from sovfed.simulations.api import simulate

SETTINGS = {"client": "cpu", "task.batch_size": 8, "evaluate_every": 100}


@pytest.mark.parametrize(
    ("rounds", "more"),
    [
        (100, {"secagg": "none"}),
        (10, {"secagg": "full"}),
        (30, {"secagg": "none", "strategy": "fedavgm", "strategy.ema": 0.9}),
    ],
)
def test_the_loss_is_that_of_whole_models_and_half_as_much_goes_down(
    rounds: int, more: dict[str, object], tmp_path: Path
) -> None:
    whole, rounded = (
        simulate(
            "breast_cancer", rounds=rounds, settings={**SETTINGS, **more, "strategy.down_bits": bits},
            folder=tmp_path / str(bits),
        )
        for bits in (32, 16)
    )  # fmt: skip
    assert rounded.metrics["loss"] == pytest.approx(whole.metrics["loss"], rel=3e-3)
    assert 0 < np.abs(rounded.vector - whole.vector).max() < 0.02 * np.abs(whole.vector).max()
    model, scale = 4 * whole.vector.size, 8 * whole.scale.size
    begin = whole.summary["bytes_down_per_round"] / 4 - model - scale  # M1
    change = rounded.summary["bytes_down_per_round"] / 4 - scale - begin
    assert change == 2 * whole.vector.size + 1


@pytest.mark.parametrize("engine", ["inprocess", "vectorised"])
def test_every_engine_goes_on_from_the_rounded_model(engine: str, tmp_path: Path) -> None:
    settings = {**SETTINGS, "secagg": "none", "strategy.down_bits": 16, "simulation.engine": engine}
    result = simulate("breast_cancer", rounds=5, settings=settings, folder=tmp_path / engine)
    reference = simulate(
        "breast_cancer", rounds=5, settings=settings | {"strategy.down_bits": 32}, folder=tmp_path / "whole"
    )
    np.testing.assert_allclose(result.vector, reference.vector, atol=1e-4)
    assert not np.array_equal(result.vector, reference.vector)


def test_a_model_with_running_variances_is_refused(tmp_path: Path) -> None:
    settings = {**SETTINGS, "secagg": "none", "strategy.down_bits": 16}
    with pytest.raises(ConfigError, match=r"running statistics.*task\.normalisation=group"):
        simulate("digits_cnn", rounds=2, settings=settings, folder=tmp_path / "own")
