"""The arrays of one institution in a NumPy file: what to train on, and what is held out.

numpy.savez(path, train=inputs, train_targets=targets, test=inputs, test_targets=targets)
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from sovfed.task import Connector, Dataset, Task, records


def load(task: Task, config: object) -> Dataset:
    """The records in the file `data.path`, or of the institution `data.site` in that folder."""
    path = Path(config.path)  # type: ignore[attr-defined]
    file = path / f"{config.site}.npz" if path.is_dir() else path  # type: ignore[attr-defined]
    with np.load(file, allow_pickle=False) as stored:
        arrays = dict(stored)
    return records(task, (arrays["train"], arrays["train_targets"]), (arrays["test"], arrays["test_targets"]))


def sites(config: object) -> tuple[str, ...]:
    """The institutions that have a file in the folder `data.path`."""
    path = Path(config.path)  # type: ignore[attr-defined]
    return tuple(sorted(file.stem for file in path.glob("*.npz"))) if path.is_dir() else ()


def write(folder: Path, parts: dict[str, tuple[npt.NDArray[np.generic], ...]]) -> Path:
    """One file for each institution: its (train, train_targets, test, test_targets)."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (train, train_targets, test, test_targets) in parts.items():
        np.savez(folder / f"{name}.npz", train=train, train_targets=train_targets, test=test, test_targets=test_targets)
    return folder


CONNECTOR = Connector(load, sites)
