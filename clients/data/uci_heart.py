"""The UCI heart-disease files of four hospitals, prepared and split as FLamby does.

Source: Ogier du Terrail et al. 2022, arXiv:2210.04620: columns slope, ca and thal dropped, then rows with a missing
value; chest pain and resting ECG one-hot without their first category; any disease is 1; 66 % train, seed 43,
stratified where each label has more than two patients.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from sovfed.clients.data import Connector, Indices, Records, require_task, table_of
from sovfed.clients.data.files import read_file
from sovfed.federation.errors import DataError
from sovfed.federation.host.extras import advice
from sovfed.federation.schema import nearest

if TYPE_CHECKING:
    from sovfed.federation.config import DataConfig
    from sovfed.federation.tasks import Task

SHA256: Final = {
    "cleveland": "a74b7efa387bc9d108d7d0115d831fe9b414b29ae7124f331b622b4efa0427c8",
    "hungarian": "d1ad108f785768cd3d7e82dc522e6f5a61eea93cccfb3a46ee8076f73fc3d796",
    "switzerland": "834a405ccf5b66ab4056bb77794adc8df0b7125186454c0a1d002d33c6c3b314",
    "va": "e7c93d8d0d2acdadfa4c5e8de768e2191e7f618b952e29623f1f0d5949ff6b8f",
}
SITES: Final = tuple(SHA256)
COLUMNS: Final = 14
CHEST_PAIN, RESTING_ECG, LABEL = 2, 6, 13
KEPT: Final = (*range(10), LABEL)
PLAIN: Final = tuple(column for column in range(10) if column not in (CHEST_PAIN, RESTING_ECG))
DUMMIES: Final = ((CHEST_PAIN, (2.0, 3.0, 4.0)), (RESTING_ECG, (1.0, 2.0)))  # all hospitals' categories but the first
TRAIN_FRACTION: Final = 0.66
SPLIT_SEED: Final = 43


def load(task: Task, config: DataConfig) -> Records:
    """The patients of hospital `config.site`, a person a row; `config.path` is the file or the folder it lies in."""
    require_task(task, config.source, "heart")
    if config.site not in SHA256:
        raise DataError(f"data.site is '{config.site[:64]}'{nearest(config.site, SHA256)}")
    if not config.path:
        raise DataError("data.source 'uci_heart' needs data.path: the folder of the processed.SITE.data files")
    path = Path(config.path).expanduser()
    path = path / f"processed.{config.site}.data" if path.is_dir() else path
    table = _parse(read_file(path, 1 << 20, SHA256[config.site]), path)
    one_hot = [table[:, column] == value for column, values in DUMMIES for value in values]
    features = np.column_stack([table[:, PLAIN], *one_hot]).astype(np.float32)
    labels = (table[:, -1] > 0).astype(np.int64)
    train, test = _split(labels)
    columns = table_of(task.schema, features, labels)
    return Records(columns, np.arange(len(labels)), train, test, several_records=False)


def _parse(content: bytes, path: Path) -> npt.NDArray[np.float64]:
    """The rows without a missing value, columns `KEPT`."""
    rows: list[list[float]] = []
    for number, line in enumerate(content.decode("ascii", errors="replace").splitlines(), 1):
        cells = line.split(",")
        if len(cells) != COLUMNS:
            raise DataError(f"{path}, line {number}: {len(cells)} columns, expected {COLUMNS}")
        if any(cells[column] == "?" for column in KEPT):
            continue
        try:
            rows.append([float(cells[column]) for column in KEPT])
        except ValueError:
            raise DataError(f"{path}, line {number}: a value is neither a number nor '?'") from None
    if not rows:
        raise DataError(f"{path}: no row without a missing value")
    return np.array(rows, dtype=np.float64)


def _split(labels: Indices) -> tuple[Indices, Indices]:
    try:
        from sklearn.model_selection import train_test_split
    except ModuleNotFoundError as error:
        raise DataError(advice(error.name or "")) from error

    counts = np.unique(labels, return_counts=True)[1]
    train, test = train_test_split(
        np.arange(len(labels)),
        train_size=TRAIN_FRACTION,
        test_size=1.0 - TRAIN_FRACTION,
        random_state=SPLIT_SEED,
        stratify=labels if len(counts) > 1 and counts.min() > 2 else None,
    )
    return np.sort(train), np.sort(test)


CONNECTOR: Final = Connector(load, sites=lambda _config: SITES, task="heart", reads=())
