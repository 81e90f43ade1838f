"""Wisconsin breast-cancer patients, bundled with scikit-learn, cut into simulated hospitals.

They differ in size and in the tumours they see (a screening clinic small ones, a referral centre large ones).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from sovfed.clients.data import Connector, Records, require_task, table_of
from sovfed.clients.data.bundled import read_bundled
from sovfed.clients.data.split import simulated_site, stratified

if TYPE_CHECKING:
    from sovfed.federation.config import DataConfig
    from sovfed.federation.tasks import Task

SHA256: Final = "fed3eb72d0575ef6192293f5093c6e801b1476b577d0386bf4455504522172ed"
NOISE: Final = 1.0
MEAN_AREA: Final = 3


def load(task: Task, config: DataConfig) -> Records:
    """The patients of simulated hospital `config.site` of `config.sites`; every row is a person."""
    require_task(task, config.source, "breast_cancer")
    table = read_bundled("breast_cancer.csv", SHA256, skip_lines=1)
    features, target = table[:, :-1], table[:, -1]
    size = features[:, MEAN_AREA].argsort(kind="stable").argsort(kind="stable") / len(features)
    rows = simulated_site("breast_cancer", size, NOISE, config.site, config.sites)
    labels = (target[rows] == 0).astype(np.int64)  # in the file 0 is malignant
    train, test = stratified(f"breast_cancer/{config.site}", labels)
    return Records(table_of(task.schema, features[rows], labels), rows, train, test, several_records=False)


CONNECTOR: Final = Connector(load, task="breast_cancer", cuts=True, reads=())
