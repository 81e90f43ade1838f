"""Survival from Parquet by a task.yaml alone: one line of Python simulates it, and none is needed to deploy it.

python examples/survival/run.py [--quick]
"""

from __future__ import annotations

import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

import pandas as pd

from sovfed.clients.data import load_records
from sovfed.federation.config import DataConfig
from sovfed.federation.tasks.declared import read_task

sys.path.insert(0, str(Path(__file__).parents[1]))
from study import NAMES, Study, main, simulated
from survival.make_hospitals import prepare

TASK = Path(__file__).with_name("task.yaml")
LIFELINES = find_spec("lifelines") is not None


def covariates(table: pd.DataFrame, mean: float) -> pd.DataFrame:
    """What Cox's model takes: as the task has it, missing is the mean and says so, and a missing stage is its own."""
    numbers = table[["age", "treated", "days", "died"]].astype(float)
    missing = table.creatinine.isna().astype(float)
    stages = {f"stage {word}": (table.stage.fillna("") == word).astype(float) for word in ("II", "III", "")}
    return numbers.assign(creatinine=table.creatinine.fillna(mean), unknown=missing, **stages)


def pooled(folder: Path) -> float:
    """Concordance of Cox's model by lifelines on all training records; without lifelines, of our own model on them."""
    if not LIFELINES:
        return simulated(STUDY, folder, private=False).baselines.pooled
    from lifelines import CoxPHFitter
    from lifelines.utils import concordance_index

    hospitals = [_divided(folder, name) for name in NAMES]
    train, test = (pd.concat(tables, ignore_index=True) for tables in zip(*hospitals, strict=True))
    with warnings.catch_warnings():  # of lifelines' use of pandas
        warnings.simplefilter("ignore", DeprecationWarning)
        model = CoxPHFitter().fit(covariates(train, train.creatinine.mean()), "days", "died")
        risk = model.predict_partial_hazard(covariates(test, train.creatinine.mean()))
    return float(concordance_index(test.days, -risk, test.died))


def _divided(folder: Path, name: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A hospital's training and held-out rows, as the connector divides them."""
    table = pd.read_parquet(folder / f"{name}.parquet")
    records = load_records(read_task(TASK), DataConfig(source="parquet", path=str(folder), site=name))
    return table.iloc[records.train], table.iloc[records.test]


STUDY = Study(
    "survival", TASK, "concordance", "parquet", prepare, pooled,
    "Cox's model by lifelines" if LIFELINES else "the same model on all records",
    persons=840, rounds=20, plain={"task.local_epochs": 4, "task.learning_rate": 0.3},
    private={"task.learning_rate": 1.0},
)  # fmt: skip

if __name__ == "__main__":
    main(STUDY)
