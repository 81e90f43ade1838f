"""The federation in one process: the deployed coordinator, ClientApp and trainers, with memory between them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sovfed.clients.app import make_client_app
from sovfed.clients.trainer import make_trainer
from sovfed.federation.config import Config, DataConfig
from sovfed.server.coordinator import Outcome, coordinate
from sovfed.server.tracking import Tracker
from sovfed.simulations.grid import InMemoryGrid


def simulate(
    config: Config,
    data: list[DataConfig],
    folder: Path,
    *,
    tracker: Tracker | None = None,
    resume: bool = False,
    on_round: Callable[[dict[str, Any]], None] = lambda line: None,
) -> Outcome:
    """Train over one in-process institution per entry of `data`; the run's folder is `folder`, as in a deployment."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    apps = {
        node: make_client_app(make_trainer(dataclasses.replace(config.client, data=part)))
        for node, part in enumerate(data, start=1)
    }
    config = dataclasses.replace(
        config, server=dataclasses.replace(config.server, min_cohort=len(data), start_cohort=0)
    )
    return coordinate(
        InMemoryGrid(apps, dict(enumerate(institution_names(data), start=1))), config, run="1", folder=folder,
        transport="in-memory", tracker=tracker, resume=resume, on_round=on_round,
    )  # fmt: skip


def sites(config: Config) -> list[DataConfig]:
    """One DataConfig per institution: the four hospitals of `heart`, or equal-named shares of a simulated split."""
    from sovfed.clients.data.uci_heart import SITES

    names = (
        SITES if config.data.source == "uci_heart" else [str(site) for site in range(config.simulation.institutions)]
    )
    return [dataclasses.replace(config.data, site=name, sites=len(names)) for name in names]


def institution_names(data: list[DataConfig]) -> list[str]:
    """A name for each institution: the hospital's own, or hospital-1, hospital-2, …"""
    return [part.site if not part.site.isdigit() else f"hospital-{int(part.site) + 1}" for part in data]
