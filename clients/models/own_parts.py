"""A received model as this institution uses it: with the parts that never left its home in their places."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from sovfed.clients.training.personal import FOLDER, PersonalStates, read
from sovfed.federation.algorithms import LOCAL
from sovfed.federation.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    from sovfed.clients.models.received import Received
    from sovfed.clients.training.personal import Kept
    from sovfed.federation.models.saved import LoadedModel


def with_own_parts(home: Path, received: Received, model: LoadedModel) -> tuple[LoadedModel, str]:
    """`model` with what this institution kept of the same run, and a sentence about it; as it is, and "", without.

    Raises DataError if what was kept does not fit the model, or the run left nothing for a model that needs it.
    """
    state = kept_of(home, received)
    if state is None:
        if model.network is not None and model.task.layout.personal:
            raise DataError(f"run '{received.run}' left no personal part here: this institution took no part in it")
        return model, ""
    return with_parts_of(state, model)


def with_parts_of(state: Kept, model: LoadedModel) -> tuple[LoadedModel, str]:
    """`model` with what was kept in `state`, and a sentence about it. Raises DataError if it does not fit."""
    vector, _ = read(state.path)
    if vector.shape != model.vector.shape:
        raise DataError(f"{state.path}: {vector.shape}, the run's model is {model.vector.shape}")
    own = LOCAL[state.algorithm].own(model.task.layout)
    remark = f"with the parts that stay here (strategy={state.algorithm}), as they were after round {state.round}"
    return placed(model, np.where(own, vector, model.vector)), remark


def placed(model: LoadedModel, vector: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> LoadedModel:
    """`model` with the values of `vector` [d]; its module is changed by it."""
    import torch

    layout = model.task.layout
    with torch.no_grad():
        for layout_part, tensor in zip(layout.parts, layout.tensors(model.module), strict=True):
            tensor.copy_(torch.from_numpy(vector[layout_part.place].copy()).view(layout_part.shape))
    return dataclasses.replace(model)  # without what the old one has computed of its values


def kept_of(home: Path, received: Received) -> Kept | None:
    """What stayed here of the run that `received` is of, the newest; None if nothing did."""
    name = received.facts.task.name
    for state in PersonalStates(home / FOLDER).list():
        matching = (state.run, state.task) == (received.run, name) and state.personal and _partial(state.algorithm)
        if matching and received.owner in (state.flower_run, state.flower_run.partition(".")[0]):
            return state
    return None


def _partial(algorithm: str) -> bool:
    """Whether a part of the model stays here under `algorithm`, and the rest is the federation's."""
    return algorithm in LOCAL and LOCAL[algorithm].partial
