"""A simulation's configuration, with the connector that reads its records."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from sovfed.clients.data.chosen import AUTO, settled
from sovfed.federation.compose import compose
from sovfed.federation.config import Config
from sovfed.federation.tasks.registry import configured_task


def simulated(overrides: Sequence[str]) -> Config:
    """What `overrides` choose; the connector is that of what lies at data.path, where none is named.

    Raises ConfigError, and DataError where nothing that can be read lies there.
    """
    return with_connector(compose(overrides).config)


def with_connector(config: Config) -> Config:
    """`config`, its data by the connector of what lies at data.path where none is named. Raises as `simulated`."""
    if config.data.source != AUTO:
        return config
    return dataclasses.replace(config, data=settled(config.data, configured_task(config.task).schema))
