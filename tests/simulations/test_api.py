"""`sovfed.simulate`: what a notebook calls, and the same training by every engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sovfed
from sovfed.task import Records, Task, losses, metrics, number, records, target

SCHEMA = sovfed.task.Schema((number("age", 0, 100), number("bmi", 10, 60), target("ill", "no", "yes")), person="")


class Two(nn.Module):
    """A model that returns a dict, as Hugging Face's do."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(2, 6), nn.Linear(6, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"hidden": self.hidden(x), "logits": self.out(self.hidden(x).tanh())}


def a_task(build: Any = Two) -> Task:
    return Task(
        name="own", title="Own", schema=SCHEMA, metrics=metrics.BinaryMetrics(), headline="auc", build=build,
        loss=losses.binary_cross_entropy,
    )  # fmt: skip


def sites(count: int = 3, each: int = 90) -> dict[str, Records]:
    generator = np.random.default_rng(5)
    records_by_site = {}
    for index in range(count):
        age, bmi = generator.uniform(20, 80, each), generator.uniform(18, 40, each)
        ill = (age + 3 * bmi + generator.normal(0, 15, each) > 140).astype(np.int64)
        records_by_site[f"site-{index}"] = records(a_task(), (np.stack([age, bmi], 1), ill), persons=np.arange(each))
    return records_by_site


def run(tmp_path: Path, name: str, **settings: Any) -> sovfed.Result:
    return sovfed.simulate(a_task(), sites(), rounds=3, settings=settings, folder=tmp_path / name)


def test_a_result_has_model_rounds_metrics_curves_and_baselines(tmp_path: Path) -> None:
    seen: list[int] = []
    result = sovfed.simulate(
        a_task(), sites(), rounds=4, settings={"task.learning_rate": 0.5}, folder=tmp_path / "run",
        callbacks=[lambda line: seen.append(line["round"])],
    )  # fmt: skip
    assert seen == [1, 2, 3, 4]
    assert list(result.rounds.index) == seen and {"train_loss", "auc", "seconds"} <= set(result.rounds.columns)
    assert result.metrics["auc"] > 0.8
    with torch.no_grad():
        assert result.model(torch.zeros(5, 2)).shape == (5, 1)
    assert len(result.plot().axes) == 3
    assert len(result.baselines.rows) == 3 and result.baselines.pooled > 0.8
    told = repr(result.baselines).splitlines()
    assert (
        told[0] == "<auc of 3 institutions" and told[1].startswith("  site-0: pooled 0.") and "federated 0." in told[4]
    )
    assert (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.parametrize(
    "settings",
    [
        {"task.optimizer": "adamw", "task.schedule": "cosine", "task.warmup": 0.2, "task.learning_rate": 0.02},
        {"task.optimizer": "muon", "task.gradient_clip": 1.0, "task.accumulation": 3, "task.learning_rate": 0.02},
        {"task.momentum": 0.9, "task.local_steps": 7, "task.learning_rate": 0.05},
        {"strategy": "fedprox", "strategy.proximal_mu": 0.3, "task.momentum": 0.5},
    ],
)
def test_every_optimizer_trains_the_same_one_by_one_and_stacked(tmp_path: Path, settings: dict[str, Any]) -> None:
    looped = run(tmp_path, "one", **settings, **{"simulation.engine": "inprocess", "secagg": "none"})
    stacked = run(tmp_path, "stacked", **settings, **{"simulation.engine": "vectorised", "secagg": "none"})
    np.testing.assert_allclose(looped.vector, stacked.vector, rtol=0, atol=2e-6)
    plain = run(tmp_path, "plain", secagg="none")
    assert np.abs(looped.vector - plain.vector).max() > 1e-4  # the setting did something


def test_a_researcher_sees_the_models_own_exception(tmp_path: Path) -> None:
    class Broken(Two):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            if self.training and len(x) > 20:
                raise RuntimeError("my own mistake")
            return super().forward(x)

    with pytest.raises(RuntimeError, match="my own mistake"):
        sovfed.simulate(a_task(Broken), sites(), rounds=1, folder=tmp_path / "run")


def test_data_frames_are_read_by_the_schema_s_rules(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    generator = np.random.default_rng(2)
    frames = {
        name: pandas.DataFrame(
            {"person": np.arange(80), "Age": generator.uniform(20, 80, 80), "bmi": generator.uniform(18, 40, 80),
             "ill": np.where(generator.random(80) < 0.5, "yes", "no")}
        )
        for name in ("a", "b", "c")
    }  # fmt: skip
    result = sovfed.simulate(a_task(), frames, rounds=1, folder=tmp_path / "run")
    assert result.summary["institutions"] == ["a", "b", "c"]
    frames["b"].loc[3, "bmi"] = 400.0
    with pytest.raises(Exception, match=r"'bmi'.*outside|outside.*'bmi'"):
        sovfed.simulate(a_task(), frames, rounds=1, folder=tmp_path / "again")


def test_running_statistics_of_any_size_are_averaged_and_never_stepped(tmp_path: Path) -> None:
    """BatchNorm before the first layer on values times 40: its variance, about 1,600, is far beyond the sums' clip."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.out = nn.BatchNorm1d(2), nn.Linear(2, 1)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.out(self.norm(40 * x))
            return out

    for strategy in ("fedavg", "fedavgm", "fedadam"):
        result = sovfed.simulate(
            a_task(Scaled), sites(), rounds=8, strategy=strategy, folder=tmp_path / strategy,
            settings={"task.local_epochs": 3},
        )  # fmt: skip
        variance = result.model.norm.running_var
        assert float(variance.min()) > 800 and float(variance.max()) < 3_000
