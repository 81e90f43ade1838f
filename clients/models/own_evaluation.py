"""A received model on the institution's own records, as `sovfed client model evaluate` measures it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from sovfed.clients.data import load_records
from sovfed.clients.data.tokens import Windows
from sovfed.clients.models.own_figures import own_figures
from sovfed.clients.models.passages import copied_apart
from sovfed.clients.training.local import LocalTraining
from sovfed.federation.errors import ConfigError
from sovfed.federation.tasks.tokenizer import read_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

    from sovfed.clients.models.own_figures import Figures
    from sovfed.federation.config import ClientConfig
    from sovfed.federation.models.saved import LoadedModel


def measure(
    config: ClientConfig, loaded: LoadedModel, plan: dict[str, Any] | None, tokenizer_path: Path | None
) -> Figures:
    """`own_figures`; with a tokenizer, text that stands in the own training text apart. Raises ConfigError."""
    data = config.data_of(loaded.task)
    dataset = load_records(loaded.task, data)
    training = LocalTraining(loaded.task, dataset, site=data.site, device=config.device, precision=config.precision)
    apart = None
    if tokenizer_path is not None:
        if not isinstance(dataset, Windows):
            raise ConfigError(f"task '{loaded.task.name}' learns no text: leave --tokenizer out")
        tokenizer = read_tokenizer(tokenizer_path, loaded.task.tokenizer)
        apart = copied_apart(training, dataset, tokenizer, loaded.vector, loaded.scale)
    return dataclasses.replace(own_figures(loaded, dataset, training, plan), passages=apart)
