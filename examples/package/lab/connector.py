"""Records of the laboratory `data.site`: made up here, from the site's number; a real connector reads its own."""

import numpy as np

from sovfed.task import Connector, Records, Task, records


def load(task: Task, config: object) -> Records:
    generator = np.random.default_rng(int(config.site))  # type: ignore[attr-defined]
    count = 120
    values = np.stack([generator.uniform(0, 12, count), generator.uniform(35, 41, count)], 1)
    wave = generator.normal(size=(count, 4)).clip(-5, 5)
    risk = 0.5 * (values[:, 0] - 6) + (values[:, 1] - 38) + wave[:, 0] + generator.normal(0, 0.5, count)
    inputs = {".numbers": values, "wave": wave}
    return records(task, (inputs, (risk > 0).astype(np.int64)), persons=np.arange(count))


CONNECTOR = Connector(load, task="sepsis", cuts=True)
