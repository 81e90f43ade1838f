"""Flower's strategies that compare the institutions' own updates, so that some of them may be wrong, or fare worse.

They are fed with updates in float64 rather than with models: Flower computes squared distances as |x|² + |y|² − 2xy,
which in float32 loses the distances of models that are close to each other.

Sources: median and trimmed mean, Yin et al. 2018, arXiv:1803.01498, Algorithm 1; Krum and Multi-Krum, Blanchard et al.
2017, arXiv:1703.02757; Bulyan, El Mhamdi et al. 2018, arXiv:1802.07927; q-FedAvg, Li et al. 2020, arXiv:1905.10497,
Algorithm 2, with the round's training loss in place of the loss of the model that was sent.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from flwr.app import Message as FlowerMessage
from flwr.serverapp.strategy import Bulyan, FedAvg, FedMedian, FedTrimmedAvg, MultiKrum, QFedAvg

from sovfed.federation.algorithms.server_half import Averaging
from sovfed.federation.config import StrategyConfig
from sovfed.federation.errors import CohortError, ConfigError
from sovfed.federation.messages import Vector
from sovfed.federation.wire.flower import new_message
from sovfed.server.rounds.aggregation import Total, Update

KEY: Final = "update"


class Robust(Averaging):
    """model + what the strategy makes of the updates."""

    def __init__(self, config: StrategyConfig, learning_rate: float) -> None:
        self._config, self._strategy = config, _make(config, learning_rate)

    def combine(self, round: int, total: Total, present: int) -> Vector:
        """The combined update, shape [d]. Raises CohortError if there are too few for the strategy's guarantee."""
        updates = total.updates
        if len(updates) < self._config.least_cohort:
            raise CohortError(
                f"round {round}: {len(updates)} updates, strategy '{self._config.name}' needs at least "
                f"{self._config.least_cohort}"
            )
        strategy: Any = self._strategy
        if isinstance(strategy, QFedAvg):
            strategy.current_arrays = ArrayRecord({KEY: Array(np.zeros(updates[0].update.shape))})
        replies = [_reply(update) for update in sorted(updates, key=lambda update: update.node_id)]
        arrays, _ = strategy.aggregate_train(round, replies)
        combined: Vector = arrays[KEY].numpy().astype(np.float32)
        return combined


def _make(config: StrategyConfig, learning_rate: float) -> FedAvg:
    match config.name:
        case "fedmedian":
            return FedMedian()
        case "fedtrimmedavg":
            return FedTrimmedAvg(beta=config.trimmed)
        case "krum":
            return MultiKrum(num_malicious_nodes=config.malicious, num_nodes_to_select=config.selected)
        case "bulyan":
            return Bulyan(num_malicious_nodes=config.malicious)
        case "qfedavg":
            return QFedAvg(client_learning_rate=learning_rate, q=config.fairness)
    raise ConfigError(f"'{config.name}' has no server's half")


def _reply(update: Update) -> FlowerMessage:
    metrics = MetricRecord({"num-examples": float(update.count), "train_loss": update.loss})
    content = RecordDict({"arrays": ArrayRecord({KEY: Array(update.update.astype(np.float64))}), "metrics": metrics})
    return new_message(content, run_id=0, node_id=update.node_id, kind="train", group="")
