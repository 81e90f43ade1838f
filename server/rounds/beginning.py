"""The model that a run begins with, where `task.start` names one: a public warm start, or last year's model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sovfed.federation.errors import ConfigError

if TYPE_CHECKING:
    from sovfed.federation.messages import Sums, Vector
    from sovfed.federation.tasks import Task


def read_start(path: Path, task: Task, *, private: bool) -> tuple[Vector, Sums]:
    """The flat vector [d] of the model in `path` and its scale [2f], for a run of `task`.

    The task may be another version of the model's if its columns, tokens and tensors are the same. Raises DataError for
    a file that is no sound model, ConfigError where the task's is another, or where a private run, which scales columns
    by their bounds, cannot go on with how this model's are scaled.
    """
    from sovfed.federation.models.saved import load_model

    loaded = load_model(path, any_version=True)
    theirs = loaded.task
    parts = (
        ("its columns", theirs.schema, task.schema),
        ("its tokenizer", theirs.tokenizer, task.tokenizer),
        ("its tensors", theirs.layout.parts, task.layout.parts),
        ("its frozen weights", theirs.layout.frozen, task.layout.frozen),
    )
    other = [what for what, model, run in parts if model != run]
    if other:
        raise ConfigError(f"{path}: no start for task '{task.name}': {', '.join(other)} are others")
    if private and not np.array_equal(loaded.scale, task.transform.public_scale):
        raise ConfigError(
            f"{path}: no start for a private run: its columns are scaled by what its own run measured, those of a "
            "private run by their declared bounds"
        )
    return loaded.vector, loaded.scale
