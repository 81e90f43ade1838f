"""Any strategy of Flower's own kind, as it is: it is shown one reply, the model that the round's replies add up to.

So it works where only their sum is known. What it keeps from round to round is its own, and in no checkpoint.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.app import Message as FlowerMessage
from flwr.serverapp import Grid

from sovfed.federation.errors import ConfigError, TrainingError
from sovfed.federation.wire.flower import new_message

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sovfed.federation.algorithms.server_half import Slots
    from sovfed.federation.messages import Vector
    from sovfed.federation.tasks.layout import Layout

WHOLE: Final = "model"  # the one array, where the model has no layout
NODES: Final = 100  # that a strategy is told of: more than it waits for


class StockStrategy:
    """`strategy` (flwr.serverapp.strategy.Strategy), whose arrays are the model's parameters by name."""

    def __init__(self, strategy: Any, layout: Layout | None) -> None:
        self._strategy, self._layout = strategy, layout
        self._grid = _Everybody()

    def step(self, round: int, model: Vector, mean_update: Vector) -> Vector:
        """The next model, shape [d]. Raises TrainingError if the strategy makes none."""
        _identify()
        self._strategy.configure_train(round, self._arrays(model), ConfigRecord(), self._grid)
        reply = self._reply(np.add(model, mean_update, dtype=np.float32))
        arrays, _ = self._strategy.aggregate_train(round, [reply])
        if arrays is None:
            raise TrainingError(f"round {round}: {type(self._strategy).__name__} made no model")
        parts = [arrays[name].numpy().astype(np.float32).reshape(-1) for name, _, _ in self._places(model.size)]
        return np.concatenate(parts)

    def slots(self) -> Slots:
        return {}

    def restore(self, slots: Slots) -> None:
        """Raises ConfigError: what the strategy had kept is lost."""
        raise ConfigError(f"{type(self._strategy).__name__} keeps its state to itself, so the run cannot be resumed")

    def _places(self, size: int) -> list[tuple[str, slice, tuple[int, ...]]]:
        """Name, place and shape of each array of a vector of length `size`: of trained parameters only, or of all."""
        if self._layout is None:
            return [(WHOLE, slice(0, size), (size,))]
        return [(spec.name, spec.place, spec.shape) for spec in self._layout.parts if spec.place.stop <= size]

    def _arrays(self, vector: Vector) -> ArrayRecord:
        places = self._places(vector.size)
        return ArrayRecord({name: Array(vector[span].reshape(shape)) for name, span, shape in places})

    def _reply(self, vector: Vector) -> FlowerMessage:
        metrics = MetricRecord({"num-examples": 1.0})
        content = RecordDict({"arrays": self._arrays(vector), "metrics": metrics})
        return new_message(content, run_id=0, node_id=0, kind="train", group="")


def _identify() -> None:
    """Messages, which a strategy makes and nobody sends here, must be some run's; outside of a Flower run none is."""
    from flwr.supercore.task_identity import TaskIdentity

    for name in ("run_id", "node_id", "task_id"):
        try:
            getattr(TaskIdentity, name)
        except RuntimeError:
            setattr(TaskIdentity, name, 0)


class _Everybody(Grid):
    """The grid that a strategy may ask who is there; who takes part is the coordinator's matter."""

    def set_run(self, run: Any) -> None: ...

    @property
    def run(self) -> Any:
        raise ConfigError("a strategy may not ask for the run here")

    def create_message(self, *args: Any, **kwargs: Any) -> FlowerMessage:
        raise ConfigError("a strategy may not make messages here")

    def get_node_ids(self) -> Iterable[int]:
        return range(NODES)

    def push_messages(self, messages: Iterable[FlowerMessage]) -> Iterable[str]:
        raise ConfigError("a strategy may not send messages here")

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[FlowerMessage]:
        raise ConfigError("a strategy may not fetch messages here")

    def send_and_receive(self, messages: Iterable[FlowerMessage], *, timeout: float | None = None) -> Any:
        raise ConfigError("a strategy may not send messages here")
