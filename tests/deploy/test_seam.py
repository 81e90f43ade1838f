"""Simulation and deployment are one code path: the same seed gives the same model over all three Grids."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from tests.deploy.conftest import finished, make_config, summary

from sovfed.server.runs import folders
from sovfed.server.runs.release import read_model
from sovfed.simulations.deployment import LocalFederation
from sovfed.simulations.federation import simulate

pytestmark = pytest.mark.deploy


@pytest.mark.parametrize(
    ("lane", "strategy", "secagg"),
    [
        ("stream", "fedavg", "none"), ("flower", "fedavg", "none"), ("stream", "fedadam", "none"),
        ("stream", "fedavg", "full"), ("flower", "fedadam", "full"), ("stream", "scaffold", "none"),
        ("stream", "ditto", "full"),
    ],
)  # fmt: skip
def test_deployment_and_simulation_train_the_same_model(
    federation: LocalFederation, tmp_path: Path, lane: str, strategy: str, secagg: str
) -> None:
    config = make_config("rounds=2", "seed=5", f"strategy={strategy}", f"server.lane={lane}", f"secagg={secagg}")
    name = f"seam-{lane}-{strategy}-{secagg}"
    settings = dataclasses.replace(federation.config.server, lane=lane)
    folders.start_run(
        federation.control, federation.home, name, dataclasses.replace(config, server=settings), resume=False
    )
    lines = finished(federation, name)
    simulated = simulate(config, [member.data for member in federation.institutions], tmp_path)
    deployed = read_model(folders.run_folder(federation.home, name))
    if secagg == "none":
        np.testing.assert_array_equal(deployed.scale, simulated.scale)
        np.testing.assert_array_equal(deployed.vector, simulated.model)
    else:  # values are rounded at random, to a millionth of the clip
        np.testing.assert_allclose(deployed.scale, simulated.scale, rtol=1e-12)
        np.testing.assert_allclose(deployed.vector, simulated.model, atol=1e-6 * config.secagg.clip)
    assert summary(federation, name)["transport"] == lane
    assert summary(federation, name)["metrics"] == pytest.approx(simulated.summary["metrics"], rel=1e-4)
    assert [len(line["participants"]) for line in lines] == [4, 4]
