"""A task as data: `task.yaml` makes a `Task`, with a model of an allowed family. Nothing in the file is run."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from sovfed.federation.errors import ConfigError
from sovfed.federation.files import not_there
from sovfed.federation.metrics import (
    BinaryMetrics,
    ClassMetrics,
    Metric,
    MultiLabelMetrics,
    RegressionMetrics,
    SurvivalMetrics,
    TokenMetrics,
)
from sovfed.federation.schema import nearest
from sovfed.federation.tasks import Task, losses
from sovfed.federation.tasks.document import MAX_BYTES
from sovfed.federation.tasks.families import CausalLM, require_size
from sovfed.federation.tasks.taskfile import TaskFile, read_text, to_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from torch import Tensor
    from torch.nn import Module

    from sovfed.federation.tasks.trees import Tree

__all__ = ["DeclaredTask", "TaskFile", "read_task", "task_from_text", "task_of", "to_text"]

MOST_BINS: Final = 4_096  # of all outputs' histograms together
MOST_VALUES: Final = 1 << 24  # that an evaluation's batch computes at once
LARGEST_BATCH: Final = 8_192


@dataclass(frozen=True, eq=False)
class DeclaredTask(Task):
    """A task that a file declares. `file` is all that it says."""

    file: TaskFile | None = None

    @property
    def training(self) -> Mapping[str, Any]:
        """The recommended settings of a run, by name; those that the file leaves open are not there."""
        values = {} if self.file is None else dataclasses.asdict(self.file.training)
        return {name: value for name, value in values.items() if value is not None}

    @property
    def base(self) -> str:
        """The digest of the model of Hugging Face that it builds on; "" if on none."""
        return self.file.model.base if self.file is not None and isinstance(self.file.model, CausalLM) else ""

    @property
    def card(self) -> Mapping[str, str]:
        """Texts for people, by name."""
        return {} if self.file is None else dataclasses.asdict(self.file.card)


def read_task(path: Path) -> DeclaredTask:
    """The task that the file `path` declares. Raises ConfigError, naming the file."""
    try:
        if not path.is_file():
            raise ConfigError(f"{path}: it is a folder" if path.is_dir() else not_there(path))
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: not readable: {error.strerror}") from error
    try:
        return task_from_text(data)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def task_from_text(text: bytes | str) -> DeclaredTask:
    """The task that `text` declares. Raises ConfigError, and nothing else, whatever the bytes are."""
    return task_of(read_text(text))


def task_of(file: TaskFile) -> DeclaredTask:
    """The task that `file` means; its digest changes with any of the file's values. Raises ConfigError."""
    metrics, loss, outputs = _learning(file)
    headline = file.headline or metrics.names[0]
    if headline not in metrics.names:
        raise ConfigError(f"'headline' is {headline!r}{nearest(headline, metrics.names)}")

    def build() -> Module:
        require_size(file.model, file.schema, outputs)
        return file.model.make(file.schema, outputs)

    several = bool(file.schema.shaped) and len(file.schema.shaped) < len(file.schema.inputs)
    return DeclaredTask(
        name=file.name, title=file.title, version=file.version, schema=file.schema, metrics=metrics, headline=headline,
        build=build, loss=loss, predict=_whole if several else None, licence=file.card.licence,
        citation=file.card.citation, code=file.digest, file=file, text=to_text(file),
        personal=file.model.is_personal(file.schema, outputs),
        tokenizer=file.target.tokenizer,
        evaluation_batch=int(np.clip(MOST_VALUES // max(1, file.model.values(file.schema)), 1, LARGEST_BATCH)),
    )  # fmt: skip


def _learning(file: TaskFile) -> tuple[Metric, Callable[[Tensor, Any], Tensor], int]:
    """Metrics, loss and the number of the model's outputs."""
    target = file.target
    match target.kind:
        case "binary":
            return BinaryMetrics(), losses.binary_cross_entropy, 1
        case "classes":
            count = len(target.classes)
            return ClassMetrics(count, _bins(count)), losses.cross_entropy, count
        case "labels":
            count = len(target.columns)
            return MultiLabelMetrics(target.columns, _bins(count)), losses.multilabel(target.columns), count
        case "number":
            return RegressionMetrics(), losses.huber if target.loss == "huber" else losses.squared_error, 1
        case "next_token":
            return TokenMetrics(), losses.counted_tokens, int(file.schema.shaped[0].high) + 1
        case _:
            edges = target.cuts
            loss = losses.discrete_hazards(target.time, target.event, edges)
            return SurvivalMetrics(target.time, target.event, edges), loss, len(edges) - 1


def _bins(outputs: int) -> int:
    """Of each output's two histograms."""
    return max(8, min(128, MOST_BINS // outputs))


def _whole(module: Module, inputs: Tree) -> object:
    """The module with all its inputs as one tree."""
    return module(inputs)
