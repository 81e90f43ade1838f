"""The federation in one process: the deployed coordinator, ClientApp and trainers, with memory between them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sovfed.clients.app import make_client_app
from sovfed.clients.masking import Masking
from sovfed.clients.trainer import make_trainer
from sovfed.federation.config import SECURE_COHORT, Config, DataConfig
from sovfed.federation.errors import ConfigError
from sovfed.federation.secagg.files import MemoryStore
from sovfed.federation.secagg.local import Authority
from sovfed.federation.secagg.shares import MAX_HOLDERS
from sovfed.federation.secagg.terms import LEAST_COHORT, Terms
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
    if config.secagg.enabled and not SECURE_COHORT <= len(data) <= MAX_HOLDERS:
        raise ConfigError(
            f"{len(data)} institutions; secure aggregation takes {SECURE_COHORT} to {MAX_HOLDERS}: add `secagg=none`"
        )
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    config = dataclasses.replace(
        config, server=dataclasses.replace(config.server, min_cohort=len(data), start_cohort=0)
    )
    names = institution_names(data)
    authority = Authority() if config.secagg.enabled else None
    apps = {
        node: make_client_app(
            make_trainer(dataclasses.replace(config.client, data=part), masking=_masking(authority, name, len(data)))
        )
        for node, (name, part) in enumerate(zip(names, data, strict=True), start=1)
    }
    return coordinate(
        InMemoryGrid(apps, dict(enumerate(names, start=1))), config, run="1", folder=folder, transport="in-memory",
        identity=None if authority is None else authority.server("simulation"), tracker=tracker, resume=resume,
        on_round=on_round,
    )  # fmt: skip


def _masking(authority: Authority | None, name: str, institutions: int) -> Masking | None:
    """A simulated institution's part in secure aggregation, under a certificate of the simulation's own authority."""
    if authority is None:
        return None
    identity, store = authority.institution(name), MemoryStore()
    return Masking(lambda: identity, lambda: store, Terms(min_cohort=min(institutions, LEAST_COHORT)))


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
