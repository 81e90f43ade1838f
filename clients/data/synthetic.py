"""Made-up records for benchmarks: 50 to train on and 10 held out at each institution, of one distribution."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from sovfed.clients.data import Connector, Records, require_task, table_of
from sovfed.federation.errors import DataError

if TYPE_CHECKING:
    import numpy.typing as npt

    from sovfed.clients.data import Indices
    from sovfed.federation.config import DataConfig
    from sovfed.federation.tasks import Task

TRAIN: Final = 50  # records of an institution in pfl-research's CIFAR-10 benchmark
HELD_OUT: Final = 10
BLUR: Final = 0.75  # standard deviation of an image around its class's


def load(task: Task, config: DataConfig) -> Records:
    """The records of institution `config.site`, made from its number alone."""
    require_task(task, config.source, "synthetic_images", "synthetic_text")
    if not config.site.isdecimal():
        raise DataError(f"data.site is '{config.site[:64]}', expected a number")
    common, own = np.random.default_rng(0), np.random.default_rng([1, int(config.site)])
    shape, classes = (TRAIN + HELD_OUT, task.schema.inputs[0].size), len(task.schema.classes)
    features, labels = (_images if task.name == "synthetic_images" else _sequences)(shape, classes, common, own)
    rows = np.arange(len(labels))
    table = table_of(task.schema, features, labels)
    return Records(table, rows, rows[:TRAIN], rows[TRAIN:], several_records=False)


def _images(
    shape: tuple[int, int], classes: int, common: np.random.Generator, own: np.random.Generator
) -> tuple[npt.NDArray[np.float32], Indices]:
    """A pattern for each class, and noise."""
    patterns = common.standard_normal((classes, shape[1]), dtype=np.float32)
    labels = own.integers(0, classes, shape[0])
    noise = own.standard_normal(shape, dtype=np.float32)
    return np.clip(patterns[labels] + np.float32(BLUR) * noise, -8, 8), labels


def _sequences(
    shape: tuple[int, int], classes: int, common: np.random.Generator, own: np.random.Generator
) -> tuple[npt.NDArray[np.float32], Indices]:
    """Walks on a random graph in which each token has two successors; the label is the next token."""
    successors = common.integers(0, classes, (classes, 2))
    walk = np.empty((shape[0], shape[1] + 1), np.int64)
    walk[:, 0] = own.integers(0, classes, shape[0])
    for position in range(shape[1]):
        walk[:, position + 1] = successors[walk[:, position], own.integers(0, 2, shape[0])]
    return walk[:, :-1].astype(np.float32), walk[:, -1]


CONNECTOR: Final = Connector(load, cuts=True, reads=())
