"""PneumoniaMNIST's chest X-rays, cut into simulated institutions of unequal size and case mix.

The official test images are held out, training and validation images train. Ten training images that stand among
the validation images too are left out. Source: Yang et al. 2023, doi 10.1038/s41597-022-01721-8.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from sovfed.clients.data import Connector, Indices, Records, require_task, table_of
from sovfed.clients.data.files import read_file
from sovfed.clients.data.split import simulated_site
from sovfed.federation.errors import DataError

if TYPE_CHECKING:
    from sovfed.federation.config import DataConfig
    from sovfed.federation.tasks import Task

NAME: Final = "pneumoniamnist.npz"
SHA256: Final = "64d46f33cd39594530864d4bd2634a9615b8f87240b8c821b8c60d3f9dd29972"
MAX_BYTES: Final = 1 << 25  # of the file, and of what is in it
SIDE: Final = 28
NOISE: Final = 2.0  # against an eighth of the label: case mix differs, and no institution has one class only
SPLITS: Final = ("train", "val", "test")
Images = npt.NDArray[np.uint8]


def load(task: Task, config: DataConfig) -> Records:
    """The images of simulated institution `config.site` of `config.sites`; every image counts as a person."""
    require_task(task, config.source, "pneumonia")
    if not config.path:
        raise DataError(f"data.source 'pneumoniamnist' needs data.path: {NAME} or the folder it lies in")
    path = Path(config.path).expanduser()
    path = path / NAME if path.is_dir() else path
    splits = _parse(read_file(path, MAX_BYTES, SHA256), path)
    validation = {image.tobytes() for image in splits["val"][0]}
    fresh = np.array([image.tobytes() not in validation for image in splits["train"][0]])
    splits["train"] = (splits["train"][0][fresh], splits["train"][1][fresh])
    images = np.concatenate([splits[name][0] for name in SPLITS]).reshape(-1, SIDE * SIDE)
    labels = np.concatenate([splits[name][1] for name in SPLITS])
    held_out = np.arange(len(labels)) >= len(labels) - len(splits["test"][1])
    rows = np.sort(
        np.concatenate([_share(labels, ~held_out, config, "train"), _share(labels, held_out, config, "test")])
    )
    in_test = held_out[rows]
    table = table_of(task.schema, images[rows], labels[rows])
    return Records(table, rows, np.flatnonzero(~in_test), np.flatnonzero(in_test), several_records=False)


def _share(labels: Indices, among: npt.NDArray[np.bool_], config: DataConfig, what: str) -> Indices:
    """The institution's rows of those that are `among`, by the same rule for training and held-out images."""
    rows = np.flatnonzero(among)
    share: Indices = rows[simulated_site(f"pneumonia/{what}", labels[rows] / 8.0, NOISE, config.site, config.sites)]
    return share


def _parse(content: bytes, path: Path) -> dict[str, tuple[Images, Indices]]:
    """Images [n, 28, 28] and labels [n] of each split. Raises DataError."""
    splits = {}
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if (size := sum(member.file_size for member in archive.infolist())) > MAX_BYTES:
                raise DataError(f"{path}: {size} bytes once unpacked, expected at most {MAX_BYTES}")
        with np.load(io.BytesIO(content), allow_pickle=False) as table:
            for name in SPLITS:
                images, labels = table[f"{name}_images"], table[f"{name}_labels"]
                count = len(images)
                if images.dtype != np.uint8 or images.shape != (count, SIDE, SIDE):
                    raise DataError(f"{path}: {name}_images: {images.dtype} of shape {images.shape}")
                if labels.dtype != np.uint8 or labels.shape != (count, 1):
                    raise DataError(f"{path}: {name}_labels: {labels.dtype} of shape {labels.shape} for {count} images")
                splits[name] = (images, labels[:, 0].astype(np.int64))
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise DataError(f"{path}: not PneumoniaMNIST's arrays ({type(error).__name__})") from error
    return splits


CONNECTOR: Final = Connector(load, task="pneumonia", cuts=True, reads=())
