"""What every simulator is given, and the clock that it marks its rounds on. Needs torch, numpy and this file's package.

The work of an institution in a round: evaluate the round's model on its held-out records (loss and accuracy), then
train it for `epochs` epochs of SGD on batches of `batch_size`; the server takes the mean weighted by training records.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np
import torch

from sovfed.federation.tasks import Task
from sovfed.federation.tasks.registry import get_task
from sovfed.simulations.benchmarks.process_tree import cpu_seconds, proportional_bytes

if TYPE_CHECKING:
    from torch import Tensor

FOLDER: Final = "SOVFED_BENCH_JOB"  # environment variable that tells Ray's actors where the job lies


@dataclass(frozen=True)
class Job:
    """A workload, read from `folder`: `job.json` and, for those that do not make them themselves, `records.npz`."""

    folder: Path
    task: str
    overrides: tuple[str, ...]  # by which our own simulation is configured
    institutions: int
    cohort: int
    epochs: int
    batch_size: int
    learning_rate: float
    seed: int

    @classmethod
    def read(cls, folder: Path) -> Self:
        values = json.loads((folder / "job.json").read_text())
        return cls(**{**values, "folder": Path(values["folder"]), "overrides": tuple(values["overrides"])})

    def write(self) -> None:
        text = json.dumps({**asdict(self), "folder": str(self.folder)})
        (self.folder / "job.json").write_text(text)

    def cohort_of(self, round_number: int) -> list[int]:
        """The institutions of a round."""
        generator = np.random.default_rng([self.seed, 2, round_number])
        return [int(k) for k in np.sort(generator.choice(self.institutions, self.cohort, replace=False))]


@dataclass(frozen=True)
class Part:
    """An institution's standardised records: training and held-out."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


class Workload:
    """Model, loss and every institution's records."""

    def __init__(self, job: Job) -> None:
        self.job = job
        torch.set_num_threads(1)  # as LocalTraining does for small models
        torch.manual_seed(job.seed)
        with np.load(job.folder / "records.npz") as archive:
            self._tables = {name: archive[name] for name in archive.files}

    @cached_property
    def task(self) -> Task:
        return get_task(self.job.task)

    def model(self) -> torch.nn.Module:
        return self.task.model()

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """The mean loss of a batch."""
        if self.task.loss is None:
            raise ValueError(self.task.name)
        return self.task.loss(outputs, labels).mean()

    def part(self, institution: int) -> Part:
        """The records of an institution; views, so that nothing is copied."""
        sides = []
        for side in ("train", "test"):
            start, end = self._tables[f"{side}_ends"][institution : institution + 2]
            features, labels = (self._tables[f"{side}_{kind}"][start:end] for kind in ("features", "labels"))
            sides.append((torch.from_numpy(features), torch.from_numpy(labels)))
        return Part(sides[0], sides[1])

    def measure(self, outputs: Tensor, labels: Tensor) -> tuple[float, int]:
        """Σ loss and the number of records told right."""
        chosen = outputs.argmax(1) if outputs.shape[1] > 1 else (outputs[:, 0] > 0).long()
        return float(self.loss(outputs, labels)) * len(labels), int((chosen == labels).sum())

    @torch.no_grad()
    def evaluate(self, model: torch.nn.Module, part: Part) -> tuple[float, int]:
        """`measure` on the institution's held-out records."""
        model.eval()
        result = self.measure(model(part.test[0]), part.test[1])
        model.train()
        return result

    def train(self, model: torch.nn.Module, part: Part) -> None:
        """Move `model` by the institution's epochs of SGD."""
        optimizer = torch.optim.SGD(model.parameters(), lr=self.job.learning_rate)
        features, labels = part.train
        for _ in range(self.job.epochs):
            order = torch.randperm(len(labels))
            for rows in torch.split(order, self.job.batch_size):
                optimizer.zero_grad()
                self.loss(model(features[rows]), labels[rows]).backward()  # type: ignore[no-untyped-call]
                optimizer.step()


class Clock:
    """Wall-clock and CPU seconds (user and system, the whole process tree) since the process began, by round."""

    def __init__(self) -> None:
        started = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        self._started = started / os.sysconf("SC_CLK_TCK")
        self.marks: list[dict[str, float]] = []
        self.accuracy = 0.0  # of the last round's model, told by whoever runs
        self._bytes = 0

    def mark(self) -> None:
        """Called when a round has ended."""
        wall = time.clock_gettime(time.CLOCK_BOOTTIME) - self._started
        self.marks.append({"wall": wall, "cpu": cpu_seconds([os.getpid()])})

    def weigh(self) -> None:
        """Called while everything is still up, after the last round: the tree's memory."""
        self._bytes = proportional_bytes([os.getpid()])

    def write(self, path: Path) -> None:
        content: dict[str, Any] = {"marks": self.marks, "bytes": self._bytes, "accuracy": self.accuracy}
        path.write_text(json.dumps(content))


@lru_cache(1)
def cached_work(folder: str) -> tuple[Workload, torch.nn.Module]:
    """The workload of the job in `folder` and a model, made once in a process."""
    work = Workload(Job.read(Path(folder)))
    return work, work.model()
