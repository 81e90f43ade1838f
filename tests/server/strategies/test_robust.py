"""Strategies that compare updates: against straight-line references, and against an institution that lies."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from sovfed.clients.node.app import make_client_app
from sovfed.clients.trainer.loaded import RecordSource, Runtime
from sovfed.clients.trainer.service import TrainerService
from sovfed.federation.algorithms.at_the_server import COMPARING
from sovfed.federation.compose import compose
from sovfed.federation.config import StrategyConfig
from sovfed.federation.errors import CohortError, ConfigError
from sovfed.federation.messages import Reply, Request, TrainReply, Vector
from sovfed.server.rounds.aggregation import Total, Update
from sovfed.server.rounds.coordinator import coordinate
from sovfed.server.strategies.robust import Robust
from sovfed.simulations.federation import simulate_population
from sovfed.simulations.grid import InMemoryGrid
from sovfed.simulations.population import Institution, make_population

RATE = 0.1


def updates(n: int, d: int = 50) -> list[Update]:
    generator = np.random.default_rng(n)
    values = generator.normal(1.0, 0.1, (n, d)).astype(np.float32)
    return [
        Update(k, int(generator.integers(5, 50)), float(generator.uniform(0.1, 2)), v) for k, v in enumerate(values)
    ]


def combine(given: list[Update], name: str, **more: float) -> Vector:
    return Robust(StrategyConfig(name=name, **more), RATE).combine(1, Total(updates=given), len(given))  # type: ignore[arg-type]


def table(given: list[Update]) -> np.ndarray:
    return np.stack([one.update for one in given]).astype(np.float64)


def krum_order(values: np.ndarray, malicious: int) -> np.ndarray:
    """Institutions by their sum of squared distances to the n − f − 2 nearest others (Blanchard et al. 2017)."""
    squared = ((values[:, None] - values[None]) ** 2).sum(2)
    nearest = np.sort(squared, 1)[:, 1 : len(values) - malicious - 1]
    return np.argsort(nearest.sum(1), kind="stable")


def test_median_and_trimmed_mean() -> None:
    given = updates(7)
    np.testing.assert_allclose(combine(given, "fedmedian"), np.median(table(given), 0), rtol=1e-6)
    np.testing.assert_allclose(
        combine(given, "fedtrimmedavg", trimmed=0.2), np.sort(table(given), 0)[1:-1].mean(0), rtol=1e-6
    )


def test_krum_and_multi_krum() -> None:
    given = updates(9)
    order = krum_order(table(given), 2)
    np.testing.assert_array_equal(combine(given, "krum", malicious=2), given[order[0]].update)
    weights = [given[place].count for place in order[:3]]
    mean = np.average(table(given)[order[:3]], axis=0, weights=weights)
    np.testing.assert_allclose(combine(given, "krum", malicious=2, selected=3), mean, rtol=1e-6)


def test_qfedavg_without_fairness_is_the_plain_mean_and_with_it_as_the_paper_has_it() -> None:
    given = updates(6)
    np.testing.assert_allclose(combine(given, "qfedavg", fairness=0.0), table(given).mean(0), rtol=1e-5)
    q, gradients = 0.5, table(given) / RATE
    losses = np.array([one.loss for one in given]) + 1e-10
    deltas = losses[:, None] ** q * gradients
    h = q * losses ** (q - 1) * (gradients**2).sum(1) + losses**q / RATE
    np.testing.assert_allclose(combine(given, "qfedavg", fairness=q), deltas.sum(0) / h.sum(), rtol=1e-5)


@pytest.mark.parametrize("name", ["fedmedian", "fedtrimmedavg", "krum", "bulyan"])
@pytest.mark.parametrize("lie", [1e4, -1e4])
def test_one_wild_update_does_not_carry_the_sum(name: str, lie: float) -> None:
    given = updates(10)
    wild = [*given[:3], dataclasses.replace(given[3], update=np.full(50, lie, np.float32)), *given[4:]]
    assert np.abs(combine(wild, name) - 1).max() < 0.5


@pytest.mark.parametrize("name", ["krum", "bulyan"])
def test_order_of_arrival_changes_nothing(name: str) -> None:
    given = updates(10)
    assert combine(given, name).tobytes() == combine(given[::-1], name).tobytes()


@pytest.mark.parametrize(("name", "least"), [("krum", 7), ("bulyan", 11)])
def test_too_few_for_the_guarantee_are_refused(name: str, least: int) -> None:
    with pytest.raises(CohortError, match=f"needs at least {least}"):
        combine(updates(least - 1), name, malicious=2)


@pytest.mark.parametrize("name", [algorithm.name for algorithm in COMPARING])
def test_secure_aggregation_refuses_them_with_the_reason(name: str) -> None:
    with pytest.raises(ConfigError, match=r"secure aggregation shows the sum only: add secagg=none"):
        compose([f"strategy={name}"])
    assert compose([f"strategy={name}", "secagg=none"]).config.strategy.individual


def test_too_small_a_cohort_is_refused_before_the_first_round(tmp_path: Path) -> None:
    config = compose(["task=digits", "strategy=krum", "secagg=none", "simulation.institutions=4"]).config
    with pytest.raises(ConfigError, match="needs 5 institutions a round, the minimum cohort is 4"):
        simulate_population(config, make_population(config), tmp_path)


class Liar:
    """An institution whose updates are a hundred times theirs, turned round."""

    def __init__(self, honest: TrainerService) -> None:
        self._trainer = honest

    def answer(self, request: Request) -> Reply:
        reply = self._trainer.answer(request)
        return dataclasses.replace(reply, update=-100 * reply.update) if isinstance(reply, TrainReply) else reply


def trainer(one: Institution) -> TrainerService:
    return TrainerService(RecordSource(one.load, one.site), Runtime("cpu"))


def test_a_poisoned_run_fails_by_averaging_and_not_by_these(tmp_path: Path) -> None:
    accuracy = {}
    for name in ("fedavg", "fedmedian", "fedtrimmedavg", "krum", "bulyan"):
        config = compose([
            "task=digits", "partition=iid", "secagg=none", f"strategy={name}", "rounds=6",
            "simulation.institutions=8", "server.min_cohort=8",
        ]).config  # fmt: skip
        first, *others = map(trainer, make_population(config))
        apps = [make_client_app(Liar(first)), *map(make_client_app, others)]
        grid = InMemoryGrid(dict(enumerate(apps, start=1)))
        (tmp_path / name).mkdir()
        outcome = coordinate(grid, config, run="1", folder=tmp_path / name, transport="in-memory")
        accuracy[name] = outcome.summary["metrics"].get("accuracy", 0.0)
    assert accuracy.pop("fedavg") < 0.4
    assert min(accuracy.values()) > 0.5, accuracy
