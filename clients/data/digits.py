"""Handwritten digits, bundled with scikit-learn, cut into simulated institutions that see different digits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from sovfed.clients.data import Connector, Records, require_task, table_of
from sovfed.clients.data.bundled import read_bundled
from sovfed.clients.data.split import simulated_site, stratified

if TYPE_CHECKING:
    from sovfed.federation.config import DataConfig
    from sovfed.federation.tasks import Task

SHA256: Final = "09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22"
NOISE: Final = 0.5


def load(task: Task, config: DataConfig) -> Records:
    """The images of simulated institution `config.site` of `config.sites`; every image counts as a person."""
    require_task(task, config.source, "digits", "digits_cnn", "digits_linear")
    table = read_bundled("digits.csv.gz", SHA256)
    features, labels = table[:, :-1], table[:, -1].astype(np.int64)
    rows = simulated_site("digits", labels / 10.0, NOISE, config.site, config.sites)
    train, test = stratified(f"digits/{config.site}", labels[rows])
    return Records(table_of(task.schema, features[rows], labels[rows]), rows, train, test, several_records=False)


CONNECTOR: Final = Connector(load, task="digits", cuts=True, reads=())
