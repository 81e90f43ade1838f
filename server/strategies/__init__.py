"""The server's half of every strategy, by name.

Those with a half at the institutions, and FedAvg, have both in `federation/algorithms/`; the others are here:
`adaptive.py` with moments of the mean update, `central.py` FedSGD, `robust.py` Flower's classes that compare the
institutions' own updates, `stock.py` any strategy of Flower's kind. `stepping.py` keeps all of them off the running
statistics, `averaged.py` a running average beside any that sees sums alone, `rounded.py` rounds models.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sovfed.federation.algorithms import ALGORITHMS
from sovfed.federation.algorithms.server_half import Averaging, Combining, Controlling, ServerOptimizer, Slots
from sovfed.federation.config import STRATEGIES, StrategyConfig
from sovfed.federation.plan import CONSTANT, LocalPlan, Schedule
from sovfed.server.strategies.averaged import Averaged
from sovfed.server.strategies.rounded import Rounded

if TYPE_CHECKING:
    from sovfed.federation.config import Config
    from sovfed.federation.tasks import Task
    from sovfed.federation.tasks.layout import Layout

__all__ = [
    "Averaging",
    "Combining",
    "Controlling",
    "ServerOptimizer",
    "Slots",
    "make_optimizer",
    "optimizer_of",
    "rounded_of",
]


def optimizer_of(config: Config, task: Task) -> ServerOptimizer:
    """The server optimizer of a run. Raises ConfigError."""
    layout = None if task.build is None else task.layout
    optimizer = make_optimizer(
        config.strategy, config.task.learning_rate, layout=layout, trained=None if layout is None else layout.trained,
        plan=config.task.plan(), schedule=config.task.schedule_over(config.rounds),
    )  # fmt: skip
    if config.strategy.rounds_models:
        optimizer = Rounded(optimizer)
    return Averaged(optimizer, config.strategy.ema) if config.strategy.ema else optimizer


def rounded_of(optimizer: ServerOptimizer) -> Rounded | None:
    """The part of `optimizer` that rounds models for their way down, if it has one."""
    inner = optimizer.inner if isinstance(optimizer, Averaged) else optimizer
    return inner if isinstance(inner, Rounded) else None


def make_optimizer(
    config: StrategyConfig,
    learning_rate: float = 1.0,
    *,
    layout: Layout | None = None,
    trained: int | None = None,
    plan: LocalPlan | None = None,
    schedule: Schedule = CONSTANT,
) -> ServerOptimizer:
    """The optimizer that `config.name` names; ConfigError with the nearest name otherwise.

    `learning_rate` is that of the institutions. Of the vector the first `trained` places are stepped and the rest, its
    running statistics, averaged; None: all are stepped. `plan` and `schedule` are of the optimizer under `fedsgd`.
    """
    optimizer = _make(config, learning_rate, layout, trained, plan, schedule)
    if isinstance(optimizer, Averaging):  # which moves every place by its mean
        return optimizer
    if trained is None or (layout is not None and trained == layout.size):
        return optimizer
    from sovfed.server.strategies.stepping import Corrected, CorrectedCombining, CorrectedControlling, Stepping

    if config.name in STRATEGIES:
        return Stepping(optimizer, trained)
    if isinstance(optimizer, Combining) and isinstance(optimizer, Controlling):
        return CorrectedControlling(optimizer, optimizer, trained, optimizer)
    if isinstance(optimizer, Combining):
        return CorrectedCombining(optimizer, optimizer, trained)
    return Corrected(optimizer, trained)


def _make(
    config: StrategyConfig,
    learning_rate: float,
    layout: Layout | None,
    trained: int | None,
    plan: LocalPlan | None,
    schedule: Schedule,
) -> ServerOptimizer:
    algorithm = ALGORITHMS.get(config.name)
    if algorithm is None:
        from sovfed.server.strategies import registry

        return registry.make(config, layout, STRATEGIES)
    if (half := algorithm.server(config, trained)) is not None:
        return half
    if algorithm.gradient:
        from sovfed.server.strategies.central import FedSgd

        own = plan or LocalPlan(learning_rate=config.server_learning_rate)
        return FedSgd(own, schedule, layout, config.gradient_scale)
    if not algorithm.masked:
        from sovfed.server.strategies.robust import Robust

        return Robust(config, learning_rate)
    from sovfed.server.strategies.adaptive import make_adaptive

    return make_adaptive(config)
