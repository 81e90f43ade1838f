from conversions.external_data_pt.original import COLUMNS, Net, files, load_csv

import sovfed.task

TASK = sovfed.task.classifier("external_data_pt", Net, [sovfed.task.number(name, -10, 10) for name in COLUMNS], 2)
LOCAL = {"task.learning_rate": 0.1, "task.batch_size": 16, "task.local_epochs": 4}


def federated() -> sovfed.Result:
    return sovfed.simulate(TASK, [tuple(map(load_csv, files(part, 3))) for part in range(3)], rounds=6, settings=LOCAL)
