"""A coordinator waits for those whom its run is for, and counts nobody else."""

from __future__ import annotations

import pytest

from sovfed.clients.node.app import make_client_app
from sovfed.clients.trainer.service import make_trainer
from sovfed.federation.compose import compose
from sovfed.federation.config import ClientConfig, DataConfig
from sovfed.federation.errors import CohortError
from sovfed.server.runs.app import _wait_for_cohort
from sovfed.simulations.grid import InMemoryGrid


@pytest.mark.parametrize(("cohort", "enough"), [("h1,h2,h3", False), ("h1,h2,h4", True), ("", True)])
def test_who_is_not_in_the_cohort_does_not_begin_the_run(cohort: str, enough: bool) -> None:
    """h3 is away."""
    app = make_client_app(make_trainer(ClientConfig(device="cpu", data=DataConfig(site="1"))))
    names = {1: "h1", 2: "h2", 4: "h4", 5: "h5"}
    grid = InMemoryGrid(dict.fromkeys(names, app), names)
    config = compose([
        "task=breast_cancer", "server.min_cohort=3", "privacy.colluders=0", "server.node_wait_s=0.2",
        f"order.cohort=[{cohort}]",
    ]).config  # fmt: skip
    asked = config.order.cohort

    def wait() -> int:
        return len(_wait_for_cohort(grid, config, lambda name: not asked or name in asked))

    if enough:
        assert wait() == 4
    else:
        with pytest.raises(CohortError, match="2 institutions are connected"):
            wait()
