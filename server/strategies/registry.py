"""Strategies from outside: installed packages bring them (entry points `sovfed.strategies`), a script adds its own.

A maker takes the strategy's settings and the layout of the model, and gives a `ServerOptimizer`, or a strategy of
Flower's (`flwr.serverapp.strategy`), which is fed with what the round added up to. The maker's `institution` names the
algorithm whose half institutions run under it (`federation/algorithms/`), as under `fedavg` without.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from sovfed.federation import plugins
from sovfed.federation.algorithms.server_half import Combining, Controlling
from sovfed.federation.compose import STRATEGIES
from sovfed.federation.errors import ConfigError

if TYPE_CHECKING:
    from sovfed.federation.algorithms.server_half import ServerOptimizer
    from sovfed.federation.config import StrategyConfig
    from sovfed.federation.tasks.layout import Layout

Maker = Callable[["StrategyConfig", "Layout | None"], Any]
_ADDED: Final[dict[str, Maker]] = {}


def add(name: str, maker: Maker) -> str:
    """Make a strategy known in this process, in the place of another of that name; the name."""
    _ADDED[name] = maker
    return name


def names() -> tuple[str, ...]:
    """Every strategy from outside, in alphabetical order."""
    return tuple(sorted({*plugins.installed(STRATEGIES), *_ADDED}))


def make(config: StrategyConfig, layout: Layout | None, built_in: tuple[str, ...]) -> ServerOptimizer:
    """The strategy that `config` names. Raises ConfigError with the nearest of `built_in` and those from outside."""
    maker = _ADDED.get(config.name) or plugins.load(STRATEGIES, "strategy", config.name, (*built_in, *names()))
    strategy = adapted(maker(config, layout), layout)
    wanted, half = institution_of(maker), config.algorithm
    if wanted not in (None, half.name):
        raise ConfigError(f"strategy '{config.name}' is made for what '{wanted}' does: strategy.institution={wanted}")
    if half.variate and not (isinstance(strategy, Combining) and isinstance(strategy, Controlling)):
        raise ConfigError(
            f"strategy '{config.name}': under strategy.institution={half.name} a control variate comes behind each "
            "update, so it needs `combine` and `control`"
        )
    return strategy


def institution_of(maker: object) -> str | None:
    """What institutions are to do under a strategy from outside, as its maker or object says (`institution`)."""
    name = getattr(maker, "institution", None)
    return name if isinstance(name, str) else None


def adapted(strategy: Any, layout: Layout | None) -> ServerOptimizer:
    """`strategy` as a `ServerOptimizer`. Raises ConfigError if it is neither that nor one of Flower's."""
    if all(callable(getattr(strategy, method, None)) for method in ("step", "slots", "restore")):
        return strategy  # type: ignore[no-any-return]
    if all(callable(getattr(strategy, method, None)) for method in ("configure_train", "aggregate_train")):
        from sovfed.server.strategies.stock import StockStrategy

        return StockStrategy(strategy, layout)
    raise ConfigError(
        f"{type(strategy).__name__} is no strategy: it has neither step, slots and restore, nor Flower's "
        "configure_train and aggregate_train"
    )
