"""Whose records a study has: the population that is charged, and what the ledger knows such records by."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from sovfed.clients.ledger.entries import Whose

if TYPE_CHECKING:
    from sovfed.federation.config import ClientConfig
    from sovfed.federation.tasks import Task


def whose_of(config: ClientConfig, task: Task) -> Whose:
    """Whose records a run of `task` reads, as the ledger knows them. Raises WrongTaskError."""
    return whose_in(config, config.study_of(task), task.name)


def whose_in(config: ClientConfig, study: str, task: str) -> Whose:
    """Whose records `study` has; they are known by the study, by the task's name, and by where they lie."""
    data = config.each_data()[study]
    keys = [f"task {task}"]
    keys += [
        f"{kind} {os.path.realpath(location)}" for kind in ("path", "url_file") if (location := getattr(data, kind))
    ]
    if data.path is None and data.url_file is None:
        keys.append(f"source {data.source}")
    return Whose(config.population_of(study), study, tuple(keys))
