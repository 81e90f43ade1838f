"""Every engine trains the same model; what cannot be stacked is refused with its reason; a cohort follows the seed."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from sovfed.federation.compose import compose
from sovfed.federation.config import Config
from sovfed.federation.errors import ConfigError
from sovfed.federation.messages import TrainRequest
from sovfed.federation.tasks import initial_vector
from sovfed.federation.tasks.registry import get_task
from sovfed.server.rounds.aggregation import Total
from sovfed.server.rounds.coordinator import Outcome
from sovfed.server.runs.curves import read_rounds
from sovfed.simulations.engines import AutoEngine, disagreement
from sovfed.simulations.federation import ENGINE, simulate_population
from sovfed.simulations.population import make_population
from sovfed.simulations.stacked import StackedModel, refusal
from sovfed.simulations.vectorised import Cohort, StackedTraining


def make_config(*overrides: str) -> Config:
    return compose(["secagg=none", "rounds=2", *overrides]).config


def run(config: Config, folder: Path, **more: Any) -> Outcome:
    return simulate_population(config, make_population(config), folder, **more)


@pytest.mark.parametrize(
    "overrides",
    [
        ("task=digits",),
        ("task=digits", "partition=dirichlet", "simulation.institutions=30", "strategy=fedprox"),
        ("task=digits", "partition=feature", "simulation.institutions=9", "strategy=fedadam", "task.batch_size=7"),
        ("task=breast_cancer", "partition=quantity", "partition.alpha=0.3", "simulation.institutions=20"),
        ("task=digits", "partition=iid", "simulation.institutions=3000", "simulation.cohort=20"),
        ("task=digits", "partition=feature", "simulation.institutions=1200", "simulation.cohort=10"),
    ],
)
def test_stacked_training_gives_the_model_of_the_deployed_code(overrides: tuple[str, ...], tmp_path: Path) -> None:
    config = make_config(*overrides)
    deployed, stacked = (
        run(
            dataclasses.replace(config, simulation=dataclasses.replace(config.simulation, engine=engine)),
            tmp_path / engine,
        )
        for engine in ("inprocess", "vectorised")
    )
    np.testing.assert_array_equal(deployed.scale, stacked.scale)
    np.testing.assert_allclose(deployed.model, stacked.model, atol=2e-6)
    assert np.abs(deployed.model - initial_vector(get_task(config.task.name), config.seed)).max() > 0.01
    assert deployed.summary["metrics"] == pytest.approx(stacked.summary["metrics"], abs=1e-3)
    assert deployed.summary["metrics_by_institution"].keys() == stacked.summary["metrics_by_institution"].keys()
    for mine, theirs in zip(read_rounds(tmp_path / "inprocess"), read_rounds(tmp_path / "vectorised"), strict=True):
        assert mine["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-5)
        for key in ("participants", "count", "bytes_up", "bytes_down"):
            assert mine[key] == theirs[key], key
    assert stacked.summary["engine_chunk"] > 0 and stacked.summary["secure_aggregation"] is False


def test_chunks_change_nothing_but_rounding() -> None:
    config = make_config("task=digits", "partition=dirichlet", "simulation.institutions=13")
    task, population = get_task("digits"), make_population(config)
    cohort = Cohort.of(task, population, "cpu")
    request = TrainRequest(
        run="1", round=1, task="digits", seed=3, local_epochs=2, batch_size=8, learning_rate=0.1, proximal_mu=0.0,
        model=initial_vector(task, 0), scale=np.concatenate([np.full(64, -1.0), np.ones(64)]),
    )  # fmt: skip
    by_chunk = []
    for chunk in (1, 5, 13):
        updates = np.zeros((13, task.parameters), np.float32)
        for trained in StackedTraining(task, config, chunk).train(request, cohort):
            updates[trained.places] = trained.updates.numpy()
        by_chunk.append(updates)
    np.testing.assert_allclose(by_chunk[0], by_chunk[1], atol=1e-6)
    np.testing.assert_allclose(by_chunk[0], by_chunk[2], atol=1e-6)
    assert len({update.tobytes() for update in by_chunk[0]}) == 13


def test_an_institution_without_finite_update_is_left_out_of_the_round(tmp_path: Path) -> None:
    config = make_config(
        "task=digits", "task.learning_rate=1000", "simulation.engine=vectorised", "task.local_epochs=50"
    )
    with pytest.raises(Exception, match="failed"):
        run(config, tmp_path)


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), "BatchNorm1d '1' keeps running statistics"),
        (nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.1)), "Dropout '1' drops out"),
        (nn.TransformerEncoderLayer(8, 2, dropout=0.1), "drops out at random"),
        (nn.Sequential(nn.Linear(3, 4), nn.GroupNorm(2, 4), nn.Dropout(0.0)), ""),
        (nn.TransformerEncoderLayer(8, 2, dropout=0.0), ""),
    ],
)
def test_what_cannot_be_stacked_is_refused_with_its_reason(module: nn.Module, reason: str) -> None:
    refused = refusal(module, make_config())
    assert reason in refused and bool(refused) == bool(reason)


def test_another_precision_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"client\.precision is bf16"):
        run(make_config("client.precision=bf16", "simulation.engine=vectorised"), tmp_path)


def test_auto_says_why_and_keeps_to_the_deployed_code_where_it_must(tmp_path: Path) -> None:
    tried = run(make_config("task=digits", "partition=iid", "simulation.institutions=20"), tmp_path / "tried")
    assert re.match("(8|16) institutions took", tried.summary["engine_reason"]), "16 where eight are quick"
    few = run(make_config("task=digits"), tmp_path / "few")
    assert (few.summary["engine"], few.summary["engine_reason"]) == (
        "inprocess",
        "4 institutions a round are too few to stack",
    )
    masked = run(compose(["rounds=1", "simulation.institutions=8", "partition=iid"]).config, tmp_path / "masked")
    assert masked.summary["secure_aggregation"] is True
    assert masked.summary["engine_reason"] == "secure aggregation is on"


@pytest.mark.parametrize("engine", ["inprocess", "vectorised"])
def test_a_resumed_run_keeps_to_the_engine_that_was_chosen(engine: str, tmp_path: Path) -> None:
    config = make_config("task=digits", "partition=iid", "simulation.institutions=20", "rounds=1")
    run(config, tmp_path)
    (tmp_path / ENGINE).write_text(json.dumps({"engine": engine, "reason": "as it was"}))
    longer = dataclasses.replace(config, rounds=2)
    resumed = run(longer, tmp_path, resume=True)
    assert (resumed.summary["engine"], resumed.summary["engine_reason"]) == (engine, "as it was")
    (tmp_path / ENGINE).write_text("{")
    with pytest.raises(ConfigError, match="does not say which engine"):
        run(longer, tmp_path, resume=True)
    assert "institutions took" in run(config, tmp_path).summary["engine_reason"]


def test_stacking_under_secure_aggregation_says_that_it_summed_in_the_clear(tmp_path: Path) -> None:
    outcome = run(compose(["rounds=1", "simulation.engine=vectorised"]).config, tmp_path)
    assert outcome.summary["secure_aggregation"] is False
    assert "summed in the clear" in outcome.summary["engine_details"]


def test_disagreement_is_in_units_of_the_largest_value() -> None:
    first, second = (Total(count=1, mean=np.array(mean, np.float32)) for mean in ([0.0, 2.0], [0.0, 1.5]))
    assert disagreement(first, second) == 0.25
    assert disagreement(first, Total(count=2, mean=first.mean)) == float("inf")
    assert disagreement(first, Total(count=1)) == float("inf")


class Answers:
    """An engine whose update is `mean` and, at a small learning rate, `calm`."""

    def __init__(self, mean: float, calm: float) -> None:
        self._mean, self._calm = mean, calm

    def collect(self, request: TrainRequest, nodes: list[int], width: int) -> Total:
        value = self._mean if request.learning_rate == 0.1 else self._calm
        return Total(participants=nodes, count=1, mean=np.array([value, 1.0], np.float32))

    def describe(self) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize(
    ("stacked", "calm", "refused"),
    [(0.4005, 0.9, False), (0.5, 0.4005, False), (0.5, 0.402, True), (0.5, np.nan, True), (np.nan, 0.4, True)],
)
def test_auto_forgives_only_what_calm_steps_do_not_show(stacked: float, calm: float, refused: bool) -> None:
    request = TrainRequest(
        run="1", round=1, task="digits", seed=0, local_epochs=1, batch_size=8, learning_rate=0.1, proximal_mu=0.0,
        model=np.ones(2, np.float32), scale=np.zeros(2),
    )  # fmt: skip
    auto = AutoEngine(Answers(0.4, 0.4), Answers(stacked, calm))  # type: ignore[arg-type]
    auto.collect(request, list(range(1, 9)), 0)
    assert ("stacked training differs" in auto.describe()["engine_reason"]) is refused


def test_auto_sees_through_chaos_that_stacked_training_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = StackedModel.step

    def wrong(
        self: StackedModel, stacked: Any, features: Any, labels: Any, weights: Any, rate: float, pull: Any
    ) -> Any:
        return step(self, stacked, features, labels, weights, rate * 1.01, pull)

    monkeypatch.setattr(StackedModel, "step", wrong)
    summary = run(make_config("task=digits", "partition=iid", "simulation.institutions=20"), tmp_path).summary
    assert summary["engine"] == "inprocess" and "stacked training differs" in summary["engine_reason"]


@pytest.mark.parametrize("engine", ["inprocess", "vectorised"])
def test_a_cohort_is_drawn_anew_each_round_and_follows_the_seed(engine: str, tmp_path: Path) -> None:
    overrides = (
        "task=digits", "partition=dirichlet", "simulation.institutions=3000", "simulation.cohort=12",
        f"simulation.engine={engine}",
    )  # fmt: skip
    first, again = (run(make_config(*overrides, "rounds=3"), tmp_path / name) for name in ("one", "again"))
    other = run(make_config(*overrides, "seed=1"), tmp_path / "other")
    np.testing.assert_array_equal(first.model, again.model)
    cohorts = [set(line["participants"]) for line in read_rounds(tmp_path / "one")]
    assert [len(cohort) for cohort in cohorts] == [12, 12, 12]
    assert cohorts[0] != cohorts[1] != cohorts[2]
    assert cohorts[0] != set(read_rounds(tmp_path / "other")[0]["participants"])
    assert other.summary["metrics"]["accuracy"] > 0.2


def test_a_resumed_run_with_sampled_cohorts_gives_the_model_of_one_that_was_not_stopped(tmp_path: Path) -> None:
    overrides = (
        "task=digits", "partition=shards", "simulation.institutions=500", "simulation.cohort=10",
        "simulation.engine=vectorised",
    )  # fmt: skip
    whole = run(make_config(*overrides, "rounds=4"), tmp_path / "whole")
    run(make_config(*overrides, "rounds=2"), tmp_path / "parts")
    resumed = run(make_config(*overrides, "rounds=4"), tmp_path / "parts", resume=True)
    np.testing.assert_array_equal(whole.model, resumed.model)


def test_thousands_of_institutions_ask_for_a_cohort_or_no_secure_aggregation(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="add `secagg=none`"):
        run(compose(["task=digits", "partition=iid", "simulation.institutions=3000"]).config, tmp_path)
