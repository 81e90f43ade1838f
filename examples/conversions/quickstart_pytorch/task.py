from conversions.quickstart_pytorch.original import Net, load

import sovfed.task

TASK = sovfed.task.classifier("quickstart_pytorch", Net, (3, 32, 32), classes=10)
LOCAL = {"task.learning_rate": 0.01, "task.momentum": 0.9, "task.local_epochs": 5}


def federated() -> sovfed.Result:
    return sovfed.simulate(TASK, [load(part, 3) for part in range(3)], rounds=10, settings=LOCAL)
