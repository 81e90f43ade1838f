"""What the five examples have in common: federated by `sovfed.simulate`, plain and private, beside one model of all."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from arrays.connector import load

import sovfed
from sovfed.task import Task

NAMES: Final = ("east", "north", "south")  # the institutions of each example
QUICK: Final = 4  # rounds
EPSILON: Final = 8.0
DELTA: Final = 1e-4
Arrays = npt.NDArray[Any]


@dataclass(frozen=True)
class Study:
    """An example: its task (or the file of one), a file of records a site, and how it is trained.

    `write` puts the sites' files into a folder, `source` is the connector that reads them. `pooled` gives the same
    metric of one model of all training records, by the library `beside`; `plain` and `private` are settings of runs.
    """

    name: str
    task: Task | Path
    metric: str
    source: str
    write: Callable[[Path], Path]
    pooled: Callable[[Path], float]
    beside: str
    persons: int  # in training, all sites together
    rounds: int
    plain: Mapping[str, Any]
    private: Mapping[str, Any] = field(default_factory=dict)

    def settings(self, private: bool, quick: bool = False) -> dict[str, Any]:
        """Of a run: what its users would write behind `sovfed run start`."""
        cohort = {"server.min_cohort": len(NAMES), "privacy.colluders": 0}
        rounds = {"rounds": QUICK if quick else self.rounds}
        if not private:
            return {**cohort, **rounds, **self.plain}
        budget = {"privacy.population": self.persons, "privacy.epsilon": EPSILON, "privacy.delta": DELTA}
        return {**cohort, **rounds, "privacy": "distributed", **budget, "privacy.sampling_rate": 0.5, **self.private}


def divided(train: tuple[Arrays, Arrays], test: tuple[Arrays, Arrays]) -> dict[str, tuple[Arrays, ...]]:
    """A third of the records for each institution: (train, train_targets, test, test_targets)."""
    step = len(NAMES)
    return {
        name: (train[0][site::step], train[1][site::step], test[0][site::step], test[1][site::step])
        for site, name in enumerate(NAMES)
    }


def united(folder: Path) -> tuple[Arrays, Arrays, Arrays, Arrays]:
    """The records of all institutions whose files `divided` made: (train, train_targets, test, test_targets)."""
    parts = [np.load(folder / f"{name}.npz") for name in NAMES]
    train, train_targets, test, test_targets = (
        np.concatenate([part[key] for part in parts]) for key in ("train", "train_targets", "test", "test_targets")
    )
    return train, train_targets, test, test_targets


def simulated(study: Study, folder: Path, private: bool, quick: bool = False) -> sovfed.Result:
    """The federation of the sites in `folder`, in this process."""
    settings = {**study.settings(private, quick), "simulation.institutions": len(NAMES)}
    if study.source != "arrays":
        settings["data"] = study.source
    return sovfed.simulate(study.task, _data(study, folder), settings=settings)


def _data(study: Study, folder: Path) -> Any:
    """What `simulate` takes: a folder that a connector of sovfed reads, or what the examples' own has read."""
    if study.source != "arrays":
        return folder
    return {name: load(study.task, SimpleNamespace(path=folder, site=name)) for name in NAMES}  # type: ignore[arg-type]


def compared(study: Study, quick: bool = False, private: bool = True) -> dict[str, float]:
    """The metric on held-out records: one model of all, federated, and with privacy."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = study.write(Path(temporary) / "sites")
        figures = {"pooled": study.pooled(folder), "federated": simulated(study, folder, False, quick).metrics}
        if private:
            figures["private"] = simulated(study, folder, True, quick).metrics
    return {name: value if isinstance(value, float) else value[study.metric] for name, value in figures.items()}


def main(study: Study) -> None:
    """Print the figures; `--quick` takes few rounds."""
    parser = argparse.ArgumentParser(description=f"{study.name}: federated, private, and beside {study.beside}")
    parser.add_argument("--quick", action="store_true")
    for name, value in compared(study, parser.parse_args().quick).items():
        print(f"{name:<10} {study.metric} {value:.3f}")
