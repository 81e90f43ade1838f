"""Pneumonia in chest X-rays by four hospitals of unequal size and case mix, each a folder of images with a table.

python examples/xray/run.py pneumoniamnist.npz [--quick]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from xray import hospitals, vit

import sovfed
from sovfed.clients.data import Dataset, load_records
from sovfed.clients.training.local import LocalTraining
from sovfed.federation.config import DataConfig
from sovfed.simulations.baselines import Trained, alone, exact, labels_of, merge, pooled
from sovfed.task import Task

COMMON: Final = {"data": "images", "server.min_cohort": 4, "simulation.institutions": 4, "client": "cpu"}
PRIVATE: Final = {
    "privacy": "distributed", "privacy.epsilon": 8, "privacy.delta": 1e-4, "privacy.sampling_rate": 0.25,
    "privacy.colluders": 0,
}  # fmt: skip


@dataclass(frozen=True)
class Study:
    """A model, and how it is trained without privacy and with ε = 8."""

    name: str
    task: Path | Task
    plain: Mapping[str, Any]
    private: Mapping[str, Any]

    def settings(self, persons: int, *, private: bool, quick: bool) -> dict[str, Any]:
        """What stands behind `sovfed run start`; `persons` are in training, all hospitals together."""
        budget = {**PRIVATE, "privacy.population": persons} if private else {}
        chosen = {**COMMON, **budget, **(self.private if private else self.plain)}
        return {**chosen, "rounds": max(2, chosen["rounds"] // 6)} if quick else chosen


STUDIES: Final = (
    Study(
        "CNN, GroupNorm", Path(__file__).with_name("task.yaml"),
        plain={"rounds": 10, "task.learning_rate": 0.1, "task.momentum": 0.9},
        private={"rounds": 80, "task.learning_rate": 1.0},
    ),
    Study(
        "ViT, LayerNorm", vit.TASK,
        plain={"rounds": 20, "task.learning_rate": 0.02, "task.momentum": 0.9, "task.schedule": "cosine"},
        private={"rounds": 40, "task.learning_rate": 0.5},
    ),
)  # fmt: skip
PUBLISHED: Final = (  # Yang et al. 2023, doi 10.1038/s41597-022-01721-8: of the same images, trained on all others
    ("ResNet-18 at 28 pixels", "published", 0.944, 0.854),
    ("AutoKeras", "published", 0.947, 0.878),
    ("Google AutoML Vision", "published", 0.991, 0.946),
)


@dataclass(frozen=True)
class Row:
    """How good a model is on the published test's images, which nobody trained on."""

    model: str
    trained: str
    auc: float
    accuracy: float


def rows(study: Study, folder: Path, *, quick: bool = False, private: bool = True) -> Iterator[Row]:
    """The hospitals in `folder` federated, with ε = 8 too, pooled, and the mean of each alone."""
    plain = _simulated(study, folder, private=False, quick=quick)
    test = load_records(plain.task, DataConfig(source="images", path=str(folder / hospitals.TEST)))
    parts = [place.load(plain.task) for place in plain.population]
    config = plain.config
    own = [alone(config, part, place.site) for part, place in zip(parts, plain.population, strict=True)]
    yield _row(study.name, "pooled", [pooled(config, merge(parts))], plain.task, test)
    yield _row(study.name, "alone, mean of four", own, plain.task, test)
    yield _row(study.name, "federated", [Trained(plain.vector, plain.scale)], plain.task, test)
    if private:
        noised = _simulated(study, folder, private=True, quick=quick)
        yield _row(study.name, "federated, ε = 8", [Trained(noised.vector, noised.scale)], plain.task, test)


def _simulated(study: Study, folder: Path, *, private: bool, quick: bool) -> sovfed.Result:
    persons = round(0.7 * sum(len(list(place.glob("*.png"))) for place in (folder / "hospitals").iterdir()))
    settings = study.settings(persons, private=private, quick=quick)
    return sovfed.simulate(study.task, folder / "hospitals", settings=settings)


def _row(model: str, trained: str, models: Sequence[Trained], task: Task, test: Dataset) -> Row:
    everyone = np.arange(len(test.persons))
    labels, engine = labels_of(task, test)[everyone], LocalTraining(task, test, site="", device="cpu")
    logits = [engine.logits(one.model, one.scale, everyone) for one in models]
    auc, accuracy = (float(np.mean([exact(metric, each, labels) for each in logits])) for metric in ("auc", "accuracy"))
    return Row(model, trained, auc, accuracy)


def main() -> None:
    parser = argparse.ArgumentParser(description="Pneumonia in chest X-rays by four hospitals")
    parser.add_argument("file", type=Path, help="pneumoniamnist.npz of MedMNIST v2, 28 pixels")
    parser.add_argument("--quick", action="store_true", help="a sixth of the rounds")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = hospitals.prepare(Path(temporary), *hospitals.read(chosen.file))
        print(f"{'model':<24}{'trained':<22}{'AUC':>6}{'accuracy':>10}")
        for row in PUBLISHED:
            print("{:<24}{:<22}{:>6.3f}{:>10.3f}".format(*row), flush=True)
        for study in STUDIES:
            for found in rows(study, folder, quick=chosen.quick):
                print(f"{found.model:<24}{found.trained:<22}{found.auc:>6.3f}{found.accuracy:>10.3f}", flush=True)


if __name__ == "__main__":
    main()
